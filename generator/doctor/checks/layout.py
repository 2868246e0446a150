"""Folders, versions and files of one model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.doctor.backends import FILES, PLATFORMS
from generator.doctor.finding import Finding, at_path, in_config
from generator.rules import BY_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.repository import ConfiguredModel, ModelFolder

# a library in the backend's own folder, or model.py of a Python-based backend
_RUNTIME = re.compile(r"libtriton_\w+\.so|model\.py")


def check_readable(model: ModelFolder) -> Iterator[Finding]:
    """Say why a configuration cannot be read."""
    fault = model.fault
    if fault is not None:
        values = {"path": model.config_path, "detail": f"line {fault.line}: {fault.detail}"}
        rule = BY_ID["config-syntax"]
        yield Finding(rule=rule, model=model.name, path=model.config_path, line=fault.line, values=values)


def check_layout(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    """Check names, versions and files of a folder of the repository's root."""
    if model.text is None and not model.versions:
        yield at_path(model, "layout-no-config", model.path, name=model.name, folder=model.path)
        return
    config = model.config
    if config.name not in ("", model.name):
        yield in_config(model, "layout-other-name", "name", folder=model.name, name=config.name)
    if backend != "ensemble" and not model.served_versions:
        detail = f"it has {', '.join(map(str, model.versions))}" if model.versions else "it has none"
        yield at_path(model, "layout-no-version", model.path, detail=detail)
        return
    if not backend and not config.model_repository_agents.agents:
        yield in_config(model, "backend-unstated")
    yield from _check_platform(model, backend)
    yield from _check_named_files(model)
    yield from _check_model_files(model, backend)


def _check_platform(model: ConfiguredModel, backend_of: str) -> Iterator[Finding]:
    config = model.config
    platform, backend = config.platform, config.backend
    if platform and platform != "ensemble" and (platform not in PLATFORMS or backend not in ("", PLATFORMS[platform])):
        yield in_config(model, "platform-unknown", "platform", platform=platform, backend=backend or "(none)")
    # libtorch's files name no tensors
    for kind in ("input", "output"):
        if backend_of == "pytorch" and not getattr(config, kind):
            yield in_config(model, "network-no-output", kind=kind)
    if config.runtime and not _RUNTIME.fullmatch(config.runtime):
        yield in_config(model, "backend-library", "runtime", name=config.runtime)


def _check_named_files(model: ConfiguredModel) -> Iterator[Finding]:
    config = model.config
    for kind in ("input", "output"):
        for index, tensor in enumerate(getattr(config, kind)):
            name = getattr(tensor, "label_filename", "")
            if name and not (model.path / name).is_file():
                place = (kind, index, "label_filename")
                yield in_config(model, "layout-named-file-missing", *place, path=model.path / name)
    for index, sample in enumerate(config.model_warmup):
        for tensor in sample.inputs.values():
            path = model.path / "warmup" / tensor.input_data_file
            if tensor.input_data_file and not path.exists():
                yield in_config(model, "layout-named-file-missing", "model_warmup", index, path=path)


def _check_model_files(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    config = model.config
    wanted = config.default_model_filename or FILES.get(backend)
    if not wanted or config.cc_model_filenames:
        return
    for version in model.served_versions:
        path = model.path / str(version) / wanted
        if not path.exists():
            yield at_path(model, "layout-no-model-file", path, path=path)
