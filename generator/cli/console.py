"""What people read: on stderr, so that stdout carries results only."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generator.errors import TrtgenError

_BOLD_RED, _BOLD, _RESET = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"


def say(message: str = "") -> None:
    """Print one line for people."""
    print(message, file=sys.stderr, flush=True)


def step(done: str, *, detail: str = "", seconds: float | None = None) -> None:
    """Print one finished step: `* exported resnet50_classifier/1/model.onnx   64 nodes   4.1 s`."""
    parts = [f"* {done}", detail, "" if seconds is None else f"{seconds:.1f} s"]
    say("  ".join(part for part in parts if part))


def report(error: TrtgenError) -> None:
    """Print an error and its hint."""
    say(f"{_paint('error:', _BOLD_RED)} {error.message}")
    for line in getattr(error, "log_tail", []):
        say(f"  | {line}")
    if error.hint:
        say(f"{_paint('hint:', _BOLD)} {error.hint}")


def install_logging(verbosity: int) -> None:
    """Send the library's log records to stderr: warnings at 0, steps at 1, details at 2 and above."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(max(verbosity, 0), logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("generator")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _paint(text: str, colour: str) -> str:
    if os.environ.get("NO_COLOR") or not (os.environ.get("FORCE_COLOR") or sys.stderr.isatty()):
        return text
    return f"{colour}{text}{_RESET}"
