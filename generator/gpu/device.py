"""Which GPU is here, through the CUDA driver itself (package cuda-python), and every call to it.

The device's primary context is used, which TensorRT and torch use as well: allocations and streams of one are valid
for the others. It is retained once per process and lives as long as the process.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.errors import DeviceError, MissingDependencyError

_LOG = logging.getLogger(__name__)
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_INSTALL = "install NVIDIA's driver (in a container: docker run --gpus=all), or serve the graph: target onnxruntime"
# What cuInit says where there is a driver, in plain words; what to do about it.
_NO_START = {
    "CUDA_ERROR_NO_DEVICE": ("there is a driver, but it shows no GPU", "nvidia-smi must list one"),
    "CUDA_ERROR_STUB_LIBRARY": (
        "libcuda.so.1 is the stub of the CUDA toolkit, not the driver",
        "take the toolkit's folder stubs out of LD_LIBRARY_PATH",
    ),
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": (
        "the driver's library and its kernel module are of different versions",
        "restart the machine after an update of the driver",
    ),
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": (
        "CUDA's forward compatibility library does not work with this GPU",
        "take its folder compat out of LD_LIBRARY_PATH, or update the driver",
    ),
    "CUDA_ERROR_SYSTEM_NOT_READY": (
        "the GPU's system services are not ready",
        "start nvidia-fabricmanager, or wait for it",
    ),
    "CUDA_ERROR_DEVICE_UNAVAILABLE": (
        "the GPU is taken by another process, or in a mode that forbids its use",
        "nvidia-smi shows who uses it, and its compute mode",
    ),
}
_BROKEN = re.compile(r"ILLEGAL|LAUNCH_FAILED|ASSERT|MISALIGNED|ECC|HARDWARE_STACK|INVALID_PC|NVLINK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. `index` counts those that CUDA_VISIBLE_DEVICES leaves; `cuda` is the newest the driver supports."""

    index: int
    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int
    driver: str
    cuda: str


