"""EfficientNet's graph written otherwise, with the same answers: what TensorRT may run faster.

Each function takes an FP32 graph as `trtgen export` writes it and returns another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

_GROUP = 8  # channels of a group that tensor cores take at once in FP16


def reduce_means(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the average over an image as ReduceMean in place of GlobalAveragePool."""
    for node in model.graph.node:
        if node.op_type == "GlobalAveragePool":
            node.op_type = "ReduceMean"
            node.attribute.extend([helper.make_attribute("keepdims", 1)])
            if model.opset_import[0].version < 18:
                node.attribute.extend([helper.make_attribute("axes", [2, 3])])
            else:
                node.input.append(_add(model, "reduced_axes", np.array([2, 3], np.int64)))
    return model


def scale_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scale the pixels before they are brought into the order of channels."""
    nodes = {node.op_type: node for node in reversed(model.graph.node)}  # the first of each
    cast, transpose, scale, shift = (nodes[name] for name in ("Cast", "Transpose", "Mul", "Add"))
    assert transpose.input[0] == cast.output[0], "the graph does not begin as trtgen writes it"
    assert (scale.input[0], shift.input[0]) == (transpose.output[0], scale.output[0]), "nor is it scaled behind it"
    end = shift.output[0]
    for node in (scale, shift):
        values = _value(model, node.input[1]).reshape(1, 1, 1, -1)
        node.input[1] = _add(model, f"{node.input[1]}_last", values)
    scale.input[0], shift.input[0], shift.output[0] = cast.output[0], scale.output[0], f"{end}_last"
    transpose.input[0], transpose.output[0] = shift.output[0], end
    model.graph.node.remove(transpose)
    model.graph.node.insert(list(model.graph.node).index(shift) + 1, transpose)
    return model


def multiply_gates(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write squeeze-excitation's two 1x1 convolutions of one pixel as products of matrices."""
    graph = model.graph
    for pool in [node for node in graph.node if node.op_type == "GlobalAveragePool"]:
        convolution = _reader(graph, pool.output[0])
        if convolution is None or convolution.op_type != "Conv":
            continue  # the last one, in front of the classifier
        flat = f"{pool.output[0]}_flat"
        graph.node.insert(list(graph.node).index(pool) + 1, helper.make_node("Flatten", [pool.output[0]], [flat], flat))
        convolution.input[0] = flat
        last = _reader(graph, _activated(graph, convolution.output[0]))
        assert last is not None, "a gate has two convolutions"
        assert last.op_type == "Conv"
        for node in (convolution, last):
            weights = _value(model, node.input[1])
            node.op_type = "Gemm"
            node.input[1] = _add(model, f"{node.input[1]}_matrix", weights[:, :, 0, 0])
            del node.attribute[:]
            node.attribute.extend([helper.make_attribute("transB", 1)])
        sigmoid = _reader(graph, last.output[0])
        assert sigmoid is not None, "a gate ends in a Sigmoid"
        end = sigmoid.output[0]
        sigmoid.output[0] = f"{end}_flat"
        shape = _add(model, f"{end}_shape", np.array([0, -1, 1, 1], np.int64))
        place = list(graph.node).index(sigmoid) + 1
        graph.node.insert(place, helper.make_node("Reshape", [sigmoid.output[0], shape], [end], f"{end}_wide"))
    return model


def group_depthwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write depthwise convolutions as grouped ones of 8 channels each, with zeros: tensor cores may take those."""
    for node in find_depthwise(model):
        weights = _value(model, node.input[1])
        channels = len(weights)
        if channels % _GROUP:
            continue
        wide = np.zeros((channels, _GROUP, *weights.shape[2:]), weights.dtype)
        wide[np.arange(channels), np.arange(channels) % _GROUP] = weights[:, 0]
        node.input[1] = _add(model, f"{node.input[1]}_grouped", wide)
        next(one for one in node.attribute if one.name == "group").i = channels // _GROUP
    return model


def find_depthwise(model: onnx.ModelProto) -> list[Any]:
    """Return the convolutions with a group for each channel."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and any(one.name == "group" and one.i > 1 for one in node.attribute)
        and shapes[node.input[1]][1] == 1
    ]


GRAPHS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "reduce-mean": reduce_means,
    "scaled-first": scale_first,
    "gemm-gates": multiply_gates,
    "grouped-8": group_depthwise,
}


def _value(model: onnx.ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def _add(model: onnx.ModelProto, name: str, values: Any) -> str:
    """Put a constant into the graph unless it has it, and return its name."""
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def _reader(graph: onnx.GraphProto, name: str) -> Any:
    return next((node for node in graph.node if name in node.input), None)


def _activated(graph: onnx.GraphProto, name: str) -> str:
    """Return the output of the SiLU behind a tensor: it times its sigmoid."""
    return next(str(node.output[0]) for node in graph.node if node.op_type == "Mul" and name in node.input)
