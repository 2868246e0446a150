"""Whether a plan runs on a host, from its passport alone: what TensorRT would refuse, and what it would not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from generator.errors import DeviceError, MissingDependencyError, PlanError
from generator.plan.library import TensorRTVersion, installed_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from generator.gpu import Gpu
    from generator.plan.passport import Passport

_REBUILD = "build the plan on the GPU that serves it, with the TensorRT that serves it"
_ASK_IMAGE = (
    "docker run --rm IMAGE sh -c 'echo $TRT_VERSION' tells an image's; the rest is seen when the plan is loaded"
)
# The compute capability from which on a GPU has them.
_NEEDED = {"fp8": (8, 9), "bf16": (8, 0)}
_SM_RULE = 11  # from this version on TensorRT itself refuses a GPU with fewer multiprocessors


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where a plan is to run; None for what is not known. `source` names the host or image, such as "this host"."""

    tensorrt: str | None
    gpu: Gpu | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """One thing in which plan and host differ: `refuse` = it will not load, `warn` = it may not, or not as well."""

    severity: Literal["refuse", "warn"]
    found: str
    expected: str
    hint: str

    def __str__(self) -> str:
        """Return it as one sentence."""
        return f"{self.found}; {self.expected}"


def local_host() -> Host:
    """Return what is installed here; nothing is imported that is heavy, and nothing allocated."""
    from generator.gpu import find_gpu

    installed = installed_version()
    try:
        gpu = find_gpu()
    except (DeviceError, MissingDependencyError):
        gpu = None
    return Host(tensorrt=None if installed is None else str(installed), gpu=gpu, source="this host")


def find_misfits(passport: Passport, host: Host) -> list[Misfit]:
    """Return every misfit; those that TensorRT refuses come first."""
    found = [*_check_version(passport, host), *_check_gpu(passport, host)]
    return sorted(found, key=lambda misfit: misfit.severity)


def check_gpu(onnx: Path, low_precisions: Sequence[str], gpu: Gpu) -> None:
    """Refuse a graph that holds what the GPU cannot compute.

    Raises:
        PlanError: Its compute capability is too low for FP8 or BF16.
    """
    has = tuple(int(part) for part in gpu.compute_capability.split("."))
    for one in low_precisions:
        if has < (needed := _NEEDED.get(one, (0,))):
            version = ".".join(map(str, needed))
            msg = f"{onnx} holds {one.upper()}, which needs a GPU of compute capability {version} or later; "
            msg += f"{gpu.name} has {gpu.compute_capability}"
            hint = "give the graph in FP32 that it was made from, with precision fp16 or int8, or build on another GPU"
            raise PlanError(msg, hint=hint)


def runs_on(passport: Passport, capability: str) -> bool:
    """Say whether the plan is one for GPUs of this compute capability."""
    built, here = _number(passport.gpu["compute_capability"]), _number(capability)
    return here == built or (passport.hardware_compatibility == "ampere-plus" and min(built, here) >= (8, 0))


def _check_version(passport: Passport, host: Host) -> Iterator[Misfit]:
    built = f"the plan was built with TensorRT {passport.tensorrt}"
    if host.tensorrt is None:
        unknown = f"the TensorRT of {host.source} is unknown"
        yield Misfit(severity="warn", found=built, expected=unknown, hint=_ASK_IMAGE)
        return
    has = f"{host.source} has {host.tensorrt}"
    try:
        made, runs = TensorRTVersion.parse(passport.tensorrt), TensorRTVersion.parse(host.tensorrt)
    except ValueError:
        yield Misfit(severity="warn", found=built, expected=f"{has}: they cannot be compared", hint=_ASK_IMAGE)
        return
    if made.same_plans(runs):
        if made[:3] == runs[:3] and (made.build < 0) != (runs.build < 0):
            yield Misfit(
                severity="warn",
                found=built,
                expected=f"{has}: the fourth number, which counts too, is known of one only",
                hint="if it does not load, build it with the TensorRT that serves it",
            )
        return
    if passport.is_version_compatible:
        if made < runs:
            return
        expected = f"{has}: also a version-compatible plan runs on its own version and later ones only"
        yield Misfit(severity="refuse", found=built, expected=expected, hint=f"{_REBUILD}, or with an older one")
        return
    hint = f"{_REBUILD}, or set plan.version_compatible" if made < runs else _REBUILD
    expected = f"{has}, and a plan runs on the version that built it"
    yield Misfit(severity="refuse", found=built, expected=expected, hint=hint)


def _check_gpu(passport: Passport, host: Host) -> Iterator[Misfit]:
    name, capability = passport.gpu["name"], passport.gpu["compute_capability"]
    multiprocessors = passport.gpu["multiprocessors"]
    built = f"the plan was built on {name} (compute capability {capability}, {multiprocessors} multiprocessors)"
    gpu = host.gpu
    if gpu is None:
        unknown = f"the GPU of {host.source} is unknown"
        yield Misfit(severity="warn", found=built, expected=unknown, hint="nvidia-smi on that machine names its GPU")
        return
    has = f"{host.source} has {gpu.name} ({gpu.compute_capability}, {gpu.multiprocessors})"
    level = passport.hardware_compatibility
    if not runs_on(passport, gpu.compute_capability):
        rule = {
            "ampere-plus": "plans for ampere-plus run on 8.0 and later",
            "same-compute-capability": "the plan runs on other GPUs of the same compute capability only",
        }.get(level, "a plan runs on the compute capability it was built on")
        yield Misfit(severity="refuse", found=built, expected=f"{has}, and {rule}", hint=_other_gpu_hint(level))
        return
    if level != "none":  # which is how it runs on another compute capability, too
        return
    if gpu.multiprocessors < multiprocessors:
        strict = _major(passport.tensorrt) >= _SM_RULE
        rule = (
            "and TensorRT refuses fewer multiprocessors"
            if strict
            else "fewer multiprocessors, which may fail or be slow"
        )
        yield Misfit(
            severity="refuse" if strict else "warn",
            found=built,
            expected=f"{has}, {rule}",
            hint=_other_gpu_hint(level),
        )
    elif gpu.name != name:
        expected = f"{has}: another model, which TensorRT does not support"
        yield Misfit(severity="warn", found=built, expected=expected, hint=_other_gpu_hint(level))


def _other_gpu_hint(level: str) -> str:
    return f"{_REBUILD}, or set plan.hardware_compatibility" if level == "none" else _REBUILD


def _number(capability: str) -> tuple[int, ...]:
    """Return 9.0 as (9, 0), so that 12.0 is above 8.6; empty for anything else."""
    parts = capability.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else 0
