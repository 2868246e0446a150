"""A TensorRT plan: `execute_async_v3`, or the launch of a CUDA graph for each input set.

Input sets lie in device memory of their own, and the context reads them where they lie: an iteration copies nothing.
All graphs are captured from one context, so they share its activation memory.
"""

# ruff: noqa: D102 - the methods are described in loop.Runner

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import TrtgenError
from generator.gpu import find_gpu
from generator.plan.local import open_engine
from generator.runtime.device import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

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
    failures: tuple[type[Exception], ...] = (TrtgenError, EngineError, RuntimeError, ValueError, OSError)

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._opened = ExitStack()
        self._engine = self._opened.enter_context(open_engine(Path(settings["plan"])))
        self._device = self._engine.device
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._inputs: list[int] = []
        self._graphs: list[Any] = []

    def about(self) -> dict[str, Any]:
        found = {"tensorrt": str(self._engine.trt.__version__), "gpu": find_gpu().name, **self._settings}
        return {**found, "context_bytes": self._engine.context_bytes}

    def prepare(self, sets: Sequence[NDArray[np.uint8]]) -> None:
        self.release()
        engine = self._engine
        self._shapes, _ = engine.open_batch(len(sets[0]))
        self._input_bytes = sets[0].nbytes
        self._inputs = [*engine.device_inputs, *(self._device.allocate(self._input_bytes) for _ in sets[1:])]
        for pointer, pixels in zip(reversed(self._inputs), reversed(sets), strict=True):  # set 0 stays in host memory
            engine.stage(0, pixels)
            self._device.copy_in(pointer, engine.host_inputs[0].address, self._input_bytes)
            engine.wait()
        for index in range(len(sets)):
            self._use(index)
            if self._settings["cuda_graph"]:
                self._graphs.append(engine.record(0, self._shapes))
            else:
                engine.enqueue(0, self._shapes)
                engine.wait()

    def enqueue(self, index: int) -> None:
        if self._graphs:
            self._device.launch(self._graphs[index])
        else:
            self._use(index)
            self._engine.enqueue(0, self._shapes)

    def synchronize(self) -> None:
        self._engine.wait()

    def enqueue_with_copies(self, _index: int) -> None:
        """Pinned memory to the engine's own input, set 0, and back from its output."""
        self._engine.send(0, 0, 0, self._input_bytes)
        self.enqueue(0)
        self._engine.receive(0, 0, self._shapes)

    def make_event(self) -> Any:
        return self._device.call("cuEventCreate", 0)

    def record(self, event: Any) -> None:
        self._device.call("cuEventRecord", event, self._device.stream)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(self._device.call("cuEventElapsedTime", first, last))

    def scores(self) -> NDArray[np.float32]:
        engine, shapes = self._engine, self._engine.find_output_shapes(0, self._shapes)
        for pointer, shape, tensor in zip(engine.device_outputs, shapes, engine.outputs, strict=True):
            self._device.fill(pointer, _NAN_BYTE, engine.count_bytes(shape, tensor))
        self.enqueue(0)
        answers = engine.fetch(0, self._shapes)
        result: NDArray[np.float32] = next(
            (one for one in answers if one.ndim == 2 and one.dtype.kind == "f"), answers[0]
        ).astype("float32")
        return result

    def release(self) -> None:
        for graph in self._graphs:
            self._device.release("cuGraphExecDestroy", graph)
        for pointer in self._inputs[1:]:
            self._device.release("cuMemFree", pointer)
        self._graphs, self._inputs = [], []
        self._engine.release()

    def close(self) -> None:
        self.release()
        self._opened.close()

    def _use(self, index: int) -> None:
        """Let the context read input set `index`."""
        if not self._engine.contexts[0].set_tensor_address(self._engine.input.name, self._inputs[index]):
            msg = f"TensorRT refuses the address of input set {index}"
            raise RuntimeError(msg)
