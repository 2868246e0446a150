"""The rules between the fields of a spec: each problem as a sentence, found before anything is loaded or built."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.spec.config_text import given_fields, parse_text
from generator.spec.plan import uncovered_batches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from generator.spec.model import ModelSpec

CHECKPOINT_SUFFIXES = (".pt", ".pth.tar", ".pth", ".ckpt", ".bin", ".safetensors")
# The fields that say where a source finds its model, and whose they are.
_PLACES = {"onnx": ("onnx", "export"), "factory": ("factory",), "pt2": ("pt2",), "huggingface": ("huggingface",)}
_CLASSIFIERS_ONLY = ("timm", "factory", "pt2", "huggingface")
_FACTORY = re.compile(r".+:[^\W\d]\w*")
# What an exported graph was made with; its export.json states it.
_SETTLED_BY_EXPORT = ("classes", "labels", "recipe", "image_size", "keep", "calibration")


def disagreements(spec: ModelSpec) -> Iterable[str]:
    """Yield every contradiction between the fields of `spec`."""
    yield from _of_places(spec)
    if spec.source == "export":
        yield from _of_export(spec)
    if spec.source == "factory":
        yield from _of_factory(spec)
    if spec.source in ("onnx", "export", "demo", "pt2", "huggingface"):
        for field, default in (("weights", "default"), ("architecture", None)):
            if getattr(spec, field) != default:
                yield f"{field} does not go with source: {spec.source}, which brings its own"
    for field in ("raw", "output_tensor"):
        if getattr(spec, field) and spec.source != "onnx":
            yield f"{field} goes with source: onnx only"
    yield from _of_detection(spec)
    if spec.decode == "gpu" and spec.layout == "fused" and spec.target == "onnxruntime":
        yield "decode: gpu with layout: fused needs a TensorRT target: pixels stay on the plan's GPU"
    yield from _of_precision(spec)
    yield from _of_queue(spec)
    yield from _of_cache(spec)
    yield from _of_config(spec)
    yield from _of_batches(spec)


def _of_places(spec: ModelSpec) -> Iterable[str]:
    built_in = {"torchvision", "checkpoint", "timm", "demo"}.union(*_PLACES.values())  # others may take what they like
    for field, owners in _PLACES.items():
        if spec.source in owners and getattr(spec, field) is None:
            yield f"source: {spec.source} needs the field {field}"
        elif spec.source in built_in and spec.source not in owners and getattr(spec, field) is not None:
            yield f"{field} is given, but source is {spec.source}"
    if spec.source == "checkpoint" and not spec.weights.endswith(CHECKPOINT_SUFFIXES):
        yield f"source: checkpoint needs weights to be a file ({', '.join(CHECKPOINT_SUFFIXES)})"


def _of_export(spec: ModelSpec) -> Iterable[str]:
    for field in _SETTLED_BY_EXPORT:
        if getattr(spec, field) != type(spec).model_fields[field].get_default(call_default_factory=True):
            yield f"{field} was settled when the graph was exported; export again to change it"


def _of_factory(spec: ModelSpec) -> Iterable[str]:
    if spec.factory is not None and not _FACTORY.fullmatch(spec.factory):
        yield f"factory is {spec.factory!r}; package.module:function or file.py:function was expected"
    if spec.architecture is not None:
        yield "architecture does not go with source: factory, whose function makes the module"
    if spec.weights != "default" and not spec.weights.endswith(CHECKPOINT_SUFFIXES):
        yield f"weights of a factory are a file ({', '.join(CHECKPOINT_SUFFIXES)}), it is {spec.weights!r}"


def _of_detection(spec: ModelSpec) -> Iterable[str]:
    if spec.detection is not None and spec.task != "detection":
        yield f"detection goes with task: detection only, it is {spec.task}"
    if spec.task == "detection" and spec.source in _CLASSIFIERS_ONLY:
        yield f"source: {spec.source} brings classifiers; a detector of yours is exported to ONNX and given in onnx"


def _of_precision(spec: ModelSpec) -> Iterable[str]:
    if spec.target == "onnxruntime" and spec.precision not in ("auto", "fp32", "as-is"):
        yield f"precision: {spec.precision} needs a TensorRT target; onnxruntime runs fp32, and other graphs as-is"
    if spec.precision in ("as-is", "bf16") and spec.onnx is None:
        yield f"precision: {spec.precision} takes an ONNX file as it is, and onnx is not given"
    if spec.target == "tensorrt-8.6" and spec.precision == "bf16":
        yield "precision: bf16 needs tensorrt-10 or later"
    if spec.calibration is not None and spec.precision != "int8":
        yield f"calibration goes with precision: int8 only, it is {spec.precision}"
    if spec.keep and spec.precision not in ("auto", "fp16", "int8"):
        yield f"keep goes with precision: fp16 or int8, it is {spec.precision}"


def _of_queue(spec: ModelSpec) -> Iterable[str]:
    queue = spec.queue
    if queue is None:
        return
    if sizes := [size for size in queue.preferred_batch_sizes if size > spec.batch.max]:
        yield f"queue.preferred_batch_sizes: {sizes[0]} is above batch.max ({spec.batch.max})"
    delay = spec.queue_delay_microseconds()
    if queue.timeout_microseconds is not None and queue.timeout_microseconds <= delay:
        yield (
            f"queue.timeout_microseconds is {queue.timeout_microseconds}: a request that waits for others would always "
            f"be late, more than max_queue_delay_microseconds ({delay}) was expected"
        )


def _of_cache(spec: ModelSpec) -> Iterable[str]:
    """Triton's cache does not look at which outputs are asked for: see `generator.triton.check`."""
    several = {"task: detection": spec.task == "detection", "layout: fused": spec.layout == "fused"}
    for field in (name for name, has_several in several.items() if spec.response_cache and has_several):
        yield f"response_cache does not go with {field}: a request for some outputs would be answered with others"


def _of_config(spec: ModelSpec) -> Iterable[str]:
    """What the spec sets and `config` states, too: neither is to win silently."""
    twice = "of the spec and {} in config.{} state the same: leave one of them out"
    for role in spec.roles:
        text = getattr(spec.config, role.key)
        given = given_fields(text)
        is_entry = role is spec.roles[-1]
        for field, value, name in (
            (f"instances.{role.key}", getattr(spec.instances, role.key, None), "instance_group"),
            ("queue", spec.queue_of(role), "dynamic_batching"),
            ("response_cache", spec.response_cache if is_entry else None, "response_cache"),
            ("rate_limiter", spec.rate_limiter if role.holds_network else None, "instance_group"),
            (
                "max_queue_delay_microseconds",
                spec.max_queue_delay_microseconds if role.holds_network else None,
                "dynamic_batching",
            ),
        ):
            if value is not None and name in given:
                yield f"{field} {twice.format(name, role.key)}"
        if not role.holds_network:
            continue
        if spec.plan.cuda_graphs is not True and parse_text(text).optimization.HasField("cuda"):
            yield f"plan.cuda_graphs {twice.format('optimization.cuda', role.key)}"


def _of_batches(spec: ModelSpec) -> Iterable[str]:
    sizes = spec.plan.cuda_graphs
    if not isinstance(sizes, bool) and max(sizes) > spec.batch.max:
        yield f"plan.cuda_graphs lists a batch of {max(sizes)}, but batch.max is {spec.batch.max}"
    ranges = [(one.min, one.max) for one in spec.profile_batches()]
    if gaps := uncovered_batches(ranges, spec.batch.max):
        yield f"plan.profiles do not cover a batch of {gaps}: all from 1 to batch.max ({spec.batch.max}) are needed"
