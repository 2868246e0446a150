"""Batches, queues, sequences and instances of one configuration."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from generator.doctor.finding import Finding, in_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.repository import ConfiguredModel

_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_ALLOCATION, _ALLOCATIONS = "execution_context_allocation_strategy", ("STATIC", "ON_PROFILE_CHANGE")
_BATCH_TENSOR_TYPES = ("TYPE_INT32", "TYPE_FP32")


def check_scheduling(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    """Check what says how requests become executions, and where."""
    config = model.config
    if config.max_batch_size < 0:
        yield in_config(model, "batch-negative", "max_batch_size")
    yield from _check_queue(model)
    yield from _check_sequences(model)
    yield from _check_batch_tensors(model)
    yield from _check_metrics(model)
    yield from _check_cache(model)
    yield from _check_instances(model, backend)
    if backend == "tensorrt" and (value := _parameter(config, _ALLOCATION)) not in (None, *_ALLOCATIONS):
        place = model.positions.index(("parameters",), "key", _ALLOCATION)
        yield in_config(model, "parameter-value", "parameters", place, name=_ALLOCATION, value=value)


def _parameter(config: Any, name: str) -> str | None:
    return config.parameters[name].string_value if name in config.parameters else None


def _check_queue(model: ConfiguredModel) -> Iterator[Finding]:
    config = model.config
    for which, sizes, place in (
        ("dynamic", config.dynamic_batching.preferred_batch_size, ("dynamic_batching", 0)),
        ("sequence", config.sequence_batching.oldest.preferred_batch_size, ("sequence_batching", 0, "oldest", 0)),
    ):
        for index, size in enumerate(sizes):
            rule = "batch-preferred-not-positive" if size <= 0 else "batch-preferred-too-large"
            if size <= 0 or size > config.max_batch_size:
                yield in_config(model, rule, *place, "preferred_batch_size", index, which=which)
    batching, place = config.dynamic_batching, ("dynamic_batching", 0)
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            yield in_config(model, "priority-default", *place, "default_priority_level", levels=levels)
        if any(not 1 <= level <= levels for level in batching.priority_queue_policy):
            yield in_config(model, "priority-policy", *place, "priority_queue_policy", levels=levels)
    if batching.preserve_ordering:
        policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
        if levels > 1:
            yield in_config(model, "ordering-priorities", *place, "priority_levels")
        elif any(policy.timeout_action == policy.DELAY and policy.default_timeout_microseconds for policy in policies):
            yield in_config(model, "ordering-delay", *place, "preserve_ordering")


def _check_sequences(model: ConfiguredModel) -> Iterator[Finding]:
    names: set[str] = set()
    kinds: Counter[str] = Counter()
    for index, tensor in enumerate(model.config.sequence_batching.control_input):
        place = ("sequence_batching", 0, "control_input", index)
        if not tensor.name:
            yield in_config(model, "control-name-missing", *place)
        elif tensor.name in names:
            yield in_config(model, "control-twice", *place, tensor=tensor.name)
        names.add(tensor.name)
        for control in tensor.control:
            kind = control.Kind.Name(control.kind)
            kinds[kind] += 1
            if kinds[kind] == 2:
                yield in_config(model, "control-kind-twice", *place, kind=kind)
            if not _has_right_values(control):
                yield in_config(model, "control-value", *place)


def _has_right_values(control: Any) -> bool:
    stated = [list(getattr(control, name)) for name in _VALUES if getattr(control, name)]
    if control.kind == control.CONTROL_SEQUENCE_CORRID:
        return not stated and bool(control.data_type)
    return len(stated) == 1 and len(stated[0]) == 2


def _check_batch_tensors(model: ConfiguredModel) -> Iterator[Finding]:
    config = model.config
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    targets: set[str] = set()
    for which, tensors in (("input", config.batch_input), ("output", config.batch_output)):
        for index, tensor in enumerate(tensors):
            place = (f"batch_{which}", index)
            if (count := len(tensor.source_input)) != 1:
                kind = tensor.Kind.Name(tensor.kind)
                yield in_config(model, "batch-tensor-sources", *place, which=which, kind=kind, count=count)
            if (
                which == "input"
                and tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
                not in _BATCH_TENSOR_TYPES
            ):
                yield in_config(model, "batch-tensor-type", *place)
            named = [(name, name in inputs) for name in tensor.source_input]
            if which == "output":
                named += [(name, name in outputs) for name in tensor.target_name]
                for name in tensor.target_name:
                    if name in targets:
                        yield in_config(model, "batch-tensor-twice", *place, tensor=name)
                    targets.add(name)
            for name, known in named:
                if not known:
                    yield in_config(model, "batch-tensor-unknown", *place, tensor=name)


def _check_metrics(model: ConfiguredModel) -> Iterator[Finding]:
    for index, metric in enumerate(model.config.model_metrics.metric_control):
        place = ("model_metrics", 0, "metric_control", index)
        if not metric.HasField("metric_identifier"):
            missing = "metric_identifier"
        elif not metric.metric_identifier.family:
            missing = "family"
        elif not metric.HasField("histogram_options"):
            missing = "histogram_options"
        elif not metric.histogram_options.buckets:
            missing = "buckets"
        else:
            continue
        yield in_config(model, "metrics-incomplete", *place, field=missing)


def _check_cache(model: ConfiguredModel) -> Iterator[Finding]:
    config = model.config
    if not config.response_cache.enable:
        return
    if config.HasField("sequence_batching"):
        yield in_config(model, "cache-unsupported", "response_cache", what="sequence batching")
    if config.model_transaction_policy.decoupled:
        yield in_config(model, "cache-unsupported", "response_cache", what="a decoupled transaction policy")


def _check_instances(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    for index, group in enumerate(model.config.instance_group):
        place = ("instance_group", index)
        if group.gpus and group.kind in (group.KIND_CPU, group.KIND_MODEL):
            kind = group.Kind.Name(group.kind)
            yield in_config(model, "instance-cpu-with-gpus", *place, "gpus", kind=kind)
        for gpu in group.gpus:
            if gpu < 0:
                yield in_config(model, "instance-gpu-unknown", *place, "gpus", gpu=gpu)
        if group.profile and (backend != "tensorrt" or not all(text.isdecimal() for text in group.profile)):
            yield in_config(model, "instance-profile", *place, "profile")
