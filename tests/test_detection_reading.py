"""ONNX detectors of every layout: what they are read as, what the head makes of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from generator.graph.export import export_onnx, make_graph
from generator.graph.model import OnnxModel, run_graph
from generator.images.sets import default_images
from generator.images.training_pixels import prepare
from generator.sources import Network, load_network
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from generator.tasks.detection.decode import Rows, decode, select_rows
from generator.tasks.detection.head import add_head
from generator.tasks.detection.reading import Reading
from tests import detectors
from tests.detectors import NAMES, SIZE, literals

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


def export(spec: ModelSpec, folder: Path) -> tuple[Network, OnnxModel, Reading]:
    network = load_network(spec)
    onnx_model, reading = export_onnx(spec, network, make_graph(spec, network), {}, folder)
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
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("batch", ["batch", 1])
def test_each_layout_is_read_and_answers_as_the_untouched_file(name: str, batch: Any, tmp_path: Path) -> None:
    write, labels, options, said, recipe = FILES[name]
    path = write(tmp_path / f"{name}.onnx", batch=batch)
    network, graph, reading = export(spec_of(path, labels, **options), tmp_path / "out")
    assert network.repairs[-1].endswith(f"read as {said}")
    assert network.recipe.crop == (SIZE, SIZE)
    assert {field: getattr(network.recipe, field) for field in recipe} == recipe
    assert network.labels == NAMES
    pixels = images(network)
    assert differ(rows_of(run_graph(graph, pixels)), expected(network, reading, pixels)) == ""


def write_outputs(path: Path, outputs: Mapping[str, NDArray[Any]], opset: int) -> onnx.ModelProto:
    """Return a graph whose inputs are its outputs."""
    nodes, inputs, ends = [], [], []
    for name, values in outputs.items():
        shape = ["batch", *values.shape[1:]]
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        inputs.append(helper.make_tensor_value_info(f"{name}_in", kind, shape))
        ends.append(helper.make_tensor_value_info(name, kind, shape))
        nodes.append(helper.make_node("Identity", [f"{name}_in"], [name]))
    graph = helper.make_graph(nodes, "outputs", inputs, ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run_head(reading: Reading, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], opset: int) -> Rows:
    import onnxruntime

    model = write_outputs(Path(), outputs, opset)
    add_head(model, reading, size)
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
    layout = draw(st.sampled_from(["raw", "objectness", "end2end", "three", "scores", "logits"]))
    count, anchors, classes = (draw(st.integers(1, most)) for most in (3, 30, 5))
    background = draw(st.none() | st.integers(0, classes)) if layout in ("scores", "logits") else None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def floats(*shape: int) -> NDArray[np.float32]:
        return rng.uniform(0, 1, (count, *shape)).astype(np.float32)

    columns = classes + (background is not None)
    numbers = rng.integers(0, classes, (count, anchors))
    outputs: dict[str, NDArray[Any]] = {
        "raw": lambda: {"output": floats(4 + classes, anchors)},
        "objectness": lambda: {"output": floats(anchors, 5 + classes)},
        "end2end": lambda: {"output": np.concatenate([floats(anchors, 5), numbers[..., None].astype(np.float32)], 2)},
        "three": lambda: {"boxes": floats(anchors, 4), "scores": floats(anchors), "labels": numbers},
        "scores": lambda: {"boxes": floats(anchors, 4), "scores": floats(anchors, columns)},
        "logits": lambda: {"boxes": floats(anchors, 4), "scores": floats(anchors, columns) * 8 - 4},
    }[layout]()
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
