"""Whether the plans of a repository run where they are to be served; asked before a server starts.

Triton would say so too, but later, in the words of TensorRT, and for a container only after its image was pulled.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError, MissingDependencyError, PlanError
from generator.plan.choice import PLAN_FILE, choose_plan, sort_capabilities
from generator.plan.library import TensorRTVersion
from generator.repository.layout import numeric_versions
from generator.server.configs import choose_loaded, find_members, read_configs
from generator.server.launch import name_rebuild
from generator.triton.fused import NETWORK_BACKEND

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from generator.plan.compatibility import Host
    from generator.plan.header import PlanHeader

_LOG = logging.getLogger(__name__)


def find_plans(root: Path, models: Sequence[str] = (), *, capability: str | None = None) -> list[Path]:
    """Return the plans below `root` that Triton would load; with `models`, those of them and of their members.

    Args:
        root: The model repository.
        models: The names of those that are loaded; all where none is named.
        capability: That of the GPU, which chooses among the plans of a model that has several; all where it is None.

    Raises:
        PlanError: A model has several plans, and none for this compute capability.
    """
    return [
        plan
        for name, config in choose_loaded(read_configs(root), models).items()
        for number in _served(numeric_versions(root / name), config.version_policy)
        for plan in _find_plans_of(config, root / name / str(number), capability)
        if plan.is_file()
    ]


def _find_plans_of(config: Any, folder: Path, capability: str | None) -> list[Path]:
    named = dict(config.cc_model_filenames)
    if not named or not (_is_plans_own(config) or config.parameters[NETWORK_BACKEND].string_value == "tensorrt"):
        return [folder / PLAN_FILE]
    default = find_default_plan(config)
    if capability is None:
        names = [named[one] for one in sort_capabilities(named)]
        return [folder / name for name in dict.fromkeys([*names, default])]
    return [choose_plan(folder, named, default, capability)]


def find_default_plan(config: Any) -> str:
    """Return the plan that a configuration takes for every compute capability that it names none for."""
    return (_is_plans_own(config) and config.default_model_filename) or PLAN_FILE


def _is_plans_own(config: Any) -> bool:
    return bool(config.backend == "tensorrt" or config.platform == "tensorrt_plan")


def _served(versions: list[int], policy: Any) -> list[int]:
    """Return the versions that a policy serves; the newest where there is none."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return versions
    if choice == "specific":
        return [number for number in versions if number in policy.specific.versions]
    return versions[-max(policy.latest.num_versions, 1) :]


def has_version_compatible(root: Path) -> bool:
    """Say whether a plan below `root` was built for later versions of TensorRT too, as its passport says."""
    from generator.plan.passport import passport_path, read_passport

    plans = find_plans(root) if root.is_dir() else []
    return any(read_passport(plan).is_version_compatible for plan in plans if passport_path(plan).is_file())


def check_local_plans(root: Path, models: Sequence[str] = ()) -> None:
    """Refuse to start a server of this host whose plans cannot run here; do nothing where there is no plan.

    `models` are those that it loads, as for `find_plans`.

    Raises:
        DeviceError: No GPU.
        MissingDependencyError: No TensorRT.
        PlanError: See `check_plans`.
    """
    from generator.gpu import why_no_gpu
    from generator.plan.compatibility import local_host
    from generator.plan.library import installed_version

    plans = find_plans(root, models)
    if not plans:
        return
    if reason := why_no_gpu():
        msg = f"{plans[0]} needs a GPU, but here {reason}"
        raise DeviceError(msg, hint="serve it where the GPU is, or build it for onnxruntime", **_without_gpu(plans[0]))
    if installed_version() is None:
        raise MissingDependencyError("tensorrt", extra="tensorrt", why=f"it runs {plans[0]}")
    _check_chosen(root, models, local_host())


def check_container_plans(root: Path, image: str, *, gpus: bool) -> None:
    """Refuse to start a container whose TensorRT, or this host's GPU, is not that of the plans.

    Raises:
        DeviceError: The container is to run without GPUs.
        PlanError: See `check_plans`.
    """
    from generator.plan.compatibility import Host, local_host
    from generator.plan.containers import read_image_version

    plans = find_plans(root)
    if not plans:
        return
    if not gpus:
        msg = f"{plans[0]} needs a GPU, and the container is to run without"
        raise DeviceError(msg, hint="run it with GPUs, or build the model for onnxruntime", **_without_gpu(plans[0]))
    version, reason = read_image_version(image)
    source = f"{image} ({reason})" if reason else image
    _LOG.info("%s: TensorRT %s", source, version or "unknown")
    _check_chosen(root, (), Host(tensorrt=version, gpu=local_host().gpu, source=source))


def _check_chosen(root: Path, models: Sequence[str], host: Host) -> None:
    """Check the plans that the host's GPU takes; all of them where it is not known."""
    capability = None if host.gpu is None else host.gpu.compute_capability
    check_plans(find_plans(root, models, capability=capability), host)


def _without_gpu(plan: Path) -> dict[str, Any]:
    """Return command and fields that build a plan's model anew for the CPU; none where that would cost other plans."""
    if plan.name != PLAN_FILE:
        return {}
    root, model = plan.parents[2], plan.parents[1].name
    ensembles = (name for name, config in read_configs(root).items() if model in find_members(config))
    # the backend is part of what clients rely on: the same name takes `replace`
    return name_rebuild(root, next(ensembles, model), target="onnxruntime", replace=True)


def check_plans(plans: Iterable[Path], host: Host) -> None:
    """Refuse plans that cannot run on `host`, and warn of what is doubtful or unknown.

    Raises:
        PlanError: A plan is cut off, not that of its passport, or built for another TensorRT or GPU; all are named.
    """
    from generator.plan.compatibility import find_misfits
    from generator.plan.header import read_header
    from generator.plan.passport import passport_path, read_passport

    problems: list[str] = []
    advice: list[dict[str, Any]] = []
    for plan in plans:
        try:
            header = read_header(plan)
            if not passport_path(plan).is_file():
                _check_header(plan, header, host)
                continue
            passport = read_passport(plan)
            if passport.plan_bytes != header.size_bytes:  # only then is the whole plan worth reading
                passport = read_passport(plan, check_hash=True)
            misfits = find_misfits(passport, host)
        except PlanError as error:
            problems.append(error.message)
            advice.append(error.advice)
            continue
        for misfit in misfits:
            text = f"{plan}: {misfit.found}, {misfit.expected}"
            if misfit.severity == "refuse":
                problems.append(text)
                advice.append({"hint": misfit.hint})
            else:
                _LOG.warning("%s", text)
    if problems:
        raise PlanError("\n".join(problems), **advice[0])


def _check_header(plan: Path, header: PlanHeader, host: Host) -> None:
    """Warn of a plan without passport, of which only the version is known.

    Raises:
        PlanError: It is of a later TensorRT, whose plans no earlier one loads, not even version-compatible ones.
    """
    made, runs = header.version, None
    with contextlib.suppress(ValueError):
        runs = TensorRTVersion.parse(host.tensorrt or "")
    if made is None or runs is None or made.same_plans(runs):
        _LOG.warning("%s has no passport: whether it runs on %s is not known", plan, host.source)
        return
    if made > runs:
        msg = f"{plan}: the plan was built with TensorRT {made}, {host.source} has {runs}, which loads no later plans"
        raise PlanError(msg, hint="build the plan on the GPU that serves it, with the TensorRT that serves it")
    text = "%s has no passport: built with TensorRT %s, it runs on the %s of %s only if it is version-compatible"
    _LOG.warning(text, plan, made, runs, host.source)
