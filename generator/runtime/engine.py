"""A plan on a GPU: its tensors and profiles, contexts, buffers and CUDA graphs."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .device import EngineError
from .graphs import find_graph
from .tensors import edges_of, read_profiles, read_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..tensor import Profile, Tensor
    from .bindings import TensorRTLog
    from .device import Device
    from .shapes import Shape, Shapes

MOST_SHAPES = 4096  # remembered; then they are forgotten and looked up again
OUT_OF_MEMORY = re.compile(r"out[ _]?of[ _]?memory|could not be allocated", re.IGNORECASE)


class Pinned:
    """Host memory that the GPU copies from and to by itself; `array` shows it as bytes."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.address = 0
        self.array = np.empty(0, np.uint8)

    def reserve(self, size_bytes: int) -> NDArray[np.uint8]:
        """Return the first bytes of it; it grows, and loses what it held, where it is too small."""
        if size_bytes > self.array.nbytes:
            self.close()
            self.address = int(self.device.call("cuMemHostAlloc", size_bytes, 0))
            self.array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(self.address))
        return self.array[:size_bytes]

    def close(self) -> None:
        """Release it."""
        self.array = np.empty(0, np.uint8)
        if self.address:
            self.device.release("cuMemFreeHost", self.address)
        self.address = 0


