"""A graph of an old opset, raised by onnx's own converter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.graph.model import default_opset
from generator.graph.shapes import large_weights, without_weights

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from generator.graph.shapes import Shapes

# From here on Softmax is over one axis only, and onnxruntime and every TensorRT since 8.6 read it. Not a newer one: the
# fewer versions lie between, the fewer operators are rewritten.
OLDEST_OPSET = 13
_HINT = "export it again with opset 17 (opset_version=17 in torch and Paddle, --opset 17 in tf2onnx)"


def raise_old_opset(model: onnx.ModelProto, path: Path, shapes: Shapes) -> onnx.ModelProto:
    """Return the model in opset 13 at least; `path` is for errors.

    Raises:
        SourceError: onnx cannot convert an operator, which is named.
    """
    opset = default_opset(model)
    if opset >= OLDEST_OPSET:
        return model
    light = without_weights(model)
    unchanged = _hide_softmax(light.graph, shapes)
    if reason := _why_not(light):
        node = _first_in_the_way(light)
        msg = (
            f"{path} has opset {opset}, at least {OLDEST_OPSET} was expected, and onnx's converter stops at node "
            f"{node.name or node.output[0]} ({node.op_type}): {reason}"
        )
        raise SourceError(msg, hint=_HINT)
    converted = _convert(light)
    graph = converted.graph
    for node in graph.node:
        if node.output[0] in unchanged:
            node.CopyFrom(unchanged[node.output[0]])
    weights = set(large_weights(model))
    inputs = [tensor for tensor in graph.input if tensor.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in weights)
    return converted


def _hide_softmax(graph: onnx.GraphProto, shapes: Shapes) -> dict[str, onnx.NodeProto]:
    """Put Identity for each Softmax over the last axis, by its output what it is in new opsets: the same.

    The converter would put it between Flatten and Reshape, behind which it is no longer found at the graph's end.
    """
    from onnx import helper

    unchanged = {}
    for node in graph.node:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        rank = len(shapes.get(node.input[0]) or ()) if node.op_type in ("Softmax", "LogSoftmax") else 0
        if rank and axis in (-1, rank - 1):
            unchanged[node.output[0]] = helper.make_node(node.op_type, node.input, node.output, name=node.name, axis=-1)
            node.CopyFrom(helper.make_node("Identity", node.input, node.output, name=node.name))
    return unchanged


def _convert(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import version_converter

    converted: onnx.ModelProto = version_converter.convert_version(model, OLDEST_OPSET)
    return converted


def _why_not(model: onnx.ModelProto) -> str:
    """Return what the converter says against the model, empty if it takes it."""
    from onnx import shape_inference, version_converter

    try:
        _convert(model)
    except (RuntimeError, version_converter.ConvertError, shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())
        return re.sub(r"^\S+:\d+: \S+: Assertion `.*?` failed: ", "", text)
    return ""


def _first_in_the_way(model: onnx.ModelProto) -> Any:
    """Return the first node with which the converter stops: it takes the nodes before it alone."""
    import onnx

    nodes = model.graph.node
    taken, refused = 0, len(nodes)
    while refused - taken > 1:
        middle = (taken + refused) // 2
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.graph.node[middle:]
        del part.graph.output[:]
        part.graph.output.append(onnx.ValueInfoProto(name=nodes[middle - 1].output[0]))
        if _why_not(part):
            refused = middle
        else:
            taken = middle
    return nodes[refused - 1]
