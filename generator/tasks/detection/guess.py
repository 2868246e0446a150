"""Which reading fits the outputs of an ONNX file. What the spec's `detection` says overrides what is guessed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from generator.errors import SourceError
from generator.tasks.detection.layouts import Guess, find_layouts, show_tensors
from generator.tasks.detection.reading import Reading
from generator.tasks.labels import read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.spec.detection import Boxes, DetectionOptions, Layout, Units
    from generator.spec.model import ModelSpec
    from generator.tasks.detection.file import DetectorFile
    from generator.tensor import Tensor

# Of an end-to-end detector; 300 is usual.
_MOST_ROWS = 1000
# The levels of YOLO's family, which has three anchors for each cell, or one.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
_CORNERS: tuple[Boxes, Units] = ("xyxy", "pixels")
_CENTRES: tuple[Boxes, Units] = ("cxcywh", "normalised")
_USUAL: dict[Layout, tuple[Boxes, Units]] = {
    "raw": ("cxcywh", "pixels"),
    "objectness": ("cxcywh", "pixels"),
    "scores": _CORNERS,
    "logits": _CENTRES,
}
_LAYOUTS = (
    "[batch, 4 + classes, anchors], [batch, anchors, 5 + classes], [batch, rows, 6], or boxes [batch, anchors, 4] "
    "beside scores [batch, anchors, classes]"
)


def read_outputs(spec: ModelSpec, file: DetectorFile, outputs: Sequence[Tensor]) -> Reading:
    """Return what the outputs of `file` mean; they come with the shapes that they have for the network's size.

    Raises:
        SourceError: No reading fits, or two do, or the spec or the metadata contradicts the graph.
    """
    assert spec.detection is not None, "the spec fills it in"
    guess = choose_layout(spec, file, outputs)
    background, classes = _count_classes(spec, file, guess)
    if find_yolox(spec, file, guess) == "undecoded" and spec.detection.layout is None:
        msg = (
            f"{file.path}: {show_tensors(guess.tensors)} looks like YOLOX without decoding: its boxes are not in pixels"
        )
        hint = "export it with --decode_in_inference; where they are in pixels, set detection.layout: objectness"
        raise SourceError(msg, hint=hint, fields={"detection": "layout=objectness"})
    boxes, units = _read_rows(spec.detection, file, guess) if guess.layout == "end2end" else _USUAL[guess.layout]
    return Reading(
        layout=guess.layout,
        boxes=spec.detection.boxes or boxes,
        units=spec.detection.units or units,
        background=background,
        tensors=tuple(tensor.name for tensor in guess.tensors),
        classes=classes,
        candidates=spec.detection.candidates,
    )


def choose_layout(spec: ModelSpec, file: DetectorFile, outputs: Sequence[Tensor]) -> Guess:
    """Return the only layout that fits.

    Raises:
        SourceError: None does, or several.
    """
    asked = spec.detection.layout if spec.detection is not None else None
    fitting = find_layouts(file, outputs, asked, spec.output_tensor)
    if not fitting:
        _refuse_layout(file, outputs, asked)
    count, _ = known_classes(spec, file)
    rules: tuple[Callable[[Guess], bool], ...] = (
        lambda guess: count is None or guess.columns in (None, count),
        lambda guess: guess.columns is None and _says_end2end(file),
        lambda guess: guess.anchors <= _MOST_ROWS if guess.columns is None else _is_grid(spec, file, guess.anchors),
        lambda guess: guess.columns is None or guess.anchors > guess.columns,
    )
    for rule in rules:
        fitting = [guess for guess in fitting if rule(guess)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    one, other, *_ = fitting
    if one.layout == other.layout:
        msg = f"{file.path} has {show_tensors(outputs)}, of which several may be the scores"
        hint = "say which has a score per class: set output_tensor"
        raise SourceError(msg, hint=hint, fields={"output_tensor": None})
    msg = f"{file.path} has {show_tensors(one.tensors)}, which may be {one}, or {other}"
    hint = f"set detection.layout: {one.layout} or {other.layout}"
    raise SourceError(msg, hint=hint, fields={"detection": f"layout={one.layout}"})


def known_classes(spec: ModelSpec, file: DetectorFile) -> tuple[int | None, str]:
    """Return how many classes there are as far as it is said somewhere, and where that is."""
    if spec.classes is not None:
        return spec.classes, f"classes is {spec.classes}"
    if isinstance(spec.labels, Path):
        count = len(read_labels(spec.labels, quiet=True))
        return count, f"{spec.labels} has {count} lines"
    if file.names is not None:
        return len(file.names), f"its metadata names {len(file.names)} classes"
    return None, ""


def find_yolox(spec: ModelSpec, file: DetectorFile, guess: Guess) -> Literal["", "decoded", "undecoded"]:
    """Say whether it is YOLOX, and whether its boxes are decoded: one anchor for each cell, with objectness.

    YOLOv6 has the same shape, but an objectness of 1.
    """
    if guess.layout != "objectness" or not _is_grid(spec, file, guess.anchors, repeats=(1,)):
        return ""
    nodes = list(file.find_makers(guess.tensors[0].name))
    joined = [name for node in nodes if node.op_type == "Concat" for name in node.input]
    if not all(map(file.follows_from_layer, joined)):
        return ""
    return "decoded" if any(node.op_type == "Exp" for node in nodes) else "undecoded"


def _says_end2end(file: DetectorFile) -> bool:
    return file.metadata.get("end2end") is True or file.head == "RTDETRDecoder"


def _is_grid(spec: ModelSpec, file: DetectorFile, anchors: int, repeats: Sequence[int] = (1, 3)) -> bool:
    """Say whether the levels of YOLO's family have so many anchors together, `repeats` for each cell."""
    height, width = file.choose_size(spec)
    cells = [sum((height // stride) * (width // stride) for stride in strides) for strides in _STRIDES]
    return any(anchors == count * repeat for count in cells for repeat in repeats)


def find_some_layout(file: DetectorFile, outputs: Sequence[Tensor]) -> Guess:
    """Return one that fits, where nothing is said of the model.

    Raises:
        SourceError: There is none.
    """
    fitting = find_layouts(file, outputs, None, None)
    if not fitting:
        _refuse_layout(file, outputs, None)
    return fitting[0]


def _refuse_layout(file: DetectorFile, outputs: Sequence[Tensor], asked: str | None) -> NoReturn:
    has = f"{file.path} has {show_tensors(outputs)}"
    if asked is not None:
        msg = f"{has}: detection.layout is {asked}, which has another shape"
        raise SourceError(msg, hint="leave detection.layout out", fields={"detection": None})
    hint = "export it with its boxes decoded; detection says what the outputs mean"
    if any(len(tensor.shape) == 5 for tensor in outputs):
        hint = "its levels are not decoded: export it with --grid (YOLOv7), or with the detection layer"
    raise SourceError(f"{has}: {_LAYOUTS} was expected", hint=hint)


def _count_classes(spec: ModelSpec, file: DetectorFile, guess: Guess) -> tuple[int | None, int]:
    """Return the column of the background and the number of classes without it."""
    assert spec.detection is not None, "the spec fills it in"
    count, says = known_classes(spec, file)
    shown = f"{file.path}: {show_tensors(guess.tensors)}"
    background = spec.detection.background if isinstance(spec.detection.background, int) else None
    if background is not None and guess.layout not in ("scores", "logits"):
        msg = f"{shown}, read as {guess.layout}, has no column for detection.background: {background}"
        raise SourceError(msg, hint="leave detection.background out", fields={"detection": "background=none"})
    if guess.columns is None:
        if count is None:
            msg = f"{shown} has classes as numbers, and nothing says how many there are"
            raise SourceError(msg, hint="set labels to a file with their names, or classes", fields={"labels": None})
        return None, count
    if background is not None and background >= guess.columns:
        msg = f"{shown}: detection.background is {background}, but the scores' columns are 0 to {guess.columns - 1}"
        hint = f"set detection.background: 0 or {guess.columns - 1}"
        raise SourceError(msg, hint=hint, fields={"detection": "background=0"})
    if count is None and spec.detection.layout is None and find_yolox(spec, file, guess) == "undecoded":
        msg = f"{shown} may be {guess}, or {guess.columns + 1} classes without objectness"
        hint = "set classes, or labels to a file with their names"
        raise SourceError(msg, hint=hint, fields={"classes": None})
    unsaid = count is None and spec.detection.background is None and len(guess.tensors) > 1
    if unsaid and file.find_activation(guess.tensors[1].name) != "Sigmoid":
        msg = f"{shown} may have {guess.columns} classes, or one less and a column for background or no object"
        hint = f"set detection.background: 0 (SSD), {guess.columns - 1} (DETR) or none"
        raise SourceError(msg, hint=hint, fields={"detection": "background=none"})
    classes = guess.columns - (background is not None)
    if count not in (None, classes):
        msg = f"{shown}, read as {guess.layout}, has {classes} classes, but {says}"
        raise SourceError(msg, **_advise_on_count(spec.detection, guess, count or 0))
    return background, classes


def _advise_on_count(options: DetectionOptions, guess: Guess, count: int) -> dict[str, Any]:
    """Return hint and fields for columns that are not as many as the classes."""
    assert guess.columns is not None, "each has a score"
    if guess.layout in ("scores", "logits") and options.background is None and count == guess.columns - 1:
        hint = f"where a column is background, set detection.background: 0 (SSD) or {count} (DETR)"
        return {"hint": hint, "fields": {"detection": "background=0"}}
    if guess.layout == "objectness" and count == guess.columns + 1:
        return {"hint": "without objectness the axes are to be [batch, 4 + classes, anchors]: transpose the output"}
    hint = "set labels to a file with the names of its classes, or detection.layout"
    return {"hint": hint, "fields": {"labels": None}}


def _read_rows(options: DetectionOptions, file: DetectorFile, guess: Guess) -> tuple[Boxes, Units]:
    """Return what the boxes of end-to-end rows are: their shape does not say it."""
    if options.units == "normalised" or (options.boxes == "cxcywh" and options.units is None):
        return _CENTRES
    if options.units == "pixels" or options.boxes == "xyxy":
        return _CORNERS
    if file.head == "RTDETRDecoder":
        return _CENTRES
    if file.head or _says_end2end(file) or (len(guess.tensors) > 1 and file.knows_size):
        return _CORNERS
    msg = (
        f"{file.path}: the boxes of {show_tensors(guess.tensors)} may be corners in pixels (YOLOv10, YOLO26), or "
        "centre and size from 0 to 1 (RT-DETR)"
    )
    hint = "set detection.units: pixels or normalised"
    raise SourceError(msg, hint=hint, fields={"detection": "units=pixels"})
