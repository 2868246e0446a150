"""perf_analyzer's CSV files read into Measurements, and Measurements written as a table, CSV and JSON.

Where a request spends its time, on average: `queue` waits for a free instance, `input` gathers and copies the batch,
`infer` runs the model, `output` copies the answer, `other` is the rest of what the client sees: network, serialising
and the server's frontend.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError
from generator.measure.perf.gpu import GpuFigures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Measurement",
    "Member",
    "Stages",
    "Unsettled",
    "find_spread",
    "format_table",
    "read_measurement",
    "read_stages",
    "write_report",
]

# Our name -> perf_analyzer's column. Times there are in microseconds.
_STAGES = {
    "queue_ms": "Server Queue",
    "input_ms": "Server Compute Input",
    "infer_ms": "Server Compute Infer",
    "output_ms": "Server Compute Output",
}
_OUTSIDE = ("Client Send", "Network+Server Send/Recv", "Client Recv")
_LATENCIES = {"p50_ms": "p50 latency", "p95_ms": "p95 latency", "p99_ms": "p99 latency"}
# Our column in perf.csv -> GpuFigures.
_GPU_COLUMNS = {
    "gpus": "gpus",
    "gpu_utilization": "utilization",
    "gpu_power_w": "power_w",
    "gpu_memory_used_bytes": "memory_used_bytes",
    "images_per_joule": "images_per_joule",
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One model at one concurrency.

    `infer_per_s` counts inferences, which are rows: images per second, whatever the batch size. `concurrency` counts
    requests of `batch_size` images, and times are per request.
    For an ensemble the stages are the sums over its members. `spread` is how far the best of the three windows lies
    above the worst, in throughput (0.1 = 10 %); None when perf_analyzer did not say.
    """

    model: str
    concurrency: int
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    """One model at one concurrency that gave no figure: `problem` says why, the windows are all that were measured."""

    model: str
    concurrency: int
    batch_size: int
    windows_infer_per_s: tuple[float, ...]
    problem: str
    command: str


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
    parts = {member: read_stages(content, member) for member, content in members.items()}
    stages = own
    if parts:
        sums = {name: sum(getattr(part, name) for part in parts.values()) for name in _STAGES}
        stages = Stages(**{**sums, "queue_ms": own.queue_ms + sums["queue_ms"]})
    average_ms = own.total_ms + sum(_read_ms(row, column, model) for column in _OUTSIDE)
    return Measurement(
        model=model,
        concurrency=int(_read_number(row, "Concurrency", model)),
        infer_per_s=_read_number(row, "Inferences/Second", model),
        average_ms=average_ms,
        **{name: _read_ms(row, column, model) for name, column in _LATENCIES.items()},
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


def read_stages(text: str, model: str) -> Stages:
    """Read the file that perf_analyzer writes for a member of the ensemble it measured."""
    return _read_stages(_read_row(text, model), model)


def format_table(results: Sequence[Measurement | Unsettled]) -> str:
    """Return the table that people read: times in milliseconds, an ensemble's members below it, GPU figures if any."""
    on_gpu = _format_gpu([one.gpu if isinstance(one, Measurement) else GpuFigures() for one in results])
    stages = ["queue", "input", "infer", "output", "other"]
    rows = [
        ["model", "batch", "concurrency", "images/s", "spread", "p50", "p95", "p99", *stages, "share", *on_gpu],
    ]
    for index, one in enumerate(results):
        load = [one.model, str(one.batch_size), str(one.concurrency)]
        if isinstance(one, Unsettled):
            rows.append([*load, "not settled", _format_spread(find_spread(one.windows_infer_per_s))])
            continue
        latencies = [f"{value:.2f}" for value in (one.p50_ms, one.p95_ms, one.p99_ms)]
        times = [*latencies, *_format_stages(one.stages), f"{one.other_ms:.2f}"]
        throughput = [f"{one.infer_per_s:.1f}", _format_spread(one.spread)]
        rows.append([*load, *throughput, *times, "", *(cells[index] for cells in on_gpu.values())])
        rows += [
            [f"  {part.model}", *[""] * 7, *_format_stages(part.stages), "", f"{part.share:.0%}"]
            for part in one.members
        ]
    rows = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_report(results: Sequence[Measurement | Unsettled], *, about: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `perf.csv` (a line per row of the table) and `perf.json` (the same with everything in `about`).

    Raises:
        PerfError: The folder cannot be written.
    """
    table = io.StringIO()
    names = ["model", "ensemble", "concurrency", "settled", "infer_per_s", "average_ms", *_LATENCIES, *_STAGES]
    names += ["other_ms", "share", "spread", "batch_size", *_GPU_COLUMNS]
    writer = csv.DictWriter(table, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in results:
        if isinstance(one, Unsettled):
            writer.writerow(_describe(one))
            continue
        gpu = {column: getattr(one.gpu, field) for column, field in _GPU_COLUMNS.items()}
        writer.writerow(_round({**_describe(one), **asdict(one.stages), **gpu}))
        for part in one.members:
            place = {"model": part.model, "ensemble": one.model, "concurrency": one.concurrency, "share": part.share}
            writer.writerow(_round({**place, **asdict(part.stages)}))
    document = {**about, "measurements": [_describe(one) for one in results]}
    written = [folder / "perf.csv", folder / "perf.json"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written[0].write_text(table.getvalue(), encoding="utf-8")
        written[1].write_text(json.dumps(_round(document), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PerfError(
            f"{folder} cannot be written: {error.strerror}", hint="choose a folder with --output"
        ) from error
    return written


def _describe(result: Measurement | Unsettled) -> dict[str, Any]:
    """Return the fields and whether they are a figure; one that is none has an empty throughput."""
    if isinstance(result, Measurement):
        return {"settled": True, **asdict(result)}
    spread = find_spread(result.windows_infer_per_s)
    return {"settled": False, **asdict(result), "infer_per_s": None, "spread": spread}


def _format_spread(spread: float | None) -> str:
    return "" if spread is None else f"{spread:.0%}"


def _format_gpu(figures: Sequence[GpuFigures]) -> dict[str, list[str]]:
    """Return header -> a cell per measurement, for the figures that at least one of them has."""
    gpus = max((one.gpus or 0 for one in figures), default=0)
    columns = {
        "GPU" if gpus < 2 else f"{gpus} GPUs": [(one.utilization, "{:.0%}") for one in figures],
        "watts": [(one.power_w, "{:.1f}") for one in figures],
        "images/J": [(one.images_per_joule, "{:.2f}") for one in figures],
    }
    return {
        header: ["" if value is None else pattern.format(value) for value, pattern in cells]
        for header, cells in columns.items()
        if any(value is not None for value, _ in cells)
    }


def _format_stages(stages: Stages) -> list[str]:
    return [f"{getattr(stages, field.name):.2f}" for field in fields(stages)]


def _round(value: Any) -> Any:
    """Keep microseconds: what perf_analyzer measures in."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _round(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_round(inner) for inner in value]
    return value


def _read_row(text: str, model: str) -> dict[str, str]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(rows) != 1:
        raise PerfError(f"perf_analyzer's CSV for {model} has {len(rows)} rows, expected 1", hint="run it again")
    return {name.strip(): value for name, value in rows[0].items() if name and value is not None}


def _read_stages(row: Mapping[str, str], model: str) -> Stages:
    return Stages(**{name: _read_ms(row, column, model) for name, column in _STAGES.items()})


def _read_ms(row: Mapping[str, str], column: str, model: str) -> float:
    return _read_number(row, column, model) / 1000


def _read_number(row: Mapping[str, str], column: str, model: str) -> float:
    try:
        return float(row[column])
    except KeyError:
        found = f"columns of perf_analyzer's CSV for {model}: {', '.join(row)}"
        raise PerfError(f"no {column!r} among the {found}", hint="use the version of `trtgen perf --install`") from None
    except ValueError:
        found = f"{row[column]!r} under {column!r} in perf_analyzer's CSV for {model}"
        raise PerfError(
            f"{found} is not a number", hint="run it again; the server may have stopped meanwhile"
        ) from None
