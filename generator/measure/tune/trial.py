"""One measurement of one candidate, and what makes one better than another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence

Objective: TypeAlias = Literal["throughput", "latency", "energy"]


class Figure(BaseModel):
    """What one load came to: `shares` is each member's part of the latency, 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    infer_per_s: float
    p99_ms: float
    images_per_joule: float | None = None
    shares: Mapping[str, float] = {}


class Trial(BaseModel):
    """One line of the journal: what `stage` measured of a candidate at a concurrency, or why it could not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    settings: Mapping[str, Any]
    concurrency: int
    figure: Figure | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is looked for: the best `objective` among what keeps the 99th percentile of the latency."""

    objective: Objective
    p99_ms: float | None = None

    def is_met(self, figure: Figure) -> bool:
        """Say whether the latency is within the limit."""
        return self.p99_ms is None or figure.p99_ms <= self.p99_ms

    def read(self, figure: Figure) -> float:
        """Return the number that decides; the more the better, but for latency."""
        if self.objective == "latency":
            return figure.p99_ms
        return figure.infer_per_s if self.objective == "throughput" else figure.images_per_joule or 0.0

    def rank(self, figure: Figure) -> float:
        """Return what sorts figures, the best last: what exceeds the limit comes first, and by its latency."""
        return self.read(figure) if self.is_met(figure) and self.objective != "latency" else -figure.p99_ms

    def describe(self, value: float) -> str:
        """Return the number that decides with its unit."""
        units = {"throughput": ".1f} images/s", "latency": ".2f} ms p99", "energy": ".2f} images/J"}
        return ("{:" + units[self.objective]).format(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the winner of the halving beats the spec as it is, in turns side by side.

    `gain` is what it is better by, `spread` how far the turns of one of the two lie apart, both as a part of what the
    spec as it is reaches. Middle values of the turns: `value` and `spec_value`.
    """

    wins: bool
    value: float
    spec_value: float
    gain: float
    spread: float


def compare(goal: Goal, winner: Sequence[Figure], spec: Sequence[Figure]) -> Verdict:
    """Compare turns of both: only a gain above the spread wins, within the limit, which the spec may miss."""
    ours, theirs = ([goal.read(figure) for figure in turns] for turns in (winner, spec))
    value, base = statistics.median(ours), statistics.median(theirs)
    gain = (base - value if goal.objective == "latency" else value - base) / base
    spread = max(max(values) - min(values) for values in (ours, theirs)) / base
    keeps, kept = (is_kept(goal, turns) for turns in (winner, spec))
    return Verdict(wins=keeps and (gain > spread or not kept), value=value, spec_value=base, gain=gain, spread=spread)


def is_kept(goal: Goal, turns: Sequence[Figure]) -> bool:
    """Say whether the middle one of the turns is within the limit."""
    return goal.p99_ms is None or statistics.median(figure.p99_ms for figure in turns) <= goal.p99_ms
