"""Triton's `tensorrt` backend in Python, for a tritonserver that has no native one.

Triton takes `<backend-directory>/tensorrt/model.py` for each model whose config.pbtxt says `backend: "tensorrt"`,
so the same repository runs here and, with the native backend, in the stock container.

Read from config.pbtxt: `default_model_filename` (else model.plan), `cc_model_filenames`, `max_batch_size`, inputs and
outputs, instance groups with `gpus` and `profile`, and of `optimization`: `priority`, `cuda.graphs`, `cuda.graph_spec`
and `cuda.busy_wait_events`. What the native backend refuses is refused in its words.

Every instance is a process of its own, with its own copy of the weights, one execution context per profile, and one
stream: while one instance copies, another computes. The rows of all requests of one execute are copied into pinned
memory, piece by piece to the GPU, run as one batch (more than one only where they exceed the profiles), and come back
in one copy; the stub copies the rows of each request from there into its answer. It needs tensorrt (8.6, 10 or 11),
numpy and cuda-python.
"""

import ctypes
import importlib
import importlib.util
import json
import re
import struct
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

# TensorRT's name of a type: Triton's, numpy's.
_TYPES = {
    "FLOAT": ("TYPE_FP32", np.float32),
    "HALF": ("TYPE_FP16", np.float16),
    "INT8": ("TYPE_INT8", np.int8),
    "UINT8": ("TYPE_UINT8", np.uint8),
    "INT32": ("TYPE_INT32", np.int32),
    "INT64": ("TYPE_INT64", np.int64),
    "BOOL": ("TYPE_BOOL", np.bool_),
}
_MIB = 1024 * 1024
# What is staged goes to the GPU in pieces of at least this, so that the copies overlap with the staging of the rest.
_PIECE_BYTES = 2 * _MIB
# glibc's names for what mallopt sets; the largest value that it takes for the first is 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_SHAPES = 4096  # remembered; then they are forgotten and looked up again
_OUT_OF_MEMORY = re.compile(r"out[ _]?of[ _]?memory|could not be allocated", re.IGNORECASE)


class RequestError(Exception):
    """A request that the plan cannot run; the message is the answer."""


class EngineError(Exception):
    """TensorRT or CUDA failed; the message says at what."""


class Tensor(NamedTuple):
    """An input or output of the plan; `shape` has -1 for what is open."""

    name: str
    data_type: str
    dtype: type
    shape: tuple


class Range(NamedTuple):
    """The shapes that one profile takes for one input."""

    min: tuple
    opt: tuple
    max: tuple


class GraphSpec(NamedTuple):
    """Shapes to record a CUDA graph for, one per input, and the least that it may stand in for."""

    shapes: tuple
    lower: tuple


class Chunk(NamedTuple):
    """Rows that run as one batch: from, to, in which context, with which shapes."""

    start: int
    stop: int
    context: int
    shapes: tuple


