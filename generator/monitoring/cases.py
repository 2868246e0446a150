"""Unit tests for promtool: series that make each alert fire, and series that come close to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.monitoring.queries import quote
from generator.monitoring.rules import RUNBOOK, Alert, Limits, group_by_wait, write_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from generator.monitoring.watched import WatchedModel

_SCRAPES = 5  # in a window
_MANY = 1_000_000  # requests between two scrapes, so that small shares of them are whole numbers

Series = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series, and how often the alert called `alert` fires on them: once for each of `fires`, which are its labels.

    `value` is its value as its summary writes it, `after_s` how long it takes until what it asks for is the case.
    With `at_s` it is looked then, otherwise when the alert has had the time to fire.
    """

    name: str
    alert: str
    series: Series
    fires: Sequence[Mapping[str, str]] = ()
    value: str = ""
    after_s: int = 0
    at_s: int | None = None


def make_unit_tests(
    alerts: Sequence[Alert], models: Sequence[WatchedModel], limits: Limits, *, rules_file: str
) -> dict[str, Any]:
    """Return the content of a file for `promtool test rules`, which lies beside the rules."""
    step_s = max(1, limits.window_s // _SCRAPES)
    cases = _Plant(limits=limits, models=models, step_s=step_s).make_cases()
    return {
        "rule_files": [rules_file],
        "evaluation_interval": write_duration(step_s),
        "tests": [_write_test(case, alerts, limits, step_s) for case in cases],
    }


def _write_test(case: Case, alerts: Sequence[Alert], limits: Limits, step_s: int) -> dict[str, Any]:
    alert = next(alert for alert in alerts if alert.name == case.alert)
    late_s = case.after_s + alert.for_s + limits.window_s + 2 * step_s if case.at_s is None else case.at_s
    steps = late_s // step_s + 2
    expected = [
        {"exp_labels": {**labels, "severity": alert.severity}, "exp_annotations": _annotate(alert, case.value, labels)}
        for labels in case.fires
    ]
    checks: list[tuple[int, list[Any]]] = [(late_s, expected)]
    if expected and alert.for_s >= step_s:
        checks.insert(0, (case.after_s + alert.for_s - step_s, []))  # not at once
    return {
        "name": case.name,
        "interval": write_duration(step_s),
        "input_series": [{"series": name, "values": f"{start}x{steps}"} for name, start in case.series.items()],
        "alert_rule_test": [
            {"eval_time": write_duration(at_s), "alertname": alert.name, "exp_alerts": alerts_then}
            for at_s, alerts_then in checks
        ],
    }


def _annotate(alert: Alert, value: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations as Prometheus would write them."""
    before, has_value, after = alert.summary.partition("{{ $value")
    summary = before + value + after.partition("}}")[2] if has_value else before
    for label, text in labels.items():
        summary = summary.replace(f"{{{{ $labels.{label} }}}}", text)
    return {"summary": summary, "runbook": f"{RUNBOOK}#{alert.name.lower()}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plant:
    """The cases of all alerts. A counter that grows by N from one scrape to the next is written `0+N`."""

    limits: Limits
    models: Sequence[WatchedModel]
    step_s: int

    def make_cases(self) -> Iterator[Case]:
        """Yield the cases of each alert, those in which it fires first."""
        yield from self._servers()
        yield from self._missing()
        yield from self._failures()
        yield from self._stuck()
        yield from self._waits()
        yield from self._memory()
        yield from self._canary()

    @property
    def _queued(self) -> list[str]:
        return [model.name for model in self.models if not model.is_ensemble]

    def _series(self, metric: str, *, job: str | None = None, instance: str = "a", **labels: str) -> str:
        labels = {"job": job or self.limits.job, "instance": instance, **labels}
        return f"{metric}{{{', '.join(f'{name}={quote(value)}' for name, value in labels.items())}}}"

    def _servers(self) -> Iterator[Case]:
        here, ready = {"job": self.limits.job}, {"job": self.limits.ready_job, "instance": "a"}
        up = self._series("up")
        probe, other = (self._series("probe_success", job=self.limits.ready_job, instance=one) for one in "ab")
        one = [here | {"instance": "a"}]
        loading_s = 3 * max(self.limits.down_for_s, self.step_s)
        died, loads = {up: "1 0+0"}, {up: f"0+0x{loading_s // self.step_s} 1+0"}
        yield Case(name="a server that was up", alert="TritonDown", series=died, fires=one, after_s=self.step_s)
        yield Case(name="a server", alert="TritonDown", series={up: "1+0"})
        yield Case(name="a server that loads its models", alert="TritonDown", series=loads, at_s=loading_s)
        yield Case(name="a server that was never up", alert="TritonDown", series={up: "0+0"})
        yield Case(name="a server that was never up", alert="TritonNotStarted", series={up: "0+0"}, fires=one)
        yield Case(name="a server that was up", alert="TritonNotStarted", series=died)
        yield Case(name="a server that has loaded its models", alert="TritonNotStarted", series=loads)
        yield Case(name="no server", alert="TritonGone", series={}, fires=[here])
        yield Case(name="a server that is down", alert="TritonGone", series={up: "0+0"})
        failed, replaced = {probe: "1 0+0", other: "1+0"}, {probe: "1 stale _", other: "0+0"}
        never = [ready | {"instance": "b"}]
        beside = {probe: "1+0", other: "0+0"}
        yield Case(name="a server never ready", alert="TritonNotStarted", series=beside, fires=never)
        yield Case(name="a server that was ready", alert="TritonNotStarted", series=failed)
        name = "a server that was ready, beside a ready one"
        yield Case(name=name, alert="TritonNotReady", series=failed, fires=[ready], after_s=self.step_s)
        name = "the only server, in place of a ready one"
        yield Case(name=name, alert="TritonNotReady", series=replaced, fires=never, after_s=self.step_s)
        yield Case(name="a server that loads its models beside a ready one", alert="TritonNotReady", series=beside)
        yield Case(name="the first server, which loads its models", alert="TritonNotReady", series={probe: "0+0"})
        yield Case(name="a ready server", alert="TritonNotReady", series={probe: "1+0"})

    def _missing(self) -> Iterator[Case]:
        names = [model.name for model in self.models]
        success = "nv_inference_request_success"
        both = {self._series("up", instance=one): "1+0" for one in "ab"}
        both |= {self._series(success, model=name, version="1"): "0+0" for name in names}
        on_b = {self._series(success, instance="b", model=name, version="1"): "0+0" for name in names}
        without_first = dict(list(on_b.items())[1:])
        missing = [{"job": self.limits.job, "instance": "b", "model": name} for name in names]
        case = "beside a server that has all models one that has"
        yield Case(name=f"{case} none", alert="ModelMissing", series=both, fires=missing)
        yield Case(
            name=f"{case} all but {names[0]}", alert="ModelMissing", series=both | without_first, fires=missing[:1]
        )
        yield Case(name=f"{case} all, too", alert="ModelMissing", series=both | on_b)
        yield Case(name="a server that is down", alert="ModelMissing", series={self._series("up"): "0+0"})

    def _requests(self, model: str, *, answered: int, failed: int, reason: str) -> Series:
        return {
            self._series("nv_inference_request_success", model=model, version="1"): f"0+{answered}",
            self._series("nv_inference_request_failure", model=model, version="1", reason=reason): f"0+{failed}",
        }

    def _failures(self) -> Iterator[Case]:
        few, many = (round(_MANY * factor * self.limits.failing_share) for factor in (0.8, 1.25))
        share = f"{100 * many / _MANY:.4g}%"
        for name in [model.name for model in self.models if model.is_ensemble][:1]:
            yield Case(
                name="an ensemble that refuses many",
                alert="EnsembleFails",
                series=self._requests(name, answered=_MANY - many, failed=2 * many, reason="OTHER"),
                fires=[{"job": self.limits.job, "model": name}],
                value=share,
            )
            yield Case(
                name="an ensemble that refuses few, each counted twice",
                alert="EnsembleFails",
                series=self._requests(name, answered=_MANY - few, failed=2 * few, reason="OTHER"),
            )
        name = self._queued[0]
        yield Case(
            name="a model that fails many",
            alert="ModelFails",
            series=self._requests(name, answered=_MANY - many, failed=many, reason="BACKEND"),
            fires=[{"job": self.limits.job, "model": name, "reason": "BACKEND"}],
            value=share,
        )
        yield Case(
            name="a model that fails few",
            alert="ModelFails",
            series=self._requests(name, answered=_MANY - few, failed=few, reason="BACKEND"),
        )
        yield Case(
            name="clients that cancel many",
            alert="ModelFails",
            series=self._requests(name, answered=_MANY - many, failed=many, reason="CANCELED"),
        )

    def _stuck(self) -> Iterator[Case]:
        labels = {"model": self._queued[0], "version": "1"}
        waits, answers = (
            self._series(f"nv_inference_{what}", **labels) for what in ("pending_request_count", "request_success")
        )
        yield Case(
            name="requests that wait for nothing",
            alert="ModelStuck",
            series={waits: "3+0", answers: "7+0"},
            fires=[{"job": self.limits.job, "instance": "a", **labels}],
            value="3",
        )
        yield Case(
            name="requests that wait and are answered", alert="ModelStuck", series={waits: "3+0", answers: "7+1"}
        )
        yield Case(name="nothing to do", alert="ModelStuck", series={waits: "0+0", answers: "7+0"})

    def _waits(self) -> Iterator[Case]:
        for wait_s, names in group_by_wait(self.models, self.limits).items():
            labels = {"model": names[0], "version": "1"}
            answers, waited = (
                self._series(f"nv_inference_{what}", **labels) for what in ("request_success", "queue_duration_us")
            )
            long, short = (round(1000 * factor * wait_s * 1e6) for factor in (2, 0.8))
            yield Case(
                name=f"requests that wait twice the {wait_s:g} s that they may",
                alert="QueueTooLong",
                series={answers: "0+1000", waited: f"0+{long}"},
                fires=[{"job": self.limits.job, "model": names[0]}],
                value=f"{2 * wait_s:.3f}",
            )
            yield Case(
                name=f"requests that wait less than {wait_s:g} s",
                alert="QueueTooLong",
                series={answers: "0+1000", waited: f"0+{short}"},
            )

    def _memory(self) -> Iterator[Case]:
        full, free = (round(10_000 * factor * self.limits.memory_share) for factor in (1.02, 0.95))
        for alert, kind, labels in (
            ("GpuMemoryFull", "gpu_memory_{}_bytes", {"gpu_uuid": "GPU-1"}),
            ("PinnedMemoryFull", "pinned_memory_pool_{}_bytes", {}),
        ):
            used, total = (self._series(f"nv_{kind.format(part)}", **labels) for part in ("used", "total"))
            yield Case(
                name="memory that is full",
                alert=alert,
                series={used: f"{full}+0", total: "10000+0"},
                fires=[{"job": self.limits.job, "instance": "a", **labels}],
                value=f"{full / 100:.4g}%",
            )
            yield Case(name="some memory left", alert=alert, series={used: f"{free}+0", total: "10000+0"})
        yield Case(name="no GPU, so no pool", alert="PinnedMemoryFull", series={used: "0+0", total: "0+0"})

    def _canary(self) -> Iterator[Case]:
        job = self.limits.canary_job
        labels = {"job": job, "instance": "a", "model": self.models[-1].name}

        def series(name: str, **more: str) -> str:
            return self._series(name, **{**labels, **more})

        scraped = self._series("up", job=job)
        up, proved = (series(f"trtgen_canary_{name}") for name in ("up", "proved"))
        last = series("trtgen_canary_last_run_timestamp_seconds")
        old, same, new = (
            series("trtgen_release_info", release=release, version="1", instance=instance)
            for release, instance in (("r1", "a"), ("r1", "b"), ("r2", "c"))
        )
        gone = {"job": job, "instance": "a"}
        yield Case(name="a canary that has died", alert="CanaryDown", series={scraped: "0+0"}, fires=[gone])
        yield Case(name="a canary", alert="CanaryDown", series={scraped: "1+0"})
        yield Case(name="no canary", alert="CanaryDown", series={})
        yield Case(name="no answer", alert="CanaryUnanswered", series={up: "0+0"}, fires=[labels])
        yield Case(name="an answer", alert="CanaryUnanswered", series={up: "1+0"})
        yield Case(
            name="other answers than proved", alert="AnswersDrift", series={up: "1+0", proved: "0+0"}, fires=[labels]
        )
        yield Case(name="answers as proved", alert="AnswersDrift", series={up: "1+0", proved: "1+0"})
        yield Case(name="no answers to judge", alert="AnswersDrift", series={up: "0+0", proved: "0+0"})
        silent_s = self.limits.canary_silent_s
        for name, values, silent in (("that hangs", "0+0", [labels]), ("that asks", f"0+{self.step_s}", [])):
            yield Case(
                name=f"a canary {name}",
                alert="CanarySilent",
                series={last: values},
                fires=silent,
                value=f"{silent_s + self.limits.window_s + 2 * self.step_s}",
                after_s=silent_s,
            )
        yield Case(
            name="a canary that pauses a tenth longer than half of the time",
            alert="CanarySilent",
            series={last: "0+0"},
            at_s=silent_s * 11 // 20,
        )
        yield Case(
            name="servers of two releases",
            alert="ReleasesDiffer",
            series={old: "1+0", same: "1+0", new: "1+0"},
            fires=[{"model": labels["model"]}],
            value="2",
        )
        yield Case(name="one release", alert="ReleasesDiffer", series={old: "1+0", same: "1+0"})
