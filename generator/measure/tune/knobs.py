"""What tune may change: fields of the spec that alter how a model is served and neither its graph nor its plan."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from generator.errors import SpecError
from generator.spec.config_text import given_fields
from generator.spec.model import ModelSpec
from generator.task import find_roles, find_task
from generator.triton.config import graph_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.task import Role

# Field of the spec, with a dot for one inside another, to its value; what is as in the spec is left out.
Settings: TypeAlias = Mapping[str, Any]

_NETWORKS_ON_GPU = (1, 2, 3, 4, 6, 8)
_NETWORKS_ON_CPU = (1, 2, 4)
_DELAYS_US = (0, 100, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A field and the values to try; the first is what the spec has now, by itself or by default."""

    field: str
    values: tuple[Any, ...]


def find_knobs(spec: ModelSpec, *, cores: int, p99_ms: float | None) -> list[Knob]:
    """Return what may change for `spec`, whose target is settled, on a machine with so many usable cores."""
    knobs = []
    for field, now, values in _list_fields(spec, cores, math.inf if p99_ms is None else p99_ms * 1000):
        others = [value for value in values if value != now]
        if others:
            knobs.append(Knob(field=field, values=(now, *others)))
    return knobs


def _list_fields(spec: ModelSpec, cores: int, p99_us: float) -> Iterator[tuple[str, Any, Sequence[Any]]]:
    """Yield each field that applies, its value now and those worth trying: another field is one more line here."""
    counts, fused = spec.instance_counts(), find_task(spec.task).fused
    if fused is not None:
        yield "layout", spec.layout or "ensemble", ("ensemble", "fused")
    if spec.decode == "gpu":  # which `auto` becomes wherever it can be
        yield "decode", "gpu", ("cpu",)
    # Combinations of a member with the layout that lacks it are refused by the spec, and not drawn.
    for role in (*find_roles(spec.task, "ensemble"), *([fused] if fused else [])):
        given = given_fields(getattr(spec.config, role.key, None))  # the spec's own text, which takes the place of ours
        if role.default_instances is not None and "instance_group" not in given:
            now = counts.get(role.key) or role.default_instances(spec.is_tensorrt)
            yield f"instances.{role.key}", now, _count_instances(role, spec.is_tensorrt, cores)
        if role not in spec.roles or not role.holds_network:
            continue
        if spec.batch.max > 1 and "dynamic_batching" not in given:
            delays = [delay for delay in _DELAYS_US if delay < p99_us]
            yield "max_queue_delay_microseconds", spec.queue_delay_microseconds(), delays
        if spec.is_tensorrt and "optimization" not in given:
            yield "plan.cuda_graphs", _to_json(spec.plan.cuda_graphs), _list_graphs(spec)


def _count_instances(role: Role, is_tensorrt: bool, cores: int) -> list[int]:
    """Return numbers of instances: of a process that computes on the CPU, no more than there are cores."""
    if role.holds_network and is_tensorrt:
        return list(_NETWORKS_ON_GPU)
    wanted = _NETWORKS_ON_CPU if role.holds_network else (1, cores // 4, cores // 2, cores * 3 // 4, cores)
    return sorted({count for count in wanted if 1 <= count <= min(cores, role.most_instances)})


def _list_graphs(spec: ModelSpec) -> list[Any]:
    """Return all sizes, the small ones, and none: each size takes GPU memory in each instance, and time to load."""
    sizes = graph_sizes(spec.model_copy(update={"plan": spec.plan.model_copy(update={"cuda_graphs": True})}))
    small = [size for size in sizes if size <= 8]
    return [True, *([small] if len(small) < len(sizes) else []), False]


def _to_json(value: Any) -> Any:
    """Return the value as the journal has it, where a list is no tuple."""
    return json.loads(json.dumps(value))


def apply_settings(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """Return the spec with these fields changed.

    Raises:
        SpecError: They do not go with the rest.
    """
    return ModelSpec(**merge_settings(spec.model_dump(mode="json"), settings))


def merge_settings(data: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the fields of a spec as data, with `settings` in their places."""
    merged = dict(data)
    for field, value in settings.items():
        outer, _, inner = field.partition(".")
        merged[outer] = {**(merged.get(outer) or {}), inner: value} if inner else value
    return merged


def describe_settings(settings: Settings) -> str:
    """Return the fields as the spec writes them, on one line."""
    return ", ".join(f"{field}: {json.dumps(value)}" for field, value in settings.items()) or "the spec as it is"


def draw_candidates(spec: ModelSpec, knobs: Sequence[Knob], *, count: int, seed: int) -> list[Settings]:
    """Return up to `count` different settings, the spec as it is first; the others are drawn from all combinations."""
    total = math.prod(len(knob.values) for knob in knobs)
    order = random.Random(seed).sample(range(1, total), total - 1)  # noqa: S311 - nothing secret
    drawn = (_combine(knobs, index) for index in (0, *order))
    return list(itertools.islice((settings for settings in drawn if _is_valid(spec, settings)), count))


def _is_valid(spec: ModelSpec, settings: Settings) -> bool:
    """Say whether the rules between the spec's fields allow the combination."""
    try:
        apply_settings(spec, settings)
    except SpecError:
        return False
    return True


def _combine(knobs: Sequence[Knob], index: int) -> Settings:
    """Return the combination of this number; 0 is the spec as it is."""
    settings = {}
    for knob in knobs:
        index, choice = divmod(index, len(knob.values))
        if choice:
            settings[knob.field] = knob.values[choice]
    return settings
