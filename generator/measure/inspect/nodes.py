"""The ONNX graph as values: nodes in order, shapes for one image, bytes of weights, multiply-accumulates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.files import hash_file
from generator.graph.model import default_opset, graph_inputs, load_proto, stated_license
from generator.measure.inspect.formats import WIDTHS, data_type_of

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

# Weights above this are dropped before shapes are inferred: only small constants (shapes, axes) matter for that.
_SMALL_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNode:
    """One node. `macs` are multiply-accumulates for one image, None where they are not counted or shapes unknown.

    `constant` says that all its inputs are known at build time, so that it is computed then.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int, ...]
    data_type: str
    weights_bytes: int
    macs: int | None
    constant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxGraph:
    """A graph; `nodes` are in the file's order, which ONNX demands to be topological."""

    path: Path
    sha256: str
    opset: int
    nodes: tuple[OnnxNode, ...]
    constants: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    license: str

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of one image through all nodes that are counted."""
        return sum(node.macs or 0 for node in self.nodes)


def read_graph(path: Path) -> OnnxGraph:
    """Read a file; where the first axis of an input is open it is taken as one image.

    Raises:
        SourceError: Not ONNX, or its weights are missing.
    """
    proto = load_proto(path)
    constants = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    sizes = {tensor.name: _tensor_bytes(tensor) for tensor in proto.graph.initializer}
    shapes, types = _infer(proto)
    shapes.update(constants)
    known = set(constants)
    nodes = []
    for index, node in enumerate(proto.graph.node):
        fixed = all(name in known for name in node.input if name)
        if fixed:
            known.update(node.output)
        outputs = tuple(node.output)
        nodes.append(
            OnnxNode(
                name=node.name or (outputs[0] if outputs else f"node {index}"),
                operator=node.op_type,
                inputs=tuple(node.input),
                outputs=outputs,
                shape=shapes.get(outputs[0], ()) if outputs else (),
                data_type=types.get(outputs[0], "") if outputs else "",
                weights_bytes=sum(sizes.get(name, 0) for name in node.input),
                macs=None if fixed else _count_macs(node, shapes),
                constant=fixed,
            )
        )
    return OnnxGraph(
        path=path,
        sha256=hash_file(path),
        license=" ".join(stated_license(proto).split()),
        opset=default_opset(proto),
        nodes=tuple(nodes),
        constants=frozenset(known),
        inputs=tuple(tensor.name for tensor in graph_inputs(proto)),
        outputs=tuple(tensor.name for tensor in proto.graph.output),
    )


def _infer(proto: onnx.ModelProto) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return shape and data type of each tensor, as far as ONNX's own inference knows them. Changes `proto`."""
    import onnx

    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            tensor.raw_data = b""
    for info in graph_inputs(proto):
        dims = info.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    del proto.graph.value_info[:]  # they carry the open batch
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError:
        inferred = proto  # an unknown operator: names and operators are still worth showing
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kind = info.type.tensor_type
        types[info.name] = _type_name(kind.elem_type)
        if kind.HasField("shape"):
            shapes[info.name] = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return shapes, types


def _type_name(number: int) -> str:
    import onnx

    return data_type_of(onnx.TensorProto.DataType.Name(number))


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return WIDTHS.get(_type_name(tensor.data_type), 0) * math.prod(tensor.dims)


def _count_macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Count the multiply-accumulates of a convolution or a matrix product; None for all others or open shapes."""
    first, second = (shapes.get(name) for name in (*node.input[:2], "", "")[:2])
    out = shapes.get(node.output[0]) if node.output else None
    if not first or not second or not out or min(*first, *second, *out) < 0:
        return None
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "MatMul":
        return math.prod(out) * first[-1]
    if node.op_type == "Gemm":
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return math.prod(out) * int(first[0 if transposed else 1])
    return None
