"""Plans of TensorRT: their header and passport against the release, its TensorRT, the GPU and config.pbtxt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.doctor.checks.network import check_tensors_of
from generator.doctor.finding import Finding, at_path, in_config
from generator.doctor.onnx_header import NetworkTensor
from generator.doctor.repository import is_file
from generator.errors import PlanError
from generator.plan.header import read_header
from generator.plan.passport import Passport, passport_path, read_passport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from generator.doctor.repository import ConfiguredModel
    from generator.plan.library import TensorRTVersion
    from generator.tensor import Tensor


def check_plan(
    model: ConfiguredModel, path: Path, *, release: str, tensorrt: TensorRTVersion | None, gpu: str | None
) -> Iterator[Finding]:
    """Check one version's plan; `tensorrt` and `gpu` are those of the server, None where they are not known."""
    try:
        made = read_header(path).version
    except PlanError as error:
        detail = error.message.removeprefix(str(path)).strip()
        yield at_path(model, "plan-damaged", path, detail=detail, advice=error.hint)
        return
    passport = find_passport(path)
    if made is not None and tensorrt is None:
        yield at_path(model, "plan-version-unknown", path, made=made, release=release)
    elif made is not None and tensorrt is not None and not made.same_plans(tensorrt):
        compatible = passport is not None and passport.is_version_compatible and made < tensorrt
        if not compatible:
            yield at_path(model, "plan-version", path, made=made, runs=tensorrt)
    if passport is None:
        return
    built = passport.gpu["compute_capability"]
    if gpu is not None and gpu != built and passport.hardware_compatibility == "none":
        yield at_path(model, "plan-gpu", path, made=built, runs=gpu)
    yield from _check_passport(model, passport)


def find_passport(path: Path) -> Passport | None:
    """Return the passport of a plan, None where there is none that can be read."""
    try:
        return read_passport(path) if is_file(passport_path(path)) else None
    except PlanError:
        return None


def _check_passport(model: ConfiguredModel, passport: Passport) -> Iterator[Finding]:
    most = max((shapes.max[0] for profile in passport.profiles for shapes in profile.values()), default=0)
    own = model.config.max_batch_size
    if 0 < most < own:
        yield in_config(model, "network-max-batch", "max_batch_size", own=own, most=most)
    yield from check_tensors_of(model, _describe(passport.inputs), _describe(passport.outputs))


def _describe(tensors: Sequence[Tensor]) -> list[NetworkTensor]:
    return [
        NetworkTensor(name=tensor.name, data_type=tensor.data_type.triton, shape=tuple(tensor.shape))
        for tensor in tensors
    ]
