"""Inspection -> one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.errors import PlanError
from generator.measure.inspect.text import scale_macs, shorten
from generator.render import render

if TYPE_CHECKING:
    from pathlib import Path

    from generator.measure.inspect.inspection import Inspection, Row

_SLOWEST, _LONGEST_PATTERN = 12, 12
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]+")


def write_page(inspection: Inspection, path: Path) -> None:
    """Write the page.

    Raises:
        PlanError: The file cannot be written.
    """
    try:
        path.write_text(make_page(inspection), encoding="utf-8")
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise PlanError(msg, hint="give the path of a file in a folder that exists", fields={"html": None}) from error


def make_page(inspection: Inspection) -> str:
    """Return the page. Names are escaped, control characters in them made visible."""
    text = render(
        "reports/inspect.html.j2",
        report=inspection,
        timed=inspection.measure == "time",
        subtitle=_SUBTITLES[inspection.subject],
        tiles=_tiles(inspection),
        top=max((row.share or 0 for row in inspection.rows), default=0),
        slowest=[row for row in inspection.heaviest if row.share][:_SLOWEST],
        patterns=_patterns(inspection),
        percent=_percent,
        shorten=shorten,
    )
    return _CONTROL.sub(" \u00b7 ", text)


_SUBTITLES = {
    "engine": "Where the time of this TensorRT engine goes, and what became of the ONNX nodes",
    "network": "The network that TensorRT's parser makes of this graph, before fusion",
    "onnx": "The graph as ONNX describes it",
    "header": "What the plan's header and passport say",
}
_SOURCES = {
    "metadata": "nodes as TensorRT says",
    "name": "nodes taken from the layer's name",
    "tensors": "nodes between the tensors that go in and come out",
    "region": "nodes between the first and the last that the name gives",
}


def _tiles(inspection: Inspection) -> list[tuple[str, str, str]]:
    """Return value, unit and meaning of the figures at the top."""
    if not inspection.rows:
        return []
    tiles = []
    if inspection.total_ms is not None and inspection.latency_ms is not None:
        tiles.append(
            (f"{inspection.latency_ms:.3f}", "ms", f"one inference, batch {inspection.batch}, without the profiler")
        )
        tiles.append((f"{inspection.total_ms:.3f}", "ms", "sum of the layers, with the profiler"))
        tiles.append((f"{inspection.batch / inspection.latency_ms * 1000:,.0f}", "images/s", "at that latency"))
    unit = "nodes" if inspection.subject == "onnx" else "layers"
    known = "without the ONNX file" if inspection.node_count is None else f"from {inspection.node_count} ONNX nodes"
    origin = "of ONNX" if inspection.subject == "onnx" else known
    tiles.append((str(len(inspection.rows)), unit, origin))
    if inspection.macs:
        tiles.append((*scale_macs(inspection.macs // inspection.batch), "multiply-accumulates per image"))
        if inspection.latency_ms:
            rate = 2 * inspection.macs / inspection.latency_ms / 1e9
            tiles.append((f"{rate:.0f}", "TFLOP/s", "two operations per multiply-accumulate"))
    return tiles


def _patterns(inspection: Inspection) -> list[tuple[str, str, list[Row]]]:
    """Group the fused layers by their operators and where these are known from, the most time first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in inspection.fused:
        known = len(row.operators) == len(row.nodes) <= _LONGEST_PATTERN
        name = " + ".join(row.operators) if known else f"{len(row.nodes)} nodes"
        found.setdefault((name, _SOURCES[row.source]), []).append(row)
    patterns = [(name, source, rows) for (name, source), rows in found.items()]
    return sorted(patterns, key=lambda pattern: (-sum(row.share or 0 for row in pattern[2]), -len(pattern[2])))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f} %"
