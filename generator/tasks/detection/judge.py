"""What the stages of a detector share: the boxes and rows of a candidate against the source's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from generator.gate import causes as pixel_causes
from generator.task import StageResult
from generator.tasks.detection import causes
from generator.tasks.detection.compare import ENOUGH, compare, compare_rows, cut_rows, take_images
from generator.tasks.detection.decode import Rows
from generator.tasks.detection.head import BOXES, CLASSES, SCORES
from generator.tasks.detection.naive import Settings, detect_all, network_geometry, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference
    from generator.tasks.detection.compare import Comparison, Limit

# Rows of a random network overlap and tie: so many may be lost before that is a fault.
_ROWS_SURELY_WRONG = 0.95


@dataclass(slots=True)
class Gate:
    """What the stages of one detector share; later ones need what earlier ones find.

    `source` holds the source's rows, `direct` those of the file that is served, run here; `ties` is how many boxes NMS
    chose otherwise there, or when the model was built. `pixels` are those that the served step made. `ran_graph` says
    whether the graph was run here: a server alone is judged without.
    """

    candidate: Candidate
    reference: Reference
    settings: Settings
    limit: Limit
    source: Rows
    direct: Rows | None = None
    ties: int = 0
    pixels: NDArray[np.uint8] | None = None
    ran_graph: bool = False

    def take_pixels(self) -> NDArray[np.uint8]:
        """Return the served pixels, those of the reference where there are none of their form."""
        expected = self.reference.pixels
        return self.pixels if self.pixels is not None and self.pixels.shape == expected.shape else expected

    @property
    def geometry(self) -> NDArray[np.float32]:
        """That of pixels that are the network's input as they are."""
        return network_geometry(len(self.reference.names), self.candidate.artifact.recipe.crop)

    @property
    def edits(self) -> str:
        """What config.pbtxt of the post-processing step says otherwise than the spec; empty where it says the same."""
        asked = settings_of(self.candidate.spec, self.candidate.artifact)
        names = [name for name in ("thresholds", "iou", "nms") if getattr(asked, name) != getattr(self.settings, name)]
        return f"; {' and '.join(names)} as config.pbtxt says, which is not what the spec asks for" if names else ""


def read_rows(outputs: Mapping[str, NDArray[Any]]) -> Rows:
    """Return a network's outputs as rows."""
    return Rows(boxes=outputs[BOXES], scores=outputs[SCORES], classes=outputs[CLASSES])


def judge_rows(gate: Gate, stage: str, rows: Rows, limit: Limit, cause: Callable[[], str]) -> StageResult:
    """Compare a network's rows with the source's: the boxes that both come to, and where these are few, all rows.

    `cause` is called for the likely cause of a failure.
    """
    import numpy as np

    if broken := find_broken(gate, stage, rows):
        return broken
    geometry = gate.geometry
    cut = cut_rows(gate.source, geometry), cut_rows(rows, geometry)
    expected, actual = (detect_all(side, geometry, gate.settings) for side in (gate.source, rows))
    comparison = compare(expected, actual, gate.settings, limit, rows=cut)
    gate.ties = comparison.ties
    result = decide(gate, stage, comparison, limit, cause)
    if comparison.ties:
        result = replace(result, figures={**result.figures, "ties": comparison.ties})
    if result.status != "not proved":
        return result
    counted, missed = compare_rows(gate.source, rows, limit)
    others = np.roll(np.arange(len(rows.scores)), 1)
    of_others = compare_rows(take_images(gate.source, others), rows, limit, best=50)
    if counted < ENOUGH or of_others[1] < of_others[0] / 2:
        return result
    agreement = 1 - missed / counted
    measured = f"{comparison.confident} confident detections; of {counted} rows {agreement:.2%} agree by box and class"
    if agreement >= limit.agreement:
        return StageResult(stage=stage, status="proved", measured=measured, figures={"rows": agreement})
    if limit.agreement == 1 and agreement < _ROWS_SURELY_WRONG:
        figures = {"rows": agreement}
        return StageResult(stage=stage, status="failed", reason=measured, figures=figures, cause=cause())
    return replace(result, reason=f"{result.reason}; of {counted} rows {agreement:.2%} agree by box and class")


