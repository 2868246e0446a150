"""All checks, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.doctor.backends import find_backend, find_model_files
from generator.doctor.checks.capabilities import check_capabilities
from generator.doctor.checks.ensembles import check_ensemble
from generator.doctor.checks.fields import check_fields
from generator.doctor.checks.layout import check_contents, check_layout, check_names, check_readable
from generator.doctor.checks.memory import check_memory
from generator.doctor.checks.network import check_onnx
from generator.doctor.checks.plan import check_plan
from generator.doctor.checks.python_model import check_python_model
from generator.doctor.checks.scheduling import check_scheduling
from generator.doctor.checks.tensors import check_tensors
from generator.doctor.repository import ConfiguredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.finding import Finding
    from generator.doctor.repository import ModelRepository
    from generator.plan.library import TensorRTVersion


def examine(
    repository: ModelRepository, release: str, *, tensorrt: TensorRTVersion | None = None, gpu: str | None = None
) -> list[Finding]:
    """Return what is wrong with a repository, model by model.

    Args:
        repository: What lies there.
        release: That of the container that is to serve it.
        tensorrt: The container's; None where it is not known.
        gpu: The compute capability of the GPU that is to serve it, such as 9.0; None where it is not known.
    """
    findings = [*check_names(repository), *check_memory(repository, release)]
    for model in repository.models.values():
        if isinstance(model, ConfiguredModel):
            findings += _examine_configuration(model, repository, release)
            findings += _examine_files(model, release, tensorrt, gpu)
        else:
            findings += check_readable(model)
    return [finding for finding in findings if finding.rule.holds_in(release)]


def _examine_configuration(model: ConfiguredModel, repository: ModelRepository, release: str) -> Iterator[Finding]:
    backend = find_backend(model)
    yield from check_layout(model, backend)
    yield from check_fields(model, release)
    yield from check_tensors(model, backend)
    yield from check_scheduling(model, backend)
    yield from check_ensemble(model, repository.models)


def _examine_files(
    model: ConfiguredModel, release: str, tensorrt: TensorRTVersion | None, gpu: str | None
) -> Iterator[Finding]:
    backend = find_backend(model)
    unread = set()
    for finding in check_contents(model):
        unread.add(finding.path)
        yield finding
    if backend == "python":
        yield from check_python_model(model, release)
    yield from check_capabilities(model, backend, gpu=gpu)
    if model.config.cc_model_filenames:
        gpu = None  # each plan is for a GPU of its own
    for path in find_model_files(model, backend):
        if path in unread:
            continue
        if backend == "onnxruntime":
            yield from check_onnx(model, path, release)
        elif backend == "tensorrt":
            yield from check_plan(model, path, release=release, tensorrt=tensorrt, gpu=gpu)
