"""How far a build is, and the way out of one: TensorRT works in a thread of its own.

Python sees Ctrl-C in the main thread only, and only between two of its own instructions; TensorRT's builder stays in
C++ for minutes, and an exception raised inside one of its callbacks ends the process. So the main thread waits here,
and the builder's thread only leaves notes.
"""

from __future__ import annotations

import logging
import math
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_THREAD = "trtgen-build"
_POLL_S = 0.1
# A builder without a monitor may be done with this; EfficientNet-B0 in 8.6 went on for 377 s.
_PATIENCE_S = 2.0
_T = TypeVar("_T")


def silent(_phase: str, _fraction: float) -> None:
    """Report nothing."""


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """What TensorRT's monitor noted, from any of its threads. `cancelled` makes it stop at the next step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._last = ("", 0.0)
        self._told: tuple[str, float] | None = None
        self.cancelled = threading.Event()
        self.monitored = False
        self.stage = "starting"

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase of `steps` steps begins."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
            self._last = (name, max(self._last[1], self._fraction()))

    def step_complete(self, name: str, step: int) -> bool:
        """Note that a step (from 0) is done; False asks TensorRT to stop."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._last = (self._last[0], max(self._last[1], self._fraction()))
        return not self.cancelled.is_set()

    def phase_finish(self, name: str) -> None:
        """Note that a phase is over; with the outermost one everything is."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None:
                self._last = (phase.parent or name, self._last[1] if phase.parent else 1.0)

    def now(self) -> tuple[str, float]:
        """Return what is being done and the part that is done; nan where that is not known."""
        with self._lock:
            name, fraction = self._last
        if name:
            return name, fraction
        return self.stage, 0.0 if self.monitored else math.nan

    def tell(self, on_progress: Callable[[str, float], None]) -> None:
        """Hand the state on if it changed."""
        state = self.now()
        if repr(state) != repr(self._told):  # nan is not equal to itself
            self._told = state
            on_progress(*state)

    def _fraction(self) -> float:
        return max((self._part(name) for name, phase in self._phases.items() if phase.parent is None), default=0.0)

    def _part(self, name: str) -> float:
        phase = self._phases[name]
        inner = max((self._part(child) for child, one in self._phases.items() if one.parent == name), default=0.0)
        return min((phase.done + inner) / phase.steps, 1.0)


def run_watched(work: Callable[[], _T], progress: Progress, on_progress: Callable[[str, float], None]) -> _T:
    """Run `work` in a thread and return what it returns; meanwhile hand its progress on.

    Ctrl-C (or an error of `on_progress`) asks the work to stop, waits for it, and is raised then. A second Ctrl-C ends
    the waiting; then, and where TensorRT cannot be asked (8.6), the work is left behind: see `left_behind`.
    """
    future: Future[_T] = Future()
    thread = threading.Thread(target=_fulfil, args=(future, work), name=_THREAD, daemon=True)
    thread.start()
    try:
        while not wait([future], timeout=_POLL_S).done:
            progress.tell(on_progress)
    finally:
        if not future.done():
            progress.cancelled.set()
            _wait_or_leave(thread, progress)
    progress.tell(on_progress)
    thread.join()
    return future.result()


def left_behind() -> bool:
    """Say whether a build is still at work that was interrupted.

    It writes nothing any more. An ordinary exit would pull the libraries away under it: leave with os._exit. Another
    build in this process would run beside it and share its log.
    """
    return any(thread.name == _THREAD for thread in threading.enumerate())


def _fulfil(future: Future[_T], work: Callable[[], _T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)


def _wait_or_leave(thread: threading.Thread, progress: Progress) -> None:
    _LOG.warning("stopping as soon as TensorRT stops (Ctrl-C again ends at once)")
    thread.join(None if progress.monitored else _PATIENCE_S)
    if thread.is_alive():
        _LOG.warning("TensorRT cannot be asked to stop now: it is left behind, and nothing is written")
