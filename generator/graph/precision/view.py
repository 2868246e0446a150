"""What both conversions need of an ONNX graph: unique names, who makes and who reads a tensor, head and tail.

The head are the nodes from the UINT8 pixels to the normalised image, the tail is the Softmax or Sigmoid at the end, of
a detector all that decodes its boxes. Both stay in FP32 whatever the precision: they cost nothing, TensorRT takes UINT8
only where it is cast to a float at once, and FP16 has steps of 0.25 to 0.5 pixels above 512.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

# What the head is made of: a cast, a transposition, the order of the channels, and scale and shift with constants.
_HEAD = frozenset({"Cast", "Transpose", "Gather", "Mul", "Add", "Sub", "Div", "Identity"})
_TAIL = frozenset({"Softmax", "Sigmoid", "LogSoftmax", "Identity", "Cast"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# They hand a Softmax on to the convolution that takes the mean of a box's distances (YOLOv8).
_MOVERS = frozenset({"Identity", "Reshape", "Transpose"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphView:
    """Look-ups in a graph that is not changed meanwhile."""

    graph: onnx.GraphProto
    nodes: Mapping[str, Any]
    producers: Mapping[str, Any]
    consumers: Mapping[str, Sequence[Any]]
    constants: Mapping[str, Any]
    positions: Mapping[str, int]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> GraphView:
        """Index a graph whose nodes have unique names (see `normalise_names`)."""
        consumers = defaultdict(list)
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                consumers[name].append(node)
        return cls(
            graph=model.graph,
            nodes={node.name: node for node in model.graph.node},
            producers={output: node for node in model.graph.node for output in node.output},
            consumers=dict(consumers),
            constants={tensor.name: tensor for tensor in model.graph.initializer},
            positions={node.name: position for position, node in enumerate(model.graph.node)},
        )

    def readers(self, tensor: str) -> Sequence[Any]:
        """Return the nodes that take `tensor`."""
        return self.consumers.get(tensor, ())

    def activations(self, node: Any) -> list[str]:
        """Return the inputs of a node that are computed, not stored."""
        return [name for name in node.input if name and name not in self.constants]


def normalise_names(model: onnx.ModelProto) -> None:
    """Name every node uniquely, turn Constant nodes into initializers, and drop inferred shapes, in place.

    Names that are there and unique stay, so that what the user writes in `keep` fits.
    """
    graph = model.graph
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
    seen: set[str] = set()
    for position, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{position}"
        while name in seen:
            name += "_"
        node.name = name
        seen.add(name)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [tensor for tensor in graph.input if tensor.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.value_info[:]


def find_head(view: GraphView) -> list[str]:
    """Return the names of the nodes from the pixels to the normalised image, in order; empty where pixels are floats.

    They begin with the Cast that TensorRT wants behind a UINT8 input.
    """
    import onnx

    pixels = view.graph.input[0]
    if pixels.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        return []
    head, reached = [], {pixels.name}
    for node in view.graph.node:
        computed = view.activations(node)
        if node.op_type in _HEAD and computed and set(computed) <= reached:
            reached.update(node.output)
            head.append(node.name)
    return head


def find_tail(view: GraphView) -> list[str]:
    """Return the names of the nodes behind the last layer: Softmax or Sigmoid, and what only copies.

    Of a graph with several outputs, as a detector is, it is all that no layer follows.
    """
    if len(view.graph.output) > 1:
        followed = _find_followed(view)
        return [node.name for node in view.graph.node if node.name not in followed and not _is_layer(view, node)]
    tail: list[str] = []
    node = view.producers.get(view.graph.output[0].name)
    while node is not None and node.op_type in _TAIL:
        tail.append(node.name)
        node = view.producers.get(node.input[0])
    return tail if any(view.nodes[name].op_type not in ("Identity", "Cast") for name in tail) else []


def find_last_layers(view: GraphView) -> list[str]:
    """Return the names of the layers that no other follows."""
    followed = _find_followed(view)
    return [node.name for node in view.graph.node if node.name not in followed and _is_layer(view, node)]


def _find_followed(view: GraphView) -> set[str]:
    """Return the names of the nodes that a layer follows, directly or not."""
    followed: set[str] = set()
    for node in reversed(view.graph.node):
        readers = [reader for output in node.output for reader in view.readers(output)]
        if any(reader.name in followed or _is_layer(view, reader) for reader in readers):
            followed.add(node.name)
    return followed


def _is_layer(view: GraphView, node: Any) -> bool:
    """Say whether a node is a layer; a convolution of a Softmax is the mean of a distribution and belongs to a head."""
    maker = view.producers.get(node.input[0]) if node.op_type == "Conv" else None
    while maker is not None and maker.op_type in _MOVERS:
        maker = view.producers.get(maker.input[0])
    return node.op_type in _LAYERS and (maker is None or maker.op_type != "Softmax")


def find_kept(view: GraphView, patterns: Iterable[str]) -> list[str]:
    """Return the names of the nodes that `patterns` name: by name, operator type, or a pattern of either, in order.

    Raises:
        ExportError: A pattern fits no node.
    """
    kept: set[str] = set()
    for pattern in patterns:
        found = {
            node.name
            for node in view.graph.node
            if fnmatchcase(node.name, pattern) or fnmatchcase(node.op_type, pattern)
        }
        if not found:
            known = [*view.nodes, *sorted({node.op_type for node in view.graph.node})]
            alike = near(pattern, known)
            msg = f"keep: {pattern} fits no node and no operator of the graph"
            msg += f"; alike: {', '.join(alike)}" if alike else ""
            hint = "patterns are like *layer4*; see the nodes of the exported graph"
            raise ExportError(msg, hint=hint, command=("inspect", "model.onnx"))
        kept |= found
    return sorted(kept, key=lambda name: view.positions[name])


def raise_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return the model with at least this opset, converted by onnx.

    Raises:
        ExportError: onnx cannot convert an operator.
    """
    import onnx
    from onnx import version_converter

    from generator.graph.model import default_opset

    have = default_opset(model)
    if have >= version:
        return model
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, version)
    except (RuntimeError, version_converter.ConvertError) as error:
        msg = f"the graph cannot be raised from opset {have} to {version}: {' '.join(str(error).split())}"
        raise ExportError(msg, hint="export the source with a newer opset, or take another precision") from error
    converted.ir_version = max(model.ir_version, onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", version), 0))
    return converted
