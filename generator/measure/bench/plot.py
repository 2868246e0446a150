"""The diagrams of a run, drawn with matplotlib (the extra `plot`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.measure import picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from generator.measure.bench.result import BenchResult, RunnerFigures

# Okabe and Ito's colours, told apart by colour-blind readers; black and yellow left out.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#666666")


def draw_svg(result: BenchResult) -> str:
    """Return the diagrams as an SVG element.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    return picture.draw_svg(lambda: draw_figure(result), why="it draws bench.svg")


def draw_figure(result: BenchResult) -> Figure:
    """Return the diagrams over the batch: images per second, their ratio, and images per joule where measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    panels: list[tuple[str, Callable[[RunnerFigures], Sequence[float]]]] = [
        ("images/s", lambda one: [one.images_per_s, *one.images_per_s_of_rounds]),
        (f"images/s, times {result.reference}", lambda one: _ratios(result, one)),
        ("images/J", lambda one: one.images_per_joule_of_rounds),
    ]
    present = [panel for panel in panels if any(panel[1](one) for one in result.usable())]
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    for axes, (title, values_of) in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        _draw_panel(axes, result, values_of)
        axes.set_title(title, loc="left")
        axes.set_ylim(bottom=0)
    first = figure.axes[0]
    first.autoscale(axis="y")
    first.set_yscale("log")
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_major_formatter("{x:,g}")
    first.minorticks_off()
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper left", ncols=6, handlelength=3, frameon=False)
    return figure


def _draw_panel(axes: Axes, result: BenchResult, values_of: Callable[[RunnerFigures], Sequence[float]]) -> None:
    """Draw a line per runner through its value at each batch; a bar behind it is the range of its rounds."""
    for index, label in enumerate(result.labels):
        found = {one.batch: values for one in result.usable() if one.label == label and (values := values_of(one))}
        if found:
            middle = [values[0] for values in found.values()]
            low, high = ([end(values) for values in found.values()] for end in (min, max))
            colour = _COLOURS[index % len(_COLOURS)]
            axes.vlines(list(found), low, high, color=colour, linewidth=6, alpha=0.35)
            # without a CUDA graph dashed: those lines are often close to those with one
            axes.plot(list(found), middle, "o-" if label.endswith("-graph") else "o--", color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(result.batches, [str(batch) for batch in result.batches])
    axes.set_xlabel("batch")


def _ratios(result: BenchResult, one: RunnerFigures) -> list[float]:
    reference = result.find(result.reference, one.batch)
    rates = [one.images_per_s, *one.images_per_s_of_rounds]
    return [] if reference is None else [rate / reference.images_per_s for rate in rates]
