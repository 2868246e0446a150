"""Where Q/DQ pairs go so that TensorRT fuses: a pure function of the graph.

The rules are those of NVIDIA's "Q/DQ layer-placement recommendations":

- every Conv, Gemm and MatMul with stored weights gets its input and its weights quantized, never its output: between
  Conv and Relu (or Sigmoid and Mul, or Clip) a pair would keep them apart;
- of an Add behind a convolution, the other input is quantized too (the shortcut of a residual block). Conv, Add and
  Relu then are one INT8 kernel; with a floating-point shortcut its output would be floating-point;
- pooling moves INT8 where its input is quantized, and MaxPool has the same scale in front and behind;
- one Q per tensor, and one DQ for each node that reads it as INT8. Nodes in higher precision read the tensor itself.

Not quantized: head and tail, the last layer, of a detector the last ones (they decide between the classes, say where
boxes are, and cost nothing), convolutions on 1x1
maps behind a global pooling (squeeze-excitation: a millionth of the work), and what `keep` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.graph.precision.view import GraphView, find_head, find_last_layers, find_tail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_POOLS = frozenset({"MaxPool", "AveragePool"})
# What only moves or copies values: it stands between a pooling and the layer that uses it.
_MOVERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Gather", "Dropout", "Transpose"})
_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Mul", "HardSigmoid", "HardSwish", "Clip", "LeakyRelu", "Elu", "Tanh"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSite:
    """A stored weight to quantize: the node that takes it as input `index`, with a scale for each slice of `axis`."""

    node: str
    index: int
    tensor: str
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`edges` says which nodes read a tensor as INT8, `twins` which tensor shares another one's scale.

    `kept` has a reason for every Conv, Gemm and MatMul that is not quantized.
    """

    edges: Mapping[str, tuple[str, ...]]
    weights: tuple[WeightSite, ...]
    twins: Mapping[str, str]
    kept: Mapping[str, str]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The Conv, Gemm and MatMul nodes that compute in INT8."""
        return tuple(site.node for site in self.weights)


def place(view: GraphView, kept: Iterable[str] = ()) -> Placement:
    """Choose the tensors, weights and nodes to quantize; `kept` are names of nodes that stay as they are."""
    spared = {*find_head(view), *find_tail(view)}
    reasons = dict.fromkeys(kept, "keep")
    sites = _choose_weights(view, spared, reasons)
    edges: dict[str, list[str]] = {}
    twins: dict[str, str] = {}

    def read_as_int8(tensor: str, node: Any) -> None:
        readers = edges.setdefault(tensor, [])
        if node.name not in readers:
            readers.append(node.name)

    quantized = {site.node for site in sites}
    for site in sites:
        node = view.nodes[site.node]
        read_as_int8(node.input[0], node)
    free = [node for node in view.graph.node if node.name not in spared and node.name not in reasons]
    for node in free:
        if node.op_type == "Add" and (shortcut := _shortcut(view, node, quantized)):
            read_as_int8(shortcut, node)
    for node in reversed(free):
        if (node.op_type in _POOLS or _is_global_pool(view, node)) and _pools_int8(view, node, quantized, edges):
            read_as_int8(node.input[0], node)
            if node.op_type == "MaxPool" and node.output[0] in edges:
                twins[node.output[0]] = node.input[0]
    order = {name: position for position, name in enumerate(_tensors_in_order(view))}
    return Placement(
        edges={tensor: tuple(edges[tensor]) for tensor in sorted(edges, key=lambda name: order[name])},
        weights=tuple(sites),
        twins=twins,
        kept=reasons,
    )


def _choose_weights(view: GraphView, spared: set[str], reasons: dict[str, str]) -> list[WeightSite]:
    """Return the weights to quantize; every other weighted node gets its reason into `reasons`."""
    import onnx

    weighted = [node for node in view.graph.node if node.op_type in _WEIGHTED and node.name not in spared]
    several = len(view.graph.output) > 1
    last = find_last_layers(view) if several else [node.name for node in weighted[-1:]]
    sites = []
    for node in weighted:
        if node.name in reasons:
            continue
        index = 1
        tensor = view.constants.get(node.input[index])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or node.input[0] in view.constants:
            reasons[node.name] = "its weights are computed"
        elif len(tensor.dims) < 2:
            reasons[node.name] = "its weights are no matrix"
        elif node.name in last:
            reasons[node.name] = "the last layer"
        elif _behind_global_pool(view, node):
            reasons[node.name] = "works on 1x1 maps"
        else:
            sites.append(WeightSite(node=node.name, index=index, tensor=tensor.name, axis=_axis(node, tensor)))
    return sites


def _axis(node: Any, tensor: Any) -> int:
    """Return the axis of a weight along which the output's channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return len(tensor.dims) - 1


