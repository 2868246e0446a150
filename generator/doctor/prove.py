"""Core's own judgement of every configuration, by a real tritonserver without a GPU, against what doctor found.

Nothing of the repository runs: the server gets copies of the configurations and label files, version folders without a
file, and one backend, which does nothing, under the name of each that is asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.doctor.backends import find_backend
from generator.doctor.checks.tensors import COMPLETED
from generator.doctor.examine import examine
from generator.doctor.finding import Finding
from generator.doctor.repository import CONFIG, ConfiguredModel, ModelFolder, ModelRepository, is_file
from generator.doctor.stand_in import make_stand_in
from generator.errors import ServerError
from generator.rules import BY_ID
from generator.rules.words import find_rule
from generator.server.embedded import EmbeddedServer
from generator.server.failures import find_loaded, read_failures, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVER_RELEASE = "24.10"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # of models and backends; the pip server takes no other path
_LARGEST_COPIED_BYTES = 16 << 20
_ALSO = {"backend-unstated": "layout-no-config"}  # of a folder without a configuration, which a backend may complete
_OF_MEMBERS = ("ensemble-member-failed", "ensemble-members-absent")
_START_S, _MODEL_S = 60, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What became of every model.

    Attributes:
        disagreements: Where doctor and server say different things.
        agreed: The rule by which both refuse a model; None where both take it.
        not_judged: Why the server did not judge a model.
    """

    disagreements: list[Finding] = field(default_factory=list)
    agreed: dict[str, str | None] = field(default_factory=dict)
    not_judged: dict[str, str] = field(default_factory=dict)


def prove(repository: ModelRepository) -> Proof:
    """Let tritonserver judge every configuration, by the rules of its release.

    Raises:
        MissingDependencyError: The pip server is not installed.
        ServerError: It cannot run here.
    """
    not_judged: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="trtgen-prove-") as folder:
        models = Path(folder) / "models"
        backends = Path(folder) / "backends"
        for model in repository.models.values():
            if reason := _find_obstacle(model):
                not_judged[model.name] = reason
            else:
                _copy_model(model, models / model.name, backends)
        served = any(models.glob(f"*/{CONFIG}"))
        log = _run_server(models, backends, Path(folder) / "server.log") if served else ""
        log = log.replace(str(models), str(repository.root))
    return compare(repository, examine(repository, SERVER_RELEASE), log, not_judged)


def compare(repository: ModelRepository, findings: Sequence[Finding], log: str, not_judged: Mapping[str, str]) -> Proof:
    """Compare what was found for the server's release with what its log says of each model."""
    refused: dict[str, str] = {}
    for name, said, _ in read_failures(log):
        refused.setdefault(name, said)
    loaded = find_loaded(log)
    proof = Proof(not_judged=dict(not_judged))
    words: str | None
    for model in repository.models.values():
        if model.name in not_judged:
            continue
        expected = {one.rule.id for one in findings if one.model == model.name and _is_core(one)}
        words = refused.get(model.name)
        known = find_rule(words, model=model.name) if words is not None else None
        rule = known[0].id if known else None
        if rule in _OF_MEMBERS and rule not in expected:
            proof.not_judged[model.name] = "a member of it is not served there"
        elif words is None and model.name not in loaded:
            proof.not_judged[model.name] = "the server ended before it was loaded"
        elif (words is None and not expected) or {rule, _ALSO.get(rule or "")} & expected:
            proof.agreed[model.name] = rule
        elif words is None:
            proof.disagreements.append(_disagree(model, "server-accepts", found=", ".join(sorted(expected))))
        else:
            proof.disagreements.append(_disagree(model, "server-refuses", words=shorten(words)))
    return proof


def _is_core(finding: Finding) -> bool:
    return finding.severity == "error" and "core" in finding.rule.seen_in


def _disagree(model: ModelFolder, rule: str, **values: object) -> Finding:
    values["release"] = SERVER_RELEASE
    return Finding(rule=BY_ID[rule], model=model.name, path=model.config_path, values=values)


