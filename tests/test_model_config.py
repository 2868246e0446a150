"""Configurations: rendered, parsed by Triton's own protobuf, and refused where a rule is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from generator.artifact import Artifact
from generator.errors import ConfigError, SpecError
from generator.graph.model import OnnxModel
from generator.plan.passport import Passport
from generator.spec.config_text import REFUSED, REFUSED_IN_ENSEMBLE, given_fields
from generator.spec.file import make_spec
from generator.spec.recipe import IMAGENET
from generator.task import find_task
from generator.tasks.classification.activation import Head
from generator.tensor import ShapeRange, Tensor, from_onnx
from generator.triton.check import check_members
from generator.triton.config import Member

GRAPH = OnnxModel(
    path=Path("model.onnx"),
    input=Tensor(name="PIXELS", data_type=from_onnx(2), shape=(-1, 224, 224, 3)),
    outputs=(Tensor(name="PROBABILITIES", data_type=from_onnx(1), shape=(-1, 1000)),),
    opset=18,
    node_count=1,
    sha256="0",
)


HEAD = Head(output="logits", activation="softmax")
ARTIFACT = Artifact(onnx=GRAPH, head=HEAD, recipe=IMAGENET, labels=("x",) * 1000, description="")


def with_plan(*batches: tuple[int, int, int]) -> Artifact:
    """The same graph as a plan with these profiles."""
    shapes = [[(size, 224, 224, 3) for size in batch] for batch in batches]
    passport = Passport(
        made_by="trtgen",
        tensorrt="10.16.1.11",
        gpu={"name": "GPU", "compute_capability": "9.0", "multiprocessors": 132, "memory_bytes": 1},
        driver="580",
        cuda="13.0",
        precision="fp16",
        profiles=tuple({"PIXELS": ShapeRange(min=low, opt=opt, max=high)} for low, opt, high in shapes),
        inputs=(GRAPH.input,),
        outputs=(GRAPH.output,),
        flags=(),
        options={},
        onnx_sha256="0",
        plan_sha256="0",
        plan_bytes=1,
        build_seconds=1.0,
        timing_cache="off",
        command="",
    )
    return replace(ARTIFACT, passport=passport)


def members_of(artifact: Artifact, **options: Any) -> list[Member]:
    spec = make_spec(["net"], **options)[0]
    return find_task(spec.task).make_members(spec, artifact)


def rendered(artifact: Artifact = ARTIFACT, **options: Any) -> dict[str, str]:
    return {member.config.name: member.render() for member in members_of(artifact, **options)}


def check_configs(texts: dict[str, str], artifact: Artifact) -> None:
    check_members(texts, members_of(artifact), artifact)


def parsed(texts: dict[str, str], name: str) -> Any:
    return text_format.Parse(texts[name], model_config_pb2.ModelConfig())


def test_the_three_configurations_fit_each_other() -> None:
    texts = rendered()
    check_configs(texts, ARTIFACT)
    assert list(texts) == ["net_preprocess", "net_classifier", "net"]
    ensemble, classifier = parsed(texts, "net"), parsed(texts, "net_classifier")
    assert ensemble.platform == "ensemble"
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["net_preprocess", "net_classifier"]
    # with max_batch_size > 0, dims leave the batch out
    assert (classifier.max_batch_size, list(classifier.input[0].dims)) == (32, [224, 224, 3])
    # labels are not inherited from a member
    assert ensemble.output[0].label_filename == classifier.output[0].label_filename == "labels.txt"


def test_the_spec_reaches_the_configuration() -> None:
    texts = rendered(
        batch={"max": 16, "opt": 4}, instances={"preprocess": 3, "classifier": 2}, max_queue_delay_microseconds=1234
    )
    classifier, preprocess = parsed(texts, "net_classifier"), parsed(texts, "net_preprocess")
    assert classifier.dynamic_batching.max_queue_delay_microseconds == 1234
    assert (classifier.instance_group[0].count, preprocess.instance_group[0].count) == (2, 3)
    assert preprocess.parameters["resize"].string_value == "256"


@pytest.mark.parametrize("artifact", [ARTIFACT, with_plan((1, 1, 4), (1, 16, 32))])
def test_a_lower_max_batch_size_leaves_the_warmup_valid(artifact: Artifact) -> None:
    """Model Analyzer's search begins at 1, and a warm-up above it fails the load."""
    target = "tensorrt-10" if artifact.passport else "onnxruntime"
    for model in ("net_classifier", "net_preprocess"):
        config = parsed(rendered(artifact, target=target, batch={"max": 32, "opt": 16}), model)
        assert [sample.batch_size for sample in config.model_warmup] == [1]


