"""`trtgen merge`: builds of the same models for GPUs of different compute capabilities become one repository.

Nothing is built, rendered or proved here, so that neither a GPU nor TensorRT is needed: every file is one of a build,
as it was proved there. New are the plans' names, what config.pbtxt says of these, and the record.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from generator.errors import RepositoryError, near
from generator.files import hash_bytes
from generator.packages import made_by
from generator.plan.choice import PLAN_FILE, sort_capabilities
from generator.plan.passport import passport_path
from generator.repository import Change, Layout, Record, find_records, plan_changes, publish, read_record, recover
from generator.repository.builds import (
    CONFIG_FILE,
    at_version,
    check_builds,
    find_newest,
    leave_out_repeated,
    read_builds,
)
from generator.repository.edits import check_edits, find_damaged
from generator.repository.journal import lock, staging
from generator.repository.layout import next_version, numeric_versions
from generator.repository.publish import check_contract, check_owner, hash_tree
from generator.triton.check import parse_config
from generator.triton.plans import state_plans

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from generator.repository.builds import Build

_LOG = logging.getLogger(__name__)
_GIVE = "give the folder that the models were published into"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became of one model; `plans` are those of `Record.plans`."""

    name: str
    version: int
    changes: tuple[Change, ...]
    plans: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()


def merge_repositories(
    sources: Sequence[Path],
    root: Path,
    *,
    models: Sequence[str] = (),
    replace: bool = False,
    discard_edits: bool = False,
) -> list[Merged]:
    """Publish below `root` what is built in `sources`: each model once, with the plans of all of them.

    A source may be the result of an earlier merge, also `root` itself. Everything is compared before anything is
    published.

    Args:
        sources: Model repositories. The configurations are those of the first.
        root: The repository of the result; made where it is not there.
        models: Which of the models, by their public names; all where none is named.
        replace: Remove the published versions of a model with another contract.
        discard_edits: Overwrite published files that somebody edited.

    Raises:
        RepositoryError: The builds are not of the same models, a source was changed, or `root` cannot take them.
        PlanError: A passport cannot be read.
    """
    _check_sources(sources)
    for folder in (*sources, root):
        for line in recover(folder):
            _LOG.warning("%s", line)
    with ExitStack() as locks:
        for source in sources:
            if source.resolve() != root.resolve():
                locks.enter_context(lock(source))
        try:
            builds = {name: _read(sources, name) for name in _find_names(sources, models)}
            notes = {name: check_builds(of_one) for name, of_one in builds.items()}
            builds = {name: leave_out_repeated(of_one) for name, of_one in builds.items()}
        except OSError as error:
            msg = f"{error.filename} cannot be read: {error.strerror}"
            raise RepositoryError(msg, hint="let this user read every file of the repositories") from error
        return [
            _merge(of_one, sources, root, notes=notes[name], replace=replace, discard_edits=discard_edits)
            for name, of_one in builds.items()
        ]


def _check_sources(sources: Sequence[Path]) -> None:
    if len({source.resolve() for source in sources}) < 2:
        msg = f"two repositories were expected at least, and there is {sources[0] if sources else 'none'}"
        raise RepositoryError(msg, hint="give one for each compute capability")
    for source in sources:
        if not source.is_dir():
            msg = f"there is no model repository at {source}"
            raise RepositoryError(msg, hint=_GIVE)


def _find_names(sources: Sequence[Path], models: Sequence[str]) -> list[str]:
    """Return the models to merge: they are in every source.

    Raises:
        RepositoryError: One is not.
    """
    found = {source: [record.name for record in find_records(source)] for source in sources}
    every = list(dict.fromkeys(name for names in found.values() for name in names))
    for name in models or every:
        for source, names in found.items():
            if name not in names:
                msg = f"{source} holds no model {name!r} made by trtgen; it has {', '.join(names) or 'none'}"
                meant = near(name, names, most=1) if name in models else []
                hint = f"did you mean {meant[0]}?" if meant else "build it there, too, or name the models to merge"
                raise RepositoryError(msg, hint=hint, fields={"models": None})
    if not every:
        msg = f"{sources[0]} holds no model made by trtgen"
        raise RepositoryError(msg, hint=_GIVE)
    return list(dict.fromkeys(models or every))


