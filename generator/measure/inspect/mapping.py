"""Which ONNX nodes became which layer of the engine.

TensorRT's `Metadata` says it where it is there. Else it follows from the layers' names, which TensorRT makes of those
of the nodes: `Conv_0 + Relu_1`, `PWN(PWN(a), b)`, `a || b`, `{ForeignNode[a...b]}`; for a region of generated kernels
from the tensors that go in and come out. Whatever does not come from `Metadata` is marked as inferred.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from generator.measure.inspect.layers import Layer
    from generator.measure.inspect.nodes import OnnxGraph, OnnxNode

_FOREIGN = re.compile(r"^\{ForeignNode\[(.*)\]\}$", re.DOTALL)
_REFORMAT = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ to |^Reformatting CopyNode for ")
# What TensorRT puts around or behind the name of a node when it makes further layers of it.
_AROUND = re.compile(r"^(?:reshape_before_|reshape_after_|squeeze_after_|unsqueeze_node_after_|copied_squeeze_after_)")
_BEHIND = re.compile(r"(?:_myl\d+_\d+|_clone_\d+|_\d+)$")
_QUANTIZED = "folded into the layers around it, which compute in INT8"
_SHAPE_ONLY = "changes the shape only: no data moves, or a neighbour reads it in the other order"
_REASONS = {
    "QuantizeLinear": _QUANTIZED,
    "DequantizeLinear": _QUANTIZED,
    "Identity": "does nothing at inference",
    "Dropout": "does nothing at inference",
    "Cast": "folded into the type that a neighbour reads or writes",
    "BatchNormalization": "folded into the weights of the convolution before it",
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), _SHAPE_ONLY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a layer comes from. `source` is one of metadata, name, tensors, region, none.

    `parts` are those parts of the layer's name that are not ONNX nodes: weights, and layers of TensorRT's own.
    """

    nodes: tuple[str, ...]
    source: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Eliminated:
    """A node that no layer is made of, and the usual reason for its operator."""

    node: str
    operator: str
    reason: str


@dataclass(slots=True)
class _Names:
    """The graph's nodes by name, and by what TensorRT makes of a name."""

    graph: OnnxGraph
    exact: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = Counter(_plain(node.name) for node in self.graph.nodes)
        self.exact = name_nodes(self.graph)
        for node in self.graph.nodes:
            if counts[_plain(node.name)] == 1:
                self.plain[_plain(node.name)] = node.name

    def find(self, name: str) -> str | None:
        """Return the node that a part of a layer's name means, without what TensorRT adds around it."""
        tried = {name, _AROUND.sub("", name)}
        while tried:
            for candidate in sorted(tried, key=len, reverse=True):
                found = self.exact.get(candidate) or self.plain.get(_plain(candidate))
                if found is not None:
                    return found
            tried = {_BEHIND.sub("", candidate) for candidate in tried} - tried
        return None


def name_nodes(graph: OnnxGraph) -> dict[str, str]:
    """Return the nodes' names by themselves, and by the parser's names for nodes that have none."""
    found = {node.name: node.name for node in graph.nodes}
    for node in graph.nodes:
        for output in node.outputs:
            found.setdefault(f"node_of_{output}", node.name)
    return found


def split_name(name: str) -> list[str]:
    """Return the names that a layer's name is made of, `PWN(...)` unpacked, a region as one."""
    found = []
    for part in _split_top(name, (" + ", " || ")):
        if part.startswith("PWN(") and part.endswith(")"):
            for inner in _split_top(part[4:-1], (", ",)):
                found += split_name(inner)
        elif part:
            found.append(part)
    return found


def map_layers(layers: Sequence[Layer], graph: OnnxGraph | None) -> tuple[Origin, ...]:
    """Return the origin of each layer. Without a graph the parts of a name are taken for nodes as they stand."""
    names = _Names(graph) if graph else None
    origins = [_read_origin(layer, names) for layer in layers]
    if graph is None:
        return tuple(origins)
    aliases = _reformatted(layers)
    claimed = {node for origin in origins for node in origin.nodes}
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    for index, layer in enumerate(layers):
        if origins[index].nodes or layer.kind in ("reformat", "no-op"):
            continue
        nodes, source = _find_between(layer, graph, aliases), "tensors"
        if not nodes:
            nodes, source = _find_region(layer, graph, names, claimed), "region"
        if nodes:
            ordered = tuple(sorted(nodes, key=position.__getitem__))
            origins[index] = Origin(nodes=ordered, source=source, parts=origins[index].parts)
    return tuple(origins)


def find_eliminated(layers: Sequence[Layer], origins: Sequence[Origin], graph: OnnxGraph) -> tuple[Eliminated, ...]:
    """Return the nodes that no layer is made of, in the graph's order; `Constant` nodes, which are data, left out."""
    used = {node for origin in origins for node in origin.nodes}
    # a kernel whose origin is unknown may hold any of them
    blind = any(not origin.nodes and layer.kind == "fused" for layer, origin in zip(layers, origins, strict=True))
    return tuple(
        Eliminated(node=node.name, operator=node.operator, reason=_reason(node, blind=blind))
        for node in graph.nodes
        if node.name not in used and node.operator != "Constant"
    )


