"""A BenchResult as a table and as bench.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from generator.measure.bench.result import BenchResult, Measured, Round

__all__ = ["COLUMNS", "format_table", "table_rows", "to_document", "to_json", "worst_cosine", "write_files"]

COLUMNS = (
    "runner", "median ms", "p99 ms", "with copies", "images/s", "spread", "ratio", "memory MiB", "images/J", "cosine",
)  # fmt: skip


def format_table(result: BenchResult) -> str:
    """Return the table that people read: a block for each batch; what failed below it."""
    rows = table_rows(result)
    header = [*COLUMNS]
    header[header.index("ratio")] = f"x {result.reference}"
    widths = [max(len(header[column]), *(len(row[column]) for _, row in rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip()

    lines: list[str] = []
    for batch in result.batches:
        lines += [*([""] if lines else []), f"batch {batch}", line(header)]
        lines += [line(cells) for one, cells in rows if one == batch]
        lines += [f"{one.label}: {one.failure}" for one in result.measured if one.batch == batch and one.failure]
    return "\n".join(lines)


def table_rows(result: BenchResult) -> list[tuple[int, list[str]]]:
    """Return batch and cells for all that may be reported; a cell is empty where there is no figure."""
    return [(one.batch, _cells(result, one)) for one in result.usable()]


def worst_cosine(result: BenchResult, one: Measured) -> float | None:
    """Return how a runner agrees with the first one of the same weights at the same batch; None for that first one."""
    found = [agreed for agreed in result.agreements if (agreed.second, agreed.batch) == (one.label, one.batch)]
    return found[0].worst_cosine if found else None


def to_document(result: BenchResult) -> dict[str, Any]:
    """Return what bench.json holds: `about`, the runners, the figures with their rounds, and who agrees with whom."""
    return {
        "format": 1,
        **result.about,
        "finished": result.finished,
        "reference": result.reference,
        "runners": result.runners,
        "figures": [_figures(result, one) for one in result.measured],
        "agreements": [asdict(one) for one in result.agreements],
    }


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write name -> text into `folder`, which is made where it is absent; a file is whole or the one before.

    Raises:
        PerfError: The folder cannot be written.
    """
    written = [folder / name for name in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in written:
            part = path.with_name(f".{path.name}.part")
            part.write_text(files[path.name], encoding="utf-8")
            part.replace(path)
    except OSError as error:
        raise PerfError(
            f"{folder} cannot be written: {error.strerror}", hint="choose a folder with --output"
        ) from error
    return written


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as text; times to the nanosecond, which is less than a clock's resolution."""
    return json.dumps(_round(document), indent=2) + "\n"


def _cells(result: BenchResult, one: Measured) -> list[str]:
    memory = one.host_bytes if one.gpu_bytes is None else one.gpu_bytes
    cosine = worst_cosine(result, one)
    return [
        one.label,
        f"{one.median_ms:.3f}",
        _format(one.p99_ms, ".3f"),
        _format(one.median_with_copies_ms, ".3f"),
        f"{one.images_per_s:,.1f}",
        f"{one.spread:.1%}" if len(one.rounds) > 1 else "",
        _format(result.ratio(one), ".2f"),
        _format(None if memory is None else memory / 2**20, ",.0f"),
        _format(one.images_per_joule, ",.2f"),
        _format(cosine, ".6f"),
    ]


def _format(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _figures(result: BenchResult, one: Measured) -> dict[str, Any]:
    found: dict[str, Any] = {
        "runner": one.label,
        "batch": one.batch,
        "clock": one.clock,
        "failure": one.failure or None,
        "gpu_memory_bytes": one.gpu_bytes,
        "host_memory_bytes": one.host_bytes,
        "input_sets": one.input_sets,
        "input_bytes": one.input_bytes,
        "rounds": [_summary(one, each) for each in one.rounds],
    }
    if one.usable:
        energy = one.energy
        found |= {
            "iterations": len(one.times_ms),
            "median_ms": one.median_ms,
            "p99_ms": one.p99_ms,
            "max_ms": max(one.times_ms),
            "with_copies_ms": one.median_with_copies_ms,
            "images_per_s": one.images_per_s,
            "spread": one.spread,
            "ratio": result.ratio(one),
            "images_per_joule": one.images_per_joule,
            "watts": None if energy is None else energy.joules / energy.window_s,
            "energy_window_s": None if energy is None else energy.window_s,
        }
    return found


def _summary(one: Measured, each: Round) -> dict[str, Any]:
    return {
        "iterations": len(each.times_ms),
        "median_ms": each.median_ms,
        "min_ms": min(each.times_ms),
        "max_ms": max(each.times_ms),
        "images_per_s": one.batch * len(each.times_ms) / each.span_ms * 1000,
        "energy": None if each.energy is None else asdict(each.energy),
    }


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _round(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_round(inner) for inner in value]
    return value
