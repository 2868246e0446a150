"""Arrays of others that lie on the GPU, by `__cuda_array_interface__` and by DLPack."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .device import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .device import Device

_INTERFACE = "__cuda_array_interface__"
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLPack's codes in numpy's words
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _DLTensor(ctypes.Structure):
    """The beginning of a DLManagedTensor, which a capsule holds."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class GpuArray(NamedTuple):
    """An array on the GPU, row after row: where it lies, and the stream that writes it, None for none."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_on_gpu(array: Any) -> bool:
    """Tell whether an array says that it lies on the GPU."""
    return isinstance(array, GpuArray) or hasattr(array, _INTERFACE)


def read_gpu_array(array: Any) -> GpuArray:
    """Return where an array of another library lies; it must be kept until the work on it is done.

    Raises:
        EngineError: Its elements do not follow each other.
    """
    if isinstance(array, GpuArray):
        return array
    interface = getattr(array, _INTERFACE)
    shape, dtype = tuple(map(int, interface["shape"])), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _row_major(shape, dtype):
        raise EngineError(f"an array of shape {list(shape)} on the GPU has strides {list(strides)}, rows were expected")
    stream = interface.get("stream")
    return GpuArray(int(interface["data"][0]), shape, dtype, None if stream is None else int(stream))


def read_capsule(capsule: Any) -> GpuArray:
    """Return where a tensor of Triton's Python backend lies, whose elements follow each other and nothing writes.

    Args:
        capsule: What its `to_dlpack` returned, for a tensor on the GPU.

    Raises:
        EngineError: Its type is none that a plan takes.
    """
    one = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    kind = "b" if one.bits == 1 else _KINDS.get(one.code)  # older releases make an integer of one bit of a BOOL
    if kind is None:
        raise EngineError(f"a tensor on the GPU has type {one.code} of DLPack, numbers were expected")
    dtype = np.dtype(f"{kind}{max(one.bits // 8, 1)}")
    return GpuArray((one.data or 0) + one.byte_offset, tuple(one.shape[: one.ndim]), dtype, None)


def _row_major(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return the strides of an array whose elements follow each other."""
    return tuple(math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))


def to_host(device: Device, array: Any) -> NDArray[Any]:
    """Return a copy of an array on the GPU in host memory.

    Raises:
        EngineError: The copy fails.
    """
    source = read_gpu_array(array)
    device.follow(source.stream)
    device.wait()
    copy = np.empty(source.shape, source.dtype)
    device.call("cuMemcpyDtoH", copy.ctypes.data, source.address, source.nbytes)
    return copy
