"""What `trtgen perf` does once it knows what to measure: measure, say what follows, write the files."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from generator.cli.console import Progress, say, show_progress
from generator.errors import PerfError
from generator.events import Doing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.measure.perf.compare import Earlier
    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.measurement import Measurement, Unsettled
    from generator.measure.perf.report import Report
    from generator.measure.perf.served import MeasuredModel
    from generator.measure.perf.sweep import Load
    from generator.measure.perf.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be measured and what is to be made of it.

    `models` are measured, `parts` are the first of them and its members. `check_in` is the repository in whose copy the
    advised change is made, None for no check; `compare` is an earlier perf.json.
    """

    models: Sequence[MeasuredModel]
    parts: Sequence[MeasuredModel]
    images: RequestImages
    load: Load
    check_in: Path | None
    compare: Path | None
    output: Path


def measure_all(wanted: Wanted, *, server: str, analyzer_version: str) -> None:
    """Measure, print the table, the comparison and the verdict, write the files, and try the change if asked to.

    Raises:
        PerfError: A run failed, or something did not settle; what was measured is written all the same.
    """
    from generator.measure.perf.compare import read_earlier
    from generator.measure.perf.output import describe_load, format_table
    from generator.measure.perf.report import Report

    loads = [
        (model.name, level.concurrency, level.request_rate, wanted.load.batch_size)
        for model in wanted.models
        for level in wanted.load.levels
    ]
    earlier = None if wanted.compare is None else read_earlier(wanted.compare, loads)
    names = ", ".join(one.name for one in wanted.models)
    say(f"measuring {names} at {wanted.load.url} with {wanted.images.source}: 3 s or more per line")
    found: list[Measurement | Unsettled] = []
    try:
        with show_progress() as progress:
            _measure(wanted, found, progress)
    finally:  # what was measured before an error or Ctrl-C is worth keeping
        if found:
            print(format_table(found))
            about = describe_load(
                server=server, analyzer_version=analyzer_version, load=wanted.load, images=wanted.images
            )
            report = _conclude(Report(about=about, results=found), wanted, earlier)
            _write(report, wanted.output)
    if wanted.check_in is not None:
        _check(report, wanted, wanted.check_in)
    unknown = [one.gpu.unknown for one in report.measured if one.gpu.unknown]
    if unknown:
        say(f"note: GPU figures are missing: {unknown[0]}")
    if len(report.measured) < len(found):
        raise PerfError(
            f"{len(found) - len(report.measured)} of {len(found)} measurements did not settle, so they have no figures",
            hint="stop what else keeps the machine busy, raise --measurement-requests, or allow a larger --max-spread",
        )


def _measure(wanted: Wanted, found: list[Measurement | Unsettled], progress: Progress) -> None:
    from generator.measure.perf.measurement import Measurement
    from generator.measure.perf.sweep import Level, measure

    parts = [f"{model.name} at {level}" for model in wanted.models for level in wanted.load.levels]

    def draw() -> None:
        if len(found) < len(parts):
            progress.draw(Doing(step="measuring", part=parts[len(found)], fraction=len(found) / len(parts)))

    draw()
    for one in measure(wanted.models, wanted.images, wanted.load, parts=wanted.parts):
        told = f"{one.infer_per_s:.1f} images/s" if isinstance(one, Measurement) else f"not settled: {one.problem}"
        say(f"* {one.model}  {Level(concurrency=one.concurrency, request_rate=one.request_rate)}  {told}")
        found.append(one)
        draw()


def _conclude(report: Report, wanted: Wanted, earlier: Earlier | None) -> Report:
    """Add the verdict and the comparison, and print them."""
    from generator.measure.perf.compare import compare, find_other_conditions, format_differences
    from generator.measure.perf.report import Comparison
    from generator.measure.perf.served import count_cores
    from generator.measure.perf.verdict import judge

    verdict = judge(report.measured, wanted.parts, cores=count_cores(wanted.load.url))
    report = replace(report, verdict=verdict, advice=_advise(verdict))
    if earlier is not None:
        differences = compare(report.measured, earlier)
        other = find_other_conditions(earlier, report.about)
        report = replace(report, comparison=Comparison(path=str(earlier.path), differences=differences, other=other))
        if differences:
            print("\n".join(["", *format_differences(differences)]))
        for line in other:
            say(f"note: {earlier.path} was measured otherwise: {line}")
    if verdict is not None:
        print(f"\n{verdict.text}")
        if report.advice:
            print(f"To try it: {report.advice}")
    return report


def _advise(verdict: Verdict | None) -> str:
    """Return what to do as a line to copy: an option of this command, or an edit and the command that follows it."""
    if verdict is None or verdict.change is None:
        return ""
    change = verdict.change
    if change.field == "concurrency":
        return f"trtgen perf --model {shlex.quote(verdict.model)} {change.edit}"
    if "config.pbtxt" in change.edit:
        return f"{change.edit}; then start the server again"
    return f"{change.edit} in models.yaml, then trtgen build-repo --spec models.yaml"


def _check(report: Report, wanted: Wanted, root: Path) -> None:
    """Make the advised change elsewhere, say what it brought, and write the files again."""
    from generator.measure.perf.check import Check, try_change
    from generator.measure.perf.verdict import find_judged

    verdict = report.verdict
    if verdict is None or verdict.change is None:
        say("nothing to check: the verdict advises no change")
        return
    before = find_judged(report.measured, verdict.model)
    assert before is not None
    with show_progress() as progress:
        progress.draw(Doing(step="trying the change", part=verdict.change.edit))
        found = try_change(verdict, before, wanted.parts, wanted.images, wanted.load, root)
    if not isinstance(found, Check):
        raise PerfError(
            f"with the change the measurement did not settle: {found.problem}",
            hint="stop what else keeps the machine busy, raise --measurement-requests, or allow a larger --max-spread",
        )
    print(f"Tried: {found.text} ({found.images_per_s_before:.1f} to {found.images_per_s_after:.1f} images/s).")
    _write(replace(report, check=found), wanted.output)


def _write(report: Report, output: Path) -> None:
    from generator.measure.perf.report import make_report
    from generator.measure.results import write_files

    files, missing = make_report(report)
    if missing:
        say(f"note: perf.html has no diagrams: {missing}")
    for path in write_files(files, output):
        say(f"wrote {path}")
