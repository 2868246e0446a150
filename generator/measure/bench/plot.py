"""bench.svg and bench.html: the positions are worked out here, the templates only write them down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.measure.bench.report import COLUMNS, table_rows
from generator.render import render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.measure.bench.result import BenchResult, Measured

__all__ = ["draw_svg", "make_page"]

# Okabe and Ito's colours, told apart by colour-blind readers; black and yellow left out.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#666666")
_WIDTH, _PLOT_HEIGHT = 1080.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 18.0, 34.0, 48.0
_LEGEND_LINE, _LEGEND_CHARACTER, _LEGEND_GAP = 22.0, 7.2, 44.0
_INSET = 24.0
_MOST_TICKS = 9
_ROOM = 1.15  # how far the axis goes beyond the outermost values, as a factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line of the grid: where, and what is written beside it."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a line; `low` to `high` is the range of the rounds. `text` is shown under the mouse."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One runner: its marks from left to right."""

    colour: str
    dashed: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram, over the batch on a logarithmic axis."""

    title: str
    left: float
    right: float
    top: float
    bottom: float
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the legend."""

    x: float
    y: float
    label: str
    colour: str
    dashed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Everything the template draws."""

    width: float
    height: float
    entries: tuple[Entry, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    """What a panel shows: the value of a measurement, and of each of its rounds. `linear` axes begin at zero."""

    title: str
    unit: str
    linear: bool
    value: Callable[[Measured], float | None]
    rounds: Callable[[Measured], Sequence[float]]


def _quantities(result: BenchResult) -> tuple[_Quantity, ...]:
    def ratios(one: Measured) -> list[float]:
        reference = result.find(result.reference, one.batch)
        return [] if reference is None else [rate / reference.images_per_s for rate in one.images_per_s_of_rounds]

    return (
        _Quantity(
            title="images/s",
            unit="images/s",
            linear=False,
            value=lambda one: one.images_per_s,
            rounds=lambda one: one.images_per_s_of_rounds,
        ),
        _Quantity(
            title=f"images/s, times {result.reference}",
            unit=f"times {result.reference}",
            linear=True,
            value=result.ratio,
            rounds=ratios,
        ),
        _Quantity(
            title="images/J",
            unit="images/J",
            linear=True,
            value=lambda one: one.images_per_joule,
            rounds=lambda one: [
                one.batch * each.energy.iterations / each.energy.joules
                for each in one.rounds
                if each.energy is not None and each.energy.joules > 0
            ],
        ),
    )


def draw_svg(result: BenchResult) -> str:
    """Return the diagrams as SVG text: images per second, their ratio, and images per joule where measured."""
    return render("reports/bench.svg.j2", picture=make_picture(result))


def make_page(result: BenchResult) -> str:
    """Return a page that needs no other file: diagrams, table, and what is to be known about the run."""
    header = [f"x {result.reference}" if name == "ratio" else name for name in COLUMNS]
    rows = table_rows(result)
    blocks = [
        {
            "batch": batch,
            "rows": [cells for one, cells in rows if one == batch],
            "failures": [one for one in result.measured if one.batch == batch and one.failure],
        }
        for batch in result.batches
    ]
    values = {"about": result.about, "runners": result.runners, "finished": result.finished}
    return render("reports/bench.html.j2", picture=make_picture(result), header=header, blocks=blocks, **values)


def make_picture(result: BenchResult) -> Picture:
    """Work out where everything goes; panels without a value are left out."""
    shown = {label: index for index, label in enumerate(result.labels)}
    labels = [label for label in shown if any(one.label == label for one in result.usable())]
    entries, legend_height = _place_legend(labels, shown)
    present = [each for each in _quantities(result) if any(each.value(one) is not None for one in result.usable())]
    width = _WIDTH / max(len(present), 1)
    top = legend_height + _TOP
    panels = tuple(
        _make_panel(quantity, result, shown, left=index * width + _LEFT, right=(index + 1) * width - _RIGHT, top=top)
        for index, quantity in enumerate(present)
    )
    return Picture(width=_WIDTH, height=top + _PLOT_HEIGHT + _BOTTOM, entries=entries, panels=panels)


def _make_panel(
    quantity: _Quantity, result: BenchResult, shown: dict[str, int], *, left: float, right: float, top: float
) -> Panel:
    bottom = top + _PLOT_HEIGHT
    found = [(one, value) for one in result.usable() if (value := quantity.value(one)) is not None]
    values = [number for one, value in found for number in (value, *quantity.rounds(one))]
    batches = sorted({one.batch for one, _ in found})
    low, high = (0.0 if quantity.linear else min(values) / _ROOM), max(values) * _ROOM

    def place_x(batch: int) -> float:
        return _interpolate(math.log(batch), math.log(batches[0]), math.log(batches[-1]), left + _INSET, right - _INSET)

    def place_y(value: float) -> float:
        if quantity.linear:
            return _interpolate(value, low, high, bottom, top)
        return _interpolate(math.log(value), math.log(low), math.log(high), bottom, top)

    def mark(one: Measured, value: float) -> Mark:
        rounds = [*quantity.rounds(one), value]
        text = f"{one.label}, batch {one.batch}: {value:,.4g} {quantity.unit}"
        heights = place_y(min(rounds)), place_y(max(rounds))
        return Mark(x=place_x(one.batch), y=place_y(value), low=heights[0], high=heights[1], text=text)

    lines = tuple(
        Line(
            colour=_colour(shown[label]),
            dashed=_dashed(label),
            marks=tuple(mark(one, value) for one, value in found if one.label == label),
        )
        for label in shown
        if any(one.label == label for one, _ in found)
    )
    return Panel(
        title=quantity.title,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        columns=tuple(Tick(at=place_x(batch), text=str(batch)) for batch in batches),
        rows=tuple(
            Tick(at=place_y(value), text=f"{value:,.6g}") for value in _ticks(low, high, linear=quantity.linear)
        ),
        lines=lines,
    )


def _place_legend(labels: Sequence[str], shown: dict[str, int]) -> tuple[tuple[Entry, ...], float]:
    """Put the labels into lines of the picture's width; return them and the height that they take."""
    entries, x, y = [], _LEFT, _LEGEND_LINE
    for label in labels:
        width = len(label) * _LEGEND_CHARACTER + _LEGEND_GAP
        if x + width > _WIDTH and x > _LEFT:
            x, y = _LEFT, y + _LEGEND_LINE
        entries.append(Entry(x=x, y=y, label=label, colour=_colour(shown[label]), dashed=_dashed(label)))
        x += width
    return tuple(entries), y + 4


def _interpolate(value: float, first: float, last: float, start: float, end: float) -> float:
    """Place a value on an axis; in its middle where the axis has one value only."""
    share = 0.5 if first == last else (value - first) / (last - first)
    return round(start + (end - start) * share, 2)


def _ticks(low: float, high: float, *, linear: bool) -> list[float]:
    """Return round numbers between the ends of an axis, few enough to read."""
    powers = range(math.floor(math.log10(low or high)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    if linear:
        step = next(step for step in steps if high / step <= _MOST_TICKS)
        return [step * count for count in range(int(high / step) + 1)]
    fine = [step for step in steps if low <= step <= high]
    return fine if len(fine) <= _MOST_TICKS else [10.0**power for power in powers if low <= 10.0**power <= high]


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _dashed(label: str) -> bool:
    """Runners without a CUDA graph: their lines are often close to those with one."""
    return not label.endswith("-graph")
