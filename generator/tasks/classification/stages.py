"""The stages of the gate for a classifier, each a function from what is compared to a StageResult."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from generator.errors import ServerError, SourceError, VerificationError
from generator.gate import causes as pixel_causes
from generator.gate.client import as_bytes
from generator.gate.stages import ask_pixels, check_batches, describe_distance, judge_pixels
from generator.graph.model import read_onnx, run_graph
from generator.task import Stage, StageResult, not_proved
from generator.tasks.classification import causes
from generator.tasks.classification.activation import is_distribution
from generator.tasks.classification.answers import find_leads
from generator.tasks.classification.compare import (
    AS_IS,
    LIMITS,
    Comparison,
    Limit,
    comparable,
    compare,
    discriminates,
    ensemble_limit,
    first_classes,
    plan_limit,
)
from generator.tasks.classification.labels import name_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.gate.client import ServedModel
    from generator.images.reference import Reference
    from generator.tasks.classification.activation import Head

# A served graph is the same file in the same onnxruntime: only the order of summation in a batch may differ.
_SERVED_TOLERANCE = 1e-4
_CLASSIFIER = "served classifier"


def make_stages(candidate: Candidate, reference: Reference) -> list[Stage]:
    """Return the gate's stages in order.

    Raises:
        VerificationError: The source gives the same answer for all images, so nothing can be compared; or its answers
            are not what the record says.
    """
    from generator.tasks.classification.plan_stage import check_plan

    spec, head = candidate.spec, candidate.artifact.head
    limit = plan_limit(candidate.precision) if candidate.plan else LIMITS[candidate.precision]
    if found := head.contradiction(reference.answers["scores"]):
        msg = f"{spec.name}: its record says that the source answers {head.output}, but its answers are {found}"
        raise VerificationError(msg, hint="build the model again from its source")
    require_discrimination(spec.name, reference, head, limit)
    direct: list[NDArray[np.float32]] = []  # the plan's own scores

    def run_plan(_: ServedModel | None) -> StageResult:
        result, scores = check_plan(candidate, reference, limit)
        direct.extend([] if scores is None else [scores])
        return result

    pixels: list[NDArray[np.uint8]] = []  # the served ones

    def check_pixels(served: ServedModel | None) -> StageResult:
        assert served is not None, "it needs the server"
        answers = ask_pixels(served, reference.files)
        pixels.append(answers["PIXELS"])
        return judge_pixels(answers, candidate, reference)

    def ask_classifier(served: ServedModel | None) -> StageResult:
        assert served is not None, "it needs the server"
        if candidate.layout.is_fused:
            fits = bool(pixels) and pixels[0].shape == reference.pixels.shape
            return check_fused_classifier(served, candidate, reference, pixels[0] if fits else reference.pixels)
        return check_classifier(served, candidate, reference, direct[0] if direct else None)

    def ask_ensemble(served: ServedModel | None) -> StageResult:
        assert served is not None, "it needs the server"
        return check_ensemble(served, candidate, reference, limit)

    return [
        Stage(name="batches", needs="graph", run=lambda _: check_batches(candidate, reference)),
        Stage(name="onnx", needs="graph", run=lambda _: check_onnx(candidate, reference)),
        *([Stage(name="plan", needs="plan", run=run_plan)] if candidate.plan else []),
        Stage(name="served pixels", needs="server", run=check_pixels, watched=True),
        Stage(name="served classifier", needs="server", run=ask_classifier),
        Stage(name=candidate.layout.entry_stage, needs="server", run=ask_ensemble, watched=True),
    ]


def require_discrimination(name: str, reference: Reference, head: Head, limit: Limit) -> None:
    """Do nothing if a mix-up of two images would be noticed.

    Raises:
        VerificationError: The source gives the same answer for all images, so nothing can be compared.
    """
    if not discriminates(comparable(head.finish(reference.answers["scores"]), head.activation), limit):
        msg = (
            f"{name}: images do not discriminate: "
            f"the source answers alike for {len(reference.names)} images, so a wrong model would pass too"
        )
        raise VerificationError(msg, hint="give images of several of its classes", fields={"images": None})


def check_onnx(candidate: Candidate, reference: Reference) -> StageResult:
    """The graph, run directly, answers like the source."""
    # what came in low precision is compared with itself: only the pixels in front may round otherwise
    limit = AS_IS if candidate.spec.is_as_is else LIMITS[candidate.graph_precision]
    model = read_onnx(candidate.onnx)
    try:
        scores = _scores(run_graph(model, reference.pixels))
    except SourceError as error:
        return StageResult(stage="onnx", status="failed", reason=error.message)
    result = judge("onnx", candidate, reference, scores, limit, lambda: causes.of_graph(candidate, model, reference))
    return replace(result, measured=result.measured + candidate.ran_as)


def check_classifier(
    served: ServedModel, candidate: Candidate, reference: Reference, direct: NDArray[np.float32] | None
) -> StageResult:
    """The served classifier gives the numbers of the same file run directly, and the source's label texts.

    `direct` holds these numbers for a plan; the graph is run here.
    """
    if direct is None:
        if candidate.plan is not None:
            return not_proved(_CLASSIFIER, "the plan was not run directly, so there is nothing to compare with")
        direct = _scores(run_graph(read_onnx(candidate.onnx), reference.pixels, as_served=True))
    return _compare_with_direct(served, candidate, reference.pixels, direct)


def check_fused_classifier(
    served: ServedModel, candidate: Candidate, reference: Reference, pixels: NDArray[np.uint8]
) -> StageResult:
    """The fused model's scores are those of the same file run directly on the `pixels` that it decodes."""
    if candidate.plan is None:
        direct: NDArray[np.float32] | str = _scores(run_graph(read_onnx(candidate.onnx), pixels, as_served=True))
    else:
        from generator.tasks.classification.plan_stage import run_plan

        direct = run_plan(candidate, pixels)
    if isinstance(direct, str):
        return not_proved(_CLASSIFIER, direct)
    return _compare_with_direct(served, candidate, as_bytes(reference.files), direct)


