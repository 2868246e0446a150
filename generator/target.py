"""What runs the classifier on this host: `auto` in a spec becomes a target and a precision, with the reason."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import DeviceError, MissingDependencyError, PlanError, SpecError
from generator.plan.library import installed_version

if TYPE_CHECKING:
    from generator.spec import ModelSpec

__all__ = ["Choice", "check_target", "choose_target"]

KNOWN = ("tensorrt-8.6", "tensorrt-10", "tensorrt-11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A spec without `auto`, and why it became so; `reason` is empty where the spec said it all."""

    spec: ModelSpec
    reason: str


def choose_target(spec: ModelSpec) -> Choice:
    """Fill in target and precision: a plan where TensorRT and a GPU are present, else the graph in onnxruntime."""
    if spec.source == "export":
        return _choice_of_export(spec)
    target: str = spec.target
    precision: str = spec.precision
    reason = ""
    if target == "auto":
        target, reason = _target_of_this_host()
        if target == "onnxruntime" and spec.precision not in ("auto", "fp32"):
            msg = f"{spec.name}: precision {spec.precision} needs TensorRT, but {reason}"
            raise PlanError(msg, hint=_export_hint(spec, "tensorrt-10", precision=spec.precision))
    if precision == "auto":
        precision = "fp32" if target == "onnxruntime" else "fp16"
    if reason:
        reason = f"{target}, {precision}: {reason}"
    return Choice(spec=_settle(spec, {"target": target, "precision": precision}), reason=reason)


def _choice_of_export(spec: ModelSpec) -> Choice:
    """An exported graph was made for a target and a precision; the spec can only agree."""
    from generator.export.exported import read_export

    assert spec.onnx is not None, "the spec's own rules see to it"
    record = read_export(spec.onnx)
    settled = {"target": record.target, "precision": record.precision, "activation": record.activation}
    for field, value in settled.items():
        default = type(spec).model_fields[field].default
        if getattr(spec, field) not in (default, value):
            msg = f"{spec.name}: {field} is {getattr(spec, field)}, but {spec.onnx} was exported for {value}"
            raise PlanError(msg, hint=f"leave {field} out, or export again with {field}: {getattr(spec, field)}")
    return Choice(spec=_settle(spec, settled), reason="")


def _settle(spec: ModelSpec, settled: dict[str, str]) -> ModelSpec:
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
        raise SpecError(msg, hint="say target and precision in the spec; docs/spec.md lists every field") from error


def check_target(spec: ModelSpec) -> None:
    """Refuse to start a build whose plan cannot be made here.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        PlanError: Another TensorRT than the target's.
        DeviceError: No GPU.
    """
    from generator.gpu.device import find_gpu

    if not spec.is_tensorrt:
        return
    installed = installed_version()
    if installed is None:
        why = f"target {spec.target} needs it to build the plan; {_export_hint(spec, spec.target)}"
        raise MissingDependencyError("tensorrt", extra="tensorrt", why=why)
    if installed.target != spec.target:
        msg = f"{spec.name}: target is {spec.target}, but TensorRT {installed} is installed"
        raise PlanError(msg, hint=f"set target: {installed.target}, or build where {spec.target} is installed")
    try:
        find_gpu()
    except DeviceError as error:
        msg = f"{spec.name}: target {spec.target} needs a GPU to build the plan on: {error.message}"
        raise DeviceError(msg, hint=_export_hint(spec, spec.target)) from error


def _target_of_this_host() -> tuple[str, str]:
    from generator.gpu.device import find_gpu, why_no_gpu

    installed = installed_version()
    if installed is None:
        return "onnxruntime", "TensorRT is not installed"
    if installed.target not in KNOWN:
        return "onnxruntime", f"TensorRT {installed} is none of {', '.join(KNOWN)}"
    if reason := why_no_gpu():
        return "onnxruntime", reason
    return installed.target, f"TensorRT {installed} and {find_gpu().name} are here"


def _export_hint(spec: ModelSpec, target: str, *, precision: str = "auto") -> str:
    """The way for a host without a GPU: export here, build there."""
    if spec.source == "export":
        return f"build it on the GPU host: trtgen build-repo --onnx {shlex.quote(str(spec.onnx))}"
    source = shlex.quote(str(spec.onnx)) if spec.source == "onnx" else spec.name
    words = f"{source} --target {target}" + (f" --precision {precision}" if precision != "auto" else "")
    return (
        f"export here: trtgen export {words} --output exported/{spec.name}; "
        f"build on the GPU host: trtgen build-repo --onnx exported/{spec.name}/model.onnx"
    )
