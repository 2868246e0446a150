"""The schedule: every runner prepares a batch, then all of them take turns, so that what drifts drifts for all.

All processes stay alive through the run; at any time at most one of them works.
"""

from __future__ import annotations

import base64
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError
from generator.measure.bench.process import RunnerError, RunnerProcess, runner_command, runner_environment
from generator.measure.bench.result import Agreement, BenchResult, Energy, Round, RunnerFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.measure.bench.contender import Contender

# The last-level cache of an H200 has 60 MB, most others less: inputs together are larger than twice that if they may.
_CACHE_BYTES = 64 * 2**20
_INPUT_SETS = (2, 8)
# A runner too slow for the least number of iterations stops after so many times the time that a round should take.
_LONGEST_ROUND = 4
# Rows of the answer that are compared, and after how many ends of its own a runner is not started again.
_ROWS = 8
_MOST_ENDS = 2
# The loosest limit of the gate, that of int8; below it two runners hardly run the same network.
LEAST_COSINE = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is measured how long. A round is `seconds` or `iterations`, whichever takes longer, at most 4 x `seconds`.

    `energy_s` is the length of each round's energy window, 0 for none; `timeout_s` the longest wait for one answer.
    """

    batches: tuple[int, ...] = (1, 8, 32, 64, 128)
    rounds: int = 5
    seconds: float = 0.5
    iterations: int = 20
    warm_s: float = 0.5
    energy_s: float = 1.0
    timeout_s: float = 180.0
    seed: int = 0


class _Runner:
    """A contender and its process, which is started when it is needed, and once more where it ends by itself."""

    def __init__(self, contender: Contender, timeout_s: float) -> None:
        self.contender = contender
        self.about: dict[str, Any] = {}
        self.clock = ""
        self._timeout_s = timeout_s
        self._process: RunnerProcess | None = None
        self._ends = 0
        self._failure = ""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Pass a request on; RunnerError where it fails."""
        if self._process is None:
            self.start()
        assert self._process is not None
        try:
            return self._process.ask(do, **arguments)
        except RunnerError as error:
            if not error.alive:
                self._end(error)
            raise

    def release(self) -> None:
        """Let it free what the batch took, if it runs; its figures are there, so that a failure shows at the next."""
        if self._process is not None:
            with contextlib.suppress(RunnerError):
                self.ask("release")

    def close(self, *, patience_s: float) -> None:
        if self._process is not None:
            self._process.stop(patience_s=patience_s)
            self._process = None

    def start(self) -> None:
        """Start the process and let it load what it runs; RunnerError where that fails."""
        if self._ends >= _MOST_ENDS:
            raise RunnerError(f"not started again: {self._failure}", alive=False)
        python = self.contender.python
        command, environment = runner_command(self.contender.kind, python), runner_environment(python)
        try:
            self._process = RunnerProcess(command, environment, timeout_s=self._timeout_s)
            answer = self._process.ask("start", settings=self.contender.settings)
        except RunnerError as error:  # a runner that does not start is of no use, even if its process lives
            self._end(error)
            raise
        given = self.contender
        self.about = {"kind": given.kind, "weights": given.weights, **answer["about"]}
        self.clock = answer["clock"]

    def _end(self, error: RunnerError) -> None:
        self.close(patience_s=0)
        self._ends += 1
        self._failure = error.message