def test_the_classifier_says_how_its_pixels_lie() -> None:
    """What NVIDIA's image_client.py and grpc_image_client.py ask for (docs/clients.md)."""
    pixels = parsed(rendered(), "net_classifier").input[0]
    assert (pixels.format, len(pixels.dims)) == (model_config_pb2.ModelInput.FORMAT_NHWC, 3)


def test_a_fused_plan_lists_its_profiles_in_a_parameter() -> None:
    """Triton refuses `profile` in the instance_group of what is no plan's own model."""
    artifact = with_plan((1, 1, 4), (1, 16, 32))
    spec: dict[str, Any] = {"target": "tensorrt-10", "batch": {"max": 32, "opt": 16}}
    config = parsed(rendered(artifact, **spec, layout="fused"), "net")
    plain = parsed(rendered(artifact, **spec), "net_classifier")
    assert [list(group.profile) for group in config.instance_group] == [[]]
    assert config.parameters["profile"].string_value.split(",") == list(plain.instance_group[0].profile) == ["0", "1"]
    texts, members = rendered(artifact, **spec, layout="fused"), members_of(artifact, **spec, layout="fused")
    check_members(texts, members, artifact)
    with pytest.raises(ConfigError, match="instance_group lists profiles, which Triton refuses for the backend python"):
        check_members({"net": texts["net"].replace("count: 4", 'count: 4 profile: "0"')}, members, artifact)
    with pytest.raises(ConfigError, match="no profile of the group covers a batch of"):
        check_members({"net": texts["net"].replace('"0,1"', '"0"')}, members, artifact)


@pytest.mark.parametrize(("activation", "expected"), [("sigmoid", {"negative_label": "dog"}), ("none", {})])
def test_one_probability_comes_with_the_name_of_the_other_class(activation: Any, expected: dict[str, str]) -> None:
    """A logit does not: the client would take one between 0 and 0.5 for a probability."""
    graph = replace(GRAPH, outputs=(replace(GRAPH.output, shape=(-1, 1)),))
    head = Head(output="logits", activation=activation)
    artifact = replace(ARTIFACT, onnx=graph, head=head, labels=("dog", "cat"))
    parameters = parsed(rendered(artifact), "net").parameters
    assert {key: value.string_value for key, value in parameters.items()} == expected


MEMBERS = {"preprocess": "net_preprocess", "classifier": "net_classifier", "ensemble": "net"}


def given(member: str, text: str, artifact: Artifact = ARTIFACT, **options: Any) -> tuple[Any, Any]:
    """The member's configuration with `text`, and the same without."""
    texts = rendered(artifact, **options, config={member: text})
    check_configs(texts, artifact)
    return parsed(texts, MEMBERS[member]), parsed(rendered(artifact, **options), MEMBERS[member])


# One for each field of Triton's ModelConfig that `config` takes.
FIELDS = {
    "optimization": "optimization { cuda { graph_spec { batch_size: 3 } } }",
    "dynamic_batching": "dynamic_batching { preferred_batch_size: [ 8 ] }",
    "instance_group": "instance_group [ { kind: KIND_GPU count: 2 gpus: 0 }, { kind: KIND_GPU count: 3 } ]",
    "metric_tags": "metric_tags { key: 'a' value: 'b' }",
    "parameters": "parameters { key: 'a' value { string_value: 'b' } } parameters { key: 'c' value {} }",
    "model_warmup": "model_warmup { name: 'mine' batch_size: 2 }",
    "response_cache": "response_cache { enable: true }",
    "model_metrics": "model_metrics { metric_control { metric_identifier { family: 'f' } } }",
}


