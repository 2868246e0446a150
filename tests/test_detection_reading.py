"""ONNX detectors of every layout: what they are read as, what the head makes of them, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from generator.errors import SourceError
from generator.graph.export import export_onnx, make_graph
from generator.graph.model import OnnxModel, load_proto, read_onnx, run_graph
from generator.graph.precision import convert_graph
from generator.graph.precision.types import infer_types
from generator.graph.precision.view import GraphView, find_last_layers, find_tail
from generator.images.sets import default_images
from generator.images.training_pixels import prepare
from generator.plan.build import BuildRequest, compile_graph
from generator.plan.preflight import check_graph
from generator.plan.profiles import make_profiles
from generator.plan.versions import open_adapter
from generator.sources import Network, load_network
from generator.spec.detection import DetectionOptions
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from generator.spec.plan import BatchProfile, PlanOptions
from generator.tasks.detection import head
from generator.tasks.detection.decode import Dense, Rows, decode, select_rows
from generator.tasks.detection.file import DetectorFile
from generator.tasks.detection.guess import choose_layout
from generator.tasks.detection.head import add_head
from generator.tasks.detection.reading import Reading, find_reading, list_assumed, restore_reading
from generator.tensor import Tensor, from_onnx
from tests import detectors
from tests.detectors import NAMES, SIZE, STRIDES, Graph, literals
from tests.tiny_onnx import write_tiny_onnx

Write = Callable[[Path], Path]
YOLO = {"fit": "letterbox", "channels": "RGB", "scale": 1 / 255, "interpolation": "linear"}
YOLOX = {"fit": "letterbox-corner", "channels": "BGR", "scale": 1.0, "interpolation": "linear"}
DETR = {"fit": "stretch", "channels": "RGB", "scale": 1 / 255, "interpolation": "bilinear", "mean": (0.0, 0.0, 0.0)}
GIVEN = {"recipe": {"base": "yolo", "crop": SIZE, "resize": SIZE}}


def spec_of(path: Path, labels: Any = NAMES, **options: Any) -> ModelSpec:
    """Return the spec of a file whose class names are given, or (None) are its own."""
    if isinstance(labels, tuple):
        (path.parent / "labels.txt").write_text("\n".join(labels) + "\n")
        labels = path.parent / "labels.txt"
    return make_spec([str(path)], task="detection", labels=labels, batch={"max": 3}, **options)[0]


def read(spec: ModelSpec) -> Reading:
    return find_reading(spec, load_network(spec))


def export(spec: ModelSpec, folder: Path) -> tuple[Network, OnnxModel, Reading]:
    network = load_network(spec)
    proto, _ = make_graph(spec, network)
    onnx_model, reading = export_onnx(spec, network, proto, {}, folder)
    return network, onnx_model, reading


def images(network: Network, count: int = 6) -> NDArray[np.uint8]:
    return prepare(network.recipe, default_images().files[:count], network.pixels)


def differ(one: Rows, other: Rows, *, box: float = 2e-3, score: float = 2e-5) -> str:
    """Say in what two sets of rows differ, empty if in nothing; rows with all but the same score may change places."""
    if one.scores.shape != other.scores.shape:
        return "rows"
    if np.abs(one.scores - other.scores).max() > score:
        return "scores"
    for boxes, scores, classes, boxes_too, scores_too, classes_too in zip(
        one.boxes, one.scores, one.classes, other.boxes, other.scores, other.classes, strict=True
    ):
        close = np.abs(scores[:, None] - scores_too) <= score
        if not (close & (classes[:, None] == classes_too)).any(axis=1).all():
            return "classes"
        near = (np.abs(boxes[:, None] - boxes_too) <= box).all(axis=2)
        if not (close & near & (classes[:, None] == classes_too)).any(axis=1).all():
            return "boxes"
    return ""


def rows_of(outputs: Mapping[str, NDArray[Any]]) -> Rows:
    return Rows(boxes=outputs["DET_BOXES"], scores=outputs["DET_SCORES"], classes=outputs["DET_CLASSES"])


def expected(network: Network, reading: Reading, pixels: NDArray[np.uint8]) -> Rows:
    return select_rows(decode(reading, network.run(pixels), network.recipe.crop), reading)


# what writes it, the names of its classes, what the spec says, what it is read as, and its recipe
FILES: dict[str, tuple[Callable[..., Path], Any, dict[str, Any], str, dict[str, Any]]] = {
    "yolov8": (
        partial(detectors.write_raw, metadata=literals()),
        None,
        {},
        "raw [batch, 4 + 3 classes, 84 anchors], cxcywh in pixels",
        YOLO,
    ),
    "yolov8 without metadata": (
        detectors.write_raw,
        NAMES,
        {},
        "raw [batch, 4 + 3 classes, 84 anchors], cxcywh in pixels",
        YOLO,
    ),
    "yolov5": (
        detectors.write_objectness,
        NAMES,
        {},
        "objectness [batch, 252 anchors, 5 + 3 classes], cxcywh in pixels",
        YOLO,
    ),
    "yolov6": (
        partial(detectors.write_yolox, constant_objectness=True),
        NAMES,
        {},
        "objectness [batch, 84 anchors, 5 + 3 classes], cxcywh in pixels",
        YOLO,
    ),
    "yolox": (
        detectors.write_yolox,
        NAMES,
        {},
        "objectness [batch, 84 anchors, 5 + 3 classes], cxcywh in pixels",
        YOLOX,
    ),
    "yolov10": (
        partial(detectors.write_end2end, metadata=literals(head="v10Detect", end2end=True)),
        None,
        {},
        "end2end [batch, 20 rows, 6], xyxy in pixels",
        YOLO,
    ),
    "end2end as given": (
        partial(detectors.write_end2end, normalised=True),
        NAMES,
        {"detection": {"units": "normalised"}},
        "end2end [batch, 20 rows, 6], cxcywh from 0 to 1",
        {**DETR, "interpolation": "linear"},
    ),
    "rtdetr": (
        partial(detectors.write_end2end, normalised=True, metadata=literals(head="RTDETRDecoder")),
        None,
        {},
        "end2end [batch, 20 rows, 6], cxcywh from 0 to 1",
        {**DETR, "interpolation": "linear"},
    ),
    "d-fine": (detectors.write_sized, NAMES, {}, "end2end [batch, 20 rows, 3 classes], xyxy in pixels", DETR),
    "transformers": (
        detectors.write_logits,
        NAMES,
        {},
        "logits [batch, 84 anchors, 3 classes], cxcywh from 0 to 1",
        DETR,
    ),
    "rf-detr": (
        partial(detectors.write_logits, names=("labels", "dets")),
        NAMES,
        {},
        "logits [batch, 84 anchors, 3 classes], cxcywh from 0 to 1",
        {**DETR, "mean": (0.485, 0.456, 0.406)},
    ),
    "detr": (
        partial(detectors.write_logits, columns=4),
        NAMES,
        {"detection": {"background": 3}},
        "logits [batch, 84 anchors, 3 classes, background 3], cxcywh from 0 to 1",
        DETR,
    ),
    "scores": (
        detectors.write_scores,
        NAMES,
        GIVEN,
        "scores [batch, 84 anchors, 3 classes], xyxy in pixels",
        YOLO,
    ),
    "ssd": (
        partial(detectors.write_scores, background=0, normalised=True, names=("loc", "conf")),
        NAMES,
        {**GIVEN, "detection": {"background": 0, "units": "normalised"}},
        "scores [batch, 84 anchors, 3 classes, background 0], xyxy from 0 to 1",
        YOLO,
    ),
    "ssd, logits": (
        partial(detectors.write_scores, background=0, logits=True),
        NAMES,
        {**GIVEN, "detection": {"background": 0, "layout": "logits", "boxes": "xyxy", "units": "pixels"}},
        "logits [batch, 84 anchors, 3 classes, background 0], xyxy in pixels",
        YOLO,
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("batch", "opset"), [("batch", 18), (1, 17)])
def test_each_layout_is_read_and_answers_as_the_untouched_file(
    name: str, batch: Any, opset: int, tmp_path: Path
) -> None:
    write, labels, options, said, recipe = FILES[name]
    path = write(tmp_path / f"{name}.onnx", batch=batch, opset=opset)
    network, graph, reading = export(spec_of(path, labels, **options), tmp_path / "out")
    assert network.repairs[-1].endswith(f"read as {said}")
    assert network.recipe.crop == (SIZE, SIZE)
    assert {field: getattr(network.recipe, field) for field in recipe} == recipe
    assert network.labels == NAMES
    pixels = images(network)
    assert differ(rows_of(run_graph(graph, pixels)), expected(network, reading, pixels)) == ""
    profiles = make_profiles(graph, [BatchProfile(min=1, opt=2, max=3)])
    report = check_graph(graph, profiles, build=name in ("yolov8", "yolov10"), max_batch_size=3)
    assert report.accepted, report.faults


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]], opset: int) -> onnx.ModelProto:
    """Return a graph whose inputs are its outputs."""
    nodes, inputs, ends = [], [], []
    for name, values in outputs.items():
        shape: list[str | int | None] = ["batch", *values.shape[1:]]
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        inputs.append(helper.make_tensor_value_info(f"{name}_in", kind, shape))
        ends.append(helper.make_tensor_value_info(name, kind, shape))
        nodes.append(helper.make_node("Identity", [f"{name}_in"], [name]))
    graph = helper.make_graph(nodes, "outputs", inputs, ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write_head(
    reading: Reading, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], opset: int
) -> onnx.ModelProto:
    model = write_outputs(Path(), outputs, opset)
    add_head(model, reading, size)
    return model


def run_head(reading: Reading, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], opset: int) -> Rows:
    import onnxruntime

    model = write_head(reading, outputs, size, opset)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {f"{name}_in": values for name, values in outputs.items()}), strict=True))
    assert [list(found[name].shape[1:]) for name in names] == [output.shape[1:] for output in session.get_outputs()]
    assert found["DET_CLASSES"].dtype == np.int32
    return rows_of(found)


@st.composite
def readings(draw: st.DrawFn) -> tuple[Reading, dict[str, NDArray[Any]], tuple[int, int]]:
    """Draw a reading, outputs that it fits, and the network's height and width."""
    layout: Any = draw(st.sampled_from(["raw", "objectness", "end2end", "three", "scores", "logits"]))
    count, anchors, classes = (draw(st.integers(1, most)) for most in (3, 30, 5))
    background = draw(st.none() | st.integers(0, classes)) if layout in ("scores", "logits") else None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def floats(*shape: int) -> NDArray[np.float32]:
        return rng.uniform(0, 1, (count, *shape)).astype(np.float32)

    columns = classes + (background is not None)
    numbers = rng.integers(0, classes, (count, anchors))
    kinds: dict[str, dict[str, NDArray[Any]]] = {
        "raw": {"output": floats(4 + classes, anchors)},
        "objectness": {"output": floats(anchors, 5 + classes)},
        "end2end": {"output": np.concatenate([floats(anchors, 5), numbers[..., None].astype(np.float32)], 2)},
        "three": {"boxes": floats(anchors, 4), "scores": floats(anchors), "labels": numbers},
        "scores": {"boxes": floats(anchors, 4), "scores": floats(anchors, columns)},
        "logits": {"boxes": floats(anchors, 4), "scores": floats(anchors, columns) * 8 - 4},
    }
    outputs = kinds[layout]
    reading = Reading(
        layout="end2end" if layout == "three" else layout,
        boxes=draw(st.sampled_from(["xyxy", "cxcywh"])),
        units=draw(st.sampled_from(["pixels", "normalised"])),
        background=background,
        tensors=tuple(outputs),
        classes=classes,
        candidates=draw(st.integers(1, 40)),
    )
    return reading, outputs, (draw(st.integers(1, 900)), draw(st.integers(1, 900)))


