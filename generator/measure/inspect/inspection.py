"""What `trtgen inspect` found out, as one value: rows (layers or nodes), groups, fusions, eliminations, notes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from generator.measure.inspect.layers import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from generator.measure.inspect.layers import LayerTensor
    from generator.measure.inspect.mapping import Eliminated

__all__ = ["Group", "Inspection", "Row", "finish", "to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layer (or ONNX node). Times in ms, `share` of the sum of all, `macs` for the whole batch; None is unknown."""

    index: int
    name: str
    type: str
    kind: str
    precision: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
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
    def shape(self) -> tuple[int, ...]:
        """Return that of its first output."""
        return self.outputs[0].shape if self.outputs else ()

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
class Inspection:
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
    def heaviest(self) -> tuple[Row, ...]:
        """Return the rows by their shares, the largest first."""
        return tuple(sorted(self.rows, key=lambda row: -(row.share or 0)))

    @property
    def eliminated_by_reason(self) -> dict[str, list[Eliminated]]:
        """Return the nodes that are in no layer, those of the most frequent reason first."""
        reasons: dict[str, list[Eliminated]] = {}
        for one in self.eliminated:
            reasons.setdefault(one.reason, []).append(one)
        return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))

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


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Return everything as plain data; the keys are those of `Inspection`, `Row` and `Group`."""
    data = asdict(inspection)
    data["facts"] = dict(inspection.facts)
    data["macs"] = inspection.macs
    for row, entry in zip(inspection.rows, data["rows"], strict=True):
        entry |= {"tflops": row.tflops, "gb_per_s": row.gb_per_s}
    data["fused"] = [row.index for row in inspection.fused]
    data["reformats"] = [row.index for row in inspection.reformats]
    data["own"] = [row.index for row in inspection.own]
    return data


def finish(inspection: Inspection) -> Inspection:
    """Return the inspection with its groups, and with what shares are of."""
    measure = "time" if inspection.total_ms else "macs" if inspection.macs else ""
    if measure == "macs":
        rows = tuple(replace(row, share=row.macs / inspection.macs) for row in inspection.rows)
        inspection = replace(inspection, rows=rows)
    inspection = replace(inspection, measure=measure)
    precisions = sorted({row.precision for row in inspection.rows if row.precision})
    return replace(
        inspection,
        kinds=_groups(inspection, KINDS, lambda row: row.kind),
        precisions=_groups(inspection, dict.fromkeys(precisions, ""), lambda row: row.precision),
    )


def _groups(inspection: Inspection, names: Mapping[str, str], key: Callable[[Row], str]) -> tuple[Group, ...]:
    groups = []
    for name, about in names.items():
        rows = [row for row in inspection.rows if key(row) == name]
        if not rows:
            continue
        time_ms = sum(row.time_ms or 0 for row in rows) if inspection.measure == "time" else None
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
