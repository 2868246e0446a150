"""Small ONNX classifiers, right ones and ones broken in one way each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4


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

    `tail` is "none", "softmax" or "mix" (rows of a batch influence each other); `reshape_batch` bakes a batch into
    a Reshape node called `flatten`.
    """
    rng = np.random.default_rng(seed)
    channels = 16
    weights = {
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
        nodes.append(helper.make_node("Reshape", ["pooled", "flat_shape"], ["features"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["features", "linear_weight", "linear_bias"], ["raw"], name="linear"))
    if tail == "softmax":
        nodes.append(helper.make_node("Softmax", ["raw"], ["scores"], name="softmax", axis=1))
    elif tail == "mix":
        nodes.append(helper.make_node("Softmax", ["raw"], ["scores"], name="mix", axis=0))
    else:
        nodes.append(helper.make_node("Identity", ["raw"], ["scores"], name="scores"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path
