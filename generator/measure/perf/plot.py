"""The diagrams of perf.html: latency over throughput, throughput over the load, time per stage, the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.measure import picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from generator.measure.perf.measurement import Measurement

# Clear on white and on the page's dark ground, and told apart by colour-blind readers.
_COLOURS = ("#3f8fd2", "#d9742c", "#2aa27b", "#b878b4", "#c9a227", "#7d8fa3")
_REST = "#98a2ad"
# The page's own colours take the place of these, so that they follow its ground.
_OF_THE_PAGE = {"#555555": "var(--soft)", "#999999": "var(--soft)", "#e3e3e3": "var(--line)"}
_WIDTH, _ROW_HEIGHT, _BAR_HEIGHT = 11.0, 3.5, 0.42
_WIDE = 16  # loads that differ so much would lie on each other


def draw_svg(measured: Sequence[Measurement], model: str) -> str:
    """Return the diagrams of `model`, the one that clients call, as an SVG element whose colours follow the page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    text = picture.draw_svg(lambda: draw_figure(measured, model), why="it draws perf.html", transparent=True)
    for colour, variable in _OF_THE_PAGE.items():
        text = text.replace(colour, variable)
    return text


def draw_figure(measured: Sequence[Measurement], model: str) -> Figure:
    """Return the diagrams; the last row, of the GPU, only where the server reported one."""
    from matplotlib.figure import Figure

    own = [one for one in measured if one.model == model]
    has_gpu = any(one.gpu.utilization is not None or one.gpu.power_w is not None for one in own)
    heights = [_ROW_HEIGHT, 1.2 + _BAR_HEIGHT * len(own), *([_ROW_HEIGHT] if has_gpu else [])]
    figure = Figure(figsize=(_WIDTH, sum(heights)))
    figure.set_layout_engine("constrained", hspace=0.06, h_pad=0.1)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    _draw_latency(figure.add_subplot(grid[0, 0]), own)
    _draw_throughput(figure.add_subplot(grid[0, 1]), measured)
    _draw_stages(figure.add_subplot(grid[1, :]), own)
    if has_gpu:
        values = [None if one.gpu.utilization is None else one.gpu.utilization * 100 for one in own]
        _draw_gpu(figure.add_subplot(grid[2, 0]), own, values, "GPU load, %", top=100)
        _draw_gpu(figure.add_subplot(grid[2, 1]), own, [one.gpu.power_w for one in own], "GPU power, W")
    return figure


def _draw_latency(axes: Axes, own: Sequence[Measurement]) -> None:
    """Draw a line per percentile in the order of the load, which is written at the points of p50."""
    rates = [one.infer_per_s for one in own]
    percentiles = {
        "p50": [one.p50_ms for one in own],
        "p95": [one.p95_ms for one in own],
        "p99": [one.p99_ms for one in own],
    }
    for (name, values), colour in zip(percentiles.items(), _COLOURS, strict=False):
        axes.plot(rates, values, "o-", color=colour, label=name)
    for one in own:
        axes.annotate(
            _load(one),
            (one.infer_per_s, one.p50_ms),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            color="#555555",
        )
    axes.set_title(f"latency in ms, over images/s; at the points: {_describe_loads(own)}", loc="left")
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    _add_legend(axes)


def _draw_throughput(axes: Axes, measured: Sequence[Measurement]) -> None:
    for index, name in enumerate(dict.fromkeys(one.model for one in measured)):
        own = [one for one in measured if one.model == name]
        loads, rates = [_number(one) for one in own], [one.infer_per_s for one in own]
        axes.plot(loads, rates, "o-", color=_COLOURS[index % len(_COLOURS)], label=name)
    _set_loads(axes, sorted({_number(one) for one in measured}))
    axes.set_title(f"images/s, over {_describe_loads(measured)}", loc="left")
    axes.set_ylim(bottom=0)
    _add_legend(axes)


def _draw_stages(axes: Axes, own: Sequence[Measurement]) -> None:
    """Draw a bar per load: waiting and computing of each member, then what the client sees beside it."""
    left = [0.0] * len(own)

    def add(label: str, widths: list[float], colour: str, alpha: float) -> None:
        axes.barh(range(len(own)), widths, left=left, height=0.7, color=colour, alpha=alpha, label=label)
        left[:] = [begin + width for begin, width in zip(left, widths, strict=True)]

    for index, name in enumerate([part.model for part in own[0].members] or [own[0].model]):
        stages = [one.members[index].stages if one.members else one.stages for one in own]
        colour = _COLOURS[index % len(_COLOURS)]
        add(f"{name}: waiting", [one.queue_ms for one in stages], colour, 0.4)
        add(f"{name}: computing", [one.total_ms - one.queue_ms for one in stages], colour, 1.0)
    add("network, serialising, client", [one.other_ms for one in own], _REST, 0.6)
    axes.set_yticks(range(len(own)), [_load(one) for one in own])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(f"mean time of a request in ms, at {_describe_loads(own)}", loc="left")
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """Put the legend below the axes, where no line is."""
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)


def _draw_gpu(
    axes: Axes, own: Sequence[Measurement], values: Sequence[float | None], title: str, *, top: float | None = None
) -> None:
    known = [(_number(one), value) for one, value in zip(own, values, strict=True) if value is not None]
    axes.plot([load for load, _ in known], [value for _, value in known], "o-", color=_COLOURS[0])
    if known:
        _set_loads(axes, [load for load, _ in known])
    axes.set_title(f"{title}, over {_describe_loads(own)}", loc="left")
    axes.set_ylim(0, top)


def _set_loads(axes: Axes, loads: Sequence[float]) -> None:
    if max(loads) >= _WIDE * min(loads):
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(loads, [f"{load:g}" for load in loads])


def _number(one: Measurement) -> float:
    return one.request_rate or float(one.concurrency or 0)


def _load(one: Measurement) -> str:
    return f"{_number(one):g}"


def _describe_loads(measured: Sequence[Measurement]) -> str:
    return "requests in flight" if measured[0].request_rate is None else "requests sent per second"
