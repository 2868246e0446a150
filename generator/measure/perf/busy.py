"""How busy the processes of each model were during a measurement, from the server's own statistics.

Triton counts the executions of a model and the time that they computed, each execution once, whatever its batch. So
compute time / (instances x elapsed time) is the part of the time in which an instance had work. What counts is the time
between two readings, the first and the last in which the measured model answered something.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.measure.perf.poll import INTERVAL_S, TIMEOUT_S, Poll, get_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from generator.measure.perf.served import MeasuredModel

_PHASES = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """One model's part in a measurement.

    `fraction` (0 to 1) is how much of the time its `instances` computed. An execution took `compute_ms` and had `batch`
    images, on average.
    """

    instances: int
    fraction: float
    executions_per_s: float
    batch: float
    compute_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """What a model has done since the server's start."""

    inferences: int = 0
    executions: int = 0
    compute_ns: int = 0


_Sample = tuple[float, dict[str, _Counts]]  # seconds, model -> counts


class StatisticsWatch:
    """What the server's statistics say from time to time."""

    def __init__(self, protocol: str, url: str, model: str) -> None:
        """Watch `model`, asking `url` (`host:port`) over `protocol`."""
        self._protocol = protocol
        self._url = url
        self._model = model
        self._samples: list[_Sample] = []

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Ask in a thread for as long as the block runs."""
        with _open(self._protocol, self._url) as (ask, errors):
            poll = Poll(lambda: _read(ask()), errors=errors, interval_s=INTERVAL_S)
            self._samples = poll.samples
            with poll.run():
                yield

    def find_busy(self, model: MeasuredModel) -> Busy | None:
        """Return what `model`, the watched one or a member of it, did; None where the server did not say."""
        grown = [
            index
            for index, (before, after) in enumerate(itertools.pairwise(self._samples), start=1)
            if _find(after, self._model).inferences > _find(before, self._model).inferences
        ]
        if len(grown) < 2 or model.members:
            return None
        first, last = self._samples[grown[0]], self._samples[grown[-1]]
        before, after, seconds = _find(first, model.name), _find(last, model.name), last[0] - first[0]
        executions = after.executions - before.executions
        if executions <= 0:
            return None
        compute_s = (after.compute_ns - before.compute_ns) / 1e9
        return Busy(
            instances=model.instances,
            fraction=min(compute_s / (model.instances * seconds), 1.0),  # a long execution counts when it ends
            executions_per_s=executions / seconds,
            batch=(after.inferences - before.inferences) / executions,
            compute_ms=compute_s / executions * 1000,
        )


@contextlib.contextmanager
def _open(protocol: str, url: str) -> Iterator[tuple[Callable[[], Any], tuple[type[Exception], ...]]]:
    """Give what asks for the statistics of all models, and what that raises."""
    if protocol == "http":
        yield lambda: json.loads(get_text(url, "/v2/models/stats")), (OSError, http.client.HTTPException, ValueError)
        return
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    with InferenceServerClient(url) as client:
        yield (
            lambda: client.get_inference_statistics(as_json=True, client_timeout=TIMEOUT_S),
            (InferenceServerException,),
        )


def _read(answer: Any) -> _Sample:
    """Return the counts of each model; gRPC leaves zeros out and writes large numbers as text."""
    models: dict[str, _Counts] = {}
    for model in answer.get("model_stats", ()):  # one for each version
        known = models.get(model["name"], _Counts())
        phases = [batch.get(phase, {}) for batch in model.get("batch_stats", ()) for phase in _PHASES]
        models[model["name"]] = _Counts(
            inferences=known.inferences + int(model.get("inference_count", 0)),
            executions=known.executions + int(model.get("execution_count", 0)),
            compute_ns=known.compute_ns + sum(int(phase.get("ns", 0)) for phase in phases),
        )
    return time.monotonic(), models


def _find(sample: _Sample, model: str) -> _Counts:
    return sample[1].get(model, _Counts())
