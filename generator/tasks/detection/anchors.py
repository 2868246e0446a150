"""Single anchors before top-K: those that are kept of the source, and how far a graph's are from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.tasks.detection.decode import Dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.tasks.detection.compare import Limit

# Anchors lie where they were put; what a transformer answers for at most so many queries comes in an order of its own.
_MOST_QUERIES = 1000
_MOST_MOVED = 0.2  # as a share: rounding moves few


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How much boxes, in pixels, and scores of single anchors vary between images; `largest` is the largest score."""

    box: float
    score: float
    largest: float

    @property
    def has_boxes(self) -> bool:
        """Say whether the boxes of another image are others, beyond what rounding does to them."""
        return self.box > 0.05

    @property
    def has_scores(self) -> bool:
        """Say whether the scores of another image are others, beyond what rounding does to them."""
        return self.score > 1e-3 * max(self.largest, 1e-6)


def measure_spread(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> Spread:
    """Return how much the values of anchors, (N, A, 4) and (N, A, C), vary between the N images.

    It is the distance of the middle one of them from what is usual, so most of them must differ.
    """
    import numpy as np

    def vary(values: NDArray[np.float32]) -> float:
        differences = (values - np.median(values, axis=0)).reshape(len(values), -1)
        return float(np.median(np.sqrt((differences.astype(np.float64) ** 2).mean(axis=1))))

    return Spread(box=vary(boxes), score=vary(scores), largest=float(np.abs(scores).max()))


def sample_anchors(count: int) -> NDArray[np.intp]:
    """Return about 300 evenly spaced of `count` anchors, the first and the last among them."""
    import numpy as np

    return np.unique(np.linspace(0, count - 1, min(count, 300)).round().astype(np.intp))


def pick_anchors(dense: Dense, boxes: NDArray[np.float32], scores: NDArray[np.float32], limit: Limit) -> Dense:
    """Return those anchors of a candidate that are to be compared with the sampled ones of the source.

    They stand at the same places; but queries, which are few, may have changed places where rounding decided on their
    order. One that differs gives way to any that does not.

    Raises:
        SourceError: There is another number of anchors or classes.
    """
    import numpy as np

    places = sample_anchors(dense.boxes.shape[1])
    picked = Dense(boxes=dense.boxes[:, places].copy(), scores=dense.scores[:, places].copy())
    if picked.boxes.shape != boxes.shape or picked.scores.shape != scores.shape:
        msg = f"the graph has {list(dense.scores.shape[1:])} anchors and classes, the source has others"
        raise SourceError(msg, hint="build the model again from its source")
    if dense.boxes.shape[1] > _MOST_QUERIES:
        return picked
    differs = (np.abs(picked.boxes - boxes) > limit.box).any(axis=2)
    differs |= (np.abs(picked.scores - scores) > limit.score).any(axis=2)
    for image, place in np.argwhere(differs) if differs.mean() < _MOST_MOVED else ():
        near = (np.abs(dense.boxes[image] - boxes[image, place]) <= limit.box).all(axis=1)
        near &= (np.abs(dense.scores[image] - scores[image, place]) <= limit.score).all(axis=1)
        if near.any():
            found = int(near.argmax())
            picked.boxes[image, place], picked.scores[image, place] = (
                dense.boxes[image, found],
                dense.scores[image, found],
            )
    return picked


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorErrors:
    """How far single anchors are from the source's: at most, and as a share of how much they vary between images."""

    box: float
    score: float
    box_share: float
    score_share: float

    def meets(self, limit: Limit) -> bool:
        """Say whether they are within the limit."""
        return max(self.box_share, self.score_share) <= limit.error and (
            self.box <= limit.box and self.score <= limit.score
        )

    def __str__(self) -> str:
        return f"single anchors within {self.score:.1g} and {self.box:.1g} px"


def measure_errors(boxes: NDArray[np.float32], scores: NDArray[np.float32], picked: Sequence[Dense]) -> AnchorErrors:
    """Compare the source's sampled anchors, (N, S, 4) and (N, S, C), with those picked of a candidate."""
    import numpy as np

    spread = measure_spread(boxes, scores)
    off_boxes = np.concatenate([part.boxes for part in picked]).astype(np.float64) - boxes
    off_scores = np.concatenate([part.scores for part in picked]).astype(np.float64) - scores
    return AnchorErrors(
        box=float(np.abs(off_boxes).max()),
        score=float(np.abs(off_scores).max()),
        box_share=float(np.sqrt((off_boxes**2).mean())) / spread.box if spread.has_boxes else 0.0,
        score_share=float(np.sqrt((off_scores**2).mean())) / spread.score if spread.has_scores else 0.0,
    )
