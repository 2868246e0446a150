"""The stages of the gate, each a function from what is compared to a StageResult."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from generator.errors import ExportError, SourceError
from generator.gate import causes
from generator.gate.compare import LIMITS, Comparison, Limit, comparable, compare, ensemble_limit, first_classes
from generator.graph.batches import ROW_TOLERANCE, batch_sizes, prove_dynamic_batch
from generator.graph.model import read_onnx, run_graph
from generator.graph.names import DYNAMIC_HINT, NAN_HINT
from generator.images.reference import find_leads
from generator.tasks.head import is_distribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.served import ServedModel
    from generator.gate.subject import Subject
    from generator.images.reference import Reference

__all__ = [
    "NO_BF16",
    "ROW_TOLERANCES",
    "StageResult",
    "check_batches",
    "check_classifier",
    "check_ensemble",
    "check_onnx",
    "check_pixels",
    "judge",
    "list_assumed",
    "not_proved",
]

Status = Literal["proved", "failed", "not proved", "assumed", "measured"]
NO_BF16 = "onnxruntime on the CPU has no bf16"
# Half of the steps between numbers: rows of a batch may be summed in another order, and rounded to another neighbour.
ROW_TOLERANCES = {"fp32": ROW_TOLERANCE, "fp16": 5e-3, "int8": 5e-2}
# A served graph is the same file in the same onnxruntime: only the order of summation in a batch may differ.
_SERVED_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one stage found. `reason` says why it failed, did not run or is assumed, `cause` what made it fail."""

    stage: str
    status: Status
    measured: str = ""
    worst_cosine: float | None = None
    top1: float | None = None
    accuracy: float | None = None
    reason: str = ""
    cause: str = ""


def check_batches(subject: Subject, reference: Reference) -> StageResult:
    """Every batch gives each row what it gets alone."""
    if subject.graph_precision == "bf16":
        return not_proved("batches", NO_BF16)
    try:
        worst = prove_dynamic_batch(
            read_onnx(subject.onnx),
            maximum=subject.max_batch_size,
            pixels=reference.pixels,
            tolerance=ROW_TOLERANCES[subject.graph_precision],
        )
    except ExportError as error:
        cause = {DYNAMIC_HINT: "a batch axis is baked in", NAN_HINT: causes.NAN}.get(error.hint or "", error.hint or "")
        return StageResult(stage="batches", status="failed", reason=str(error), cause=cause)
    except SourceError as error:
        return StageResult(stage="batches", status="failed", reason=str(error))
    sizes = batch_sizes(subject.max_batch_size)
    return StageResult(stage="batches", status="proved", measured=f"{sizes}: rows {_distance(worst)}")


def check_onnx(subject: Subject, reference: Reference) -> StageResult:
    """The graph, run directly, answers like the source."""
    if subject.graph_precision == "bf16":
        return not_proved("onnx", NO_BF16)
    limit = LIMITS[subject.graph_precision]
    model = read_onnx(subject.onnx)
    try:
        scores = run_graph(model, reference.pixels)
    except SourceError as error:
        return StageResult(stage="onnx", status="failed", reason=error.message)
    return judge("onnx", subject, reference, scores, limit, lambda: causes.of_graph(subject, model, reference))


def check_pixels(served: ServedModel, subject: Subject, reference: Reference) -> StageResult:
    """The served preprocessing makes the pixels that training would have made, within one level of 255."""
    import numpy as np

    pixels = served.preprocess(reference.files)
    if pixels.shape != reference.pixels.shape:
        reason = f"pixels have shape {list(pixels.shape)}, {list(reference.pixels.shape)} was expected"
        return StageResult(stage="served pixels", status="failed", reason=reason, cause="crop or resize differs")
    levels = np.abs(pixels.astype(np.int16) - reference.pixels.astype(np.int16)).reshape(len(pixels), -1).max(axis=1)
    worst = int(levels.argmax())
    if levels[worst] <= 1:
        measured = f"within {levels[worst]}/255" if levels[worst] else "identical"
        return StageResult(stage="served pixels", status="proved", measured=measured)
    return StageResult(
        stage="served pixels",
        status="failed",
        measured=f"{levels[worst]}/255",
        reason=f"{int((levels > 1).sum())} of {len(levels)} images differ by more than 1 level of 255, "
        f"{reference.names[worst]} by {levels[worst]}",
        cause=causes.of_pixels(subject, reference, pixels),
    )


