"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is at work gets a KeyboardInterrupt and cleans up."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` sends its signal twice, to the process and to its group: that is one.
_TWICE_S = 0.2


class EndedBySignal(KeyboardInterrupt):
    """Raised where the process is when the signal arrives."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_signals() -> Iterator[None]:
    """Raise EndedBySignal in the block for each SIGINT, SIGTERM and SIGHUP, unless it is ignored as `nohup` does.

    After the first one everything cleans up; a second one breaks that off.
    """
    last_s: dict[int, float] = {}

    def end(number: int, _frame: object) -> None:
        before_s, last_s[number] = last_s.get(number), time.monotonic()
        if before_s is None or last_s[number] - before_s > _TWICE_S:
            raise EndedBySignal(number)

    with _handling(end):
        yield


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold these signals back until the end of the block."""
    held: list[int] = []
    try:
        with _handling(lambda number, _frame: held.append(number)):
            yield
    finally:
        for number in held:
            signal.raise_signal(number)


@contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        yield
        return
    heard = [number for number in _ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
