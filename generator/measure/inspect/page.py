"""Report -> one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.measure.inspect.report import Group, Report, Row
from generator.measure.inspect.text import scale_macs, shorten, visible
from generator.render import template_root

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment, Template

__all__ = ["make_page", "write_page"]

_STRIP_WIDTH, _STRIP_HEIGHT = 1160, 132
_SLOWEST = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One column of the strip in execution order, in pixels."""

    x: float
    y: float
    width: float
    height: float
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table of layers; `bar` is its share of the heaviest layer's, in percent."""

    row: Row
    title: str
    bar: float
    shape: str
    layout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Fused layers that are made of the same operators."""

    name: str
    source: str
    rows: tuple[Row, ...]
    time_ms: float
    share: float


def write_page(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        PlanError: The file cannot be written.
    """
    try:
        path.write_text(make_page(report), encoding="utf-8")
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise PlanError(msg, hint="give --html the path of a file in a folder that exists") from error


def make_page(report: Report) -> str:
    """Return the page. Names are escaped, control characters in them made visible."""
    top = max((row.share or 0 for row in report.rows), default=0)
    lines = [_line(row, top) for row in report.rows]
    heaviest = sorted((line for line in lines if line.row.share), key=lambda line: -(line.row.share or 0))
    return _template().render(
        report=report,
        timed=report.measure == "time",
        subtitle=_SUBTITLES[report.subject],
        tiles=_tiles(report),
        bars=_strip(report),
        strip_width=_STRIP_WIDTH,
        strip_height=_STRIP_HEIGHT,
        lines=lines,
        slowest=heaviest[:_SLOWEST],
        eliminated=_by_reason(report),
        patterns=_patterns(report),
    )


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


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Return value, unit and meaning of the figures at the top."""
    if not report.rows:
        return []
    tiles = []
    if report.total_ms is not None and report.latency_ms is not None:
        tiles.append((f"{report.latency_ms:.3f}", "ms", f"one inference, batch {report.batch}, without the profiler"))
        tiles.append((f"{report.total_ms:.3f}", "ms", "sum of the layers, with the profiler"))
        tiles.append((f"{report.batch / report.latency_ms * 1000:,.0f}", "images/s", "at that latency"))
    unit = "nodes" if report.subject == "onnx" else "layers"
    known = "without the ONNX file" if report.node_count is None else f"from {report.node_count} ONNX nodes"
    origin = "of ONNX" if report.subject == "onnx" else known
    tiles.append((str(len(report.rows)), unit, origin))
    if report.macs:
        tiles.append((*scale_macs(report.macs // report.batch), "multiply-accumulates per image"))
        if report.latency_ms:
            rate = 2 * report.macs / report.latency_ms / 1e9
            tiles.append((f"{rate:.0f}", "TFLOP/s", "two operations per multiply-accumulate"))
    return tiles


def _strip(report: Report) -> list[Bar]:
    """Place one column per layer; its height is its share. The heaviest reaches the top."""
    top = max((row.share or 0 for row in report.rows), default=0)
    if not top:
        return []
    step = _STRIP_WIDTH / len(report.rows)
    bars = []
    for place, row in enumerate(report.rows):
        height = max((row.share or 0) / top * (_STRIP_HEIGHT - 6), 1.5)
        bars.append(
            Bar(
                x=round(place * step, 2),
                y=round(_STRIP_HEIGHT - height, 2),
                width=round(max(step - min(2.0, step / 4), 0.5), 2),
                height=round(height, 2),
                row=row,
            )
        )
    return bars


def _line(row: Row, top: float) -> Line:
    output = row.outputs[0] if row.outputs else None
    return Line(
        row=row,
        title=shorten(row.name, 88),
        bar=round((row.share or 0) / top * 100, 1) if top else 0,
        shape="×".join(str(length) for length in output.shape) if output else "",  # noqa: RUF001
        layout=output.layout if output else "",
    )


def _patterns(report: Report) -> list[Pattern]:
    """Group the fused layers by their operators, the most time first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in report.fused:
        name = " + ".join(row.operators) if len(row.operators) == len(row.nodes) else f"{len(row.nodes)} nodes"
        found.setdefault((name if len(row.nodes) <= 12 else f"{len(row.nodes)} nodes", row.source), []).append(row)
    patterns = [
        Pattern(
            name=name,
            source=_SOURCES[source],
            rows=tuple(rows),
            time_ms=sum(row.time_ms or 0 for row in rows),
            share=sum(row.share or 0 for row in rows),
        )
        for (name, source), rows in found.items()
    ]
    return sorted(patterns, key=lambda pattern: (-pattern.share, -len(pattern.rows)))


def _by_reason(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    reasons: dict[str, list[tuple[str, str]]] = {}
    for one in report.eliminated:
        reasons.setdefault(one.reason, []).append((one.node, one.operator))
    return sorted(reasons.items(), key=lambda item: -len(item[1]))


def _percent(value: Group | Row | float | None) -> str:
    share = value.share if isinstance(value, Group | Row) else value
    return "" if share is None else f"{share * 100:.1f} %"


def _clean(value: Any) -> Any:
    return visible(value) if type(value) is str else value


@functools.cache
def _environment() -> Environment:
    """Its own, unlike that of `generator.render`: HTML is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_root()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=_clean,
    )
    environment.filters["percent"] = _percent
    environment.filters["shorten"] = shorten
    return environment


def _template() -> Template:
    return _environment().get_template("reports/inspect.html.j2")
