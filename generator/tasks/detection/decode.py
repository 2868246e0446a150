"""What a detector's own outputs say, in numpy: the measure for the nodes of `head`, which it shares nothing with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from generator.tasks.detection.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Every anchor of N images.

    `boxes` FP32 (N, A, 4) are corners in pixels of the network's input, `scores` FP32 (N, A, C) one per class. Where a
    row has one class only, `classes` INT32 (N, A) says which, and `scores` has one column.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What leaves the network: `boxes` (N, K, 4), `scores` (N, K) and `classes` INT32 (N, K), the best rows first."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]


def decode(reading: Reading, outputs: Mapping[str, NDArray[np.float32]], size: tuple[int, int]) -> Dense:
    """Return what the source's `outputs` mean; `size` is the network's height and width."""
    import numpy as np

    values = [np.asarray(outputs[name], np.float32) for name in reading.tensors]
    classes = None
    if reading.layout == "raw":
        boxes, scores = np.split(values[0].transpose(0, 2, 1), [4], axis=2)
    elif reading.layout == "objectness":
        boxes, objectness, of_classes = np.split(values[0], [4, 5], axis=2)
        scores = objectness * of_classes
    elif reading.layout == "end2end":
        if len(values) == 1:
            boxes, scores, labels = np.split(values[0], [4, 5], axis=2)
            labels = labels[..., 0]
        else:
            boxes, scores, labels = values[0], values[1][..., None], values[2]
        classes = labels.astype(np.int32)
    else:
        boxes, scores = values
        if reading.background is not None:
            scores = drop_background(scores, reading)
        elif reading.layout == "logits":
            scores = _sigmoid(scores)
    if reading.boxes == "cxcywh":
        centre, extent = boxes[..., :2], boxes[..., 2:]
        boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=2)
    if reading.units == "normalised":
        height, width = size
        boxes = boxes * np.array([width, height, width, height], np.float32)
    return Dense(boxes=boxes, scores=scores, classes=classes)


def drop_background(scores: NDArray[np.float32], reading: Reading) -> NDArray[np.float32]:
    """Return the scores (N, A, C) of the classes: of scores with the background's, or of such logits."""
    import numpy as np

    assert reading.background is not None, "the caller looks"
    return np.delete(_softmax(scores) if reading.has_softmax else scores, reading.background, axis=2)


def select_rows(dense: Dense, reading: Reading) -> Rows:
    """Return the rows with the best scores; of equal ones the first anchor's, then the first class's.

    Where an anchor may have several classes, each has a row of its own; else an anchor has its best one.
    """
    import numpy as np

    count, anchors, columns = dense.scores.shape
    kept = min(anchors, reading.candidates)
    if reading.is_multi_label:
        flat = dense.scores.reshape(count, -1)
        best = np.argsort(-flat, axis=1, kind="stable")[:, : min(kept * columns, reading.candidates)]
        rows, classes, scores = best // columns, best % columns, np.take_along_axis(flat, best, 1)
    else:
        highest = dense.scores.max(axis=2)
        rows = np.argsort(-highest, axis=1, kind="stable")[:, :kept]
        of_anchors = dense.scores.argmax(axis=2) if dense.classes is None else dense.classes
        classes, scores = np.take_along_axis(of_anchors, rows, 1), np.take_along_axis(highest, rows, 1)
    boxes = np.take_along_axis(dense.boxes, rows[..., None], 1)
    return Rows(boxes=boxes, scores=scores, classes=classes.astype(np.int32))


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(1 / (1 + np.exp(-values.clip(-80, 80))), np.float32)


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
