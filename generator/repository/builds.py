"""Builds of one model on different GPUs, as their repositories have them, and whether they are of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from generator.errors import RepositoryError
from generator.plan.choice import PLAN_FILE, name_plan
from generator.plan.library import TensorRTVersion
from generator.plan.passport import read_passport
from generator.repository import Layout
from generator.repository.edits import find_damaged
from generator.triton.check import parse_config
from generator.triton.plans import leave_plans_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from generator.plan.passport import Passport
    from generator.repository import Record

CONFIG_FILE = "config.pbtxt"
# Made anew for what is merged; what it says is in the records.
_DESCRIPTION = "version.json"
_RECOPY = "build the model there again, or copy the whole repository again"
# How a model runs, which its answers do not depend on.
_OF_THE_HOST = ("instance_group", "dynamic_batching", "optimization")
_FROM_ONE = "export the model once, and build it from that export on every host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One plan of a model in the repository `root`, and what its record says of it: an entry of `Record.plans`."""

    root: Path
    record: Record
    plan: Path
    passport: Passport
    origin: Mapping[str, Any]

    @property
    def plan_file(self) -> str:
        """What the plan is called beside others: the default where it runs on several compute capabilities."""
        if self.passport.hardware_compatibility == "ampere-plus":
            return PLAN_FILE
        return name_plan(self.passport.gpu["compute_capability"])

    @property
    def contents(self) -> dict[PurePosixPath, str]:
        """The hashes of the files that are the same in every build, by their path; versions are called `1` there."""
        layout = Layout.of_record(self.record)
        plans = {str(layout.plan.with_name(name)) for name in self.record.plans or (layout.plan_file,)}
        left_out = {*plans, *(f"{plan}.json" for plan in plans)}
        found = {}
        for text, digest in self.record.files.items():
            path = PurePosixPath(text)
            if text in left_out or path.name == _DESCRIPTION:
                continue
            if not layout.is_versioned(path):
                found[path] = digest
            elif path.parts[1] == str(self.record.version):
                found[at_version(path, 1)] = digest
        return found

    def find(self, path: PurePosixPath) -> Path:
        """Return where a file of `contents` lies."""
        layout = Layout.of_record(self.record)
        return self.root / (at_version(path, self.record.version) if layout.is_versioned(path) else path)


def at_version(path: PurePosixPath, version: int) -> PurePosixPath:
    """Return the path of the same file in another version directory."""
    return PurePosixPath(path.parts[0], str(version), *path.parts[2:])


def read_builds(root: Path, record: Record) -> list[Build]:
    """Return the builds of a model in a repository: one, or those that were merged there.

    Raises:
        RepositoryError: It has no plan, or a file is gone or is not what was published.
        PlanError: A passport cannot be read.
    """
    if record.contract["backend"] != "tensorrt":
        msg = f"{record.name} of {root} has no plan: its graph is served by onnxruntime, on any host"
        raise RepositoryError(msg, hint="name the models that have plans", fields={"models": None})
    if damaged := find_damaged(root, record.files):
        msg = f"{root / damaged[0]} is missing, or is not what was published there"
        raise RepositoryError(msg, hint=_RECOPY)
    layout = Layout.of_record(record)
    builds = []
    for name in record.plans or (layout.plan_file,):
        plan = root / layout.plan.with_name(name)
        passport = read_passport(plan)
        origin = record.plans.get(name) or _describe(root, record, passport)
        builds.append(Build(root=root, record=record, plan=plan, passport=passport, origin=origin))
    return builds


def _describe(root: Path, record: Record, passport: Passport) -> dict[str, Any]:
    return {
        "compute_capability": passport.gpu["compute_capability"],
        "gpu": passport.gpu["name"],
        "hardware_compatibility": passport.hardware_compatibility,
        "tensorrt": passport.tensorrt,
        "bytes": passport.plan_bytes,
        "repository": str(root),
        "version": record.version,
        "made_by": record.made_by,
        "command": record.command,
        "artifact": record.inputs["artifact"],
        "proof": list(record.proof),
    }


def check_builds(builds: Sequence[Build]) -> list[str]:
    """Compare the builds of one model; return what differs in how they run, which is then that of the first.

    Raises:
        RepositoryError: They are not of the same model, or cannot be served together.
    """
    first, *others = builds
    notes: list[str] = []
    for other in others:
        if other.root == first.root:  # merged before
            continue
        if differences := list(_find_differences(first, other)):
            where = f"{first.record.name} is not the same in {first.root} and {other.root}"
            raise RepositoryError(f"{where}:\n  " + "\n  ".join(differences), hint=_FROM_ONE)
        notes += _list_settings(first, other)
    _check_capabilities(builds)
    _check_versions(builds)
    return list(dict.fromkeys(notes))


