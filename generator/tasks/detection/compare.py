"""How two sets of boxes are compared: by class and IoU, over those that both thresholds and rounding leave no doubt of.

Three measures, since one does not fit: the boxes that are answered, the rows before thresholds and NMS, and the
network's own values for single anchors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from generator.tasks.detection.decode import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.tasks.detection.naive import Found, Settings

# Fewer boxes decide nothing: with 100, one is the hundredth that FP16 may lose.
ENOUGH = 100
# So far above its threshold a score must be, on one side, for its box to count; a full answer's is its last score.
_CLEAR = 0.1
# Of the best score; scores as near as that may change places.
_TIE = 1e-3
# Pixels that make no other box, however small it is.
_NEAR = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a stage must reach: the share of boxes that have a partner of the same class with at least this IoU.

    `score` and `box`, in pixels of the network's input, are how far two partners may be apart. `error` is that of the
    values of single anchors, as a share of how much these vary between images.
    """

    agreement: float
    iou: float
    score: float = float("inf")
    box: float = float("inf")
    error: float = float("inf")


# Set by design, not fitted to a model; not to be loosened without a reason.
LIMITS = {
    "fp32": Limit(agreement=1.0, iou=0.9, score=1e-3, box=0.5, error=0.02),
    "fp16": Limit(agreement=0.99, iou=0.9, error=0.05),
    "bf16": Limit(agreement=0.97, iou=0.9, error=0.2),
    "int8": Limit(agreement=0.95, iou=0.75),
    "fp8": Limit(agreement=0.95, iou=0.75),
}
# A graph that came in low precision, against the file that it was: nothing was converted on the way.
AS_IS = LIMITS["fp16"]
# An FP32 plan may use TF32 for its products, with as many bits as FP16.
PLAN_FP32 = LIMITS["fp16"]


