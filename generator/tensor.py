"""The one table of data types: numpy's spelling, ONNX's number, Triton's word."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataType", "from_onnx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataType:
    """One data type in the words of each side. `onnx` is the number in `onnx.TensorProto.DataType`."""

    numpy: str
    onnx: int
    triton: str


_TABLE = (
    DataType(numpy="float32", onnx=1, triton="TYPE_FP32"),
    DataType(numpy="uint8", onnx=2, triton="TYPE_UINT8"),
    DataType(numpy="int8", onnx=3, triton="TYPE_INT8"),
    DataType(numpy="uint16", onnx=4, triton="TYPE_UINT16"),
    DataType(numpy="int16", onnx=5, triton="TYPE_INT16"),
    DataType(numpy="int32", onnx=6, triton="TYPE_INT32"),
    DataType(numpy="int64", onnx=7, triton="TYPE_INT64"),
    DataType(numpy="object", onnx=8, triton="TYPE_STRING"),
    DataType(numpy="bool", onnx=9, triton="TYPE_BOOL"),
    DataType(numpy="float16", onnx=10, triton="TYPE_FP16"),
    DataType(numpy="float64", onnx=11, triton="TYPE_FP64"),
    DataType(numpy="uint32", onnx=12, triton="TYPE_UINT32"),
    DataType(numpy="uint64", onnx=13, triton="TYPE_UINT64"),
    DataType(numpy="bfloat16", onnx=16, triton="TYPE_BF16"),
)
_BY_ONNX = {row.onnx: row for row in _TABLE}


def from_onnx(number: int) -> DataType:
    """Return the row of an ONNX element type; KeyError for one that Triton cannot carry."""
    return _BY_ONNX[number]
