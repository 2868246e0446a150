"""The gate's stage for the served post-processing step: rows of our own in, what a plain loop makes of them out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from generator.images.geometry import measure_geometry
from generator.images.served_pixels import load_code
from generator.task import StageResult
from generator.tasks.detection import causes
from generator.tasks.detection.decode import Rows
from generator.tasks.detection.head import BOXES, CLASSES, SCORES
from generator.tasks.detection.members import POSTPROCESS_CODE
from generator.tasks.detection.naive import ANSWERS, Found, Settings, detect, detect_all, settings_of, unpad
from generator.triton.check import parse_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.client import ServedModel
    from generator.tasks.detection.judge import Gate

STAGE = "served postprocessing"
CODE_STAGE = "postprocessing"
_SEED = 15
_CROWD = 250  # rows with a score
# What comes back of a box that was put into the network's pixels, in pixels of the original.
_ROUND_TRIP = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of images with their geometry, FP32 (N, 6)."""

    rows: Rows
    geometry: NDArray[np.float32]


def check_postprocessing(gate: Gate, served: ServedModel | None) -> StageResult:
    """The step makes of rows exactly what a plain loop makes of them, and undoes the geometry.

    It is that of the server; of a fused model, where it is no model of its own, its code runs here.

    The rows are the source's, and drawn ones: with each threshold, boxes that overlap within a class and across, more
    boxes than are answered, boxes beyond the edges, every class, and none at all.
    """
    from generator.tasks.detection.stages import find_wrong_form, find_wrong_labels

    stage = STAGE if served is not None else CODE_STAGE
    ask = partial(_ask, served) if served is not None else partial(run_code, gate)
    recipe, labels = gate.candidate.artifact.recipe, gate.candidate.artifact.labels
    geometry = measure_geometry(recipe, gate.reference.files)
    own = Sample(rows=gate.source, geometry=geometry)
    drawn = draw_sample(gate.settings, gate.source.scores.shape[1], len(labels), recipe.crop)
    both = _join(own, drawn)
    answers = ask(both)
    if wrong := find_wrong_form(answers):
        return StageResult(stage=stage, status="failed", reason=wrong[0], cause=wrong[1])
    expected, actual = detect_all(both.rows, both.geometry, gate.settings), list(unpad(answers))
    different = [index for index, pair in enumerate(zip(expected, actual, strict=True)) if not _equal(*pair)]
    if different:
        names = [*gate.reference.names, *(f"drawn rows {number}" for number in range(len(drawn.geometry)))]
        reason = f"{_describe(expected[different[0]], actual[different[0]])} for {names[different[0]]}, "
        reason += f"{len(different)} of {len(expected)} images differ from a plain loop over the same rows"
        return StageResult(stage=stage, status="failed", reason=reason, cause=find_cause(gate, both, actual))
    if wrong := find_wrong_labels(answers, labels):
        return StageResult(stage=stage, status="failed", reason=wrong[0], cause=wrong[1])
    known, rows = place_boxes(geometry, min(gate.settings.most, gate.source.scores.shape[1], 4), gate.source)
    back = list(unpad(ask(Sample(rows=rows, geometry=geometry))))
    distance = max(_distance(found.boxes, boxes) for found, boxes in zip(back, known, strict=True))
    if not distance <= _ROUND_TRIP:
        reason = f"boxes come back {distance:.3g} pixels from where they were put, {_ROUND_TRIP:g} is the limit"
        return StageResult(stage=stage, status="failed", reason=reason, cause=causes.UNDO)
    count = sum(len(found.scores) for found in expected)
    measured = f"{count} boxes of {len(expected)} images identical, round trip within {distance:.1g} px, labels equal"
    return StageResult(stage=stage, status="proved", measured=measured + gate.edits)


def _distance(found: NDArray[np.floating[Any]], known: NDArray[np.floating[Any]]) -> float:
    """Return how far boxes are apart at most, infinity where they are not equally many."""
    import numpy as np

    return float(np.abs(found - known).max()) if found.shape == known.shape else float("inf")


