"""Measurements -> what limits the served model, the one change to try, and what that is expected to bring.

The arithmetic is that of closed queueing networks: a stage that is busy 80 % of the time can answer 1 / 0.8 of the
images that it answers now, n requests in flight can bring no more than n / (latency without waiting), and machine and
GPU no more than what their load leaves free. The expected effect is the lowest of these limits after the change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from generator.task import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.measure.perf.busy import Busy
    from generator.measure.perf.measurement import Measurement, Stages
    from generator.measure.perf.served import MeasuredModel

Field = Literal["instances", "max_queue_delay_microseconds", "concurrency"]
Limit = Literal["stage", "queue delay", "cores", "gpu", "client", "load", "rate"]

_BUSY = 0.75  # from here on a stage is the bottleneck
_ALIKE = 1.1  # images per second that differ by less do so by chance, too
_WORTH = 1.1  # a change that brings less is not advised
_WAITING = 0.3  # of the latency, in front of a stage that waits for a batch to fill
_OVERHEAD = 0.3  # of perf_analyzer's time
_FULL = 0.9  # of the cores, where no stage is busy
_MOST_TIMES = 2  # where nobody knows how many cores there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One edit: `field` of `model` from `before` to `after`; `edit` says it in the words of the file or the option."""

    model: str
    field: Field
    before: int
    after: int
    edit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What limits `model` at the heaviest load at which it answered about as many images per second as ever.

    `limit` is what: a `stage`, whose name, `share` of the latency, number of instances and part of the time that they
    are busy are given, or one of the others. `expected` is the factor that `change` is expected to bring to the images
    per second; both are None where nothing is advised. `text` says all of it.
    """

    model: str
    concurrency: int | None
    request_rate: float | None
    limit: Limit
    stage: str
    share: float
    instances: int
    busy: float
    change: Change | None
    expected: float | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What may be the bottleneck: the measured model itself, or a member of it."""

    model: MeasuredModel
    share: float
    stages: Stages
    busy: Busy


def find_best(measured: Sequence[Measurement], model: str) -> Measurement | None:
    """Return the measurement of `model` that answered the most images per second."""
    return max((one for one in measured if one.model == model), key=lambda one: one.infer_per_s, default=None)


def find_judged(measured: Sequence[Measurement], model: str) -> Measurement | None:
    """Return the heaviest load at which `model` answered about as many images per second as ever: there it is full."""
    best = find_best(measured, model)
    if best is None:
        return None
    alike = [one for one in measured if one.model == model and one.infer_per_s * _ALIKE >= best.infer_per_s]
    return max(alike, key=lambda one: one.request_rate or one.concurrency or 0)


def judge(measured: Sequence[Measurement], models: Sequence[MeasuredModel], *, cores: int | None) -> Verdict | None:
    """Return the verdict on the first of `models`; None where nothing settled, or the server has no statistics.

    Args:
        measured: What settled.
        models: The measured model and its members.
        cores: Those of the server's machine; None where it is another one.
    """
    best = find_judged(measured, models[0].name)
    parts = [] if best is None else list(_find_parts(best, models))
    if best is None or not parts:
        return None
    busiest = max(parts, key=lambda part: part.busy.fraction)
    if best.request_rate is not None:
        most = best.infer_per_s / max(busiest.busy.fraction, 1e-9)
        text = (
            f"At {best.request_rate:g} requests/s {busiest.model.name} is busiest: {_count(busiest)} computed "
            f"{busiest.busy.fraction:.0%} of the time, enough for about {most:.0f} images/s."
        )
        return _conclude(best, busiest, "rate", text)
    if busiest.busy.fraction >= _BUSY:
        return _judge_stage(best, busiest, parts, cores)
    return _judge_idle(best, busiest, parts)


