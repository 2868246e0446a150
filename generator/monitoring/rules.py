"""The alerts: what each asks Prometheus, for how long it must hold, what it says; docs/monitoring.md is the runbook."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from generator.errors import SpecError
from generator.monitoring.queries import Queries, match, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.monitoring.watched import WatchedModel

RUNBOOK = "docs/monitoring.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Whose series the alerts are about, and their thresholds.

    `job`, `ready_job` and `canary_job` are Prometheus' names of what is scraped: tritonserver, its readiness through
    the blackbox exporter, and the canary. Rates are taken over `window_s`, at least four scrapes. `..._for_s` is how
    long something must last. A server that was not up within `up_before_s` is one that is still to start.
    `queue_s` is the longest mean wait in front of a model whose configuration has no timeout; with one, it is half of
    that.

    Raises:
        SpecError: Two of the jobs have one name: Prometheus refuses that, and a canary would be taken for a server.
    """

    job: str = "triton"
    ready_job: str = "triton-ready"
    canary_job: str = "triton-canary"
    window_s: int = 300
    down_for_s: int = 60
    up_before_s: int = 86400
    starting_for_s: int = 900
    not_ready_for_s: int = 120
    missing_for_s: int = 300
    failing_for_s: int = 600
    failing_share: float = 0.05
    stuck_for_s: int = 60
    queue_for_s: int = 600
    queue_s: float = 0.1
    memory_for_s: int = 600
    memory_share: float = 0.95
    releases_for_s: int = 1800
    drift_for_s: int = 600
    canary_silent_s: int = 7200  # an hour between rounds, a tenth more, and the round

    def __post_init__(self) -> None:
        if self.ready_job == self.job:
            self._refuse(f"servers and their readiness are both scraped by the job {self.job!r}", "ready_job")
        if self.canary_job in (self.job, self.ready_job):
            others = "servers" if self.canary_job == self.job else "the readiness of servers"
            self._refuse(f"{others} and canaries are both scraped by the job {self.canary_job!r}", "canary_job")

    def _refuse(self, what: str, field: str) -> None:
        raise SpecError(f"{what}, and one job was expected for each", hint="give another name", fields={field: None})

    def find_wait(self, model: WatchedModel) -> float:
        """Return the mean seconds that requests may wait in front of a model."""
        return self.queue_s + model.delay_s if model.timeout_s is None else model.timeout_s / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A rule that warns: `page` wakes somebody, `ticket` can wait for the morning.

    `summary` is a template of Prometheus, which has the labels of `expr` and its value.
    """

    name: str
    expr: str
    for_s: int = 0
    severity: Literal["page", "ticket"]
    summary: str

    def write_rule(self) -> dict[str, Any]:
        """Return the rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": write_duration(self.for_s)} if self.for_s else {}),
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": f"{RUNBOOK}#{self.name.lower()}"},
        }


def write_duration(seconds: int) -> str:
    """Return the seconds in Prometheus' words, such as 10m."""
    for unit, name in ((3600, "h"), (60, "m")):
        if seconds % unit == 0:
            return f"{seconds // unit}{name}"
    return f"{seconds}s"


def make_alerts(models: Sequence[WatchedModel], limits: Limits) -> list[Alert]:
    """Return the alerts for these models."""
    return [
        *_watch_servers(models, limits),
        *_watch_requests(models, limits),
        *_watch_memory(limits),
        *_watch_canary(limits),
    ]


def write_rules(alerts: Sequence[Alert]) -> dict[str, Any]:
    """Return the content of a rules file, or of the `spec` of a PrometheusRule."""
    return {"groups": [{"name": "triton", "rules": [alert.write_rule() for alert in alerts]}]}


def _queries(job: str, window_s: int) -> Queries:
    return Queries(matchers=f"job={quote(job)}", window=write_duration(window_s))


def _watch_servers(models: Sequence[WatchedModel], limits: Limits) -> Iterator[Alert]:
    servers, probes = (_queries(job, limits.window_s) for job in (limits.job, limits.ready_job))
    # Prometheus scrapes a pod as soon as it has an address, the server answers it once its models are loaded.
    up, ready = servers.select("up"), probes.select("probe_success")
    was_up, was_ready = (f"max_over_time({one}[{write_duration(limits.up_before_s)}]) == 1" for one in (up, ready))
    yield Alert(
        name="TritonDown",
        expr=f"{up} == 0 and {was_up}",
        for_s=limits.down_for_s,
        severity="page",
        summary="{{ $labels.instance }} cannot be scraped",
    )
    yield Alert(
        name="TritonNotStarted",
        expr=f"{up} == 0 unless {was_up}\nor {ready} == 0 unless {was_ready}",
        for_s=limits.starting_for_s,
        severity="ticket",
        summary="{{ $labels.instance }} has not started",
    )
    yield Alert(
        name="TritonGone",
        expr=f"absent({up})",
        for_s=limits.down_for_s,
        severity="page",
        summary="Prometheus knows no target of the job {{ $labels.job }}",
    )
    # A new pod that loads its models beside ready ones does no harm; where none is left that is ready, it does.
    none_left = f"{ready} == 0 unless on (job) {ready} == 1 and on (job) {was_ready}"
    yield Alert(
        name="TritonNotReady",
        expr=f"{ready} == 0 and {was_ready}\nor {none_left}",
        for_s=limits.not_ready_for_s,
        severity="page",
        summary="{{ $labels.instance }} is not ready",
    )
    yield Alert(
        name="ModelMissing",
        expr="\nor ".join(_write_missing(model.name, servers) for model in models),
        for_s=limits.missing_for_s,
        severity="page",
        summary="{{ $labels.instance }} does not have the model {{ $labels.model }}",
    )


