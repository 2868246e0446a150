"""What differs between kinds of models: the `Task` protocol, its values, and who is registered.

A task from outside registers itself with `register_task`, or with an entry point of the group `trtgen.tasks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from generator.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from generator.artifact import Artifact
    from generator.gate.candidate import Candidate
    from generator.gate.client import GrpcAddress, ServedModel
    from generator.images.reference import Reference
    from generator.images.sets import ImageSet
    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.tensor import Tensor
    from generator.triton.config import Member

# How a model is served: as an ensemble of members, or as one model that does all their work.
ServingLayout = Literal["ensemble", "fused"]
Status = Literal["proved", "failed", "not proved", "assumed", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One member of a served model.

    `key` is what the spec's `instances` and `config` call it, `suffix` what follows the model's name, empty for the
    one that clients call. `default_instances` says how many instances it has where the spec does not, given whether a
    plan is served; None for an ensemble, which has none. `decoder_instances` is that number for a member that decodes,
    where it does so on the GPU. `most_instances` is the limit of the spec. `own_parameters`
    says why `config` may not give these parameters.
    """

    key: str
    suffix: str
    holds_network: bool = False
    default_instances: Callable[[bool], int] | None = None
    decoder_instances: Callable[[], int] | None = None
    most_instances: int = 64
    about_instances: str = ""
    own_parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one stage of the gate found.

    `figures` are the task's own, by name, for trtgen.json and --json. `reason` says why it failed, did not run or is
    assumed, `cause` what made it fail. `agreement` is the share of images, 0 to 1, that are answered as the source
    answers them; None where that was not compared.
    """

    stage: str
    status: Status
    measured: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    cause: str = ""
    agreement: float | None = None


def not_proved(stage: str, reason: str) -> StageResult:
    """Return the result of a stage that could not run here."""
    return StageResult(stage=stage, status="not proved", reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One comparison of the gate.

    `needs` says what runs it: the graph in onnxruntime, the plan on a GPU, or the served members, which `run` gets;
    for the others that is None. A `watched` stage is asked again while a server serves (`trtgen canary`): it needs the
    reference and the record, but neither graph nor plan.
    """

    name: str
    needs: Literal["graph", "plan", "server"]
    run: Callable[[ServedModel | None], StageResult]
    watched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a task takes of an ONNX file: `outputs`, in the shapes that it takes them in.

    `why` no others are taken, where there are any. `reading` tells the user what they mean, where that was to be found.
    """

    outputs: Sequence[Tensor]
    why: str
    reading: str = ""


class Task(Protocol):
    """One kind of model. Everything else does not know which.

    Attributes:
        name: What the spec's field `task` calls it.
        roles: Its members in the order of publishing; the last one is what clients call.
        fused: The one model of `layout: fused`, None for a task that has no such layout.
    """

    name: str
    roles: tuple[Role, ...]
    fused: Role | None

    def default_images(self, recipe: Recipe) -> ImageSet:
        """Return the images that the gate compares on where the user gives none."""

    def guess_recipe(self, spec: ModelSpec, path: Path) -> Recipe | None:
        """Return how images were prepared for an ONNX file, where the file tells it.

        It is asked before anything else: SourceError if the file is of another task.
        """

    def choose_outputs(self, path: Path, outputs: Sequence[Tensor], spec: ModelSpec | None) -> Chosen:
        """Choose those outputs of an ONNX file that the task takes.

        Without a spec nothing is asked for; SourceError if the file has not what is needed.
        """

    def name_classes(self, spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> tuple[str, ...]:
        """Return the names of the classes of an ONNX file whose chosen outputs are these; SourceError as below."""

    def resolve_labels(self, spec: ModelSpec, own: Sequence[str] | None, count: int) -> tuple[str, ...]:
        """Return the names of the classes of a network with `count` outputs; SourceError if nothing says them."""

    def make_answers(
        self, spec: ModelSpec, network: Network, pixels: NDArray[np.uint8], names: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the source's own answers to `pixels`, rows by image, as reference.npz keeps them.

        `names` are the images'; VerificationError if nothing can be compared with these answers.
        """

    def finish_graph(
        self, spec: ModelSpec, network: Network, graph: onnx.ModelProto, answers: Mapping[str, NDArray[Any]]
    ) -> Any:
        """Put what clients need behind the network's graph; return a dataclass that tells what its outputs are."""

    def restore_head(self, head: Mapping[str, Any] | None, spec: ModelSpec, reference: Path) -> Any:
        """Return what `finish_graph` did, from what a record kept of it; SourceError if that is something else."""

    def is_reordered(
        self, one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], tolerance: float
    ) -> bool:
        """Say whether two answers to one image, of the graph's outputs, are the same but for an order of equals.

        Values may differ by `tolerance` times the largest of their output, or 1.
        """

    def list_assumed(self, spec: ModelSpec, network: Network, head: Any) -> dict[str, str]:
        """Say by its name what was taken on trust, and why."""

    def make_members(self, spec: ModelSpec, artifact: Artifact) -> list[Member]:
        """Return the configuration and the files of each member, in the order of the spec's roles."""

    def make_contract(self, artifact: Artifact) -> dict[str, Any]:
        """Return what clients and older versions rely on besides the network's input and outputs."""

    def make_stages(self, candidate: Candidate, reference: Reference) -> list[Stage]:
        """Return the gate's stages in order; VerificationError if the reference cannot tell a wrong model."""

    def measure_labelled(
        self, candidate: Candidate, folder: Path, address: GrpcAddress | None
    ) -> Iterator[StageResult]:
        """Yield what each stage scores on labelled data."""

    def make_rows(
        self, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int | None
    ) -> list[list[dict[str, Any]]]:
        """Return what a client prints for each image: its results, best first."""

    def answer_one(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        outputs: Mapping[str, NDArray[Any]],
        geometry: Sequence[float],
        top: int | None,
    ) -> list[dict[str, Any]]:
        """Return what a client prints for one image, without a server: from the row of each of the network's outputs.

        `geometry` are six numbers, how the original became its pixels, as `generator.runtime.decoded` has them.
        ValueError if the network answers what is no number.
        """

    def find_answers(self, types: Mapping[str, str]) -> dict[str, bool]:
        """Return which outputs of a served model are its answers, and whether the server is to rank and label them.

        `types` are Triton's data types by output; nothing is returned for a model of another task.
        """

    def read_answer(
        self, outputs: Mapping[str, NDArray[Any]], negative_label: str | None, top: int | None
    ) -> list[dict[str, Any]]:
        """Return what a client prints for one image, from the row of each of a served model's answers.

        `negative_label` is the parameter of that name in its configuration. ValueError if it answers what is no number.
        """


TASKS: Registry[Task] = Registry(
    "task",
    group="trtgen.tasks",
    built_in={
        "classification": "generator.tasks.classification:CLASSIFICATION",
        "detection": "generator.tasks.detection:DETECTION",
    },
)


def register_task(task: Task) -> None:
    """Make `task` known by its name; a later one of the same name takes its place."""
    TASKS.register(task.name, task)


def find_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        LookupError: There is none.
    """
    return TASKS.find(name)


def find_roles(task: str, layout: str | None) -> tuple[Role, ...]:
    """Return the members of a model of this task, in the order of publishing; no layout stands for the ensemble.

    Raises:
        LookupError: There is no such task, or it has no such layout.
    """
    found = find_task(task)
    if layout != "fused":
        return found.roles
    if found.fused is None:
        raise LookupError(f"a model of task {task!r} is served as an ensemble only")
    return (found.fused,)