def _find_parts(best: Measurement, models: Sequence[MeasuredModel]) -> Iterator[_Part]:
    by_name = {model.name: model for model in models}
    if best.busy is not None:
        share = best.stages.total_ms / best.average_ms if best.average_ms else 0.0
        yield _Part(model=models[0], share=share, stages=best.stages, busy=best.busy)
    for member in best.members:
        if member.busy is not None:
            model = by_name[member.model]
            yield _Part(model=model, share=member.share, stages=member.stages, busy=member.busy)


def _find_limits(best: Measurement, busiest: _Part, parts: Sequence[_Part]) -> dict[str, float]:
    """Return the images per second that each limit but the busiest stage itself allows, by name."""
    rate = best.infer_per_s
    limits = {part.model.name: rate / max(part.busy.fraction, 1e-9) for part in parts if part is not busiest}
    assert best.concurrency is not None
    without_waiting_ms = max(best.average_ms - best.stages.queue_ms, 1e-9)
    limits["load"] = best.concurrency * best.batch_size * 1000 / without_waiting_ms
    if best.cpu_utilization:
        limits["cores"] = rate / best.cpu_utilization
    if best.gpu.utilization and not busiest.model.on_cpu:
        limits["gpu"] = rate / best.gpu.utilization
    return limits


def _judge_stage(best: Measurement, part: _Part, parts: Sequence[_Part], cores: int | None) -> Verdict:
    """Judge a stage whose instances are busy: would more of them help, and if not, why."""
    limits = _find_limits(best, part, parts)
    lowest = min(limits, key=lambda name: limits[name])
    alone = best.infer_per_s / part.busy.fraction  # what its instances can do
    before = part.busy.instances
    most = cores if part.model.on_cpu and cores is not None else before * _MOST_TIMES
    after = min(math.ceil(before * limits[lowest] / alone - 0.05), max(most, before))
    expected = min(limits[lowest], alone * after / before) / best.infer_per_s
    said = (
        f"{part.model.name} takes {part.share:.0%} of the latency, and its {_count(part)} "
        f"{'is' if before == 1 else 'are'} busy {part.busy.fraction:.0%} of the time"
    )
    if after > before and expected >= _WORTH:
        change = _more_instances(best.model, part, after)
        unknown = part.model.on_cpu and cores is None
        note = " (no more instances than that machine has cores)" if unknown else ""
        text = f"{said}: {after} instances, expected {expected:.1f}x the images per second{note}."
        return _conclude(best, part, "stage", text, change=change, expected=expected)
    if part.model.on_cpu and cores is not None and before >= cores:
        why = (
            f"there are not more than {cores} cores: fewer pixels per image, a machine with more, or decoding on a GPU"
        )
        return _conclude(best, part, "cores", f"{said}; {why}.")
    if lowest == "cores":
        why = f"{best.cpu_utilization:.0%} of the machine's cores are in use: more instances would only share them"
        return _conclude(best, part, "cores", f"{said}, but {why}.")
    if lowest == "gpu":
        said += f", and the GPU is busy {best.gpu.utilization:.0%} of it"
        return _conclude(best, part, "gpu", f"{said}: a lower precision, a smaller network, or another GPU.")
    if lowest == "load":
        return _more_load(best, part, parts, said)
    return _conclude(
        best, part, "stage", f"{said}, and {lowest} hardly less: more instances of one alone bring little."
    )


