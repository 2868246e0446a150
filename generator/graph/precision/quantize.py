"""FP32 graph + calibration pixels -> graph with Q/DQ pairs, symmetric INT8, as TensorRT fuses it (see `placement`).

Written here and not by onnxruntime's quantizer, which puts a pair on both inputs of every Add and behind every
convolution, so that neither shortcut nor Relu fuse, and which has no FP16 scales. What it is told to do for TensorRT
holds: QInt8, zero point 0, weights per channel, activations per tensor, biases left alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError
from generator.graph.precision.half import to_fp16
from generator.graph.precision.placement import Placement, WeightSite, place
from generator.graph.precision.scales import LEVELS, activation_scales, weight_scales
from generator.graph.precision.types import infer_graph
from generator.graph.precision.value_ranges import collect_histograms
from generator.graph.precision.view import GraphView, raise_opset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import onnx
    from numpy.typing import NDArray

# QuantizeLinear takes FP16 from this version on.
_FP16_OPSET = 19
_SCALE, _ZERO, _INT8 = "_scale", "_zero_point", "_int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """The graph, and what was placed in it."""

    model: onnx.ModelProto
    placement: Placement


def to_int8(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    *,
    kept: Iterable[str] = (),
    fp32: Iterable[str] = (),
    half: bool,
) -> Quantized:
    """Return the graph with Q/DQ pairs; `kept` nodes are not quantized.

    With `half`, what is not INT8 becomes FP16 but for the nodes in `fp32`, and the opset at least 19 (TensorRT 10 and
    later). Without, it stays FP32, and weights are FP32 behind a pair of their own, which TensorRT 8.6 folds.

    Raises:
        ExportError: Nothing to quantize, or scales that collapse.
    """
    view = GraphView.of(model)
    placement = place(view, kept)
    if not placement.weights:
        msg = f"nothing to quantize: of Conv, Gemm and MatMul nodes the graph has only {_kept(placement)}"
        raise ExportError(msg, hint="take fp16, or fewer nodes in keep")
    # twins are never read, so their values need not be observed
    observed = [name for name in placement.edges if name not in placement.twins]
    dtype = "float16" if half else "float32"
    histograms = collect_histograms(model, observed, pixels)
    scales = activation_scales(histograms, placement.edges, dtype=dtype)
    for twin, other in reversed(list(placement.twins.items())):
        scales[twin] = scales[other]
    weights = {site: _quantize_weight(view, site, dtype) for site in placement.weights}
    result = raise_opset(to_fp16(model, fp32), _FP16_OPSET) if half else _copy(model)
    _insert(result, placement, scales, weights, dtype)
    return Quantized(model=result, placement=placement)


def _kept(placement: Placement) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in placement.kept.items()) or "none"


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def _quantize_weight(view: GraphView, site: WeightSite, dtype: str) -> tuple[NDArray[Any], NDArray[np.int8]]:
    import numpy as np
    from onnx import numpy_helper

    weights = numpy_helper.to_array(view.constants[site.tensor])
    scales = weight_scales(site.tensor, weights, site.axis, dtype=dtype)
    shape = [-1 if index == site.axis else 1 for index in range(weights.ndim)]
    steps = np.rint(weights.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    return scales, steps.clip(-LEVELS, LEVELS).astype(np.int8)


def _insert(
    model: onnx.ModelProto,
    placement: Placement,
    scales: Mapping[str, float],
    weights: Mapping[WeightSite, tuple[NDArray[Any], NDArray[np.int8]]],
    dtype: str,
) -> None:
    """Put the pairs into the graph, each before the node that reads it, so that the order stays right."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    before: dict[str, list[Any]] = defaultdict(list)
    nodes = {node.name: node for node in graph.node}
    positions = {node.name: position for position, node in enumerate(graph.node)}
    for tensor, readers in placement.edges.items():
        scale, zero = f"{tensor}{_SCALE}", f"{tensor}{_ZERO}"
        graph.initializer.append(numpy_helper.from_array(np.array(scales[tensor], dtype), scale))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
        first = min(readers, key=lambda name: positions[name])
        quantize = helper.make_node(
            "QuantizeLinear", [tensor, scale, zero], [f"{tensor}{_INT8}"], name=f"{tensor}_QuantizeLinear"
        )
        before[first].append(quantize)
        for reader in readers:
            output = f"{tensor}_for_{reader}"
            before[reader].append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{tensor}{_INT8}", scale, zero],
                    [output],
                    name=f"{reader}_{tensor}_DequantizeLinear",
                )
            )
            node = nodes[reader]
            node.input[:] = [output if name == tensor else name for name in node.input]
    for site, (steps, values) in weights.items():
        before[site.node] += _weight_nodes(graph, site, steps, values, fold=dtype == "float16")
        nodes[site.node].input[site.index] = f"{site.tensor}_for_{site.node}"
    ordered = []
    for node in graph.node:
        # the Q of a tensor must come before its DQs
        ordered += sorted(before[node.name], key=lambda pair: pair.op_type == "DequantizeLinear")
        ordered.append(node)
    copied = [_copy_node(node) for node in ordered]
    del graph.node[:]
    graph.node.extend(copied)
    _drop_unread(graph)


