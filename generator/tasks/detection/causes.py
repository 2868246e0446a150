"""The likely cause of a failed stage of a detector, found by trying the usual mistakes on the same data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from generator.gate.causes import of_normalisation
from generator.graph.model import OnnxModel, load_proto, run_graph
from generator.tasks.detection.compare import Limit, compare_rows, take_images
from generator.tasks.detection.decode import Rows
from generator.tasks.detection.head import BOXES, CLASSES, SCORES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference

UPSTREAM = "see the stages above: the ensemble only joins them"
LABELS = "labels.txt has its lines in another order than the network's classes"
TOP_K = "top-K is too small: the graph keeps fewer rows than detection.candidates asks for"
UNDO = "offset or scale of GEOMETRY is not undone as it was done"
ORDER = "the rows are not those of TopK: their order is another one, or it takes the smallest"
_OUTPUTS = {"boxes": BOXES, "scores": SCORES, "classes": CLASSES}
_BGR = "the channels are in BGR order, the source takes RGB"
_UNKNOWN = "the weights or the graph differ from the source"
_ALIKE = Limit(agreement=1.0, iou=0.9)
# Rows that go on agreeing when the mistake is undone leave no doubt about it; others may be off for another reason.
_SURE = 0.9


def _change_boxes(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Rows], Rows]:
    return lambda rows: replace(rows, boxes=change(rows.boxes))


def _to_corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def _to_centres(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


# What undoes a mistake in the rows that a network answers.
_UNDONE: Mapping[str, Callable[[Rows], Rows]] = {
    "boxes are centre and size (cxcywh), corners (xyxy) were expected": _change_boxes(_to_corners),
    "corners (xyxy) were taken for centre and size (cxcywh)": _change_boxes(_to_centres),
    "x and y are swapped in the boxes": _change_boxes(lambda boxes: boxes[..., [1, 0, 3, 2]]),
    "classes are off by one: one too high, as with a background column that was not dropped": lambda rows: replace(
        rows, classes=rows.classes - 1
    ),
    "classes are off by one: one too low": lambda rows: replace(rows, classes=rows.classes + 1),
}


def of_graph(candidate: Candidate, model: OnnxModel, reference: Reference, rows: tuple[Rows, Rows]) -> str:
    """Say why a graph answers unlike the source; `rows` are the source's and the graph's."""
    images = _some_images(rows[0])
    turned = run_graph(model, reference.pixels[images, ..., ::-1])
    if _agree(take_images(rows[0], images), Rows(**{name: turned[output] for name, output in _OUTPUTS.items()})):
        return _BGR
    return of_normalisation(candidate, load_proto(model.path)) or of_rows(*rows)


def of_rows(source: Rows, rows: Rows) -> str:
    """Say what was done to the source's rows, by undoing the usual mistakes one after the other."""
    source, rows = (take_images(side, _some_images(side)) for side in (source, rows))
    for mistake, undo in _UNDONE.items():
        if _agree(source, undo(rows)):
            return mistake
    return _of_places(source, rows) or _UNKNOWN


def _some_images(rows: Rows) -> NDArray[np.intp]:
    """Return the places of some images: a mistake that is made is made with each of them."""
    import numpy as np

    count = len(rows.scores)
    return np.unique(np.linspace(0, count - 1, min(count, 6)).astype(np.intp))


def _agree(source: Rows, rows: Rows) -> bool:
    counted, missed = compare_rows(source, rows, _ALIKE, best=50)
    return counted > 0 and missed <= (1 - _SURE) * counted


def _of_places(source: Rows, rows: Rows) -> str:
    """Say how the boxes are moved or scaled where rows with the same score and class stand at the same places."""
    import numpy as np

    tie = 1e-3 * float(source.scores.max())
    same = (np.abs(source.scores - rows.scores) <= tie) & (source.classes == rows.classes)
    same &= source.scores > source.scores[:, -1:] + tie
    if same.sum() < 0.5 * (source.scores > source.scores[:, -1:] + tie).sum() or not same.any():
        return ""
    own, boxes = source.boxes[same].astype(np.float64), rows.boxes[same].astype(np.float64)
    moved = boxes - own
    is_moved = np.abs(moved - moved[:, [0, 1, 0, 1]]).max(axis=1) < 0.05
    if is_moved.mean() >= _SURE:
        shifts = np.unique(np.abs(moved[is_moved][:, :2]).round(1))
        steps = ", ".join(f"{shift:g}" for shift in shifts[:5])
        if not shifts.any():
            return ""
        if (np.abs(shifts - 1) < 0.05).all():
            return "the boxes are off by one pixel"
        return f"the boxes are displaced by {steps} pixels, as where the cells of a grid are half a cell off"
    scale = float(np.median(boxes / np.where(np.abs(own) > 1e-3, own, np.nan)))
    if np.mean(np.abs(boxes - own * scale).max(axis=1) < 0.05 * abs(scale) + 1e-6) >= _SURE:
        return f"the boxes are {scale:.3g} times as large: pixels were taken for a share of the image, or another size"
    return ""
