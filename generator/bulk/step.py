"""The step of bulk work: paths or encoded images in, answers out.

A step is a class whose constructor's arguments can be pickled and whose instances take a batch, columns of equal length
by their names:

    step = LocalStep("model_repository", "resnet50")
    answers = step({"path": np.array(["cat.jpg", "gone.jpg"])})
    answers["classes"][0]    # [{"label": "tabby", "index": 281, "score": 0.7}, ...], None where there is an error
    answers["error"][1]      # "cannot be read: No such file or directory", None where there is none

The local engine has one in each of its processes; Ray Data has one in each of its actors.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from generator.bulk.images import ERROR, IMAGE, Batch, as_column, read_images
from generator.errors import RepositoryError
from generator.files import expand_home
from generator.gate.published import read_candidate
from generator.images.served_pixels import load_own_step
from generator.repository import read_record
from generator.runtime.device import EngineError
from generator.spec.model import usable_cores
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.runtime.decoded import Decoded

_LOG = logging.getLogger(__name__)
# What a task's answers are called: the keys of the clients' JSON.
ANSWERS = {"classification": "classes", "detection": "detections"}


class Step(Protocol):
    """What every engine runs.

    Attributes:
        most_bytes: The largest encoded image that it takes.
        calls_at_once: How many threads may call it at the same time.
    """

    most_bytes: int
    calls_at_once: int

    def __call__(self, batch: Batch) -> Batch:
        """Return the answers to a batch.

        Args:
            batch: `path`, and `image` and `error` as `read_images` returns them, where that was done already. Other
                columns come back as they are.

        Returns:
            The batch without `image`; with `classes` or `detections`, a list of rows as the clients print them for each
            image, best first, None where there is an error; with `error`, why an image has no answer, else None.
        """

    def close(self) -> None:
        """Release what it holds."""


class LocalStep:
    """Runs a published model's own artifact in this process: the plan on a GPU, the graph in onnxruntime.

    Pixels are made by the served preprocessing step, and what follows the network is the served step's, too, so the
    answers are those of the served model.

    Args:
        root: The model repository.
        name: The model that clients call.
        top: How many classes, or boxes, an image has at most; None: all.
        threads: How many images are decoded at once, and how many threads the graph runs in.
        gpu: Which GPU the plan runs on.

    Raises:
        RepositoryError: No such model.
        SourceError: onnxruntime cannot load the graph.
        PlanError: The plan does not run here.
        DeviceError: No GPU for the plan, or its memory is exhausted.
    """

    calls_at_once = 1

    def __init__(
        self, root: Path | str, name: str, *, top: int | None = None, threads: int | None = None, gpu: int = 0
    ) -> None:
        candidate = find_candidate(Path(root), name)
        task = find_task(candidate.spec.task)
        self._answer = functools.partial(task.answer_one, candidate.spec, candidate.artifact, top=top)
        self.column = ANSWERS[candidate.spec.task]
        self.most_bytes = candidate.artifact.recipe.max_bytes
        with contextlib.ExitStack() as stack:
            self.decode, self._run = _open(candidate, stack, threads=threads or usable_cores(), gpu=gpu)
            self._stack = stack.pop_all()

    def __call__(self, batch: Batch) -> Batch:
        """Return the answers to a batch; see Step.

        Raises:
            SourceError: onnxruntime cannot run the graph.
            PlanError: The plan does not run.
            DeviceError: The GPU fails.
        """
        if IMAGE not in batch:
            batch = read_images(batch, most_bytes=self.most_bytes)
        errors: list[str | None] = list(batch[ERROR])
        rows: list[list[dict[str, Any]] | None] = [None] * len(errors)
        read = [place for place, error in enumerate(errors) if error is None]
        if read:
            decoded = self.decode([batch[IMAGE][place] for place in read])
            outputs = self.run_network(decoded) if None in decoded.errors else {}
            for number, place in enumerate(read):
                errors[place] = decoded.errors[number]
                if errors[place] is None:
                    row = {name: values[number] for name, values in outputs.items()}
                    try:
                        rows[place] = self._answer(row, decoded.geometry[number])
                    except ValueError as error:  # what FP16 that overflows answers
                        errors[place] = str(error)
        others = {name: column for name, column in batch.items() if name not in (IMAGE, ERROR)}
        return {**others, self.column: as_column(rows), ERROR: as_column(errors)}

    def run_network(self, decoded: Decoded) -> Mapping[str, NDArray[Any]]:
        """Return the network's outputs by their names; the pixels of a bad image are zeros."""
        try:
            return self._run(decoded.pixels, decoded.begun) if decoded.begun else self._run(decoded.pixels)
        except EngineError:
            with self._stack:  # what opened the plan says what this means
                raise

    def close(self) -> None:
        """End the threads and release the network."""
        self._stack.close()


def find_candidate(root: Path, name: str) -> Candidate:
    """Return a published model.

    Raises:
        RepositoryError: There is no such model, or its task has no bulk work.
    """
    root = expand_home(root).resolve()
    record = read_record(root, name)
    if record is None:
        msg = f"{root} holds no model {name!r} made by trtgen"
        raise RepositoryError(msg, hint="build it", command=("build-repo", name), fields={"repository": root})
    candidate = read_candidate(root, record)
    if candidate.spec.task not in ANSWERS:
        msg = f"{name} is a model for {candidate.spec.task}; bulk work is for {' and '.join(ANSWERS)}"
        raise RepositoryError(msg, hint="name another model")
    return candidate


def _open(
    candidate: Candidate, stack: contextlib.ExitStack, *, threads: int, gpu: int
) -> tuple[Callable[[Sequence[bytes]], Decoded], Callable[..., Mapping[str, NDArray[Any]]]]:
    """Return what decodes images and what runs the network on their pixels; the stack closes both."""
    from generator.runtime.cpu_images import CpuImages

    step = load_own_step("preprocess")
    step.keep_freed_memory()
    recipe = step.Recipe(
        {key: {"string_value": value} for key, value in candidate.artifact.recipe.parameters().items()}
    )
    on_cpu = CpuImages(step, recipe, threads=threads)
    stack.callback(on_cpu.close)
    if candidate.plan is None:
        from generator.graph.model import open_onnx

        return on_cpu.decode, open_onnx(candidate.onnx, as_served=True, threads=threads)
    from generator.plan.local import open_engine

    engine = stack.enter_context(open_engine(candidate.plan, index=gpu))
    if candidate.spec.decode != "gpu":
        return on_cpu.decode, engine.run_outputs
    from generator.runtime.gpu_images import GpuImages

    try:
        on_gpu = GpuImages(recipe, on_cpu, engine.device.driver, gpu, warn=_LOG.warning, to_host=False)
    except EngineError as error:
        _LOG.warning("images are decoded on the CPU: %s", error)
        return on_cpu.decode, engine.run_outputs
    stack.callback(on_gpu.close)
    return functools.partial(on_gpu.decode, begin=engine.begin), engine.run_outputs
