"""Which GPU is here, through the CUDA driver itself (package cuda-python)."""

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
from generator.runtime.device import EngineError, call

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
    driver = load_driver()
    try:
        count = call(driver, "cuDeviceGetCount")
        if 0 <= index < count:
            return _describe(driver, index)
    except EngineError as error:
        hint = "run nvidia-smi; if it shows the GPU in order, this is a bug in trtgen"
        raise DeviceError(f"GPU {index} cannot be read: {error}", hint=hint) from error
    msg = f"there is no GPU {index}: {_visible(count)}"
    raise DeviceError(msg, hint=f"take one from 0 to {count - 1}" if count else _INSTALL)


def count_gpus() -> int:
    """Return how many GPUs can be seen.

    Raises:
        DeviceError: No driver.
        MissingDependencyError: cuda-python is not installed.
    """
    return int(call(load_driver(), "cuDeviceGetCount"))


def _describe(driver: Any, index: int) -> Gpu:
    device = call(driver, "cuDeviceGet", index)

    def attribute(name: str) -> int:
        which = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call(driver, "cuDeviceGetAttribute", which, device))

    cuda = int(call(driver, "cuDriverGetVersion"))
    return Gpu(
        index=index,
        name=_text(call(driver, "cuDeviceGetName", 256, device)),
        compute_capability=f"{attribute('COMPUTE_CAPABILITY_MAJOR')}.{attribute('COMPUTE_CAPABILITY_MINOR')}",
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        memory_bytes=int(call(driver, "cuDeviceTotalMem", device)),
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


@functools.cache
def hold_context(index: int) -> None:
    """Keep the GPU's primary context for the life of this process: libraries would lose what they made in it.

    Raises:
        EngineError: No memory is left for it.
    """
    driver = load_driver()
    call(driver, "cuDevicePrimaryCtxRetain", call(driver, "cuDeviceGet", index))


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
