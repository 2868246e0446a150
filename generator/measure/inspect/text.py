"""Inspection -> the table that the terminal shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.measure.results import align_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from generator.measure.inspect.inspection import Inspection, Row

_NAME_WIDTH = 64


def format_inspection(inspection: Inspection, *, top: int | None = None) -> str:
    """Return the inspection for a terminal; with `top` the heaviest layers by share, else all in execution order."""
    lines = [f"{key:<12} {value}" for key, value in inspection.facts]
    if inspection.rows:
        lines += ["", _totals(inspection), ""]
        lines += _layers(inspection, top)
        lines += ["", *_groups(inspection)]
        lines += _eliminated(inspection)
    if inspection.notes:
        lines += ["", *(f"note: {note}" for note in inspection.notes)]
    return "\n".join(map(make_visible, lines))


def make_visible(text: str) -> str:
    """Replace control characters, which TensorRT puts between parts of names, by a dot."""
    return re.sub(r"[\x00-\x1f\x7f]+", " \u00b7 ", text)


def shorten(text: str, width: int = _NAME_WIDTH) -> str:
    """Cut the middle out of a long name: its beginning and its end tell most."""
    text = make_visible(text)
    if len(text) <= width:
        return text
    head = (width - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def scale_macs(macs: int) -> tuple[str, str]:
    """Return a number of multiply-accumulates with its unit."""
    return (f"{macs / 1e9:.2f}", "GMAC") if macs >= 1e8 else (f"{macs / 1e6:.2f}", "MMAC")


def _totals(inspection: Inspection) -> str:
    what = {"engine": "engine layers", "network": "network layers", "onnx": "ONNX nodes"}[inspection.subject]
    parts = [f"{len(inspection.rows)} {what}"]
    if inspection.node_count is not None and inspection.subject != "onnx":
        parts.append(f"from {inspection.node_count} ONNX nodes")
    if inspection.total_ms is not None:
        parts.append(f"sum of layers {inspection.total_ms:.3f} ms")
    if inspection.latency_ms is not None:
        parts.append(f"one inference {inspection.latency_ms:.3f} ms")
    if inspection.macs:
        per = f" for {inspection.batch} images" if inspection.batch > 1 else " per image"
        value, unit = scale_macs(inspection.macs)
        parts.append(f"{value} {unit}{per}")
    return ", ".join(parts)


def _layers(inspection: Inspection, top: int | None) -> list[str]:
    rows = inspection.rows if top is None else inspection.heaviest[:top]
    timed, is_onnx = inspection.measure == "time", inspection.subject == "onnx"
    right: list[tuple[str, bool, Callable[[Row], str]]] = [
        ("#", True, lambda row: str(row.index)),
        ("ms", timed, lambda row: "-" if row.time_ms is None else f"{row.time_ms:.4f}"),
        ("share", bool(inspection.measure), lambda row: f"{row.share or 0:.1%}"),
        ("GMAC", bool(inspection.macs), lambda row: f"{row.macs / 1e9:.3f}" if row.macs else ""),
        ("TFLOP/s", timed, lambda row: f"{row.tflops:.0f}" if row.tflops else ""),
        ("GB/s", timed, lambda row: f"{row.gb_per_s:.0f}" if row.gb_per_s else ""),
    ]
    left: list[tuple[str, bool, Callable[[Row], str]]] = [
        ("operation", inspection.subject != "engine", lambda row: row.type),
        ("kind", True, lambda row: row.kind),
        ("type", True, lambda row: row.precision or "-"),
        ("output", True, lambda row: "x".join(map(str, row.shape))),
        ("ONNX node" if is_onnx else "layer", True, lambda row: f"{'~ ' if row.guessed else ''}{shorten(row.name)}"),
    ]
    count = sum(wanted for _, wanted, _ in right)
    columns = [(title, cell) for title, wanted, cell in (*right, *left) if wanted]
    table = [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    lines = align_columns(table, left=range(count, len(columns)))
    if len(rows) < len(inspection.rows):
        lines.append(f"... {len(inspection.rows) - len(rows)} more of {len(inspection.rows)}")
    return lines


def _groups(inspection: Inspection) -> list[str]:
    """One line per kind and one for all precisions."""
    lines = []
    if inspection.measure:
        width = max(len(group.name) for group in inspection.kinds)
        for group in inspection.kinds:
            ms = "" if group.time_ms is None else f"  {group.time_ms:8.4f} ms"
            lines.append(f"{group.name:<{width}}  {group.share:6.1%}{ms}  {group.rows} layers")
        shares = ", ".join(f"{group.name} {group.share:.1%} ({group.rows})" for group in inspection.precisions)
        lines += [f"by precision: {shares}"] if shares else []
    if inspection.subject == "engine":
        own, reformats = len(inspection.own), len(inspection.reformats)
        lines.append(
            f"{len(inspection.fused)} layers are fusions of several nodes, {reformats} only change layout or type, "
            f"{own} have no known ONNX node"
        )
    return lines


def _eliminated(inspection: Inspection) -> list[str]:
    if not inspection.eliminated:
        return []
    lines = [f"{len(inspection.eliminated)} ONNX nodes are in no layer:"]
    for reason, nodes in inspection.eliminated_by_reason.items():
        more = f", ... {len(nodes) - 4} more" if len(nodes) > 4 else ""
        lines.append(f"  {reason}: {', '.join(f'{one.node} ({one.operator})' for one in nodes[:4])}{more}")
    return lines
