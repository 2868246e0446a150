"""What the GPUs of the server did during a measurement: utilisation, power and energy from Triton's metrics page.

Triton copies these figures from DCGM every `--metrics-interval-ms` (2 s in the container, 0.25 s under `trtgen serve`);
without a GPU or DCGM the page has none. Samples count from the model's first counted request to its last, so that
perf_analyzer's start does not dilute the mean, and from the first figures that are newer than the load.
"""

from __future__ import annotations

import http.client
import itertools
import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.measure.perf.poll import INTERVAL_S, Poll, get_text

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_UTILIZATION, _POWER = "nv_gpu_utilization", "nv_gpu_power_usage"
_MEMORY, _ENERGY = "nv_gpu_memory_used_bytes", "nv_energy_consumption"
_COUNT = "nv_inference_count"
_CPU = re.compile(r"^nv_cpu_utilization (\S+)$", re.MULTILINE)
_LINE = re.compile(r'(nv_\w+)\{.*?\b(?:gpu_uuid|model)="([^"]*)".*\} (\S+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFigures:
    """Means over a measurement; None where the server does not say, and then `unknown` has the reason.

    `gpus` is how many the server lists. `utilization` (0 to 1) is their mean; `power_w`, `memory_used_bytes` and
    `energy_j` are their sums, the energy over `seconds`. `samples` is the number of readings behind the means.
    """

    gpus: int | None = None
    utilization: float | None = None
    power_w: float | None = None
    memory_used_bytes: float | None = None
    energy_j: float | None = None
    seconds: float | None = None
    images_per_joule: float | None = None
    samples: int = 0
    unknown: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """One reading of the page: metric -> GPU -> value, and how many inferences the model has made (None: not there).

    `cpu` is the part of all cores of the server's machine that is in use, 0 to 1; None where the page does not say.
    """

    at_s: float
    count: float | None
    cpu: float | None
    gpus: dict[str, dict[str, float]]

    def find_values(self, metric: str) -> list[float]:
        return list(self.gpus.get(metric, {}).values())


class MetricsWatch:
    """What the metrics page said of one model and the GPUs, from time to time."""

    def __init__(self, url: str, model: str, interval_s: float = INTERVAL_S) -> None:
        """Watch `model` on the page of `url` (`host:port`)."""
        self._url = url
        self._model = model
        errors = (OSError, http.client.HTTPException, ValueError)
        self._poll = Poll(lambda: _read_sample(url, model), errors=errors, interval_s=interval_s)

    def run(self) -> AbstractContextManager[None]:
        """Read the page in a thread for as long as the block runs."""
        return self._poll.run()

    def find_cpu_utilization(self) -> float | None:
        """Return how much of the cores of the server's machine was in use, 0 to 1; None where the page does not say."""
        found = [sample.cpu for sample in _find_loaded(self._poll.samples) if sample.cpu is not None]
        return sum(found) / len(found) if found else None

    def summarize(self, images_per_s: float) -> GpuFigures:
        """Return the figures of what was read until now, with the images that `images_per_s` makes of a joule."""
        page, samples = f"http://{self._url}/metrics", self._poll.samples
        if not samples:
            return GpuFigures(unknown=f"{page} {self._poll.problem}")
        gpus = len({gpu for sample in samples for readings in sample.gpus.values() for gpu in readings})
        if not gpus:
            return GpuFigures(gpus=0, unknown=f"{page} has no GPU figures (no GPU, or no DCGM, on the server's side)")
        loaded = _find_loaded(samples)
        if not loaded:
            return GpuFigures(
                gpus=gpus, unknown=f"{page} counts no request of {self._model} meanwhile: another server's?"
            )
        energy_j, seconds = _measure_energy(loaded)
        power_w = _average(loaded, _POWER)
        if power_w is None and energy_j and seconds:
            power_w = energy_j / seconds
        utilization = _average(loaded, _UTILIZATION)
        return GpuFigures(
            gpus=gpus,
            utilization=None if utilization is None else utilization / gpus,
            power_w=power_w,
            memory_used_bytes=_average(loaded, _MEMORY),
            energy_j=energy_j,
            seconds=seconds,
            images_per_joule=images_per_s / power_w if power_w else None,
            samples=len(loaded),
            unknown=None if power_w else f"{page} has neither power nor energy",
        )


def _read_sample(url: str, model: str) -> _Sample:
    text = get_text(url, "/metrics")
    count: float | None = None
    gpus: dict[str, dict[str, float]] = {}
    for name, owner, written in _LINE.findall(text):
        value = float(written)
        if name == _COUNT and owner == model:
            count = (count or 0.0) + value  # a line per version
        elif name in {_UTILIZATION, _POWER, _MEMORY, _ENERGY} and math.isfinite(value):
            gpus.setdefault(name, {})[owner] = value
    cpu = _CPU.search(text)
    return _Sample(at_s=time.monotonic(), count=count, cpu=float(cpu[1]) if cpu else None, gpus=gpus)


def _find_loaded(samples: list[_Sample]) -> list[_Sample]:
    """Return the samples between the model's first and last counted inference, without those of before the load."""
    grown = [
        index
        for index, (before, after) in enumerate(itertools.pairwise(samples), start=1)
        if after.count is not None and after.count > (before.count or 0.0)
    ]
    if not grown:
        return []
    loaded = samples[grown[0] : grown[-1] + 1]
    idle = samples[grown[0] - 1].gpus
    # The server may not have asked DCGM since; figures that never change are as good as they get.
    newer = next((index for index, sample in enumerate(loaded) if sample.gpus != idle), 0)
    return loaded[newer:]


def _average(samples: list[_Sample], metric: str) -> float | None:
    """Return the mean over `samples` of the sum over the GPUs."""
    sums = [sum(values) for values in (sample.find_values(metric) for sample in samples) if values]
    return sum(sums) / len(sums) if sums else None


def _measure_energy(samples: list[_Sample]) -> tuple[float | None, float | None]:
    """Return joules and seconds between the first sample and the one that brought the last new value."""
    readings = [(sample.at_s, sum(values)) for sample in samples if (values := sample.find_values(_ENERGY))]
    if not readings:
        return None, None
    end_s = next(at_s for at_s, joules in readings if joules == readings[-1][1])
    seconds = end_s - readings[0][0]
    return (readings[-1][1] - readings[0][1], seconds) if seconds > 0 else (None, None)