def test_config_takes_or_refuses_every_field_of_triton() -> None:
    assert FIELDS.keys() | REFUSED.keys() == {field.name for field in model_config_pb2.ModelConfig.DESCRIPTOR.fields}
    assert FIELDS.keys() & REFUSED.keys() == set()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("member", ["classifier", "preprocess", "ensemble", "plan"])
def test_what_config_gives_takes_the_place_of_ours(member: str, field: str) -> None:
    """Triton reads what the protobuf makes of both: the given fields cleared in ours, then merged."""
    if member == "ensemble" and field in REFUSED_IN_ENSEMBLE:
        with pytest.raises(SpecError, match=f"config.ensemble: {field} cannot be given here: an ensemble only passes"):
            rendered(config={"ensemble": FIELDS[field]})
        return
    if member == "plan":
        merged, ours = given("classifier", FIELDS[field], with_plan((1, 8, 32)), target="tensorrt-10")
    else:
        merged, ours = given(member, FIELDS[field])
    if field != "parameters":
        ours.ClearField(field)
    assert merged != ours
    text_format.Merge(FIELDS[field], ours)
    assert merged == ours


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_text_that_gives_nothing_changes_nothing(text: str | None) -> None:
    plain, texts = rendered(), rendered(config=dict.fromkeys(("classifier", "preprocess", "ensemble"), text))
    assert {name: parsed(texts, name) for name in texts} == {name: parsed(plain, name) for name in plain}
    assert texts == plain or text


def test_no_parameter_of_ours_can_be_given() -> None:
    graph = replace(GRAPH, outputs=(replace(GRAPH.output, shape=(-1, 1)),))
    artifact = replace(
        ARTIFACT, onnx=graph, head=Head(output="logits", activation="sigmoid"), labels=("dog", "cat")
    )  # has parameters in the ensemble, too
    texts = rendered(artifact)
    ours = {member: list(parsed(texts, name).parameters) for member, name in MEMBERS.items()}
    assert [len(keys) > 0 for keys in ours.values()] == [True, False, True]
    for member, keys in ours.items():
        for key in keys:
            with pytest.raises(SpecError, match=f"config.{member}: parameters {key} cannot be given here"):
                rendered(artifact, config={member: f"parameters {{ key: '{key}' value {{ string_value: 'x' }} }}"})


def test_an_empty_list_and_a_zero_take_the_place_of_ours_too() -> None:
    text = "model_warmup []  # none\ndynamic_batching { max_queue_delay_microseconds: 0 }"
    merged, ours = given("classifier", text)
    assert (len(ours.model_warmup), ours.dynamic_batching.max_queue_delay_microseconds) == (1, 500)
    assert (len(merged.model_warmup), merged.dynamic_batching.max_queue_delay_microseconds) == (0, 0)
    assert merged.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", ()),
        ("# name: 'a'", ()),
        ("parameters { key: 'name' value { string_value: 'input' } }", ("parameters",)),
        ("instance_group [{count: 1, kind: KIND_CPU}, {count: 2}] instance_group <count: 3>", ("instance_group",)),
        ("name: 'a' 'b'; max_batch_size: 0, response_cache {}", ("name", "max_batch_size", "response_cache")),
        ("instance_group []", ("instance_group",)),
    ],
)
def test_the_fields_that_a_text_gives(text: str, fields: tuple[str, ...]) -> None:
    assert given_fields(text) == fields


def test_what_is_given_is_checked_with_the_rest() -> None:
    for text, problem in (
        ("instance_group { count: -1 }", "instance_group count is -1"),
        ("model_warmup { batch_size: 33 }", "warmup batch_size 33 is above max_batch_size 32"),
    ):
        with pytest.raises(ConfigError, match=problem):
            given("classifier", text)


def test_each_request_is_preprocessed_as_soon_as_a_process_is_free() -> None:
    """Waiting requests taken together keep the first of them until the last is decoded (docs/benchmarks.md)."""
    assert not parsed(rendered(), "net_preprocess").HasField("dynamic_batching")


