"""Which layouts the outputs of an ONNX file may have: by their shapes, and by names where shapes do not decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.spec.detection import Layout
    from generator.tasks.detection.file import DetectorFile
    from generator.tensor import Tensor

_FLOATS = ("float32", "float16", "float64", "bfloat16")
_INTEGERS = ("int64", "int32")
_BOXES_NAMES = ("box", "dets", "loc")
_SCORES_NAMES = ("score", "logits", "label", "class", "conf", "prob")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A layout that fits `tensors`, boxes first where there are several.

    `columns` are those with a score, None where each row has its class as a number.
    """

    layout: Layout
    tensors: tuple[Tensor, ...]
    anchors: int
    columns: int | None

    def __str__(self) -> str:
        """Say what it would be: `raw with 80 classes and 8400 anchors`."""
        if self.columns is None:
            return f"{self.layout} with {self.anchors} rows"
        return f"{self.layout} with {self.columns} class{'es' if self.columns > 1 else ''} and {self.anchors} anchors"


def find_layouts(
    file: DetectorFile, outputs: Sequence[Tensor], asked: Layout | None, scores: str | None
) -> list[Guess]:
    """Return what three outputs may be, else two, else one; `scores` is the name of the one with the scores."""
    named = [tensor for tensor in outputs if scores in (None, tensor.name)]
    for found in (
        _of_three(outputs),
        _of_two(file, outputs, asked, scores) if asked in (None, "scores", "logits") else (),
        (guess for tensor in named for guess in _of_one(tensor)),
    ):
        if fitting := [guess for guess in found if asked in (None, guess.layout)]:
            return fitting
    return []


def _of_three(outputs: Sequence[Tensor]) -> Iterator[Guess]:
    """Yield boxes [batch, rows, 4], scores [batch, rows] and classes [batch, rows] as numbers."""
    boxes = [tensor for tensor in outputs if _is_cube(tensor) and tensor.shape[2] == 4]
    flat = [tensor for tensor in outputs if len(tensor.shape) == 2]
    scores = [tensor for tensor in flat if tensor.data_type.numpy in _FLOATS]
    classes = [tensor for tensor in flat if tensor.data_type.numpy in _INTEGERS]
    if len(boxes) == len(scores) == len(classes) == 1:
        rows = boxes[0].shape[1]
        yield Guess(layout="end2end", tensors=(boxes[0], scores[0], classes[0]), anchors=rows, columns=None)


def _of_two(file: DetectorFile, outputs: Sequence[Tensor], asked: Layout | None, named: str | None) -> Iterator[Guess]:
    """Yield boxes [batch, anchors, 4] and scores [batch, anchors, columns]."""
    cubes = [tensor for tensor in outputs if _is_cube(tensor)]
    pairs = [
        (boxes, scores)
        for boxes in cubes
        for scores in cubes
        if boxes is not scores and boxes.shape[1:] == (scores.shape[1], 4) and named in (None, scores.name)
    ]
    for rule in (_is_named_boxes, _is_named_scores):
        pairs = [pair for pair in pairs if rule(*pair)] or pairs
    for boxes, scores in pairs:
        layout: Layout = asked or ("scores" if file.find_activation(scores.name) else "logits")
        yield Guess(layout=layout, tensors=(boxes, scores), anchors=boxes.shape[1], columns=scores.shape[2])


def _is_named_boxes(boxes: Tensor, scores: Tensor) -> bool:
    one, other = (any(word in tensor.name.lower() for word in _BOXES_NAMES) for tensor in (boxes, scores))
    return one and not other


def _is_named_scores(_boxes: Tensor, scores: Tensor) -> bool:
    return any(word in scores.name.lower() for word in _SCORES_NAMES)


def _of_one(tensor: Tensor) -> Iterator[Guess]:
    if not _is_cube(tensor):
        return
    _, first, second = tensor.shape
    if first > 4:
        yield Guess(layout="raw", tensors=(tensor,), anchors=second, columns=first - 4)
    if second > 5:
        yield Guess(layout="objectness", tensors=(tensor,), anchors=first, columns=second - 5)
    if second == 6:
        yield Guess(layout="end2end", tensors=(tensor,), anchors=first, columns=None)


def _is_cube(tensor: Tensor) -> bool:
    return tensor.data_type.numpy in _FLOATS and len(tensor.shape) == 3 and min(tensor.shape[1:]) > 0


def show_tensors(tensors: Sequence[Tensor]) -> str:
    """Return names and shapes: `output output0 [batch, 84, 8400]`."""
    shown = []
    for tensor in tensors:
        sizes = ["batch", *(str(size) if size > 0 else "?" for size in tensor.shape[1:])]
        shown.append(f"{tensor.name} [{', '.join(sizes)}]")
    return f"output{'s' if len(shown) > 1 else ''} {', '.join(shown)}"
