"""What `trtgen inspect` found out, as one value: rows (layers or nodes), groups, fusions, eliminations, notes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from generator.measure.inspect.layers import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from generator.measure.inspect.layers import LayerTensor
    from generator.measure.inspect.mapping import Eliminated


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
    def inferred(self) -> bool:
        """Say whether the nodes follow from names or tensors rather than from TensorRT's word."""
        return self.source in ("name", "tensors", "region")

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
    """All of it. `subject` is engine, network, onnx or header; `node_count` is of the ONNX file, None without one."""

    subject: str
    title: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    eliminated: tuple[Eliminated, ...] = ()
    node_count: int | None = None
    batch: int = 1
    total_ms: float | None = None
    latency_ms: float | None = None

    @property
    def measure(self) -> str:
        """Return what shares are of: time, macs or nothing."""
        return "time" if self.total_ms else "macs" if self.macs else ""

    @property
    def kinds(self) -> list[Group]:
        """Return the rows by their kind."""
        return self._groups(KINDS, lambda row: row.kind)

    @property
    def precisions(self) -> list[Group]:
        """Return the rows by their precision, without those of an unknown one."""
        names = sorted({row.precision for row in self.rows if row.precision})
        return self._groups(dict.fromkeys(names, ""), lambda row: row.precision)

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

    def _groups(self, names: Mapping[str, str], key: Callable[[Row], str]) -> list[Group]:
        """Return a group for each of `names` (with what it means) that occurs, the largest share first."""
        groups = []
        for name, about in names.items():
            if rows := [row for row in self.rows if key(row) == name]:
                time_ms = sum(row.time_ms or 0 for row in rows) if self.total_ms else None
                macs, share = sum(row.macs for row in rows), sum(row.share or 0 for row in rows)
                groups.append(Group(name=name, about=about, rows=len(rows), time_ms=time_ms, macs=macs, share=share))
        return sorted(groups, key=lambda group: -group.share)


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Return everything as plain data; the keys are those of `Inspection`, `Row` and `Group`."""
    data = asdict(inspection)
    for row, entry in zip(inspection.rows, data["rows"], strict=True):
        entry |= {"inferred": row.inferred, "tflops": row.tflops, "gb_per_s": row.gb_per_s}
    return {
        **data,
        "facts": dict(inspection.facts),
        "measure": inspection.measure,
        "macs": inspection.macs,
        "kinds": [asdict(group) for group in inspection.kinds],
        "precisions": [asdict(group) for group in inspection.precisions],
        **{name: [row.index for row in getattr(inspection, name)] for name in ("fused", "reformats", "own")},
    }
