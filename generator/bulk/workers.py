"""The processes of this machine, each of which has a step.

A process reads the images of one batch while its step is at work on those before, and never has more than these.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any, TypeAlias

from generator.bulk.images import Batch, read_images
from generator.bulk.table import import_pyarrow, make_table
from generator.errors import BulkError, TrtgenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from typing_extensions import Self

    from generator.bulk.step import Step

# The next batch with its images, or why there is none.
_Queue: TypeAlias = "queue.Queue[tuple[int, Batch] | Exception]"

_LOG = logging.getLogger(__name__)
_MOST_LOSSES = 3  # of one batch
_END_S = 5.0


@dataclass(slots=True, kw_only=True)
class _Worker:
    make_step: Callable[[], Step]
    process: Any
    pipe: Connection
    calls_at_once: int = 0  # of its step; 0: it is not ready
    batches: dict[int, Batch] = field(default_factory=dict)  # sent and not answered, by number


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a process says once its step is made."""

    calls_at_once: int


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a step raised, for the process that began it."""

    message: str
    advice: dict[str, Any]


class Workers:
    """Steps at work, one in each process. A process that dies is started again, and its batches are done again.

    Args:
        steps: What makes the step of each process; it is pickled.
    """

    def __init__(self, steps: Sequence[Callable[[], Step]]) -> None:
        self._workers = [_start(make_step) for make_step in steps]
        self._losses: Counter[int] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """End the processes; what they are at work on is lost."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_END_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    @property
    def most_batches(self) -> int:
        """How many batches they have at once."""
        return sum(worker.calls_at_once + 1 for worker in self._workers)

    def find_room(self) -> bool:
        """Say whether one of them takes a batch now."""
        return any(worker.calls_at_once and len(worker.batches) <= worker.calls_at_once for worker in self._workers)

    def send(self, number: int, batch: Batch) -> None:
        """Give a batch to the process that has the fewest; there must be room."""
        ready = [one for one in self._workers if one.calls_at_once]
        worker = min(ready, key=lambda one: len(one.batches) / one.calls_at_once)
        worker.batches[number] = batch
        _send(worker, number)

    def receive(self, timeout_s: float) -> Iterator[tuple[int, Any]]:
        """Wait for answers, and yield each batch's number and table.

        Raises:
            BulkError: A process cannot begin, dies again and again at the same batch, or its step raises a TrtgenError.
        """
        pa = import_pyarrow()
        ready = connection.wait([one for w in self._workers for one in (w.pipe, w.process.sentinel)], timeout_s)
        for place, worker in enumerate(self._workers):
            if worker.pipe in ready:
                try:
                    said = worker.pipe.recv()
                except (EOFError, OSError):  # it died
                    self._replace(place)
                    continue
                if isinstance(said, _Failure):
                    raise BulkError(said.message, **said.advice)
                if isinstance(said, _Ready):
                    worker.calls_at_once = said.calls_at_once
                    for number in worker.batches:  # of the process that it replaces
                        _send(worker, number)
                else:
                    number, data = said
                    del worker.batches[number]
                    self._losses.pop(number, None)
                    with pa.ipc.open_stream(data) as stream:
                        yield number, stream.read_all()
            elif worker.process.sentinel in ready:
                self._replace(place)

    def describe(self) -> str:
        """Say what each process is at work on."""
        firsts = [next(iter(worker.batches.values()))["path"][0] for worker in self._workers if worker.batches]
        return ", ".join(map(str, firsts))

    def _replace(self, place: int) -> None:
        """Start a dead process again."""
        dead = self._workers[place]
        dead.process.join()
        dead.pipe.close()
        code = dead.process.exitcode
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as when memory runs out"
        if not dead.calls_at_once:
            msg = f"a worker process ended {how} before it was ready"
            raise BulkError(msg, hint="use fewer workers", fields={"workers": 1})
        for number in list(dead.batches)[: dead.calls_at_once]:  # those that it was at work on
            self._losses[number] += 1
            if self._losses[number] >= _MOST_LOSSES:
                paths = dead.batches[number]["path"]
                which = f"{paths[0]} to {paths[-1]}"
                msg = f"{_MOST_LOSSES} worker processes ended at the same images, the last {how}: {which}"
                hint = "a batch of one image tells which it is; where memory runs out, use fewer workers"
                raise BulkError(msg, hint=hint, fields={"batch": 1, "workers": 1})
        _LOG.warning("a worker process ended %s: it is started again", how)
        self._workers[place] = _start(dead.make_step)
        self._workers[place].batches = dead.batches


def _start(make_step: Callable[[], Step]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(make_step, theirs), daemon=True)
    # Ctrl-C goes to all processes of a terminal: one that is started now inherits that it is blocked. What Python
    # starts beside the first one would lift that again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(make_step=make_step, process=process, pipe=ours)


def _send(worker: _Worker, number: int) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; that is seen when waiting for it
        worker.pipe.send((number, worker.batches[number]))


def _work(make_step: Callable[[], Step], pipe: Connection) -> None:
    """Answer batches until the other end of the pipe is closed, as it is where that process is killed."""
    sending = threading.Lock()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        try:
            step = make_step()
            pipe.send(_Ready(step.calls_at_once))
            batches: _Queue = queue.Queue(1)
            threading.Thread(target=_read, args=(pipe, batches, step.most_bytes), daemon=True).start()
            for _ in range(step.calls_at_once - 1):
                threading.Thread(target=_answer_beside, args=(step, batches, pipe, sending), daemon=True).start()
            _answer(step, batches, pipe, sending)
        except TrtgenError as error:
            with sending:
                pipe.send(_Failure(error.message, error.advice))


def _answer(step: Step, batches: _Queue, pipe: Connection, sending: threading.Lock) -> None:
    """Answer one batch after the other; raises why there is none any more, EOFError at the end of the pipe."""
    while not isinstance(work := batches.get(), Exception):
        number, batch = work
        answers = _pack(make_table(step(batch)))
        with sending:
            pipe.send((number, answers))
    raise work


def _answer_beside(step: Step, batches: _Queue, pipe: Connection, sending: threading.Lock) -> None:
    """Do it in another thread, and leave what ends it to the main one."""
    try:
        _answer(step, batches, pipe, sending)
    except (TrtgenError, EOFError, ConnectionError) as error:
        batches.put(error)
    except BaseException:  # noqa: BLE001 - nobody else would hear of it
        traceback.print_exc()
        os._exit(1)


def _read(pipe: Connection, batches: _Queue, most_bytes: int) -> None:
    """Read the images of each batch that comes, until there is none any more or they cannot be read."""
    while True:
        try:
            number, batch = pipe.recv()
            batches.put((number, read_images(batch, most_bytes=most_bytes)))
        except (EOFError, ConnectionResetError, TrtgenError) as error:
            batches.put(error)
            return


def _pack(table: Any) -> bytes:
    """Return a table in Arrow's own format: what a process of Python would make of its rows takes longer to read."""
    pa = import_pyarrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
