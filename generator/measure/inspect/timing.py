"""Time per layer: TensorRT calls an IProfiler once per layer and run; medians of many runs are taken."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.measure.inspect.layers import without_profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from generator.runtime.session import Session

__all__ = ["LayerTime", "Run", "Timing", "measure", "summarise"]

# The times of one run, in the order in which TensorRT reports them: name of the layer, milliseconds.
Run = list[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """What one layer took over all runs, in milliseconds. `occurrence` counts layers that share a name, from 0."""

    name: str
    occurrence: int
    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of all layers, and of one inference without a profiler (host clock, no copies), in milliseconds."""

    layers: tuple[LayerTime, ...]
    latency_ms: float
    iterations: int
    warm_up: int


def summarise(runs: Sequence[Run]) -> tuple[LayerTime, ...]:
    """Return the median, the 5th and the 95th percentile of each layer; runs that miss layers are no harm."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for run in runs:
        for key, elapsed_ms in zip(_number(name for name, _ in run), (ms for _, ms in run), strict=True):
            times[key].append(elapsed_ms)
    return tuple(
        LayerTime(
            name=name,
            occurrence=occurrence,
            median_ms=statistics.median(values),
            low_ms=_percentile(values, 0.05),
            high_ms=_percentile(values, 0.95),
        )
        for (name, occurrence), values in times.items()
    )


def measure(trt: Any, session: Session, *, iterations: int, warm_up: int) -> Timing:
    """Run the session's input `warm_up` + `iterations` times without and with a profiler.

    With a profiler TensorRT launches layer after layer, with an event between each two: no CUDA graph, no overlap.
    The sum over the layers is therefore at least the time of one inference.
    """
    for _ in range(warm_up):
        session.enqueue()
    session.synchronize()
    plain = []
    for _ in range(iterations):
        start = time.perf_counter()
        session.enqueue()
        session.synchronize()
        plain.append((time.perf_counter() - start) * 1000)
    runs = _profile(trt, session, iterations=iterations, warm_up=warm_up)
    return Timing(layers=summarise(runs), latency_ms=statistics.median(plain), iterations=iterations, warm_up=warm_up)


def _profile(trt: Any, session: Session, *, iterations: int, warm_up: int) -> list[Run]:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # TensorRT asks for this very call, not for super()
            self.run: Run = []

        def report_layer_time(self, name: str, ms: float) -> None:
            self.run.append((without_profile(name), ms))

    profiler = Profiler()
    context = session.context
    context.profiler = profiler
    context.enqueue_emits_profile = False  # then times are asked for when the run is over, and enqueue does not block
    runs: list[Run] = []
    for index in range(warm_up + iterations):
        profiler.run = []
        session.enqueue()
        session.synchronize()
        if not context.enqueue_emits_profile:
            context.report_to_profiler()
        if not profiler.run and index == 0:
            context.enqueue_emits_profile = True  # the blocking way, for a TensorRT that does not report on request
        if index >= warm_up:
            runs.append(profiler.run)
    if not any(runs):
        msg = "TensorRT reported no layer times to its profiler"
        raise PlanError(msg, hint="build the plan again with trtgen build-plan; trtgen bench measures it as a whole")
    return runs


def _number(names: Iterable[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered


def _percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[round(part * (len(ordered) - 1))]
