"""Diagrams as SVG elements for our pages, drawn with matplotlib (the extra `plot`) in one style."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from generator.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

# Text stays text, and the same run gives the same file: without a date, and with names that do not change.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trtgen",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#999999",
    "grid.color": "#e3e3e3",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "ytick.left": False,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw_svg(draw: Callable[[], Figure], *, why: str, transparent: bool = False) -> str:
    """Return what `draw` makes as an SVG element.

    Args:
        draw: It is called in our style.
        why: What it is drawn for, for who has no matplotlib.
        transparent: Whether the page shines through.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingDependencyError("matplotlib", extra="plot", why=why) from error
    stream = io.StringIO()
    with rc_context(_STYLE):
        draw().savefig(stream, format="svg", metadata=_NO_METADATA, transparent=transparent)
    text = stream.getvalue()
    return text[text.index("<svg") :]
