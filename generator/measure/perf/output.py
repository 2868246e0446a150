"""Measurements as the table that people read, as perf.csv and as perf.json."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from generator.measure.about import describe_run
from generator.measure.perf.analyzer import find_binary
from generator.measure.perf.measurement import LATENCIES, STAGES, Measurement, find_spread
from generator.measure.results import align_columns, round_figures, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.measure.perf.busy import Busy
    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.measurement import Unsettled
    from generator.measure.perf.sweep import Load

# Column of perf.csv -> field of GpuFigures.
_GPU_COLUMNS = {
    "gpus": "gpus",
    "gpu_utilization": "utilization",
    "gpu_power_w": "power_w",
    "gpu_memory_used_bytes": "memory_used_bytes",
    "images_per_joule": "images_per_joule",
}
_CSV_COLUMNS = (
    *("model", "ensemble", "concurrency", "settled", "infer_per_s", "average_ms", *LATENCIES, *STAGES),
    *("other_ms", "share", "spread", "batch_size", *_GPU_COLUMNS),
    *("request_rate", "latency_spread", "client_overhead", "cpu_utilization"),
    *("busy", "instances", "executions_per_s", "executed_batch", "compute_ms"),
)
# Header of the table -> column of perf.csv and its format.
_COLUMNS = {
    "batch": ("batch_size", ""),
    "concurrency": ("concurrency", ""),
    "requests/s": ("request_rate", "g"),
    "images/s": ("infer_per_s", ".1f"),
    "spread": ("spread", ".0%"),
    **{name.removesuffix("_ms"): (name, ".2f") for name in (*LATENCIES, *STAGES, "other_ms")},
    "busy": ("busy", ".0%"),
    "share": ("share", ".0%"),
}
_UNITS = {
    "infer_per_s": "images (rows of a batch) per second, whatever the batch size",
    "concurrency": "requests of batch_size images each, in flight",
    "*_ms": "milliseconds per request",
}
_IF_KNOWN = ("concurrency", "requests/s", "busy")  # columns that are left out where nothing is in them
_ON_GPU = {
    "GPU": ("gpu_utilization", ".0%"),
    "watts": ("gpu_power_w", ".1f"),
    "images/J": ("images_per_joule", ".2f"),
}


def describe_load(*, server: str, analyzer_version: str, load: Load, images: RequestImages) -> dict[str, Any]:
    """Return what a run says about itself: date, command, versions, machine, load, units and images."""
    about = describe_run(
        tritonclient=metadata.version("tritonclient"),
        perf_analyzer=analyzer_version,
        perf_analyzer_sha256=hashlib.sha256(find_binary(load.analyzer).read_bytes()).hexdigest(),
        server=server,
    )
    told = {name: value for name, value in asdict(load).items() if name not in ("analyzer", "timeout_s")}
    return {**about, "load": told, "units": _UNITS, "images": images.describe()}


def format_table(results: Sequence[Measurement | Unsettled]) -> str:
    """Return the table that people read: times in milliseconds, an ensemble's members below it, GPU figures if any."""
    return "\n".join(align_columns(make_table(results)))


def make_table(results: Sequence[Measurement | Unsettled]) -> list[list[str]]:
    """Return the cells of that table, its heads first."""
    rows = _make_rows(results)
    columns = {
        name: cell
        for name, cell in {**_COLUMNS, **_ON_GPU}.items()
        if name not in (*_IF_KNOWN, *_ON_GPU) or any(row.get(cell[0]) is not None for row in rows)
    }
    gpus = max((row.get("gpus") or 0 for row in rows), default=0)
    table = [["model", *(f"{gpus} GPUs" if name == "GPU" and gpus > 1 else name for name in columns)]]
    for row in rows:
        line = {name: _format(row.get(key), how) for name, (key, how) in columns.items()}
        if row.get("ensemble"):
            line["model"] = f"  {row['model']}"
            line |= {name: "" for name in ("concurrency", "requests/s") if name in line}  # they stand above
        elif not row["settled"]:
            line["images/s"] = "not settled"
        table.append([line.pop("model", row["model"]), *line.values()])
    return table


def make_files(results: Sequence[Measurement | Unsettled], about: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of `perf.csv` (a line per row of the table) and `perf.json` (the same, and all of `about`)."""
    table = io.StringIO()
    writer = csv.DictWriter(table, _CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(round_figures(row) for row in _make_rows(results))
    document = {**about, "measurements": [_describe(one) for one in results]}
    return {"perf.csv": table.getvalue(), "perf.json": to_json(document)}


def _make_rows(results: Sequence[Measurement | Unsettled]) -> list[dict[str, Any]]:
    """Return a row per result and, below an ensemble's, one per member."""
    rows = []
    for one in results:
        row = _describe(one)
        if isinstance(one, Measurement):
            row |= {**asdict(one.stages), **{column: getattr(one.gpu, field) for column, field in _GPU_COLUMNS.items()}}
            row |= _describe_busy(one.busy)
        rows.append(row)
        for part in one.members if isinstance(one, Measurement) else ():
            member = {"model": part.model, "share": part.share, **asdict(part.stages), **_describe_busy(part.busy)}
            load = {"concurrency": one.concurrency, "request_rate": one.request_rate}
            rows.append({**member, **load, "ensemble": one.model})
    return rows


def _describe_busy(busy: Busy | None) -> dict[str, Any]:
    if busy is None:
        return {"busy": None}
    return {
        "busy": busy.fraction,
        "instances": busy.instances,
        "executions_per_s": busy.executions_per_s,
        "executed_batch": busy.batch,
        "compute_ms": busy.compute_ms,
    }


def _format(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _describe(result: Measurement | Unsettled) -> dict[str, Any]:
    """Return the fields and whether they are a figure; one that is none has an empty throughput."""
    if isinstance(result, Measurement):
        return {"settled": True, **asdict(result)}
    spread = find_spread(result.windows_infer_per_s)
    return {"settled": False, **asdict(result), "infer_per_s": None, "spread": spread}