@settings(max_examples=150, deadline=None)
@given(drawn=readings(), opset=st.sampled_from([13, 17, 18, 21]))
def test_the_head_is_what_numpy_makes_of_any_outputs(
    drawn: tuple[Reading, dict[str, NDArray[Any]], tuple[int, int]], opset: int
) -> None:
    reading, outputs, size = drawn
    wanted = select_rows(decode(reading, outputs, size), reading)
    found = run_head(reading, outputs, size, opset)
    assert wanted.scores.shape[1] <= reading.candidates
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert differ(found, wanted) == ""


def make_scores(values: NDArray[np.float32], **options: Any) -> tuple[Reading, dict[str, NDArray[Any]]]:
    """Return a reading of two outputs, and boxes that tell their anchors beside the scores or logits `values`."""
    count, anchors, columns = values.shape
    boxes = np.arange(count * anchors * 4, dtype=np.float32).reshape(count, anchors, 4)
    background = options.setdefault("background", None)
    reading = Reading(
        boxes="xyxy",
        units="pixels",
        tensors=("boxes", "scores"),
        classes=columns - (background is not None),
        candidates=100,
        **{"layout": "scores", **options},
    )
    return reading, {"boxes": boxes, "scores": values}


def count_nodes(model: onnx.ModelProto, operator: str) -> int:
    return [node.op_type for node in model.graph.node].count(operator)


