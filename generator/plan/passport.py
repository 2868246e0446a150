"""The passport of a plan: what built it, where, from what and how. It lies beside the plan as `model.plan.json`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.plan.containers import ContainerTensorRT, container_tensorrt
from generator.plan.fits import Host, Misfit, check_fits, local_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "ContainerTensorRT",
    "Host",
    "Misfit",
    "Passport",
    "check_fits",
    "container_tensorrt",
    "local_host",
    "passport_path",
    "read_passport",
    "write_passport",
]

# Raised when the meaning of a field changes.
FORMAT = 1
_REBUILD = "build the plan again: trtgen build-plan model.onnx"
_TIMING_CACHES = ("cold", "warm", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """The content of model.plan.json.

    Attributes:
        tensorrt: Version of the library that built it; `driver` and `cuda` are those of the host.
        gpu: `name`, `compute_capability`, `multiprocessors`, `memory_bytes`.
        precision: fp32, fp16, bf16 or int8.
        profiles: Per optimization profile: input -> `min`, `opt`, `max`, each a whole shape.
        inputs: `name`, `data_type` (TYPE_*), `shape` with -1 for what is not fixed; so `outputs`.
        flags: Names of builder flags; their numbers change between versions.
        options: The spec's `plan`.
        timing_cache: cold, warm or off.
        command: What makes the plan again.
    """

    made_by: str
    tensorrt: str
    gpu: Mapping[str, Any]
    driver: str
    cuda: str
    precision: str
    profiles: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    flags: Sequence[str]
    options: Mapping[str, Any]
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    build_seconds: float
    timing_cache: str
    command: str
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """Return the file's text; the same passport always gives the same bytes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def passport_path(plan: Path) -> Path:
    """Return where the passport of `plan` lies: `model.plan` -> `model.plan.json`."""
    return plan.with_name(f"{plan.name}.json")


def write_passport(passport: Passport, plan: Path) -> Path:
    """Write the passport beside its plan, whole or not at all.

    Raises:
        PlanError: The folder cannot be written to.
    """
    path = passport_path(plan)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(passport.to_json())
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp's 600 would keep the container's user out
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    except OSError as error:
        msg = f"the passport {path} cannot be written: {error.strerror or error}"
        raise PlanError(msg, hint=f"make room and check the permissions of {path.parent}") from error
    return path


def read_passport(plan: Path, *, check_hash: bool = False) -> Passport:
    """Return the passport beside `plan`.

    Args:
        plan: The plan, not the passport.
        check_hash: Read the whole plan and compare it with what the passport says.

    Raises:
        PlanError: No passport, one that does not hold, or one of another plan.
    """
    path = passport_path(plan)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{plan} has no passport: {path.name} is not beside it"
        raise PlanError(msg, hint=f"copy it from where the plan was built, or {_REBUILD}") from error
    except (OSError, ValueError, RecursionError) as error:
        msg = f"the passport {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise PlanError(msg, hint=f"copy it from where the plan was built, or {_REBUILD}") from error
    if problems := list(_problems(data)):
        msg = f"the passport {path} does not hold: {'; '.join(problems)}"
        raise PlanError(msg, hint=f"copy it from where the plan was built, or {_REBUILD}")
    passport = Passport(**data)
    if check_hash:
        _compare(passport, plan)
    return passport


def _compare(passport: Passport, plan: Path) -> None:
    from generator.files import hash_file

    try:
        size, digest = plan.stat().st_size, hash_file(plan)
    except OSError as error:
        msg = f"{plan} cannot be read: {error.strerror or error}"
        raise PlanError(msg, hint="give the path of a plan, such as model.plan") from error
    if size != passport.plan_bytes:
        msg = f"{plan} has {size} bytes, its passport says {passport.plan_bytes}: it is cut off, or another plan"
        raise PlanError(msg, hint=f"copy both files again, or {_REBUILD}")
    if digest != passport.plan_sha256:
        msg = f"{plan} is not the plan of its passport: SHA-256 {digest[:12]}..., not {passport.plan_sha256[:12]}..."
        raise PlanError(msg, hint=f"copy both files again, or {_REBUILD}")


def _problems(data: Any) -> Iterator[str]:
    """Say everything that keeps `data` from being a passport: readers rely on each field's form."""
    if not isinstance(data, dict):
        yield f"it is a JSON {type(data).__name__}, an object was expected"
        return
    if data.get("format") != FORMAT:
        yield f"it has format {data.get('format')!r}, this version of trtgen reads {FORMAT}"
        return
    names = {one.name for one in fields(Passport)}
    if missing := sorted(names - set(data)):
        yield f"{', '.join(missing)} is missing"
    if unknown := sorted(set(data) - names):
        yield f"{', '.join(unknown)} is unknown"
    yield from _value_problems(data)
    yield from _structure_problems(data)


def _value_problems(data: dict[str, Any]) -> Iterator[str]:
    for name in ("made_by", "tensorrt", "driver", "cuda", "precision", "onnx_sha256", "plan_sha256", "command"):
        if name in data and not isinstance(data[name], str):
            yield f"{name} is no text"
    if not _is_count(data.get("plan_bytes", 1)):
        yield "plan_bytes is no number of bytes"
    if not isinstance(data.get("build_seconds", 0.0), int | float):
        yield "build_seconds is no number"
    if data.get("timing_cache", "off") not in _TIMING_CACHES:
        yield f"timing_cache is none of {', '.join(_TIMING_CACHES)}"
    if not isinstance(data.get("options", {}), dict):
        yield "options is no object"
    if not _all(data.get("flags", []), lambda flag: isinstance(flag, str)):
        yield "flags is no list of names"


def _structure_problems(data: dict[str, Any]) -> Iterator[str]:
    gpu = data.get("gpu", {})
    texts, counts = ("name", "compute_capability"), ("multiprocessors", "memory_bytes")
    if "gpu" in data and not (
        isinstance(gpu, dict)
        and all(isinstance(gpu.get(key), str) for key in texts)
        and all(_is_count(gpu.get(key)) for key in counts)
    ):
        yield f"gpu does not have {', '.join((*texts, *counts))}"
    for name in ("inputs", "outputs"):
        if not _all(data.get(name, []), _is_tensor):
            yield f"{name} is no list of name, data_type and shape"
    if not _all(data.get("profiles", []), _is_profile):
        yield "profiles is no list of inputs with min, opt and max"


def _is_tensor(one: Any) -> bool:
    named = isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("name", "data_type"))
    return named and _is_shape(one.get("shape"))


def _is_profile(one: Any) -> bool:
    return isinstance(one, dict) and all(
        isinstance(ranges, dict) and all(ranges.get(key) and _is_shape(ranges[key]) for key in ("min", "opt", "max"))
        for ranges in one.values()
    )


def _is_shape(value: Any) -> bool:
    return _all(value, lambda edge: isinstance(edge, int) and not isinstance(edge, bool))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _all(value: Any, test: Any) -> bool:
    return isinstance(value, list) and all(test(one) for one in value)
