"""Streams, events and memory of one GPU. Each is closed by hand or by `with`; closing twice is harmless.

None of them may be used by two threads at once. A thread other than the one that made them calls `use_gpu` first.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError
from generator.gpu.device import call, load_driver, release, use_gpu

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Self


class _Owned:
    """Something of the driver's that is given back once."""

    _RELEASE: str

    def __init__(self, handle: Any) -> None:
        self._handle: Any = handle

    @property
    def handle(self) -> int:
        """The handle or address as a number, which is what TensorRT takes; ValueError once it is closed."""
        if self._handle is None:
            msg = f"this {type(self).__name__} is closed"
            raise ValueError(msg)
        return int(self._handle)

    def close(self) -> None:
        """Give it back."""
        handle, self._handle = self._handle, None
        if handle is not None:
            release(self._RELEASE, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream(_Owned):
    """Work that the GPU does in the order in which it was given, independently of the default stream."""

    _RELEASE = "cuStreamDestroy"

    def __init__(self, index: int = 0) -> None:
        use_gpu(index)
        flags = load_driver().CUstream_flags.CU_STREAM_NON_BLOCKING
        super().__init__(call("cuStreamCreate", int(flags), doing="make a stream"))

    def synchronize(self) -> None:
        """Wait until everything that was given to this stream is done.

        Raises:
            DeviceError: Something of it failed.
        """
        call("cuStreamSynchronize", self.handle, doing="finish the work of its stream")


class Event(_Owned):
    """A point in a stream, with the time at which the GPU reached it (resolution about half a microsecond)."""

    _RELEASE = "cuEventDestroy"

    def __init__(self, index: int = 0) -> None:
        use_gpu(index)
        flags = load_driver().CUevent_flags.CU_EVENT_DEFAULT
        super().__init__(call("cuEventCreate", int(flags), doing="make an event"))

    def record(self, stream: Stream) -> None:
        """Put the event behind what was given to the stream so far."""
        call("cuEventRecord", self.handle, stream.handle, doing="record an event")

    def synchronize(self) -> None:
        """Wait until the stream has come here."""
        call("cuEventSynchronize", self.handle, doing="reach an event")

    def elapsed_ms(self, start: Event) -> float:
        """Return the milliseconds from `start` to this event; both must have been reached."""
        return float(call("cuEventElapsedTime", start.handle, self.handle, doing="compare two events"))


class DeviceMemory(_Owned):
    """Memory on the GPU.

    Args:
        size_bytes: At least one byte is taken.
        what: What it is for, for the message where there is none left.
        index: The GPU.

    Raises:
        DeviceError: Not that much is free.
    """

    _RELEASE = "cuMemFree"

    def __init__(self, size_bytes: int, *, what: str = "a buffer", index: int = 0) -> None:
        use_gpu(index)
        self.size_bytes = size_bytes
        api = load_driver()
        status, handle = api.cuMemAlloc(max(size_bytes, 1))
        if status == api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise out_of_memory(f"{what} needs {mib(size_bytes)}")
        if status != api.CUresult.CUDA_SUCCESS:
            msg = f"the GPU gives no memory for {what} ({mib(size_bytes)}): {status.name}"
            raise DeviceError(msg, hint="run nvidia-smi; a fault earlier in this process may be the cause")
        super().__init__(handle)

    @property
    def pointer(self) -> int:
        """The address on the GPU."""
        return self.handle


class PinnedMemory(_Owned):
    """Memory of the host that stays where it is, so that the GPU copies from and to it on its own.

    Args:
        size_bytes: At least one byte is taken.
        what: What it is for, for the message where there is none left.
        index: The GPU.

    Raises:
        DeviceError: The host has not that much to give.
    """

    _RELEASE = "cuMemFreeHost"

    def __init__(self, size_bytes: int, *, what: str = "a host buffer", index: int = 0) -> None:
        use_gpu(index)
        self.size_bytes = size_bytes
        status, handle = load_driver().cuMemHostAlloc(max(size_bytes, 1), 0)
        if status != load_driver().CUresult.CUDA_SUCCESS:
            msg = f"the host pins no {mib(size_bytes)} of its memory for {what}: {status.name}"
            raise DeviceError(msg, hint="take smaller batches; free -m shows what the host has left")
        super().__init__(handle)

    @property
    def pointer(self) -> int:
        """The address on the host."""
        return self.handle

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return the memory's beginning as an array, not a copy; it must not be touched once this is closed."""
        return array_at(self.pointer, self.size_bytes, shape, dtype)


def array_at(pointer: int, size_bytes: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return the host memory at `pointer` as an array; ValueError where it does not fit into `size_bytes`."""
    import numpy as np

    kind = np.dtype(dtype)
    needed = math.prod(shape) * kind.itemsize
    if needed > size_bytes:
        msg = f"an array of {shape} {kind} takes {needed} bytes, there are {size_bytes}"
        raise ValueError(msg)
    raw = memoryview((ctypes.c_uint8 * needed).from_address(pointer))
    array: NDArray[Any] = np.frombuffer(raw, np.uint8).view(kind).reshape(shape)
    return array


def copy_to_device(target: DeviceMemory, source: PinnedMemory, stream: Stream, *, size_bytes: int) -> None:
    """Have the stream copy the first bytes from the host to the GPU."""
    call("cuMemcpyHtoDAsync", target.pointer, source.pointer, size_bytes, stream.handle, doing="copy to its memory")


def copy_to_host(target: PinnedMemory, source: DeviceMemory, stream: Stream, *, size_bytes: int) -> None:
    """Have the stream copy the first bytes from the GPU to the host."""
    call("cuMemcpyDtoHAsync", target.pointer, source.pointer, size_bytes, stream.handle, doing="copy from its memory")


def free_memory(index: int = 0) -> tuple[int, int]:
    """Return the free and all bytes of the GPU's memory, of all processes together."""
    use_gpu(index)
    free, total = call("cuMemGetInfo", doing="tell its free memory")
    return int(free), int(total)


def mib(size_bytes: int) -> str:
    """Return a size in MiB as text."""
    return f"{size_bytes / 2**20:,.1f} MiB"


def out_of_memory(needs: str) -> DeviceError:
    """Return the error for exhausted memory; `needs` says what was asked for."""
    api = load_driver()
    status, free, total = api.cuMemGetInfo()
    left = f"{mib(free)} of {mib(total)} are free" if status == api.CUresult.CUDA_SUCCESS else "too little is free"
    return DeviceError(
        f"the GPU's memory is exhausted: {needs}, {left}",
        hint="end what else uses the GPU (nvidia-smi), or take smaller batches",
    )
