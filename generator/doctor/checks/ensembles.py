"""Ensembles and their members, by the rules of core's ValidateEnsembleSchedulingConfig and ensemble_utils."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.doctor.finding import Finding, in_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from generator.doctor.repository import ConfiguredModel, ModelFolder

_FORBIDDEN = ("instance_group", "optimization", "model_warmup")


def check_ensemble(model: ConfiguredModel, models: Mapping[str, ModelFolder]) -> Iterator[Finding]:
    """Check one configuration that is, or says it is, an ensemble, with its members' configurations."""
    config = model.config
    scheduled = config.HasField("ensemble_scheduling")
    if config.platform != "ensemble":
        if scheduled:
            yield in_config(model, "ensemble-scheduled", "ensemble_scheduling")
        return
    if config.backend:
        yield in_config(model, "ensemble-backend", "backend")
    if not scheduled:
        yield in_config(model, "ensemble-not-scheduled", "platform")
        return
    for field in _FORBIDDEN:
        if (field == "optimization" and config.HasField(field)) or (field != "optimization" and getattr(config, field)):
            yield in_config(model, "ensemble-field", field, field=field)
    steps = config.ensemble_scheduling.step
    if not steps:
        yield in_config(model, "ensemble-step-incomplete", "ensemble_scheduling", field="step")
        return
    incomplete = list(_find_incomplete(model))
    yield from incomplete
    yield from _check_members(model, models)
    if not incomplete:
        yield from _check_links(model, models)


def _step(index: int) -> tuple[str | int, ...]:
    return ("ensemble_scheduling", 0, "step", index)


def _find_incomplete(model: ConfiguredModel) -> Iterator[Finding]:
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                yield in_config(model, "ensemble-step-incomplete", *_step(index), field=field)


def _check_members(model: ConfiguredModel, models: Mapping[str, ModelFolder]) -> Iterator[Finding]:
    config = model.config
    for index, step in enumerate(config.ensemble_scheduling.step):
        name = step.model_name
        if not name:
            continue
        if (member := models.get(name)) is None:
            yield in_config(model, "ensemble-members-absent", *_step(index), "model_name", members=name)
            continue
        # -1 is the newest one; one that is not stated is 0, which no model has
        if step.model_version != -1 and step.model_version not in member.served_versions:
            values = {"member": name, "version": step.model_version}
            yield in_config(model, "ensemble-member-version", *_step(index), "model_version", **values)
        if member.config is not None and (size := member.config.dynamic_batching.default_queue_policy.max_queue_size):
            yield in_config(model, "ensemble-queue-size", *_step(index), "model_name", member=name, size=size)
        # 0 is a member without batches, which may be part of an ensemble with them
        least = member.config.max_batch_size if member.config is not None else 0
        if 0 < least < config.max_batch_size:
            values = {"own": config.max_batch_size, "member": name, "least": least}
            yield in_config(model, "ensemble-batch", "max_batch_size", **values)
    if path := _find_circle(model.name, models):
        index = next(index for index, step in enumerate(config.ensemble_scheduling.step) if step.model_name == path[1])
        yield in_config(model, "ensemble-circular", *_step(index), "model_name", path=" -> ".join(path))