def _ask(served: ServedModel, sample: Sample) -> dict[str, NDArray[Any]]:
    return served.ask("postprocess", _feeds(sample), needed=ANSWERS)


def _feeds(sample: Sample) -> dict[str, NDArray[Any]]:
    rows = sample.rows
    return {BOXES: rows.boxes, SCORES: rows.scores, CLASSES: rows.classes, "GEOMETRY": sample.geometry}


def run_code(gate: Gate, sample: Sample) -> dict[str, NDArray[Any]]:
    """Return what the code in the version directory of a fused model answers to rows, as in a server."""
    from google.protobuf import json_format

    candidate = gate.candidate
    folder = candidate.repository / candidate.layout.entry
    config = parse_config(folder.name, (folder / "config.pbtxt").read_text(encoding="utf-8"))
    code = load_code(folder / str(candidate.layout.version) / POSTPROCESS_CODE, _make_triton())
    step = code.TritonPythonModel()
    told = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
    step.initialize({"model_config": told, "model_repository": str(folder)})
    (answer,) = step.execute([[_Tensor(name, values) for name, values in _feeds(sample).items()]])
    return {tensor.name: tensor.values for tensor in answer}


class _Tensor(NamedTuple):
    """A tensor as the step sees it in a server."""

    name: str
    values: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.values


def _make_triton() -> ModuleType:
    """Return what the step uses of Triton's module; requests and responses are lists of tensors."""
    triton = ModuleType("triton_python_backend_utils")
    triton.__dict__.update(
        Tensor=_Tensor,
        InferenceResponse=lambda tensors: tensors,
        get_input_tensor_by_name=lambda request, name: next(tensor for tensor in request if tensor.name == name),
    )
    return triton


def _join(one: Sample, other: Sample) -> Sample:
    import numpy as np

    names = ("boxes", "scores", "classes")
    rows = {name: np.concatenate([getattr(one.rows, name), getattr(other.rows, name)]) for name in names}
    return Sample(rows=Rows(**rows), geometry=np.concatenate([one.geometry, other.geometry]))


def _equal(one: Found, other: Found) -> bool:
    import numpy as np

    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def _describe(expected: Found, actual: Found) -> str:
    """Say how two answers for the same rows differ."""
    import numpy as np

    if len(expected.scores) != len(actual.scores):
        return f"{len(actual.scores)} boxes instead of {len(expected.scores)}"
    if not np.array_equal(expected.classes, actual.classes):
        return "other classes"
    if not np.array_equal(expected.scores, actual.scores):
        return f"scores off by {np.abs(expected.scores - actual.scores).max():.3g}"
    return f"boxes off by {np.abs(expected.boxes - actual.boxes).max():.3g} pixels"


# --- rows that were drawn ------------------------------------------------------------------------------------------


def draw_sample(settings: Settings, count: int, classes: int, size: tuple[int, int]) -> Sample:
    """Return images of `count` rows each that every rule of post-processing has something to decide on."""
    import numpy as np

    rng = np.random.default_rng(_SEED)
    images = [
        *(_draw_crowd(rng, count, classes, size) for _ in range(3)),
        _draw_crowd(rng, count, classes, size, best=0.9 * min(settings.thresholds)),  # nothing to answer
        *_draw_grids(count, classes, size, settings.most),
    ]
    boxes, scores, kinds = (np.stack(parts) for parts in zip(*images, strict=True))
    # images of several shapes: each axis has a scale and an offset of its own
    scale = rng.uniform(0.1, 3, (len(images), 2))
    offset = rng.integers(-20, 20, (len(images), 2)) * rng.integers(0, 2, (len(images), 1))
    own_size = np.maximum((np.array(size)[::-1] - 2 * np.maximum(offset, 0)) / scale, 1).round()
    geometry = np.concatenate([scale, offset, own_size], axis=1).astype(np.float32)
    return Sample(rows=Rows(boxes=boxes, scores=scores, classes=kinds), geometry=geometry)


