"""What the models of a repository need of the pod that serves them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import DeployError
from generator.plan.passport import passport_path, read_passport
from generator.repository.layout import numeric_versions
from generator.server.configs import read_configs, refuse_unreadable
from generator.server.launch import open_repository
from generator.server.plans import find_default_plan, find_plans
from generator.tensor import from_triton

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

MIB, GIB = 2**20, 2**30
# The Python backend's own part of /dev/shm for each process, its default.
_REGION_BYTES = MIB
# An encoded image: a large photograph of a phone. A recipe's limit, 32 MiB, is far from what is sent.
_IMAGE_BYTES = 4 * MIB
_TEXT_BYTES = 1024  # any other text in a tensor
_LEAST_SHARED_BYTES = 256 * MIB
# A Python process with numpy and Pillow, and what it keeps of freed memory (docs/benchmarks.md).
_PROCESS_BYTES = 192 * MIB
_PIXEL_BYTES = 4  # of Pillow's canvas
SERVER_BYTES = GIB  # 133 MiB were measured with the demo, and with a plan on an H200 1.9 GiB in all
_CUDA_BYTES = 2 * GIB  # libraries and contexts, in the host's memory
_AMPERE = "8.0 or later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a pod needs to serve a repository.

    Attributes:
        models: What clients call.
        members: What does the work, whose queues are waited in: an ensemble has none of its own.
        instances: Instances of all members, which is how many requests are worked on at once.
        cores: Processor cores that they keep busy.
        shared_bytes: The most of /dev/shm that the Python models take.
        memory_bytes: The most memory that the pod takes, /dev/shm included.
        repository_bytes: The size of all files.
        gpu: Whether a GPU is needed; there is one for each pod.
        capabilities: The GPUs' compute capabilities that every model has a plan for, such as 9.0.
        ampere_or_later: Whether every model also has a plan for 8.0 and later; `capabilities` are the others then.
            Where there is neither, any will do.
        unknown_plans: Plans whose GPU is not known, since they have no passport.
    """

    models: tuple[str, ...]
    members: tuple[str, ...]
    instances: int
    cores: int
    shared_bytes: int
    memory_bytes: int
    repository_bytes: int
    gpu: bool
    capabilities: tuple[str, ...]
    ampere_or_later: bool
    unknown_plans: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A model that does work, with what its configuration says; an ensemble is none."""

    folder: Path
    config: Any  # Triton's ModelConfig

    @property
    def is_python(self) -> bool:
        return bool(self.config.backend == "python")

    @property
    def uses_gpu(self) -> bool:
        groups = self.config.instance_group
        return bool(self.config.backend == "tensorrt" or any(group.kind == group.KIND_GPU for group in groups))

    @property
    def instances(self) -> int:
        """Those of every version that is served, on one GPU or none; Triton makes one where a group does not say."""
        policy = self.config.version_policy
        versions: int = {
            "all": len(numeric_versions(self.folder)),
            "specific": len(policy.specific.versions),
        }.get(policy.WhichOneof("policy_choice"), policy.latest.num_versions)
        groups: int = sum(max(group.count, 1) for group in self.config.instance_group)
        return max(versions, 1) * max(groups, 1)

    @property
    def shared_bytes(self) -> int:
        """What its processes take of /dev/shm: their largest batches, in and out."""
        if not self.is_python:
            return 0
        row = sum(self._size_row(tensor) for tensor in (*self.config.input, *self.config.output))
        return self.instances * (_REGION_BYTES + max(int(self.config.max_batch_size), 1) * row)

    @property
    def memory_bytes(self) -> int:
        """What it takes beside /dev/shm: its processes, or its network and, while that is read, the file."""
        if self.is_python:
            return self.instances * (_PROCESS_BYTES + _PIXEL_BYTES * self._read_limit("max_pixels"))
        files = (path.stat().st_size for path in self.folder.glob("*/*") if path.suffix in (".onnx", ".plan"))
        return max(files, default=0) * (2 if self.uses_gpu else 1 + self.instances)

    def _size_row(self, tensor: Any) -> int:
        """Return the bytes of a tensor for a batch of one."""
        import numpy as np
        from tritonclient.grpc import model_config_pb2

        values = math.prod(max(int(size), 1) for size in tensor.dims)
        word = model_config_pb2.DataType.Name(tensor.data_type)
        if word == "TYPE_STRING":  # with a recipe it is an image
            limit = self._read_limit("max_bytes")
            return values * (min(_IMAGE_BYTES, limit) if limit else _TEXT_BYTES)
        if word == "TYPE_BF16":  # which numpy does not know
            return values * 2
        return 0 if word == "TYPE_INVALID" else values * np.dtype(from_triton(word).numpy).itemsize

    def _read_limit(self, name: str) -> int:
        """Return a limit of the recipe, 0 where there is none; another program's parameter may be called so, too."""
        parameters = self.config.parameters
        text = parameters[name].string_value if name in parameters else ""
        return int(text) if text.isdecimal() else 0