def _find_circle(name: str, models: Mapping[str, ModelFolder]) -> list[str]:
    """Return the members on the way from an ensemble back to itself; nothing where there is no such way."""

    def members(of: str) -> list[str]:
        folder = models.get(of)
        return [step.model_name for step in folder.config.ensemble_scheduling.step] if folder and folder.config else []

    ways = [[name, member] for member in members(name)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        if way[-1] == name:
            return way
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [[*way, member] for member in members(way[-1])]
    return []


def _check_links(model: ConfiguredModel, models: Mapping[str, ModelFolder]) -> Iterator[Finding]:
    """Check that every tensor is written once, read, and the same on both ends."""
    config = model.config
    steps = config.ensemble_scheduling.step
    written = {tensor.name for tensor in config.input}
    read: set[str] = set()
    for index, step in enumerate(steps):
        read |= set(step.input_map.values())
        for link in step.output_map.values():
            if link in written:
                yield in_config(model, "ensemble-written-twice", *_step(index), "output_map", tensor=link)
            written.add(link)
        yield from _check_maps(model, index, step, models.get(step.model_name))
    outputs = {tensor.name for tensor in config.output}
    made = _follow(model)
    for index, tensor in enumerate(config.output):
        if tensor.name not in made:
            yield in_config(model, "ensemble-unwritten", "output", index, tensor=tensor.name)
    for link in sorted(read - written):
        yield in_config(model, "ensemble-unwritten", "ensemble_scheduling", tensor=link)
    for link in sorted(written - read - outputs):
        yield in_config(model, "ensemble-unused", "ensemble_scheduling", tensor=link)
    yield from _check_ends(model, models)
    yield from _check_decoupled(model, models)


def _follow(model: ConfiguredModel) -> set[str]:
    """Return the tensors that come to be: steps that wait for each other never run."""
    made = {tensor.name for tensor in model.config.input}
    waiting = list(model.config.ensemble_scheduling.step)
    while ready := [step for step in waiting if set(step.input_map.values()) <= made]:
        made |= {link for step in ready for link in step.output_map.values()}
        waiting = [step for step in waiting if step not in ready]
    return made


def _check_decoupled(model: ConfiguredModel, models: Mapping[str, ModelFolder]) -> Iterator[Finding]:
    """Follow where tensors come from: a decoupled member answers any number of times, each at its own time."""
    origins: dict[str, int] = {tensor.name: 0 for tensor in model.config.input}
    waiting = dict(enumerate(model.config.ensemble_scheduling.step))
    while ready := [index for index, step in waiting.items() if set(step.input_map.values()) <= origins.keys()]:
        for index in ready:
            step = waiting.pop(index)
            seen = {origins[link] for link in step.input_map.values()}
            if len(seen) > 1:
                yield in_config(model, "ensemble-decoupled", *_step(index), member=step.model_name)
                return
            member = models.get(step.model_name)
            decoupled = member and member.config and member.config.model_transaction_policy.decoupled
            origins |= dict.fromkeys(step.output_map.values(), index + 1 if decoupled else seen.pop())


def _check_maps(model: ConfiguredModel, index: int, step: Any, member: ModelFolder | None) -> Iterator[Finding]:
    if member is None or member.config is None:
        return
    for kind, mapped, tensors in (
        ("input", step.input_map, member.config.input),
        ("output", step.output_map, member.config.output),
    ):
        if not tensors:  # left to auto-complete
            continue
        names = {tensor.name for tensor in tensors}
        for name in sorted(set(mapped) - names):
            values = {"kind": kind, "tensor": name, "member": member.name}
            yield in_config(model, "ensemble-map-unknown", *_step(index), f"{kind}_map", **values)
        if kind == "input":
            for tensor in tensors:
                if tensor.name not in mapped and not tensor.optional:
                    values = {"tensor": tensor.name, "member": member.name}
                    yield in_config(model, "ensemble-input-unmapped", *_step(index), **values)


def _check_ends(model: ConfiguredModel, models: Mapping[str, ModelFolder]) -> Iterator[Finding]:
    """Compare data type and shape of each tensor where it comes from and where it goes."""
    config = model.config
    first: dict[str, tuple[str, Any, bool]] = {}
    batched = config.max_batch_size > 0
    ends = [(tensor.name, model.name, tensor, batched) for tensor in config.input]
    for step in config.ensemble_scheduling.step:
        member = models.get(step.model_name)
        if member is None or member.config is None:
            continue
        with_batch = member.config.max_batch_size > 0
        for mapped, tensors in ((step.input_map, member.config.input), (step.output_map, member.config.output)):
            by_name = {tensor.name: tensor for tensor in tensors}
            ends += [(link, member.name, by_name[name], with_batch) for name, link in mapped.items() if name in by_name]
    ends += [(tensor.name, model.name, tensor, batched) for tensor in config.output]
    for link, owner, tensor, with_batch in ends:
        if link not in first:
            first[link] = (owner, tensor, with_batch)
            continue
        other, known, known_with_batch = first[link]
        values = {"tensor": link, "first": other, "second": owner}
        if known.data_type and tensor.data_type and known.data_type != tensor.data_type:
            names = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
            types = {"one": names[known.data_type].name, "other": names[tensor.data_type].name}
            yield in_config(model, "ensemble-data-type", "ensemble_scheduling", **types, **values)
        one, two = _whole_shape(known, known_with_batch), _whole_shape(tensor, with_batch)
        if known.dims and tensor.dims and not _fit(one, two):
            yield in_config(model, "ensemble-shape", "ensemble_scheduling", one=one, other=two, **values)


def _whole_shape(tensor: Any, batched: bool) -> list[int]:
    return [-1, *tensor.dims] if batched else list(tensor.dims)


def _fit(one: list[int], other: list[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))