class TritonPythonModel:
    """One instance of one model: an engine, and how the requests get in and out of it."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Return the configuration as it is: Triton does not say here where the plan lies, so nothing can be read."""
        return auto_complete_model_config

    def initialize(self, args):
        """Load the plan and compare it with the configuration; every disagreement is named in one exception."""
        self.engine = None
        try:
            self._open(args, json.loads(args["model_config"]))
        except EngineError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def _open(self, args, config):
        self.model, self.instance = args["model_name"], args["model_instance_name"]
        if args["model_instance_kind"] != "GPU":
            raise EngineError(f"unable to load model '{self.model}', TensorRT backend supports only GPU device")
        check_parameters(config, model=self.model)
        keep_freed_memory()
        ordinal = int(args["model_instance_device_id"])
        settings = config.get("optimization", {})
        cuda = settings.get("cuda", {})
        device = Device(
            ordinal, model=self.model, priority=settings.get("priority", ""), spin=bool(cuda.get("busy_wait_events"))
        )
        path = find_plan(config, Path(args["model_repository"], args["model_version"]), device, instance=self.instance)
        self.engine = Engine(device, path, instance=self.instance)
        limit = self.use_engine(config)
        numbers = find_profiles(config, self.instance, ordinal)
        self.engine.open_contexts(numbers, limit)
        if cuda.get("graphs"):
            batches = find_graph_batches(config)
            for number, profile in enumerate(self.engine.profiles):
                specs = make_graph_specs(batches, self.engine.inputs, profile, limit)
                self.engine.record_graphs(number, specs)
            self.engine.check_graphs()
        pb_utils.Logger.log_info(f"{self.instance}: {self.engine.describe(numbers)}")
        for message in self.engine.log.warnings:
            pb_utils.Logger.log_warn(f"{self.instance}: {message}")

    def use_engine(self, config):
        """Take on the configuration, or raise where it does not fit the engine; return the most rows (0: no batches).

        `self.engine` has the plan's inputs, outputs and all its profiles here, and no context yet.
        """
        engine = self.engine
        most = int(config["max_batch_size"])
        self.batched = most > 0
        problems = [
            *compare(config["input"], engine.inputs, batched=self.batched, instance=self.instance, kind="input"),
            *compare(config["output"], engine.outputs, batched=self.batched, instance=self.instance, kind="output"),
        ]
        named = name_profiles(config)
        problems += check_profiles(named, len(engine.all_profiles), model=self.model)
        if not problems and self.batched:
            problems += check_max_batch(most, [engine.all_profiles[number] for number in named], model=self.model)
        if problems:
            raise EngineError("; ".join(dict.fromkeys(problems)))
        self.most = most
        self.names = [tensor.name for tensor in engine.inputs]
        self.dims = {tensor["name"]: read_dims(tensor, batched=self.batched) for tensor in config["input"]}
        self.row_ranges = {}
        return Limit(most, [self.dims[name] for name in self.names])

    def execute(self, requests):
        """Answer every request; one that does not fit the plan gets its own error and leaves the others alone."""
        responses = [None] * len(requests)
        groups = {}  # requests that may share a batch: same shape of a row
        for index, request in enumerate(requests):
            try:
                arrays = self._read(request)
                rows = tuple(array.shape[1:] if self.batched else array.shape for array in arrays)
                ranges = self._find_ranges(rows, arrays)
            except RequestError as error:
                responses[index] = make_error(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            groups.setdefault((rows, -1 if self.batched else index), (ranges, []))[1].append((index, arrays))
        for (rows, _), (ranges, group) in groups.items():
            try:
                answers = self._run(rows, ranges, [arrays for _, arrays in group], last=len(groups) == 1)
            except (RequestError, EngineError) as error:
                for index, _ in group:
                    responses[index] = self._refuse(error, len(group))
                continue
            for (index, _), tensors in zip(group, answers, strict=True):
                # The stub leaves out what the request did not ask for.
                responses[index] = pb_utils.InferenceResponse(tensors)
        return responses

    def finalize(self):
        """Release the engine and all memory."""
        if self.engine is not None:
            self.engine.close()
        self.engine = None

    def _refuse(self, error, count):
        """Return the answer to each of `count` requests that shared a run which failed."""
        among = f" in a batch of {count} requests" if count > 1 else ""
        if isinstance(error, RequestError):
            return make_error(f"{error}{among}", pb_utils.TritonError.INVALID_ARG)
        return make_error(f"TensorRT failed on model '{self.model}'{among}: {error}", pb_utils.TritonError.INTERNAL)

    def _read(self, request):
        """Return one array per input of the plan."""
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise RequestError(f"missing input {', '.join(map(repr, missing))} for model '{self.model}'")
        arrays = [tensors[name].as_numpy() for name in self.names]
        if self.batched and len({array.shape[:1] for array in arrays}) > 1:
            rows = ", ".join(f"'{name}' has {a.shape[0]}" for name, a in zip(self.names, arrays, strict=True))
            raise RequestError(f"the inputs of one request differ in batch size for model '{self.model}': {rows}")
        return arrays

    def _find_ranges(self, rows, arrays):
        """Return (least, most) rows of every profile that takes rows of these shapes; without batching, one row."""
        found = self.row_ranges.get(rows)
        if found is None:
            found = find_row_ranges(self.engine.profiles, rows, self.most)
            if not found:
                raise RequestError(self._find_misfit([array.shape for array in arrays]))
            if len(self.row_ranges) >= _MOST_SHAPES:
                self.row_ranges.clear()
            self.row_ranges[rows] = found
        return found

    def _find_misfit(self, shapes):
        """Return why no profile takes these shapes: as Triton does, by the example of the first."""
        problem = find_misfit(self.engine.inputs, self.engine.profiles[0], shapes, self.instance)
        return problem or f"no optimization profile of {self.instance} takes {', '.join(str(list(s)) for s in shapes)}"

    def _run(self, rows, ranges, feeds, *, last):
        """Run `feeds` as one batch and return the output tensors of each of them.

        The arrays of the tensors lie in the staging memory, which the stub copies from when execute has returned;
        unless it is the `last` run of this execute they are copied here.
        """
        engine = self.engine
        counts = [arrays[0].shape[0] if self.batched else 1 for arrays in feeds]
        total = sum(counts)
        if not total:
            return [[pb_utils.Tensor(one.name, empty_rows(one)) for one in engine.outputs] for _ in feeds]
        chunks = self._split(total, rows, ranges)
        inputs = [
            engine.stage_input(number, total * count_bytes(row, tensor)).view(tensor.dtype).reshape(total, *row)
            for number, (row, tensor) in enumerate(zip(rows, engine.inputs, strict=True))
        ]
        outputs = self._stage_outputs(chunks, total)
        try:
            self._feed(feeds, counts, inputs, chunks)
        finally:
            engine.wait()
        answers, start = [], 0
        for count in counts:
            views = [view[start : start + count] if self.batched else view[start, ...] for view in outputs]
            views = views if last else [view.copy() for view in views]
            answers.append([pb_utils.Tensor(one.name, view) for one, view in zip(engine.outputs, views, strict=True)])
            start += count
        return answers

    def _split(self, total, rows, ranges):
        """Return the rows as chunks that the profiles take."""
        parts = split_rows(total, ranges)
        if parts is None:
            raise RequestError(self._find_misfit([(total, *row) for row in rows]))
        chunks = []
        for start, stop in parts:
            shapes = tuple((stop - start, *row) for row in rows) if self.batched else rows
            chunks.append(Chunk(start, stop, choose_profile(self.engine.profiles, shapes), shapes))
        return chunks

    def _stage_outputs(self, chunks, total):
        """Return an array for each output of all chunks, rows first."""
        shapes = [self.engine.find_output_shapes(chunk.context, chunk.shapes) for chunk in chunks]
        arrays = []
        for number, tensor in enumerate(self.engine.outputs):
            row = shapes[0][number][1:] if self.batched else shapes[0][number]
            for chunk, found in zip(chunks, shapes, strict=True):
                if self.batched and found[number] != (chunk.stop - chunk.start, *row):
                    raise EngineError(
                        f"output '{tensor.name}' has shape {list(found[number])}: "
                        f"expected {chunk.stop - chunk.start} rows, one per row of the inputs"
                    )
            flat = self.engine.stage_output(number, total * count_bytes(row, tensor))
            arrays.append(flat.view(tensor.dtype).reshape(total, *row))
        return arrays

    def _feed(self, feeds, counts, inputs, chunks):
        """Stage the requests one after the other; what is staged is sent, and run as soon as a chunk is complete."""
        engine = self.engine
        sizes = [view[:1].nbytes for view in inputs]
        waiting = iter(chunks)
        chunk = next(waiting)
        staged = sent = 0
        for arrays, count in zip(feeds, counts, strict=True):
            for view, array in zip(inputs, arrays, strict=True):
                np.copyto(view[staged : staged + count], array)
            staged += count
            while chunk is not None:
                stop = min(staged, chunk.stop)
                complete = stop == chunk.stop
                if not complete and (stop - sent) * sum(sizes) < _PIECE_BYTES:
                    break
                for number, size in enumerate(sizes):
                    engine.send(number, sent * size, (sent - chunk.start) * size, (stop - sent) * size)
                sent = stop
                if not complete:
                    break
                engine.launch(chunk.context, chunk.shapes)
                engine.receive(chunk.start, chunk.context, chunk.shapes)
                chunk = next(waiting, None)


class Limit(NamedTuple):
    """What the configuration allows: rows of a batch (0: no batches) and dims of each input, -1 where open."""

    rows: int
    dims: list

    def cut(self, range_, dims):
        """Return the largest shape of an input that a profile takes and the configuration lets through."""
        fixed = [most if dim == -1 else dim for most, dim in zip(range_.max, dims, strict=True)]
        if self.rows:
            fixed[0] = max(range_.min[0], min(range_.max[0], self.rows))
        return tuple(fixed)


class Device:
    """A GPU through the CUDA driver: its primary context, which TensorRT takes too, a stream and memory."""

    def __init__(self, ordinal, *, model, priority="", spin=False):
        self.ordinal = ordinal
        self.driver = import_driver(model)
        try:
            self.call("cuInit", 0)
            count = int(self.call("cuDeviceGetCount"))
        except (EngineError, RuntimeError) as error:
            raise EngineError(no_gpu(model, str(error))) from error
        if ordinal >= count:
            raise EngineError(no_gpu(model, f"GPU {ordinal} was asked for, there are {count}"))
        self.device = self.call("cuDeviceGet", ordinal)
        try:
            self._open(priority, spin=spin)
        except EngineError as error:
            if not _OUT_OF_MEMORY.search(str(error)):
                raise
            raise EngineError(
                f"{error}; out of memory on GPU {ordinal}: not even the CUDA context of another process fits: "
                "lower `count` in the model's instance_group, or end what else uses the GPU"
            ) from error

    def _open(self, priority, *, spin):
        """Take the GPU's primary context and a stream: what each process needs before it loads anything."""
        self.context = self.call("cuDevicePrimaryCtxRetain", self.device)
        self.call("cuCtxSetCurrent", self.context)
        least, greatest = self.call("cuCtxGetStreamPriorityRange")
        self.priority = {"PRIORITY_MAX": greatest, "PRIORITY_MIN": least}.get(priority, 0)
        flags = self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = self.call("cuStreamCreateWithPriority", int(flags), int(self.priority))
        self.stream_number = int(self.stream)
        # Waiting for an event of this kind sleeps; waiting for the stream would spin on a core that decoding needs.
        kinds = self.driver.CUevent_flags
        sleep = 0 if spin else int(kinds.CU_EVENT_BLOCKING_SYNC)
        self.event = self.call("cuEventCreate", sleep | int(kinds.CU_EVENT_DISABLE_TIMING))

    def call(self, function, *arguments):
        """Call the driver, return what it returns; EngineError with the name of what went wrong."""
        error, *values = getattr(self.driver, function)(*arguments)
        if int(error):
            name = getattr(error, "name", error)
            raise EngineError(f"{function} failed: {name}")
        return values[0] if len(values) == 1 else values

    def compute_capability(self):
        """Return for example "9.0"."""
        attributes = self.driver.CUdevice_attribute
        major = self.call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self.device)
        minor = self.call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self.device)
        return f"{int(major)}.{int(minor)}"

    def free_memory(self):
        """Return (free, total) bytes."""
        free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def fill(self, pointer, value, size_bytes):
        """Fill memory on the GPU, in the order of the stream."""
        if size_bytes:
            self.call("cuMemsetD8Async", pointer, value, size_bytes, self.stream)

    def wait(self):
        """Return when everything on the stream is done."""
        self.call("cuEventRecord", self.event, self.stream)
        self.call("cuEventSynchronize", self.event)

    def close(self):
        """Release stream, event and context."""
        self.call("cuEventDestroy", self.event)
        self.call("cuStreamDestroy", self.stream)
        self.call("cuDevicePrimaryCtxRelease", self.device)


