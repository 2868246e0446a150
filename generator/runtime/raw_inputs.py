"""Inputs of requests read where they lie: in the stub's shared memory, which the GPU copies from once it is registered.

To be measured (TRTGEN_RAW_INPUTS=1, gpu_serving --steps variants): it saves the copy into the staging memory. With
the model's parameter FORCE_CPU_ONLY_INPUT_TENSORS "no", tensors that a client put into the GPU's memory stay there.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .device import EngineError

if TYPE_CHECKING:
    from .device import Device

_SHARED = "/dev/shm/"  # noqa: S108 - where Triton's Python backend puts its regions
_KINDS = "iuf"  # DLPack's codes 0 to 2 in numpy's words
_CPU, _CUDA = 1, 2
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Tensor(ctypes.Structure):
    """DLTensor, with which a DLManagedTensor begins."""

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


class RawArray(NamedTuple):
    """An input row after row, in memory that the GPU reads by itself; `owner` keeps it there."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    on_gpu: bool
    owner: Any

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class RawInputs:
    """Reads tensors, and registers the mappings of shared memory in which they lie.

    The stub keeps a mapping for as long as it runs, also where a larger one of the same memory has followed.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._registered: list[tuple[int, int]] = []
        self._refused: list[tuple[int, int]] = []

    def read(self, tensor: Any) -> RawArray | None:
        """Return where a tensor of a request lies, or None where the GPU cannot read it there."""
        capsule = tensor.to_dlpack()
        one = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
        if one.code >= len(_KINDS) or not one.data or one.device_type not in (_CPU, _CUDA):
            return None
        shape, dtype = tuple(one.shape[: one.ndim]), np.dtype(f"{_KINDS[one.code]}{one.bits // 8}")
        found = RawArray(one.data + one.byte_offset, shape, dtype, one.device_type == _CUDA, capsule)
        return found if found.on_gpu or self._holds(found.address, found.address + found.nbytes) else None

    def _holds(self, start: int, stop: int) -> bool:
        """Say whether the GPU may copy from these addresses; their mapping is registered the first time."""
        if any(first <= start and stop <= last for first, last in self._registered):
            return True
        mapping = _find_mapping(start, stop)
        if mapping is None or mapping in self._refused:
            return False
        try:
            self.device.call("cuMemHostRegister", mapping[0], mapping[1] - mapping[0], 0)
        except EngineError:
            self._refused.append(mapping)
            return False
        self._registered.append(mapping)
        return True

    def close(self) -> None:
        """Give the mappings back."""
        for start, _ in self._registered:
            self.device.release("cuMemHostUnregister", start)
        self._registered.clear()


def _find_mapping(start: int, stop: int) -> tuple[int, int] | None:
    """Return the addresses of the mapping of shared memory that holds these, if one does."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= start and stop <= last and path.startswith(_SHARED):
            return first, last
    return None