def _write_missing(model: str, servers: Queries) -> str:
    """Return the servers that are up without a model, labelled with its name."""
    served = servers.select("nv_inference_request_success", match("model", [model]))
    name = quote(model.replace("$", "$$"))  # $1 would be a part of what matched
    return f'label_replace({servers.select("up")} == 1 unless on (job, instance) {served}, "model", {name}, "", "")'


def _watch_requests(models: Sequence[WatchedModel], limits: Limits) -> Iterator[Alert]:
    queries = _queries(limits.job, limits.window_s)
    ensembles, names = ([model.name for model in models if model.is_ensemble is kind] for kind in (True, False))
    if ensembles:
        yield Alert(
            name="EnsembleFails",
            expr=f"{queries.ensemble_failure_share(match('model', ensembles))} > {limits.failing_share}",
            for_s=limits.failing_for_s,
            severity="ticket",
            summary="{{ $labels.model }} refuses {{ $value | humanizePercentage }} of its requests",
        )
    yield Alert(
        name="ModelFails",
        expr=f"{queries.failure_share(match('model', names))} > {limits.failing_share}",
        for_s=limits.failing_for_s,
        severity="page",
        summary="{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests ({{ $labels.reason }})",
    )
    pending = queries.select("nv_inference_pending_request_count", match("model", names))
    success = queries.select("nv_inference_request_success")
    yield Alert(
        name="ModelStuck",
        expr=f"min_over_time({pending}[{queries.window}]) > 0 and increase({success}[{queries.window}]) == 0",
        for_s=limits.stuck_for_s,
        severity="page",
        summary="{{ $labels.model }} on {{ $labels.instance }} answers nothing, and {{ $value }} requests or more wait",
    )
    waits = [
        f"{queries.seconds('queue', match('model', waiting))} > {wait_s:g}"
        for wait_s, waiting in group_by_wait(models, limits).items()
    ]
    yield Alert(
        name="QueueTooLong",
        expr="\nor ".join(waits),
        for_s=limits.queue_for_s,
        severity="ticket",
        summary='requests wait {{ $value | printf "%.3f" }} s in front of {{ $labels.model }}',
    )


def group_by_wait(models: Sequence[WatchedModel], limits: Limits) -> dict[float, list[str]]:
    """Return the models that requests wait in front of by how many seconds they may."""
    ordered = sorted((model for model in models if not model.is_ensemble), key=limits.find_wait)
    return {wait_s: [model.name for model in same] for wait_s, same in groupby(ordered, key=limits.find_wait)}


def _watch_memory(limits: Limits) -> Iterator[Alert]:
    queries = _queries(limits.job, limits.window_s)
    for name, what, kind in (
        ("GpuMemoryFull", "the memory of the GPU {{ $labels.gpu_uuid }}", "gpu_memory"),
        ("PinnedMemoryFull", "its pool of pinned memory", "pinned_memory_pool"),
    ):
        yield Alert(
            name=name,
            expr=f"{queries.used_share(kind)} > {limits.memory_share}",
            for_s=limits.memory_for_s,
            severity="ticket",
            summary=f"{{{{ $labels.instance }}}} uses {{{{ $value | humanizePercentage }}}} of {what}",
        )


def _watch_canary(limits: Limits) -> Iterator[Alert]:
    queries = _queries(limits.canary_job, limits.window_s)
    yield Alert(
        name="CanaryDown",
        expr=f"{queries.select('up')} == 0",
        for_s=limits.not_ready_for_s,
        severity="ticket",
        summary="the canary {{ $labels.instance }} cannot be scraped",
    )
    yield Alert(
        name="CanaryUnanswered",
        expr=f"{queries.select('trtgen_canary_up')} == 0",
        for_s=limits.not_ready_for_s,
        severity="page",
        summary="{{ $labels.model }} does not answer the canary",
    )
    unanswered = f"{queries.select('trtgen_canary_up')} == 0"
    yield Alert(
        name="AnswersDrift",
        expr=f"{queries.select('trtgen_canary_proved')} == 0 unless on (job, instance, model) {unanswered}",
        for_s=limits.drift_for_s,  # longer than a roll-out, in which the other version is right
        severity="page",
        summary="{{ $labels.model }} answers otherwise than it was proved to",
    )
    yield Alert(
        name="CanarySilent",
        expr=f"time() - {queries.select('trtgen_canary_last_run_timestamp_seconds')} > {limits.canary_silent_s}",
        severity="ticket",
        summary='{{ $labels.model }} was last asked {{ $value | printf "%.0f" }} s ago',
    )
    releases = f"count by (model, release) ({queries.select('trtgen_release_info')})"
    yield Alert(
        name="ReleasesDiffer",
        expr=f"count by (model) ({releases}) > 1",
        for_s=limits.releases_for_s,
        severity="ticket",
        summary="{{ $labels.model }} is served in {{ $value }} releases at once",
    )
