"""What was tried as a table, and all of it as tune.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.measure.results import align_columns, to_json
from generator.measure.tune.knobs import describe_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.measure.tune.search import Outcome
    from generator.measure.tune.trial import Goal, Trial


def format_table(trials: Sequence[Trial], goal: Goal) -> str:
    """Return a row for the best load of each candidate in each stage that it reached, candidates in their order."""
    best: dict[tuple[str, str], Trial] = {}
    for trial in trials:
        key = (describe_settings(trial.settings), trial.stage)
        before = best.get(key)
        if before is None or trial.figure is None or (before.figure and _is_better(goal, trial, before)):
            best[key] = trial
    candidates = list(dict.fromkeys(candidate for candidate, _ in best))
    rows = [["settings", "stage", "in flight", "images/s", "p99", "images/J", ""]]
    shown = ""
    for (candidate, stage), trial in sorted(best.items(), key=lambda one: candidates.index(one[0][0])):  # stable
        rows.append(["" if candidate == shown else candidate, stage, str(trial.concurrency), *_show(trial, goal)])
        shown = candidate
    if not any(row[5] for row in rows[1:]):  # a machine without a GPU
        rows = [[*row[:5], *row[6:]] for row in rows]
    return "\n".join(align_columns(rows, left=(0, 1, len(rows[0]) - 1)))


def _is_better(goal: Goal, one: Trial, other: Trial) -> bool:
    assert one.figure is not None
    assert other.figure is not None
    return goal.rank(one.figure) > goal.rank(other.figure)


def _show(trial: Trial, goal: Goal) -> list[str]:
    figure = trial.figure
    if figure is None:
        return ["", "", "", f"failed: {trial.failure.splitlines()[0]}"]
    joule = "" if figure.images_per_joule is None else f"{figure.images_per_joule:.2f}"
    note = "" if goal.is_met(figure) else "above the limit"
    return [f"{figure.infer_per_s:.1f}", f"{figure.p99_ms:.2f}", joule, note]


def describe_outcome(outcome: Outcome, goal: Goal) -> str:
    """Return the line for what was chosen, and why."""
    line = f"chosen: {describe_settings(outcome.chosen)}: {outcome.why}"
    verdict = outcome.verdict
    if verdict is None:
        return line
    value, base = goal.describe(verdict.value), goal.describe(verdict.spec_value)
    return f"{line} ({value} against {base}: {verdict.gain:+.0%}, spread {verdict.spread:.0%})"


def make_document(about: Mapping[str, Any], trials: Sequence[Trial], outcome: Outcome, goal: Goal) -> str:
    """Return the text of tune.json."""
    verdict = outcome.verdict
    fields = {} if verdict is None else {name: getattr(verdict, name) for name in verdict.__dataclass_fields__}
    chosen = {
        "settings": dict(outcome.chosen),
        "concurrency": outcome.concurrency,
        "why": describe_outcome(outcome, goal),
        "compared": dict(outcome.tried),
        "verdict": fields or None,
    }
    return to_json({**about, "trials": [trial.model_dump(mode="json") for trial in trials], "chosen": chosen})
