"""Time per layer: TensorRT calls an IProfiler once per layer and run; medians of many runs are taken."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.measure.inspect.layers import without_profile
from generator.plan.header import BUILD_PLAN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from generator.runtime.engine import Engine
    from generator.runtime.shapes import Shapes

# The times of one run, in the order in which TensorRT reports them: name of the layer, milliseconds.
Run = list[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Median times of all layers, and of one inference without a profiler (host clock, no copies), in milliseconds.

    The key of a layer is its name and, for layers that share one, their number in order, from 0.
    """

    layers_ms: dict[tuple[str, int], float]
    latency_ms: float
    iterations: int
    warm_up: int


def take_medians(runs: Sequence[Run]) -> dict[tuple[str, int], float]:
    """Return the median of each layer; runs that miss layers are no harm."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for run in runs:
        for key, (_, elapsed_ms) in zip(number_names(name for name, _ in run), run, strict=True):
            times[key].append(elapsed_ms)
    return {key: statistics.median(values) for key, values in times.items()}


def measure_layers(engine: Engine, shapes: Shapes, *, iterations: int, warm_up: int) -> Timing:
    """Run the engine's first context `warm_up` + `iterations` times without and with a profiler.

    With a profiler TensorRT launches layer after layer, with an event between each two: no CUDA graph, no overlap.
    The sum over the layers is therefore at least the time of one inference.
    """
    for _ in range(warm_up):
        engine.enqueue(0, shapes)
    engine.wait()
    plain = []
    for _ in range(iterations):
        start = time.perf_counter()
        engine.enqueue(0, shapes)
        engine.wait()
        plain.append((time.perf_counter() - start) * 1000)
    runs = _profile(engine.trt, engine, shapes, iterations=iterations, warm_up=warm_up)
    return Timing(
        layers_ms=take_medians(runs), latency_ms=statistics.median(plain), iterations=iterations, warm_up=warm_up
    )


def _profile(trt: Any, engine: Engine, shapes: Shapes, *, iterations: int, warm_up: int) -> list[Run]:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # TensorRT asks for this very call, not for super()
            self.run: Run = []

        def report_layer_time(self, name: str, ms: float) -> None:
            self.run.append((without_profile(name), ms))

    profiler = Profiler()
    context = engine.contexts[0]
    context.profiler = profiler
    context.enqueue_emits_profile = False  # then times are asked for when the run is over, and enqueue does not block
    runs: list[Run] = []
    for index in range(warm_up + iterations):
        profiler.run = []
        engine.enqueue(0, shapes)
        engine.wait()
        if not context.enqueue_emits_profile:
            context.report_to_profiler()
        if not profiler.run and index == 0:
            context.enqueue_emits_profile = True  # the blocking way, for a TensorRT that does not report on request
        if index >= warm_up:
            runs.append(profiler.run)
    if not any(runs):
        msg = "TensorRT reported no layer times to its profiler"
        raise PlanError(msg, hint="bench measures it as a whole; build the plan again", command=BUILD_PLAN)
    return runs


def number_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return each name with the number of equal ones before it."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered
