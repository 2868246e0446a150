"""A TensorRT plan: `execute_async_v3`, or the launch of a CUDA graph for each input set.

Input sets lie in device memory of their own, and the context reads them where they lie: an iteration copies nothing.
All graphs are captured from one context, so they share its activation memory.
"""

# ruff: noqa: D102 - the methods are described in loop.Runner

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import TrtgenError
from generator.gpu.device import call, find_gpu
from generator.gpu.graph import CudaGraph, capture
from generator.gpu.memory import DeviceMemory, Event, PinnedMemory, copy_to_device
from generator.runtime.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.runtime.session import Session

# Every byte of a NaN may be 0xFF.
_NAN_BYTE = 0xFF


def open_runner(settings: dict[str, Any]) -> PlanRunner:
    """Load the plan. Keys of `settings`: plan (a path), cuda_graph, device ("cuda"), height, width.

    Raises:
        RuntimeError: The plan does not run here; in the words of the error with which it was refused.
    """
    try:
        return PlanRunner(settings)
    except TrtgenError as error:  # the loop does not know our errors before there is a runner
        raise RuntimeError(f"{error.message} (hint: {error.hint})") from error


class PlanRunner:
    """See `loop.Runner`."""

    clock = copies_clock = "device"
    failures: tuple[type[Exception], ...] = (TrtgenError, RuntimeError, ValueError, OSError)

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._engine = open_engine(Path(settings["plan"]))
        self._input = self._engine.inputs[0].name
        self._session: Session | None = None
        self._memory: list[DeviceMemory] = []
        self._graphs: list[CudaGraph] = []

    def about(self) -> dict[str, Any]:
        found = {"tensorrt": str(self._engine.trt.__version__), "gpu": find_gpu().name, **self._settings}
        return {**found, "context_bytes": self._engine.device_memory_bytes}

    def prepare(self, sets: Sequence[NDArray[np.uint8]]) -> None:
        self.release()
        session = self._session = self._engine.session(len(sets[0]))
        session.input[...] = sets[0]
        session.copy_in()
        session.synchronize()
        self._inputs = [int(session.device_input), *(self._place(pixels) for pixels in sets[1:])]
        for index in range(len(sets)):
            self._execute(index)  # also what must happen once before a capture
            session.synchronize()
            if self._settings["cuda_graph"]:
                # the address is set before: only the execution is recorded
                self._graphs.append(capture(session.stream, session.enqueue))

    def enqueue(self, index: int) -> None:
        if self._graphs:
            self._graphs[index].launch(self.session.stream)
        else:
            self._execute(index)

    def synchronize(self) -> None:
        self.session.synchronize()

    def enqueue_with_copies(self, _index: int) -> None:
        """Pinned memory to the session's own input, set 0, and back from its output."""
        self.session.copy_in()
        self.enqueue(0)
        self.session.copy_out()

    def make_event(self) -> Event:
        return Event()

    def record(self, event: Event) -> None:
        event.record(self.session.stream)

    def elapsed_ms(self, first: Event, last: Event) -> float:
        return last.elapsed_ms(first)

    def scores(self) -> NDArray[np.float32]:
        session = self.session
        pointer, size = int(session.device_output), session.output.nbytes
        call("cuMemsetD8Async", pointer, _NAN_BYTE, size, session.stream.handle, doing="fill the output with NaN")
        self.enqueue(0)
        session.copy_out()
        session.synchronize()
        result: NDArray[np.float32] = session.output.astype("float32")
        return result

    def release(self) -> None:
        for graph in self._graphs:
            graph.close()
        for memory in self._memory:
            memory.close()
        self._graphs, self._memory = [], []
        if self._session is not None:
            self._session.close()
            self._session = None

    def close(self) -> None:
        self.release()
        self._engine.close()

    @property
    def session(self) -> Session:
        """The session of the batch that was prepared."""
        if self._session is None:
            msg = "no batch is prepared"
            raise ValueError(msg)
        return self._session

    def _place(self, pixels: NDArray[np.uint8]) -> int:
        """Copy an input set to device memory of its own and return its address."""
        memory = DeviceMemory(pixels.nbytes, what="a set of inputs")
        self._memory.append(memory)
        with PinnedMemory(pixels.nbytes) as staged:
            staged.array(pixels.shape, pixels.dtype)[...] = pixels
            copy_to_device(memory, staged, self.session.stream, size_bytes=pixels.nbytes)
            self.session.synchronize()
        return memory.pointer

    def _execute(self, index: int) -> None:
        if not self.session.context.set_tensor_address(self._input, self._inputs[index]):
            msg = f"TensorRT refuses the address of input set {index}"
            raise RuntimeError(msg)
        self.session.enqueue()
