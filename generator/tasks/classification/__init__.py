"""Classification: an image gets one score per class. Nothing else knows of softmax, first classes and their names."""

# ruff: noqa: ARG002, D102 - a protocol's arguments; the methods are described in task.Task

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    from generator.tasks.classification.activation import Head
    from generator.tensor import Tensor
    from generator.triton.config import Member

_CLASSIFIER = Role(
    key="classifier",
    suffix="_classifier",
    holds_network=True,
    default_instances=network_instances,
    about_instances="Classifier instances; default 1, with a plan 4.",
)
_ENSEMBLE = Role(
    key="ensemble",
    suffix="",
    own_parameters={"negative_label": "it follows from the labels"},
)
_FUSED = make_fused_role(_ENSEMBLE.own_parameters)
_LABELS_FILE = "labels.txt"


@dataclass(frozen=True, slots=True)
class Classification:
    """The task; its methods are documented in `generator.task.Task`."""

    name: str = "classification"
    roles: tuple[Role, ...] = (PREPROCESS, _CLASSIFIER, _ENSEMBLE)
    fused: Role | None = _FUSED

    def default_images(self, recipe: Recipe) -> ImageSet:
        from generator.images.sets import default_images

        return default_images()

    def guess_recipe(self, spec: ModelSpec, path: Path) -> None:
        from generator.tasks.classification.outputs import refuse_detector

        refuse_detector(path, spec.output_tensor)

    def choose_outputs(self, path: Path, outputs: Sequence[Tensor], spec: ModelSpec | None) -> Chosen:
        from generator.tasks.classification.outputs import choose_outputs

        return choose_outputs(path, outputs, None if spec is None else spec.output_tensor)

    def name_classes(self, spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> tuple[str, ...]:
        return self.resolve_labels(spec, None, outputs[0].shape[-1])

    def resolve_labels(self, spec: ModelSpec, own: Sequence[str] | None, count: int) -> tuple[str, ...]:
        from generator.tasks.classification.labels import resolve_labels

        return resolve_labels(spec, own, count)

    def make_answers(
        self, spec: ModelSpec, network: Network, pixels: NDArray[np.uint8], names: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        from generator.tasks.classification.answers import make_answers

        return make_answers(network, pixels, names)

    def finish_graph(
        self, spec: ModelSpec, network: Network, graph: onnx.ModelProto, answers: Mapping[str, NDArray[Any]]
    ) -> Head:
        from generator.tasks.classification.activation import add_activation, choose_head

        output = graph.graph.output[0].name
        head = choose_head(spec.activation, network.activation, graph, output, answers["scores"], name=spec.name)
        add_activation(graph, head)
        return head

    def restore_head(self, head: Mapping[str, Any] | None, spec: ModelSpec, reference: Path) -> Head:
        from generator.tasks.classification.activation import read_head

        return read_head(head, spec.activation, reference)

    def is_reordered(
        self, one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], tolerance: float
    ) -> bool:
        return False  # each class has its place

    def list_assumed(self, spec: ModelSpec, network: Network, head: Head) -> dict[str, str]:
        from generator.tasks.classification.activation import list_assumed

        return list_assumed(spec, network, head)

    def make_members(self, spec: ModelSpec, artifact: Artifact) -> list[Member]:
        from generator.tasks.classification.labels import name_outputs
        from generator.tasks.members import IMAGE, PIXELS, make_ensemble, make_fused, make_network, make_preprocess
        from generator.triton.config import Step, TensorConfig

        (pixels,), (scores,) = artifact.inputs, artifact.outputs
        labels = "".join(f"{label}\n" for label in name_outputs(artifact.labels, scores.shape[-1])).encode()
        files = {_LABELS_FILE: labels}
        outputs = [TensorConfig.of(scores, label_filename=_LABELS_FILE)]
        # the client turns a probability below 0.5 into one of the other class; a logit has no such bound
        two_classes = scores.shape[1:] == (1,) and artifact.head.activation == "sigmoid"
        parameters = {"negative_label": artifact.labels[0]} if two_classes else {}
        if spec.layout == "fused":
            return [make_fused(spec, artifact, _FUSED, outputs, parameters=parameters, files=files)]
        preprocess = make_preprocess(spec, artifact)
        classifier = make_network(spec, artifact, _CLASSIFIER, label_files={scores.name: _LABELS_FILE}, files=files)
        ensemble = make_ensemble(
            spec,
            _ENSEMBLE,
            steps=[
                Step(model_name=preprocess.config.name, input_map={IMAGE: IMAGE}, output_map={PIXELS: "pixels"}),
                Step(
                    model_name=classifier.config.name,
                    input_map={pixels.name: "pixels"},
                    output_map={scores.name: scores.name},
                ),
            ],
            outputs=outputs,
            parameters=parameters,
            files=files,
        )
        return [preprocess, classifier, ensemble]

    def make_contract(self, artifact: Artifact) -> dict[str, Any]:
        return {"labels": list(artifact.labels)}

    def make_stages(self, candidate: Candidate, reference: Reference) -> list[Stage]:
        from generator.tasks.classification.stages import make_stages

        return make_stages(candidate, reference)

    def measure_labelled(
        self, candidate: Candidate, folder: Path, address: GrpcAddress | None
    ) -> Iterator[StageResult]:
        from generator.tasks.classification.labelled import measure_labelled

        return measure_labelled(candidate, folder, address)

    def make_rows(
        self, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int | None
    ) -> list[list[dict[str, Any]]]:
        from generator.tasks.classification.rows import make_rows

        return make_rows(outputs, labels, top)

    def answer_one(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        outputs: Mapping[str, NDArray[Any]],
        geometry: Sequence[float],
        top: int | None,
    ) -> list[dict[str, Any]]:
        from generator.tasks.classification.rows import answer_one

        return answer_one(artifact, outputs, top)

    def find_answers(self, types: Mapping[str, str]) -> dict[str, bool]:
        from generator.tasks.classification.rows import find_answers

        return find_answers(types)

    def read_answer(
        self, outputs: Mapping[str, NDArray[Any]], negative_label: str | None, top: int | None
    ) -> list[dict[str, Any]]:
        from generator.tasks.classification.rows import read_answer

        return read_answer(outputs, negative_label)


CLASSIFICATION = Classification()
