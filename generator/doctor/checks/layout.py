"""Folders, versions and files of one model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from generator.doctor.backends import FILES, PLATFORMS
from generator.doctor.finding import Finding, at_path, in_config
from generator.doctor.onnx_header import LFS
from generator.doctor.repository import is_file, is_folder, is_missing
from generator.rules import BY_ID
from generator.rules.releases import FIELDS, RELEASES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from generator.doctor.repository import ConfiguredModel, ModelFolder, ModelRepository

# a library in the backend's own folder, or model.py of a Python-based backend
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_LIKE_A_VERSION = re.compile(r"v?\d[\w.-]*")
_LARGEST_LABELS_BYTES = 16 << 20
_RUNTIME = re.compile(r"libtriton_\w+\.so|model\.py")


def check_readable(model: ModelFolder) -> Iterator[Finding]:
    """Say why a configuration cannot be read."""
    fault = model.fault
    if fault is None:
        return
    if fault.line is None:
        yield at_path(model, "layout-unreadable", model.config_path, path=model.config_path, detail=fault.detail)
        return
    field = next((name for name in FIELDS if f'no field named "{name}"' in fault.detail), None)
    unknown = "no field named" in fault.detail and field is None
    either = f" (misspelt, or of a release after {RELEASES[-1].name}, the last one known)" if unknown else ""
    values = {"path": model.config_path, "detail": f"line {fault.line}: {fault.detail}{either}", "field": field}
    rule = BY_ID["config-field-newer" if field else "config-syntax"]
    yield Finding(rule=rule, model=model.name, path=model.config_path, line=fault.line, values=values)


def check_names(repository: ModelRepository) -> Iterator[Finding]:
    """Check the names of all models together."""
    seen: dict[str, str] = {}
    for model in repository.models.values():
        if not model.name.startswith(".") and not _NAME.fullmatch(model.name):
            yield at_path(model, "layout-name-characters", model.path, name=model.name)
        other = seen.setdefault(model.name.lower(), model.name)
        if other != model.name:
            yield at_path(model, "layout-case-twins", model.path, name=model.name, other=other)


def check_layout(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    """Check names, versions and files of a folder of the repository's root."""
    if model.text is None and not model.versions:
        yield at_path(model, "layout-no-config", model.path, name=model.name, folder=model.path)
        return
    config = model.config
    if config.name not in ("", model.name):
        yield in_config(model, "layout-other-name", "name", folder=model.name, name=config.name)
    for entry in model.entries:
        if is_folder(entry) and _LIKE_A_VERSION.fullmatch(entry.name) and entry.name not in map(str, model.versions):
            yield at_path(model, "layout-version-ignored", model.path / entry.name, name=entry.name)
    if backend != "ensemble" and not model.served_versions:
        detail = f"it has {', '.join(map(str, model.versions))}" if model.versions else "it has none"
        yield at_path(model, "layout-no-version", model.path, detail=detail)
        return
    if not backend and not config.platform and not config.model_repository_agents.agents:
        yield in_config(model, "backend-unstated")
    yield from _check_platform(model, backend)
    yield from _check_labels(model)
    yield from _check_warmup(model)
    yield from _check_model_files(model, backend)


def _check_platform(model: ConfiguredModel, backend_of: str) -> Iterator[Finding]:
    config = model.config
    if backend_of == "tensorflow":
        yield in_config(model, "backend-removed", "backend" if config.backend else "platform", backend=backend_of)
    platform, backend = config.platform, config.backend
    if platform not in ("", "ensemble"):
        own = PLATFORMS.get(platform)
        # a backend that core does not know may have any platform
        if own != backend if backend in PLATFORMS.values() else not backend and own is None:
            yield in_config(model, "platform-unknown", "platform", platform=platform, backend=backend)
    # libtorch's files name no tensors
    for kind in ("input", "output"):
        if backend_of == "pytorch" and not getattr(config, kind):
            yield in_config(model, "network-no-output", kind=kind)
    if config.runtime and not _RUNTIME.fullmatch(config.runtime):
        yield in_config(model, "backend-library", "runtime", name=config.runtime)


def _check_labels(model: ConfiguredModel) -> Iterator[Finding]:
    for index, tensor in enumerate(model.config.output):
        name = tensor.label_filename
        if not name:
            continue
        path = model.path / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            yield in_config(model, "label-outside", "output", index, "label_filename", path=name)
        if not is_file(path):
            yield in_config(model, "layout-named-file-missing", "output", index, "label_filename", path=path)
        elif len(tensor.dims) == 1 and tensor.dims[0] > 1 and path.stat().st_size <= _LARGEST_LABELS_BYTES:
            found = _count_lines(path)
            if found not in (None, tensor.dims[0]):
                values = {"path": path, "found": found, "tensor": tensor.name, "expected": tensor.dims[0]}
                yield in_config(model, "labels-count", "output", index, "label_filename", **values)


def _count_lines(path: Path) -> int | None:
    try:
        return len(path.read_bytes().splitlines())
    except OSError:
        return None


def _check_warmup(model: ConfiguredModel) -> Iterator[Finding]:
    for index, sample in enumerate(model.config.model_warmup):
        for tensor in sample.inputs.values():
            path = model.path / "warmup" / tensor.input_data_file
            if tensor.input_data_file and is_missing(path):
                yield in_config(model, "warmup-file-missing", "model_warmup", index, path=path)


def _check_model_files(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    config = model.config
    wanted = config.default_model_filename or FILES.get(backend)
    for version in model.served_versions:
        folder = model.path / str(version)
        path = folder / wanted if wanted and not config.cc_model_filenames else None
        if path is not None and is_missing(path):
            yield at_path(model, "layout-no-model-file", path, path=path)
        yield from _check_links(model, [folder, *([path] if path else [])])


def _check_links(model: ConfiguredModel, paths: Iterable[Path]) -> Iterator[Finding]:
    """Find links that lead out of the repository; another model of it may well hold the file."""
    root = os.path.realpath(model.path.parent)
    for path in paths:
        target = Path(os.path.realpath(path))  # not Path.resolve, which raises for links that lead in a circle
        if os.path.islink(path) and not target.is_relative_to(root):  # noqa: PTH114 - as in is_file
            yield at_path(model, "layout-link-outside", path, path=path, target=target)


def check_contents(model: ConfiguredModel) -> Iterator[Finding]:
    """Find files of served versions that Git left behind in place of large ones, and those that cannot be read."""
    for version in model.served_versions:
        folder = model.path / str(version)
        try:
            paths = sorted(path for path in folder.iterdir() if is_file(path))
        except OSError as error:
            yield at_path(model, "layout-unreadable", folder, path=folder, detail=error.strerror)
            continue
        for path in paths:
            try:
                with path.open("rb") as file:
                    start = file.read(len(LFS))
            except OSError as error:
                yield at_path(model, "layout-unreadable", path, path=path, detail=error.strerror)
                continue
            if start == LFS:
                yield at_path(model, "layout-git-lfs", path, path=path)
