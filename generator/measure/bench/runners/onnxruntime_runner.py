"""An ONNX graph in onnxruntime, on the CPU, by the host's clock."""

# ruff: noqa: D102 - the methods are described in loop.Runner

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_SILENT = 4  # what goes wrong is raised, and need not be on stderr as well


def open_runner(settings: dict[str, Any]) -> OnnxruntimeRunner:
    """Load the graph. Keys of `settings`: onnx (a path), device ("cpu"), height, width."""
    return OnnxruntimeRunner(settings)


class OnnxruntimeRunner:
    """See `loop.Runner`."""

    clock, copies_clock = "host", ""
    failures: tuple[type[Exception], ...] = (state.Fail, state.InvalidGraph, state.InvalidProtobuf,
                state.InvalidArgument, state.NotImplemented, state.NoSuchFile, state.RuntimeException, state.EPFail,
                RuntimeError, ValueError, OSError)  # fmt: skip

    def __init__(self, settings: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        self._session = onnxruntime.InferenceSession(settings["onnx"], options, providers=["CPUExecutionProvider"])
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
        answers = self._session.run(None, {self._name: self._sets[0]})
        result: NDArray[np.float32] = next(
            (one for one in answers if one.ndim == 2 and one.dtype.kind == "f"), answers[0]
        )
        return result

    def release(self) -> None:
        self._sets = []

    def close(self) -> None:
        self.release()