def _find_obstacle(model: ModelFolder) -> str | None:
    """Return why the server cannot judge a model."""
    if not _NAME.fullmatch(model.name):
        return "its name holds a character that the pip server does not take in a path"
    if not isinstance(model, ConfiguredModel):
        is_text = model.fault is not None and model.fault.line is not None and is_file(model.config_path)
        return None if is_text and _is_copied(model.config_path) else "its configuration cannot be read"
    config, backend = model.config, find_backend(model)
    stated = all(one.dims and one.data_type for one in (*config.input, *config.output))
    obstacles = {
        "it has repository agents, whose libraries are not here": bool(config.model_repository_agents.agents),
        "a label file lies outside its folder, and is not copied": any(
            ".." in Path(one.label_filename).parts for one in config.output
        ),
        "a label file is too large or cannot be read, and is not copied": not all(
            _is_copied(path) for path in _find_labels(model)
        ),
        "the name of its backend is not one of a folder": not all(
            _NAME.fullmatch(name) for name in (backend, config.backend) if name
        ),
        f"it leaves to the backend {backend} to fill in its tensors": backend in COMPLETED and not stated,
    }
    return next((reason for reason, there in obstacles.items() if there), None)


def _copy_model(model: ModelFolder, target: Path, backends: Path) -> None:
    target.mkdir(parents=True)
    for version in model.versions:
        (target / str(version)).mkdir()
    if not isinstance(model, ConfiguredModel):
        shutil.copyfile(model.config_path, target / CONFIG)
        return
    if model.text is None and not model.versions:
        return
    config = _change_config(model)
    if config.backend:
        library = backends / config.backend / f"libtriton_{config.backend}.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        library.write_bytes(make_stand_in())
    _copy_labels(model, target)
    _write_config(config, target / CONFIG)


def _change_config(model: ConfiguredModel) -> Any:
    """Return the configuration without what a host or a backend has to do with."""
    config = type(model.config)()
    config.CopyFrom(model.config)
    backend = find_backend(model)
    if backend != "ensemble" and not config.backend and (backend or not config.platform):
        config.backend = backend
    config.ClearField("model_warmup")  # a backend that does nothing answers no request
    for group in config.instance_group:
        group.count = min(group.count, 1)
        if group.kind in (group.KIND_GPU, group.KIND_AUTO):
            group.kind = group.KIND_CPU
            del group.gpus[:]
        del group.secondary_devices[:]
    if config.runtime in ("model.py", f"libtriton_{config.backend}.so"):
        config.ClearField("runtime")
    return config


def _copy_labels(model: ConfiguredModel, target: Path) -> None:
    for source in _find_labels(model):
        copy = target / source.relative_to(model.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def _find_labels(model: ConfiguredModel) -> list[Path]:
    """Return the label files that are there, in the model's folder."""
    names = [Path(output.label_filename) for output in model.config.output if output.label_filename]
    inside = [model.path / name for name in names if not name.is_absolute() and ".." not in name.parts]
    return [path for path in inside if is_file(path)]


def _is_copied(path: Path) -> bool:
    return os.access(path, os.R_OK) and path.stat().st_size <= _LARGEST_COPIED_BYTES


def _write_config(config: Any, path: Path) -> None:
    from google.protobuf import text_format

    path.write_text(text_format.MessageToString(config), encoding="utf-8")


def _run_server(models: Path, backends: Path, log: Path) -> str:
    """Return the log of a server that loads every model it can."""
    backends.mkdir(exist_ok=True)
    wait_s = _START_S + _MODEL_S * len(list(models.iterdir()))
    server = EmbeddedServer(models, log_path=log, backends=backends, ready_timeout_s=wait_s)
    try:
        with server:
            pass
    except ServerError:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if not any(read_failures(text)):  # it did not come so far as to refuse a model
            raise
        return text
    return log.read_text(encoding="utf-8", errors="replace")