def _compare_with_direct(
    served: ServedModel, candidate: Candidate, values: NDArray[Any], direct: NDArray[np.float32]
) -> StageResult:
    """Ask the served network for these rows, and compare with the numbers of the same file run directly."""
    import numpy as np

    stage = _CLASSIFIER
    scores = _scores(served.ask("classifier", values))
    if not np.isfinite(scores).all():
        return StageResult(
            stage=stage, status="failed", reason="NaN or infinity in the served scores", cause=pixel_causes.NAN
        )
    worst = float(np.abs(scores - direct).max())
    first, expected = (first_classes(comparable(one, candidate.artifact.head.activation)) for one in (scores, direct))
    agreement = float((first == expected).mean())
    if worst > _SERVED_TOLERANCE or agreement < 1:
        reason = f"differs from the same file run directly by {worst:.2g}, first class agrees on {agreement:.1%}"
        return StageResult(
            stage=stage,
            status="failed",
            figures={"top1": agreement},
            reason=reason,
            cause="the server runs another file or version",
        )
    if swapped := _wrong_labels(served.rank("classifier", values[:1]), candidate.artifact.labels):
        return StageResult(stage=stage, status="failed", reason=swapped, cause=causes.LABELS)
    return StageResult(
        stage=stage, status="proved", figures={"top1": agreement}, measured=f"{describe_distance(worst)}, labels equal"
    )


def check_ensemble(served: ServedModel, candidate: Candidate, reference: Reference, limit: Limit) -> StageResult:
    """From the JPEG's bytes to the label, over the wire, like the source with its own transforms."""
    scores = _scores(served.ask("ensemble", as_bytes(reference.files)))
    result = judge(
        candidate.layout.entry_stage, candidate, reference, scores, ensemble_limit(limit), lambda: causes.UPSTREAM
    )
    if result.status == "proved" and (
        swapped := _wrong_labels(served.rank("ensemble", as_bytes(reference.files[:1])), candidate.artifact.labels)
    ):
        return StageResult(stage=result.stage, status="failed", reason=swapped, cause=causes.LABELS)
    return result


