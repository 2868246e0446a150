"""Triton's model configurations of one served model: classifier, preprocess, ensemble.

`make_model_configs` is pure: names, data types and dims of the classifier come from the plan, or else from the ONNX
graph, everything else from the spec and the recipe. It is the only place where the batch axis is dropped: with
max_batch_size > 0 Triton's `dims` leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from generator.render import render
from generator.spec.config_text import given_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from generator.artifact import Artifact
    from generator.spec.model import ModelSpec
    from generator.tensor import Tensor

__all__ = ["ModelConfigs", "TensorConfig", "artifact_tensors", "make_model_configs", "render_configs"]

IMAGE = "IMAGE"
PIXELS = "PIXELS"
LABELS_FILE = "labels.txt"
WARMUP_FILE = "image.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConfig:
    """An input or output as config.pbtxt states it: `dims` without the batch axis; only inputs have a `format`."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    format: str | None = None
    label_filename: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which version directories are loaded: one of the three."""

    latest: int = 1
    all: bool = False
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A CUDA graph of the plan, launched for batches from `lower_bound` to `batch_size`."""

    batch_size: int
    lower_bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One member of the ensemble; the maps go from the member's tensor to the ensemble's."""

    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What every config.pbtxt of ours states.

    `given` is the spec's own text for it, `given_fields` the top-level fields in that: they take the place of ours, but
    for `parameters`, which are added.
    """

    ensemble: str
    name: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    versions: VersionPolicy = field(default_factory=VersionPolicy)
    given: str | None = None
    given_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig(ModelConfig):
    """The network."""

    backend: str
    default_model_filename: str
    instance_kind: str
    instance_count: int
    max_queue_delay_microseconds: int | None
    profiles: tuple[int, ...] = ()
    graphs: tuple[GraphSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig(ModelConfig):
    """The step from encoded images to pixels."""

    instance_count: int
    parameters: Mapping[str, str]
    warmup_file: str = WARMUP_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig(ModelConfig):
    """What clients call. `parameters` hold the name of the class that a single output speaks against."""

    steps: tuple[Step, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigs:
    """The three configurations of one served model."""

    classifier: ClassifierConfig
    preprocess: PreprocessConfig
    ensemble: EnsembleConfig


def make_model_configs(spec: ModelSpec, artifact: Artifact, *, pillow_version: str) -> ModelConfigs:
    """Return the configurations of `spec`'s three models around its graph or plan."""
    recipe = artifact.recipe
    given, made = artifact_tensors(artifact)
    # NVIDIA's image clients ask for the format; no backend reads it
    pixels = TensorConfig(name=given.name, data_type=given.data_type.triton, dims=given.shape[1:], format="FORMAT_NHWC")
    scores = TensorConfig(
        name=made.name, data_type=made.data_type.triton, dims=made.shape[1:], label_filename=LABELS_FILE
    )
    image = TensorConfig(name=IMAGE, data_type="TYPE_STRING", dims=(1,))
    made_pixels = TensorConfig(name=PIXELS, data_type="TYPE_UINT8", dims=(*recipe.crop, 3))
    # the client turns a probability below 0.5 into one of the other class; a logit has no such bound
    two_classes = scores.dims == (1,) and artifact.head.activation == "sigmoid"
    maximum = spec.batch.max
    classifier = ClassifierConfig(
        ensemble=spec.name,
        name=spec.classifier_name,
        max_batch_size=maximum,
        inputs=(pixels,),
        outputs=(scores,),
        versions=_version_policy(spec),
        **_engine(spec, artifact),
        instance_count=spec.classifier_instances(),
        max_queue_delay_microseconds=spec.queue_delay_microseconds() if maximum > 1 else None,
        **_given(spec.config.classifier),
    )
    preprocess = PreprocessConfig(
        ensemble=spec.name,
        name=spec.preprocess_name,
        max_batch_size=maximum,
        inputs=(image,),
        outputs=(made_pixels,),
        instance_count=spec.preprocess_instances(),
        parameters={**recipe.parameters(), "pillow": pillow_version},
        **_given(spec.config.preprocess),
    )
    ensemble = EnsembleConfig(
        ensemble=spec.name,
        name=spec.name,
        max_batch_size=maximum,
        inputs=(image,),
        outputs=(scores,),
        parameters={"negative_label": artifact.labels[0]} if two_classes else {},
        steps=(
            Step(model_name=preprocess.name, input_map={IMAGE: IMAGE}, output_map={PIXELS: "pixels"}),
            Step(model_name=classifier.name, input_map={pixels.name: "pixels"}, output_map={scores.name: scores.name}),
        ),
        **_given(spec.config.ensemble),
    )
    return ModelConfigs(classifier=classifier, preprocess=preprocess, ensemble=ensemble)


def artifact_tensors(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """Return the one input and the one output, as the plan has them, or else the graph."""
    if artifact.passport is None:
        return artifact.onnx.input, artifact.onnx.output
    (given,), (made,) = artifact.passport.inputs, artifact.passport.outputs
    return given, made


def _engine(spec: ModelSpec, artifact: Artifact) -> dict[str, Any]:
    """Return the fields that depend on what runs the classifier."""
    if artifact.passport is None:
        return {"backend": "onnxruntime", "default_model_filename": "model.onnx", "instance_kind": "KIND_CPU"}
    return {
        "backend": "tensorrt",
        "default_model_filename": "model.plan",
        "instance_kind": "KIND_GPU",
        # each group lists all: requests are not routed by shape, any instance may get any batch
        "profiles": tuple(range(len(artifact.passport.profiles))),
        "graphs": _graphs(spec.batch.max) if spec.plan.cuda_graphs else (),
    }


def _given(text: str | None) -> dict[str, Any]:
    return {"given": text, "given_fields": given_fields(text)}


def _graphs(maximum: int) -> tuple[GraphSpec, ...]:
    """Return CUDA graphs for the powers of two and the maximum.

    Up to 8 a graph also takes the batches below it, padded: there the launches cost more than the rows. Above, a
    padded batch would cost more than the launches, so that only exact sizes use one.
    """
    sizes = sorted({size for power in range(11) if (size := 2**power) < maximum} | {maximum})
    graphs = []
    for previous, size in zip([0, *sizes], sizes, strict=False):
        graphs.append(GraphSpec(batch_size=size, lower_bound=previous + 1 if size <= 8 else size))
    return tuple(graphs)


def render_configs(configs: ModelConfigs) -> dict[str, str]:
    """Return the text of each config.pbtxt by model name."""
    return {
        configs.preprocess.name: render("preprocess/config.pbtxt.j2", config=configs.preprocess),
        configs.classifier.name: render("classifier/config.pbtxt.j2", config=configs.classifier),
        configs.ensemble.name: render("ensemble/config.pbtxt.j2", config=configs.ensemble),
    }


def _version_policy(spec: ModelSpec) -> VersionPolicy:
    if spec.versions == "all":
        return VersionPolicy(all=True)
    if isinstance(spec.versions, list):
        return VersionPolicy(specific=tuple(sorted(set(spec.versions))))
    return VersionPolicy(latest=spec.versions)
