"""The passport of a plan: what built it, where, from what and how. It lies beside the plan as `model.plan.json`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, NonNegativeInt, PlainSerializer
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from generator.errors import PlanError
from generator.files import hash_file, write_temporary
from generator.plan.header import BUILD_PLAN
from generator.plan.library import TensorRTVersion
from generator.plan.timing_cache import CacheState  # noqa: TC001 - pydantic reads the annotations
from generator.signals import hold_signals
from generator.spec.records import JsonRecord
from generator.tensor import ShapeRange, Tensor, from_triton

if TYPE_CHECKING:
    from pathlib import Path

_REBUILD = "build the plan again"


def _read_tensor(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    shape = value.get("shape")
    try:
        data_type = from_triton(str(value.get("data_type")))
    except KeyError as error:
        raise ValueError(f"data_type {value.get('data_type')!r} is not one of Triton's") from error
    return {**value, "data_type": data_type, "shape": tuple(shape) if isinstance(shape, list) else shape}


def _write_tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": tensor.data_type.triton, "shape": list(tensor.shape)}


def _with_batch(shapes: ShapeRange) -> ShapeRange:
    if not (shapes.min and shapes.opt and shapes.max):
        raise ValueError("min, opt and max need a batch")
    return shapes


def _check_version(text: str) -> str:
    TensorRTVersion.parse(text)  # its message says what it is not
    return text


def _check_capability(text: str) -> str:
    if re.fullmatch(r"\d+\.\d+", text, re.ASCII) is None:
        raise ValueError(f"{text!r} is not a compute capability such as 9.0")
    return text


_Tensors = tuple[Annotated[Tensor, BeforeValidator(_read_tensor), PlainSerializer(_write_tensor)], ...]


class BuildGpu(TypedDict):
    """The GPU that a plan was built on."""

    name: str
    compute_capability: Annotated[str, AfterValidator(_check_capability)]
    multiprocessors: NonNegativeInt
    memory_bytes: NonNegativeInt


class Passport(JsonRecord):
    """The content of model.plan.json.

    Attributes:
        tensorrt: Version of the library that built it; `driver` and `cuda` are those of the host.
        precision: fp32, fp16, bf16, int8 or fp8.
        inputs: As the graph has them, where -1 is what is not fixed; so `outputs`.
        flags: Names of builder flags; their numbers change between versions.
        options: The spec's `plan`.
        command: What makes the plan again.
    """

    made_by: str
    tensorrt: Annotated[str, AfterValidator(_check_version)]
    gpu: BuildGpu
    driver: str
    cuda: str
    precision: str
    profiles: tuple[Mapping[str, Annotated[ShapeRange, AfterValidator(_with_batch)]], ...]
    inputs: _Tensors
    outputs: _Tensors
    flags: tuple[str, ...]
    options: Mapping[str, Any]
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: NonNegativeInt
    build_seconds: float
    timing_cache: CacheState
    command: str
    format: Literal[1] = 1

    @property
    def is_version_compatible(self) -> bool:
        """Whether later versions of TensorRT load the plan."""
        return bool(self.options.get("version_compatible")) or "VERSION_COMPATIBLE" in self.flags

    @property
    def hardware_compatibility(self) -> str:
        """The level as the spec calls it: `none`, `ampere-plus` or `same-compute-capability`."""
        return str(self.options.get("hardware_compatibility") or "none")


def passport_path(plan: Path) -> Path:
    """Return where the passport of `plan` lies: `model.plan` -> `model.plan.json`."""
    return plan.with_name(f"{plan.name}.json")


def write_plan(data: bytes, passport: Passport, path: Path) -> None:
    """Write plan and passport under temporary names in the same folder, then give both their names.

    A failure leaves neither of the new files, and those of an earlier build as they were.

    Raises:
        PlanError: The folder cannot be written to, or is full.
    """
    with ExitStack() as temporary:
        try:
            plan = write_temporary(path, data)
            temporary.callback(plan.unlink, missing_ok=True)
            beside = write_temporary(passport_path(path), passport.to_json().encode())
            temporary.callback(beside.unlink, missing_ok=True)
            with hold_signals():  # between the two names an interrupt would leave one without the other
                beside.replace(passport_path(path))
                plan.replace(path)
                _sync_folder(path.parent)
        except OSError as error:
            msg = f"{path} cannot be written: {error.strerror or error}"
            raise PlanError(
                msg, hint="free disk space, or write it into another folder", fields={"output": None}
            ) from error


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_passport(plan: Path, *, check_hash: bool = False) -> Passport:
    """Return the passport beside `plan`.

    Args:
        plan: The plan, not the passport.
        check_hash: Read the whole plan and compare it with what the passport says.

    Raises:
        PlanError: No passport, one that cannot be read, or one of another plan.
    """
    path = passport_path(plan)
    if not path.is_file():
        msg = f"{plan} has no passport: {path.name} is not beside it"
        raise PlanError(msg, hint=f"copy it from where the plan was built, or {_REBUILD}", command=BUILD_PLAN)
    try:
        passport = Passport.read(path)
    except ValueError as error:
        msg = f"the passport {path} cannot be read: {error}"
        raise PlanError(
            msg, hint=f"copy it from where the plan was built, or {_REBUILD}", command=BUILD_PLAN
        ) from error
    if check_hash:
        _compare(passport, plan)
    return passport


def _compare(passport: Passport, plan: Path) -> None:
    try:
        size, digest = plan.stat().st_size, hash_file(plan)
    except OSError as error:
        msg = f"{plan} cannot be read: {error.strerror or error}"
        raise PlanError(msg, hint="give the path of a plan, such as model.plan") from error
    if size != passport.plan_bytes:
        msg = f"{plan} has {size} bytes, its passport says {passport.plan_bytes}: it is cut off, or another plan"
        raise PlanError(msg, hint=f"copy both files again, or {_REBUILD}", command=BUILD_PLAN)
    if digest != passport.plan_sha256:
        msg = f"{plan} is not the plan of its passport: SHA-256 {digest[:12]}..., not {passport.plan_sha256[:12]}..."
        raise PlanError(msg, hint=f"copy both files again, or {_REBUILD}", command=BUILD_PLAN)
