"""A session: buffers for one batch size of an engine, and the calls that run it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError, PlanError
from generator.gpu.graph import CudaGraph, capture
from generator.gpu.memory import DeviceMemory, PinnedMemory, copy_to_device, copy_to_host
from generator.plan.library import open_log
from generator.plan.load_errors import explain_failure

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from generator.runtime.engine import Engine
    from generator.tensor import Tensor

_RUN_HINT = "build the plan again; if it fails again, report it with TensorRT's words"


class Session:
    """One batch size of an engine, made by `Engine.session`; with its engine it belongs to one thread at a time.

    `input` and `output` are views of pinned host memory: write the rows, `copy_in`, `enqueue`, `copy_out`,
    `synchronize`, read the rows. All but the last only put work into the stream. The views must not be touched once
    the session is closed.

    Attributes:
        batch: Rows.
        profile: Index of the optimization profile.
        input: The rows it takes, as an array.
        output: The rows it makes, as an array.
        stream: The engine's stream.
    """

    input: NDArray[Any]
    output: NDArray[Any]

    def __init__(self, engine: Engine, *, batch: int, profile: int, cuda_graph: bool) -> None:
        self.batch, self.profile, self.stream = batch, profile, engine.stream
        self._engine: Engine | None = engine
        self._graph: CudaGraph | None = None
        self._input_shape = (batch, *engine.input.shape[1:])
        with ExitStack() as made:
            made.callback(engine.forget, self)  # after everything else is given back
            index = engine.gpu.index
            given = self._take(made, engine.input, self._input_shape, index)
            self._pinned_input, self._device_input, self.input = given
            # the shape of the output follows from that of the input: TensorRT tells it once that is set
            context = engine.bare_context(profile)
            self._set_input_shape(context, engine)
            output_shape = tuple(int(edge) for edge in context.get_tensor_shape(engine.output.name))
            if -1 in output_shape:
                msg = f"{engine.path}: the shape of output {engine.output.name} depends on the data: {output_shape}"
                raise PlanError(msg, hint="build the plan from a graph with a fixed number of scores per image")
            taken = self._take(made, engine.output, output_shape, index)
            self._pinned_output, self._device_output, self.output = taken
            self._execute()  # also what TensorRT sets up on the first run after a change of shape
            self.stream.synchronize()
            if cuda_graph:
                self._graph = made.enter_context(capture(self.stream, self._execute))
            self._made = made.pop_all()

    @property
    def context(self) -> Any:
        """TensorRT's IExecutionContext, with this session's shapes; for its profiler and inspector. Do not keep it."""
        return self._open().context_for(self)

    @property
    def device_input(self) -> int:
        """The input's address on the GPU."""
        return self._device_input.pointer

    @property
    def device_output(self) -> int:
        """The output's address on the GPU."""
        return self._device_output.pointer

    def copy_in(self) -> None:
        """Have the GPU fetch `input`."""
        copy_to_device(self._device_input, self._pinned_input, self.stream, size_bytes=self.input.nbytes)

    def enqueue(self) -> None:
        """Have the GPU run the network on what is in its memory; nothing is copied.

        Raises:
            PlanError: TensorRT refuses to run it.
            DeviceError: The launch of the CUDA graph fails.
        """
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self._execute()

    def copy_out(self) -> None:
        """Have the GPU write `output`."""
        copy_to_host(self._pinned_output, self._device_output, self.stream, size_bytes=self.output.nbytes)

    def synchronize(self) -> None:
        """Wait until everything is done.

        Raises:
            DeviceError: Something of it failed.
        """
        self.stream.synchronize()

    def close(self) -> None:
        """Give back the graph and the buffers; closing twice is harmless."""
        if self._engine is not None:
            self._engine = None
            with suppress(DeviceError):  # a fault was raised where it happened
                self.stream.synchronize()
            self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prepare(self, context: Any) -> None:
        """Give the context this session's shape and addresses; the engine calls it when another session had it.

        Raises:
            PlanError: TensorRT refuses them.
        """
        engine = self._open()
        self._set_input_shape(context, engine)
        log = open_log()
        addresses = ((engine.input.name, self.device_input), (engine.output.name, self.device_output))
        for name, address in addresses:
            if not context.set_tensor_address(name, address):
                raise explain_failure(
                    f"{engine.path}: the memory for {name} is refused", log.all_errors(), hint=_RUN_HINT
                )

    def _execute(self) -> None:
        engine = self._open()
        context = engine.context_for(self)
        log = open_log()
        log.clear()
        if not context.execute_async_v3(self.stream.handle):
            raise explain_failure(f"{engine.path} does not run", log.all_errors(), hint=_RUN_HINT)

    def _set_input_shape(self, context: Any, engine: Engine) -> None:
        log = open_log()
        log.clear()
        name = engine.input.name
        if -1 in engine.input.shape and not context.set_input_shape(name, self._input_shape):
            what = f"{engine.path}: profile {self.profile} refuses {name} {list(self._input_shape)}"
            raise explain_failure(what, log.all_errors(), hint=_RUN_HINT)
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            what = f"{engine.path}: no shapes follow from {name} {list(self._input_shape)}"
            raise explain_failure(what, [*log.all_errors(), str(error)], hint=_RUN_HINT) from error
        if missing:
            msg = f"{engine.path}: shapes are missing for {', '.join(missing)}"
            raise PlanError(msg, hint="build the plan from a graph with one image input")

    @staticmethod
    def _take(
        made: ExitStack, tensor: Tensor, shape: tuple[int, ...], index: int
    ) -> tuple[PinnedMemory, DeviceMemory, NDArray[Any]]:
        import numpy as np

        try:
            kind = np.dtype(tensor.data_type.numpy)
        except TypeError as error:
            msg = f"tensor {tensor.name} is {tensor.data_type.triton}, which numpy does not have"
            raise PlanError(msg, hint="build the plan from a graph with UINT8 or FP32 input and FP32 output") from error
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        what = f"{tensor.name} {list(shape)}"
        pinned = made.enter_context(PinnedMemory(size, what=what, index=index))
        device = made.enter_context(DeviceMemory(size, what=what, index=index))
        return pinned, device, pinned.array(shape, kind)

    def _open(self) -> Engine:
        if self._engine is None:
            msg = "this session is closed"
            raise ValueError(msg)
        return self._engine