def _read(sources: Sequence[Path], name: str) -> list[Build]:
    builds = []
    for source in sources:
        record = read_record(source, name)
        assert record is not None, "it was found there"
        builds += read_builds(source, record)
    return builds


def _merge(
    builds: Sequence[Build],
    sources: Sequence[Path],
    root: Path,
    *,
    notes: Sequence[str],
    replace: bool,
    discard_edits: bool,
) -> Merged:
    first = builds[0].record
    plans = _sort_plans({build.plan_file: build for build in builds})
    config = _make_config(builds[0], plans)
    inputs = _fingerprint(builds[0], plans, config)
    described = {name: dict(build.origin) for name, build in plans.items()}
    old = read_record(root, first.name)
    if old is not None and old.inputs == inputs and not find_damaged(root, old.files):
        paths = (*old.files, str(Layout.of_record(old).record))
        same = tuple(Change(word="identical", path=path) for path in paths)
        return Merged(name=first.name, version=old.version, changes=same, plans=old.plans)
    contract = {**first.contract, "plans": "one for each compute capability"}
    with staging(root) as staged:
        old = read_record(root, first.name)  # again, now that nobody else can write
        version = _choose_version(root, old, inputs, Layout.of_record(first).models)
        layout = _at_version(first, version)
        check_owner(root, layout, old)
        check_contract(old, contract, replace=replace)
        if old is not None and not replace:
            _check_hosts(old, plans)
        if not replace:
            _check_older_versions(root, first, layout, plans)
        if old is not None and not discard_edits:
            check_edits(root, old, removing=replace)
        _stage(builds[0], plans, staged, layout, config=config, artifact=inputs["artifact"])
        record = first.model_copy(
            update={
                "made_by": made_by(),
                "command": f"trtgen merge {shlex.join(map(str, sources))} --output {shlex.quote(root.resolve().name)}",
                "version": version,
                "inputs": inputs,
                "contract": contract,
                "plan": {"tensorrt": find_newest(builds).passport.tensorrt, "precision": builds[0].passport.precision},
                "proof": _merge_proofs(plans.values()),
                "files": hash_tree(staged),
                "plans": described,
            }
        )
        (staged / layout.record).write_text(record.to_json(), encoding="utf-8")
        replaced = Layout.of_record(old) if replace and old is not None else None
        changes = plan_changes(root, staged, layout, old, replace=replaced is not None)
        publish(root, layout, changes, replaced=replaced)
    return Merged(name=first.name, version=version, changes=tuple(changes), plans=described, notes=tuple(notes))


def _sort_plans(plans: Mapping[str, Build]) -> dict[str, Build]:
    """Return the plans in the order of compute capabilities, whatever that of the sources; the default one is last."""
    by_capability = {build.origin["compute_capability"]: name for name, build in plans.items() if name != PLAN_FILE}
    names = [by_capability[capability] for capability in sort_capabilities(by_capability)]
    return {name: plans[name] for name in (*names, *([PLAN_FILE] if PLAN_FILE in plans else []))}


def _make_config(build: Build, plans: Mapping[str, Build]) -> str:
    """Return the config.pbtxt of the model that runs the plans."""
    name = Layout.of_record(build.record).network
    text = build.find(PurePosixPath(name, CONFIG_FILE)).read_text(encoding="utf-8")
    for_capability = {one.origin["compute_capability"]: file for file, one in plans.items() if file != PLAN_FILE}
    config = state_plans(text, for_capability, has_default=PLAN_FILE in plans)
    parse_config(name, config)
    return config


def _fingerprint(build: Build, plans: Mapping[str, Build], config: str) -> dict[str, str]:
    """Return the hashes `artifact`, of what a version holds, and `configuration`, of everything else."""
    layout = Layout.of_record(build.record)
    found = build.contents
    versioned = {str(path): digest for path, digest in found.items() if layout.is_versioned(path)}
    versioned |= {name: one.record.files[one.plan.relative_to(one.root).as_posix()] for name, one in plans.items()}
    others = {str(path): digest for path, digest in found.items() if not layout.is_versioned(path)}
    others[f"{layout.network}/{CONFIG_FILE}"] = hash_bytes(config.encode())
    return {"artifact": _hash_json(versioned), "configuration": _hash_json({"made_by": made_by(), "files": others})}


