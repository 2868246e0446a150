"""Inputs, outputs and versions of an ONNX file of any size: its weights are not read."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Field numbers of onnx.proto.
_IR_VERSION, _GRAPH, _OPSETS = 1, 7, 8
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_RAW_DATA = (4, 5, 6, 7, 9, 10, 11)  # every field of TensorProto that holds values
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1  # TensorProto.EXTERNAL
# ONNX's names of data types where Triton's is not TYPE_ and that name (onnxruntime backend's ConvertFromOnnxDataType).
_TYPES = {"FLOAT": "TYPE_FP32", "DOUBLE": "TYPE_FP64", "FLOAT16": "TYPE_FP16", "BFLOAT16": "TYPE_BF16"}
LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTensor:
    """An input or output, its data type as Triton calls it.

    A dimension is -1 where it is not a number. Shape is None where the file states none.
    """

    name: str
    data_type: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """What an ONNX file says of itself.

    `optional` are inputs that have a value in the file; `external` are the files with its weights, as it names them.
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[NetworkTensor, ...]
    optional: frozenset[str]
    outputs: tuple[NetworkTensor, ...]
    external: tuple[str, ...]


def read_onnx_header(path: Path) -> OnnxHeader:
    """Return what the file says of itself.

    Raises:
        SourceError: It cannot be read, or is no ONNX file; says what it is.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[: len(LFS)] == LFS:
                msg = f"{path} is a Git LFS pointer, not the file itself"
                raise SourceError(msg, hint="fetch it: git lfs pull")
            return _read_model(data)
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as error:
        msg = f"{path} is not a whole ONNX file: {getattr(error, 'strerror', None) or error}"
        raise SourceError(msg, hint="copy it again") from error


def _read_model(data: mmap.mmap) -> OnnxHeader:
    from onnx import OperatorSetIdProto

    ir_version, opsets, graph = 0, {}, None
    for field, value in _fields(data, 0, len(data)):
        if field == _IR_VERSION and isinstance(value, int):
            ir_version = value
        elif field == _GRAPH and isinstance(value, slice):
            graph = value
        elif field == _OPSETS and isinstance(value, slice):
            opset = _parse(OperatorSetIdProto(), data[value])
            opsets[opset.domain or "ai.onnx"] = opset.version
    if graph is None:
        msg = "it holds no graph"
        raise ValueError(msg)
    return _read_graph(data, graph, ir_version, opsets)


def _read_graph(data: mmap.mmap, graph: slice, ir_version: int, opsets: dict[str, int]) -> OnnxHeader:
    from onnx import TensorProto, ValueInfoProto

    found: dict[int, list[NetworkTensor]] = {_INPUT: [], _OUTPUT: []}
    initializers: set[str] = set()
    external: dict[str, None] = {}
    for field, value in _fields(data, graph.start, graph.stop):
        if field in found and isinstance(value, slice):
            found[field].append(_describe(_parse(ValueInfoProto(), data[value])))
        elif field == _INITIALIZER and isinstance(value, slice):
            tensor = _parse(TensorProto(), _without_values(data, value))
            initializers.add(tensor.name)
            if tensor.data_location == _EXTERNAL:
                external |= {entry.value: None for entry in tensor.external_data if entry.key == "location"}
    return OnnxHeader(
        ir_version=ir_version,
        opsets=opsets,
        inputs=tuple(found[_INPUT]),
        optional=frozenset(initializers),
        outputs=tuple(found[_OUTPUT]),
        external=tuple(external),
    )


def _parse(message: Any, data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return message


def _describe(info: Any) -> NetworkTensor:
    from onnx import TensorProto

    tensor = info.type.tensor_type
    data_type = TensorProto.DataType.Name(tensor.elem_type)
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return NetworkTensor(name=info.name, data_type=_TYPES.get(data_type, f"TYPE_{data_type}"), shape=shape)


def _without_values(data: mmap.mmap, where: slice) -> bytes:
    kept, start = [], where.start
    for field, value, end in _walk(data, where.start, where.stop):
        if field not in _RAW_DATA or not isinstance(value, slice):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int | slice]]:
    for field, value, _ in _walk(data, start, stop):
        yield field, value


def _walk(data: mmap.mmap, at: int, stop: int) -> Iterator[tuple[int, int | slice, int]]:
    """Yield the number, the value or its place, and the end of every field of a message."""
    while at < stop:
        key, at = _varint(data, at)
        kind = key & 7
        value: int | slice
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            value, at = slice(at, at + length), at + length
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
            value, at = slice(at, at + length), at + length
        else:
            kind = -1
        if kind < 0 or key < 8:  # fields are numbered from 1
            msg = f"byte {at} has no field of protobuf"
            raise ValueError(msg)
        if at > stop:
            msg = f"it is cut off: it ends at byte {stop}, a field of it at {at}"
            raise ValueError(msg)
        yield key >> 3, value, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            msg = f"byte {at} has no number of protobuf"
            raise ValueError(msg)