def test_a_model_without_batches_has_no_batcher() -> None:
    assert not parsed(rendered(batch={"max": 1}), "net_classifier").HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("versions", "check"),
    [
        (3, lambda policy: policy.latest.num_versions == 3),
        ("all", lambda policy: policy.HasField("all")),
        ([4, 2, 2], lambda policy: list(policy.specific.versions) == [2, 4]),
    ],
)
def test_versions_to_serve(versions: Any, check: Callable[[Any], bool]) -> None:
    texts = rendered(versions=versions)
    assert check(parsed(texts, "net_classifier").version_policy)
    # the ensemble always calls the newest version that is served
    assert parsed(texts, "net").version_policy.latest.num_versions == 1


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        ("net", 'name: "net"', 'name: "other"', "name is 'other', but the directory is 'net'"),
        ("net", "max_batch_size: 32", "max_batch_size: 64", "max_batch_size 64, but net_preprocess takes at most 32"),
        ("net", 'model_name: "net_preprocess"', 'model_name: "gone"', "step gone is not among the models"),
        ("net", "TYPE_FP32", "TYPE_FP16", "data type differs between net_classifier and ensemble output"),
        ("net", "dims: [ 1000 ]", "dims: [ 10 ]", "dims [1000] of net_classifier, but [10] of ensemble output"),
        ("net", 'label_filename: "labels.txt"', "", "label_filename differs"),
        ("net", 'key: "PIXELS" value: "pixels" }\n    }', 'key: "PIXEL" value: "pixels" }\n    }', "does not have"),
        ("net", 'input_map { key: "PIXELS" value: "pixels"', 'input_map { key: "PIXELS" value: "x"', "reads 'x'"),
        ("net", "platform:", "instance_group [{count: 1}]\nplatform:", "instance_group is not allowed"),
        ("net_classifier", "TYPE_UINT8", "TYPE_FP32", "input PIXELS is TYPE_FP32, but TYPE_UINT8 in the graph"),
        ("net_classifier", "dims: [ 224, 224, 3 ]", "dims: [ 3, 224, 224 ]", "but [224, 224, 3] in the graph"),
        ("net_classifier", 'name: "PIXELS"', 'name: "INPUT"', "inputs ['INPUT'], but the graph has ['PIXELS']"),
        ("net_classifier", " batch_size: 1\n", " batch_size: 99\n", "warmup batch_size 99 is above max_batch_size 32"),
        ("net", "TYPE_STRING", "TYPE_STRING format: FORMAT_NHWC", "IMAGE has a format, which needs 3 dims, and has 1"),
        ("net_classifier", "count: 1", "count: 0", "instance_group count is 0"),
        ("net_classifier", "max_batch_size: 32", "max_batch_size: 0", "max_batch_size is 0, at least 1"),
        ("net_preprocess", "dims: [ 224, 224, 3 ]", "dims: [ 0, 224, 3 ]", "positive sizes or -1"),
        ("net_preprocess", "max_batch_size", "max_batchsize", "is not a model configuration"),
    ],
)
def test_broken_rules_are_found(model: str, old: str, new: str, message: str) -> None:
    texts = rendered()
    assert old in texts[model]
    texts[model] = texts[model].replace(old, new)
    with pytest.raises(ConfigError) as caught:
        check_configs(texts, ARTIFACT)
    assert message in caught.value.message


def test_labels_must_fit_the_output() -> None:
    with pytest.raises(ConfigError, match=r"dims \[1000\], but there are 999 labels"):
        check_configs(rendered(), replace(ARTIFACT, labels=("x",) * 999))


def test_names_of_a_raw_graph_are_kept() -> None:
    graph = replace(GRAPH, input=replace(GRAPH.input, name='in "put"'), outputs=(replace(GRAPH.output, name="scores"),))
    artifact = replace(ARTIFACT, onnx=graph)
    texts = rendered(artifact)
    check_configs(texts, artifact)
    step = parsed(texts, "net").ensemble_scheduling.step[1]
    assert dict(step.input_map) == {'in "put"': "pixels"}
    assert dict(step.output_map) == {"scores": "scores"}