def count_input_sets(bytes_of_one: int) -> int:
    """Return how many sets of inputs are rotated: together twice the cache where 8 suffice for that, at least 2."""
    least, most = _INPUT_SETS
    return max(least, min(most, -(-2 * _CACHE_BYTES // bytes_of_one)))


def run_bench(
    contenders: Sequence[Contender],
    schedule: Schedule,
    result: BenchResult,
    *,
    on_progress: Callable[[str], None] = lambda _line: None,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Measure and put everything into `result`, which holds what was found even if this is interrupted.

    `on_batch` is called after each batch.

    Raises:
        PerfError: A runner does not start: what it was given is wrong, and nothing was measured.
    """
    runners = [_Runner(contender, schedule.timeout_s) for contender in contenders]
    patience_s = 0.0
    try:
        for runner in runners:
            on_progress(f"starting {runner.contender.label}")
            _start(runner)
        for batch in schedule.batches:
            _run_batch(runners, batch, schedule, result, on_progress)
            on_batch()
        patience_s, result.finished = 5.0, True
    finally:
        for runner in runners:
            runner.close(patience_s=patience_s)


def _start(runner: _Runner) -> None:
    """Start a runner before anything is measured."""
    one = runner.contender
    try:
        runner.start()
    except RunnerError as error:
        msg = f"the runner {one.label} does not start under {one.python or 'this Python'}: {error.message}"
        fields: dict[str, object] = {"skip": one.label}
        if one.kind == "torch":
            fields |= dict.fromkeys(("model", "state_dict", "torch_python"))
        raise PerfError(msg, hint="skip it, or change what it is made of", fields=fields) from error


def _run_batch(
    runners: Sequence[_Runner], batch: int, schedule: Schedule, result: BenchResult, on_progress: Callable[[str], None]
) -> None:
    entries = [(runner, RunnerFigures(label=runner.contender.label, batch=batch)) for runner in runners]
    answers: dict[str, NDArray[np.float32]] = {}
    for runner, one in entries:
        result.figures.append(one)
        on_progress(f"batch {batch}: preparing {one.label}")
        with _failure_of(one):
            _prepare(runner, one, schedule)
            result.runners[one.label] = runner.about
            answers[one.label] = _check(runner)
    result.agreements += _compare(answers, {label: result.runners[label]["weights"] for label in answers}, batch)
    for number in range(schedule.rounds):
        on_progress(f"batch {batch}: round {number + 1} of {schedule.rounds}")
        first = number % len(entries)  # no runner always follows the same one, which may have heated the GPU
        for runner, one in entries[first:] + entries[:first]:
            if not one.failure:
                with _failure_of(one):
                    one.rounds.append(_measure(runner, schedule))
    for runner, one in entries:
        if not one.failure:
            with _failure_of(one):
                _finish(runner, one, schedule, answers[one.label])
        runner.release()
        if one.failure:
            on_progress(f"batch {batch}: {one.label} failed: {one.failure}")


@contextlib.contextmanager
def _failure_of(one: RunnerFigures) -> Iterator[None]:
    """Note what fails, instead of ending the run."""
    try:
        yield
    except RunnerError as error:
        one.failure = error.message


def _prepare(runner: _Runner, one: RunnerFigures, schedule: Schedule) -> None:
    settings = runner.contender.settings
    sets = count_input_sets(one.batch * settings["height"] * settings["width"] * 3)
    answer = runner.ask("prepare", batch=one.batch, sets=sets, seed=schedule.seed)
    one.clock, one.input_sets, one.input_bytes = runner.clock, sets, answer["input_bytes"]
    answer = runner.ask("warm", seconds=schedule.warm_s)
    one.gpu_bytes, one.host_bytes = answer["gpu_bytes"], answer["host_bytes"]


def _measure(runner: _Runner, schedule: Schedule) -> Round:
    longest = _LONGEST_ROUND * schedule.seconds
    found = runner.ask("measure", seconds=schedule.seconds, iterations=schedule.iterations, longest=longest)
    energy = None
    if schedule.energy_s > 0:
        read = runner.ask("energy", seconds=schedule.energy_s)
        if read["joules"] is not None:
            energy = Energy(joules=read["joules"], window_s=read["window_s"], iterations=read["iterations"])
    return Round(times_ms=tuple(found["times_ms"]), span_ms=found["span_ms"], energy=energy)


def _finish(runner: _Runner, one: RunnerFigures, schedule: Schedule, before: NDArray[np.float32]) -> None:
    """With copies; and the answer is still the one from before the measurement."""
    longest = _LONGEST_ROUND * schedule.seconds
    one.with_copies_ms = runner.ask("copies", seconds=schedule.seconds / 2, longest=longest)["times_ms"] or []
    similar = _cosine(before, _check(runner))[0]
    if not similar >= LEAST_COSINE:
        msg = f"answers differently after the measurement than before it: cosine {similar:.4f}"
        raise RunnerError(msg, alive=True)


def _check(runner: _Runner) -> NDArray[np.float32]:
    """The first rows of the answer to input set 0."""
    import numpy as np

    answer = runner.ask("check", rows=_ROWS)
    if not answer["finite"]:
        raise RunnerError("answers NaN or infinity: its figures are not reported", alive=True)
    return np.frombuffer(base64.b64decode(answer["scores"]), np.float32).reshape(answer["shape"])


def _compare(answers: dict[str, NDArray[np.float32]], weights: dict[str, str], batch: int) -> list[Agreement]:
    """Compare every two runners that have the same weights; the earlier one of the list is what is expected."""
    labels = list(answers)
    found = []
    for index, second in enumerate(labels):
        for first in labels[:index]:
            if weights[first] == weights[second]:
                cosine, top1 = _cosine(answers[first], answers[second])
                found.append(Agreement(first=first, second=second, batch=batch, worst_cosine=cosine, top1=top1))
    return found


def _cosine(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> tuple[float, float]:
    """Worst cosine of the centred log-probabilities, and top-1 agreement; 0 for answers of different shapes."""
    from generator.tasks.classification.activation import guess_head
    from generator.tasks.classification.compare import comparable, compare

    if expected.shape != actual.shape:
        return 0.0, 0.0
    # PyTorch answers logits, the graph probabilities
    one, other = (comparable(guess_head("softmax", scores).finish(scores), "softmax") for scores in (expected, actual))
    found = compare(one, other)
    return found.worst_cosine, found.top1
