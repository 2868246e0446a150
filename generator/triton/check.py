"""Rendered configurations, read back with Triton's own protobuf and checked together.

Applied are the rules that the server applies at load time, and those that it applies only when requests come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import ConfigError
from generator.spec.plan import uncovered_batches
from generator.triton.fused import NETWORK_BACKEND, NETWORK_INPUT, PROFILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from generator.artifact import Artifact
    from generator.triton.config import Member


def check_members(texts: Mapping[str, str], members: Sequence[Member], artifact: Artifact) -> None:
    """Parse the rendered configurations with Triton's protobuf and check them with their files and together.

    Raises:
        ConfigError: The text is not a ModelConfig, or a rule is broken; lists every broken rule.
    """
    parsed = {name: parse_config(name, text) for name, text in texts.items()}
    problems: list[str] = []
    ensembles = [config for config in parsed.values() if config.platform == "ensemble"]
    for name, config in parsed.items():
        problems += [f"{name}: {problem}" for problem in _single(name, config)]
    for member in members:
        problems += [f"{member.config.name}: {problem}" for problem in _labels(parsed[member.config.name], member)]
    for config in (_find_network(config, artifact) for config in parsed.values()):
        if config.backend in ("onnxruntime", "tensorrt"):
            problems += [f"{config.name}: {problem}" for problem in _against_artifact(config, artifact)]
        if config.backend == "tensorrt":
            problems += [f"{config.name}: {problem}" for problem in _against_profiles(config, artifact)]
    for ensemble in ensembles:
        problems += [f"{ensemble.name}: {problem}" for problem in _links(ensemble, parsed)]
    if problems:
        raise ConfigError("\n".join(problems), hint="change the spec; if it is right, this is a bug of trtgen")


def parse_config(name: str, text: str) -> Any:
    """Return the model configuration `text` as Triton's protobuf.

    Raises:
        ConfigError: It is none.
    """
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
    yield from _shapes(config)
    if config.platform == "ensemble":
        forbidden = [field for field in ("instance_group", "model_warmup") if getattr(config, field)]
        yield from (f"{field} is not allowed in an ensemble" for field in forbidden)
    if config.response_cache.enable and len(config.output) > 1:
        # its key has the inputs only: what the first request asked for is what the others get
        count = len(config.output)
        yield f"response_cache is on with {count} outputs: a request for some would be answered with others"
    for group in config.instance_group:
        if group.count < 1:
            yield f"instance_group count is {group.count}, at least 1 was expected"
        if group.profile and config.backend != "tensorrt":
            yield f"instance_group lists profiles, which Triton refuses for the backend {config.backend}"
    for sample in config.model_warmup:
        if sample.batch_size > config.max_batch_size:
            yield f"warmup batch_size {sample.batch_size} is above max_batch_size {config.max_batch_size}"


def _shapes(config: Any) -> Iterable[str]:
    for tensor in (*config.input, *config.output):
        if not tensor.dims or any(size == 0 or size < -1 for size in tensor.dims):
            yield f"tensor {tensor.name}: dims {list(tensor.dims)}, positive sizes or -1 were expected"
    for tensor in config.input:
        if tensor.format and len(tensor.dims) != 3:
            yield f"input {tensor.name} has a format, which needs 3 dims, and has {len(tensor.dims)}"


def _find_network(config: Any, artifact: Artifact) -> Any:
    """Return the configuration that the network of a fused model would have by itself, any other one as it is."""
    if NETWORK_BACKEND not in config.parameters:
        return config
    network = type(config)()
    network.CopyFrom(config)
    network.backend = config.parameters[NETWORK_BACKEND].string_value
    del network.input[:], network.output[:]
    for group in network.instance_group if PROFILE in config.parameters else ():
        group.profile[:] = config.parameters[PROFILE].string_value.split(",")
    given = config.parameters[NETWORK_INPUT].string_value
    network.input.extend(
        type(config.input[0])(name=given, data_type=tensor.data_type, dims=tensor.dims)
        for tensor in config.output
        if tensor.name == "PIXELS"
    )
    made = {tensor.name for tensor in artifact.outputs}
    network.output.extend(tensor for tensor in config.output if tensor.name in made)
    return network


def _labels(config: Any, member: Member) -> Iterable[str]:
    """A label file has a line for every element of its output; the server reads on past its end without a word."""
    for tensor in config.output:
        if not tensor.label_filename:
            continue
        labels = member.files.get(tensor.label_filename, b"").count(b"\n")
        if list(tensor.dims) != [labels]:
            yield f"output {tensor.name} has dims {list(tensor.dims)}, but there are {labels} labels"


def _against_artifact(config: Any, artifact: Artifact) -> Iterable[str]:
    """The network's tensors are those of the graph or plan, name by name."""
    from tritonclient.grpc import model_config_pb2

    what = "graph" if artifact.passport is None else "plan"
    for kind, stated, actual in (("input", config.input, artifact.inputs), ("output", config.output, artifact.outputs)):
        if [one.name for one in stated] != [one.name for one in actual]:
            names = [one.name for one in stated]
            yield f"{kind}s {names}, but the {what} has {[one.name for one in actual]}"
            continue
        for one, tensor in zip(stated, actual, strict=True):
            data_type = model_config_pb2.DataType.Name(one.data_type)
            if data_type != tensor.data_type.triton:
                yield f"{kind} {one.name} is {data_type}, but {tensor.data_type.triton} in the {what}"
            if list(one.dims) != list(tensor.shape[1:]):
                yield f"{kind} {one.name} has dims {list(one.dims)}, but {list(tensor.shape[1:])} in the {what}"


def _against_profiles(config: Any, artifact: Artifact) -> Iterable[str]:
    """Every batch from 1 to max_batch_size is in a profile that every instance group lists.

    With --disable-auto-complete-config the native backend does not check this: requests fail when they come.
    """
    if artifact.passport is None:
        yield "backend is tensorrt, but there is no plan"
        return
    profiles = artifact.passport.profiles
    name = config.input[0].name
    for group in config.instance_group:
        listed = [int(text) for text in group.profile] or [0]
        if unknown := [index for index in listed if index >= len(profiles)]:
            yield f"instance_group lists profile {unknown[0]}, the plan has {len(profiles)}"
            continue
        if gaps := uncovered_batches([profiles[index][name].batches for index in listed], config.max_batch_size):
            yield f"max_batch_size is {config.max_batch_size}, but no profile of the group covers a batch of {gaps}"


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
