"""All checks, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.doctor.backends import find_backend, find_model_files
from generator.doctor.checks.ensembles import check_ensemble
from generator.doctor.checks.layout import check_layout, check_readable
from generator.doctor.checks.onnx_file import check_onnx
from generator.doctor.checks.python_model import check_python_model
from generator.doctor.checks.scheduling import check_scheduling
from generator.doctor.checks.tensors import check_tensors
from generator.doctor.repository import ConfiguredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.finding import Finding
    from generator.doctor.repository import ModelFolder, ModelRepository


def examine(repository: ModelRepository, release: str) -> list[Finding]:
    """Return what is wrong with a repository for a release of the container, model by model."""
    findings = [
        finding for model in repository.models.values() for finding in _examine_model(model, repository, release)
    ]
    return [finding for finding in findings if finding.rule.holds_in(release)]


def _examine_model(model: ModelFolder, repository: ModelRepository, release: str) -> Iterator[Finding]:
    if not isinstance(model, ConfiguredModel):
        yield from check_readable(model)
        return
    backend = find_backend(model)
    yield from check_layout(model, backend)
    yield from check_tensors(model, backend)
    yield from check_scheduling(model, backend)
    yield from check_ensemble(model, repository.models)
    if backend == "python":
        yield from check_python_model(model)
    if backend == "onnxruntime":
        for path in find_model_files(model, backend):
            yield from check_onnx(model, path, release)