def check_classifier(
    served: ServedModel, subject: Subject, reference: Reference, direct: NDArray[np.float32] | None
) -> StageResult:
    """The served classifier gives the numbers of the same file run directly, and the source's label texts.

    `direct` holds these numbers for a plan; the graph is run here.
    """
    import numpy as np

    if direct is None:
        if subject.plan is not None:
            return not_proved("served classifier", "the plan was not run directly, so there is nothing to compare with")
        direct = run_graph(read_onnx(subject.onnx), reference.pixels)
    scores = served.classify_pixels(reference.pixels)
    stage = "served classifier"
    if not np.isfinite(scores).all():
        return StageResult(
            stage=stage, status="failed", reason="NaN or infinity in the served scores", cause=causes.NAN
        )
    worst = float(np.abs(scores - direct).max())
    first, expected = (first_classes(comparable(one, subject.head.activation)) for one in (scores, direct))
    agreement = float((first == expected).mean())
    if worst > _SERVED_TOLERANCE or agreement < 1:
        reason = f"differs from the same file run directly by {worst:.2g}, first class agrees on {agreement:.1%}"
        return StageResult(
            stage=stage, status="failed", top1=agreement, reason=reason, cause="the server runs another file or version"
        )
    if swapped := _wrong_labels(served.classifier_labels(reference.pixels[:1]), subject.labels):
        return StageResult(stage=stage, status="failed", reason=swapped, cause=causes.LABELS)
    return StageResult(stage=stage, status="proved", top1=agreement, measured=f"{_distance(worst)}, labels equal")


def check_ensemble(served: ServedModel, subject: Subject, reference: Reference, limit: Limit) -> StageResult:
    """From the JPEG's bytes to the label, over the wire, like the source with its own transforms."""
    scores = served.classify_images(reference.files)
    result = judge("served ensemble", subject, reference, scores, ensemble_limit(limit), lambda: causes.UPSTREAM)
    if result.status == "proved" and (
        swapped := _wrong_labels(served.ensemble_labels(reference.files[0]), subject.labels)
    ):
        return StageResult(stage=result.stage, status="failed", reason=swapped, cause=causes.LABELS)
    return result


def list_assumed(subject: Subject) -> list[StageResult]:
    """Return a result for each thing that was taken on trust, since nobody can prove it here."""
    return [StageResult(stage=name, status="assumed", reason=reason) for name, reason in subject.assumed.items()]


def not_proved(stage: str, reason: str) -> StageResult:
    """Return the result of a stage that could not run here."""
    return StageResult(stage=stage, status="not proved", reason=reason)


def _distance(worst: float) -> str:
    return f"within {worst:.1g}" if worst else "identical"


def judge(
    stage: str, subject: Subject, reference: Reference, scores: NDArray[np.float32], limit: Limit, cause: Any
) -> StageResult:
    """Compare scores with the source's; `cause` is called for the likely cause of a failure."""
    import numpy as np

    if scores.shape != reference.scores.shape:
        reason = f"scores have shape {list(scores.shape)}, {list(reference.scores.shape)} was expected"
        return StageResult(stage=stage, status="failed", reason=reason, cause="another number of classes")
    if bad := [reference.names[i] for i in np.flatnonzero(~np.isfinite(scores).all(axis=1))]:
        reason = f"NaN or infinity for {len(bad)} of {len(scores)} images, {bad[0]} first"
        return StageResult(stage=stage, status="failed", reason=reason, cause=causes.NAN)
    activation = subject.head.activation
    if activation == "softmax" and not is_distribution(scores):
        reason = f"the scores of an image sum to {scores.sum(axis=1)[0]:.4g}, probabilities sum to 1"
        return StageResult(stage=stage, status="failed", reason=reason, cause="the Softmax is missing")
    if activation == "sigmoid" and not (scores.min() >= 0 and scores.max() <= 1):
        reason = f"scores run from {scores.min():.4g} to {scores.max():.4g}, probabilities are in 0..1"
        return StageResult(stage=stage, status="failed", reason=reason, cause="the Sigmoid is missing")
    expected = comparable(subject.head.finish(reference.scores), activation)
    # a graph in FP32 rounds so little that every first class must be the source's
    counted = None if limit.top1 == 1 else reference.decided
    comparison = compare(expected, comparable(scores, activation), counted)
    measured = f"cosine {comparison.worst_cosine:.6f}, {_first_classes(comparison, counted)}"
    top1 = None if np.isnan(comparison.top1) else comparison.top1
    if comparison.meets(limit):
        if comparison.differing:
            measured += f", other first class: {_differing(comparison, reference)}"
        return StageResult(
            stage=stage, status="proved", measured=measured, worst_cosine=comparison.worst_cosine, top1=top1
        )
    return StageResult(
        stage=stage,
        status="failed",
        measured=measured,
        worst_cosine=comparison.worst_cosine,
        top1=top1,
        reason=_reason(comparison, reference, limit),
        cause=cause(),
    )


def _reason(comparison: Comparison, reference: Reference, limit: Limit) -> str:
    counted = None if limit.top1 == 1 else reference.decided
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
        (margin,) = find_leads(reference.scores[[index]])
        undecided = "" if reference.decided[index] else ", undecided"
        parts.append(f"{reference.names[index]} (margin {margin:.3g}{undecided})")
    more = len(comparison.differing) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _wrong_labels(served: Sequence[tuple[int, str]], labels: Sequence[str]) -> str:
    if len(served) == 1:  # one output: the probability of the second class
        labels = labels[-1:]
    wrong = [(index, text) for index, text in sorted(served) if text != labels[index]]
    if not wrong:
        return ""
    index, text = wrong[0]
    return f"class {index} is served as {text!r}, the source calls it {labels[index]!r} ({len(wrong)} labels differ)"
