"""torchvision's registry of classification models: pretrained, random, or from the user's checkpoint."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.recipe import Recipe, from_transforms
from generator.sources.network import Network, resolve_labels, resolve_recipe, torch_runner
from generator.spelling import near

if TYPE_CHECKING:
    import torch

    from generator.spec import ModelSpec

__all__ = ["describe_torchvision", "load_torchvision"]


def load_torchvision(spec: ModelSpec) -> Network:
    """Load `spec.architecture` with the weights the spec asks for, in evaluation mode.

    Raises:
        SourceError: Unknown architecture or weights, no download, or a checkpoint that does not fit.
    """
    recipe, labels = describe_torchvision(spec)
    weights, classes = _find_weights(spec), len(labels)
    if spec.source == "checkpoint":
        from generator.sources.checkpoint import load_state_dict

        module = _build(spec, recipe, classes)
        load_state_dict(module, Path(spec.weights), architecture=spec.registry_name, classes=classes)
        origin = f"checkpoint {Path(spec.weights).name}"
    elif spec.weights == "random":
        from generator.sources.random_weights import calibrate

        module = _build(spec, recipe, classes)
        calibrate(module, recipe, seed=spec.seed)
        origin = f"random weights, seed {spec.seed}"
    else:
        if classes != len(weights.meta["categories"]):
            msg = f"{spec.name}: classes is {classes}, but {weights} has {len(weights.meta['categories'])}"
            raise SourceError(msg, hint="leave classes out, or give your own checkpoint as weights")
        module = _download(spec, weights)
        origin = str(weights)
    module.eval()
    return Network(
        description=f"torchvision {spec.registry_name}, {origin}",
        recipe=recipe,
        labels=labels,
        run=torch_runner(module, recipe),
        activation=None if spec.source == "checkpoint" else "softmax",
        module=module,
    )


def describe_torchvision(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names without building or downloading anything.

    Raises:
        SourceError: Unknown architecture or weights, or labels that do not fit.
    """
    _check_architecture(spec.registry_name)
    weights = _find_weights(spec)
    categories = list(weights.meta["categories"])
    recipe = resolve_recipe(spec, from_transforms(weights.transforms()))
    return recipe, resolve_labels(spec, categories, spec.classes or len(categories))


def _check_architecture(name: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        similar = near(name, known)
        listed = f"did you mean {', '.join(similar)}?" if similar else f"known are {', '.join(known)}"
        msg = f"torchvision has no classification model {name!r}; {listed}"
        raise SourceError(msg, hint="use a name of that list, a checkpoint with `architecture`, or an ONNX file")


def _find_weights(spec: ModelSpec) -> Any:
    """The weights enumeration's member whose recipe and categories hold: the one asked for, else the default."""
    import torchvision

    known = torchvision.models.get_model_weights(spec.registry_name)
    if spec.source == "checkpoint":
        # a file of torchvision's own, copied from elsewhere, keeps its name and with it its recipe
        same = [weights for weights in known if _file_name(weights) == Path(spec.weights).name]
        return same[0] if same else known.DEFAULT
    if spec.weights in ("default", "random"):
        return known.DEFAULT
    try:
        return known[spec.weights]
    except KeyError as error:
        names = [weights.name for weights in known]
        msg = f"{spec.registry_name} has no weights {spec.weights!r}; it has {', '.join(names)}, default and random"
        raise SourceError(msg, hint="a checkpoint file must end in .pt, .pth, .bin or .safetensors") from error


def _file_name(weights: Any) -> str:
    return str(weights.url).rsplit("/", 1)[-1]


def _build(spec: ModelSpec, recipe: Recipe, classes: int) -> torch.nn.Module:
    """An untrained module; the initial weights follow from the seed alone."""
    import torch
    import torchvision

    builder = torchvision.models.get_model_builder(spec.registry_name)
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    signature = inspect.signature(inspect.unwrap(builder))
    if "init_weights" in signature.parameters:  # inception_v3 and googlenet: minutes for the exact truncated normal
        options["init_weights"] = False
    if "vit_" in spec.registry_name:
        options["image_size"] = recipe.crop[0]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(spec.seed)
        module: torch.nn.Module = builder(**options)
    return module.eval()


def _download(spec: ModelSpec, weights: Any) -> torch.nn.Module:
    """The pretrained module; torch keeps the file in its own cache."""
    from urllib.error import URLError

    import torchvision

    try:
        module: torch.nn.Module = torchvision.models.get_model(spec.registry_name, weights=weights, progress=False)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        msg = f"the weights {weights} cannot be downloaded: {reason}"
        name = _file_name(weights)
        raise SourceError(msg, hint=f"copy {name} here and give --weights {name}, or try --weights random") from error
    except RuntimeError as error:  # torch.hub: the hash of the cached file is wrong
        msg = f"the weights {weights} are damaged: {error}"
        raise SourceError(msg, hint="delete the file in torch's cache (torch.hub.get_dir()) and run again") from error
    return module
