"""Triton's model configurations of one served model: classifier, preprocess, ensemble.

`make_model_configs` is pure: names, data types and dims of the classifier come from the ONNX graph, everything else
from the spec and the recipe. It is the only place where the batch axis is dropped: with max_batch_size > 0 Triton's
`dims` leave it out. `check_configs` reads the rendered text back with Triton's own protobuf and applies the rules
that the server applies at load time, and those it applies only at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from generator.errors import ConfigError
from generator.render import render

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from generator.onnx_model import OnnxModel
    from generator.recipe import Recipe
    from generator.spec import ModelSpec

__all__ = ["ModelConfigs", "TensorConfig", "check_configs", "make_model_configs", "render_configs"]

IMAGE = "IMAGE"
PIXELS = "PIXELS"
LABELS_FILE = "labels.txt"
WARMUP_FILE = "image.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConfig:
    """An input or output as config.pbtxt states it: `dims` without the batch axis."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    label_filename: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which version directories are loaded: one of the three."""

    latest: int = 1
    all: bool = False
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One member of the ensemble; the maps go from the member's tensor to the ensemble's."""

    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What every config.pbtxt of ours states."""

    ensemble: str
    name: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    versions: VersionPolicy = field(default_factory=VersionPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig(ModelConfig):
    """The network."""

    backend: str
    default_model_filename: str
    instance_kind: str
    instance_count: int
    max_queue_delay_microseconds: int | None
    warmup_batch_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig(ModelConfig):
    """The step from encoded images to pixels."""

    instance_count: int
    parameters: Mapping[str, str]
    warmup_file: str = WARMUP_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig(ModelConfig):
    """What clients call."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigs:
    """The three configurations of one served model."""

    classifier: ClassifierConfig
    preprocess: PreprocessConfig
    ensemble: EnsembleConfig


def make_model_configs(spec: ModelSpec, onnx: OnnxModel, recipe: Recipe, *, pillow_version: str) -> ModelConfigs:
    """Return the configurations of `spec`'s three models around the graph `onnx`."""
    pixels = TensorConfig(name=onnx.input.name, data_type=onnx.input.data_type.triton, dims=onnx.input.shape[1:])
    scores = TensorConfig(
        name=onnx.output.name,
        data_type=onnx.output.data_type.triton,
        dims=onnx.output.shape[1:],
        label_filename=LABELS_FILE,
    )
    image = TensorConfig(name=IMAGE, data_type="TYPE_STRING", dims=(1,))
    made_pixels = TensorConfig(name=PIXELS, data_type="TYPE_UINT8", dims=(*recipe.crop, 3))
    maximum = spec.batch.max
    classifier = ClassifierConfig(
        ensemble=spec.name,
        name=spec.classifier_name,
        max_batch_size=maximum,
        inputs=(pixels,),
        outputs=(scores,),
        versions=_version_policy(spec),
        backend="onnxruntime",
        default_model_filename="model.onnx",
        instance_kind="KIND_CPU",
        instance_count=spec.classifier_instances(),
        max_queue_delay_microseconds=spec.max_queue_delay_microseconds if maximum > 1 else None,
        warmup_batch_sizes=tuple(sorted({1, spec.batch.optimum})),
    )
    preprocess = PreprocessConfig(
        ensemble=spec.name,
        name=spec.preprocess_name,
        max_batch_size=maximum,
        inputs=(image,),
        outputs=(made_pixels,),
        instance_count=spec.preprocess_instances(),
        parameters={**recipe.parameters(), "pillow": pillow_version},
    )
    ensemble = EnsembleConfig(
        ensemble=spec.name,
        name=spec.name,
        max_batch_size=maximum,
        inputs=(image,),
        outputs=(scores,),
        steps=(
            Step(model_name=preprocess.name, input_map={IMAGE: IMAGE}, output_map={PIXELS: "pixels"}),
            Step(model_name=classifier.name, input_map={pixels.name: "pixels"}, output_map={scores.name: scores.name}),
        ),
    )
    return ModelConfigs(classifier=classifier, preprocess=preprocess, ensemble=ensemble)


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


def check_configs(texts: Mapping[str, str], onnx: OnnxModel, *, classes: int) -> None:
    """Parse the rendered configurations with Triton's protobuf and check them together.

    Raises:
        ConfigError: The text is not a ModelConfig, or a rule is broken; lists every broken rule.
    """
    parsed = {name: _parse(name, text) for name, text in texts.items()}
    problems: list[str] = []
    ensembles = [config for config in parsed.values() if config.platform == "ensemble"]
    for name, config in parsed.items():
        problems += [f"{name}: {problem}" for problem in _single(name, config)]
    for config in parsed.values():
        if config.backend == "onnxruntime":
            problems += [f"{config.name}: {problem}" for problem in _against_graph(config, onnx, classes)]
    for ensemble in ensembles:
        problems += [f"{ensemble.name}: {problem}" for problem in _links(ensemble, parsed)]
    if problems:
        raise ConfigError("\n".join(problems), hint="change the spec; if it is right, this is a bug of trtgen")


def _parse(name: str, text: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        msg = f"{name}/config.pbtxt is not a model configuration: line {error}"
        raise ConfigError(msg, hint="this is a bug in the templates") from error


def _single(name: str, config: Any) -> Iterable[str]:
    """Rules that concern one configuration (see the server's model_config_utils.cc)."""
    if config.name != name:
        yield f"name is {config.name!r}, but the directory is {name!r}"
    if config.max_batch_size < 1:
        yield f"max_batch_size is {config.max_batch_size}, at least 1 was expected"
    for tensor in (*config.input, *config.output):
        if not tensor.dims or any(size == 0 or size < -1 for size in tensor.dims):
            yield f"tensor {tensor.name}: dims {list(tensor.dims)}, positive sizes or -1 were expected"
    if config.platform == "ensemble":
        forbidden = [field for field in ("instance_group", "model_warmup") if getattr(config, field)]
        yield from (f"{field} is not allowed in an ensemble" for field in forbidden)
    for group in config.instance_group:
        if group.count < 1:
            yield f"instance_group count is {group.count}, at least 1 was expected"
    for sample in config.model_warmup:
        if sample.batch_size > config.max_batch_size:
            yield f"warmup batch_size {sample.batch_size} is above max_batch_size {config.max_batch_size}"


def _against_graph(config: Any, onnx: OnnxModel, classes: int) -> Iterable[str]:
    """The classifier's tensors are those of the graph, name by name."""
    from tritonclient.grpc import model_config_pb2

    for kind, stated, actual in (("input", config.input[0], onnx.input), ("output", config.output[0], onnx.output)):
        data_type = model_config_pb2.DataType.Name(stated.data_type)
        if stated.name != actual.name:
            yield f"{kind} {stated.name!r}, but the graph has {actual.name!r}"
        if data_type != actual.data_type.triton:
            yield f"{kind} {stated.name} is {data_type}, but {actual.data_type.triton} in the graph"
        if list(stated.dims) != list(actual.shape[1:]):
            yield f"{kind} {stated.name} has dims {list(stated.dims)}, but {list(actual.shape[1:])} in the graph"
    if list(config.output[0].dims) != [classes]:
        yield f"output {config.output[0].name} has dims {list(config.output[0].dims)}, but there are {classes} labels"


def _links(ensemble: Any, parsed: Mapping[str, Any]) -> Iterable[str]:
    """Members exist, carry the ensemble's batches, and each link has one data type and shape on both ends."""
    written = {tensor.name: ("ensemble input", tensor) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        member = parsed.get(step.model_name)
        if member is None:
            yield f"step {step.model_name} is not among the models {', '.join(parsed)}"
            continue
        if member.max_batch_size < ensemble.max_batch_size:
            yield f"max_batch_size {ensemble.max_batch_size}, but {member.name} takes at most {member.max_batch_size}"
        yield from _reads(step, member, written)
        yield from _writes(step, member, written)
    for tensor in ensemble.output:
        if tensor.name not in written:
            yield f"output {tensor.name!r} is written by no step"
            continue
        yield from _same(tensor.name, written[tensor.name], ("ensemble output", tensor))
        if tensor.label_filename != written[tensor.name][1].label_filename:
            yield f"output {tensor.name}: label_filename differs between the ensemble and its member"


def _reads(step: Any, member: Any, written: Mapping[str, tuple[str, Any]]) -> Iterable[str]:
    inputs = {tensor.name: tensor for tensor in member.input}
    for name in sorted(set(inputs) ^ set(step.input_map)):
        yield f"input_map of {member.name} does not fit its inputs: {name}"
    for name, link in step.input_map.items():
        if link not in written:
            yield f"{member.name}.{name} reads {link!r}, which nothing before it writes"
        elif name in inputs:
            yield from _same(link, written[link], (member.name, inputs[name]))


def _writes(step: Any, member: Any, written: dict[str, tuple[str, Any]]) -> Iterable[str]:
    """Check the step's outputs and add them to what is `written`."""
    outputs = {tensor.name: tensor for tensor in member.output}
    for name, link in step.output_map.items():
        if name not in outputs:
            yield f"output_map of {member.name} names {name!r}, which it does not have"
        elif link in written:
            yield f"tensor {link!r} is written twice"
        else:
            written[link] = (member.name, outputs[name])


def _same(link: str, one: tuple[str, Any], other: tuple[str, Any]) -> Iterable[str]:
    (owner, first), (reader, second) = one, other
    if first.data_type != second.data_type:
        yield f"tensor {link}: data type differs between {owner} and {reader}"
    if list(first.dims) != list(second.dims):
        yield f"tensor {link}: dims {list(first.dims)} of {owner}, but {list(second.dims)} of {reader}"