def _find_differences(one: Build, other: Build) -> Iterator[str]:
    """Yield what differs and must not: first what the model is, then how the plans take it, then the files."""
    contracts = [{**build.record.contract, "plans": None} for build in (one, other)]
    pairs = {
        "source": (one.record.description, other.record.description),
        "task": tuple(build.record.spec.get("task", "classification") for build in (one, other)),
        **{key: (contracts[0].get(key), contracts[1].get(key)) for key in sorted({*contracts[0], *contracts[1]})},
        "recipe": (one.record.recipe.model_dump(), other.record.recipe.model_dump()),
        "what was put behind the network": (one.record.head, other.record.head),
        "precision": (one.passport.precision, other.passport.precision),
        "inputs of the plan": (one.passport.inputs, other.passport.inputs),
        "outputs of the plan": (one.passport.outputs, other.passport.outputs),
        "optimization profiles": (one.passport.profiles, other.passport.profiles),
    }
    differences = [f"{what}: {_shorten(first, second)}" for what, (first, second) in pairs.items() if first != second]
    yield from differences
    for path, first, second in _find_different_files(one, other):
        if path.name == CONFIG_FILE and first and second:
            yield from _compare_configs(path, one, other)
        elif not differences:  # where the model is another one, its files follow from that
            yield f"{path}: " + ("its content" if first and second else f"only in {(one if first else other).root}")


def _shorten(first: object, second: object) -> str:
    """Return two values in one line; of what is long, the parts that differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        parts = [key for key in first if first[key] != second.get(key)]
        return ", ".join(f"{key} {first[key]} -> {second.get(key)}" for key in parts)
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        place = next(index for index, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
        return f"number {place} is {first[place]!r} -> {second[place]!r}"
    texts = [text if len(text) <= 160 else f"{text[:157]}..." for text in map(str, (first, second))]
    return " -> ".join(texts)


def _find_different_files(one: Build, other: Build) -> Iterator[tuple[PurePosixPath, str | None, str | None]]:
    first, second = one.contents, other.contents
    for path in sorted({*first, *second}):
        if first.get(path) != second.get(path):
            yield path, first.get(path), second.get(path)


def _read_config(build: Build, path: PurePosixPath) -> Any:
    """Return a configuration without the plans that it names."""
    text = build.find(path).read_text(encoding="utf-8")
    return parse_config(path.parts[0], leave_plans_out(text))


def _find_other_fields(path: PurePosixPath, one: Build, other: Build) -> Iterator[tuple[str, Any, Any]]:
    first, second = (_read_config(build, path) for build in (one, other))
    for field in first.DESCRIPTOR.fields_by_name:
        ours, theirs = getattr(first, field), getattr(second, field)
        if ours != theirs:
            yield field, ours, theirs


def _compare_configs(path: PurePosixPath, one: Build, other: Build) -> Iterator[str]:
    """Yield the fields that differ and must not."""
    for field, ours, theirs in _find_other_fields(path, one, other):
        if field == "parameters":
            for key in sorted({*ours, *theirs}):
                values = [found[key].string_value if key in found else None for found in (ours, theirs)]
                if values[0] != values[1]:
                    yield f"{path}: the parameter {key}: {values[0]} -> {values[1]}"
        elif field not in _OF_THE_HOST:
            yield f"{path}: {field}"


def _list_settings(one: Build, other: Build) -> Iterator[str]:
    """Yield what differs and may: the number of instances, by default, follows from the host's cores."""
    for path, first, second in _find_different_files(one, other):
        if path.name == CONFIG_FILE and first and second:
            for field, _, _ in _find_other_fields(path, one, other):
                if field in _OF_THE_HOST:
                    yield f"{path.parts[0]}: {field} is that of {one.root}; {other.root} has another"


def _check_capabilities(builds: Sequence[Build]) -> None:
    """Refuse two plans for the same GPUs.

    Raises:
        RepositoryError: Names both.
    """
    taken: dict[str, Build] = {}
    for build in builds:
        other = taken.setdefault(build.plan_file, build)
        if other.passport.plan_sha256 == build.passport.plan_sha256:
            continue
        is_default = build.plan_file == PLAN_FILE
        what = "GPUs of 8.0 and later" if is_default else f"compute capability {build.origin['compute_capability']}"
        gpus = " and ".join(dict.fromkeys([other.origin["gpu"], build.origin["gpu"]]))
        msg = f"both {other.root} and {build.root} hold a plan of {build.record.name} for {what} (built on {gpus})"
        hint = "leave one of them out"
        if not is_default:
            hint += "; plan.hardware_compatibility: same-compute-capability makes one for all GPUs of it"
        raise RepositoryError(msg, hint=hint)


def leave_out_repeated(builds: Sequence[Build]) -> list[Build]:
    """Return each plan once: the build of one that was merged before may be given again."""
    return [*{build.plan_file: build for build in reversed(builds)}.values()][::-1]


def find_newest(builds: Sequence[Build]) -> Build:
    """Return the build with the newest TensorRT, which a server of all of them needs."""
    return max(builds, key=lambda build: TensorRTVersion.parse(build.passport.tensorrt))


def _check_versions(builds: Sequence[Build]) -> None:
    """Refuse plans that no single TensorRT loads.

    Raises:
        RepositoryError: Names two of them with their versions.
    """
    newest = find_newest(builds)
    serves = TensorRTVersion.parse(newest.passport.tensorrt)
    for build in builds:
        is_same = TensorRTVersion.parse(build.passport.tensorrt).same_plans(serves)
        if not (is_same or build.passport.is_version_compatible):
            msg = f"{build.record.name}: no server loads both plans: {build.root} has one of TensorRT "
            msg += f"{build.passport.tensorrt}, {newest.root} one of {newest.passport.tensorrt}"
            hint = "build them with the same TensorRT: the one that serves them"
            raise RepositoryError(msg, hint=hint)
