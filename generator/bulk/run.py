"""Bulk work from end to end: the images of a source through the steps into the results, in order and bounded."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from generator.bulk.images import PATH, Batch, as_column
from generator.bulk.workers import Workers
from generator.errors import BulkError
from generator.events import Doing, OnEvent, ignore
from generator.images.sets import SUFFIXES
from generator.server.mps import share_gpus
from generator.signals import hold_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from generator.bulk.results import Finished, Results
    from generator.bulk.sources import Source
    from generator.bulk.step import Step

_LOG = logging.getLogger(__name__)
_SILENCE_S = 60.0
_TOLD_EVERY_S = 1.0
# Answers wait for those in front of them: at most so many times the batches that are at work.
_AHEAD = 4


def run_bulk(
    source: Source,
    results: Results,
    steps: Sequence[Callable[[], Step]],
    *,
    batch_size: int = 32,
    engine: Engine | None = None,
    on_event: OnEvent = ignore,
) -> Finished:
    """Answer what is not answered yet, and return what the results hold then.

    However it ends, what was answered is kept: another run with the same source goes on behind it.

    Args:
        source: The images.
        results: Where the answers go.
        steps: What makes the step of each process; it is pickled.
        batch_size: Images in a call of a step.
        engine: What runs the steps; by default processes of this machine.
        on_event: Called with the state every second.

    Raises:
        BulkError: The source cannot be read or holds no image, the results cannot be written, or a process fails.
    """
    if not results.is_complete:
        progress = Progress(source, results.finished, on_event)
        try:
            (engine or run_in_processes)(_make_batches(source, results.finished, batch_size), steps, results, progress)
        finally:
            with hold_signals():
                results.flush()
        if not results.finished.items:
            endings = ", ".join(sorted(SUFFIXES))
            hint = (
                f"of a folder or a bucket these endings count: {endings}; of a quoted pattern every file that fits it"
            )
            raise BulkError("the source holds no image", hint=hint)
        results.complete()
    return results.finished


class Numbered(NamedTuple):
    """A batch, and the name of its last image in the source."""

    batch: Batch
    last: str


def _make_batches(source: Source, finished: Finished, size: int) -> Iterator[Numbered]:
    """Yield the images behind those that are finished, with their numbers in the source."""
    items = source.iterate(finished.items, finished.last)
    first = finished.items
    while chunk := list(itertools.islice(items, size)):
        numbers = np.arange(first, first + len(chunk), dtype=np.int64)
        yield Numbered({"item": numbers, PATH: as_column([item.path for item in chunk])}, chunk[-1].name)
        first += len(chunk)


class Engine(Protocol):
    """Hands batches to steps, and their answers on to the results in the order of the source."""

    def __call__(
        self, batches: Iterator[Numbered], steps: Sequence[Callable[[], Step]], results: Results, progress: Progress
    ) -> None:
        """Answer all of the batches; BulkError where that cannot be continued."""


def run_in_processes(
    batches: Iterator[Numbered], steps: Sequence[Callable[[], Step]], results: Results, progress: Progress
) -> None:
    """Have one process of this machine for each step; see Engine."""
    with Workers(steps) as workers:
        _answer_all(batches, workers, results, progress)


def run_on_shared_gpus(
    batches: Iterator[Numbered], steps: Sequence[Callable[[], Step]], results: Results, progress: Progress
) -> None:
    """Have GPUs run the kernels of several processes at the same time meanwhile, which pays where they decode."""
    with share_gpus():
        run_in_processes(batches, steps, results, progress)


def _answer_all(batches: Iterator[Numbered], workers: Workers, results: Results, progress: Progress) -> None:
    """Keep the workers busy, and hand their answers on in the order of the source."""
    lasts: dict[int, str] = {}  # of the batches that are at work, or wait
    waiting: dict[int, Any] = {}
    sent = written = 0
    most = _AHEAD * workers.most_batches
    is_more = True
    while is_more or written < sent:
        while is_more and sent - written < most and workers.find_room():
            batch = next(batches, None)
            if batch is None:
                is_more = False
            else:
                workers.send(sent, batch.batch)
                lasts[sent] = batch.last
                sent += 1
        for number, table in workers.receive(_TOLD_EVERY_S):
            waiting[number] = table
            progress.count(table)
        while written in waiting:
            with hold_signals():
                results.add(waiting.pop(written), lasts.pop(written))
            written += 1
        progress.tell(workers.describe)


class Progress:
    """How far it is, and how fast."""

    def __init__(self, source: Source, finished: Finished, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._before, self._items, self._errors = finished.items, finished.items, finished.errors
        self._since_s = self._told_s = self._heard_s = time.monotonic()
        self._total: int | None = None
        threading.Thread(target=self._count_all, args=(source,), daemon=True).start()

    def _count_all(self, source: Source) -> None:
        try:
            self._total = source.count()
        except BulkError as error:  # whoever reads it for the work says so
            _LOG.debug("the images are not counted: %s", error)

    def count(self, table: Any) -> None:
        """Take the answers to a batch."""
        if self._items == self._before:
            self._since_s = time.monotonic() - 1e-3  # the processes are ready
        self._items += table.num_rows
        self._errors += table.num_rows - table["error"].null_count
        self._heard_s = time.monotonic()

    def tell(self, describe: Callable[[], str]) -> None:
        """Say how far it is, every second; and what is at work where nothing comes, every minute."""
        now_s = time.monotonic()
        if now_s - self._heard_s >= _SILENCE_S:
            self._heard_s = now_s
            at = describe()
            _LOG.warning("no image was finished for %.0f s; at work: %s", _SILENCE_S, at or "the source itself")
        if now_s - self._told_s >= _TOLD_EVERY_S:
            self._told_s = now_s
            self._on_event(Doing(step="answering", part=self._describe(now_s), fraction=self._fraction))

    @property
    def _fraction(self) -> float:
        return min(self._items / self._total, 1.0) if self._total else math.nan

    def _describe(self, now_s: float) -> str:
        rate = (self._items - self._before) / (now_s - self._since_s)
        of = f" of {self._total:,}" if self._total else ""
        parts = [f"{self._items:,}{of} images", f"{rate:,.0f} images/s", f"{self._errors:,} errors"]
        if self._total and rate:
            parts.append(f"{_in_words(max(self._total - self._items, 0) / rate)} left")
        return ", ".join(parts)


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