def _draw_crowd(
    rng: np.random.Generator, count: int, classes: int, size: tuple[int, int], *, best: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Return boxes about a few places, of few classes, which overlap more or less and reach beyond the edges."""
    import numpy as np

    height, width = size
    places = rng.uniform(0, 1, (12, 2)) * (width, height)
    extents = rng.uniform(0.1, 0.4, (12, 2)) * (width, height)
    chosen = rng.integers(0, 12, count)
    centre = places[chosen] + rng.normal(0, 0.12, (count, 2)) * extents[chosen]
    half = extents[chosen] * rng.uniform(0.8, 1.25, (count, 2)) / 2
    few = rng.integers(0, classes, 3)
    kinds = np.where(rng.random(count) < 0.7, few[chosen % 3], rng.integers(0, classes, count))
    scores = np.zeros(count)
    scores[:_CROWD] = np.sort(rng.uniform(0, best, min(count, _CROWD)))[::-1]
    return (
        np.hstack([centre - half, centre + half]).astype(np.float32),
        scores.astype(np.float32),
        kinds.astype(np.int32),
    )


def _draw_grids(
    count: int, classes: int, size: tuple[int, int], most: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]]:
    """Yield images full of boxes that do not touch, with sure scores: more than are answered, and every class once."""
    import numpy as np

    height, width = size
    columns = int(np.ceil(np.sqrt(count)))
    down, right = np.divmod(np.arange(count), columns)
    corner = np.stack([right * (width / columns), down * (height / columns)], axis=1)
    boxes = np.hstack([corner, corner + np.array([width, height]) * 0.8 / columns]).astype(np.float32)
    scores = np.linspace(0.9999, 0.999, count, dtype=np.float32)
    shown = min(count, most)
    for first in range(0, min(classes, 50 * shown), shown):
        yield boxes, scores, ((first + np.arange(count)) % classes).astype(np.int32)


def place_boxes(geometry: NDArray[np.float32], count: int, like: Rows) -> tuple[list[NDArray[np.float64]], Rows]:
    """Return `count` boxes in pixels of each original, and rows as a network has them that sees these boxes."""
    import numpy as np

    # quarters of the image, none of which touches another
    shares = np.array([[0.1, 0.1, 0.4, 0.4], [0.6, 0.1, 0.9, 0.4], [0.1, 0.6, 0.4, 0.9], [0.55, 0.55, 1, 1]])[:count]
    boxes, scores = np.zeros_like(like.boxes), np.zeros_like(like.scores)
    known = []
    for image, (scale_x, scale_y, left, top, width, height) in enumerate(geometry.astype(np.float64)):
        known.append(shares * [width, height, width, height])
        boxes[image, :count] = known[-1] * [scale_x, scale_y, scale_x, scale_y] + [left, top, left, top]
        scores[image, :count] = 1
    return known, Rows(boxes=boxes, scores=scores, classes=np.zeros_like(like.classes))


# --- the usual mistakes --------------------------------------------------------------------------------------------


def find_cause(gate: Gate, sample: Sample, actual: Sequence[Found]) -> str:
    """Say which of the usual mistakes makes of these rows what the served step made of them."""
    rows = sample.rows
    images = list(zip(rows.boxes, rows.scores, rows.classes, sample.geometry, strict=True))
    for mistake, make in _make_mistakes(gate):
        if all(_near(make(*image), found) for image, found in zip(images, actual, strict=True)):
            return mistake
    return "the step's model.py differs from the one that trtgen writes"


def _near(one: Found, other: Found) -> bool:
    import numpy as np

    return (
        len(one.scores) == len(other.scores)
        and np.array_equal(one.classes, other.classes)
        and np.allclose(one.boxes, other.boxes, atol=0.01, rtol=1e-5)
        and np.allclose(one.scores, other.scores, atol=1e-6)
    )


def _make_mistakes(gate: Gate) -> Iterator[tuple[str, Callable[..., Found]]]:
    """Yield each mistake with what makes it: boxes, scores, classes and geometry of an image to what is answered."""
    settings = gate.settings
    options = gate.candidate.spec.detection
    assert options is not None, "the spec fills it in"
    asked = settings_of(gate.candidate.spec, gate.candidate.artifact)
    alike = (options.score,) * len(settings.thresholds)
    for mistake, others in {
        "these are the thresholds of the spec, not those of config.pbtxt: load the model again": asked,
        "NMS is missing": replace(settings, nms="none"),
        "NMS compares boxes across classes (agnostic)": replace(settings, nms="agnostic"),
        "NMS compares boxes within a class only": replace(settings, nms="per-class"),
        "the thresholds of single classes (class_scores) are not applied": replace(settings, thresholds=alike),
    }.items():
        yield mistake, partial(detect, settings=others)
    for mistake, times, plus in _MISPLACED:
        yield mistake, partial(_misplace, settings=settings, times=times, plus=plus)
    yield "one scale is taken for both axes", partial(_with_one_scale, settings=settings, axis=0)
    yield "one scale is taken for both axes", partial(_with_one_scale, settings=settings, axis=1)
    yield "boxes are not cut at the edges of the image", partial(_without_edges, settings=settings)
    for mistake, change in _CHANGES.items():
        yield mistake, partial(_change, settings=settings, change=change)


# What is done to scale and offset: multiplied by, and added.
_MISPLACED = (
    ("the offset of the image in its padding is not undone", (1, 1, 0, 0, 1, 1), 0),
    ("the offset is off by one pixel", (1,) * 6, (0, 0, 1, 1, 0, 0)),
    ("the offset is off by one pixel", (1,) * 6, (0, 0, -1, -1, 0, 0)),
    ("the scale is not undone", (0, 0, 1, 1, 1, 1), (1, 1, 0, 0, 0, 0)),
)


def _misplace(boxes: Any, scores: Any, classes: Any, place: Any, *, settings: Settings, times: Any, plus: Any) -> Found:
    import numpy as np

    return detect(boxes, scores, classes, place * np.array(times) + np.array(plus), settings)


def _with_one_scale(boxes: Any, scores: Any, classes: Any, place: Any, *, settings: Settings, axis: int) -> Found:
    changed = place.copy()
    changed[:2] = place[axis]
    return detect(boxes, scores, classes, changed, settings)


def _without_edges(boxes: Any, scores: Any, classes: Any, place: Any, *, settings: Settings) -> Found:
    """Move the boxes far from any edge, and back."""
    import numpy as np

    far = 1e4
    elsewhere = np.concatenate([place[:2], place[2:4] - far * place[:2], [np.inf, np.inf]])
    found = detect(boxes, scores, classes, elsewhere, settings)
    return found._replace(boxes=found.boxes.astype(np.float64) - far)


def _change(
    boxes: Any, scores: Any, classes: Any, place: Any, *, settings: Settings, change: Callable[[Found], Found]
) -> Found:
    return change(detect(boxes, scores, classes, place, settings))


def _swap(found: Found) -> Found:
    return found._replace(boxes=found.boxes[:, [1, 0, 3, 2]])


def _to_sizes(found: Found) -> Found:
    import numpy as np

    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    return found._replace(boxes=np.hstack([low, high - low]))


def _to_centres(found: Found) -> Found:
    import numpy as np

    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    return found._replace(boxes=np.hstack([(low + high) / 2, high - low]))


_CHANGES: Mapping[str, Callable[[Found], Found]] = {
    "x and y are swapped in the boxes": _swap,
    "boxes are left, top, width, height (xywh), corners (xyxy) were expected": _to_sizes,
    "boxes are centre and size (cxcywh), corners (xyxy) were expected": _to_centres,
    "classes are off by one: one too high": lambda found: found._replace(classes=found.classes + 1),
    "classes are off by one: one too low": lambda found: found._replace(classes=found.classes - 1),
}
