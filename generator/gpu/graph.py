"""CUDA graphs: work that was recorded once and is then launched with one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.gpu.device import call, load_driver, release

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from generator.gpu.memory import Stream


class CudaGraph:
    """Recorded work, ready to launch. The memory it reads and writes must outlive it."""

    def __init__(self, executable: Any) -> None:
        self._executable: Any = executable

    def launch(self, stream: Stream) -> None:
        """Put the whole work into the stream.

        Raises:
            DeviceError: The launch is refused.
        """
        if self._executable is None:
            msg = "this CudaGraph is closed"
            raise ValueError(msg)
        call("cuGraphLaunch", self._executable, stream.handle, doing="launch a CUDA graph")

    def close(self) -> None:
        """Give it back; closing twice is harmless."""
        executable, self._executable = self._executable, None
        if executable is not None:
            release("cuGraphExecDestroy", executable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def capture(stream: Stream, work: Callable[[], None]) -> CudaGraph:
    """Record what `work` puts into the stream, without running it, and make it ready to launch.

    `work` must have run at least once before: what allocates memory on its first run cannot be recorded. Only this
    thread's calls are watched for what cannot be recorded, as trtexec does it.

    Raises:
        DeviceError: Something in `work` cannot be recorded. What `work` itself raises is passed on.
    """
    api = load_driver()
    mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    call("cuStreamBeginCapture", stream.handle, mode, doing="start recording a CUDA graph")
    try:
        work()
    except BaseException:
        # the stream must leave its recording state, whatever was recorded
        status, graph = api.cuStreamEndCapture(stream.handle)
        if status == api.CUresult.CUDA_SUCCESS:
            release("cuGraphDestroy", graph)
        raise
    graph = call("cuStreamEndCapture", stream.handle, doing="record this work as a CUDA graph")
    try:
        executable = call("cuGraphInstantiate", graph, 0, doing="make a CUDA graph ready")
    finally:
        release("cuGraphDestroy", graph)
    recorded = CudaGraph(executable)
    try:
        call("cuGraphUpload", executable, stream.handle, doing="load a CUDA graph")
        stream.synchronize()
    except BaseException:
        recorded.close()
        raise
    return recorded