def _hash_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _choose_version(root: Path, old: Record | None, inputs: Mapping[str, str], models: Sequence[str]) -> int:
    """Return the published version where it holds the same, else the next one."""
    if old is not None and old.inputs["artifact"] == inputs["artifact"]:
        layout = Layout.of_record(old)
        versioned = {path: one for path, one in old.files.items() if layout.is_versioned(PurePosixPath(path))}
        if not find_damaged(root, versioned):
            return old.version
    return next_version(root, models)


def _at_version(record: Record, version: int) -> Layout:
    return Layout.of_record(record.model_copy(update={"version": version}))


def _check_hosts(old: Record, plans: Mapping[str, Build]) -> None:
    """Refuse to take their plan from hosts that have one now.

    Raises:
        RepositoryError: Names their compute capabilities.
    """
    if lost := [one for name, one in old.plans.items() if name not in plans]:
        gpus = ", ".join(f"{one['compute_capability']} ({one['gpu']})" for one in lost)
        msg = f"{old.name} is published with a plan for {gpus}, which is in none of the repositories"
        hint = "give that build, too, or replace the published versions, which removes them"
        raise RepositoryError(msg, hint=hint, fields={"replace": True})


def _check_older_versions(root: Path, record: Record, layout: Layout, plans: Mapping[str, Build]) -> None:
    """Refuse a configuration that names plans which an older version, served beside the new one, does not have.

    Raises:
        RepositoryError: Names the version.
    """
    listed = record.spec["versions"]
    if isinstance(listed, list):
        msg = f"{record.name} serves the versions {listed}: those numbers are of where it was built"
        raise RepositoryError(msg, hint="build it with a number of versions, or with all of them")
    older = [number for number in numeric_versions(root / layout.network) if number != layout.version]
    for number in older if listed == "all" else older[max(len(older) + 1 - listed, 0) :]:
        folder = root / layout.network / str(number)
        if missing := [name for name in plans if not (folder / name).is_file()]:
            msg = f"{folder} is served, too (versions: {listed}), and has no {missing[0]}"
            hint = "build with versions: 1, or replace the published versions, which removes them"
            raise RepositoryError(msg, hint=hint, fields={"replace": True})


def _stage(
    build: Build, plans: Mapping[str, Build], staged: Path, layout: Layout, *, config: str, artifact: str
) -> None:
    """Write the tree: copies, since a link to a file that somebody edits there would change what is published here."""
    for path in build.contents:
        copied = at_version(path, layout.version) if layout.is_versioned(path) else path
        _copy(build.find(path), staged / copied)
    for name, one in plans.items():
        target = staged / layout.plan.with_name(name)
        _copy(one.plan, target)
        _copy(passport_path(one.plan), passport_path(target))
    (staged / layout.network / CONFIG_FILE).write_text(config, encoding="utf-8")
    facts = {"made_by": made_by(), "source": build.record.description, "artifact": artifact}
    for model in layout.models:
        folder = staged / model / str(layout.version)
        if not folder.exists():  # an ensemble's, which holds nothing else
            folder.mkdir(parents=True)
            (folder / "version.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _merge_proofs(builds: Iterable[Build]) -> list[dict[str, Any]]:
    """Return the stages of all builds: proved is what was proved of each, and where."""
    stages: dict[str, list[tuple[Build, Mapping[str, Any]]]] = {}
    for build in builds:
        for entry in build.origin["proof"]:
            stages.setdefault(entry["stage"], []).append((build, entry))
    merged = []
    for stage, found in stages.items():
        worst = min((entry["status"] for _, entry in found), key=("not proved", "assumed", "proved").index)
        said: dict[str, list[str]] = {}
        for build, entry in found:
            if entry["status"] == worst:
                said.setdefault(entry.get("reason", ""), []).append(_name(build))
        words = "; ".join(": ".join(filter(None, (", ".join(where), why))) for why, where in said.items())
        merged.append({"stage": stage, "status": worst, "where" if worst == "proved" else "reason": words})
    # of a build with --no-verify there is one entry, and nothing is proved of the whole then
    unproved = [entry for entry in merged if (entry["stage"], entry["status"]) == ("all", "not proved")]
    return unproved or merged


def _name(build: Build) -> str:
    return f"{build.origin['gpu']} ({build.origin['compute_capability']})"