def decide(gate: Gate, stage: str, comparison: Comparison, limit: Limit, cause: Callable[[], str]) -> StageResult:
    """Judge the boxes that two sides came to; not proved where they are too few."""
    measured = describe(comparison, limit)
    figures = {"agreement": comparison.agreement} if comparison.judged else {}
    if comparison.fails(limit):
        asked = [f"agreement {limit.agreement:.0%} at IoU {limit.iou}"]
        if comparison.score > limit.score or comparison.box > limit.box:
            asked += [f"score {limit.score:g}", f"box {limit.box:g} px"]
        where = f", most on {gate.reference.names[comparison.worst]}" if comparison.missed else ""
        reason = f"{measured}{where} (limits: {', '.join(asked)})"
        return StageResult(
            stage=stage,
            status="failed",
            measured=measured,
            figures=figures,
            reason=reason,
            cause=cause(),
            agreement=comparison.whole,
        )
    if comparison.confident < ENOUGH:
        reason = (
            f"{comparison.confident} confident detections of the source on {len(gate.reference.names)} images decide "
            f"nothing, {ENOUGH} are needed: give images with what it detects"
        )
        return StageResult(stage=stage, status="not proved", reason=reason, figures=figures, agreement=comparison.whole)
    return StageResult(stage=stage, status="proved", measured=measured, figures=figures, agreement=comparison.whole)


def describe(comparison: Comparison, limit: Limit) -> str:
    """Say how far two sides agree, and over how many boxes."""
    if not comparison.judged:
        return "no confident detections"
    text = (
        f"{comparison.confident} confident detections, agreement {comparison.agreement:.2%} at IoU {limit.iou}, "
        f"score within {comparison.score:.1g}, box within {comparison.box:.1g} px"
    )
    return text + (f", {comparison.ties} decided by rounding" if comparison.ties else "")


def find_broken(gate: Gate, stage: str, rows: Rows) -> StageResult | None:
    """Return a failure if these are no rows: their number, NaN, classes without a name, scores beyond 0..1."""
    import numpy as np

    expected = gate.source.boxes.shape
    if rows.boxes.shape != expected:
        reason = f"boxes have shape {list(rows.boxes.shape)}, {list(expected)} was expected"
        cause = causes.TOP_K if rows.boxes.shape[1] < expected[1] else "another number of rows"
        return StageResult(stage=stage, status="failed", reason=reason, cause=cause)
    finite = np.isfinite(rows.boxes).all(axis=(1, 2)) & np.isfinite(rows.scores).all(axis=1)
    if bad := [gate.reference.names[index] for index in np.flatnonzero(~finite)]:
        reason = f"NaN or infinity for {len(bad)} of {len(finite)} images, {bad[0]} first"
        return StageResult(stage=stage, status="failed", reason=reason, cause=pixel_causes.NAN)
    count = len(gate.candidate.artifact.labels)
    if rows.classes.min() < 0 or rows.classes.max() >= count:
        reason = f"classes run from {rows.classes.min()} to {rows.classes.max()}, 0 to {count - 1} were expected"
        return StageResult(stage=stage, status="failed", reason=reason, cause=causes.of_rows(gate.source, rows))
    if rows.scores.min() < 0 or rows.scores.max() > 1 + 1e-5:
        reason = f"scores run from {rows.scores.min():.4g} to {rows.scores.max():.4g}, 0 to 1 was expected"
        return StageResult(stage=stage, status="failed", reason=reason, cause="the Sigmoid or Softmax is missing")
    if (np.diff(rows.scores, axis=1) > 0).any():
        reason = "the rows do not come by falling score"
        return StageResult(stage=stage, status="failed", reason=reason, cause=causes.ORDER)
    return None
