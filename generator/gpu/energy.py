"""What the GPU consumes, as the driver's management library (NVML) measures it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from generator.gpu.device import find_gpu, load_nvml, nvml_handle

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EnergyCounter"]

_LOG = logging.getLogger(__name__)


class EnergyCounter:
    """Energy, power and load of the GPU that CUDA calls `index`.

    The counter covers the whole board and all processes on it, and moves every few tens of milliseconds: measure
    seconds. Each reading is None where the GPU or the container does not offer it.

    Raises:
        DeviceError: No such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        find_gpu(index)
        self._nvml = load_nvml()
        self._handle = nvml_handle(index)

    def joules(self) -> float | None:
        """Return the energy since the driver was loaded: take the difference of two readings."""
        millijoules = self._read("device_get_total_energy_consumption", int)
        return None if millijoules is None else millijoules / 1000

    def power_watts(self) -> float | None:
        """Return the power at this moment (on recent GPUs the mean of the last second)."""
        milliwatts = self._read("device_get_power_usage", int)
        return None if milliwatts is None else milliwatts / 1000

    def utilization(self) -> int | None:
        """Return the percentage of the last sampling period in which at least one kernel ran."""
        return self._read("device_get_utilization_rates", lambda rates: int(rates.gpu))

    def _read(self, name: str, convert: Callable[[Any], int]) -> int | None:
        if self._nvml is None or self._handle is None:
            return None
        try:
            return convert(getattr(self._nvml, name)(self._handle))
        except self._nvml.NvmlError as error:
            _LOG.debug("%s: %s", name, error)
            return None
