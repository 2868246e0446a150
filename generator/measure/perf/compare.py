"""A run beside an earlier one: ratios for each model and load, and whether they are more than the runs' own spread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError
from generator.measure.results import align_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from generator.measure.perf.measurement import Measurement

Load = tuple[str, int | None, float | None, int]  # model, concurrency, requests per second, images per request
_FIGURES = ("infer_per_s", "average_ms", "p50_ms", "p95_ms", "p99_ms")
_SAME = "no difference beyond the spread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What a perf.json says: the settled figures by load, and the rest of the document."""

    path: Path
    rows: Mapping[Load, Mapping[str, Any]]
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """New figures divided by old ones, for one model and load.

    `spread` is that of both runs together, in throughput, or in latency where the load is a rate, since what is
    answered is then what was sent; None where a run has none. `words` says what follows from it.
    """

    model: str
    concurrency: int | None
    request_rate: float | None
    batch_size: int
    throughput: float
    p50: float
    p95: float
    p99: float
    spread: float | None
    words: str


def read_earlier(path: Path, loads: Iterable[Load]) -> Earlier:
    """Return the results of an earlier run; one of them must be of one of `loads`, those to be measured.

    Raises:
        PerfError: The file cannot be read, is no perf.json, or has nothing to compare with.
    """
    advice: Any = {"hint": "give the perf.json of an earlier run", "fields": {"compare": None}}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PerfError(f"{path} cannot be read: {error.strerror}", **advice) from error
    except ValueError as error:
        raise PerfError(f"{path} is not a perf.json: {error}", **advice) from error
    try:
        settled = [one for one in document["measurements"] if one["settled"]]
        rows = {_find_load(one): {name: _positive(one[name]) for name in _FIGURES} | _spreads(one) for one in settled}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PerfError(f"{path} is not a perf.json: it lacks {error}", **advice) from error
    if rows.keys().isdisjoint(loads):
        has = ", ".join(_describe(load) for load in rows) or "only what did not settle"
        raise PerfError(
            f"{path} has none of the models and loads that are to be measured; it has {has}",
            hint="measure at the same load, or give another perf.json",
            fields={"compare": None},
        )
    return Earlier(path=path, rows=rows, about={name: document.get(name) for name in ("machine", "load", "images")})


def compare(measured: Sequence[Measurement], earlier: Earlier) -> list[Difference]:
    """Return the difference of everything that both runs measured."""
    found = []
    for one in measured:
        old = earlier.rows.get((one.model, one.concurrency, one.request_rate, one.batch_size))
        if old is not None:
            found.append(_compare_one(one, old))
    return found


def find_other_conditions(earlier: Earlier, about: Mapping[str, Any]) -> list[str]:
    """Return what else differed between the runs, and may be why the figures do."""
    here, there = ({**(each.get("machine") or {}), **(each.get("load") or {})} for each in (about, earlier.about))
    names = ("processor", "cores", "gpus", "protocol", "shared_memory", "arrivals")
    other = [
        f"{name.replace('_', ' ')}: {there[name]}, now {here.get(name)}"
        for name in names
        if name in there and there[name] != here.get(name)
    ]
    old, new = ((each.get("images") or {}).get("source") for each in (earlier.about, about))
    return [*other, f"images: {old}, now {new}"] if old != new else other


def format_differences(differences: Sequence[Difference]) -> list[str]:
    """Return the lines of the table that people read."""
    return align_columns([make_header(), *map(make_cells, differences)], left=(0, 1, 7))


def make_header() -> list[str]:
    """Return the heads of the table's columns."""
    return ["model", "load", "images/s", "p50", "p95", "p99", "spread", ""]


def make_cells(one: Difference) -> list[str]:
    """Return the cells of one row of the table."""
    ratios = [f"{ratio:.2f}x" for ratio in (one.throughput, one.p50, one.p95, one.p99)]
    spread = "" if one.spread is None else f"{one.spread:.0%}"
    load = _describe((one.model, one.concurrency, one.request_rate, one.batch_size)).removeprefix(f"{one.model} at ")
    return [one.model, load, *ratios, spread, one.words]


def _compare_one(new: Measurement, old: Mapping[str, Any]) -> Difference:
    open_loop = new.request_rate is not None
    ours, theirs = (new.latency_spread, old["latency_spread"]) if open_loop else (new.spread, old["spread"])
    spread = None if ours is None or theirs is None else (1 + ours) * (1 + theirs) - 1
    throughput = new.infer_per_s / old["infer_per_s"]
    gain = old["average_ms"] / new.average_ms if open_loop else throughput
    if spread is None:
        words = "the spread is not known"
    elif 1 / (1 + spread) <= gain <= 1 + spread:
        words = _SAME
    else:
        words = "faster" if gain > 1 else "slower"
    return Difference(
        model=new.model,
        concurrency=new.concurrency,
        request_rate=new.request_rate,
        batch_size=new.batch_size,
        throughput=throughput,
        p50=new.p50_ms / old["p50_ms"],
        p95=new.p95_ms / old["p95_ms"],
        p99=new.p99_ms / old["p99_ms"],
        spread=spread,
        words=words,
    )


def _find_load(row: Mapping[str, Any]) -> Load:
    return (row["model"], row["concurrency"], row.get("request_rate"), row["batch_size"])


def _spreads(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("spread", "latency_spread")}


def _positive(value: Any) -> float:
    if not isinstance(value, (int, float)) or not value > 0:
        msg = f"a figure, having {value!r}"
        raise ValueError(msg)
    return float(value)


def _describe(load: Load) -> str:
    model, concurrency, rate, batch_size = load
    level = f"concurrency {concurrency}" if rate is None else f"{rate:g} requests/s"
    return f"{model} at {level}" + (f", batch {batch_size}" if batch_size > 1 else "")