def _judge_idle(best: Measurement, busiest: _Part, parts: Sequence[_Part]) -> Verdict:
    """Judge a run in which no stage was busy: the client, waiting for batches, the cores, or too few requests."""
    said = f"No stage is busy: {busiest.model.name} computes most, {busiest.busy.fraction:.0%} of the time"
    if best.client_overhead is not None and best.client_overhead >= _OVERHEAD:
        why = f"perf_analyzer needed {best.client_overhead:.0%} of the time for itself: the client is the limit"
        return _conclude(best, busiest, "client", f"{said}; {why}. Send from another machine, or larger requests.")
    for part in parts:
        queue_ms = part.stages.queue_ms
        delays = part.model.queue_delay_us and queue_ms <= 2 * part.model.queue_delay_us / 1000
        expected = best.average_ms / max(best.average_ms - queue_ms, 1e-9)
        if delays and queue_ms >= _WAITING * best.average_ms and expected >= _WORTH:
            text = (
                f"{said}. Requests wait {queue_ms:.2f} of {best.average_ms:.2f} ms for others to fill a batch of "
                f"{part.model.name}: without waiting, expected {expected:.1f}x the images per second at this load."
            )
            field: Field = "max_queue_delay_microseconds"
            before = part.model.queue_delay_us
            change = Change(model=part.model.name, field=field, before=before, after=0, edit=f"{field}: 0")
            return _conclude(best, part, "queue delay", text, change=change, expected=expected)
    if best.cpu_utilization is not None and best.cpu_utilization >= _FULL:
        why = f"{best.cpu_utilization:.0%} of the machine's cores are in use, by the client or by other programs"
        return _conclude(best, busiest, "cores", f"{said}; {why}.")
    return _more_load(best, busiest, parts, said)


def _more_load(best: Measurement, part: _Part, parts: Sequence[_Part], said: str) -> Verdict:
    """Advise more requests in flight, where nothing else would be the limit at once."""
    assert best.concurrency is not None
    allowed = [best.infer_per_s / max(one.busy.fraction, 1e-9) for one in parts]
    if best.cpu_utilization:
        allowed.append(best.infer_per_s / best.cpu_utilization)
    expected = min(2.0, min(allowed) / best.infer_per_s)
    requests = f"{best.concurrency} request{'s' if best.concurrency > 1 else ''} in flight"
    outside = best.other_ms / best.average_ms if best.average_ms else 0.0
    if outside >= 0.5:
        said += f"; {outside:.0%} of the latency are network, serialising and the client"
    if expected < _WORTH:
        return _conclude(best, part, "load", f"{said}; with {requests} this is about what the server can do.")
    after = 2 * best.concurrency
    change = Change(
        model=best.model,
        field="concurrency",
        before=best.concurrency,
        after=after,
        edit=f"concurrency {after}",
    )
    text = f"{said}; {requests} do not fill the server: {after}, expected {expected:.1f}x the images per second."
    return _conclude(best, part, "load", text, change=change, expected=expected)


def _more_instances(model: str, part: _Part, after: int) -> Change:
    name = part.model.name
    key = _find_key(model, part.model)
    edit = f"instances: {{{key}: {after}}}" if key else f"{name}/config.pbtxt: count: {after} in instance_group"
    return Change(model=name, field="instances", before=part.busy.instances, after=after, edit=edit)


def _find_key(model: str, part: MeasuredModel) -> str | None:
    """Return the key of the spec's `instances` for a part of `model`, or of its own; None where it is none of ours."""
    tasks = [TASKS.find(name) for name in TASKS.names()]
    if part.is_fused:
        return next(task.fused.key for task in tasks if task.fused is not None)
    roles = [role for task in tasks for role in task.roles if role.default_instances]
    measured_alone = part.name == model
    for role in roles:
        if part.name == f"{model}{role.suffix}" or (measured_alone and part.name.endswith(role.suffix)):
            return role.key
    return None


def _count(part: _Part) -> str:
    count = part.busy.instances
    return f"{count} instance{'s' if count > 1 else ''}"


def _conclude(
    best: Measurement,
    part: _Part,
    limit: Limit,
    text: str,
    *,
    change: Change | None = None,
    expected: float | None = None,
) -> Verdict:
    return Verdict(
        model=best.model,
        concurrency=best.concurrency,
        request_rate=best.request_rate,
        limit=limit,
        stage=part.model.name,
        share=part.share,
        instances=part.busy.instances,
        busy=part.busy.fraction,
        change=change,
        expected=expected,
        text=text,
    )