def plan_limit(precision: str) -> Limit:
    """Return the limit for a plan of this precision."""
    return PLAN_FP32 if precision == "fp32" else LIMITS[precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome over all images.

    `confident` is the number of the source's boxes that count, `judged` that of both sides, `missed` how many of these
    have no partner. `score` and `box` are the largest differences between partners, `ties` how many boxes one side
    dropped in favour of another one, both of which both sides have. `worst` is the image with the most missed ones,
    `whole` the share of images without one.
    """

    confident: int
    judged: int
    missed: int
    score: float
    box: float
    ties: int
    worst: int
    whole: float

    @property
    def agreement(self) -> float:
        """The share of boxes that have a partner; nan where there is none."""
        return 1 - self.missed / self.judged if self.judged else float("nan")

    def meets(self, limit: Limit) -> bool:
        """Say whether all limits are reached, so far as anything can be told."""
        return not self.agreement < limit.agreement and self.score <= limit.score and self.box <= limit.box

    def fails(self, limit: Limit) -> bool:
        """Say whether a limit is missed beyond doubt: as many boxes as `ENOUGH` of them may lose, and one more."""
        if self.confident >= ENOUGH:
            return not self.meets(limit)
        return self.score > limit.score or self.box > limit.box or self.missed > ENOUGH * (1 - limit.agreement) + 1e-9


def compare(
    expected: Sequence[Found],
    actual: Sequence[Found],
    settings: Settings,
    limit: Limit,
    *,
    rows: tuple[Rows, Rows] | None = None,
) -> Comparison:
    """Compare the boxes of each image, in pixels of the network's input.

    Those count whose score is clearly above its threshold on either side; the partner may be any box of the other.
    `rows` are what both sides chose from, cut at the images' edges. Where they are given, a tie is neither missed nor
    counted: a box that the other side has as a row, but dropped. Of two boxes that overlap by just NMS's limit, or
    whose scores are as good, rounding chooses. Where the limit is not exact, only the last of a full answer are ties.
    """
    import numpy as np

    clear = np.array([min(one + _CLEAR, (1 + one) / 2) for one in settings.thresholds])
    judged = confident = ties = 0
    missed, score, box = np.zeros(len(expected), np.intp), 0.0, 0.0
    for image, (own, other) in enumerate(zip(expected, actual, strict=True)):
        partners = find_partners(own, other, limit.iou)
        own_counts, other_counts = (side.scores >= clear[side.classes] for side in (own, other))
        confident += int(own_counts.sum())
        judged += int(own_counts.sum() + other_counts.sum())
        alone = [(own, index, other, 1) for index in np.flatnonzero(own_counts & (partners < 0))] + [
            (other, index, own, 0) for index in np.setdiff1d(np.flatnonzero(other_counts), partners)
        ]
        for side, index, against, number in alone:
            dropped = rows is not None and (
                _has_row(side, index, rows[number], image, limit)
                if limit.agreement == 1
                else len(against.scores) == settings.most
                and _was_last(side, index, against, rows[number], image, limit)
            )
            ties += dropped
            missed[image] += not dropped
            judged -= dropped
            confident -= dropped and side is own
        for index in np.flatnonzero(partners >= 0):
            partner = partners[index]
            if not own_counts[index] and not other_counts[partner]:
                continue
            by_score = abs(float(own.scores[index]) - float(other.scores[partner]))
            by_box = float(np.abs(own.boxes[index] - other.boxes[partner]).max())
            is_far = by_score > limit.score or by_box > limit.box
            if (
                is_far
                and rows is not None
                and all(_has_row(*one, image, limit) for one in ((own, index, rows[1]), (other, partner, rows[0])))
            ):
                ties += 1
            else:
                score, box = max(score, by_score), max(box, by_box)
    return Comparison(
        confident=confident,
        judged=judged,
        missed=int(missed.sum()),
        score=score,
        box=box,
        ties=ties,
        worst=int(missed.argmax()),
        whole=float((missed == 0).mean()),
    )


def find_partners(own: Found, other: Found, least_iou: float) -> NDArray[np.intp]:
    """Return for each box of `own`, best first, which of `other` has its class and overlaps it most; -1 for none."""
    import numpy as np

    partners = np.full(len(own.scores), -1, np.intp)
    if not len(own.scores) or not len(other.scores):
        return partners
    overlaps = find_overlaps(own.boxes, other.boxes)
    overlaps[own.classes[:, None] != other.classes] = -1
    for index in np.argsort(-own.scores, kind="stable"):
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= least_iou:
            partners[index] = best
            overlaps[:, best] = -1
    return partners


def find_overlaps(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the IoU of each box (n, 4) with each (m, 4): (n, m)."""
    import numpy as np

    one, other = one.astype(np.float64), other.astype(np.float64)
    edges = np.minimum(one[:, None, 2:], other[:, 2:]) - np.maximum(one[:, None, :2], other[:, :2])
    shared = edges.clip(0).prod(axis=2)
    areas, others = ((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (one, other))
    union = areas[:, None] + others - shared
    overlaps: NDArray[np.float64] = np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
    # a box without any area overlaps nothing, and still is where it is
    overlaps[(one[:, None] == other).all(axis=2)] = 1
    return overlaps


def of_image(rows: Rows, image: int) -> Rows:
    """Return the rows of one image, without the first axis."""
    return Rows(boxes=rows.boxes[image], scores=rows.scores[image], classes=rows.classes[image])


def _has_row(side: Found, index: int, rows: Rows, image: int, limit: Limit) -> bool:
    """Say whether a box is among the other side's rows for the image, as near as the limit asks.

    Or was cut off there: its score is no better than that of the last row, as far as the limit tells.
    """
    import numpy as np

    alike = rows.classes[image] == side.classes[index]
    alike &= np.abs(rows.scores[image] - side.scores[index]) <= limit.score
    alike &= (np.abs(rows.boxes[image] - side.boxes[index]) <= limit.box).all(axis=1)
    was_cut = side.scores[index] <= rows.scores[image, -1] + limit.score
    return bool(alike.any() or was_cut)


def _was_last(side: Found, index: int, answered: Found, rows: Rows, image: int, limit: Limit) -> bool:
    """Say whether a box is among the other side's rows for the image, hardly worse and behind the last one answered."""
    scores = rows.scores[image]
    alike = (rows.classes[image] == side.classes[index]) & (scores <= answered.scores[-1])
    alike &= scores >= side.scores[index] - _CLEAR
    return bool((alike & (find_overlaps(side.boxes[[index]], rows.boxes[image])[0] >= limit.iou)).any())


def cut_rows(rows: Rows, geometry: NDArray[np.float32]) -> Rows:
    """Return rows with their boxes cut at the edges of each image in the network's input, as those answered are."""
    import numpy as np

    scale, offset, size = np.split(geometry, 3, axis=1)
    low, high = (np.tile(edge, 2)[:, None] for edge in (offset, offset + size * scale))
    return replace(rows, boxes=rows.boxes.clip(low, high))


def compare_rows(expected: Rows, actual: Rows, limit: Limit, *, best: int = 200) -> tuple[int, int]:
    """Return how many of the `best` rows of each image can be compared, of both sides, and how many have no partner.

    A row whose score is no more than a tie above the other side's last one may have been cut off there.
    """
    import numpy as np

    tie = _TIE * float(max(expected.scores.max(), actual.scores.max()))
    tolerance = tie if limit.agreement == 1 else float("inf")
    same = (expected.classes == actual.classes) & (np.abs(expected.scores - actual.scores) <= tolerance)
    same &= (np.abs(expected.boxes - actual.boxes) <= _NEAR).all(axis=2)
    counted = missed = 0
    for image in range(len(expected.scores)):
        one, other = of_image(expected, image), of_image(actual, image)
        for side, against in ((one, other), (other, one)):
            rows = np.flatnonzero(side.scores > against.scores[-1] + tie)[:best]
            counted += len(rows)
            rows = rows[~same[image, rows]]  # what stands at the same place is found
            if not rows.size:
                continue
            last = int((against.scores >= side.scores[rows[-1]] / 2).sum())  # no precision halves a score
            alike = against.classes[:last] == side.classes[rows, None]
            alike &= np.abs(against.scores[:last] - side.scores[rows, None]) <= tolerance
            near = find_overlaps(side.boxes[rows], against.boxes[:last]) >= limit.iou
            near |= (np.abs(side.boxes[rows, None] - against.boxes[:last]) <= _NEAR).all(axis=2)
            missed += int((~(alike & near).any(axis=1)).sum())
    return counted, missed


def take_images(rows: Rows, images: NDArray[np.intp]) -> Rows:
    """Return the rows of these images, in this order."""
    return Rows(boxes=rows.boxes[images], scores=rows.scores[images], classes=rows.classes[images])


def find_different_rows(one: Rows, other: Rows, *, score: float, box: float) -> tuple[int, int]:
    """Return how many rows of either side the other one has not, within these distances, and the image with the most.

    Rows with equal scores may stand in another order; of those that are as good as the last, others may be left.
    """
    import numpy as np

    different = np.zeros(len(one.scores), np.intp)
    same = (one.classes == other.classes) & (np.abs(one.scores - other.scores) <= score)
    same &= (np.abs(one.boxes - other.boxes) <= box).all(axis=2)
    for image in np.flatnonzero(~same.all(axis=1)):
        rows = np.flatnonzero(~same[image])
        mine, theirs = of_image(one, image), of_image(other, image)
        for side, against in ((mine, theirs), (theirs, mine)):
            sought = rows[side.scores[rows] > against.scores[-1] + score]
            alike = against.classes == side.classes[sought, None]
            alike &= np.abs(against.scores - side.scores[sought, None]) <= score
            alike &= (np.abs(against.boxes - side.boxes[sought, None]) <= box).all(axis=2)
            different[image] += int((~alike.any(axis=1)).sum())
    return int(different.sum()), int(different.argmax())


def is_reordered(one: Rows, other: Rows, tolerance: float) -> bool:
    """Say whether the rows are the same, but for the places of those whose scores are equal within the tolerance.

    That is a share of the largest score or corner, or of 1 where these are smaller.
    """
    import numpy as np

    score, box = (tolerance * max(1.0, float(np.abs(values).max())) for values in (other.scores, other.boxes))
    if not (np.abs(one.scores - other.scores) <= score).all() or not np.isfinite(one.boxes).all():
        return False
    return find_different_rows(one, other, score=score, box=box)[0] == 0
