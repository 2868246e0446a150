"""Arrays of others that lie on the GPU, by `__cuda_array_interface__`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .device import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .device import Device

_INTERFACE = "__cuda_array_interface__"


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
    return hasattr(array, _INTERFACE)


def read_gpu_array(array: Any) -> GpuArray:
    """Return where an array of another library lies; it must be kept until the work on it is done.

    Raises:
        EngineError: Its elements do not follow each other.
    """
    interface = getattr(array, _INTERFACE)
    shape, dtype = tuple(map(int, interface["shape"])), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _row_major(shape, dtype):
        raise EngineError(f"an array of shape {list(shape)} on the GPU has strides {list(strides)}, rows were expected")
    stream = interface.get("stream")
    return GpuArray(int(interface["data"][0]), shape, dtype, None if stream is None else int(stream))


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
