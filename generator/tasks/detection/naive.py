"""Post-processing as a plain loop, the measure for the served step: it shares no code with it.

What the step is told, thresholds and NMS, is read from the repository's config.pbtxt, where people change it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from generator.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.artifact import Artifact
    from generator.spec.detection import Nms
    from generator.spec.model import ModelSpec
    from generator.tasks.detection.decode import Rows

# What the served step and the ensemble answer.
ANSWERS = ("NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES", "LABELS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides which boxes are answered: a threshold for each class, NMS, and how many at most."""

    thresholds: tuple[float, ...]
    iou: float
    nms: Nms
    most: int


class Found(NamedTuple):
    """The boxes of one image, best first: `boxes` (n, 4) as corners, `scores` (n,), `classes` (n,)."""

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]


def read_settings(path: Path, labels: Sequence[str]) -> Settings:
    """Return what the config.pbtxt of a post-processing step says.

    Raises:
        ConfigError: It is no model configuration.
        VerificationError: It does not say what the step needs.
    """
    from generator.triton.check import parse_config

    config = parse_config(path.parent.name, path.read_text(encoding="utf-8"))
    values = {name: parameter.string_value for name, parameter in config.parameters.items()}
    try:
        own = json.loads(values.get("class_scores", "{}"))
        return Settings(
            thresholds=tuple(float(own.get(label, values["score"])) for label in labels),
            iou=float(values["iou"]),
            nms=cast("Nms", values["nms"]),
            most={output.name: int(output.dims[0]) for output in config.output}["BOXES"],
        )
    except (KeyError, ValueError, AttributeError) as error:
        msg = f"{path} does not say which boxes are answered: {type(error).__name__}: {error}"
        hint = "give score, iou and nms as parameters, and class_scores as a JSON object, or build the model again"
        raise VerificationError(msg, hint=hint) from error


def settings_of(spec: ModelSpec, artifact: Artifact) -> Settings:
    """Return what the spec asks for."""
    options = spec.detection
    assert options is not None, "the spec fills it in"
    return Settings(
        thresholds=tuple(options.class_scores.get(label, options.score) for label in artifact.labels),
        iou=options.iou,
        nms=artifact.head.choose_nms(options),
        most=options.max_detections,
    )


def detect(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int32],
    geometry: NDArray[np.float32],
    settings: Settings,
) -> Found:
    """Return the boxes that one image's rows come to, in pixels of the original.

    The rows are gone through one after the other, best score first, and each is kept unless one that was kept before
    overlaps it too much.
    """
    import numpy as np

    sure = np.flatnonzero(scores >= np.array(settings.thresholds, np.float32)[classes])
    rows = [
        (int(row), int(classes[row]), tuple(boxes[row].tolist()))
        for row in sure[np.argsort(-scores[sure], kind="stable")]
    ]
    kept: list[tuple[int, int, tuple[float, ...]]] = []
    for row, index, box in rows:
        if len(kept) == settings.most:
            break
        rivals = [other for _, kind, other in kept if kind == index or settings.nms == "agnostic"]
        if settings.nms == "none" or not any(_overlap(box, other, settings.iou) for other in rivals):
            kept.append((row, index, box))
    places = [row for row, _, _ in kept]
    scale_x, scale_y, left, top, width, height = (float(value) for value in geometry)
    corners = boxes[places].astype(np.float64)
    edges = [
        ((corners[:, axis] - offset) / scale).clip(0, size)
        for axis, (offset, scale, size) in enumerate([(left, scale_x, width), (top, scale_y, height)] * 2)
    ]
    return Found(np.stack(edges, axis=1).astype(np.float32), scores[places], classes[places])


def _overlap(one: tuple[float, ...], other: tuple[float, ...], most: float) -> bool:
    """Say whether the IoU of two boxes is above `most`."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (one, other)]
    return shared > most * (areas[0] + areas[1] - shared)


def detect_all(rows: Rows, geometry: NDArray[np.float32], settings: Settings) -> list[Found]:
    """Return `detect` of every image; `geometry` is FP32 (N, 6)."""
    images = zip(rows.boxes, rows.scores, rows.classes, geometry, strict=True)
    return [detect(*image, settings) for image in images]


def network_geometry(count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the geometry of images that are the network's input themselves; `size` is their height and width."""
    import numpy as np

    return np.tile(np.array([1, 1, 0, 0, size[1], size[0]], np.float32), (count, 1))


def to_network(found: Found, geometry: NDArray[np.float32]) -> Found:
    """Return boxes in pixels of an original in those of the network's input."""
    import numpy as np

    scale, offset = np.tile(geometry[:2], 2).astype(np.float64), np.tile(geometry[2:4], 2)
    return found._replace(boxes=found.boxes * scale + offset)


def unpad(answers: Mapping[str, NDArray[Any]]) -> Iterator[Found]:
    """Yield the boxes of each image that the served step or the ensemble answered, without padding."""
    for number, boxes, scores, classes in zip(*(answers[name] for name in ANSWERS[:4]), strict=True):
        count = int(number[0])
        yield Found(boxes[:count], scores[:count], classes[:count])
