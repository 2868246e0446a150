"""A served detector whose right answer is known: where a picture is red, green or blue, staged as a build stages it.

Preprocessing, post-processing and the ensemble are the product's own; the network is a graph of a few nodes. It answers
six rows for an image: the bounding box of what is red (score 0.9), green (0.8) and blue (0.7), and each again a pixel
to the right and below (0.6, 0.5, 0.4), which NMS drops. A picture that is white all over gets boxes that are NaN.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from generator.artifact import Artifact
from generator.graph.model import read_onnx
from generator.repository import Layout
from generator.repository.stage import stage_files
from generator.spec.model import ModelSpec
from generator.spec.recipe import Recipe
from generator.tasks.detection.reading import Reading

LABELS = ("red", "green", "blue thing")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue thing": (0, 0, 255)}
SCORES = {"red": 0.9, "green": 0.8, "blue thing": 0.7}
SIDE = 64
_GREY = (90, 90, 90)
_READING = Reading(
    layout="raw", boxes="xyxy", units="pixels", background=None, tensors=("output0",), classes=3, candidates=6
)


def make_colour_detector(path: Path, side: int = SIDE) -> Path:
    """Write the graph PIXELS -> DET_BOXES [B, 6, 4], DET_SCORES [B, 6], DET_CLASSES [B, 6]."""
    node = helper.make_node
    nodes = [
        node("Cast", ["PIXELS"], ["values"], to=TensorProto.FLOAT),
        node("MatMul", ["values", "contrast"], ["pure"]),
        node("Greater", ["pure", "least"], ["is_pure"]),
        node("Cast", ["is_pure"], ["mask"], to=TensorProto.FLOAT),
        *_edge_nodes("x", 1),
        *_edge_nodes("y", 2),
        node("Concat", ["x_low", "y_low", "x_high", "y_high"], ["corners"], axis=2),
        node("Add", ["corners", "pixel"], ["beside"]),
        node("Concat", ["corners", "beside"], ["boxes"], axis=1),
        # NaN where the mean exceeds 250, else 0
        node("ReduceMean", ["values"], ["mean"], axes=[1, 2, 3], keepdims=0),
        node("Sub", ["limit", "mean"], ["below"]),
        node("Sqrt", ["below"], ["root"]),
        node("Mul", ["root", "zero"], ["flaw"]),
        node("Unsqueeze", ["flaw", "last_axes"], ["flaw_of_rows"]),
        node("Add", ["boxes", "flaw_of_rows"], ["DET_BOXES"]),
        node("ReduceMax", ["mask"], ["seen"], axes=[1, 2], keepdims=0),
        node("Concat", ["seen", "seen"], ["rows"], axis=1),
        node("IsNaN", ["flaw"], ["is_flawed"]),
        node("Cast", ["is_flawed"], ["flawed"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["flawed", "last_axis"], ["flawed_rows"]),
        node("Max", ["rows", "flawed_rows"], ["answered"]),
        node("Mul", ["answered", "scores"], ["DET_SCORES"]),
        node("Mul", ["rows", "zero"], ["nothing"]),
        node("Add", ["nothing", "classes"], ["numbers"]),
        node("Cast", ["numbers"], ["DET_CLASSES"], to=TensorProto.INT32),
    ]
    ramp = np.arange(side, dtype=np.float32)[:, np.newaxis]
    constants: dict[str, NDArray[Any]] = {
        "contrast": np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32),
        "least": np.array(80, np.float32),
        "from_low": ramp + 1,
        "from_high": side - ramp,
        "side": np.array(side, np.float32),
        "pixel": np.array(1, np.float32),
        "limit": np.array(250, np.float32),
        "zero": np.array(0, np.float32),
        "last_axis": np.array([1], np.int64),
        "last_axes": np.array([1, 2], np.int64),
        "column": np.array([2], np.int64),
        "scores": np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32),
        "classes": np.array([0, 1, 2, 0, 1, 2], np.float32),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "colours",
        [info("PIXELS", TensorProto.UINT8, ["batch", side, side, 3])],
        [
            info("DET_BOXES", TensorProto.FLOAT, ["batch", 6, 4]),
            info("DET_SCORES", TensorProto.FLOAT, ["batch", 6]),
            info("DET_CLASSES", TensorProto.INT32, ["batch", 6]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _edge_nodes(axis: str, other: int) -> list[onnx.NodeProto]:
    """Nodes that make [B, 3, 1], the first and the last place of each colour on an axis; `other` is the one across."""
    node = helper.make_node
    return [
        node("ReduceMax", ["mask"], [f"{axis}_line"], axes=[other], keepdims=0),
        node("Mul", [f"{axis}_line", "from_low"], [f"{axis}_up"]),
        node("ReduceMax", [f"{axis}_up"], [f"{axis}_end"], axes=[1], keepdims=0),
        node("Unsqueeze", [f"{axis}_end", "column"], [f"{axis}_high"]),
        node("Mul", [f"{axis}_line", "from_high"], [f"{axis}_down"]),
        node("ReduceMax", [f"{axis}_down"], [f"{axis}_start"], axes=[1], keepdims=0),
        node("Sub", ["side", f"{axis}_start"], [f"{axis}_begin"]),
        node("Unsqueeze", [f"{axis}_begin", "column"], [f"{axis}_low"]),
    ]


def build_tiny_detector(
    root: Path, *, name: str = "shapes", max_batch_size: int = 8, recipe: dict[str, Any] | None = None, **detection: Any
) -> Path:
    """Stage the four members of `name` below `root` and return `root`; `detection` are the options of the spec."""
    spec = ModelSpec(
        name=name,
        task="detection",
        source="onnx",
        onnx="colours.onnx",
        detection=detection,
        batch={"max": max_batch_size},
        instances={"preprocess": 1, "detector": 1, "postprocess": 1},
    )
    layout = Layout.of(spec, 1)
    artifact = Artifact(
        onnx=read_onnx(make_colour_detector(root / layout.onnx)),
        head=_READING,
        recipe=make_recipe(**(recipe or {})),
        labels=LABELS,
        description="the picture's colours",
    )
    stage_files(spec, root, layout, artifact, {"artifact": "0" * 64})
    return root


def make_recipe(**changes: Any) -> Recipe:
    """Return YOLO's recipe at 64 pixels, with changes."""
    own = {"fit": "letterbox", "resize": SIDE, "crop": SIDE, "interpolation": "bilinear", "fill": (114, 114, 114)}
    return Recipe.model_validate({**own, "mean": 0.0, "std": 1.0, **changes})


def draw_scene(
    boxes: dict[str, tuple[int, int, int, int]],
    *,
    size: tuple[int, int] = (320, 240),
    ground: tuple[int, int, int] = _GREY,
    encoding: str = "PNG",
    orientation: int | None = None,
) -> bytes:
    """Encode a picture with a rectangle of each colour: left, top, right, bottom in pixels."""
    image = Image.new("RGB", size, ground)
    for label, box in boxes.items():
        image.paste(COLOURS[label], box)
    stream = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(stream, encoding, **({"exif": exif} if orientation is not None else {}))
    return stream.getvalue()
