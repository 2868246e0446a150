"""A BenchResult as the table that people read, as bench.json and as bench.html."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from generator.measure.results import align_columns
from generator.render import render

if TYPE_CHECKING:
    from generator.measure.bench.result import BenchResult, Round, RunnerFigures

_COLUMNS = (
    "runner", "median ms", "p99 ms", "with copies", "images/s", "spread", "ratio", "memory MiB", "images/J", "cosine",
)  # fmt: skip


def format_table(result: BenchResult) -> str:
    """Return the table that people read: a block for each batch; what failed below it."""
    blocks = _make_blocks(result)
    lines = align_columns([_header(result), *(row for block in blocks for row in block["rows"])])
    header, rows = lines[0], iter(lines[1:])
    shown = []
    for block in blocks:
        failures = [f"{one.label}: {one.failure}" for one in block["failures"]]
        shown.append([f"batch {block['batch']}", header, *(next(rows) for _ in block["rows"]), *failures])
    return "\n\n".join("\n".join(block) for block in shown)


def make_page(result: BenchResult, picture: str) -> str:
    """Return a page that needs no other file: diagrams, table, and what is to be known about the run.

    Args:
        result: The run.
        picture: Its diagrams as an SVG element; empty where they cannot be drawn.
    """
    values = {"about": result.about, "runners": result.runners, "finished": result.finished, "picture": picture}
    return render("reports/bench.html.j2", header=_header(result), blocks=_make_blocks(result), **values)


def describe_result(result: BenchResult) -> dict[str, Any]:
    """Return what bench.json holds: `about`, the runners, the figures with their rounds, and who agrees with whom."""
    return {
        "format": 1,
        **result.about,
        "finished": result.finished,
        "reference": result.reference,
        "runners": result.runners,
        "figures": [_figures(result, one) for one in result.figures],
        "agreements": [asdict(one) for one in result.agreements],
    }


def _header(result: BenchResult) -> list[str]:
    return [f"x {result.reference}" if name == "ratio" else name for name in _COLUMNS]


def _make_blocks(result: BenchResult) -> list[dict[str, Any]]:
    """Return for each batch the cells of what may be reported, empty where there is no figure, and what failed."""
    return [
        {
            "batch": batch,
            "rows": [_cells(result, one) for one in result.usable() if one.batch == batch],
            "failures": [one for one in result.figures if one.batch == batch and one.failure],
        }
        for batch in result.batches
    ]


def _cells(result: BenchResult, one: RunnerFigures) -> list[str]:
    memory = one.host_bytes if one.gpu_bytes is None else one.gpu_bytes
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
        _format(result.worst_cosine(one), ".6f"),
    ]


def _format(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _figures(result: BenchResult, one: RunnerFigures) -> dict[str, Any]:
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


def _summary(one: RunnerFigures, each: Round) -> dict[str, Any]:
    return {
        "iterations": len(each.times_ms),
        "median_ms": each.median_ms,
        "min_ms": min(each.times_ms),
        "max_ms": max(each.times_ms),
        "images_per_s": one.batch * len(each.times_ms) / each.span_ms * 1000,
        "energy": None if each.energy is None else asdict(each.energy),
    }