class Pinned:
    """Host memory that the GPU copies from and to by itself; `array` shows it as bytes."""

    def __init__(self, device):
        self.device = device
        self.address = 0
        self.array = np.empty(0, np.uint8)

    def reserve(self, size_bytes):
        """Return the first bytes of it; it grows, and loses what it held, where it is too small."""
        if size_bytes > self.array.nbytes:
            self.close()
            self.address = int(self.device.call("cuMemHostAlloc", size_bytes, 0))
            self.array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(self.address))
        return self.array[:size_bytes]

    def close(self):
        """Release it."""
        self.array = np.empty(0, np.uint8)
        if self.address:
            self.device.call("cuMemFreeHost", self.address)
        self.address = 0


class Engine:
    """A plan on a GPU: its tensors and profiles, contexts, buffers and CUDA graphs.

    `all_profiles` are those of the plan, `profiles` those of this instance, one context each; a profile is a Range per
    input, in the order of `inputs`.
    """

    def __init__(self, device, path, *, instance):
        self.device, self.path, self.instance = device, path, instance
        self.trt = import_tensorrt()
        self.log = make_log(self.trt)
        self.contexts, self.profiles, self.graphs = [], (), []
        self.device_inputs, self.device_outputs = [], []
        self.current, self.output_shapes = [], {}
        self.running = False
        self.free_before, self.total = device.free_memory()
        plan = read_plan(path)
        self.plan_bytes = len(plan)
        self.runtime = self._open_runtime()
        if is_version_compatible(path):
            self.runtime.engine_host_code_allowed = True
        self.engine = self._deserialize(plan)
        self._read_tensors()
        self.host_inputs = [Pinned(device) for _ in self.inputs]
        self.host_outputs = [Pinned(device) for _ in self.outputs]

    def _open_runtime(self):
        try:
            return self.trt.Runtime(self.log)
        except TypeError as error:  # what the bindings raise where TensorRT gives them nothing
            why = self.log.last()
            raise EngineError(f"TensorRT does not start: {why}{self._explain_memory(why)}") from error

    def _deserialize(self, plan):
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None and any("plugin" in message.lower() for message in self.log.errors):
            self.trt.init_libnvinfer_plugins(self.log, "")
            engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = explain_plan(self.path, plan, self.trt.__version__)
            memory = self._explain_memory(self.log.last())
            raise EngineError(f"unable to create TensorRT engine: {self.log.last()}{why}{memory}")
        return engine

    def _read_tensors(self):
        """Read names, types, shapes and profiles from the engine; refuse what cannot be served."""
        engine, trt = self.engine, self.trt
        found = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
        for number in range(engine.num_io_tensors):
            name = engine.get_tensor_name(number)
            kind = engine.get_tensor_dtype(name).name
            if kind not in _TYPES:
                raise EngineError(f"unsupported datatype {kind} of tensor '{name}' for {self.instance}")
            if engine.is_shape_inference_io(name) or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(f"tensor '{name}' is a shape tensor, which is not supported, for {self.instance}")
            if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
                raise EngineError(
                    f"tensor '{name}' uses a non-linear IO format, which is not supported, for {self.instance}: "
                    "build the plan with linear inputs and outputs"
                )
            tensor = Tensor(name, *_TYPES[kind], tuple(engine.get_tensor_shape(name)))
            found[engine.get_tensor_mode(name)].append(tensor)
        self.inputs, self.outputs = (tuple(tensors) for tensors in found.values())
        self.all_profiles = tuple(
            tuple(self._read_range(tensor, number) for tensor in self.inputs)
            for number in range(engine.num_optimization_profiles)
        )

    def _read_range(self, tensor, number):
        if -1 not in tensor.shape:
            return Range(tensor.shape, tensor.shape, tensor.shape)
        return Range(*(tuple(shape) for shape in self.engine.get_tensor_profile_shape(tensor.name, number)))

    def open_contexts(self, numbers, limit):
        """Create a context for each of these profiles of the plan, and buffers for the largest shapes of all."""
        try:
            self._open_contexts(numbers, limit)
        except EngineError as error:
            raise EngineError(f"{error}{self._explain_memory(str(error))}") from error

    def _open_contexts(self, numbers, limit):
        self.profiles = tuple(self.all_profiles[number] for number in numbers)
        largest = []
        for place, number in enumerate(numbers):
            self.log.errors.clear()
            context = self.engine.create_execution_context()
            if context is None:
                raise EngineError(f"unable to create TensorRT context for {self.instance}: {self.log.last()}")
            self.contexts.append(context)
            self.current.append(None)
            if context.active_optimization_profile != number:
                if not context.set_optimization_profile_async(number, self.device.stream_number):
                    raise EngineError(f"unable to set optimization profile {number}: {self.log.last()}")
                self.device.wait()
            shapes = tuple(limit.cut(*pair) for pair in zip(self.profiles[place], limit.dims, strict=True))
            problem = find_misfit(self.inputs, self.profiles[place], shapes, self.instance)
            if problem:
                words = "model configuration specified invalid shape for input"
                raise EngineError(problem.replace("request specifies invalid shape for input", words, 1))
            largest.append((*shapes, *self.find_output_shapes(place, shapes)))
        self._allocate(largest)

    def _allocate(self, largest):
        """Take buffers for the largest shapes, one list per context, and tell the contexts where they are."""
        tensors = (*self.inputs, *self.outputs)
        self.sizes = [
            max(count_bytes(shapes[number], tensor) for shapes in largest) for number, tensor in enumerate(tensors)
        ]
        pointers = [int(self.device.call("cuMemAlloc", max(size, 1))) for size in self.sizes]
        for pointer, size in zip(pointers, self.sizes, strict=True):
            self.device.fill(pointer, 0, size)  # graphs are recorded on it: no wild indices
        self.device_inputs, self.device_outputs = pointers[: len(self.inputs)], pointers[len(self.inputs) :]
        for host, size in zip((*self.host_inputs, *self.host_outputs), self.sizes, strict=True):
            host.reserve(max(size, 1))
        for context in self.contexts:
            for tensor, pointer in zip(tensors, pointers, strict=True):
                if not context.set_tensor_address(tensor.name, pointer):
                    raise EngineError(f"unable to set the address of '{tensor.name}': {self.log.last()}")

    def find_output_shapes(self, context, shapes):
        """Return the shape of every output for these shapes of the inputs."""
        found = self.output_shapes.get((context, shapes))
        if found is None:
            self._set_shapes(context, shapes)
            found = tuple(tuple(self.contexts[context].get_tensor_shape(tensor.name)) for tensor in self.outputs)
            unknown = [tensor.name for tensor, shape in zip(self.outputs, found, strict=True) if -1 in shape]
            if unknown:
                raise EngineError(f"the shape of output '{unknown[0]}' depends on data, which is not supported")
            if len(self.output_shapes) >= _MOST_SHAPES:
                self.output_shapes.clear()
            self.output_shapes[context, shapes] = found
        return found

    def _set_shapes(self, context, shapes):
        if self.current[context] == shapes:
            return
        if self.running:  # the shapes are those of what runs, too
            self.wait()
        self.current[context] = None
        self.log.errors.clear()
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if -1 in tensor.shape and not self.contexts[context].set_input_shape(tensor.name, shape):
                raise EngineError(f"unable to set shape {list(shape)} of input '{tensor.name}': {self.log.last()}")
        self.current[context] = shapes

    def stage_input(self, number, size_bytes):
        """Return pinned memory of this size, as bytes, for an input."""
        return self.host_inputs[number].reserve(size_bytes)

    def stage_output(self, number, size_bytes):
        """Return pinned memory of this size, as bytes, for an output."""
        return self.host_outputs[number].reserve(size_bytes)

    def send(self, number, host_offset, device_offset, size_bytes):
        """Start the copy of a staged part of an input to the GPU."""
        source, target = self.host_inputs[number].address + host_offset, self.device_inputs[number] + device_offset
        self.device.call("cuMemcpyHtoDAsync", target, source, size_bytes, self.device.stream)

    def launch(self, context, shapes):
        """Start the network on what was sent."""
        graph = find_graph(self.graphs[context], shapes) if self.graphs else None
        if graph is not None:
            self.device.call("cuGraphLaunch", graph, self.device.stream)
        else:
            self.enqueue(context, shapes)

    def enqueue(self, context, shapes):
        """Start the network without a graph."""
        self._set_shapes(context, shapes)
        self.log.errors.clear()  # those of an earlier request
        if not self.contexts[context].execute_async_v3(self.device.stream_number):
            raise EngineError(f"unable to enqueue for inference {self.instance}: {self.log.last()}")
        self.running = True

    def receive(self, start, context, shapes):
        """Start the copy of all outputs to the staging memory, from row `start` on."""
        found = self.find_output_shapes(context, shapes)
        for number, (tensor, shape) in enumerate(zip(self.outputs, found, strict=True)):
            size = count_bytes(shape, tensor)
            target = self.host_outputs[number].address + (start * size // shape[0] if start else 0)
            self.device.call("cuMemcpyDtoHAsync", target, self.device_outputs[number], size, self.device.stream)

    def wait(self):
        """Return when everything that was started is done."""
        self.device.wait()
        self.running = False

    def record_graphs(self, context, specs):
        """Record a CUDA graph for each spec; what cannot be recorded runs without, and is logged."""
        self.graphs += [{} for _ in range(context + 1 - len(self.graphs))]
        for spec in specs:
            try:
                self.graphs[context][spec.shapes] = (spec.lower, self._record(context, spec.shapes))
            except EngineError as error:
                pb_utils.Logger.log_warn(
                    f"unable to record CUDA graph for {self.instance}, shapes {spec.shapes}: {error}"
                )

    def _record(self, context, shapes):
        driver, call, stream = self.device.driver, self.device.call, self.device.stream
        self.find_output_shapes(context, shapes)
        self.enqueue(context, shapes)  # TensorRT does the work of the first time now, not while recording
        self.wait()
        call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            self.enqueue(context, shapes)
        finally:
            graph = call("cuStreamEndCapture", stream)
        try:
            return call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def check_graphs(self):
        """Drop each graph that does not give what the context gives.

        They all were recorded from one context, which has had other shapes since: TensorRT does not promise that they
        still work. With the static memory of these contexts they do, here it is seen.
        """
        random = np.random.default_rng(0)
        for context, graphs in enumerate(self.graphs):
            for shapes, (_, graph) in list(graphs.items()):
                for number, (shape, tensor) in enumerate(zip(shapes, self.inputs, strict=True)):
                    size = count_bytes(shape, tensor)
                    self.stage_input(number, size).view(tensor.dtype)[:] = draw(random, tensor, size)
                    self.send(number, 0, 0, size)
                for other in (*graphs, tuple(range_.min for range_ in self.profiles[context])):
                    self.enqueue(context, other)  # other shapes take effect when something runs with them
                for number, pointer in enumerate(self.device_outputs, len(self.inputs)):
                    self.device.fill(pointer, 255, self.sizes[number])  # what the graph leaves unwritten is seen
                self.device.call("cuGraphLaunch", graph, self.device.stream)
                got = self._fetch(context, shapes)
                self.enqueue(context, shapes)
                if not all(map(is_close, self._fetch(context, shapes), got)):
                    del graphs[shapes]
                    self.device.call("cuGraphExecDestroy", graph)
                    pb_utils.Logger.log_warn(f"{self.instance}: the CUDA graph for {shapes} differs and is not used")

    def _fetch(self, context, shapes):
        """Return copies of the outputs of what runs."""
        found = self.find_output_shapes(context, shapes)
        sizes = [count_bytes(shape, tensor) for shape, tensor in zip(found, self.outputs, strict=True)]
        views = [
            self.stage_output(number, size).view(tensor.dtype)
            for number, (size, tensor) in enumerate(zip(sizes, self.outputs, strict=True))
        ]
        self.receive(0, context, shapes)
        self.wait()
        return [view.copy() for view in views]

    def describe(self, numbers):
        """Return what was opened, for the log."""
        free, _ = self.device.free_memory()
        names = "".join(f"{'default' if number == 0 else number}[{number}];" for number in numbers)
        return (
            f"TensorRT {self.trt.__version__} on GPU {self.device.ordinal} with stream priority {self.device.priority} "
            f"and optimization profile {names} {sum(map(len, self.graphs))} CUDA graphs; "
            f"{self._need() // _MIB} MiB of GPU memory for this instance's own copy of the plan "
            f"({self.plan_bytes // _MIB} MiB), its contexts and buffers, besides the CUDA context; "
            f"{free // _MIB} MiB are free"
        )

    def _need(self):
        """Return the bytes of GPU memory for plan, contexts and buffers, as far as they are known yet."""
        need = self.plan_bytes + sum(getattr(self, "sizes", []))
        engine = getattr(self, "engine", None)
        if engine is not None:
            context = getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", 0)
            need += context * max(len(self.profiles), 1)
        return need

    def _explain_memory(self, words):
        """Return how much memory one instance takes and how much there is; nothing for another error."""
        if not any(_OUT_OF_MEMORY.search(text) for text in (words, *self.log.errors)):
            return ""
        try:
            free, _ = self.device.free_memory()
        except EngineError:
            free = 0
        return explain_memory(self._need(), min(free, self.free_before), self.total, gpu=self.device.ordinal)

    def close(self):
        """Release everything, in the order in which it depends on each other."""
        for graphs in self.graphs:
            for _, graph in graphs.values():
                self.device.call("cuGraphExecDestroy", graph)
        self.graphs, self.contexts = [], []
        self.engine = self.runtime = None
        for pointer in (*self.device_inputs, *self.device_outputs):
            self.device.call("cuMemFree", pointer)
        for host in (*self.host_inputs, *self.host_outputs):
            host.close()
        self.device.close()


def keep_freed_memory():
    """Let malloc keep what is freed, for the next execute.

    The stub copies each input into a new array. Where glibc gives the memory of a batch back to the system after every
    execute, which depends on what lies above it in the heap, the next batch pays a page fault per 4 KiB: 7.5 instead of
    14 thousand images per second (requests of 8 images of 224x224, on two cores, with a network that does nothing).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 1024 * _MIB)


def import_driver(model):
    """Return the module of the CUDA driver."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineError(f"the Python that serves '{model}' lacks cuda-python: pip install cuda-python") from error
    return driver


def import_tensorrt():
    """Return the module tensorrt, or its bindings where they stand alone, as NVIDIA's images let one add them."""
    try:
        try:
            return importlib.import_module("tensorrt")
        except ModuleNotFoundError as error:
            if error.name != "tensorrt" or importlib.util.find_spec("tensorrt_bindings") is None:
                raise
            return importlib.import_module("tensorrt_bindings")
    except (ImportError, OSError) as error:
        raise EngineError(
            f"the Python that serves plans has no working tensorrt ({error}): install trtgen's extra 'tensorrt' there, "
            "or rebuild the model with --target onnxruntime"
        ) from error


def make_log(trt):
    """Return a logger for TensorRT that keeps its last errors and warnings: its functions return None, and no cause."""

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors, self.warnings = deque(maxlen=20), deque(maxlen=20)

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.strip())
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message.strip())

        def last(self):
            return self.errors[-1] if self.errors else "TensorRT did not say why"

    return Log()