def judge(
    stage: str, candidate: Candidate, reference: Reference, scores: NDArray[np.float32], limit: Limit, cause: Any
) -> StageResult:
    """Compare scores with the source's; `cause` is called for the likely cause of a failure."""
    import numpy as np

    own = reference.answers["scores"]
    if scores.shape != own.shape:
        reason = f"scores have shape {list(scores.shape)}, {list(own.shape)} was expected"
        return StageResult(stage=stage, status="failed", reason=reason, cause="another number of classes")
    if bad := [reference.names[i] for i in np.flatnonzero(~np.isfinite(scores).all(axis=1))]:
        reason = f"NaN or infinity for {len(bad)} of {len(scores)} images, {bad[0]} first"
        return StageResult(stage=stage, status="failed", reason=reason, cause=pixel_causes.NAN)
    activation = candidate.artifact.head.activation
    if activation == "softmax" and not is_distribution(scores):
        reason = f"the scores of an image sum to {scores.sum(axis=1)[0]:.4g}, probabilities sum to 1"
        return StageResult(stage=stage, status="failed", reason=reason, cause="the Softmax is missing")
    if activation == "sigmoid" and not (scores.min() >= 0 and scores.max() <= 1):
        reason = f"scores run from {scores.min():.4g} to {scores.max():.4g}, probabilities are in 0..1"
        return StageResult(stage=stage, status="failed", reason=reason, cause="the Sigmoid is missing")
    expected = comparable(candidate.artifact.head.finish(own), activation)
    # a graph in FP32 rounds so little that every first class must be the source's
    counted = None if limit.top1 == 1 else reference.answers["decided"]
    comparison = compare(expected, comparable(scores, activation), counted)
    measured = f"cosine {comparison.worst_cosine:.6f}, {_first_classes(comparison, counted)}"
    figures = {"worst_cosine": comparison.worst_cosine}
    if not np.isnan(comparison.top1):
        figures["top1"] = comparison.top1
    agreement = comparison.agreement(limit)
    if comparison.meets(limit):
        if comparison.differing:
            measured += f", other first class: {_differing(comparison, reference)}"
        return StageResult(stage=stage, status="proved", measured=measured, figures=figures, agreement=agreement)
    return StageResult(
        stage=stage,
        status="failed",
        measured=measured,
        figures=figures,
        reason=_reason(comparison, reference, limit),
        cause=cause(),
        agreement=agreement,
    )


def _reason(comparison: Comparison, reference: Reference, limit: Limit) -> str:
    counted = None if limit.top1 == 1 else reference.answers["decided"]
    text = (
        f"cosine {comparison.worst_cosine:.6f} on {reference.names[comparison.worst_image]} "
        f"(limit {limit.cosine:.5f}), {_first_classes(comparison, counted)} (limit {limit.top1:.1%})"
    )
    if comparison.differing:
        text += f"; other first class: {_differing(comparison, reference)}"
    return text


def _first_classes(comparison: Comparison, counted: NDArray[np.bool_] | None) -> str:
    """Tell the agreement of first classes, and over which images."""
    if counted is None or counted.all():
        return f"top-1 {comparison.top1:.1%}"
    if not counted.any():
        return "top-1 not judged: the source is undecided on every image"
    return f"top-1 {comparison.top1:.1%} of the {int(counted.sum())} images that the source is decided on"


def _differing(comparison: Comparison, reference: Reference) -> str:
    """Name the images whose first class differs, each with its margin: how far ahead the source's first class was."""
    parts = []
    for index in comparison.differing[:5]:
        (margin,) = find_leads(reference.answers["scores"][[index]])
        undecided = "" if reference.answers["decided"][index] else ", undecided"
        parts.append(f"{reference.names[index]} (margin {margin:.3g}{undecided})")
    more = len(comparison.differing) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _wrong_labels(served: Sequence[tuple[int, str]], labels: Sequence[str]) -> str:
    labels = name_outputs(labels, len(served))
    wrong = [(index, text) for index, text in sorted(served) if text != labels[index]]
    if not wrong:
        return ""
    index, text = wrong[0]
    return f"class {index} is served as {text!r}, the source calls it {labels[index]!r} ({len(wrong)} labels differ)"


def _scores(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    if len(outputs) != 1:
        msg = f"it answers {', '.join(outputs) or 'nothing'}, one output was expected: the scores of all classes"
        raise ServerError(msg, hint="another model of this name is served: look at the server's repository")
    (scores,) = outputs.values()
    return scores
