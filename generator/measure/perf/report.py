"""Everything that a run found -> perf.csv, perf.json and perf.html, which needs no other file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError
from generator.measure.perf.compare import make_cells, make_header
from generator.measure.perf.measurement import Measurement
from generator.measure.perf.output import make_files, make_table
from generator.measure.perf.plot import draw_svg
from generator.measure.perf.verdict import find_best
from generator.render import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.measure.perf.check import Check
    from generator.measure.perf.compare import Difference
    from generator.measure.perf.measurement import Unsettled
    from generator.measure.perf.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """This run beside that of the perf.json `path`; `other` is what else differed between them."""

    path: str
    differences: Sequence[Difference]
    other: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of a run, of which the first is of the model that clients call, and what follows from them.

    `advice` is the command line that makes the verdict's change.
    """

    about: Mapping[str, Any]
    results: Sequence[Measurement | Unsettled]
    verdict: Verdict | None = None
    advice: str = ""
    check: Check | None = None
    comparison: Comparison | None = None

    @property
    def measured(self) -> list[Measurement]:
        """What settled."""
        return [one for one in self.results if isinstance(one, Measurement)]


def make_report(report: Report) -> tuple[dict[str, str], str]:
    """Return the text of each file by its name, and why the page has no diagrams, empty where it has.

    The text of a page is what follows from the figures: nothing in it is measured again.
    """
    found = {
        "verdict": None if report.verdict is None else {**asdict(report.verdict), "advice": report.advice},
        "check": None if report.check is None else asdict(report.check),
        "comparison": None if report.comparison is None else asdict(report.comparison),
    }
    model = report.results[0].model
    picture = missing = ""
    if find_best(report.measured, model) is not None:
        try:
            picture = draw_svg(report.measured, model)
        except MissingDependencyError as error:
            missing = f"{error.message}; {error.hint}"
    page = render(
        "reports/perf.html.j2",
        report=report,
        model=model,
        tiles=_make_tiles(report.measured, model),
        table=make_table(report.results),
        differences=_make_differences(report.comparison),
        picture=picture,
        missing=missing,
    )
    return {**make_files(report.results, {**report.about, **found}), "perf.html": page}, missing


def _make_tiles(measured: Sequence[Measurement], model: str) -> list[tuple[str, str, str]]:
    """Return value, unit and meaning of the figures at the top."""
    best = find_best(measured, model)
    if best is None:
        return []
    load = f"{best.concurrency} in flight" if best.request_rate is None else f"{best.request_rate:g} requests/s"
    lightest = min((one for one in measured if one.model == model), key=lambda one: one.p50_ms)
    tiles = [
        (f"{best.infer_per_s:,.0f}", "images/s", f"at most, with {load}"),
        (f"{best.p50_ms:.1f}", "ms", "p50 at that load"),
        (f"{best.p99_ms:.1f}", "ms", "p99 at that load"),
        (f"{lightest.p50_ms:.1f}", "ms", "lowest p50"),
    ]
    if best.gpu.images_per_joule is not None:
        tiles.append((f"{best.gpu.images_per_joule:.1f}", "images/J", f"GPU at {best.gpu.power_w:.0f} W"))
    return tiles


def _make_differences(comparison: Comparison | None) -> list[list[str]]:
    return [] if comparison is None else [make_header(), *map(make_cells, comparison.differences)]
