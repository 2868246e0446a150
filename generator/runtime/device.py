"""A GPU through the CUDA driver: its primary context, which TensorRT and torch take too, one stream, and memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class EngineError(Exception):
    """TensorRT or CUDA failed; the message says at what.

    `needs` are the bytes of GPU memory that an engine takes, if there was too little memory, else 0.
    """

    def __init__(self, message: str, *, needs: int = 0) -> None:
        super().__init__(message)
        self.needs = needs


def call(driver: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the module `cuda.bindings.driver` and return its value, or the list of its values.

    Raises:
        EngineError: The status is not success; it is named.
    """
    status, *values = getattr(driver, function)(*arguments)
    if int(status):
        raise EngineError(f"{function} failed: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else values


class Device:
    """One GPU. It belongs to the thread that made it, and is given back by `close`.

    Args:
        driver: The module `cuda.bindings.driver`, initialised.
        ordinal: Which of the visible GPUs.
        priority: The stream's, in Triton's words: PRIORITY_MAX, PRIORITY_MIN, else the default.
        spin: Keep a core busy while waiting, which saves the time of waking up.

    Raises:
        EngineError: No such GPU, or no memory left for its context.
    """

    def __init__(self, driver: Any, ordinal: int = 0, *, priority: str = "", spin: bool = False) -> None:
        self.driver, self.ordinal = driver, ordinal
        self.device = self.call("cuDeviceGet", ordinal)
        self.context = self.call("cuDevicePrimaryCtxRetain", self.device)
        self.call("cuCtxSetCurrent", self.context)
        least, greatest = self.call("cuCtxGetStreamPriorityRange")
        self.priority = {"PRIORITY_MAX": greatest, "PRIORITY_MIN": least}.get(priority, 0)
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream = self.call("cuStreamCreateWithPriority", flags, int(self.priority))
        self.stream_number = int(self.stream)  # which TensorRT takes
        # Waiting for an event of this kind sleeps; waiting for the stream would spin on a core that decoding needs.
        kinds = driver.CUevent_flags
        sleep = 0 if spin else int(kinds.CU_EVENT_BLOCKING_SYNC)
        self.event = self.call("cuEventCreate", sleep | int(kinds.CU_EVENT_DISABLE_TIMING))

    def call(self, function: str, *arguments: Any) -> Any:
        """Call the driver, see `call`."""
        return call(self.driver, function, *arguments)

    def release(self, function: str, handle: Any) -> None:
        """Give something back. After a fault every call fails, and the fault itself was raised where it happened."""
        with contextlib.suppress(EngineError):
            self.call(function, handle)

    def compute_capability(self) -> str:
        """Return for example "9.0"."""
        names = self.driver.CUdevice_attribute
        parts = (
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
        return ".".join(str(int(self.call("cuDeviceGetAttribute", part, self.device))) for part in parts)

    def free_memory(self) -> tuple[int, int]:
        """Return the free and all bytes of the GPU's memory, of all processes together."""
        free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new memory on the GPU, which `release("cuMemFree", address)` gives back."""
        return int(self.call("cuMemAlloc", max(size_bytes, 1)))

    def fill(self, pointer: int, value: int, size_bytes: int) -> None:
        """Fill memory on the GPU, in the order of the stream."""
        if size_bytes:
            self.call("cuMemsetD8Async", pointer, value, size_bytes, self.stream)

    def copy_in(self, target: int, source: int, size_bytes: int) -> None:
        """Start a copy from pinned host memory to the GPU."""
        self.call("cuMemcpyHtoDAsync", target, source, size_bytes, self.stream)

    def copy_within(self, target: int, source: int, size_bytes: int) -> None:
        """Start a copy from one place on the GPU to another."""
        self.call("cuMemcpyDtoDAsync", target, source, size_bytes, self.stream)

    def follow(self, stream: int | None) -> None:
        """Have what comes next on this stream wait for what is on another one; None: nothing is."""
        if stream is not None:
            self.call("cuEventRecord", self.event, stream)
            self.call("cuStreamWaitEvent", self.stream, self.event, 0)

    def copy_out(self, target: int, source: int, size_bytes: int) -> None:
        """Start a copy from the GPU to pinned host memory."""
        self.call("cuMemcpyDtoHAsync", target, source, size_bytes, self.stream)

    def record(self, work: Callable[[], None]) -> Any:
        """Return a CUDA graph of what `work` puts into the stream, which must have run once before."""
        # only this thread's calls are watched for what cannot be recorded, as trtexec does it
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self.call("cuStreamEndCapture", self.stream)
        try:
            return self.call("cuGraphInstantiate", graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Put the recorded work into the stream."""
        self.call("cuGraphLaunch", graph, self.stream)

    def wait(self) -> None:
        """Return when everything on the stream is done."""
        self.call("cuEventRecord", self.event, self.stream)
        self.call("cuEventSynchronize", self.event)

    def close(self) -> None:
        """Give back event, stream and context."""
        self.release("cuEventDestroy", self.event)
        self.release("cuStreamDestroy", self.stream)
        self.release("cuDevicePrimaryCtxRelease", self.device)
