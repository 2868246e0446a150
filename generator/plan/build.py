"""OnnxModel -> Plan: parse, profiles, configuration, build, check, passport; nothing half-written."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.files import hash_bytes
from generator.plan.compatibility import check_gpu
from generator.plan.hints import advise
from generator.plan.profiles import check_profiles
from generator.plan.progress import Progress, run_watched, silent
from generator.plan.versions import Fault, open_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from generator.gpu import Gpu
    from generator.graph.model import OnnxModel
    from generator.plan.passport import Passport
    from generator.plan.timing_cache import CacheState, TimingCache
    from generator.plan.versions import Adapter
    from generator.spec.plan import PlanOptions
    from generator.tensor import Profile, Tensor

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build. `precision` is the plan's: fp32, fp16, bf16, int8 or fp8; `command` makes it again.

    `keep` are patterns of names of nodes to hold in FP32, for TensorRT 8.6; later versions find that in the graph.
    """

    onnx: OnnxModel
    precision: str
    profiles: tuple[Profile, ...]
    max_batch_size: int | None
    options: PlanOptions
    command: str
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan file and the passport beside it."""

    path: Path
    passport: Passport


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What TensorRT made of a graph: `data` is the plan, empty where `faults` say why there is none."""

    faults: tuple[Fault, ...] = ()
    data: bytes = b""
    seconds: float = 0.0
    layers: int = 0
    layer_types: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    timing_cache: CacheState = "off"
    warnings: tuple[str, ...] = ()


def build_plan(
    request: BuildRequest,
    path: Path,
    *,
    adapter: Adapter | None = None,
    gpu: Gpu | None = None,
    on_progress: Callable[[str, float], None] = silent,
) -> Plan:
    """Build the plan on this machine's GPU and write it to `path`, its passport beside it.

    Args:
        request: What to build.
        path: The plan; an earlier one is replaced.
        adapter: A TensorRT that was opened before; default: the installed one.
        gpu: The GPU that the passport names; default: this machine's first.
        on_progress: Gets what is being done and the part that is done from 0 to 1, which is nan where TensorRT does
            not tell (8.6). Ctrl-C stops the build and leaves no file, and the files of an earlier build as they were.

    Raises:
        PlanError: The request does not fit the graph or the installed version, or TensorRT refuses it.
        DeviceError: No GPU.
        MissingDependencyError: No tensorrt.
    """
    from generator.gpu import find_gpu
    from generator.plan.passport import write_plan
    from generator.plan.timing_cache import CacheKey, TimingCache

    _check_place(request.onnx, path)
    check_profiles(request.onnx, request.profiles, max_batch_size=request.max_batch_size)
    adapter = adapter or open_adapter()
    gpu = gpu or find_gpu()
    check_gpu(request.onnx.path, request.onnx.low_precisions, gpu)
    cache = TimingCache(CacheKey.of(gpu, str(adapter.version))) if request.options.timing_cache else None
    compiled = compile_graph(adapter, request, cache=cache, on_progress=on_progress)
    if compiled.faults:
        raise refusal(adapter, request.onnx, compiled.faults)
    passport = _make_passport(adapter, gpu, request, compiled)
    write_plan(compiled.data, passport, path)
    return Plan(path=path, passport=passport)


def compile_graph(
    adapter: Adapter,
    request: BuildRequest,
    *,
    cache: TimingCache | None = None,
    build: bool = True,
    on_progress: Callable[[str, float], None] = silent,
) -> Compiled:
    """Parse the graph and, unless `build` is false, build its plan in memory; refusals of the graph are returned.

    The request's profiles have passed `check_profiles`.

    Raises:
        PlanError: What was asked for does not fit the graph or this TensorRT, or the plan is not what the graph says.
    """
    adapter.check_request(
        graph=request.onnx.precision, precision=request.precision, options=request.options, opset=request.onnx.opset
    )
    progress = Progress()
    return run_watched(lambda: _compile(adapter, request, cache, progress, build=build), progress, on_progress)