class Engine:
    """An engine, which `open` makes ready to run; it belongs to one thread.

    Args:
        device: The GPU; it must be closed after the engine.
        plan: The whole file.
        trt: The module tensorrt.
        log: TensorRT's messages.
        name: Whose plan it is, in messages.
        host_code: Let the plan run code of its own, which a version-compatible one carries.

    Attributes:
        inputs: What it takes.
        outputs: What it makes.
        all_profiles: The shapes that it takes; a static engine has one, in which min, opt and max are equal.
        dtypes: numpy's type of each input and output, by its name.
        profiles: Those that are open, with one of `contexts` each.
        graphs: For each context the CUDA graphs by the shapes that they are for, see `graphs.record_graphs`.
        sizes: Bytes of the buffers of inputs and outputs.
        device_inputs: The addresses of the inputs on the GPU while it is open, `device_outputs` those of the outputs.

    Raises:
        EngineError: TensorRT refuses the plan, or it has inputs or outputs that cannot be served.
    """

    def __init__(
        self, device: Device, plan: bytes, *, trt: Any, log: TensorRTLog, name: str, host_code: bool = False
    ) -> None:
        self.device, self.trt, self.log, self.name = device, trt, log, name
        self.contexts: list[Any] = []
        self.profiles: tuple[Profile, ...] = ()
        self.graphs: list[dict[Shapes, tuple[Shapes, Any]]] = []
        self.device_inputs: list[int] = []
        self.device_outputs: list[int] = []
        self.engine: Any = None
        self._plan_bytes = len(plan)
        self._running = False
        self.release()
        self.log.clear()
        try:
            self.runtime = trt.Runtime(log.logger)
        except TypeError as error:  # what the bindings raise where TensorRT gives them nothing
            raise self._error(f"TensorRT does not start: {log.last_error()}") from error
        if host_code:
            self.runtime.engine_host_code_allowed = True
        self.engine = self._deserialize(plan)
        self.inputs, self.outputs = read_tensors(trt, self.engine, name)
        self.dtypes = self._check_tensors()
        self.all_profiles = read_profiles(self.engine, self.inputs)
        self.host_inputs = [Pinned(device) for _ in self.inputs]
        self.host_outputs = [Pinned(device) for _ in self.outputs]

    def _deserialize(self, plan: bytes) -> Any:
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None and any("plugin" in message.lower() for message in self.log.errors):
            self.trt.init_libnvinfer_plugins(self.log.logger, "")
            engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._error(f"unable to create TensorRT engine: {self.log.last_error()}")
        return engine

    def _check_tensors(self) -> dict[str, np.dtype[Any]]:
        """Return numpy's type of each input and output; refuse what cannot be served."""
        engine, trt, dtypes = self.engine, self.trt, {}
        for tensor in (*self.inputs, *self.outputs):
            name = tensor.name
            try:
                dtypes[name] = np.dtype(tensor.data_type.numpy)
            except TypeError as error:
                kind = tensor.data_type.tensorrt
                raise EngineError(f"unsupported datatype {kind} of tensor '{name}' for {self.name}") from error
            if engine.is_shape_inference_io(name) or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(f"tensor '{name}' is a shape tensor, which is not supported, for {self.name}")
            if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
                raise EngineError(
                    f"tensor '{name}' uses a non-linear IO format, which is not supported, for {self.name}: "
                    "build the plan with linear inputs and outputs"
                )
        return dtypes

    def open(self, numbers: Sequence[int], largest: Sequence[Shapes]) -> None:
        """Create a context for each of these profiles of the plan, and buffers for the largest shapes of each.

        Args:
            numbers: Places in `all_profiles`.
            largest: The largest shapes that will come, which the profile takes.

        Raises:
            EngineError: TensorRT refuses, or the GPU's memory is exhausted.
        """
        self.release()
        self.profiles = tuple(self.all_profiles[number] for number in numbers)
        try:
            shapes = [
                (*shapes, *self._open_context(place, number, shapes))
                for place, (number, shapes) in enumerate(zip(numbers, largest, strict=True))
            ]
            self._allocate(shapes)
        except EngineError as error:
            raise self._error(str(error)) from error

    def _open_context(self, place: int, number: int, shapes: Shapes) -> Shapes:
        """Create a context for the profile `number` and return the shapes of the outputs for those of the inputs."""
        self.log.errors.clear()
        context = self.engine.create_execution_context()
        if context is None:
            raise EngineError(f"unable to create TensorRT context for {self.name}: {self.log.last_error()}")
        self.contexts.append(context)
        self._current.append(None)
        if context.active_optimization_profile != number:
            if not context.set_optimization_profile_async(number, self.device.stream_number):
                raise EngineError(f"unable to set optimization profile {number}: {self.log.last_error()}")
            self.device.wait()
        return self.find_output_shapes(place, shapes)

    def _allocate(self, largest: Sequence[Shapes]) -> None:
        """Take buffers for the largest shapes, one list per context, and tell the contexts where they are."""
        tensors = (*self.inputs, *self.outputs)
        self.sizes[:] = [
            max(self.count_bytes(shapes[number], tensor) for shapes in largest) for number, tensor in enumerate(tensors)
        ]
        for number, size in enumerate(self.sizes):
            pointers = self.device_inputs if number < len(self.inputs) else self.device_outputs
            pointers.append(self.device.allocate(size))
            self.device.fill(pointers[-1], 0, size)  # graphs are recorded on it: no wild indices
        for host, size in zip((*self.host_inputs, *self.host_outputs), self.sizes, strict=True):
            host.reserve(max(size, 1))
        for context in self.contexts:
            for tensor, pointer in zip(tensors, (*self.device_inputs, *self.device_outputs), strict=True):
                if not context.set_tensor_address(tensor.name, pointer):
                    raise EngineError(f"unable to set the address of '{tensor.name}': {self.log.last_error()}")

    def find_output_shapes(self, context: int, shapes: Shapes) -> Shapes:
        """Return the shape of every output for these shapes of the inputs."""
        found = self._output_shapes.get((context, shapes))
        if found is None:
            self._set_shapes(context, shapes)
            found = tuple(edges_of(self.contexts[context].get_tensor_shape(tensor.name)) for tensor in self.outputs)
            unknown = [tensor.name for tensor, shape in zip(self.outputs, found, strict=True) if -1 in shape]
            if unknown:
                raise EngineError(f"the shape of output '{unknown[0]}' depends on data, which is not supported")
            if len(self._output_shapes) >= MOST_SHAPES:
                self._output_shapes.clear()
            self._output_shapes[context, shapes] = found
        return found

    def _set_shapes(self, context: int, shapes: Shapes) -> None:
        if self._current[context] == shapes:
            return
        if self._running:  # the shapes are those of what runs, too
            self.wait()
        self._current[context] = None
        self.log.errors.clear()
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if -1 in tensor.shape and not self.contexts[context].set_input_shape(tensor.name, shape):
                why = self.log.last_error()
                raise EngineError(f"unable to set shape {list(shape)} of input '{tensor.name}': {why}")
        self._current[context] = shapes

    def stage(self, number: int, array: NDArray[Any]) -> None:
        """Copy an array into the staging memory of an input, from where `send` takes it."""
        np.copyto(self.view(self.host_inputs[number], array.shape, self.inputs[number]), array)

    def send(self, number: int, host_offset: int, device_offset: int, size_bytes: int) -> None:
        """Start the copy of a staged part of an input to the GPU."""
        source, target = self.host_inputs[number].address + host_offset, self.device_inputs[number] + device_offset
        self.device.copy_in(target, source, size_bytes)

    def take(self, number: int, offset: int, source: int, size_bytes: int) -> None:
        """Start the copy of a part of an input that lies on the GPU already, to where the engine reads it."""
        self.device.copy_within(self.device_inputs[number] + offset, source, size_bytes)

    def launch(self, context: int, shapes: Shapes) -> None:
        """Start the network on what was sent, with a CUDA graph where one was recorded for these shapes."""
        graph = find_graph(self.graphs[context], shapes) if self.graphs else None
        if graph is not None:
            self.device.launch(graph)
        else:
            self.enqueue(context, shapes)

    def enqueue(self, context: int, shapes: Shapes) -> None:
        """Start the network without a graph."""
        self._set_shapes(context, shapes)
        self.log.errors.clear()  # those of an earlier request
        if not self.contexts[context].execute_async_v3(self.device.stream_number):
            raise EngineError(f"unable to enqueue for inference {self.name}: {self.log.last_error()}")
        self._running = True

    def receive(self, start: int, context: int, shapes: Shapes) -> None:
        """Start the copy of all outputs to the staging memory, from row `start` on."""
        found = self.find_output_shapes(context, shapes)
        for number, (tensor, shape) in enumerate(zip(self.outputs, found, strict=True)):
            size = self.count_bytes(shape, tensor)
            target = self.host_outputs[number].address + (start * size // shape[0] if start else 0)
            self.device.copy_out(target, self.device_outputs[number], size)

    def fetch(self, context: int, shapes: Shapes) -> list[NDArray[Any]]:
        """Return copies of the outputs of what runs, once it is done."""
        found = self.find_output_shapes(context, shapes)
        views = [
            self.view(host, shape, tensor)
            for host, shape, tensor in zip(self.host_outputs, found, self.outputs, strict=True)
        ]
        self.receive(0, context, shapes)
        self.wait()
        return [view.copy() for view in views]

    def wait(self) -> None:
        """Return when everything that was started is done."""
        self.device.wait()
        self._running = False

    def record(self, context: int, shapes: Shapes) -> Any:
        """Return a CUDA graph of the network on what lies at the context's addresses."""
        self.find_output_shapes(context, shapes)
        self.enqueue(context, shapes)  # TensorRT does the work of the first time now, not while recording
        self.wait()
        return self.device.record(lambda: self.enqueue(context, shapes))

    def count_bytes(self, shape: Shape, tensor: Tensor) -> int:
        """Return the size of one of its tensors in this shape."""
        return math.prod(shape) * self.dtypes[tensor.name].itemsize

    def view(self, host: Pinned, shape: Shape, tensor: Tensor) -> NDArray[Any]:
        """Return the beginning of staging memory as an array; it may move what the memory held before."""
        return host.reserve(self.count_bytes(shape, tensor)).view(self.dtypes[tensor.name]).reshape(shape)

    @property
    def needs(self) -> int:
        """Bytes of GPU memory for the plan, its contexts and buffers, as far as they are known yet."""
        return self._plan_bytes + sum(self.sizes) + self.context_bytes * max(len(self.profiles), 1)

    @property
    def context_bytes(self) -> int:
        """Bytes of GPU memory for one execution context, weights not included."""
        engine = self.engine
        if engine is None:
            return 0
        has_v2 = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if has_v2 else engine.device_memory_size)

    def _error(self, message: str) -> EngineError:
        """Return the error, with what an engine needs where the GPU's memory was too small for it."""
        short = any(OUT_OF_MEMORY.search(text) for text in (message, *self.log.errors))
        return EngineError(message, needs=self.needs if short else 0)

    def release(self) -> None:
        """Give back graphs, contexts and buffers; the engine stays, and can be opened again."""
        if self.contexts:
            with contextlib.suppress(EngineError):  # it was raised where it happened
                self.wait()
        for graphs in self.graphs:
            for _, graph in graphs.values():
                self.device.release("cuGraphExecDestroy", graph)
        self.graphs, self.contexts, self.profiles = [], [], ()
        for pointer in (*self.device_inputs, *self.device_outputs):
            self.device.release("cuMemFree", pointer)
        self.device_inputs, self.device_outputs = [], []
        self.sizes: list[int] = []
        self._current: list[Shapes | None] = []
        self._output_shapes: dict[tuple[int, Shapes], Shapes] = {}

    def close(self) -> None:
        """Release everything, in the order in which it depends on each other."""
        self.release()
        self.engine = self.runtime = None
        for host in (*self.host_inputs, *self.host_outputs):
            host.close()
