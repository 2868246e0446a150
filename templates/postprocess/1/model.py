"""Rows of a detector in, the boxes that count out: threshold, NMS, back to the original's pixels. Needs numpy alone.

Runs inside Triton's Python backend; thresholds and NMS come from `parameters` in config.pbtxt, so this file is the same
for every detector, and they can be changed there without building a plan. DET_BOXES FP32 [N, K, 4] are corners in
pixels of the network's input, DET_SCORES FP32 [N, K], DET_CLASSES INT32 [N, K]. GEOMETRY FP32 [N, 6] says how each
original became that input: x * scale x + left, y * scale y + top, and the original's width and height.

The answers have as many rows as BOXES has in config.pbtxt, by falling score: NUM_DETECTIONS [N, 1] of them count, the
others are padding: 0, class -1, empty label.
"""

import json
import math
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

NMS = ("per-class", "agnostic", "none")
INPUTS = ("DET_BOXES", "DET_SCORES", "DET_CLASSES", "GEOMETRY")


class Options:
    """Thresholds and NMS, read from the text parameters of config.pbtxt; ValueError says what is wrong there."""

    def __init__(self, parameters, labels, most):
        values = {name: parameter["string_value"] for name, parameter in parameters.items()}
        self.labels, self.most = labels, most
        self.iou = _threshold("iou", values.get("iou"))
        self.nms = values.get("nms")
        if self.nms not in NMS:
            raise ValueError(f"parameter nms is {self.nms!r}, one of {', '.join(NMS)} was expected")
        self.score = _threshold("score", values.get("score"))
        of_class = _read_class_scores(values.get("class_scores", "{}"))
        for label, score in of_class.items():
            if label not in labels:
                raise ValueError(f"parameter class_scores names {label!r}, which is not in labels.txt")
            of_class[label] = _threshold(f"class_scores of {label}", score)
        # in the scores' own precision: 0.7 in FP32 is less than in FP64
        self.of_class = np.array([of_class.get(label, self.score) for label in labels] or [self.score], np.float32)

    def keeps(self, scores, classes):
        """Say which rows reach the threshold of their class."""
        return scores >= self.of_class[np.clip(classes, 0, len(self.of_class) - 1)]

    def name(self, index):
        """Return a class's label, empty where there is none."""
        return self.labels[index] if 0 <= index < len(self.labels) else ""


def _read_class_scores(text):
    try:
        scores = json.loads(text)
    except ValueError:
        scores = None
    if not isinstance(scores, dict):
        message = f"parameter class_scores is {text!r}, a JSON object of labels and numbers was expected"
        raise ValueError(message)  # noqa: TRY004 - the text is wrong
    return scores


def _threshold(name, value):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < 1:
        raise ValueError(f"parameter {name} is {value!r}, a number between 0 and 1 was expected")
    return number


def detect(boxes, scores, classes, geometry, options):
    """Return boxes (n, 4) in pixels of the original, scores (n,) and classes (n,) of one image, best first."""
    rows = np.flatnonzero(options.keeps(scores, classes))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    chosen = boxes[rows].astype(np.float64)
    if not np.isfinite(chosen).all():
        raise ValueError("the network answers boxes that are not numbers")
    kept = rows[_suppress(chosen, classes[rows], options)]
    return to_original(boxes[kept], geometry), scores[kept], classes[kept]


def _suppress(boxes, classes, options):
    """Return which boxes, sorted by score, overlap no better one; at most as many as are answered."""
    if options.nms == "none":
        return np.arange(len(boxes))[: options.most]
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    stands = np.ones(len(boxes), bool)
    kept = []
    for best in range(len(boxes)):
        if not stands[best]:
            continue
        kept.append(best)
        if len(kept) == options.most:
            break
        rest = slice(best + 1, None)
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        apart = shared <= options.iou * (areas[best] + areas[rest] - shared)
        if options.nms == "per-class":
            apart |= classes[rest] != classes[best]
        stands[rest] &= apart
    return np.array(kept, np.intp)


def to_original(boxes, geometry):
    """Return boxes (n, 4) in pixels of the original image, and not beyond its edges."""
    scale, offset, size = np.split(geometry.astype(np.float64), 3)
    corners = (boxes.reshape(-1, 2, 2) - offset) / scale
    return np.clip(corners, 0, size).reshape(-1, 4).astype(np.float32)


class TritonPythonModel:
    """What Triton calls: initialize once per instance, execute for every batch of requests."""

    def initialize(self, args):
        """Read thresholds, NMS and the names of the classes."""
        config = json.loads(args["model_config"])
        most = next(int(output["dims"][0]) for output in config["output"] if output["name"] == "BOXES")
        labels = Path(args["model_repository"], "labels.txt").read_text("utf-8").split("\n")
        self.options = Options(config["parameters"], labels[:-1], most)

    def execute(self, requests):
        """Return one response per request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        rows = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS]
        count, most = len(rows[0]), self.options.most
        numbers = np.zeros((count, 1), np.int32)
        boxes, scores = np.zeros((count, most, 4), np.float32), np.zeros((count, most), np.float32)
        classes, labels = np.full((count, most), -1, np.int32), np.full((count, most), b"", np.object_)
        for index, image in enumerate(zip(*rows, strict=True)):
            try:
                found = detect(*image, self.options)
            except ValueError as error:
                message = f"image {index} of {count}: {error}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))
            number = numbers[index] = len(found[0])
            boxes[index, :number], scores[index, :number], classes[index, :number] = found
            labels[index, :number] = [self.options.name(one).encode() for one in found[2]]
        answers = zip(
            ("NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES", "LABELS"),
            (numbers, boxes, scores, classes, labels),
            strict=True,
        )
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in answers])