def _behind_global_pool(view: GraphView, node: Any) -> bool:
    """Say whether a Conv's input is an image of one pixel: between it and a global pooling nothing enlarges it.

    Linear layers behind the pooling are not meant: there a network may have most of its weights.
    """
    if node.op_type != "Conv":
        return False
    tensor = node.input[0]
    while (maker := view.producers.get(tensor)) is not None:
        if _is_global_pool(view, maker):
            return True
        if maker.op_type == "Mul" and len(view.activations(maker)) == 2:
            # x * sigmoid(x) has the size of x; a gate that scales a whole map has not
            one, other = (view.producers.get(name) for name in view.activations(maker))
            gate = other if other is not None and other.op_type in ("Sigmoid", "HardSigmoid") else one
            if gate is None or gate.input[0] not in maker.input:
                return False
        elif maker.op_type not in _MOVERS | _ACTIVATIONS and not _is_pointwise(maker):
            return False
        tensor = maker.input[0]
    return False


def _is_global_pool(view: GraphView, node: Any) -> bool:
    """Say whether a node averages over height and width (a ReduceMean may also belong to a normalisation)."""
    from onnx import numpy_helper

    if node.op_type != "ReduceMean":
        return bool(node.op_type == "GlobalAveragePool")
    axes = [int(axis) for item in node.attribute if item.name == "axes" for axis in item.ints]
    if len(node.input) > 1 and node.input[1] in view.constants:
        axes = [int(axis) for axis in numpy_helper.to_array(view.constants[node.input[1]])]
    return set(axes) in ({2, 3}, {-1, -2})


def _is_pointwise(node: Any) -> bool:
    """Say whether a node is a convolution with a 1x1 kernel."""
    if node.op_type != "Conv":
        return False
    kernel: list[int] = next((list(item.ints) for item in node.attribute if item.name == "kernel_shape"), [])
    return set(kernel) <= {1}


def _shortcut(view: GraphView, add: Any, quantized: set[str]) -> str | None:
    """Return the input of an Add that is to be quantized: the one that is not computed by the fused convolution.

    None where no input comes straight from a quantized convolution that only this Add reads.
    """
    given = view.activations(add)
    if len(given) != 2:
        return None
    fusable = [
        name
        for name in given
        if (maker := view.producers.get(name)) is not None
        and maker.op_type == "Conv"
        and maker.name in quantized
        and len(view.readers(name)) == 1
    ]
    if not fusable:
        return None
    # of two convolutions, as where a block changes its width, the later one is fused
    fused = max(fusable, key=lambda name: view.positions[view.producers[name].name])
    return next(name for name in given if name != fused)


def _pools_int8(view: GraphView, pool: Any, quantized: set[str], edges: Mapping[str, list[str]]) -> bool:
    """Whether a pooling is to read INT8: its input comes from a quantized layer, and no node reads it as a float."""
    tensor = pool.input[0]
    if not _made_by_quantized(view, tensor, quantized):
        return False
    others = [node for node in view.readers(tensor) if node.name != pool.name]
    return all(node.name in edges.get(tensor, ()) for node in others)


def _made_by_quantized(view: GraphView, tensor: str, quantized: set[str]) -> bool:
    """Say whether a tensor is a quantized layer's output, looking through the activation and the residual Add."""
    front = [tensor]
    for _ in range(6):  # activation, Add, and the two nodes of x * sigmoid(x)
        makers = [maker for name in front if (maker := view.producers.get(name)) is not None]
        if any(maker.name in quantized for maker in makers):
            return True
        front = [
            name
            for maker in makers
            if maker.op_type in _ACTIVATIONS or maker.op_type in ("Add", "MaxPool")
            for name in view.activations(maker)
        ]
    return False


def _tensors_in_order(view: GraphView) -> list[str]:
    names = [tensor.name for tensor in view.graph.input]
    for node in view.graph.node:
        names += node.output
    return names
