"""What people read: on stderr, so that stdout carries results only."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from typing import TYPE_CHECKING

from generator.cli.hints import describe_hint
from generator.events import Doing, Done

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.live import Live
    from rich.text import Text

    from generator.errors import TrtgenError

_BOLD_RED, _BOLD, _RESET = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"
_FRAMES_PER_S = 8
_BAR_WIDTH = 20
_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}

_verbosity = 0  # -1 only errors, 0 steps, 1 what is under way in them, 2 details
_live: Live | None = None  # the line that changes, while there is one


def say(message: str = "") -> None:
    """Print one line for people, unless they want errors only."""
    if _verbosity >= 0:
        _print(message)


def step(done: str, *, detail: str = "", seconds: float | None = None) -> None:
    """Print one finished step: `* exported resnet50_classifier/1/model.onnx   64 nodes   4.1 s`."""
    parts = [f"* {done}", detail, "" if seconds is None else f"{seconds:.1f} s"]
    say("  ".join(part for part in parts if part))


def report(error: TrtgenError) -> None:
    """Print an error and its hint."""
    fail(error.message, log=getattr(error, "log_tail", ()), hint=describe_hint(error))


def fail(message: str, *, log: Sequence[str] = (), hint: str | None = None) -> None:
    """Print what went wrong and, where there is something, what to do next."""
    _print(f"{_paint('error:', _BOLD_RED)} {message}")
    for line in log:
        _print(f"  | {line}")
    if hint:
        _print(f"{_paint('hint:', _BOLD)} {hint}")


def set_verbosity(verbosity: int) -> None:
    """Choose what is said: only errors at -1 and below, steps at 0, what is under way at 1, details above."""
    global _verbosity  # noqa: PLW0603 - there is one terminal
    _verbosity = max(verbosity, -1)
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("generator")
    logger.handlers[:] = [handler]
    logger.setLevel(_LEVELS.get(_verbosity, logging.DEBUG))
    logger.propagate = False


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Give what draws events: lines for finished steps and, on a terminal, one that changes for the step under way."""
    progress = Progress()
    try:
        yield progress
    finally:
        progress.hide()


class _Handler(logging.Handler):
    """Prints the library's log records for people, above the line that changes."""

    def emit(self, record: logging.LogRecord) -> None:
        _print(self.format(record))


class Progress:
    """The step under way; nothing may be printed to standard output before `hide`."""

    def __init__(self) -> None:
        self._now = Doing(step="")
        self._since_s = 0.0

    def draw(self, event: Doing | Done) -> None:
        """Print what stays, and show what is under way."""
        if isinstance(event, Done):
            self.hide()
            step(f"{event.step:8}", detail=event.detail, seconds=event.seconds)
            return
        before, self._now = self._now, event
        if event.step != before.step:
            self._since_s = time.monotonic()
        if _verbosity > 0 and event.part and (event.step, event.part) != (before.step, before.part):
            say(f"  {event.step}: {event.part}")
        self._show()

    def hide(self) -> None:
        """Take the line that changes away."""
        global _live  # noqa: PLW0603 - there is one terminal
        if _live is not None:
            _live.stop()
            _live = None
        self._now = Doing(step="")

    def _show(self) -> None:
        global _live  # noqa: PLW0603 - there is one terminal
        if _live is not None or _verbosity < 0 or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", None):
            return
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        console = Console(stderr=True)
        spinner = Spinner("dots" if "utf" in sys.stderr.encoding.lower() else "line")

        def line() -> Table:
            frame = spinner.render(console.get_time())
            cells: list[Text | ProgressBar] = [Text(f"{frame} {self._describe()}", no_wrap=True, overflow="ellipsis")]
            if not math.isnan(self._now.fraction):
                cells.append(ProgressBar(total=1, completed=self._now.fraction, width=_BAR_WIDTH))
            table = Table.grid(padding=(0, 1))
            table.add_row(*cells)
            return table

        _live = Live(
            get_renderable=line,
            console=console,
            refresh_per_second=_FRAMES_PER_S,
            transient=True,
            redirect_stdout=False,
        )
        _live.start(refresh=True)

    def _describe(self) -> str:
        now = self._now
        parts = [f"{now.step}: {now.part}" if now.part else now.step]
        parts += [] if math.isnan(now.fraction) else [f"{now.fraction:.0%}"]
        return "  ".join([*parts, f"{time.monotonic() - self._since_s:.0f} s"])


def _print(message: str) -> None:
    if _live is None:
        print(message, file=sys.stderr, flush=True)
    else:
        _live.console.print(message, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _paint(text: str, colour: str) -> str:
    if os.environ.get("NO_COLOR") or not (os.environ.get("FORCE_COLOR") or sys.stderr.isatty()):
        return text
    return f"{colour}{text}{_RESET}"