@functools.cache
def find_gpu(index: int = 0) -> Gpu:
    """Return the GPU with this number. Nothing is allocated on it.

    Raises:
        DeviceError: No driver, no GPU, or not that many.
        MissingDependencyError: cuda-python is not installed.
    """
    api = load_driver()
    count = call("cuDeviceGetCount", doing="count the GPUs")
    if not 0 <= index < count:
        msg = f"there is no GPU {index}: {_visible(count)}"
        raise DeviceError(msg, hint=f"take one from 0 to {count - 1}" if count else _INSTALL)
    device = call("cuDeviceGet", index, doing=f"open GPU {index}")

    def attribute(name: str) -> int:
        which = getattr(api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", which, device, doing=f"read {name} of GPU {index}"))

    cuda = int(call("cuDriverGetVersion", doing="read the driver's CUDA version"))
    return Gpu(
        index=index,
        name=_text(call("cuDeviceGetName", 256, device, doing=f"read the name of GPU {index}")),
        compute_capability=f"{attribute('COMPUTE_CAPABILITY_MAJOR')}.{attribute('COMPUTE_CAPABILITY_MINOR')}",
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        memory_bytes=int(call("cuDeviceTotalMem", device, doing=f"read the memory size of GPU {index}")),
        driver=_driver_version(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def why_no_gpu() -> str:
    """Return one sentence that says why there is no usable GPU; empty where there is one."""
    try:
        find_gpu()
    except (DeviceError, MissingDependencyError) as error:
        return error.message
    return ""


@functools.cache
def load_driver() -> Any:
    """Return the module of the driver's functions, initialised.

    Raises:
        DeviceError: No driver, or one that does not start.
        MissingDependencyError: cuda-python is not installed.
    """
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("cuda-python", extra=None, why="it talks to the GPU") from error
    try:
        result = driver.cuInit(0)[0]
    except RuntimeError as error:  # what cuda-python raises where it finds no libcuda
        raise DeviceError("there is no NVIDIA driver: libcuda.so.1 was not found", hint=_INSTALL) from error
    if result.name == "CUDA_SUCCESS":
        return driver
    words, hint = _NO_START.get(result.name, ("the NVIDIA driver does not start", "nvidia-smi may say why"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if result.name == "CUDA_ERROR_NO_DEVICE" and hidden is not None:
        words, hint = f"CUDA_VISIBLE_DEVICES={hidden!r} leaves no GPU", "unset CUDA_VISIBLE_DEVICES, or correct it"
    raise DeviceError(f"{words} ({result.name})", hint=hint)


def call(name: str, *arguments: Any, doing: str) -> Any:
    """Call a function of the driver and return what it returns beside its status: nothing, a value, or a tuple.

    Args:
        name: Such as `cuMemAlloc`.
        arguments: What it takes.
        doing: What fails if it fails, as in "the GPU cannot <doing>".

    Raises:
        DeviceError: The status is not success.
    """
    api = load_driver()
    status, *values = getattr(api, name)(*arguments)
    if status != api.CUresult.CUDA_SUCCESS:
        raise _failure(api, status, doing)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def release(name: str, handle: Any) -> None:
    """Give something back with the driver's function `name`; a failure is logged, since nothing can be done about it.

    After a fault on the GPU every further call fails, and what was raised first is what matters.
    """
    status = getattr(load_driver(), name)(handle)[0]
    if status.name not in ("CUDA_SUCCESS", "CUDA_ERROR_DEINITIALIZED"):
        _LOG.warning("%s failed: %s", name, status.name)


def use_gpu(index: int = 0) -> None:
    """Make the GPU's primary context current in this thread; each thread that touches the GPU calls it once.

    Raises:
        DeviceError: No such GPU, or no memory left for the context itself.
    """
    find_gpu(index)
    call("cuCtxSetCurrent", _primary_context(index), doing=f"use GPU {index}")


@functools.cache
def load_nvml() -> Any | None:
    """Return the module of NVML's functions, initialised; None where the driver does not bring the library."""
    try:
        nvml: Any = importlib.import_module("cuda.bindings.nvml")
    except ImportError:
        return None
    try:
        nvml.init_v2()
    except (RuntimeError, nvml.NvmlError) as error:
        _LOG.debug("NVML is not available: %s", error)
        return None
    return nvml


@functools.cache
def _primary_context(index: int) -> Any:
    device = call("cuDeviceGet", index, doing=f"open GPU {index}")
    return call("cuDevicePrimaryCtxRetain", device, doing=f"make a context on GPU {index}")


def _failure(api: Any, status: Any, doing: str) -> DeviceError:
    text = _text(api.cuGetErrorString(status)[1] or b"")
    name = getattr(status, "name", str(status))
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        msg = f"the GPU's memory is exhausted: it cannot {doing}"
        return DeviceError(msg, hint="end what else uses the GPU (nvidia-smi), or take smaller batches")
    if _BROKEN.search(name):
        hint = "start the process again: after such a fault nothing more runs on the GPU in this one"
    else:
        hint = "run nvidia-smi; if it shows the GPU in order, this is a bug in trtgen"
    return DeviceError(f"the GPU cannot {doing}: {name}{f' ({text})' if text else ''}", hint=hint)


def _driver_version() -> str:
    nvml = load_nvml()
    if nvml is not None:
        try:
            return str(nvml.system_get_driver_version())
        except nvml.NvmlError as error:
            _LOG.debug("NVML does not tell the driver's version: %s", error)
    try:
        match = re.search(r"Kernel Module\D*?(\d+\.\d+(?:\.\d+)?)", _KERNEL_MODULE.read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match[1] if match else "unknown"


def _text(data: bytes) -> str:
    """Return the text of a C string in a buffer, which cuda-python returns at its whole length."""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _visible(count: int) -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    limited = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden!r})"
    return f"{'none' if not count else f'{count}, counted from 0,'} can be seen{limited}"