def _reason(node: OnnxNode, *, blind: bool) -> str:
    if node.constant:
        return "computed while building: all its inputs are constants"
    if node.operator in _REASONS:
        return _REASONS[node.operator]
    return "in no layer's name; perhaps inside a generated kernel" if blind else "in no layer's name: folded or removed"


def _read_origin(layer: Layer, names: _Names | None) -> Origin:
    if layer.metadata:
        told = [(names.find(name) or name) if names else name for name in layer.metadata]
        return Origin(nodes=tuple(dict.fromkeys(told)), source="metadata")
    if layer.kind != "quantize" and (_REFORMAT.match(layer.name) or layer.kind == "reformat"):
        # a Cast node may be a layer of its own, which TensorRT calls a reformat
        found = names.find(layer.name) if names else None
        return Origin(nodes=(found,), source="name") if found else Origin(nodes=(), source="none")
    nodes: list[str] = []
    parts: list[str] = []
    for part in [layer.name] if names and layer.name in names.exact else split_name(layer.name):
        if _FOREIGN.match(part):
            continue
        found = names.find(part) if names else part
        (nodes if found else parts).append(found or part)
    return Origin(nodes=tuple(dict.fromkeys(nodes)), source="name" if nodes else "none", parts=tuple(parts))


def _reformatted(layers: Iterable[Layer]) -> dict[str, str]:
    """Return what each tensor that a reformat made was before."""
    return {
        layer.outputs[0].name: layer.inputs[0].name
        for layer in layers
        if layer.kind in ("reformat", "no-op") and len(layer.inputs) == 1 and len(layer.outputs) == 1
    }


def _find_between(layer: Layer, graph: OnnxGraph, aliases: dict[str, str]) -> set[str]:
    """Return the nodes between a layer's inputs and outputs; none unless all of these are the graph's own tensors."""
    makers = {output: node for node in graph.nodes for output in node.outputs}
    behind = {old: new for new, old in aliases.items()}
    inputs = {_original(tensor.name, aliases) for tensor in layer.inputs}
    todo = []
    for tensor in layer.outputs:
        name = tensor.name if tensor.name in makers else behind.get(tensor.name, "")
        if name not in makers:
            return set()
        todo.append(name)
    if not todo or not inputs or not inputs <= (makers.keys() | set(graph.inputs)):
        return set()
    found: set[str] = set()
    while todo:
        tensor_name = todo.pop()
        if tensor_name in inputs or tensor_name in graph.constants or not tensor_name:
            continue
        if tensor_name not in makers:
            return set()  # reached an input of the graph around the layer's inputs: the tensors do not enclose it
        node = makers[tensor_name]
        if node.name not in found:
            found.add(node.name)
            todo += node.inputs
    return found


def _original(name: str, aliases: dict[str, str]) -> str:
    for _ in range(len(aliases)):
        if name not in aliases:
            break
        name = aliases[name]
    return name


def _find_region(layer: Layer, graph: OnnxGraph, names: _Names | None, claimed: set[str]) -> set[str]:
    """Return the nodes from the first to the last that a region's name gives, without those of other layers."""
    match = next((m for part in split_name(layer.name) if (m := _FOREIGN.match(part))), None)
    if match is None or names is None or "..." not in match[1]:
        return set()
    first, last = match[1].split("...", 1)
    positions = {node.name: index for index, node in enumerate(graph.nodes)}
    end = [positions[found] for part in split_name(last) if (found := names.find(part))]
    if not end:
        return set()
    begin = [positions[found] for part in split_name(first) if (found := names.find(part))]
    if not begin:  # it begins with weights, or with a layer of the parser: with their first reader then
        weights = {re.sub(r"\[Constant\]$", "", part).removesuffix("_output") for part in split_name(first)}
        begin = [index for index, node in enumerate(graph.nodes) if weights & set(node.inputs)]
    start = min(begin, default=max(end))
    return {
        node.name
        for node in graph.nodes[start : max(end) + 1]
        if node.name not in claimed and not node.constant and node.operator != "Constant"
    }


def _plain(name: str) -> str:
    """Return a name as generated kernels spell it: their sources allow few characters."""
    return re.sub(r"[^0-9A-Za-z_/]", "_", name)


def _split_top(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split at separators that stand outside of all brackets."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        character = text[index]
        depth += (character in "([{") - (character in ")]}")
        separator = next((one for one in separators if depth == 0 and text.startswith(one, index)), None)
        if separator is not None:
            parts.append(text[start:index])
            index += len(separator)
            start = index
            continue
        index += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]