@pytest.mark.parametrize(("levels", "opset"), [(3, 17), (40, 18), (1_000_000, 17), (1, 18)])
def test_top_k_in_two_steps_is_top_k_in_one(levels: int, opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places among equal scores, too: few levels make many of them."""
    rng = np.random.default_rng(levels)
    scores = (rng.integers(0, levels, (3, 150, 400)) / levels).astype(np.float32)
    reading, outputs = make_scores(scores)
    assert count_nodes(write_head(reading, outputs, (1, 1), opset), "TopK") == 3
    in_two = run_head(reading, outputs, (1, 1), opset)
    monkeypatch.setattr(head, "_LEAST_WIDTH", 1_000_000)
    assert count_nodes(write_head(reading, outputs, (1, 1), opset), "TopK") == 2
    in_one = run_head(reading, outputs, (1, 1), opset)
    for name in ("boxes", "scores", "classes"):
        assert np.array_equal(getattr(in_two, name), getattr(in_one, name)), name


@pytest.mark.parametrize(
    ("anchors", "classes", "candidates", "steps"),
    [
        (150, 400, 100, 2),
        (150, 400, 105, 2),  # a group need not begin with an anchor
        (150, 401, 101, 1),  # no ten groups of equal length
        (1200, 90, 1000, 2),
        (1500, 30, 1500, 1),  # groups of 4,500 keep 1,500 each: hardly less is left
        (100, 80, 100, 1),  # few scores
    ],
)
def test_many_scores_only_are_taken_in_two_steps(anchors: int, classes: int, candidates: int, steps: int) -> None:
    reading, outputs = make_scores(np.random.default_rng(0).random((1, anchors, classes), np.float32))
    reading = replace(reading, candidates=candidates)
    assert count_nodes(write_head(reading, outputs, (1, 1), 17), "TopK") == 1 + steps
    wanted = select_rows(decode(reading, outputs, (1, 1)), reading)
    assert differ(run_head(reading, outputs, (1, 1), 17), wanted) == ""


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("background", [0, 2, 5])
@pytest.mark.parametrize("offset", [0, 200])
def test_softmax_of_the_kept_anchors_is_that_of_all(offset: int, background: int, opset: int) -> None:
    """At logits of hundreds, too, whose exponentials FP32 does not hold."""
    rng = np.random.default_rng(background)
    logits = (rng.normal(0, 3, (3, 500, 6)) + rng.choice([-offset, offset], (3, 500, 1))).astype(np.float32)
    reading, outputs = make_scores(logits, layout="logits", background=background)
    probabilities = torch.from_numpy(logits).double().softmax(dim=2).float().numpy()
    dense = Dense(boxes=outputs["boxes"], scores=np.delete(probabilities, background, axis=2))
    found = run_head(reading, outputs, (1, 1), opset)
    assert differ(found, select_rows(dense, reading), score=1e-6) == ""
    model = write_head(reading, outputs, (1, 1), opset)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    (kept,) = [node for node in model.graph.node if softmax.input[0] in node.output]
    assert kept.op_type == "GatherND"


def test_nms_is_for_what_was_trained_with_it() -> None:
    values = np.zeros((1, 5, 4), np.float32)
    options = DetectionOptions()
    for layout, background, wanted in (
        ("scores", None, "per-class"),
        ("scores", 0, "per-class"),
        ("logits", None, "none"),  # RT-DETR
        ("logits", 3, "none"),  # DETR
        ("logits", 0, "per-class"),  # SSD
    ):
        reading, _ = make_scores(values, layout=layout, background=background)
        assert reading.choose_nms(options) == wanted
        assert reading.choose_nms(DetectionOptions(nms="agnostic")) == "agnostic"


def fault(name: str, reading: Reading, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int]) -> Rows:
    """Return the rows of a decoder with one fault in it."""
    changed = replace(reading, boxes="xyxy") if name == "xywh for xyxy" else reading
    dense = decode(changed, outputs, size)
    if name == "grid half a cell off":
        _, strides = detectors.grid(SIZE)
        dense = replace(dense, boxes=dense.boxes + strides[:, None] / 2)
    if name == "swapped axes":
        dense = replace(dense, boxes=dense.boxes[..., [1, 0, 3, 2]])
    if name == "class off by one":
        dense = replace(dense, scores=np.roll(dense.scores, 1, axis=2))
    return select_rows(dense, replace(reading, candidates=10) if name == "top-K too small" else reading)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("none", ""),
        ("xywh for xyxy", "boxes"),
        ("grid half a cell off", "boxes"),
        ("swapped axes", "boxes"),
        ("class off by one", "classes"),
        ("top-K too small", "rows"),
    ],
)
def test_a_fault_of_the_decoder_is_a_difference(name: str, seen: str, tmp_path: Path) -> None:
    network, graph, reading = export(spec_of(detectors.write_raw(tmp_path / "raw.onnx")), tmp_path / "out")
    pixels = images(network)
    found = rows_of(run_graph(graph, pixels))
    assert differ(found, fault(name, reading, network.run(pixels), network.recipe.crop)) == seen
    # and the weights tell images apart, or nothing would be proved
    assert differ(found, rows_of(run_graph(graph, pixels[::-1]))) == "scores"


REFUSED: dict[str, tuple[Write, Any, dict[str, Any], str, str]] = {
    # what writes it, names of its classes, what the spec says; what is found, and what to do
    "NMS": (detectors.write_nms, NAMES, {}, r"NonMaxSuppression\) is NMS in the graph", "nms=True"),
    "plugin": (detectors.write_plugin, NAMES, {}, r"EfficientNMS_TRT\) is a plugin", "--end2end of YOLOv7"),
    "two stages": (detectors.write_two_stages, NAMES, {}, r"RoiAlign\) cuts regions", "one stage"),
    "another task": (
        partial(detectors.write_raw, metadata=literals(task="segment")),
        None,
        {},
        "its metadata says task: segment",
        "only boxes",
    ),
    "rows of one or the other kind": (
        detectors.write_end2end,
        NAMES,
        {},
        r"output0 \[batch, 20, 6\] may be corners in pixels .* or centre and size from 0 to 1",
        "set detection.units: pixels or normalised",
    ),
    "no number of classes": (
        detectors.write_end2end,
        "index",
        {"detection": {"layout": "end2end", "units": "pixels"}},
        "nothing says how many",
        "set labels",
    ),
    "square": (
        partial(detectors.write_raw, classes=80),
        "index",
        {},
        "may be raw with 80 classes and 84 anchors, or objectness with 79 classes and 84 anchors",
        "set detection.layout: raw or objectness",
    ),
    "4 or 5 columns": (
        partial(detectors.write_yolox, decoded=False),
        "index",
        {},
        "may be objectness with 3 classes and 84 anchors, or 4 classes without objectness",
        "set classes, or labels",
    ),
    "boxes not decoded": (
        partial(detectors.write_yolox, decoded=False),
        NAMES,
        {},
        "looks like YOLOX without decoding",
        "--decode_in_inference",
    ),
    "boxes not decoded, as given": (
        partial(detectors.write_yolox, decoded=False),
        NAMES,
        {"detection": {"layout": "objectness"}},
        "no box reaches beyond",
        "--decode_in_inference",
    ),
    "another layout": (
        detectors.write_raw,
        NAMES,
        {"detection": {"layout": "objectness"}},
        r"output0 \[batch, 7, 84\], read as objectness, has 79 classes, but .*labels.txt has 3 lines",
        "detection.layout",
    ),
    "no such layout": (
        detectors.write_raw,
        NAMES,
        {"detection": {"layout": "end2end"}},
        "detection.layout is end2end, which has another shape",
        "leave detection.layout out",
    ),
    "metadata against the graph": (
        partial(detectors.write_raw, metadata=literals(names=list(map(str, range(80))))),
        None,
        {},
        "has 3 classes, but its metadata names 80 classes",
        "set labels",
    ),
    "classes against the graph": (
        detectors.write_raw,
        "index",
        {"classes": 4},
        "3 classes, but classes is 4",
        "labels",
    ),
    "labels against the graph": (detectors.write_raw, ("a", "b"), {}, "3 classes, but .* has 2 lines", "set labels"),
    "one column more": (
        partial(detectors.write_scores, background=0),
        NAMES,
        GIVEN,
        "has 4 classes, but .* has 3 lines",
        r"set detection.background: 0 \(SSD\) or 3 \(DETR\)",
    ),
    "a Softmax": (
        partial(detectors.write_scores, background=0),
        "index",
        GIVEN,
        "may have 4 classes, or one less and a column for background",
        r"set detection.background: 0 \(SSD\), 3 \(DETR\) or none",
    ),
    "logits with or without no object": (
        detectors.write_logits,
        "index",
        {},
        "may have 3 classes, or one less",
        r"set detection.background: 0 \(SSD\), 2 \(DETR\) or none",
    ),
    "rows or one class": (
        partial(detectors.write_objectness, classes=1),
        ("face",),
        {},
        "may be objectness with 1 class and 252 anchors, or end2end with 252 rows",
        "set detection.layout: objectness or end2end",
    ),
    "background beyond the columns": (
        partial(detectors.write_scores, background=0),
        NAMES,
        {**GIVEN, "detection": {"background": 9}},
        "detection.background is 9, but the scores' columns are 0 to 3",
        "set detection.background: 0 or 3",
    ),
    "no background there": (
        detectors.write_raw,
        NAMES,
        {"detection": {"background": 0}},
        "has no column for detection.background: 0",
        "leave detection.background out",
    ),
    "no recipe": (detectors.write_scores, NAMES, {}, "nothing tells how its images were prepared", "set recipe: yolo"),
    "a classifier": (write_tiny_onnx, NAMES, {}, r"has output scores \[batch, 4\]", "boxes decoded"),
    # the answers against the reading: nothing else would notice
    "logits for scores": (
        partial(detectors.write_scores, logits=True),
        NAMES,
        {**GIVEN, "detection": {"layout": "scores"}},
        "its scores reach from -.* so they are no probabilities",
        "set detection.layout: logits",
    ),
    "scores for logits": (
        detectors.write_scores,
        NAMES,
        {**GIVEN, "detection": {"layout": "logits", "boxes": "xyxy", "units": "pixels"}},
        "so they are no logits",
        "set detection.layout: scores",
    ),
    "pixels for shares": (
        partial(detectors.write_scores, normalised=True),
        NAMES,
        GIVEN,
        "no box reaches beyond 1.* pixels",
        "set detection.units: normalised",
    ),
    "shares for pixels": (
        detectors.write_raw,
        NAMES,
        {"detection": {"units": "normalised"}},
        "half of its numbers are beyond",
        "set detection.units: pixels",
    ),
    "corners for centres": (
        detectors.write_raw,
        NAMES,
        {"detection": {"boxes": "xyxy"}},
        "the right edge is left of the left one",
        "set detection.boxes: cxcywh",
    ),
    "centres for corners": (
        detectors.write_end2end,
        NAMES,
        {"detection": {"boxes": "cxcywh", "units": "pixels"}},
        "the last two numbers are above the first two",
        "set detection.boxes: xyxy",
    ),
    "classes beyond the labels": (
        partial(detectors.write_end2end),
        ("a", "b"),
        {"detection": {"units": "pixels"}},
        "its classes are 0 to 2, but there are 2",
        "a line for every number",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    write, labels, options, found, hint = REFUSED[name]
    spec = spec_of(write(tmp_path / "net.onnx"), labels, **options)
    with pytest.raises(SourceError, match=found) as caught:
        read(spec)
    assert re.search(hint, caught.value.hint)
    assert "net.onnx" in caught.value.message


@pytest.mark.parametrize(
    "write", [detectors.write_raw, detectors.write_sized, detectors.write_plugin, detectors.write_scores]
)
def test_a_detector_that_is_called_a_classifier_is_told_the_task(write: Write, tmp_path: Path) -> None:
    spec = make_spec([str(write(tmp_path / "net.onnx"))])[0]  # no recipe, no labels: they are not asked for first
    with pytest.raises(SourceError, match=r"net.onnx looks like a detector: it has output") as caught:
        load_network(spec)
    assert caught.value.fields == {"task": "detection"}


def test_a_class_count_or_labels_decide_between_two_readings(tmp_path: Path) -> None:
    square = detectors.write_raw(tmp_path / "square.onnx", classes=80)
    assert read(spec_of(square, "index", classes=80)).layout == "raw"
    names = tuple(f"class {index}" for index in range(80))
    assert read(spec_of(square, names)).layout == "raw"
    square = detectors.write_yolox(tmp_path / "other.onnx", classes=79)
    found = load_network(spec_of(square, names[:79])).repairs[-1]
    assert found == "output is read as objectness [batch, 84 anchors, 5 + 79 classes], cxcywh in pixels"


def test_one_class_beside_objectness_is_no_row_of_an_end_to_end_detector(tmp_path: Path) -> None:
    file = DetectorFile.read(detectors.write_objectness(tmp_path / "net.onnx", classes=1))
    spec = spec_of(tmp_path / "net.onnx", "index", image_size=640)
    output = Tensor(name="output", data_type=from_onnx(TensorProto.FLOAT), shape=(-1, 25200, 6))
    assert choose_layout(spec, replace(file, size=None), [output]).layout == "objectness"
    rows = replace(output, shape=(-1, 300, 6))
    assert choose_layout(spec, replace(file, size=None), [rows]).layout == "end2end"


def test_metadata_is_read_as_far_as_it_is_sound(tmp_path: Path) -> None:
    whole = load_network(spec_of(detectors.write_raw(tmp_path / "a.onnx", metadata=literals()), None))
    assert whole.labels == NAMES
    assert whole.description == f"ONNX file a.onnx ({detectors.LICENSE})"
    broken = {
        "names": "{0: 'circle', 1",
        "imgsz": "[" * 9000,
        "head": "[1]",
        "end2end": "maybe",
        "stride": "__import__",
    }
    network = load_network(spec_of(detectors.write_raw(tmp_path / "b.onnx", metadata=broken)))
    assert (network.labels, network.recipe.crop) == (NAMES, (SIZE, SIZE))
    gap = {**literals(), "names": "{1: 'circle', 2: 'square', 3: 'star'}"}
    with pytest.raises(SourceError, match="3 classes and no names"):
        load_network(spec_of(detectors.write_raw(tmp_path / "c.onnx", metadata=gap), None))
    # the user's own names win
    others = ("a", "b", "c")
    assert load_network(spec_of(tmp_path / "a.onnx", others)).labels == others


def test_free_height_and_width_become_those_of_the_metadata_or_the_spec(tmp_path: Path) -> None:
    free = detectors.write_raw(tmp_path / "free.onnx", free=True, metadata=literals())
    network, graph, reading = export(spec_of(free, None), tmp_path / "out")
    fixed = load_network(spec_of(detectors.write_raw(tmp_path / "fixed.onnx")))
    pixels = images(network)
    assert graph.input.shape == (-1, SIZE, SIZE, 3)
    assert network.repairs[0] == f"the size of images is free: fixed to [3, {SIZE}, {SIZE}]"
    wanted = select_rows(decode(reading, fixed.run(pixels), (SIZE, SIZE)), reading)
    assert differ(rows_of(run_graph(graph, pixels)), wanted) == ""
    larger = load_network(spec_of(free, None, image_size=96))
    assert larger.recipe.crop == (96, 96)
    assert "189 anchors" in larger.repairs[-1]
    unsaid = load_network(spec_of(detectors.write_raw(tmp_path / "unsaid.onnx", free=True)))
    assert unsaid.recipe.crop == (640, 640)


def test_the_second_input_is_the_size_of_the_network(tmp_path: Path) -> None:
    network, graph, _ = export(spec_of(detectors.write_sized(tmp_path / "sized.onnx")), tmp_path / "out")
    assert network.repairs[0] == "input orig_target_sizes is a constant, [64, 64]: the network's own width and height"
    assert [tensor.name for tensor in graph.inputs] == ["PIXELS"]


def test_what_was_guessed_is_said(tmp_path: Path) -> None:
    spec = spec_of(detectors.write_raw(tmp_path / "raw.onnx"))
    network = load_network(spec)
    reading = find_reading(spec, network)
    assert list_assumed(spec, network, reading) == {
        "reading": "raw [batch, 4 + 3 classes, 84 anchors], cxcywh in pixels: as its metadata and shapes look, not "
        "proved; --labelled DIR measures it",
        "recipe": "that of YOLO, as its outputs look, not proved; --labelled DIR measures it",
    }
    assert restore_reading(asdict(reading), tmp_path) == reading
    given = {"layout": "raw", "boxes": "cxcywh", "units": "pixels"}
    spec = spec_of(tmp_path / "raw.onnx", detection=given, **GIVEN)
    assert list_assumed(spec, load_network(spec), reading) == {
        "reading": "raw [batch, 4 + 3 classes, 84 anchors], cxcywh in pixels: as given, not proved; --labelled DIR "
        "measures it",
        "recipe": "as given, not proved; --labelled DIR measures it",
    }


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["yolov8", "yolov10", "ssd", "ssd, logits"])
def test_what_decodes_stays_in_fp32(name: str, precision: str, tmp_path: Path) -> None:
    write, labels, options, *_ = FILES[name]
    network, graph, _ = export(spec_of(write(tmp_path / "net.onnx"), labels, **options), tmp_path / "out")
    pixels = images(network, 12)
    converted = convert_graph(
        graph.path, tmp_path / "low.onnx", precision=precision, target="tensorrt-10", calibration=pixels
    )
    types = infer_types(load_proto(converted.path))
    nodes = list(load_proto(converted.path).graph.node)
    last = max(place for place, node in enumerate(nodes) if node.op_type == "Conv")
    behind = [node for node in nodes[last + 1 :] if node.op_type != "Cast"]
    assert {"TopK", "Concat", "Softmax" if name.startswith("ssd") else "Sigmoid"} <= {node.op_type for node in behind}
    assert TensorProto.FLOAT16 not in {types.get(node.output[0]) for node in behind if node.op_type != "Reshape"}
    assert TensorProto.FLOAT16 in types.values()
    if precision == "int8":
        kept = [node for node, reason in converted.kept_nodes.items() if reason == "the last layer"]
        assert len(kept) == len(STRIDES)
    found, before = (run_graph(read_onnx(path), pixels)["DET_SCORES"] for path in (converted.path, graph.path))
    assert np.abs(found - before).max() < {"fp16": 2e-3, "int8": 0.1}[precision]


def test_tensorrt_8_is_told_to_decode_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, _ = export(spec_of(detectors.write_raw(tmp_path / "net.onnx", opset=17)), tmp_path / "out")
    adapter = open_adapter("tensorrt_rtx")  # its builder chooses nothing, so what it is told is looked at
    told: list[str] = []
    monkeypatch.setattr(adapter, "weakly_typed", True)
    monkeypatch.setattr(adapter, "hold_fp32", lambda *_, keep, **__: told.extend(keep))
    profiles = tuple(make_profiles(graph, [BatchProfile(min=1, opt=1, max=1)]))
    compile_graph(
        adapter,
        BuildRequest(
            onnx=graph,
            precision="fp32",
            profiles=profiles,
            max_batch_size=1,
            options=PlanOptions(),
            command="",
            keep=("mine",),
        ),
    )
    nodes = load_proto(graph.path).graph.node
    last = max(place for place, node in enumerate(nodes) if node.op_type == "Conv")
    behind = {node.name for node in nodes[last + 1 :]}
    assert {"DET_BOXES", "DET_SCORES", "DET_CLASSES", "trtgen_best"} < behind
    assert {"mine"} | behind <= set(told)
    assert not {node.name for node in nodes if node.op_type == "Conv"} & set(told)


def test_the_mean_of_a_distribution_is_no_layer() -> None:
    """YOLOv8 takes distances as the mean of a Softmax, by a convolution: it decodes, and the one before it is last."""
    graph = Graph(opset=18)
    graph.add("Conv", "images", graph.constant(np.ones((12, 3, 1, 1))), result="features")
    graph.add("Conv", "features", graph.constant(np.ones((16, 12, 1, 1))), result="box")
    graph.add("Conv", "features", graph.constant(np.ones((3, 12, 1, 1))), result="class")
    graph.add("Reshape", "box", graph.integers(0, 4, 4, -1), result="bins")
    turned = graph.add("Transpose", graph.add("Softmax", "bins", axis=2), perm=[0, 2, 1, 3])
    graph.add("Conv", turned, graph.constant(np.arange(4).reshape(1, 4, 1, 1)), result="mean")
    graph.add("Sigmoid", "class", result="scores")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("mean", "scores")]
    pixels = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    view = GraphView.of(helper.make_model(helper.make_graph(graph.nodes, "net", [pixels], outputs, graph.weights)))
    assert [view.nodes[name].output[0] for name in find_last_layers(view)] == ["box", "class"]
    decoded = {output for node in graph.nodes for output in node.output} - {"features", "box", "class"}
    assert {view.nodes[name].output[0] for name in find_tail(view)} == decoded


def test_a_graph_that_takes_pixels_and_has_our_names(tmp_path: Path) -> None:
    """What trtgen wrote, given again as a file of the user's."""
    network, graph, _ = export(spec_of(detectors.write_raw(tmp_path / "net.onnx")), tmp_path / "out")
    raw = {"raw": True, "detection": {"units": "pixels"}, "recipe": {"base": "yolo", "crop": SIZE, "resize": SIZE}}
    again, twice, reading = export(spec_of(graph.path, **raw), tmp_path / "again")
    assert reading.tensors == ("DET_BOXES", "DET_SCORES", "DET_CLASSES")
    pixels = images(network)
    assert differ(rows_of(run_graph(twice, pixels)), rows_of(run_graph(graph, pixels))) == ""
    assert differ(rows_of(run_graph(twice, pixels)), expected(again, reading, pixels)) == ""
