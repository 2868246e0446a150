"""Successive halving: short measurements for all candidates, longer ones for the better half, until one is left.

The one that is left is then measured beside the spec as it is, in turns, each with a server of its own: only a gain
above the spread of these turns is one. What a journal has already is not measured again.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from generator.errors import PerfError, TrtgenError
from generator.events import Doing, Done, OnEvent, ignore
from generator.measure.tune.knobs import describe_settings
from generator.measure.tune.trial import Figure, Trial, compare, is_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from generator.measure.tune.journal import Journal
    from generator.measure.tune.knobs import Settings
    from generator.measure.tune.served import Probe
    from generator.measure.tune.trial import Goal, Verdict

_MOST_IN_FLIGHT = 1024
_WORTH_MORE = 1.05  # of the throughput at half as many requests in flight
_MOST_FAILURES = 3
# For the first word about the time, before anything was measured: a server's start, three windows and a warm-up.
_START_S, _MEASUREMENT_S = 8.0, 6.0
_LOADS = 3  # measured of a candidate until the right one is found
SPEC: Settings = {}


class Opens(Protocol):
    """Serves candidates."""

    def open(self, settings: Settings) -> AbstractContextManager[Probe]:
        """Serve one; TrtgenError if it does not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How much is measured.

    `concurrencies` are the numbers of requests in flight, or None to find the right one by doubling. `requests` is the
    least number of them in a window of the first round; each round has twice as many as the one before.
    """

    concurrencies: tuple[int, ...] | None = None
    requests: int = 50
    turns: int = 3

    def list_rounds(self, candidates: int) -> list[int]:
        """Return how many candidates each round has."""
        rounds = []
        while candidates > 1:
            rounds.append(candidates)
            candidates = math.ceil(candidates / 2)
        return rounds

    def count_servers(self, candidates: int) -> int:
        """Return how often a server is started."""
        return sum(self.list_rounds(candidates)) + 2 * self.turns

    def estimate_s(self, candidates: int) -> float:
        """Return about how long it takes, for a model that answers a window's requests in a second."""
        loads = _LOADS if self.concurrencies is None else len(self.concurrencies)
        return self.count_servers(candidates) * (_START_S + _MEASUREMENT_S) + candidates * (loads - 1) * _MEASUREMENT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found: `chosen` is empty where the spec stays as it is, `verdict` None where it won the halving."""

    chosen: Settings
    tried: Settings
    concurrency: int
    verdict: Verdict | None
    why: str


class Search:
    """One run, or the rest of one."""

    def __init__(
        self, candidates: Opens, journal: Journal, goal: Goal, schedule: Schedule, on_event: OnEvent = ignore
    ) -> None:
        self._candidates = candidates
        self._journal = journal
        self._goal = goal
        self._schedule = schedule
        self._on_event = on_event
        self._failures = 0  # in a row
        self._started_s = time.monotonic()
        self._servers = self._opened = self._reached = 0

    def run(self, drawn: Sequence[Settings]) -> Outcome:
        """Search among `drawn`, the first of which is the spec as it is.

        Raises:
            PerfError: Nothing keeps the limit, three candidates in a row failed, or the journal cannot be written.
        """
        self._servers = self._schedule.count_servers(len(drawn))
        field, loads = list(drawn), dict[int, int]()
        number = 0
        ranked: list[tuple[int, Figure]] = []
        alive = list(range(len(field)))
        while len(alive) > 1 or number == 0:
            number += 1
            ranked = []
            for index in alive:
                best = self._try(f"round {number}", field[index], self._list_loads(loads, index), number)
                if best is not None:
                    loads[index], figure = best
                    ranked.append((index, figure))
            if not ranked:
                raise self._explain_failures()
            ranked.sort(key=lambda one: self._goal.rank(one[1]), reverse=True)
            alive = [index for index, _ in ranked[: math.ceil(len(alive) / 2)]]
        winner = alive[0]
        self._check_limit([ranked[0][1]])
        if winner == 0:
            why = "nothing that was tried is better"
            return Outcome(chosen=SPEC, tried=SPEC, concurrency=loads[0], verdict=None, why=why)
        return self._compare(field[winner], loads[winner], loads.get(0, loads[winner]), number + 1)

    def _list_loads(self, loads: Mapping[int, int], index: int) -> tuple[int, ...] | int:
        """Return the concurrencies to measure, or the one to find the right one from."""
        if index in loads:
            return (loads[index],)
        if self._schedule.concurrencies is not None:
            return self._schedule.concurrencies
        if self._goal.objective == "latency":
            return (1,)
        return max(1, loads.get(0, 1) // 2)

    def _compare(self, winner: Settings, load: int, spec_load: int, number: int) -> Outcome:
        """Measure the winner beside the spec as it is."""
        turns: dict[str, list[Figure]] = {"spec": [], "winner": []}
        for turn in range(1, self._schedule.turns + 1):
            for name, settings, concurrency in (("spec", SPEC, spec_load), ("winner", winner, load)):
                best = self._try(f"turn {turn}", settings, (concurrency,), number)
                if best is not None:
                    turns[name].append(best[1])
        stays: dict[str, Any] = {"chosen": SPEC, "tried": winner, "concurrency": spec_load}
        if len(turns["winner"]) < self._schedule.turns:
            why = f"{describe_settings(winner)} failed when it was measured again, so nothing changes"
            return Outcome(**stays, verdict=None, why=why)
        if not turns["spec"]:
            self._check_limit(turns["winner"])
            return Outcome(chosen=winner, tried=winner, concurrency=load, verdict=None, why="the spec as it is failed")
        verdict = compare(self._goal, turns["winner"], turns["spec"])
        if not verdict.wins:
            self._check_limit(turns["spec"])
            kept = is_kept(self._goal, turns["winner"])
            lack = "does not win by more than the spread of the turns" if kept else "misses the limit beside it"
            why = f"{describe_settings(winner)} {lack}, so nothing changes"
            return Outcome(**stays, verdict=verdict, why=why)
        why = f"better than the spec as it is in {self._schedule.turns} turns side by side"
        return Outcome(chosen=winner, tried=winner, concurrency=load, verdict=verdict, why=why)

    def _try(
        self, stage: str, settings: Settings, loads: tuple[int, ...] | int, number: int
    ) -> tuple[int, Figure] | None:
        """Return the best load of one candidate with its figure; None where it failed."""
        self._reached += 1
        self._tell(stage, settings)
        figures: dict[int, Figure] = {}
        with contextlib.ExitStack() as server:
            measure = self._make_measure(stage, settings, self._schedule.requests * 2 ** (number - 1), server)
            try:
                if isinstance(loads, int):
                    self._find_load(measure, loads, figures)
                else:
                    figures |= {concurrency: measure(concurrency) for concurrency in loads}
            except _FailedError as failure:
                self._fail(stage, settings, str(failure))
                return None
        self._failures = 0
        load = max(figures, key=lambda one: self._goal.rank(figures[one]))
        value = self._goal.describe(self._goal.read(figures[load]))
        p99 = "" if self._goal.objective == "latency" else f"  p99 {figures[load].p99_ms:.1f} ms"
        detail = f"{value}{p99}  {load} in flight  {describe_settings(settings)}"
        self._on_event(Done(step=stage, detail=detail))
        return load, figures[load]

    def _make_measure(
        self, stage: str, settings: Settings, requests: int, server: contextlib.ExitStack
    ) -> Callable[[int], Figure]:
        """Return what measures one candidate at a concurrency; what the journal lacks starts the server, once."""
        probe: Probe | None = None

        def measure(concurrency: int) -> Figure:
            nonlocal probe
            trial = self._journal.find(stage, settings, concurrency)
            if trial is None:
                fields: dict[str, Any] = {"stage": stage, "settings": settings, "concurrency": concurrency}
                try:
                    if probe is None:
                        self._opened += 1
                        probe = server.enter_context(self._candidates.open(settings))
                    trial = Trial(**fields, figure=probe(concurrency, requests))
                except TrtgenError as error:
                    trial = Trial(**fields, failure=error.message)
                self._journal.add(trial)
            if trial.figure is None:
                raise _FailedError(trial.failure)
            return trial.figure

        return measure

    def _find_load(self, measure: Callable[[int], Figure], concurrency: int, figures: dict[int, Figure]) -> None:
        """Double the requests in flight while that brings more within the limit; halve them until they are within."""
        figure = figures[concurrency] = measure(concurrency)
        if not self._goal.is_met(figure):
            while not self._goal.is_met(figure) and concurrency > 1:
                concurrency //= 2
                figure = figures[concurrency] = measure(concurrency)
            return
        while self._goal.is_met(figure) and 2 * concurrency <= _MOST_IN_FLIGHT:
            concurrency *= 2
            before, figure = figure, measure(concurrency)
            figures[concurrency] = figure
            if figure.infer_per_s < _WORTH_MORE * before.infer_per_s:
                return

    def _fail(self, stage: str, settings: Settings, failure: str) -> None:
        self._failures += 1
        self._on_event(Done(step=stage, detail=f"failed: {describe_settings(settings)}: {failure}"))
        if self._failures == _MOST_FAILURES:
            raise self._explain_failures()

    def _explain_failures(self) -> PerfError:
        last = next(trial for trial in reversed(self._journal.trials) if trial.figure is None)
        what = describe_settings(last.settings)
        return PerfError(
            f"{self._failures} candidates in a row failed, the last of them ({what}): {last.failure}",
            hint="remove the cause and run the same again, which tries these once more",
        )

    def _check_limit(self, turns: Sequence[Figure]) -> None:
        """Refuse to end with something that misses the limit."""
        if is_kept(self._goal, turns):
            return
        missed = [(trial.figure, trial) for trial in self._journal.trials if trial.figure is not None]
        figure, trial = min((one for one in missed if not self._goal.is_met(one[0])), key=lambda one: one[0].p99_ms)
        slowest = max(figure.shares.items(), key=lambda one: one[1], default=None)
        part = f"; {slowest[0]} takes {slowest[1]:.0%} of it" if slowest else ""
        raise PerfError(
            f"nothing that was tried keeps p99 within {self._goal.p99_ms:g} ms; the nearest was {figure.p99_ms:.1f} ms "
            f"with {trial.concurrency} in flight ({describe_settings(trial.settings)}){part}",
            hint="nothing was changed; allow more time, send fewer images in a request, or take a lighter model",
            fields={"p99_ms": math.ceil(1.1 * figure.p99_ms)},
        )

    def _tell(self, stage: str, settings: Settings) -> None:
        part = f"{self._reached} of {self._servers} servers, {describe_settings(settings)}"
        if self._opened:
            spent_s = time.monotonic() - self._started_s
            left_s = spent_s / self._opened * (self._servers - self._reached + 1)
            part += f", about {math.ceil(left_s / 60)} min left"
        self._on_event(Doing(step=stage, part=part, fraction=(self._reached - 1) / self._servers))


class _FailedError(Exception):
    """A candidate cannot be measured; the message says why."""
