"""Stand-ins for the CUDA driver and TensorRT, on which the tensorrt backend runs where there is no GPU.

The GPU's memory is host memory, and nothing happens before somebody waits for it, as on a GPU, and then only what is in
the same stream or is waited for there: what reads a buffer too early, or writes it too early, gives wrong numbers here,
too. A plan is the real header and a description in JSON; its
network doubles each input. Addresses outside what was allocated raise.
"""

from __future__ import annotations

import collections
import ctypes
import importlib.util
import itertools
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typing_extensions import Self

from generator.render import template_root
from generator.server.launch import copy_runtime

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
VERSION = (8, 6, 1, 6)
BACKEND = template_root() / "backends" / "tensorrt" / "model.py"
Operation = Callable[[], object]
Run = tuple[int, dict[str, tuple[int, ...]]]


def write_backend(folder: Path) -> Path:
    """Write the backend's folder as a server gets it, and return its model.py."""
    copy_runtime(folder)
    return Path(shutil.copy2(BACKEND, folder))


def load_backend(model: Path, pb_utils: ModuleType) -> Any:
    """Return the module of a backend, or of a fused model, on `pb_utils` in place of Triton's."""
    spec = importlib.util.spec_from_file_location("tensorrt_backend", model)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in [name for name in sys.modules if name.startswith("trtgen_")]:
        del sys.modules[name]  # of another test's folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
        patch.syspath_prepend(str(model.parent))
        spec.loader.exec_module(module)
    return module


def make_plan(
    inputs: dict[str, tuple[str, list[int]]],
    outputs: dict[str, tuple[str, list[int]]] | None = None,
    *,
    profiles: list[dict[str, tuple[list[int], list[int], list[int]]]] | None = None,
    version: tuple[int, int, int, int] = VERSION,
    **behaviour: Any,
) -> bytes:
    """Return a plan; by default the outputs are Y, or Y_<input>, for X or X_<input>.

    `behaviour`: `fail_rows` fails on batches of that many rows, `silent_rows` without a word, `stale_graphs` runs
    recorded graphs with the context's latest shapes, `plugin` needs the plugins first.
    """
    outputs = outputs or {name.replace("X", "Y", 1): value for name, value in inputs.items()}
    text = json.dumps({"inputs": inputs, "outputs": outputs, "profiles": profiles or [], **behaviour}).encode()
    head = b"ftrt" + struct.pack("<IQQ", 0, 0, 28 + len(text)) + bytes(version)
    return head + text


