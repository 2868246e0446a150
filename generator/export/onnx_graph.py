"""The user's ONNX graph -> the same with pixels in front and the activation behind."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from generator.errors import ExportError
from generator.export.names import INPUT_NAME, NEWEST_OPSET_OF_8, OUTPUT_NAMES
from generator.onnx_model import OnnxModel, ends_in_softmax, load_proto, read_onnx
from generator.sources.onnx_file import image_axes

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from generator.recipe import Recipe
    from generator.spec import ModelSpec

__all__ = ["wrap_file"]

_LOG = logging.getLogger(__name__)


def wrap_file(spec: ModelSpec, path: Path, recipe: Recipe) -> onnx.ModelProto:
    """Return the user's graph with cast, transpose and normalisation before it and the activation behind it.

    Raises:
        ExportError: The graph's own end contradicts the spec's activation, or its opset is too new for the target.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    proto = load_proto(path)
    source = read_onnx(path)
    if spec.target == "tensorrt-8.6" and source.opset > NEWEST_OPSET_OF_8:
        msg = f"{path} has opset {source.opset}, TensorRT 8.6 reads {NEWEST_OPSET_OF_8} at most"
        raise ExportError(msg, hint=f"export it with opset {NEWEST_OPSET_OF_8}, or take a newer TensorRT as the target")
    graph = proto.graph
    if not spec.raw:
        layout, _ = image_axes(source)
        shape = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
        std, mean = np.asarray(recipe.std, np.float32), np.asarray(recipe.mean, np.float32)
        graph.initializer.append(numpy_helper.from_array((1 / (255 * std)).reshape(shape), "trtgen_scale"))
        graph.initializer.append(numpy_helper.from_array((-mean / std).reshape(shape), "trtgen_shift"))
        nodes = [helper.make_node("Cast", [INPUT_NAME], ["trtgen_cast"], name="trtgen_cast", to=TensorProto.FLOAT)]
        if layout == "NCHW":
            nodes.append(
                helper.make_node("Transpose", ["trtgen_cast"], ["trtgen_nchw"], name="trtgen_nchw", perm=[0, 3, 1, 2])
            )
        scaled_from = nodes[-1].output[0]
        nodes.append(helper.make_node("Mul", [scaled_from, "trtgen_scale"], ["trtgen_scaled"], name="trtgen_scaled"))
        nodes.append(
            helper.make_node("Add", ["trtgen_scaled", "trtgen_shift"], [source.input.name], name="trtgen_normalised")
        )
        for index, node in enumerate(nodes):
            graph.node.insert(index, node)
        kept = [tensor for tensor in graph.input if tensor.name != source.input.name]
        pixels = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", *recipe.crop, 3])
        del graph.input[:]
        graph.input.extend([pixels, *kept])
    _add_activation(spec, proto, source)
    return proto


def _add_activation(spec: ModelSpec, proto: onnx.ModelProto, source: OnnxModel) -> None:
    from onnx import TensorProto, helper

    graph = proto.graph
    inside = ends_in_softmax(proto, source.output.name)
    if inside and spec.activation == "sigmoid":
        msg = f"{source.path} ends in a Softmax, but activation is sigmoid"
        raise ExportError(msg, hint="leave activation out: the probabilities are served as they are")
    if inside:
        _LOG.info("%s already ends in a Softmax: none is added", source.path.name)
    operator = None if inside else {"softmax": "Softmax", "sigmoid": "Sigmoid", "none": "Identity"}[spec.activation]
    name = OUTPUT_NAMES["softmax" if inside else spec.activation]
    last = helper.make_node(operator or "Identity", [source.output.name], [name], name="trtgen_activation")
    if operator == "Softmax":
        last.attribute.append(helper.make_attribute("axis", 1))
    if source.output.name != name:
        graph.node.append(last)
        graph.output[0].CopyFrom(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *source.output.shape[1:]])
        )
    elif operator != "Identity" and not inside:
        msg = f"{source.path}: its output is called {name} already, though it ends in no {operator}"
        raise ExportError(msg, hint="set activation: none if these are probabilities")
