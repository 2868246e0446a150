"""The share of right answers on labelled images, of every stage that can run here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from generator.gate.client import GrpcAddress, ServedModel, as_bytes
from generator.gate.run import why_not_served
from generator.graph.model import read_onnx, run_graph
from generator.images.served_pixels import prepare_without_torch
from generator.images.sets import read_labelled
from generator.images.training_pixels import prepare
from generator.spec.recipe import IMAGENET, Recipe, RecipeSpec
from generator.task import StageResult, not_proved
from generator.tasks.classification.compare import comparable, first_classes
from generator.tasks.classification.plan_stage import run_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.sets import LabelledImages

# An accuracy within so many standard deviations of a guess proves nothing.
_SIGMAS = 3
_USUAL_RECIPES: dict[str, dict[str, Any]] = {
    "ImageNet's mean and std": {"scale": 1 / 255, "mean": IMAGENET.mean, "std": IMAGENET.std},
    "values in -1..1 (mean and std 0.5)": {"scale": 1 / 255, "mean": 0.5, "std": 0.5},
    "values in 0..1 (mean 0, std 1)": {"scale": 1 / 255, "mean": 0.0, "std": 1.0},
    "values in 0..255 (scale 1, mean 0, std 1)": {"scale": 1.0, "mean": 0.0, "std": 1.0},
}


def measure_labelled(candidate: Candidate, folder: Path, address: GrpcAddress | None) -> Iterator[StageResult]:
    """Yield the accuracy of the source, the graph, the plan and the served ensemble; say which could not run here.

    Then judge a recipe that did not come with the weights, and say what a graph of low precision scores by itself.
    """
    import numpy as np

    labelled = read_labelled(folder, candidate.artifact.labels)
    truth = np.array(labelled.classes)
    pixels = _prepare(candidate, labelled, candidate.artifact.recipe)
    answers: dict[str, Callable[[], NDArray[np.floating[Any]] | str]] = {
        "labelled source": lambda: _ask_source(candidate, labelled),
        "labelled onnx": lambda: _run_onnx(candidate, pixels),
        "labelled plan": lambda: run_plan(candidate, pixels),
        "labelled ensemble": lambda: _ask_server(candidate, labelled, address),
    }
    if candidate.plan is None:
        del answers["labelled plan"]
    own: dict[str, float] = {}  # what the source scores, or where that is elsewhere, the graph
    for stage, answer in answers.items():
        scores = answer()
        if isinstance(scores, str):
            yield not_proved(stage, scores)
        else:
            accuracy = float((first_classes(comparable(scores, candidate.artifact.head.activation)) == truth).mean())
            figures = {"accuracy": accuracy}
            own = own or figures
            yield StageResult(stage=stage, status="measured", figures=figures, measured=f"{len(truth)} images")
    if "precision" in candidate.artifact.assumed and own:
        measured = f"{len(truth)} images, of the graph as it came; its original is not here"
        yield StageResult(stage="precision", status="measured", figures=own, measured=measured)
    if "recipe" in candidate.artifact.assumed:
        yield check_recipe(candidate, labelled)


def check_recipe(candidate: Candidate, labelled: LabelledImages) -> StageResult:
    """Judge a recipe that did not come with the weights by its accuracy, beside that of the usual other ones.

    Only here: such a recipe is on both sides of every other comparison.
    """
    import numpy as np

    from generator.sources import load_network

    spec = candidate.spec
    exported = spec.source == "export"  # the recipe's mean and std are in its graph, and the source is elsewhere
    truth = np.array(labelled.classes)
    given = candidate.artifact.recipe
    pixels = _prepare(candidate, labelled, given)

    def count_right(recipe: Recipe, pixels: NDArray[np.uint8]) -> int:
        if exported:
            scores: NDArray[np.floating[Any]] = _only(run_graph(read_onnx(candidate.onnx), pixels))
        else:
            settings = RecipeSpec.model_validate(recipe.model_dump())
            network = load_network(spec.model_copy(update={"recipe": settings, "image_size": None}))
            scores = candidate.artifact.head.finish(_only(network.run(pixels)))
        return int((first_classes(comparable(scores, candidate.artifact.head.activation)) == truth).sum())

    count = len(truth)
    right = count_right(given, pixels)
    chance = float(np.bincount(truth).max()) / count
    accuracy = right / count
    found = f"accuracy {accuracy:.1%} on {count} images"
    others = {}
    if given.channels != "grey":
        turned = "RGB" if given.channels == "BGR" else "BGR"
        others[f"channels in {turned} order"] = count_right(given, np.ascontiguousarray(pixels[..., ::-1]))
    for name, other in _usual_others(given, only_fits=exported):
        same = other.pixel_fields() == given.pixel_fields()
        others[name] = count_right(other, pixels if same else _prepare(candidate, labelled, other))
    best = max(others, key=others.__getitem__)
    # what a guess gets by luck
    luck = chance * count + _SIGMAS * (count * chance * (1 - chance)) ** 0.5
    if others[best] - right >= max(3, 0.05 * count) and others[best] >= luck:
        reason = f"{found} as given, {others[best] / count:.1%} with {best}"
        return StageResult(stage="recipe", status="failed", figures={"accuracy": accuracy}, reason=reason, cause=best)
    if right < luck or chance == 1:
        reason = f"{found} is not clearly above {chance:.1%}, what always naming the commonest class gets"
        return StageResult(stage="recipe", status="not proved", figures={"accuracy": accuracy}, reason=reason)
    measured = f"{count} images, {others[best] / count:.1%} with {best}, "
    measured += "other means and stds not tried" if exported else "the best of the usual others"
    return StageResult(stage="recipe", status="proved", figures={"accuracy": accuracy}, measured=measured)


def _usual_others(given: Recipe, *, only_fits: bool) -> Iterator[tuple[str, Recipe]]:
    """Yield the recipes that are often the right one where the given one is not."""
    changes: dict[str, dict[str, Any]] = {} if only_fits else dict(_USUAL_RECIPES)
    if given.channels == "grey":
        changes.pop("ImageNet's mean and std", None)
    changes["the image stretched to its size"] = {"fit": "stretch", "resize": given.crop}
    changes["the shorter edge resized, its centre taken"] = {"fit": "crop", "resize": max(given.crop)}
    changes["the whole image, grey around it (letterbox)"] = {
        "fit": "letterbox", "resize": given.crop, "fill": (114, 114, 114),
    }  # fmt: skip
    for name, change in changes.items():
        other = Recipe.model_validate({**given.model_dump(), **change})
        if other != given:
            yield name, other


def _prepare(candidate: Candidate, labelled: LabelledImages, recipe: Recipe) -> NDArray[np.uint8]:
    if candidate.spec.source == "export":  # this host may have no torch
        return prepare_without_torch(recipe, labelled.images.files, labelled.images.names)
    return prepare(recipe, labelled.images.files)


def _ask_source(candidate: Candidate, labelled: LabelledImages) -> NDArray[np.floating[Any]] | str:
    from generator.sources import load_network

    if candidate.spec.source == "export":
        return "the source is where it was exported"
    network = load_network(candidate.spec)
    pixels = prepare(network.recipe, labelled.images.files, network.pixels)
    scores: NDArray[np.floating[Any]] = candidate.artifact.head.finish(_only(network.run(pixels)))
    return scores


def _run_onnx(candidate: Candidate, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | str:
    return _only(run_graph(read_onnx(candidate.onnx), pixels))


def _ask_server(
    candidate: Candidate, labelled: LabelledImages, address: GrpcAddress | None
) -> NDArray[np.float32] | str:
    from generator.server.embedded import EmbeddedServer

    if address is None and (reason := why_not_served(candidate)):
        return reason
    with contextlib.ExitStack() as stack:
        if address is None:
            server = EmbeddedServer(candidate.repository, models=[candidate.layout.entry])
            address = GrpcAddress(url=stack.enter_context(server).grpc_url)
        served = stack.enter_context(ServedModel(address, candidate.layout, max_batch_size=candidate.spec.batch.max))
        return _only(served.ask("ensemble", as_bytes(labelled.images.files)))


def _only(outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    (scores,) = outputs.values()
    return scores