def no_gpu(model, why):
    """Return the refusal of a host without a usable GPU."""
    return (
        f"no GPU for model '{model}' ({why}): a TensorRT plan runs on an NVIDIA GPU only; "
        "rebuild with --target onnxruntime for this host"
    )


def explain_memory(need, free, total, *, gpu):
    """Return what an instance needs, what is there, and how many would fit on an empty GPU."""
    fit = f"at most {total // need} of them fit on this GPU even when it is empty" if need else "the need is unknown"
    return (
        f"; out of memory on GPU {gpu}: an instance needs at least {need // _MIB} MiB, {free // _MIB} MiB of "
        f"{total // _MIB} MiB are free; {fit}: lower `count` in the model's instance_group"
    )


def find_plan(config, folder, device, *, instance):
    """Return the path of the plan: the file for this GPU's compute capability, or the default."""
    for_capability = config.get("cc_model_filenames") or {}
    name = for_capability.get(device.compute_capability()) if for_capability else None
    path = folder / (name or config.get("default_model_filename") or "model.plan")
    if not path.is_file():
        raise EngineError(f"unable to find '{path}' for model instance '{instance}'")
    return path


def read_plan(path):
    """Return the whole plan: what happens to the file later does not matter."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"unable to read '{path}': {error.strerror}") from error


def explain_plan(path, plan, version):
    """Return what the first bytes of the plan say about a failure to load it, or nothing."""
    if plan[:4] == b"vtrt":
        return f"; '{path}' is a plan of TensorRT-RTX, which TensorRT cannot load"
    if plan[:4] != b"ftrt" or len(plan) < 28:
        return f"; '{path}' ({len(plan)} bytes) is no TensorRT plan"
    size = struct.unpack_from("<Q", plan, 16)[0]
    if len(plan) < size < 2**40:
        return f"; '{path}' is truncated: {len(plan)} of {size} bytes"
    digits = re.match(r"[\d.]*", version)[0]  # 8.6.1.post1 says nothing of the fourth number
    built, here = plan[24:28], tuple(int(part) for part in re.findall(r"\d+", digits)[:4])
    compared = tuple(built[: len(here)])
    if compared > here or (compared < here and not is_version_compatible(path)):
        words = f"built by TensorRT {'.'.join(map(str, built))} and this is TensorRT {version}"
        return f"; '{path}' was {words}: build the plan again with this one"
    return ""


def find_profiles(config, instance, ordinal):
    """Return the numbers of the profiles of the instance group that the instance belongs to.

    Triton names instances `<group>_<index>`, and groups without a name `<model>_<index>`.
    """
    name, _, _ = instance.rpartition("_")
    groups = config.get("instance_group", [])
    mine = [group for group in groups if group.get("name") == name] or groups
    on_gpu = [group for group in mine if ordinal in map(int, group.get("gpus", []))] or mine
    found = {tuple(dict.fromkeys(read_profiles(group))) for group in on_gpu}
    if len(found) > 1:
        raise EngineError(f"instance groups of one name ('{name}') list different profiles: give each its own name")
    return found.pop() if found else (0,)


def name_profiles(config):
    """Return the numbers of all profiles that any instance group lists."""
    return sorted({number for group in config.get("instance_group", []) for number in read_profiles(group)} or {0})


def read_profiles(group):
    """Return the profiles of a group; none listed means the first."""
    return [int(number) for number in group.get("profile", [])] or [0]


def check_parameters(config, *, model):
    """Refuse tensors in GPU memory: Triton brings all of them to the CPU unless it is told not to."""
    value = config.get("parameters", {}).get("FORCE_CPU_ONLY_INPUT_TENSORS", {}).get("string_value", "yes")
    if value.lower() != "yes":
        raise EngineError(
            f"parameter FORCE_CPU_ONLY_INPUT_TENSORS of model '{model}' is '{value}': this backend takes only 'yes'"
        )


def check_profiles(named, count, *, model):
    """Return a sentence for each profile that the plan does not have."""
    return [
        f"unable to autofill for '{model}', configuration specified invalid profile {number} . "
        f"Number of profiles supported by TensorRT engine: {count}"
        for number in named
        if not 0 <= number < count
    ]


def check_max_batch(most, profiles, *, model):
    """Return the refusal of a max_batch_size above what the profiles take, if it is."""
    supported = max(min(range_.max[0] for range_ in profile) for profile in profiles)
    words = f"specified max-batch {most} but TensorRT engine only supports max-batch {supported}"
    return [f"autofill failed for model '{model}': configuration {words}"] if most > supported else []


def compare(configured, tensors, *, batched, instance, kind):
    """Return what is wrong with the inputs or outputs of the configuration, one sentence each."""
    plan = {tensor.name: tensor for tensor in tensors}
    problems = []
    for tensor in configured:
        name = tensor["name"]
        if name not in plan:
            problems.append(f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(plan)}")
            continue
        if plan[name].data_type != tensor["data_type"]:
            problems.append(
                f"unexpected datatype {plan[name].data_type} for inference {kind} '{name}', "
                f"expecting {tensor['data_type']} for {instance}"
            )
        problems += compare_dims(tensor, list(plan[name].shape), batched=batched, instance=instance)
    absent = [name for name in plan if name not in {tensor["name"] for tensor in configured}]
    return problems + [f"expected configuration for {kind} '{name}' for {instance}" for name in absent]


def compare_dims(tensor, shape, *, batched, instance):
    """Return at most one sentence: the rank or a dimension that differs."""
    dims = read_dims(tensor, batched=batched)
    if len(dims) == len(shape) and all(-1 in pair or pair[0] == pair[1] for pair in zip(dims, shape, strict=True)):
        return []
    note = f"(shape {dims})"
    if batched:
        note = "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        note += f"making complete shape {dims})"
    expected = f"the model expects {len(shape)} dimensions (shape {shape})"
    specified = f"the model configuration specifies {len(dims)} dimensions {note}"
    return [f"model instance '{instance}', tensor '{tensor['name']}': {expected} but {specified}"]


def read_dims(tensor, *, batched):
    """Return the full shape that the configuration gives to a tensor of the plan."""
    dims = [int(dim) for dim in (tensor.get("reshape") or {}).get("shape", tensor["dims"])]
    return [-1, *dims] if batched else dims


def find_row_ranges(profiles, rows, most):
    """Return (least, most) rows of each profile that takes rows of these shapes; (1, 1) where `most` is 0."""
    found = []
    for profile in profiles:
        ranges = [(range_.min[bool(most) :], range_.max[bool(most) :]) for range_ in profile]
        if not all(is_between(row, *pair) for row, pair in zip(rows, ranges, strict=True)):
            continue
        if not most:
            found.append((1, 1))
            continue
        least = max(range_.min[0] for range_ in profile)
        largest = min(most, *(range_.max[0] for range_ in profile))
        if least <= largest:
            found.append((least, largest))
    return found


def is_between(shape, least, most):
    """Tell whether each dimension lies in its range."""
    return len(shape) == len(least) and all(a <= dim <= b for a, dim, b in zip(least, shape, most, strict=True))


def is_version_compatible(path):
    """Tell whether the passport beside the plan says that it carries code for later versions of TensorRT."""
    try:
        passport = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        return passport["options"]["version_compatible"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def split_rows(rows, ranges):
    """Return [(start, stop)]: as few chunks as the ranges of the profiles allow; None where some rows remain."""
    chunks, start = [], 0
    while start < rows:
        sizes = [min(rows - start, most) for least, most in ranges if least <= rows - start]
        if not sizes:
            return None
        chunks.append((start, start + max(sizes)))
        start += max(sizes)
    return chunks


def choose_profile(profiles, shapes):
    """Return the place of the profile whose optimum is nearest to the shapes, among those that take them."""

    def distance(profile):
        pairs = (zip(range_.opt, shape, strict=True) for range_, shape in zip(profile, shapes, strict=True))
        return sum(abs(best - dim) for pair in pairs for best, dim in pair)

    places = [
        place
        for place, profile in enumerate(profiles)
        if all(is_between(shape, r.min, r.max) for r, shape in zip(profile, shapes, strict=True))
    ]
    return min(places, key=lambda place: distance(profiles[place]))


def find_misfit(inputs, profile, shapes, instance):
    """Return why a profile does not take these shapes, in words, or nothing."""
    for tensor, range_, shape in zip(inputs, profile, shapes, strict=True):
        words = f"request specifies invalid shape for input '{tensor.name}' for {instance}. Error details: "
        if len(shape) != len(range_.min):
            return f"{words}model expected {len(range_.min)} dimensions but received {len(shape)}"
        for place, (least, dim, most) in enumerate(zip(range_.min, shape, range_.max, strict=True)):
            if not least <= dim <= most:
                between = f"to be between {least} and {most} but received {dim}"
                return f"{words}model expected the shape of dimension {place} {between}"
    return ""


def find_graph_batches(config):
    """Return the specs of `optimization.cuda.graph_spec` as (batch, dims, lower batch), or those that Triton assumes.

    `dims` gives the dims of the inputs that the spec names. A batch of 0 stands for a model without batching.
    """
    most = int(config["max_batch_size"])
    specs = config["optimization"]["cuda"].get("graph_spec") or []
    if not specs:
        if not most:
            return [(0, {}, 0)]
        batcher = config.get("dynamic_batching")
        sizes = [1, 2, 3, 4, 6, 8, 12, 16] if batcher is None else [1, *batcher.get("preferred_batch_size", [])]
        return [(size, {}, size) for size in sorted({int(size) for size in sizes if int(size) <= most} | {most})]
    found = []
    for spec in specs:
        batch = int(spec.get("batch_size", 0))
        if most and not 1 <= batch <= most:
            raise EngineError(f"graph spec expects 'batch_size' to be >= 1 and <= {most}")
        if not most and batch:
            raise EngineError("graph spec expects 'batch_size' to be 0 if 'max_batch_size' is 0")
        lower = int((spec.get("graph_lower_bound") or {}).get("batch_size", 0)) or batch
        if lower > batch:
            raise EngineError("graph lower bound spec expects 'batch_size' to be <= graph spec 'batch_size'")
        dims = {name: tuple(int(dim) for dim in value["dim"]) for name, value in (spec.get("input") or {}).items()}
        found.append((batch, dims, lower))
    return found


def make_graph_specs(batches, inputs, profile, limit):
    """Return the specs with full shapes that the profile and the buffers take.

    What a spec leaves open is what the configuration says, or else the profile's optimum.
    """
    batched, specs = bool(limit.rows), []
    most = tuple(limit.cut(*pair) for pair in zip(profile, limit.dims, strict=True))
    for batch, given, lower in batches:
        rows = []
        for tensor, range_, dims in zip(inputs, profile, limit.dims, strict=True):
            best = range_.opt[batched:]
            assumed = tuple(dim if dim >= 0 else opt for dim, opt in zip(dims[batched:], best, strict=True))
            rows.append(given.get(tensor.name, assumed))
        shapes = tuple((batch, *row) if batched else tuple(row) for row in rows)
        least = tuple((lower, *row) if batched else tuple(row) for row in rows)
        if all(is_between(shape, r.min, m) for shape, r, m in zip(shapes, profile, most, strict=True)):
            specs.append(GraphSpec(shapes, least))
    return specs


def find_graph(graphs, shapes):
    """Return the graph for exactly these shapes, or the smallest one that may stand in for it, or None."""
    exact = graphs.get(shapes)
    if exact is not None:
        return exact[1]
    able = [
        (upper, graph)
        for upper, (lower, graph) in graphs.items()
        if all(is_between(shape, a, b) for shape, a, b in zip(shapes, lower, upper, strict=True))
    ]
    return min(able, key=lambda pair: pair[0])[1] if able else None


def empty_rows(tensor):
    """Return the answer to a request of no rows."""
    return np.empty((0, *(max(dim, 0) for dim in tensor.shape[1:])), tensor.dtype)


def count_bytes(shape, tensor):
    """Return the size of an array of this shape."""
    size = np.dtype(tensor.dtype).itemsize
    for dim in shape:
        size *= dim
    return size


def draw(random, tensor, size_bytes):
    """Return random numbers that any network takes: whole numbers may be indices, and are 0."""
    count = size_bytes // np.dtype(tensor.dtype).itemsize
    if tensor.data_type == "TYPE_UINT8":
        return random.integers(0, 256, count, np.uint8)
    if tensor.data_type in ("TYPE_FP32", "TYPE_FP16"):
        return random.standard_normal(count, np.float32).astype(tensor.dtype)
    return np.zeros(count, tensor.dtype)


def is_close(expected, got):
    """Tell whether two outputs agree to 1 % of the largest value."""
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.abs(a[np.isfinite(a)])
    return bool(np.allclose(a, b, rtol=0.01, atol=0.01 * (finite.max() if finite.size else 0), equal_nan=True))


def make_error(message, code):
    """Return a response that carries an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
