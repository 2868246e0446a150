"""The local engine: a published model's own artifact in processes of this machine."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from generator.bulk.step import LocalStep, find_candidate
from generator.errors import RepositoryError
from generator.files import hash_file
from generator.gpu import count_gpus, find_gpu
from generator.repository import find_records, read_record
from generator.spec.model import usable_cores
from generator.tasks.members import decoding_instances

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from generator.bulk.step import Step
    from generator.gate.candidate import Candidate

_LOG = logging.getLogger(__name__)
_MOST_WORKERS = 8  # each holds the network; with more cores each has several threads
_WORKERS_PER_GPU = 4  # so that others decode and copy while one computes


def choose_model(root: Path, task: str) -> str:
    """Return the only model of a task in a repository.

    Raises:
        RepositoryError: There is none, or there are several.
    """
    names = [record.name for record in find_records(root) if record.spec.get("task", "classification") == task]
    if len(names) == 1:
        return names[0]
    if names:
        msg = f"{root} holds {len(names)} models for {task}: {', '.join(names)}"
        raise RepositoryError(msg, hint="name one", fields={"model": names[0]})
    msg = f"{root} holds no model for {task} made by trtgen"
    raise RepositoryError(msg, hint="build one, or give another repository", fields={"repository": None})


def identify_local(root: Path, name: str, *, task: str, top: int | None) -> dict[str, Any]:
    """Return what the answers follow from besides the images.

    Raises:
        RepositoryError: No such model, or it is one for another task.
    """
    candidate = find_candidate(root, name)
    spec = candidate.spec
    if spec.task != task:
        msg = f"{name} is a model for {spec.task}, not for {task}"
        raise RepositoryError(msg, hint="name another model", fields={"model": None})
    return {
        "task": task,
        "model": name,
        "version": candidate.layout.version,
        "network": hash_file(candidate.plan or candidate.onnx),
        "pixels": candidate.artifact.recipe.parameters(),
        "detection": None if spec.detection is None else spec.detection.model_dump(mode="json"),
        "top": top,
    }


def make_local_steps(root: Path, name: str, *, top: int | None, workers: int | None) -> list[Callable[[], Step]]:
    """Return what makes the step of each process; together they have as many threads as there are usable cores.

    With a plan the processes are shared out among the GPUs that can be seen.

    Raises:
        RepositoryError: No such model.
        DeviceError: It has a plan, and there is no GPU.
        MissingDependencyError: It has a plan, and cuda-python is not installed.
    """
    _compare_pillow(root, name)
    cores, gpus, candidate = usable_cores(), 0, find_candidate(root, name)
    if candidate.plan is not None:
        find_gpu()
        gpus = count_gpus()
    count = workers or (gpus * count_per_gpu(candidate) or min(cores, _MOST_WORKERS))
    threads = max(1, cores // count)
    return [
        functools.partial(LocalStep, root, name, top=top, threads=threads, gpu=number % max(gpus, 1))
        for number in range(count)
    ]


def count_per_gpu(candidate: Candidate) -> int:
    """Return how many processes with a plan share a GPU; where it decodes, as many as a served model has."""
    return decoding_instances() if candidate.spec.decode == "gpu" else _WORKERS_PER_GPU


def _compare_pillow(root: Path, name: str) -> None:
    """Warn where Pillow is another version than the one that the pixels were proved with, as the served step does."""
    import PIL

    record = read_record(root, name)
    if record is not None and (proved := record.packages.get("pillow")) != PIL.__version__:
        _LOG.warning("Pillow is %s, the pixels of %s were proved with %s", PIL.__version__, name, proved)
