"""Report -> the table that the terminal shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.measure.inspect.report import Report, Row

__all__ = ["format_report", "scale_macs", "shorten", "visible"]

_NAME_WIDTH = 64


def format_report(report: Report, *, top: int | None = None) -> str:
    """Return the report for a terminal; with `top` the heaviest layers by share, else all in execution order."""
    lines = [f"{key:<12} {visible(value)}" for key, value in report.facts]
    if report.rows:
        lines += ["", _totals(report), ""]
        lines += _layers(report, top)
        lines += ["", *_groups(report)]
        lines += _eliminated(report)
    if report.notes:
        lines += [""] + [f"note: {visible(note)}" for note in report.notes]
    return "\n".join(lines)


def visible(text: str) -> str:
    """Replace control characters, which TensorRT puts between parts of names, by a dot."""
    return re.sub(r"[\x00-\x1f\x7f]+", " \u00b7 ", text)


def shorten(text: str, width: int = _NAME_WIDTH) -> str:
    """Cut the middle out of a long name: its beginning and its end tell most."""
    text = visible(text)
    if len(text) <= width:
        return text
    head = (width - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def scale_macs(macs: int) -> tuple[str, str]:
    """Return a number of multiply-accumulates with its unit."""
    return (f"{macs / 1e9:.2f}", "GMAC") if macs >= 1e8 else (f"{macs / 1e6:.2f}", "MMAC")


def _totals(report: Report) -> str:
    what = {"engine": "engine layers", "network": "network layers", "onnx": "ONNX nodes"}[report.subject]
    parts = [f"{len(report.rows)} {what}"]
    if report.node_count is not None and report.subject != "onnx":
        parts.append(f"from {report.node_count} ONNX nodes")
    if report.total_ms is not None:
        parts.append(f"sum of layers {report.total_ms:.3f} ms")
    if report.latency_ms is not None:
        parts.append(f"one inference {report.latency_ms:.3f} ms")
    if report.macs:
        per = f" for {report.batch} images" if report.batch > 1 else " per image"
        value, unit = scale_macs(report.macs)
        parts.append(f"{value} {unit}{per}")
    return ", ".join(parts)


def _layers(report: Report, top: int | None) -> list[str]:
    rows: Sequence[Row] = report.rows
    if top is not None:
        rows = sorted(rows, key=lambda row: -(row.share or 0))[:top]
    columns = [("#", [str(row.index) for row in rows])]
    if report.measure == "time":
        columns.append(("ms", ["-" if row.time_ms is None else f"{row.time_ms:.4f}" for row in rows]))
    if report.measure:
        columns.append(("share", [f"{row.share or 0:.1%}" for row in rows]))
    if report.macs:
        columns.append(("GMAC", [f"{row.macs / 1e9:.3f}" if row.macs else "" for row in rows]))
    if report.measure == "time":
        columns.append(("TFLOP/s", [f"{row.tflops:.0f}" if row.tflops else "" for row in rows]))
        columns.append(("GB/s", [f"{row.gb_per_s:.0f}" if row.gb_per_s else "" for row in rows]))
    left = [] if report.subject == "engine" else [("operation", [row.type for row in rows])]
    left += [
        ("kind", [row.kind for row in rows]),
        ("type", [row.precision or "-" for row in rows]),
        ("output", ["x".join(map(str, row.outputs[0].shape)) if row.outputs else "" for row in rows]),
        (("ONNX node", "layer")[report.subject != "onnx"], [_name(row) for row in rows]),
    ]
    lines = _table(columns, left)
    if len(rows) < len(report.rows):
        lines.append(f"... {len(report.rows) - len(rows)} more (--top {len(report.rows)} shows all)")
    return lines


def _name(row: Row) -> str:
    return f"{'~ ' if row.guessed else ''}{shorten(row.name)}"


def _table(right: Sequence[tuple[str, list[str]]], left: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Align the first columns right and the others left."""
    widths = [max(len(title), *map(len, values), 0) if values else len(title) for title, values in (*right, *left)]
    count = len(right[0][1])
    cells = [[title for title, _ in (*right, *left)]]
    cells += [[values[index] for _, values in (*right, *left)] for index in range(count)]
    return [
        "  ".join(
            cell.rjust(width) if column < len(right) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _groups(report: Report) -> list[str]:
    """One line per kind and one for all precisions."""
    lines = []
    if report.measure:
        width = max(len(group.name) for group in report.kinds)
        for group in report.kinds:
            ms = "" if group.time_ms is None else f"  {group.time_ms:8.4f} ms"
            lines.append(f"{group.name:<{width}}  {group.share:6.1%}{ms}  {group.rows} layers")
        shares = ", ".join(f"{group.name} {group.share:.1%} ({group.rows})" for group in report.precisions)
        lines += [f"by precision: {shares}"] if shares else []
    if report.subject == "engine":
        own, reformats = len(report.own), len(report.reformats)
        lines.append(
            f"{len(report.fused)} layers are fusions of several nodes, {reformats} only change layout or type, "
            f"{own} have no known ONNX node"
        )
    return lines


def _eliminated(report: Report) -> list[str]:
    if not report.eliminated:
        return []
    reasons: dict[str, list[str]] = {}
    for one in report.eliminated:
        reasons.setdefault(one.reason, []).append(f"{visible(one.node)} ({one.operator})")
    lines = [f"{len(report.eliminated)} ONNX nodes are in no layer:"]
    for reason, names in reasons.items():
        more = f", ... {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(f"  {reason}: {', '.join(names[:4])}{more}")
    return lines
