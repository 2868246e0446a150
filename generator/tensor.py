"""What goes into a model and comes out of it: the one table of data types, Tensor, and the shapes that a plan takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DataType:
    """One data type in the words of each side.

    `onnx` is the number in `onnx.TensorProto.DataType`, `tensorrt` the name in `tensorrt.DataType`, empty where it has
    no such type.
    """

    numpy: str
    onnx: int
    triton: str
    tensorrt: str = ""


DATA_TYPES = (
    DataType(numpy="float32", onnx=1, triton="TYPE_FP32", tensorrt="FLOAT"),
    DataType(numpy="uint8", onnx=2, triton="TYPE_UINT8", tensorrt="UINT8"),
    DataType(numpy="int8", onnx=3, triton="TYPE_INT8", tensorrt="INT8"),
    DataType(numpy="uint16", onnx=4, triton="TYPE_UINT16"),
    DataType(numpy="int16", onnx=5, triton="TYPE_INT16"),
    DataType(numpy="int32", onnx=6, triton="TYPE_INT32", tensorrt="INT32"),
    DataType(numpy="int64", onnx=7, triton="TYPE_INT64", tensorrt="INT64"),
    DataType(numpy="object", onnx=8, triton="TYPE_STRING"),
    DataType(numpy="bool", onnx=9, triton="TYPE_BOOL", tensorrt="BOOL"),
    DataType(numpy="float16", onnx=10, triton="TYPE_FP16", tensorrt="HALF"),
    DataType(numpy="float64", onnx=11, triton="TYPE_FP64"),
    DataType(numpy="uint32", onnx=12, triton="TYPE_UINT32"),
    DataType(numpy="uint64", onnx=13, triton="TYPE_UINT64"),
    DataType(numpy="bfloat16", onnx=16, triton="TYPE_BF16", tensorrt="BF16"),
)
_BY_ONNX = {row.onnx: row for row in DATA_TYPES}
_BY_TENSORRT = {row.tensorrt: row for row in DATA_TYPES if row.tensorrt}
_BY_TRITON = {row.triton: row for row in DATA_TYPES}


def from_onnx(number: int) -> DataType:
    """Return the row of an ONNX element type; KeyError for one that Triton cannot carry."""
    return _BY_ONNX[number]


def from_tensorrt(name: str) -> DataType:
    """Return the row of a name in `tensorrt.DataType`; KeyError for one that only lives inside an engine, as FP8."""
    return _BY_TENSORRT[name]


def from_triton(word: str) -> DataType:
    """Return the row of a `data_type` in config.pbtxt; KeyError for a word that is not Triton's."""
    return _BY_TRITON[word]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of a graph, plan or engine. `shape` has -1 for what is not fixed; axis 0 is the batch."""

    name: str
    data_type: DataType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """The shapes of one input, whole, with the batch first: any between `min` and `max`, chosen for `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def batches(self) -> tuple[int, int]:
        """Smallest and largest batch."""
        return self.min[0], self.max[0]


# An optimization profile: the shapes of each input, by its name.
Profile = Mapping[str, ShapeRange]