def read_needs(repository: Path) -> Needs:
    """Return what the models below `repository` need.

    Raises:
        ServerError: There is no repository, or no model in it.
        RepositoryError: A configuration cannot be read.
        DeployError: Its plans are for GPUs that no node has at once.
        PlanError: A passport cannot be read.
    """
    root = open_repository(repository)
    configs = read_configs(root)
    refuse_unreadable(root, configs)
    steps = {step.model_name for config in configs.values() for step in config.ensemble_scheduling.step}
    members = [
        _Member(folder=root / name, config=config)
        for name, config in configs.items()
        if not config.HasField("ensemble_scheduling")
    ]
    plans = find_plans(root)
    gpu = bool(plans) or any(member.uses_gpu for member in members)
    shared_bytes = sum(member.shared_bytes for member in members)
    shared_bytes = max(_round_up(shared_bytes, 64 * MIB), _LEAST_SHARED_BYTES)
    memory_bytes = shared_bytes + SERVER_BYTES + (_CUDA_BYTES if gpu else 0)
    memory_bytes += sum(member.memory_bytes for member in members)
    processes = sum(member.instances for member in members if member.is_python)
    capabilities, ampere_or_later = _find_capabilities(root, configs, plans)
    return Needs(
        models=tuple(name for name in configs if name not in steps),
        members=tuple(member.folder.name for member in members),
        instances=sum(member.instances for member in members),
        # beside onnxruntime half of the cores decode, beside a GPU all of them
        cores=max(1, processes if gpu else 2 * processes),
        shared_bytes=shared_bytes,
        memory_bytes=_round_up(memory_bytes, 256 * MIB),
        repository_bytes=sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
        gpu=gpu,
        capabilities=capabilities,
        ampere_or_later=ampere_or_later,
        unknown_plans=tuple(plan for plan in plans if not passport_path(plan).is_file()),
    )


def _find_capabilities(root: Path, configs: Mapping[str, Any], plans: Sequence[Path]) -> tuple[tuple[str, ...], bool]:
    """Return the compute capabilities that every model has a plan for, and whether it has one for 8.0 and later.

    Those that a configuration names plans for decide, and its default plan where that is for 8.0 and later; where it
    names none, the passport of the one plan does.
    """
    for name, config in configs.items():
        if wrong := [one for one in config.cc_model_filenames if not re.fullmatch(r"\d+\.\d+", one, re.ASCII)]:
            msg = f"{root / name / 'config.pbtxt'} names a plan for the compute capability {wrong[0]!r}, "
            raise DeployError(f"{msg}and one such as 9.0 was expected", hint="change that key of cc_model_filenames")
    with_plans = {plan.parents[1].name for plan in plans}
    allowed = {name: set(config.cc_model_filenames) for name, config in configs.items() if name not in with_plans}
    for plan in plans:
        config = configs[plan.parents[1].name]
        ones = allowed.setdefault(f"{plan.parents[1].name}/{plan.parent.name}", set(config.cc_model_filenames))
        is_default = not config.cc_model_filenames or plan.name == find_default_plan(config)
        if not (is_default and passport_path(plan).is_file()):
            continue
        passport = read_passport(plan)
        if passport.hardware_compatibility == "ampere-plus":
            ones.add(_AMPERE)
        elif not config.cc_model_filenames:
            ones.add(passport.gpu["compute_capability"])
    allowed = {name: ones for name, ones in allowed.items() if ones}  # nothing is known of the others
    common = {one for one in set().union(*allowed.values()) if all(_runs(one, ones) for ones in allowed.values())}
    if allowed and not common:
        what = "; ".join(f"{name}: {', '.join(sorted(ones, key=_number))}" for name, ones in sorted(allowed.items()))
        msg = f"no GPU runs every plan of {root}, which were built for the compute capabilities {what}"
        raise DeployError(msg, hint="build all of them for one GPU, or serve them from repositories of their own")
    is_ampere = _AMPERE in common
    named = (one for one in common - {_AMPERE} if not (is_ampere and _runs(one, {_AMPERE})))
    return tuple(sorted(named, key=_number)), is_ampere


def _runs(capability: str, allowed: Collection[str]) -> bool:
    """Say whether GPUs of a compute capability, or all of 8.0 and later, are among those that are allowed."""
    return capability in allowed or (_AMPERE in allowed and _number(capability) >= (8, 0))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split(".") if part.isdecimal())


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
