"""An ONNX graph in onnxruntime: on the CPU by the host's clock, or with the CUDA provider by events on its stream."""

# ruff: noqa: D102 - the methods are described in loop.Runner

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from generator.gpu.memory import Event

_SILENT = 4  # what goes wrong is raised, and need not be on stderr as well


def open_runner(settings: dict[str, Any]) -> HostRunner:
    """Load the graph. Keys of `settings`: onnx (a path), device ("cuda" or "cpu"), height, width."""
    return CudaRunner(settings) if settings["device"] == "cuda" else HostRunner(settings)


class HostRunner:
    """See `loop.Runner`; one session on the CPU provider."""

    clock, copies_clock = "host", ""
    failures: tuple[type[Exception], ...] = (state.Fail, state.InvalidGraph, state.InvalidProtobuf,
                state.InvalidArgument, state.NotImplemented, state.NoSuchFile, state.RuntimeException, state.EPFail,
                RuntimeError, ValueError, OSError)  # fmt: skip

    def __init__(self, settings: dict[str, Any], provider: Any = "CPUExecutionProvider") -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        self._session = onnxruntime.InferenceSession(settings["onnx"], options, providers=[provider])
        self._name = self._session.get_inputs()[0].name
        self._sets: Sequence[NDArray[np.uint8]] = []

    def about(self) -> dict[str, Any]:
        return {"onnxruntime": onnxruntime.__version__, "providers": self._session.get_providers()}

    def prepare(self, sets: Sequence[NDArray[np.uint8]]) -> None:
        self._sets = sets
        self.enqueue(0)

    def enqueue(self, index: int) -> None:
        self._session.run(None, {self._name: self._sets[index]})

    def synchronize(self) -> None:
        pass

    def scores(self) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.run(None, {self._name: self._sets[0]})[0]
        return result

    def release(self) -> None:
        self._sets = []

    def close(self) -> None:
        self.release()


class CudaRunner(HostRunner):
    """See `loop.Runner`; the CUDA provider on a stream of ours, inputs and output bound to device memory."""

    clock, copies_clock = "device", "host"  # onnxruntime's own copies wait for their end

    def __init__(self, settings: dict[str, Any]) -> None:
        from generator.errors import TrtgenError
        from generator.gpu.memory import Event, Stream

        self.failures = (*HostRunner.failures, TrtgenError)
        self._stream, self.make_event = Stream(), Event
        provider = ("CUDAExecutionProvider", {"device_id": 0, "user_compute_stream": str(self._stream.handle)})
        super().__init__(settings, provider)
        if "CUDAExecutionProvider" not in self._session.get_providers():  # it falls back to the CPU without an error
            msg = "onnxruntime's CUDA provider does not load: its cuDNN or CUDA libraries are missing"
            raise RuntimeError(msg)
        self._output = self._session.get_outputs()[0].name
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._bindings: list[Any] = []
        self._result: Any = None

    def prepare(self, sets: Sequence[NDArray[np.uint8]]) -> None:
        self._sets = sets
        shape = self._session.run(None, {self._name: sets[0]})[0].shape
        self._result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
        for pixels in sets:
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._name, onnxruntime.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
            binding.bind_ortvalue_output(self._output, self._result)
            self._bindings.append(binding)

    def enqueue(self, index: int) -> None:
        self._session.run_with_iobinding(self._bindings[index], self._run_options)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def enqueue_with_copies(self, _index: int) -> None:
        super().enqueue(0)

    def record(self, event: Event) -> None:
        event.record(self._stream)

    def elapsed_ms(self, first: Event, last: Event) -> float:
        return last.elapsed_ms(first)

    def scores(self) -> NDArray[np.float32]:
        self._result.update_inplace(np.full(self._result.shape(), np.nan, np.float32))
        self.enqueue(0)
        self.synchronize()
        result: NDArray[np.float32] = self._result.numpy()
        return result

    def release(self) -> None:
        super().release()
        self._bindings, self._result = [], None
