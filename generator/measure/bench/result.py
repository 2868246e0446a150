"""What a run found: rounds as they were measured, and the figures that follow from them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# Fewer samples say nothing about the slowest of a hundred.
_SAMPLES_FOR_P99 = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What the GPU's board took while a runner worked steadily, from one step of NVML's counter to another."""

    joules: float
    window_s: float
    iterations: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of one runner: the time of each iteration, and of the stretches in which they ran, pauses included."""

    times_ms: tuple[float, ...]
    span_ms: float
    energy: Energy | None

    @property
    def median_ms(self) -> float:
        """The median of its iterations."""
        return statistics.median(self.times_ms)


@dataclass(slots=True, kw_only=True)
class RunnerFigures:
    """One runner at one batch; grows by a round at a time. `failure` says why there are no (more) rounds.

    `gpu_bytes` is the device memory that the runner's process holds, CUDA context included; `host_bytes` its peak
    resident memory. `with_copies_ms` are iterations with the input copied to the device and the output back.
    `input_bytes` is the size of all `input_sets` together.
    """

    label: str
    batch: int
    clock: str = ""
    rounds: list[Round] = field(default_factory=list)
    failure: str = ""
    gpu_bytes: int | None = None
    host_bytes: int | None = None
    input_sets: int = 0
    input_bytes: int = 0
    with_copies_ms: list[float] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether it was measured, and nothing speaks against its figures."""
        return bool(self.rounds) and not self.failure

    @property
    def times_ms(self) -> list[float]:
        """The iterations of all rounds."""
        return [time for one in self.rounds for time in one.times_ms]

    @property
    def median_ms(self) -> float:
        """Over the iterations of all rounds."""
        return statistics.median(self.times_ms)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile (nearest rank); None for fewer than 100 iterations."""
        times = sorted(self.times_ms)
        return times[math.ceil(0.99 * len(times)) - 1] if len(times) >= _SAMPLES_FOR_P99 else None

    @property
    def images_per_s(self) -> float:
        """Images by the time from the first to the last iteration, pauses between the iterations included."""
        return self.batch * len(self.times_ms) / sum(one.span_ms for one in self.rounds) * 1000

    @property
    def images_per_s_of_rounds(self) -> list[float]:
        """The same for each round."""
        return [self.batch * len(one.times_ms) / one.span_ms * 1000 for one in self.rounds]

    @property
    def spread(self) -> float:
        """How far the best round lies above the worst, in images per second (0.1 = 10 %)."""
        rates = self.images_per_s_of_rounds
        return max(rates) / min(rates) - 1

    @property
    def energy(self) -> Energy | None:
        """All windows together."""
        found = [one.energy for one in self.rounds if one.energy is not None]
        if not found:
            return None
        joules, window_s = sum(one.joules for one in found), sum(one.window_s for one in found)
        return Energy(joules=joules, window_s=window_s, iterations=sum(one.iterations for one in found))

    @property
    def images_per_joule_of_rounds(self) -> list[float]:
        """Over all windows, then in each; nothing where no energy was measured."""
        whole = self.images_per_joule
        each = (one.energy for one in self.rounds if one.energy is not None and one.energy.joules > 0)
        return [] if whole is None else [whole, *(self.batch * one.iterations / one.joules for one in each)]

    @property
    def images_per_joule(self) -> float | None:
        """Images by the energy of the whole board during the windows."""
        energy = self.energy
        return None if energy is None or energy.joules <= 0 else self.batch * energy.iterations / energy.joules

    @property
    def median_with_copies_ms(self) -> float | None:
        """The median with both copies; None where there are none to make."""
        return statistics.median(self.with_copies_ms) if self.with_copies_ms else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How alike two runners answer the same images: the worst image's cosine, and the share with the same first class.

    `expected` is whether both have the weights of the same graph; others are compared for the record only.
    """

    first: str
    second: str
    batch: int
    worst_cosine: float
    top1: float


@dataclass(slots=True, kw_only=True)
class BenchResult:
    """Everything of one run; `about` says when, where and with what."""

    reference: str
    figures: list[RunnerFigures] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    runners: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    @property
    def labels(self) -> list[str]:
        """The runners' labels in order."""
        return list(dict.fromkeys(one.label for one in self.figures))

    @property
    def batches(self) -> list[int]:
        """The batches in order."""
        return list(dict.fromkeys(one.batch for one in self.figures))

    def find(self, label: str, batch: int) -> RunnerFigures | None:
        """Return the usable figures of a runner at a batch."""
        found = (one for one in self.figures if (one.label, one.batch) == (label, batch) and one.usable)
        return next(found, None)

    def ratio(self, one: RunnerFigures) -> float | None:
        """Return its images per second by those of the reference at the same batch."""
        reference = self.find(self.reference, one.batch)
        return None if reference is None else one.images_per_s / reference.images_per_s

    def worst_cosine(self, one: RunnerFigures) -> float | None:
        """Return how it agrees with the first runner of the same weights at its batch; None for that first one."""
        found = (each for each in self.agreements if (each.second, each.batch) == (one.label, one.batch))
        return next((each.worst_cosine for each in found), None)

    def usable(self) -> Sequence[RunnerFigures]:
        """Return the figures that can be reported."""
        return [one for one in self.figures if one.usable]
