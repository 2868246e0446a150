"""The GPU: what is said where there is none, and streams, memory and graphs where there is one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from generator import gpu as gpu_module
from generator.errors import DeviceError, MissingDependencyError
from generator.gpu import _text, find_gpu, load_driver, load_nvml, why_no_gpu
from generator.runtime.device import Device, EngineError
from generator.runtime.engine import Pinned
from tests.tensorrt_standin import Driver, SimpleError

WITHOUT = why_no_gpu()
gpu = pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU: {WITHOUT}")
no_gpu = pytest.mark.skipif(not WITHOUT, reason="needs a machine without a GPU")


@no_gpu
class TestWithout:
    def test_the_reason_is_one_plain_sentence(self) -> None:
        assert "\n" not in WITHOUT
        assert "driver" in WITHOUT
        assert "Error" not in WITHOUT

    def test_it_is_raised_with_a_hint(self) -> None:
        with pytest.raises(DeviceError) as caught:
            find_gpu()
        assert caught.value.message == WITHOUT
        assert caught.value.hint

    def test_nvml_is_absent_without_an_error(self) -> None:
        assert load_nvml() is None

    def test_it_is_fast_and_imports_nothing_heavy(self) -> None:
        code = (
            "import sys, time; start = time.perf_counter()\n"
            "from generator.gpu import why_no_gpu\n"
            "reason = why_no_gpu(); seconds = time.perf_counter() - start\n"
            "assert not {'torch', 'numpy', 'tensorrt'} & set(sys.modules)\n"
            "print(f'{seconds:.3f} {reason}')"
        )
        best = 9.0
        for _ in range(3):  # others may use the machine
            result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            seconds, _, reason = result.stdout.strip().partition(" ")
            assert reason == WITHOUT
            best = min(best, float(seconds))
        assert best < 0.3

    def test_the_bindings_take_what_we_pass(self) -> None:
        """They convert their arguments before they look for the driver: TypeError would come first."""
        driver = importlib.import_module("cuda.bindings.driver")

        stream, mode = 5, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        flags = driver.CUevent_flags
        kind = int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING)
        which = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        assert driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        assert driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        for name, arguments in {
            "cuInit": (0,),
            "cuDeviceGetCount": (),
            "cuDeviceGet": (0,),
            "cuDeviceGetAttribute": (which, driver.CUdevice(0)),
            "cuDeviceGetName": (256, driver.CUdevice(0)),
            "cuDeviceTotalMem": (driver.CUdevice(0),),
            "cuDriverGetVersion": (),
            "cuDevicePrimaryCtxRetain": (driver.CUdevice(0),),
            "cuCtxSetCurrent": (driver.CUcontext(5),),
            "cuMemGetInfo": (),
            "cuMemAlloc": (16,),
            "cuMemFree": (driver.CUdeviceptr(5),),
            "cuMemHostAlloc": (16, 0),
            "cuMemFreeHost": (5,),
            "cuMemcpyHtoDAsync": (5, 6, 16, stream),
            "cuMemcpyDtoHAsync": (6, 5, 16, stream),
            "cuCtxGetStreamPriorityRange": (),
            "cuStreamCreateWithPriority": (int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING), -5),
            "cuDevicePrimaryCtxRelease": (driver.CUdevice(0),),
            "cuMemsetD8Async": (5, 255, 16, stream),
            "cuStreamDestroy": (driver.CUstream(5),),
            "cuEventCreate": (kind,),
            "cuEventRecord": (5, stream),
            "cuEventSynchronize": (5,),
            "cuEventElapsedTime": (5, 6),
            "cuEventDestroy": (driver.CUevent(5),),
            "cuStreamBeginCapture": (stream, mode),
            "cuStreamEndCapture": (stream,),
            "cuGraphInstantiate": (driver.CUgraph(5), 0),
            "cuGraphLaunch": (driver.CUgraphExec(5), stream),
            "cuGraphExecDestroy": (driver.CUgraphExec(5),),
            "cuGraphDestroy": (driver.CUgraph(5),),
        }.items():
            with pytest.raises(RuntimeError, match="driver library"):
                getattr(driver, name)(*arguments)

    def test_every_status_we_explain_exists(self) -> None:
        driver = importlib.import_module("cuda.bindings.driver")

        for name in gpu_module._NO_START:
            assert hasattr(driver.CUresult, name)

    def test_nvml_has_what_we_call(self) -> None:
        nvml = importlib.import_module("cuda.bindings.nvml")

        for name in ("init_v2", "system_get_driver_version"):
            assert callable(getattr(nvml, name))
        assert issubclass(nvml.NotSupportedError, nvml.NvmlError)

    def test_without_cuda_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
        with pytest.raises(MissingDependencyError) as caught:
            load_driver()
        assert caught.value.package == "cuda-python"
        assert "cuda-python" in why_no_gpu()


def test_a_gpu_that_is_not_among_them_and_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(gpus=2)
    monkeypatch.setattr(gpu_module, "load_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(DeviceError, match="there is no GPU 2: 2, counted from 0, can be seen") as caught:
        find_gpu.__wrapped__(2)
    assert caught.value.hint == "take one from 0 to 1"
    monkeypatch.setattr(driver, "cuDeviceGet", lambda _: (SimpleError(999, "CUDA_ERROR_UNKNOWN"), 0))
    with pytest.raises(DeviceError, match="GPU 1 cannot be read: cuDeviceGet failed: CUDA_ERROR_UNKNOWN") as caught:
        find_gpu.__wrapped__(1)
    assert "nvidia-smi" in caught.value.hint


def test_text_of_a_buffer() -> None:
    assert _text(b"NVIDIA H200\0" + b" " * 20) == "NVIDIA H200"
    assert _text(b"") == ""


@gpu
class TestWith:
    def test_what_it_is(self) -> None:
        found = find_gpu()
        assert found.name
        assert [part.isdecimal() for part in found.compute_capability.split(".")] == [True, True]
        assert found.multiprocessors > 0
        assert found.memory_bytes > 2**30
        assert found.driver[0].isdecimal()
        assert float(found.cuda) >= 11

    def test_a_gpu_that_is_not_there(self) -> None:
        with pytest.raises(DeviceError, match="there is no GPU 99"):
            find_gpu(99)

    @pytest.fixture
    def device(self) -> Iterator[Device]:
        device = Device(load_driver(), spin=True)
        yield device
        device.close()

    def test_bytes_travel_there_and_back(self, device: Device) -> None:
        source, target, memory = Pinned(device), Pinned(device), device.allocate(4000)
        source.reserve(4000).view(np.int32)[:] = np.arange(1000)
        target.reserve(4000)[:] = 0
        device.copy_in(memory, source.address, 4000)
        device.copy_out(target.address, memory, 4000)
        device.wait()
        assert (target.array.view(np.int32) == np.arange(1000)).all()
        device.release("cuMemFree", memory)
        source.close()
        target.close()

    def test_a_graph_does_its_work_at_each_launch_and_not_while_it_is_recorded(self, device: Device) -> None:
        source, target, memory = Pinned(device), Pinned(device), device.allocate(4)
        given, made = source.reserve(4).view(np.int32), target.reserve(4).view(np.int32)
        given[0], made[0] = 7, 0

        def work() -> None:
            device.copy_in(memory, source.address, 4)
            device.copy_out(target.address, memory, 4)

        graph = device.record(work)
        assert made[0] == 0
        for number in (7, 8, 9):
            given[0] = number
            device.launch(graph)
            device.wait()
            assert made[0] == number

    def test_a_stream_is_usable_after_a_recording_that_failed(self, device: Device) -> None:
        source, memory = Pinned(device), device.allocate(4)
        source.reserve(4)

        def work() -> None:
            device.copy_in(memory, source.address, 4)
            raise KeyError("half way")

        with pytest.raises(KeyError):
            device.record(work)
        device.copy_in(memory, source.address, 4)
        device.wait()

    def test_memory_is_given_back_and_exhaustion_is_said(self, device: Device) -> None:
        free, total = device.free_memory()
        memory = device.allocate(1 << 30)
        assert device.free_memory()[0] <= free - (1 << 30) + (64 << 20)
        device.release("cuMemFree", memory)
        assert device.free_memory()[0] >= free - (64 << 20)
        with pytest.raises(EngineError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY"):
            device.allocate(total * 2)