class Driver:
    """`cuda.bindings.driver`, as far as the backend uses it."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_BLOCKING_SYNC=1, CU_EVENT_DISABLE_TIMING=2)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, *, gpus: int = 1, memory_bytes: int = 1 << 30) -> None:
        self.gpus, self.memory_bytes = gpus, memory_bytes
        self.memory: dict[int, Any] = {}  # address -> buffer, of GPU and pinned host memory alike
        self.on_gpu: set[int] = set()
        self.streams: collections.defaultdict[int, collections.deque[Operation]] = collections.defaultdict(
            collections.deque
        )
        self.done: collections.Counter[int] = collections.Counter()  # operations of each stream
        self.events: dict[int, tuple[int, int]] = {}  # a stream, and how many of its operations come before
        self.recording: list[Operation] | None = None
        self.graphs: dict[int, list[Operation]] = {}
        self.refusal = ""  # with which TensorRT does not start
        self.open = 0  # streams, events and contexts not yet closed
        self.destroyed: set[int] = set()  # streams
        self.launched_graphs: list[int] = []
        self.piece_bytes: list[int] = []
        self.awaited: list[int] = []  # streams whose work another waits for
        self._numbers, self._streams, self._events = itertools.count(1), itertools.count(1), itertools.count(1)

    def _used(self) -> int:
        return sum(len(self.memory[address]) for address in self.on_gpu)

    def _submit(self, operation: Operation, stream: int) -> None:
        (self.streams[stream] if self.recording is None else self.recording).append(operation)

    def _run(self, stream: int, count: int) -> None:
        """Do what is waiting in a stream until so many of its operations are done."""
        while self.done[stream] < count:
            self.done[stream] += 1
            self.streams[stream].popleft()()

    @property
    def is_busy(self) -> bool:
        """Whether anything waits."""
        return any(self.streams.values())

    def _check(self, address: int, size: int) -> None:
        inside = any(
            start <= address and address + size <= start + len(buffer) for start, buffer in self.memory.items()
        )
        assert inside, f"{size} bytes at {address:#x} are not allocated"

    def cuInit(self, _flags: int) -> tuple[Any, ...]:
        return (0,) if self.gpus else (SimpleError(100, "CUDA_ERROR_NO_DEVICE"),)

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, self.gpus

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuDeviceGetAttribute(self, attribute: int, _device: int) -> tuple[int, int]:
        return 0, attribute

    def cuDevicePrimaryCtxRetain(self, _device: int) -> tuple[int, int]:
        self.open += 1
        return 0, 1

    def cuDevicePrimaryCtxRelease(self, _device: int) -> tuple[int]:
        self.open -= 1
        return (0,)

    def cuCtxSetCurrent(self, _context: int) -> tuple[int]:
        return (0,)

    def cuCtxGetStreamPriorityRange(self) -> tuple[int, int, int]:
        return 0, 0, -5

    def cuStreamCreateWithPriority(self, _flags: int, priority: int) -> tuple[int, int]:
        self.priority = priority
        self.open += 1
        return 0, 6 + next(self._streams)

    def cuStreamDestroy(self, stream: int) -> tuple[int]:
        self.destroyed.add(stream)
        self.open -= 1
        return (0,)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        self.event_flags = flags
        self.open += 1
        return 0, 100 + next(self._events)

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.events[event] = stream, self.done[stream] + len(self.streams[stream])
        return (0,)

    def cuEventSynchronize(self, event: int) -> tuple[int]:
        self._run(*self.events[event])
        return (0,)

    def cuEventElapsedTime(self, _first: int, _last: int) -> tuple[int, float]:
        return 0, 0.5

    def cuEventDestroy(self, _event: int) -> tuple[int]:
        self.open -= 1
        return (0,)

    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.memory_bytes - self._used(), self.memory_bytes

    def _allocate(self, size: int) -> int:
        buffer = (ctypes.c_uint8 * size)(*[255] * min(size, 64))
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        if self._used() + size > self.memory_bytes:
            return SimpleError(2, "CUDA_ERROR_OUT_OF_MEMORY"), 0
        address = self._allocate(size)
        self.on_gpu.add(address)
        return 0, address

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        self._check(address, size)
        self._submit(lambda: ctypes.memset(address, value, size), stream)
        return (0,)

    def cuMemFree(self, address: int) -> tuple[int]:
        assert not self.is_busy, "memory of the GPU was given back while work was pending"
        self.on_gpu.remove(address)
        del self.memory[address]
        return (0,)

    def cuMemHostAlloc(self, size: int, _flags: int) -> tuple[int, int]:
        return 0, self._allocate(size)

    def cuMemFreeHost(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def _copy(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        self._check(target, size)
        self._check(source, size)
        self._submit(lambda: ctypes.memmove(target, source, size), stream)
        return (0,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        self.piece_bytes.append(size)
        return self._copy(target, source, size, stream)

    def cuMemcpyDtoH(self, target: int, source: int, size: int) -> tuple[int]:
        assert not self.is_busy, "work was pending when its result was copied"
        self._check(source, size)
        ctypes.memmove(target, source, size)
        return (0,)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        blocks = [(start, start + len(self.memory[start])) for start in self.on_gpu]
        assert any(start <= one < end for one in (target, source) for start, end in blocks), "neither lies on the GPU"
        return self._copy(target, source, size, stream)

    def cuStreamWaitEvent(self, stream: int, event: int, _flags: int) -> tuple[int]:
        before = self.events[event]
        self.awaited.append(before[0])
        self._submit(lambda: self._run(*before), stream)
        return (0,)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        return self._copy(target, source, size, stream)

    def cuStreamBeginCapture(self, _stream: int, _mode: int) -> tuple[int]:
        assert not self.is_busy, "work was pending when a recording began"
        self.recording = []
        return (0,)

    def cuStreamEndCapture(self, _stream: int) -> tuple[int, list[Operation]]:
        recorded, self.recording = self.recording or [], None
        return 0, recorded

    def cuGraphInstantiate(self, graph: list[Operation], _flags: int) -> tuple[int, int]:
        number = next(self._numbers)
        self.graphs[number] = graph
        return 0, number

    def cuGraphDestroy(self, _graph: list[Operation]) -> tuple[int]:
        return (0,)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.launched_graphs.append(graph)
        self.streams[stream] += self.graphs[graph]
        return (0,)

    def cuGraphExecDestroy(self, graph: int) -> tuple[int]:
        del self.graphs[graph]
        return (0,)


class SimpleError(int):
    """An error code with a name, like CUresult."""

    def __new__(cls, value: int, name: str) -> Self:
        error = super().__new__(cls, value)
        error.name = name
        return error

    name: str


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.shapes = {name: tuple(shape) for name, (_, shape) in engine.plan["inputs"].items()}
        self.addresses: dict[str, int] = {}
        self.runs_now = False

    def set_optimization_profile_async(self, number: int, _stream: int) -> bool:
        self.active_optimization_profile = number
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.runs_now, "the shapes of a context were changed while it ran"
        least, _, most = self.engine.plan["profiles"][self.active_optimization_profile][name]
        if not all(low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True)):
            self.engine.log.log(ILogger.Severity.ERROR, f"shape {list(shape)} does not satisfy the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[self._feeding(name)]

    def _feeding(self, output: str) -> str:
        place = list(self.engine.plan["outputs"]).index(output)
        return str(list(self.engine.plan["inputs"])[place])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes = dict(self.shapes)
        if next(iter(shapes.values()))[:1] == (self.engine.plan.get("silent_rows"),):
            return False
        if next(iter(shapes.values()))[:1] == (self.engine.plan.get("fail_rows"),):
            self.engine.log.log(ILogger.Severity.ERROR, "the kernel is ill")
            return False
        if self.engine.gpu.recording is None:
            self.engine.runs.append((self.active_optimization_profile, shapes))
            self.runs_now = True
        elif self.engine.plan.get("stale_graphs"):
            shapes = self.shapes
        addresses = dict(self.addresses)  # of now, which a graph keeps
        self.engine.gpu._submit(lambda: self._double(shapes, addresses), stream)
        return True

    def _double(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self.runs_now = False
        for output in self.engine.plan["outputs"]:
            name = self._feeding(output)
            dtype = np.dtype(DTYPES[self.engine.plan["inputs"][name][0]])
            count = int(np.prod(shapes[name]))
            arrays = []
            for address in (addresses[name], addresses[output]):
                self.engine.gpu._check(address, count * dtype.itemsize)
                buffer = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
                arrays.append(np.ctypeslib.as_array(buffer).view(dtype))
            arrays[1][:] = arrays[0] + arrays[0]


class Engine:
    def __init__(self, plan: dict[str, Any], log: Any, gpu: Driver, runs: list[Run]) -> None:
        self.plan, self.log, self.gpu, self.runs = plan, log, gpu, runs
        self.tensors = {**plan["inputs"], **plan["outputs"]}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = max(1, len(plan["profiles"]))
        self.device_memory_size = 3 << 20

    def get_tensor_name(self, number: int) -> str:
        return str(list(self.tensors)[number])

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.plan["inputs"] else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.tensors[name][1])

    def get_tensor_profile_shape(self, name: str, number: int) -> list[list[int]]:
        return list(self.plan["profiles"][number][name])

    def is_shape_inference_io(self, _name: str) -> bool:
        return False

    def get_tensor_location(self, _name: str) -> int:
        return 1

    def get_tensor_format(self, _name: str) -> int:
        return 0

    def create_execution_context(self) -> Context:
        return Context(self)


class Runtime:
    def __init__(self, log: Any, gpu: Driver, runs: list[Run], plugins: list[str]) -> None:
        self.log, self.gpu, self.runs, self.plugins = log, gpu, runs, plugins
        if gpu.refusal:
            log.log(ILogger.Severity.ERROR, gpu.refusal)
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        problem = ""
        if plan[:4] != b"ftrt":
            problem = "Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match"
        elif plan[24:28] != bytes(VERSION):
            problem = "The engine plan file is not compatible with this version of TensorRT"
        elif not plan.endswith(b"}"):
            problem = "Serialization assertion size failed."
        elif json.loads(plan[28:]).get("plugin") and not self.plugins:
            problem = "getPluginCreator could not find plugin"
        elif json.loads(plan[28:]).get("too_large"):
            problem = "Requested amount of GPU memory (1) could not be allocated."
        if problem:
            self.log.log(ILogger.Severity.ERROR, problem)
            return None
        return Engine(json.loads(plan[28:]), self.log, self.gpu, self.runs)


def make_tensorrt(driver: Driver) -> Any:
    """Return the module `tensorrt` on this driver; its `runs` are the profile and shapes of each enqueue."""
    runs: list[Run] = []
    plugins: list[str] = []
    return SimpleNamespace(
        __version__=".".join(map(str, VERSION)),
        ILogger=ILogger,
        Runtime=lambda log: Runtime(log, driver, runs, plugins),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        TensorLocation=SimpleNamespace(DEVICE=1, HOST=0),
        TensorFormat=SimpleNamespace(LINEAR=0),
        init_libnvinfer_plugins=lambda _log, _namespace: plugins.append("all"),
        runs=runs,
    )
