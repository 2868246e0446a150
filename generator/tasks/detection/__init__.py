"""Detection: an image gets boxes, each with a class and a score. Nothing else knows of decoding, NMS and geometry."""

# ruff: noqa: ARG002, D102 - a protocol's arguments; the methods are described in task.Task

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.spec.model import usable_cores
from generator.task import Role
from generator.tasks.members import PREPROCESS, make_fused_role, network_instances

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from generator.artifact import Artifact
    from generator.gate.candidate import Candidate
    from generator.gate.client import GrpcAddress
    from generator.images.reference import Reference
    from generator.images.sets import ImageSet
    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.task import Chosen, Stage, StageResult
    from generator.tasks.detection.reading import Reading
    from generator.tensor import Tensor
    from generator.triton.config import Member

_DETECTOR = Role(
    key="detector",
    suffix="_detector",
    holds_network=True,
    default_instances=network_instances,
    about_instances="Detector instances; default 1, with a plan 4.",
)
_OF_THE_SPEC = "it is a field of detection"


def _postprocess_instances(is_tensorrt: bool) -> int:
    """Beside a plan several: on an H100 with 16 cores requests waited for one process (docs/benchmarks.md)."""
    return max(1, usable_cores() // 4) if is_tensorrt else 1


_POSTPROCESS = Role(
    key="postprocess",
    suffix="_postprocess",
    default_instances=_postprocess_instances,
    about_instances="Post-processing processes; default 1, with a plan a quarter of the usable cores.",
    own_parameters=dict.fromkeys(("score", "class_scores", "iou", "nms"), _OF_THE_SPEC),
)
_ENSEMBLE = Role(key="ensemble", suffix="", own_parameters={"labels": "they are those of the model"})
_FUSED = make_fused_role({**_POSTPROCESS.own_parameters, **_ENSEMBLE.own_parameters})


@dataclass(frozen=True, slots=True)
class Detection:
    """The task; its methods are documented in `generator.task.Task`."""

    name: str = "detection"
    roles: tuple[Role, ...] = (PREPROCESS, _DETECTOR, _POSTPROCESS, _ENSEMBLE)
    fused: Role | None = _FUSED

    def default_images(self, recipe: Recipe) -> ImageSet:
        from generator.tasks.detection.answers import default_images

        return default_images(recipe)

    def guess_recipe(self, spec: ModelSpec, path: Path) -> Recipe | None:
        from generator.tasks.detection.families import guess_recipe

        found = guess_recipe(spec, path)
        return None if found is None else found[0]

    def choose_outputs(self, path: Path, outputs: Sequence[Tensor], spec: ModelSpec | None) -> Chosen:
        from generator.tasks.detection.reading import choose_outputs

        return choose_outputs(path, outputs, spec)

    def name_classes(self, spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> tuple[str, ...]:
        from generator.tasks.detection.reading import name_classes

        return name_classes(spec, path, outputs)

    def resolve_labels(self, spec: ModelSpec, own: Sequence[str] | None, count: int) -> tuple[str, ...]:
        from generator.tasks.detection.reading import resolve_labels

        return resolve_labels(spec, own, count)

    def make_answers(
        self, spec: ModelSpec, network: Network, pixels: NDArray[np.uint8], names: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        from generator.tasks.detection.answers import make_answers

        return make_answers(spec, network, pixels, names)

    def finish_graph(
        self, spec: ModelSpec, network: Network, graph: onnx.ModelProto, answers: Mapping[str, NDArray[Any]]
    ) -> Reading:
        from generator.tasks.detection.head import add_head
        from generator.tasks.detection.reading import find_reading

        reading = find_reading(spec, network)
        add_head(graph, reading, network.recipe.crop)
        return reading

    def restore_head(self, head: Mapping[str, Any] | None, spec: ModelSpec, reference: Path) -> Reading:
        from generator.tasks.detection.reading import restore_reading

        return restore_reading(head, reference)

    def is_reordered(
        self, one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], tolerance: float
    ) -> bool:
        from generator.tasks.detection.compare import is_reordered
        from generator.tasks.detection.judge import read_rows

        return is_reordered(read_rows(one), read_rows(other), tolerance)

    def list_assumed(self, spec: ModelSpec, network: Network, head: Reading) -> dict[str, str]:
        from generator.tasks.detection.reading import list_assumed

        return list_assumed(spec, network, head)

    def make_members(self, spec: ModelSpec, artifact: Artifact) -> list[Member]:
        from generator.tasks.detection.members import make_fused_detector, make_members

        if spec.layout == "fused":
            return [make_fused_detector(spec, artifact, _FUSED)]
        return make_members(spec, artifact, detector=_DETECTOR, postprocess=_POSTPROCESS, ensemble=_ENSEMBLE)

    def make_contract(self, artifact: Artifact) -> dict[str, Any]:
        return {"labels": list(artifact.labels)}

    def make_stages(self, candidate: Candidate, reference: Reference) -> list[Stage]:
        from generator.tasks.detection.stages import make_stages

        return make_stages(candidate, reference)

    def measure_labelled(
        self, candidate: Candidate, folder: Path, address: GrpcAddress | None
    ) -> Iterator[StageResult]:
        from generator.tasks.detection.labelled import measure_labelled

        return measure_labelled(candidate, folder, address)

    def make_rows(
        self, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int | None
    ) -> list[list[dict[str, Any]]]:
        from generator.tasks.detection.rows import make_rows

        return make_rows(outputs, labels, top)

    def answer_one(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        outputs: Mapping[str, NDArray[Any]],
        geometry: Sequence[float],
        top: int | None,
    ) -> list[dict[str, Any]]:
        from generator.tasks.detection.rows import answer_one

        return answer_one(spec, artifact, outputs, geometry, top)

    def find_answers(self, types: Mapping[str, str]) -> dict[str, bool]:
        from generator.tasks.detection.rows import find_answers

        return find_answers(types)

    def read_answer(
        self, outputs: Mapping[str, NDArray[Any]], negative_label: str | None, top: int | None
    ) -> list[dict[str, Any]]:
        from generator.tasks.detection.rows import read_answer

        return read_answer(outputs, top)


DETECTION = Detection()
