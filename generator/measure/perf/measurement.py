"""One measurement: perf_analyzer's CSV files read.

Where a request spends its time, on average: `queue` waits for a free instance, `input` gathers and copies the batch,
`infer` runs the model, `output` copies the answer, `other` is the rest of what the client sees: network, serialising
and the server's frontend.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import PerfError
from generator.measure.perf.analyzer import INSTALL
from generator.measure.perf.gpu import GpuFigures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.measure.perf.busy import Busy

# Our name -> perf_analyzer's column. Times there are in microseconds.
STAGES = {
    "queue_ms": "Server Queue",
    "input_ms": "Server Compute Input",
    "infer_ms": "Server Compute Infer",
    "output_ms": "Server Compute Output",
}
_OUTSIDE = ("Client Send", "Network+Server Send/Recv", "Client Recv")
RATE = "Request Rate"
LATENCIES = {"p50_ms": "p50 latency", "p95_ms": "p95 latency", "p99_ms": "p99 latency"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Average time per request inside the server, in milliseconds."""

    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def total_ms(self) -> float:
        """All of them together."""
        return self.queue_ms + self.input_ms + self.infer_ms + self.output_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member's part in the requests of its ensemble; `share` of the latency that the client sees, 0 to 1."""

    model: str
    share: float
    stages: Stages
    busy: Busy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One model at one concurrency or one rate of requests.

    `infer_per_s` counts inferences, which are rows: images per second, whatever the batch size. `concurrency` counts
    requests of `batch_size` images, and times are per request.
    For an ensemble the stages are the sums over its members. `spread` is how far the best of the three windows lies
    above the worst, in throughput (0.1 = 10 %), `latency_spread` the same for the average latency; None when
    perf_analyzer did not say. With `request_rate`, so many requests a second were sent, however many were answered, and
    `concurrency` is None. `client_overhead` is the part of the time that perf_analyzer needed for itself,
    `cpu_utilization` that of all cores of the server's machine in use, 0 to 1. `busy` is that of a plain model.
    """

    model: str
    concurrency: int | None
    infer_per_s: float
    average_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    stages: Stages
    other_ms: float
    spread: float | None
    members: tuple[Member, ...]
    command: str
    batch_size: int
    gpu: GpuFigures
    request_rate: float | None = None
    latency_spread: float | None = None
    client_overhead: float | None = None
    cpu_utilization: float | None = None
    busy: Busy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    """One model at one load that gave no figure: `problem` says why, the windows are all that were measured."""

    model: str
    concurrency: int | None
    batch_size: int
    windows_infer_per_s: tuple[float, ...]
    problem: str
    command: str
    request_rate: float | None = None


def find_spread(windows: Sequence[float]) -> float | None:
    """Return how far the best of the last three windows lies above the worst; None without windows."""
    last = windows[-3:]
    return max(last) / min(last) - 1 if last and min(last) > 0 else None


def read_measurement(
    text: str,
    *,
    model: str,
    members: Mapping[str, str],
    spread: float | None = None,
    command: str = "",
    batch_size: int = 1,
) -> Measurement:
    """Read the CSV files of one run.

    Args:
        text: The file that perf_analyzer wrote for the model itself, with `--verbose-csv`; one row.
        model: Its name, for the result and for errors.
        members: For an ensemble, the file of each member.
        spread: See `Measurement`.
        command: The command line that measured, for the record.
        batch_size: Images per request.

    Raises:
        PerfError: A column or the row is missing.

    The GPU figures are all None: they are not in these files.
    """
    row = _read_row(text, model)
    own = _read_stages(row, model)
    # An ensemble's own compute columns repeat the sums over its members, but its queue leaves theirs out.
    parts = {member: _read_stages(_read_row(content, member), member) for member, content in members.items()}
    stages = own
    if parts:
        sums = {name: sum(getattr(part, name) for part in parts.values()) for name in STAGES}
        stages = Stages(**{**sums, "queue_ms": own.queue_ms + sums["queue_ms"]})
    average_ms = own.total_ms + sum(_read_ms(row, column, model) for column in _OUTSIDE)
    rate = _read_number(row, RATE, model) if RATE in row else None
    return Measurement(
        model=model,
        concurrency=int(_read_number(row, "Concurrency", model)) if rate is None else None,
        request_rate=rate,
        infer_per_s=_read_number(row, "Inferences/Second", model),
        average_ms=average_ms,
        p50_ms=_read_ms(row, LATENCIES["p50_ms"], model),
        p95_ms=_read_ms(row, LATENCIES["p95_ms"], model),
        p99_ms=_read_ms(row, LATENCIES["p99_ms"], model),
        stages=stages,
        other_ms=max(average_ms - stages.total_ms, 0.0),
        spread=spread,
        members=tuple(
            Member(model=member, share=part.total_ms / average_ms if average_ms else 0.0, stages=part)
            for member, part in parts.items()
        ),
        command=command,
        batch_size=batch_size,
        gpu=GpuFigures(),
    )


def _read_row(text: str, model: str) -> dict[str, str]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(rows) != 1:
        raise PerfError(f"perf_analyzer's CSV for {model} has {len(rows)} rows, expected 1", hint="run it again")
    return {name.strip(): value for name, value in rows[0].items() if name and value is not None}


def _read_stages(row: Mapping[str, str], model: str) -> Stages:
    return Stages(**{name: _read_ms(row, column, model) for name, column in STAGES.items()})


def _read_ms(row: Mapping[str, str], column: str, model: str) -> float:
    return _read_number(row, column, model) / 1000


def _read_number(row: Mapping[str, str], column: str, model: str) -> float:
    try:
        return float(row[column])
    except KeyError:
        found = f"columns of perf_analyzer's CSV for {model}: {', '.join(row)}"
        raise PerfError(
            f"no {column!r} among the {found}", hint="install the version that is known", **INSTALL
        ) from None
    except ValueError:
        found = f"{row[column]!r} under {column!r} in perf_analyzer's CSV for {model}"
        raise PerfError(
            f"{found} is not a number", hint="run it again; the server may have stopped meanwhile"
        ) from None
