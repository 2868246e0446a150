"""The engine of `--engine ray`: Ray Data has the steps as actors, on as many machines as Ray has.

Answers come back in the order of the source and are written here, as those of the other engines are. So a run goes on
by the results themselves, without Ray's checkpoints, which keep every image's name in memory; and no part of the
results is on another machine.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from generator.bulk.images import PATH, Batch, as_column, read_images
from generator.bulk.table import import_pyarrow, make_table
from generator.errors import BulkError, MissingDependencyError, TrtgenError
from generator.signals import hold_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from generator.bulk.results import Results
    from generator.bulk.run import Numbered, Progress
    from generator.bulk.step import Step

_WINDOW = 20_000  # batches whose paths are in Ray's memory; the actors are made again for the next ones
_BLOCK = 64  # batches of a task: each task costs some milliseconds
_BLOCKS_EACH = 4  # at least, so that all actors end at about the same time
_FAILURE = "trtgen-failure:"


class RayEngine:
    """Runs steps as actors of the cluster that RAY_ADDRESS names, or of a Ray on this machine that ends with it.

    Args:
        per_gpu: How many actors share a GPU; 0: they take none.

    Raises:
        MissingDependencyError: Ray is not installed.
        BulkError: Ray cannot be reached, or cannot start.
    """

    def __init__(self, *, per_gpu: int = 0) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingDependencyError("ray[data]", extra="ray", why="it is the engine that was asked for") from error
        self._ray = ray
        # Ray counts ten thousandths of a GPU, and rounds: six times what it made of 1/6 would be more than one.
        self._gpus = 10_000 // per_gpu / 10_000 if per_gpu else 0.0
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a run is raised
        if not ray.is_initialized():
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                msg = f"Ray cannot be reached or started: {_last_line(error)}"
                raise BulkError(msg, hint="check RAY_ADDRESS, or leave it out for a Ray on this machine") from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True

    def __call__(
        self, batches: Iterator[Numbered], steps: Sequence[Callable[[], Step]], results: Results, progress: Progress
    ) -> None:
        """Answer all of the batches; see `generator.bulk.run.Engine`.

        Raises:
            BulkError: Ray has too little for the steps, a step fails, or Ray does.
        """
        self._check(len(steps))
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                progress.tell(self._describe)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            while window := list(itertools.islice(batches, _WINDOW)):
                lasts = {int(one.batch["item"][-1]): one.last for one in window}
                for table in self._answer(window, steps):
                    progress.count(table)
                    with hold_signals():
                        results.add(table, lasts[table["item"][-1].as_py()])
        except self._ray.exceptions.RayError as error:
            raise _explain(error) from error
        finally:
            ended.set()
            watcher.join()

    def _check(self, workers: int) -> None:
        """Refuse what Ray would wait for in silence."""
        there = self._ray.cluster_resources()
        cpus, gpus = int(there.get("CPU", 0)), there.get("GPU", 0)
        if workers > cpus:
            msg = f"{workers} workers take a CPU of Ray's each, and it has {cpus}"
            raise BulkError(msg, hint="use fewer workers, or add machines", fields={"workers": max(cpus, 1)})
        if workers * self._gpus > gpus:
            most = int(gpus / self._gpus)
            msg = f"{workers} workers take {self._gpus} of a GPU each, and Ray has {gpus:g} GPUs"
            raise BulkError(msg, hint="use fewer workers, or add machines", fields={"workers": max(most, 1)})

    def _answer(self, window: Sequence[Numbered], steps: Sequence[Callable[[], Step]]) -> Iterator[Any]:
        """Yield the tables of answers, in order, each of one or more whole batches."""
        size = min(_BLOCK, max(1, math.ceil(len(window) / (_BLOCKS_EACH * len(steps)))))
        blocks = [_pack(window[at : at + size]) for at in range(0, len(window), size)]
        answers = self._ray.data.from_arrow(blocks).map_batches(
            _RayStep,
            # all actors are made alike: of the last step, whose share of what is limited is the smallest
            fn_constructor_args=(steps[-1], len(window[0].batch[PATH])),
            batch_size=None,
            compute=self._ray.data.ActorPoolStrategy(size=len(steps)),
            num_cpus=1,
            num_gpus=self._gpus or None,
        )
        yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")

    def _describe(self) -> str:
        """Say what Ray has, for somebody who waits."""
        try:
            free = self._ray.available_resources()
            return f"Ray, with {free.get('CPU', 0):g} CPUs free of {self._ray.cluster_resources().get('CPU', 0):g}"
        except self._ray.exceptions.RayError as error:
            return f"Ray: {_last_line(error)}"


class _RayStep:
    """A step in an actor of Ray's, for blocks of several batches."""

    def __init__(self, make_step: Callable[[], Step], batch_size: int) -> None:
        self._make_step, self._batch_size = make_step, batch_size
        self._step: Step | None = None  # made by the first call, whose errors reach the driver

    def __call__(self, block: Batch) -> Any:
        try:
            if self._step is None:
                self._step = self._make_step()
            paths = as_column([os.fsdecode(path) for path in block[PATH]])
            columns = {"item": block["item"], PATH: paths}
            size = self._batch_size
            batches = [
                {name: column[at : at + size] for name, column in columns.items()} for at in range(0, len(paths), size)
            ]
            with ThreadPoolExecutor(self._step.calls_at_once) as threads:
                return import_pyarrow().concat_tables(list(threads.map(self._answer, batches)))
        except TrtgenError as error:
            # other exceptions than those with one argument do not survive the way to another process
            raise RuntimeError(_FAILURE + json.dumps([error.message, error.advice], default=str)) from None

    def _answer(self, batch: Batch) -> Any:
        assert self._step is not None
        return make_table(self._step(read_images(batch, most_bytes=self._step.most_bytes)))


def _pack(batches: Sequence[Numbered]) -> Any:
    """Return the numbers and paths of these batches as a table; a path may hold any bytes."""
    pa = import_pyarrow()
    items = np.concatenate([one.batch["item"] for one in batches])
    paths = [os.fsencode(path) for one in batches for path in one.batch[PATH]]
    return pa.table({"item": pa.array(items), PATH: pa.array(paths, pa.binary())})


def _explain(error: BaseException) -> BulkError:
    """Return a step's own error, or Ray's."""
    text = str(error)
    if _FAILURE in text:
        message, advice = json.JSONDecoder().raw_decode(text.partition(_FAILURE)[2])[0]
        return BulkError(message, **advice)
    hint = "look at the logs of Ray's workers, then run the same command again"
    return BulkError(f"Ray failed: {_last_line(error)}", hint=hint)


def _last_line(error: BaseException) -> str:
    """Return the last line of what Ray says, of several tracebacks that of the first, which is the cause."""
    first = str(error).partition("\n\nThe above exception was the direct cause")[0]
    lines = [line for line in first.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