def _weight_nodes(
    graph: onnx.GraphProto, site: WeightSite, scales: NDArray[Any], values: NDArray[np.int8], *, fold: bool
) -> list[Any]:
    """Return the nodes that make a weight: DQ of an INT8 constant, or (not `fold`) Q and DQ of the FP32 one."""
    import numpy as np
    from onnx import helper, numpy_helper

    name = f"{site.tensor}_axis{site.axis}"
    scale, zero, stored = f"{name}{_SCALE}", f"{name}{_ZERO}", f"{name}{_INT8}"
    existing = {tensor.name for tensor in graph.initializer}
    if scale not in existing:
        graph.initializer.append(numpy_helper.from_array(scales, scale))
        graph.initializer.append(numpy_helper.from_array(np.zeros(scales.shape, np.int8), zero))
        if fold:
            graph.initializer.append(numpy_helper.from_array(values, stored))
    nodes = []
    if not fold:
        stored = f"{stored}_for_{site.node}"
        nodes.append(
            helper.make_node(
                "QuantizeLinear",
                [site.tensor, scale, zero],
                [stored],
                name=f"{site.node}_weight_QuantizeLinear",
                axis=site.axis,
            )
        )
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [stored, scale, zero],
            [f"{site.tensor}_for_{site.node}"],
            name=f"{site.node}_weight_DequantizeLinear",
            axis=site.axis,
        )
    )
    return nodes


def _copy_node(node: Any) -> Any:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Take out the constants that are no longer read."""
    read = {name for node in graph.node for name in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    copies = []
    for tensor in used:
        copy = type(tensor)()
        copy.CopyFrom(tensor)
        copies.append(copy)
    del graph.initializer[:]
    graph.initializer.extend(copies)


def size_global_pools(model: onnx.ModelProto) -> list[str]:
    """Give each global average pooling that reads INT8 its size, in place: TensorRT 8.6 pools INT8 in windows only.

    Return the names of the nodes.

    It takes the global one for a reduction, hands that to its compiler together with the residual Add before it, and
    then finds no INT8 kernel ("cannot be quantized by ..._QuantizeLinear"). Of an unknown size it stays as it is.
    """
    import onnx

    sized = []
    makers = {output: node for node in model.graph.node for output in node.output}
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infer_graph(model).value_info
    }
    for node in model.graph.node:
        if node.op_type != "GlobalAveragePool":
            continue
        maker, edges = makers.get(node.input[0]), shapes.get(node.input[0], [])[2:]
        if maker is not None and maker.op_type == "DequantizeLinear" and edges and all(edges):
            node.op_type = "AveragePool"
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", edges))
            sized.append(node.name or node.output[0])
    return sized
