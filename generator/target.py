"""What runs the classifier on this host: `auto` in a spec becomes a target and a precision, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError, MissingDependencyError, PlanError, SpecError
from generator.graph.model import find_low_precisions, load_proto
from generator.plan.compatibility import check_gpu
from generator.plan.library import how_to_install, installed_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.spec.model import ModelSpec

KNOWN = ("tensorrt-8.6", "tensorrt-10", "tensorrt-11")
_HELD = {"int8": "INT8 (Q/DQ)", "fp8": "FP8 (Q/DQ)", "bf16": "BF16", "fp16": "FP16", "fp32": "FP32"}


def choose_target(spec: ModelSpec) -> tuple[ModelSpec, str]:
    """Return the spec with target and precision filled in, and why they became so; no reason where the spec said it.

    `auto` becomes a plan where TensorRT and a GPU are present, else the graph in onnxruntime.
    """
    if spec.source == "export":
        return _agree_with_export(spec), ""
    target: str = spec.target
    held = find_low_precisions(load_proto(spec.onnx, weights=False)) if spec.source == "onnx" and spec.onnx else ()
    reasons = []
    if target == "auto":
        target, reason = _target_of_this_host()
        needed = "bf16" if "bf16" in held else spec.precision
        if target == "onnxruntime" and needed not in ("auto", "fp32", "as-is"):
            msg = f"{spec.name}: precision {needed} needs TensorRT, but {reason}"
            raise PlanError(msg, **_advise_export(spec, "tensorrt-10"))
        reasons.append(reason)
    precision = _choose_precision(spec, target, held)
    if precision == "as-is" and spec.precision != "as-is":
        reasons.append(f"{spec.onnx} holds {_HELD[held[0]]} and is taken as it is")
    settled = settle(spec, {"target": target, "precision": precision})
    return settled, f"{target}, {precision}: {'; '.join(reasons)}" if reasons else ""


def _choose_precision(spec: ModelSpec, target: str, held: Sequence[str]) -> str:
    """Return the spec's precision with `auto` filled in. `held` is what an ONNX file of the user's has below FP32.

    Raises:
        SpecError: The file is in another precision than the spec's, or in one that the target has not.
    """
    asked = spec.precision
    if not held and asked != "bf16":
        usual = "fp32" if target == "onnxruntime" else "fp16"
        return usual if asked == "auto" else asked
    own = held[0] if held else "fp32"
    # onnxruntime runs any graph as it is, which was called fp32 there
    if asked not in ("auto", "as-is", own) and (asked, target) != ("fp32", "onnxruntime"):
        msg = f"{spec.name}: precision is {asked}, but {spec.onnx} holds {_HELD[own]}, and is taken as it is"
        hint = "leave precision out, or give the graph in FP32 that it was made from"
        raise SpecError(msg, hint=hint, fields={"precision": "as-is"})
    lacking = {"onnxruntime": ("bf16",), "tensorrt-8.6": ("bf16", "fp8")}.get(target, ())
    if lacks := [_HELD[one] for one in held if one in lacking]:
        where = "onnxruntime on the CPU" if target == "onnxruntime" else target
        msg = f"{spec.name}: {spec.onnx} holds {lacks[0]}, which {where} does not run"
        hint = "take tensorrt-10 or later as the target, or give the graph in FP32 that it was made from"
        raise SpecError(msg, hint=hint, fields={"target": "tensorrt-10"})
    return "bf16" if asked == "bf16" else "as-is"


def _agree_with_export(spec: ModelSpec) -> ModelSpec:
    """An exported graph was made for a target and a precision; the spec can only agree."""
    from generator.spec.exported import read_export

    assert spec.onnx is not None, "the spec's own rules see to it"
    record = read_export(spec.onnx)
    settled = {"target": record.target, "precision": record.precision, "activation": record.activation}
    for field, value in settled.items():
        default = type(spec).model_fields[field].default
        if getattr(spec, field) not in (default, value):
            msg = f"{spec.name}: {field} is {getattr(spec, field)}, but {spec.onnx} was exported for {value}"
            raise PlanError(msg, hint=f"leave {field} out, or export again with {field}: {getattr(spec, field)}")
    return settle(spec, settled)


def settle(spec: ModelSpec, settled: dict[str, str]) -> ModelSpec:
    """Return the spec with what `auto` became, validated anew: that must agree with the other fields.

    Raises:
        SpecError: It does not.
    """
    from pydantic import ValidationError

    try:
        return type(spec).model_validate({**spec.model_dump(), **settled})
    except ValidationError as error:
        words = " and ".join(f"{field} {value}" for field, value in settled.items() if getattr(spec, field) == "auto")
        problems = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors())
        msg = f"{spec.name}: {f'with {words}: ' if words else ''}{problems}"
        fields = {"target": None, "precision": None}
        raise SpecError(msg, hint="set target and precision", fields=fields) from error


def check_target(spec: ModelSpec) -> None:
    """Refuse to start a build whose plan cannot be made here.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        PlanError: Another TensorRT than the target's.
        DeviceError: No GPU.
    """
    from generator.gpu import find_gpu

    if not spec.is_tensorrt:
        return
    installed = installed_version()
    if installed is None:
        advice = _advise_export(spec, spec.target)
        install = f"{how_to_install(spec.target)}; or {advice.pop('hint')}"
        why = f"target {spec.target} needs it to build the plan"
        raise MissingDependencyError("tensorrt", extra="tensorrt", why=why, install=install, **advice)
    if installed.target != spec.target:
        msg = f"{spec.name}: target is {spec.target}, but TensorRT {installed} is installed"
        hint = f"set target: {installed.target}, or build where {spec.target} is installed"
        raise PlanError(msg, hint=hint, fields={"target": installed.target})
    try:
        gpu = find_gpu()
    except DeviceError as error:
        msg = f"{spec.name}: target {spec.target} needs a GPU to build the plan on: {error.message}"
        raise DeviceError(msg, **_advise_export(spec, spec.target)) from error
    if spec.onnx is not None:
        check_gpu(spec.onnx, find_low_precisions(load_proto(spec.onnx, weights=False)), gpu)


def _target_of_this_host() -> tuple[str, str]:
    from generator.gpu import find_gpu, why_no_gpu

    installed = installed_version()
    if installed is None:
        return "onnxruntime", "TensorRT is not installed"
    if installed.target not in KNOWN:
        return "onnxruntime", f"TensorRT {installed} is none of {', '.join(KNOWN)}"
    if reason := why_no_gpu():
        return "onnxruntime", reason
    return installed.target, f"TensorRT {installed} and {find_gpu().name} are here"


def _advise_export(spec: ModelSpec, target: str) -> dict[str, Any]:
    """The way for a host that cannot build the plan: export here, build there."""
    if spec.source == "export":
        return {"hint": "build it on the GPU host", "command": ("build-repo", str(spec.onnx))}
    hint = f"export it for {target} here, and build from that export on the GPU host"
    return {"hint": hint, "command": ("export",), "fields": {"target": target}}