def test_a_plan_is_served_by_the_tensorrt_backend_with_all_its_profiles() -> None:
    artifact = with_plan((1, 1, 4), (1, 16, 32))
    texts = rendered(artifact, target="tensorrt-10", precision="fp16")
    check_configs(texts, artifact)
    config = parsed(texts, "net_classifier")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    group = config.instance_group[0]
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert (list(group.profile), group.count) == (["0", "1"], 4)


def test_small_batches_share_cuda_graphs_and_large_ones_have_their_own() -> None:
    config = parsed(rendered(with_plan((1, 8, 20)), target="tensorrt-10", batch={"max": 20}), "net_classifier")
    graphs = [(spec.batch_size, spec.graph_lower_bound.batch_size) for spec in config.optimization.cuda.graph_spec]
    assert config.optimization.cuda.graphs
    assert graphs == [(1, 0), (2, 0), (4, 3), (8, 5), (16, 0), (20, 17)]
    without = rendered(with_plan((1, 8, 20)), target="tensorrt-10", batch={"max": 20}, plan={"cuda_graphs": False})
    assert not parsed(without, "net_classifier").HasField("optimization")
    listed = rendered(with_plan((1, 8, 20)), target="tensorrt-10", batch={"max": 20}, plan={"cuda_graphs": [12, 4, 1]})
    graphs = [
        (spec.batch_size, spec.graph_lower_bound.batch_size)
        for spec in parsed(listed, "net_classifier").optimization.cuda.graph_spec
    ]
    assert graphs == [(1, 0), (4, 2), (12, 0)]


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (4, 2), (16, 6)])
def test_a_fused_model_that_decodes_on_the_gpu_has_two_cores_a_process(
    cores: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.tasks.members.usable_cores", lambda: cores)
    asked = {"target": "tensorrt-10", "decode": "gpu", "layout": "fused"}
    assert parsed(rendered(with_plan((1, 8, 32)), **asked), "net").instance_group[0].count == count


@pytest.mark.parametrize(("most", "sizes"), [(64, [1, 2, 4, *range(8, 33, 4), 64]), (18, [1, 2, 4, 8, 12, 16, 18])])
def test_pieces_of_images_decoded_on_the_gpu_have_graphs_of_about_their_size(most: int, sizes: list[int]) -> None:
    asked = {"target": "tensorrt-10", "batch": {"max": most}, "decode": "gpu", "layout": "fused"}
    config = parsed(rendered(with_plan((1, 8, most)), **asked), "net")
    found = {spec.batch_size: spec.graph_lower_bound.batch_size for spec in config.optimization.cuda.graph_spec}
    assert list(found) == sizes
    assert all(any((low or size) <= rows <= size < rows + 4 for size, low in found.items()) for rows in range(1, 19))


@pytest.mark.parametrize(
    ("batches", "old", "new", "message"),
    [
        (((1, 8, 16),), "", "", "no profile of the group covers a batch of 17"),
        (((1, 1, 1), (3, 8, 32)), "", "", "no profile of the group covers a batch of 2"),
        (((1, 1, 4), (1, 8, 32)), '"0", "1"', '"0"', "no profile of the group covers a batch of 5"),
        (((1, 8, 32),), '"0"', '"7"', "instance_group lists profile 7, the plan has 1"),
    ],
)
def test_profiles_that_leave_a_gap_are_found(
    batches: tuple[tuple[int, int, int], ...], old: str, new: str, message: str
) -> None:
    artifact = with_plan(*batches)
    texts = rendered(artifact, target="tensorrt-10")
    assert old in texts["net_classifier"]
    texts["net_classifier"] = texts["net_classifier"].replace(old, new)
    with pytest.raises(ConfigError, match=message):
        check_configs(texts, artifact)


def test_a_plan_needs_its_passport() -> None:
    texts = rendered(with_plan((1, 8, 32)), target="tensorrt-10")
    with pytest.raises(ConfigError, match="there is no plan"):
        check_configs(texts, ARTIFACT)
