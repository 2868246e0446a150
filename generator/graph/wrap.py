"""What is put around a network's graph: pixels in front of the user's own, the activation behind every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.graph.as_is import check_quantization, fit_to_8
from generator.graph.model import describe_graph, graph_inputs, image_axes
from generator.graph.names import INPUT_NAME

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import onnx

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

_OUR_NAMES = frozenset(
    {INPUT_NAME, "PROBABILITIES", "LOGITS", "trtgen_cast", "trtgen_nchw", "trtgen_scale", "trtgen_shift",
     "trtgen_scaled", "trtgen_normalised", "trtgen_order", "trtgen_bgr", "trtgen_scores"}
)  # fmt: skip


def wrap_file(
    spec: ModelSpec, proto: onnx.ModelProto, recipe: Recipe, *, path: Path
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph with cast, transpose and normalisation before it, as far as it takes no pixels itself.

    Also return how it was changed for TensorRT 8.6. It is changed in place; `path` is the file that it is of.

    Raises:
        ExportError: It is quantised as no TensorRT reads it, or its opset is too new for the target.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    source = describe_graph(proto, path)
    if spec.is_tensorrt:
        check_quantization(proto, path)
    fitted: list[str] = []
    if spec.target == "tensorrt-8.6":
        proto, fitted = fit_to_8(proto, path)
    if spec.raw:
        rename_tensors(proto.graph, _OUR_NAMES - {source.input.name})
        return proto, fitted
    rename_tensors(proto.graph, _OUR_NAMES)
    graph = proto.graph
    image = graph_inputs(proto)[0].name
    layout, _ = image_axes(source)
    shape = (1, -1, 1, 1) if layout == "NCHW" else (1, 1, 1, -1)
    for name, values in zip(("trtgen_scale", "trtgen_shift"), recipe.as_scale_and_shift(), strict=True):
        graph.initializer.append(numpy_helper.from_array(values.reshape(shape), name))
    nodes = [helper.make_node("Cast", [INPUT_NAME], ["trtgen_cast"], name="trtgen_cast", to=TensorProto.FLOAT)]
    if layout == "NCHW":
        nodes.append(
            helper.make_node("Transpose", ["trtgen_cast"], ["trtgen_nchw"], name="trtgen_nchw", perm=[0, 3, 1, 2])
        )
    if recipe.channels == "BGR":
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "trtgen_order"))
        axis = 1 if layout == "NCHW" else 3
        nodes.append(
            helper.make_node(
                "Gather", [nodes[-1].output[0], "trtgen_order"], ["trtgen_bgr"], name="trtgen_bgr", axis=axis
            )
        )
    scaled_from = nodes[-1].output[0]
    nodes.append(helper.make_node("Mul", [scaled_from, "trtgen_scale"], ["trtgen_scaled"], name="trtgen_scaled"))
    nodes.append(helper.make_node("Add", ["trtgen_scaled", "trtgen_shift"], [image], name="trtgen_normalised"))
    if (taken := source.input.data_type.onnx) != TensorProto.FLOAT:
        nodes[-1].output[0] = "trtgen_normalised"
        nodes.append(helper.make_node("Cast", ["trtgen_normalised"], [image], name="trtgen_half", to=taken))
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    kept = [tensor for tensor in graph.input if tensor.name != image]
    pixels = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", *recipe.shape])
    del graph.input[:]
    graph.input.extend([pixels, *kept])
    return proto, fitted


def rename_tensors(graph: onnx.GraphProto, names: AbstractSet[str]) -> None:
    """Give the tensors of the graph that have one of `names` another one."""
    from onnx import compose

    taken = {name for node in graph.node for name in (*node.input, *node.output)}

    def free(name: str) -> str:
        new = f"{name}_source"
        return free(new) if new in taken else new

    # an empty prefix changes no name; only the map does, in the graphs inside nodes, too
    compose.add_prefix_graph(
        graph,
        "",
        rename_edges=False,
        rename_inputs=False,
        rename_outputs=False,
        rename_initializers=False,
        rename_value_infos=False,
        inplace=True,
        name_map={name: free(name) for name in names},
    )