def _compile(
    adapter: Adapter, request: BuildRequest, cache: TimingCache | None, progress: Progress, *, build: bool
) -> Compiled:
    progress.stage = "parsing"
    adapter.log.clear()
    builder = adapter.create_builder()
    network, network_flags = adapter.create_network(builder)
    faults = adapter.parse(network, request.onnx.path)
    warnings = list(adapter.log.warnings)
    if faults:
        return Compiled(faults=tuple(faults), warnings=tuple(dict.fromkeys(warnings)))
    tensors = adapter.network_tensors(network)
    _check_tensors(request.onnx, *tensors)
    layers, layer_types = network.num_layers, _layer_types(network)
    if not build or progress.cancelled.is_set():
        return Compiled(layers=layers, layer_types=layer_types, warnings=tuple(dict.fromkeys(warnings)))
    config = adapter.configure(builder, precision=request.precision, options=request.options)
    keep = (*request.keep, *_find_decoding(request.onnx)) if adapter.weakly_typed else request.keep
    adapter.hold_fp32(network, config, precision=request.precision, keep=keep)
    adapter.add_profiles(builder, config, request.profiles)
    loaded = cache.load() if cache else None
    state = adapter.load_cache(config, loaded) if cache else "off"
    progress.stage = "building"
    progress.monitored = adapter.watch(config, progress)
    start = time.monotonic()
    plan = adapter.build(builder, network, config)
    seconds = time.monotonic() - start
    warnings += adapter.log.warnings
    if isinstance(plan, Fault) or progress.cancelled.is_set():
        faults = [plan] if isinstance(plan, Fault) else [Fault(node="", operator="", text="interrupted")]
        return Compiled(faults=tuple(faults), layers=layers, layer_types=layer_types, warnings=tuple(warnings))
    if cache and state != "off":
        own = adapter.cache_bytes(config)
        cache.save(own, loaded=loaded, merge=lambda other: adapter.cache_bytes(config, other))
    if not adapter.rtx:  # an engine of RTX loads on a GPU only, and it may have been built without one
        _check_plan(adapter, request, plan)
    return Compiled(
        data=plan,
        seconds=seconds,
        layers=layers,
        layer_types=layer_types,
        flags=(*network_flags, *adapter.flags_of(config)),
        timing_cache=state,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _find_decoding(onnx: OnnxModel) -> list[str]:
    """Return the names of the nodes that decode a detector's boxes, to stay in FP32: graphs for TensorRT 10 say so."""
    from generator.graph.model import load_proto
    from generator.graph.precision.view import GraphView, find_tail, normalise_names

    if len(onnx.outputs) == 1:
        return []
    model = load_proto(onnx.path, weights=False)
    normalise_names(model)
    return find_tail(GraphView.of(model))


def _layer_types(network: Any) -> dict[str, int]:
    """Return how many layers give each data type, in TensorRT's names."""
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        found[layer.get_output(0).dtype.name if layer.num_outputs else "none"] += 1
    return dict(found.most_common())


def _check_plan(adapter: Adapter, request: BuildRequest, plan: bytes) -> None:
    inputs, outputs, profiles = adapter.plan_tensors(plan)
    _check_tensors(request.onnx, inputs, outputs, only_batch=_find_only_batch(request))
    if profiles != (expected := max(len(request.profiles), 1)):
        msg = f"the plan has {profiles} optimization profiles; {expected} were asked for"
        raise PlanError(
            msg, hint="verbose logs (level DEBUG) say what TensorRT makes of profiles", fields={"verbose": None}
        )


def _find_only_batch(request: BuildRequest) -> int | None:
    """Return the batch size that all profiles fix, if they do: TensorRT 8.6 writes it into the plan's shapes."""
    sizes = {size for profile in request.profiles for size in profile[request.onnx.input.name].batches}
    return sizes.pop() if len(sizes) == 1 else None


def _check_tensors(
    onnx: OnnxModel,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    only_batch: int | None = None,
) -> None:
    """Compare inputs and outputs with the graph's, by name: TensorRT 8.6 may order outputs anew.

    Where the graph leaves an axis open, TensorRT may know more.
    """
    problems = []
    for word, own, found in (("input", onnx.inputs, inputs), ("output", onnx.outputs, outputs)):
        of_plan = {one.name: one for one in found}
        if of_plan.keys() != {tensor.name for tensor in own}:
            names = ", ".join(tensor.name for tensor in own)
            problems.append(f"{word}s {list(of_plan)}; the graph has {names}")
            continue
        for tensor in own:
            one = of_plan[tensor.name]
            if one.data_type != tensor.data_type:
                kinds = one.data_type.triton, tensor.data_type.triton
                problems.append(f"{word} {tensor.name} is {kinds[0]}; the graph has {kinds[1]}")
            if tensor.shape and not _fits(one.shape, tensor.shape, only_batch):  # empty: the file does not say
                problems.append(f"{word} {tensor.name} is {list(one.shape)}; the graph has {list(tensor.shape)}")
    if problems:
        msg = f"{onnx.path}: TensorRT made of it " + "; ".join(problems)
        raise PlanError(msg, hint="export the graph again with UINT8 or FP32 input, FP32 output and a dynamic batch")


def _fits(shape: Sequence[int], expected: Sequence[int], only_batch: int | None) -> bool:
    if len(shape) != len(expected) or (expected[0] == -1 and shape[0] not in (-1, only_batch)):
        return False
    return all(size in (found, -1) for found, size in zip(shape, expected, strict=True))


def refusal(adapter: Adapter, onnx: OnnxModel, faults: Sequence[Fault]) -> PlanError:
    """Return the error that lists every reason, with what is known to help."""
    lines = "\n".join(f"  {fault}" for fault in faults)
    msg = f"{adapter.name} does not make a plan of {onnx.path} (opset {onnx.opset}):\n{lines}"
    return PlanError(msg, **advise(fault.hint for fault in faults))


def _check_place(onnx: OnnxModel, path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise PlanError(
            f"{folder} is not a folder: the plan cannot be written there", hint=f"mkdir -p {shlex.quote(str(folder))}"
        )
    if path.is_dir() or path.resolve() == onnx.path.resolve():
        msg = f"{path} cannot be the plan: it is a folder or the graph itself"
        raise PlanError(msg, hint="give the plan another name", fields={"output": None})
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"{folder} is not writable: the plan cannot be written there"
        raise PlanError(msg, hint="write it into a folder where you may", fields={"output": None})


def _make_passport(adapter: Adapter, gpu: Gpu, request: BuildRequest, compiled: Compiled) -> Passport:
    from generator.packages import made_by
    from generator.plan.passport import Passport

    onnx = request.onnx
    return Passport(
        made_by=made_by(),
        tensorrt=str(adapter.version),
        gpu={
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "multiprocessors": gpu.multiprocessors,
            "memory_bytes": gpu.memory_bytes,
        },
        driver=gpu.driver,
        cuda=gpu.cuda,
        precision=request.precision,
        profiles=request.profiles,
        inputs=(onnx.input,),
        outputs=onnx.outputs,
        flags=compiled.flags,
        options=request.options.model_dump(mode="json"),
        onnx_sha256=onnx.sha256,
        plan_sha256=hash_bytes(compiled.data),
        plan_bytes=len(compiled.data),
        build_seconds=round(compiled.seconds, 2),
        timing_cache=compiled.timing_cache,
        command=request.command,
    )
