"""Small ONNX classifiers, right ones and ones broken in one way each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from generator.graph.export import export_onnx, make_graph
from generator.graph.model import OnnxModel
from generator.sources import Network
from generator.spec.model import ModelSpec

CLASSES = 4
node = helper.make_node
# What makes the output "scores" of the last layer's "raw".
TAILS: dict[str, Callable[[], list[onnx.NodeProto]]] = {
    "none": lambda: [node("Identity", ["raw"], ["scores"], name="scores")],
    "softmax": lambda: [node("Softmax", ["raw"], ["scores"], name="softmax", axis=1)],
    "log-softmax": lambda: [node("LogSoftmax", ["raw"], ["scores"], name="log_softmax", axis=1)],
    "sigmoid": lambda: [node("Sigmoid", ["raw"], ["scores"], name="sigmoid")],
    # behind nodes that only pass it on
    "hidden sigmoid": lambda: [
        node("Sigmoid", ["raw"], ["probabilities"], name="sigmoid"),
        node("Unsqueeze", ["probabilities", "last_axis"], ["wider"]),
        node("Cast", ["wider"], ["double"], to=TensorProto.DOUBLE),
        node("Squeeze", ["double", "last_axis"], ["narrow"]),
        node("Cast", ["narrow"], ["single"], to=TensorProto.FLOAT),
        node("Identity", ["single"], ["scores"]),
    ],
    # a softmax made of other nodes
    "distribution": lambda: [
        node("Softplus", ["raw"], ["positive"]),
        node("ReduceSum", ["positive", "last_axis"], ["sum"]),
        node("Div", ["positive", "sum"], ["scores"]),
    ],
    # rows of a batch influence each other
    "mix": lambda: [node("Softmax", ["raw"], ["scores"], name="mix", axis=0)],
    # in a batch of two only
    "pairs": lambda: [
        node("Shape", ["raw"], ["count"], start=0, end=1),
        node("Equal", ["count", "two"], ["is_pair"]),
        node("Cast", ["is_pair"], ["pair"], to=TensorProto.FLOAT),
        node("ReduceMax", ["raw", "first_axis"], ["highest"], name="rows_of_two"),
        node("Mul", ["highest", "pair"], ["offset"]),
        node("Add", ["raw", "offset"], ["scores"]),
    ],
    # the same image gets another answer each time
    "random": lambda: [
        node("RandomNormalLike", ["raw"], ["noise"], name="noise"),
        node("Add", ["raw", "noise"], ["scores"]),
    ],
    # divided by the image's contrast, which is 0 where all of it has one colour
    "contrast": lambda: [
        node("ReduceMax", ["image", "image_axes"], ["highest"], keepdims=0),
        node("ReduceMin", ["image", "image_axes"], ["lowest"], keepdims=0),
        node("Sub", ["highest", "lowest"], ["range"]),
        node("ReduceMax", ["range", "last_axis"], ["contrast"]),
        node("Div", ["raw", "contrast"], ["scores"]),
    ],
}
_AXES = {"first_axis": [0], "last_axis": [-1], "image_axes": [2, 3], "two": [2]}


def write_tiny_onnx(
    path: Path,
    *,
    layout: str = "NCHW",
    size: int = 32,
    classes: int = CLASSES,
    batch: int | str = "batch",
    tail: str = "none",
    reshape_batch: int | None = None,
    opset: int = 18,
    seed: int = 0,
) -> Path:
    """Write a two-layer classifier: a 5x5 convolution with stride 4, ReLU, mean over the image, a linear layer.

    `tail` is one of TAILS; `reshape_batch` bakes a batch into a Reshape node called `flatten`,
    where it cannot be made free.
    """
    rng = np.random.default_rng(seed)
    channels = 16
    weights: dict[str, Any] = {
        **{name: np.array(axes, np.int64) for name, axes in _AXES.items()},
        "conv_weight": rng.normal(0, 0.3, (channels, 3, 5, 5)).astype(np.float32),
        "conv_bias": rng.normal(0, 0.5, channels).astype(np.float32),
        "linear_weight": rng.normal(0, 4, (channels, classes)).astype(np.float32),
        "linear_bias": rng.normal(0, 0.1, classes).astype(np.float32),
    }
    shape = [batch, 3, size, size] if layout == "NCHW" else [batch, size, size, 3]
    nodes = []
    image = "image"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["image"], ["nchw"], name="to_nchw", perm=[0, 3, 1, 2]))
        image = "nchw"
    nodes += [
        helper.make_node(
            "Conv", [image, "conv_weight", "conv_bias"], ["conv"], name="conv", strides=[4, 4], pads=[2, 2, 2, 2]
        ),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], name="pool"),
    ]
    if reshape_batch is None:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"))
    else:
        weights["flat_shape"] = np.array([reshape_batch, channels], np.int64)
        # computed while it runs, so that nobody can rewrite it
        nodes.append(helper.make_node("Abs", ["flat_shape"], ["computed_shape"], name="compute"))
        nodes.append(helper.make_node("Reshape", ["pooled", "computed_shape"], ["features"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["features", "linear_weight", "linear_bias"], ["raw"], name="linear"))
    nodes += TAILS[tail]()
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weights[name], name) for name in weights if any(name in one.input for one in nodes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def export_graph(spec: ModelSpec, network: Network, folder: Path) -> OnnxModel:
    """Export a network whose head follows from its answers to noise."""
    proto, _ = make_graph(spec, network)
    pixels = np.random.default_rng(2).integers(0, 256, (4, *network.recipe.shape), dtype=np.uint8)
    return export_onnx(spec, network, proto, {"scores": only(network.run(pixels))}, folder)[0]


def only(outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the only output."""
    (values,) = outputs.values()
    return values
