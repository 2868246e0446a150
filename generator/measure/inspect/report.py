"""What `trtgen inspect` found out, as one value: rows (layers or nodes), groups, fusions, eliminations, notes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from generator.measure.inspect.layers import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from generator.measure.inspect.layers import Tensor
    from generator.measure.inspect.mapping import Eliminated

__all__ = ["Group", "Report", "Row", "finish", "to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layer (or ONNX node). Times in ms, `share` of the sum of all, `macs` for the whole batch; None is unknown."""

    index: int
    name: str
    type: str
    kind: str
    precision: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    source: str
    inferred: bool
    parts: tuple[str, ...] = ()
    tactic: str = ""
    time_ms: float | None = None
    share: float | None = None
    macs: int = 0
    traffic_bytes: int = 0

    @property
    def guessed(self) -> bool:
        """Say whether the nodes follow from what surrounds the layer rather than from TensorRT's word or its name."""
        return self.source in ("tensors", "region")

    @property
    def tflops(self) -> float | None:
        """Return 10^12 operations per second: two per multiply-accumulate."""
        return 2 * self.macs / self.time_ms / 1e9 if self.time_ms and self.macs else None

    @property
    def gb_per_s(self) -> float | None:
        """Return 10^9 bytes per second that the layer at least reads and writes."""
        return self.traffic_bytes / self.time_ms / 1e6 if self.time_ms and self.traffic_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows with something in common; `share` of time, or of multiply-accumulates where there is no time."""

    name: str
    about: str
    rows: int
    time_ms: float | None
    macs: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it. `subject` is engine, network, onnx or header; `measure` is what shares are of: time, macs or ""."""

    subject: str
    title: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    kinds: tuple[Group, ...] = ()
    precisions: tuple[Group, ...] = ()
    eliminated: tuple[Eliminated, ...] = ()
    node_count: int | None = None
    measure: str = ""
    batch: int = 1
    total_ms: float | None = None
    latency_ms: float | None = None

    @property
    def fused(self) -> tuple[Row, ...]:
        """Return the layers that are made of several ONNX nodes."""
        return tuple(row for row in self.rows if len(row.nodes) > 1)

    @property
    def reformats(self) -> tuple[Row, ...]:
        """Return the layers that only change layout or type."""
        return tuple(row for row in self.rows if row.kind == "reformat")

    @property
    def own(self) -> tuple[Row, ...]:
        """Return the layers that no ONNX node is known of, without the reformats."""
        return tuple(row for row in self.rows if not row.nodes and row.kind != "reformat")

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of all rows for the whole batch."""
        return sum(row.macs for row in self.rows)


def to_json(report: Report) -> dict[str, Any]:
    """Return everything as plain data; the keys are those of `Report`, `Row` and `Group`."""
    data = asdict(report)
    data["facts"] = dict(report.facts)
    data["macs"] = report.macs
    for row, entry in zip(report.rows, data["rows"], strict=True):
        entry |= {"tflops": row.tflops, "gb_per_s": row.gb_per_s}
    data["fused"] = [row.index for row in report.fused]
    data["reformats"] = [row.index for row in report.reformats]
    data["own"] = [row.index for row in report.own]
    return data


def finish(report: Report) -> Report:
    """Return the report with its groups, and with what shares are of."""
    measure = "time" if report.total_ms else "macs" if report.macs else ""
    if measure == "macs":
        rows = tuple(replace(row, share=row.macs / report.macs) for row in report.rows)
        report = replace(report, rows=rows)
    report = replace(report, measure=measure)
    precisions = sorted({row.precision for row in report.rows if row.precision})
    return replace(
        report,
        kinds=_groups(report, KINDS, lambda row: row.kind),
        precisions=_groups(report, dict.fromkeys(precisions, ""), lambda row: row.precision),
    )


def _groups(report: Report, names: Mapping[str, str], key: Callable[[Row], str]) -> tuple[Group, ...]:
    groups = []
    for name, about in names.items():
        rows = [row for row in report.rows if key(row) == name]
        if not rows:
            continue
        time_ms = sum(row.time_ms or 0 for row in rows) if report.measure == "time" else None
        groups.append(
            Group(
                name=name,
                about=about,
                rows=len(rows),
                time_ms=time_ms,
                macs=sum(row.macs for row in rows),
                share=sum(row.share or 0 for row in rows),
            )
        )
    return tuple(sorted(groups, key=lambda group: -group.share))
