"""What runs the classifier on this host: `auto` in a spec becomes a target and a precision, with the reason."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import DeviceError, MissingDependencyError, PlanError, SpecError
from generator.plan.library import how_to_install, installed_version
from generator.spec.model import name_from_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.spec.model import ModelSpec

__all__ = ["Asked", "Choice", "check_target", "choose_target"]

# Fields whose value stands behind an option of `trtgen export` as it is.
_OPTIONS = ("weights", "architecture", "classes", "labels", "recipe", "image_size", "calibration")
# Fields that do not change an export, or that the hint writes in its own way.
_OTHERS = (
    *("name", "source", "onnx", "target", "precision", "experimental", "batch"),
    *("instances", "max_queue_delay_microseconds", "versions", "config"),
)
KNOWN = ("tensorrt-8.6", "tensorrt-10", "tensorrt-11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A spec without `auto`, and why it became so; `reason` is empty where the spec said it all."""

    spec: ModelSpec
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says beside the spec: a hint that gives a command repeats it."""

    spec_file: Path | None = None
    images: Path | None = None


def choose_target(spec: ModelSpec, asked: Asked | None = None) -> Choice:
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
            raise PlanError(msg, hint=_export_hint(spec, "tensorrt-10", asked))
    if precision == "auto":
        precision = "fp32" if target == "onnxruntime" else "fp16"
    if reason:
        reason = f"{target}, {precision}: {reason}"
    return Choice(spec=_settle(spec, {"target": target, "precision": precision}), reason=reason)


def _choice_of_export(spec: ModelSpec) -> Choice:
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
        raise SpecError(msg, hint="say target and precision, in the spec or with --target and --precision") from error


def check_target(spec: ModelSpec, asked: Asked | None = None) -> None:
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
        why = f"target {spec.target} needs it to build the plan; {_export_hint(spec, spec.target, asked)}"
        raise MissingDependencyError("tensorrt", extra="tensorrt", why=why, install=how_to_install(spec.target))
    if installed.target != spec.target:
        msg = f"{spec.name}: target is {spec.target}, but TensorRT {installed} is installed"
        raise PlanError(
            msg, hint=f"set target: {installed.target} (--target), or build where {spec.target} is installed"
        )
    try:
        find_gpu()
    except DeviceError as error:
        msg = f"{spec.name}: target {spec.target} needs a GPU to build the plan on: {error.message}"
        raise DeviceError(msg, hint=_export_hint(spec, spec.target, asked)) from error


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


def _export_hint(spec: ModelSpec, target: str, asked: Asked | None) -> str:
    """The way for a host without a GPU: export here, build there; the same model, so with all that was asked for."""
    if spec.source == "export":
        return f"build it on the GPU host: trtgen build-repo --onnx {shlex.quote(str(spec.onnx))}"
    asked = asked or Asked()
    if asked.spec_file is not None or not _fits_options(spec):
        words = ["--spec", str(asked.spec_file or "FILE"), "--target", target]
    else:
        given = {"onnx": str(spec.onnx), "demo": "demo"}.get(spec.source, spec.name)
        own_name = name_from_file(spec.onnx) if spec.onnx else given
        words = [given, *(["--name", spec.name] if own_name != spec.name else []), "--target", target, *_options(spec)]
        words += ["--output", f"exported/{spec.name}"]
    if asked.images is not None:
        words += ["--images", str(asked.images)]
    return (
        f"export here: trtgen export {shlex.join(words)}; "
        f"build on the GPU host: trtgen build-repo --onnx exported/{spec.name}/model.onnx"
    )


def _is_default(spec: ModelSpec, field: str) -> bool:
    return bool(getattr(spec, field) == type(spec).model_fields[field].get_default(call_default_factory=True))


def _fits_options(spec: ModelSpec) -> bool:
    """Say whether the options of `trtgen export` can say all that the export depends on."""
    if spec.batch != type(spec.batch)(max=spec.batch.max):
        return False
    fields = [field for field in type(spec).model_fields if field not in _OTHERS and not _is_default(spec, field)]
    values = [getattr(spec, field) for field in fields]
    return set(fields) <= set(_OPTIONS) and all(isinstance(value, (str, int, Path)) for value in values)


def _options(spec: ModelSpec) -> Iterator[str]:
    """Yield the options, each followed by its value, in which `spec` differs from the defaults."""
    if spec.precision != "auto":
        yield from ("--precision", spec.precision)
    for field in _OPTIONS:
        if not _is_default(spec, field):
            yield from (f"--{field.replace('_', '-')}", str(getattr(spec, field)))
    if not _is_default(spec, "batch"):
        yield from ("--max-batch", str(spec.batch.max))
