"""What is put behind a network follows from the graph's end and the source's answers; the gate sees a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from generator.cli import main
from generator.demo.draw import LABELS, draw_set
from generator.errors import ExportError, SourceError, VerificationError
from generator.events import ignore
from generator.exporting import export_artifact, export_folder
from generator.gate import published
from generator.gate.published import verify_published
from generator.graph.model import load_proto, open_onnx
from generator.images.reference import load_reference, make_reference
from generator.images.sets import default_images, read_labelled
from generator.pipeline import BuildOptions, build_repository
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.sources import load_network
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from generator.spec.recipe import RecipeSpec
from generator.tasks.classification.activation import Head, choose_head, guess_head, read_head
from generator.tasks.classification.answers import find_decided
from generator.tasks.classification.labelled import check_recipe
from tests.test_export import Small, module_network, pixels, tiny_spec
from tests.tiny_onnx import export_graph, only, write_tiny_onnx

Scores = NDArray[np.float32]


def sigmoid(values: Scores) -> Scores:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def softmax(values: Scores) -> Scores:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def exported(tmp_path: Path, tail: str, activation: str = "auto", **options: Any) -> tuple[Scores, Scores, str]:
    """Return what the file answers, what the exported graph answers, and the name of the graph's output."""
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx", tail=tail, **options), activation=activation)
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path / "out")
    return only(network.run(pixels())), only(open_onnx(model.path)(pixels())), model.output.name


# --- auto ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "finish"),
    [
        ("none", softmax),
        ("softmax", lambda answers: answers),
        ("distribution", lambda answers: answers),
        ("log-softmax", np.exp),
        ("sigmoid", lambda answers: answers),
        ("hidden sigmoid", lambda answers: answers),
    ],
)
def test_clients_get_the_files_own_final_answer(tmp_path: Path, tail: str, finish: Callable[[Scores], Scores]) -> None:
    """The file of the sigmoid was served with a Softmax behind it: .82 .74 .69 .11 .06 became .27 .24 .23 .13 .12."""
    answers, served, name = exported(tmp_path, tail)
    assert np.abs(served - finish(answers)).max() < 1e-5
    assert name == "PROBABILITIES"


def test_one_logit_becomes_a_probability(tmp_path: Path) -> None:
    answers, served, _ = exported(tmp_path, "none", classes=1)
    assert np.abs(served - sigmoid(answers)).max() < 1e-5
    answers, served, _ = exported(tmp_path, "sigmoid", classes=1)
    assert np.abs(served - answers).max() < 1e-6


@pytest.mark.parametrize(
    ("tail", "activation", "words"),
    [
        ("sigmoid", "softmax", "activation is softmax, but the source ends in Sigmoid and answers values from"),
        ("hidden sigmoid", "softmax", "ends in Sigmoid and answers values from"),
        (
            "softmax",
            "sigmoid",
            "activation is sigmoid, but the source ends in Softmax and answers probabilities that sum",
        ),
        ("log-softmax", "sigmoid", "ends in LogSoftmax and answers log-probabilities"),
        ("distribution", "sigmoid", "activation is sigmoid, but the source answers probabilities that sum to 1"),
    ],
)
def test_what_contradicts_the_spec_is_refused(tmp_path: Path, tail: str, activation: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        exported(tmp_path, tail, activation)


def test_one_class_has_no_softmax(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one class, whose probability would always be 1"):
        exported(tmp_path, "none", "softmax", classes=1)


@pytest.mark.parametrize(("tail", "activation"), [("softmax", "softmax"), ("sigmoid", "sigmoid"), ("sigmoid", "none")])
def test_an_activation_that_is_there_is_not_added(tmp_path: Path, tail: str, activation: str) -> None:
    answers, served, name = exported(tmp_path, tail, activation)
    assert np.abs(served - answers).max() < 1e-6
    assert name == "PROBABILITIES"


def test_logits_that_lie_between_0_and_1_by_chance_stay_logits() -> None:
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Gemm", ["x", "w"], ["scores"])], "g", [], [])
    )
    scores = np.array([[0.1, 0.8, 0.3], [0.7, 0.2, 0.9]], np.float32)
    assert choose_head("auto", None, proto, "scores", scores, name="m") == Head(output="logits", activation="softmax")
    # a linear layer as other exporters write it
    proto.graph.node.extend([onnx.helper.make_node("Add", ["scores", "bias"], ["sum"])])
    proto.graph.node[0].op_type = "MatMul"
    assert choose_head("none", None, proto, "sum", scores, name="m") == Head(output="logits", activation="none")
    proto.graph.node[0].op_type = "Sigmoid"  # and then selected from, or clipped
    head = choose_head("auto", None, proto, "sum", scores, name="m")
    assert head == Head(output="independent probabilities", activation="sigmoid")
    with pytest.raises(ExportError, match="ends in Add behind an activation, but answers logits from 10 to 90"):
        choose_head("auto", None, proto, "sum", scores * 100, name="m")
    proto.graph.node[0].op_type = "HardSigmoid"
    head = choose_head("auto", None, proto, "scores", scores, name="m")
    assert head == Head(output="independent probabilities", activation="sigmoid")


def test_an_output_that_is_called_probabilities_and_holds_logits(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "PROBABILITIES"
    onnx.save(model, path)
    spec = tiny_spec(path)
    artifact = export_artifact(spec, tmp_path / "out", shown="", images=None, on_event=ignore)
    assert "logits, though its output is called PROBABILITIES" in artifact.assumed["activation"]
    batch = pixels()
    served = only(open_onnx(artifact.onnx.path)(batch))
    assert np.abs(served - softmax(only(load_network(spec).run(batch)))).max() < 1e-5


# --- names and types -------------------------------------------------------------------------------------------------


def test_tensors_may_have_our_names(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx")
    model = onnx.load(path)
    ours = {
        "image": "trtgen_cast",
        "conv": "PIXELS",
        "pooled": "PIXELS_source",
        "relu": "trtgen_scale",
        "raw": "trtgen_scaled",
        "scores": "LOGITS",
    }
    for one in model.graph.node:
        one.input[:] = [ours.get(name, name) for name in one.input]
        one.output[:] = [ours.get(name, name) for name in one.output]
    model.graph.input[0].name, model.graph.output[0].name = "trtgen_cast", "LOGITS"
    onnx.save(model, path)
    spec = tiny_spec(path)
    network = load_network(spec)
    graph = export_graph(spec, network, tmp_path / "out")
    assert np.abs(only(open_onnx(graph.path)(pixels())) - softmax(only(network.run(pixels())))).max() < 1e-5


@pytest.mark.parametrize("tail", ["none", "softmax"])
def test_half_precision_outputs_and_inputs_are_cast(tmp_path: Path, tail: str) -> None:
    from onnxconverter_common import float16

    path = write_tiny_onnx(tmp_path / "own.onnx", tail=tail)
    onnx.save(float16.convert_float_to_float16(onnx.load(path), keep_io_types=False), path)
    assert {load_proto(path).graph.output[0].type.tensor_type.elem_type} == {TensorProto.FLOAT16}
    spec = tiny_spec(path)
    network = load_network(spec)
    graph = export_graph(spec, network, tmp_path / "out")
    assert (graph.output.data_type.numpy, graph.input.data_type.numpy) == ("float32", "uint8")
    finished = guess_head("softmax", only(network.run(pixels()))).finish(only(network.run(pixels())))
    assert np.abs(only(open_onnx(graph.path)(pixels())) - finished).max() < 1e-3


def test_weights_behind_links_are_read(tmp_path: Path) -> None:
    """The layout of Hugging Face's cache: graph and weights are links to blobs named by their hashes."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    model = onnx.load(write_tiny_onnx(tmp_path / "own.onnx"))
    onnx.save(model, blobs / "a1b2", save_as_external_data=True, location="own.onnx_data", size_threshold=0)
    (blobs / "own.onnx_data").rename(blobs / "c3d4")
    (snapshot / "own.onnx").symlink_to("../blobs/a1b2")
    (snapshot / "own.onnx_data").symlink_to("../blobs/c3d4")
    spec = tiny_spec(snapshot / "own.onnx")
    network = load_network(spec)
    graph = export_graph(spec, network, tmp_path / "out")
    assert np.abs(only(open_onnx(graph.path)(pixels())) - softmax(only(network.run(pixels())))).max() < 1e-5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


# --- what no image may do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("contrast", "the source answers NaN or infinity for 2 of 40 images: black.png, white.png"),
        ("random", "differently twice"),
    ],
)
def test_a_source_that_cannot_be_a_measure_is_refused(tmp_path: Path, tail: str, words: str) -> None:
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx", tail=tail))
    with pytest.raises(VerificationError, match=words):
        export_artifact(spec, tmp_path / "out", shown="", images=None, on_event=ignore)


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("contrast", r"NaN or infinite for single images \(image black\)"),
        ("random", r"answered differently twice by node noise \(RandomNormalLike\)"),
        ("pairs", "baked in by .*: with a batch of 2, row 0 differs"),
    ],
)
def test_a_graph_that_depends_on_more_than_its_image_is_refused(tmp_path: Path, tail: str, words: str) -> None:
    # not behind a Softmax, which hides a lot where it is saturated
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx", tail=tail), activation="none")
    with pytest.raises(ExportError, match=words) as caught:
        export_graph(spec, load_network(spec), tmp_path / "out")
    if tail == "random":
        assert "dropout that is left on" in (caught.value.hint or "")


def test_every_row_of_the_largest_batch_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 3 to 15 of 32 were seen in that batch only."""
    from generator.graph import batches as dynamic_batch

    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx"), activation="none", batch={"max": 32})
    graph = export_graph(spec, load_network(spec), tmp_path / "out")
    right = open_onnx(graph.path)

    def wrong(batch: NDArray[np.uint8]) -> dict[str, Scores]:
        outputs = right(batch)
        if len(batch) == 32:
            outputs["LOGITS"][7] += 1
        return outputs

    monkeypatch.setattr(dynamic_batch, "open_onnx", lambda _path: wrong)
    with pytest.raises(ExportError, match="with a batch of 32, row 7 differs"):
        dynamic_batch.prove_dynamic_batch(graph, maximum=32)


def test_a_dropout_that_is_left_on_in_a_module_is_named() -> None:
    class Dropping(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(super().forward(images), training=True)

    with pytest.raises(VerificationError, match="differently twice") as caught:
        make_reference(ModelSpec(name="dropping"), module_network(Dropping(), 4), default_images())
    assert "dropout that is left on" in (caught.value.hint or "")


# --- one output ------------------------------------------------------------------------------------------------------


def test_one_output_decides_by_its_threshold() -> None:
    def run(batch: NDArray[np.uint8]) -> Scores:
        return np.asarray(batch.reshape(len(batch), -1).astype(np.float32).mean(axis=1, keepdims=True) / 100 - 1)

    batch = np.zeros((3, 4, 4, 3), np.uint8)
    batch[0], batch[1], batch[2] = 100, 250, 30  # at the threshold, above, below
    assert find_decided(run, batch, run(batch)).tolist() == [False, True, True]


@pytest.mark.parametrize(("names", "labels"), [("cat\n", ["not cat", "cat"]), ("dog\ncat\n", ["dog", "cat"])])
def test_one_output_has_one_name_or_two(tmp_path: Path, names: str, labels: list[str]) -> None:
    (tmp_path / "names.txt").write_text(names)
    path = write_tiny_onnx(tmp_path / "own.onnx", classes=1)
    spec = tiny_spec(path).model_copy(update={"labels": tmp_path / "names.txt"})
    assert list(load_network(spec).labels) == labels
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    with pytest.raises(SourceError, match="has 3 lines, but own has one output"):
        load_network(spec)


# --- the gate --------------------------------------------------------------------------------------------------------


def build(tmp_path: Path, tail: str, **options: Any) -> Path:
    """Build and prove a tiny model called own; return the repository."""
    root = tmp_path / "model_repository"
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    more: dict[str, Any] = {"classes": 1, "seed": 3} if options.pop("binary", False) else {}
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx", tail=tail, **more), batch={"max": 4}, **options)
    if more:
        spec = spec.model_copy(update={"labels": tmp_path / "names.txt"})
    report = build_repository(spec, root, BuildOptions(require_all=True)).report
    assert report is not None
    assert not report.failed
    return root


def replace_last(root: Path, operator: str, *, add: bool = False) -> None:
    """Put another activation at the end of the published graph, or one more."""
    path = root / "own_classifier/1/model.onnx"
    model = onnx.load(path)
    if add:
        for one in model.graph.node:
            one.output[:] = ["before" if name == "PROBABILITIES" else name for name in one.output]
        model.graph.node.append(onnx.helper.make_node(operator, ["before"], ["PROBABILITIES"]))
    else:
        model.graph.node[-1].op_type = operator
    onnx.save(model, path)


@pytest.mark.server
def test_a_sigmoid_is_served_as_it_is_and_another_end_is_caught(tmp_path: Path) -> None:
    root = build(tmp_path, "sigmoid")
    record = json.loads((root / "own/trtgen.json").read_text())
    assert record["head"] == {"output": "independent probabilities", "activation": "sigmoid"}
    assert record["spec"]["activation"] == "auto"
    assert list(record["assumed"]) == ["recipe"]
    assert {"stage": "recipe", "status": "assumed", "reason": record["assumed"]["recipe"]} in record["proof"]
    for operator, cause in (("Softmax", "a Softmax behind a Sigmoid"), ("Sigmoid", "Sigmoid twice")):
        replace_last(root, operator, add=operator == "Softmax")
        (report,) = verify_published(root, ["own"])
        failed = {result.stage: result for result in report.failed}
        assert cause in failed["onnx"].cause


@pytest.mark.server
def test_a_model_of_an_older_trtgen_that_put_a_softmax_behind_a_sigmoid_is_caught(tmp_path: Path) -> None:
    root = build(tmp_path, "sigmoid")
    path = root / "own/trtgen.json"
    record = json.loads(path.read_text())
    record["spec"]["activation"] = "softmax"
    del record["head"], record["assumed"]
    path.write_text(json.dumps(record))
    replace_last(root, "Softmax", add=True)
    (report,) = verify_published(root, ["own"])
    assert "a Softmax behind a Sigmoid" in report.failed[0].cause
    record["head"] = {"output": "probabilities", "activation": "softmax"}
    path.write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="the source answers probabilities, but its answers are values"):
        next(verify_published(root, ["own"]))


@pytest.mark.parametrize(
    ("data", "activation"),
    [({"output": "foo", "activation": "softmax"}, "softmax"), (["logits"], "softmax"), (None, "auto"), ({}, "none")],
)
def test_a_damaged_head_is_an_error(tmp_path: Path, data: Any, activation: str) -> None:
    with pytest.raises(SourceError, match="does not say what its source answers"):
        read_head(data, activation, tmp_path / "reference.npz")


@pytest.mark.server
def test_one_output_is_proved_and_named(tmp_path: Path) -> None:
    root = build(tmp_path, "none", binary=True)
    record = json.loads((root / "own/trtgen.json").read_text())
    assert record["contract"]["labels"] == ["dog", "cat"]
    assert record["assumed"]["activation"].startswith("sigmoid: the source answers logits")
    assert (root / "own/labels.txt").read_text() == "cat\n"
    reference = load_reference(root / "own_classifier/1/reference.npz")
    assert reference.answers["scores"].shape == (40, 1)
    with EmbeddedServer(root) as server:
        import tritonclient.grpc

        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        config = client.get_model_config("own", as_json=True)["config"]
        assert config["parameters"]["negative_label"] == {"string_value": "dog"}
        client.close()
    # a graph that answers the probability of the other class
    model = onnx.load(root / "own_classifier/1/model.onnx")
    model.graph.node[-1].input[0] = "turned"
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Neg", ["scores"], ["turned"]))
    onnx.save(model, root / "own_classifier/1/model.onnx")
    (report,) = verify_published(root, ["own"])
    assert report.failed


@pytest.mark.server
def test_an_unchanged_rebuild_needs_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, "sigmoid")

    def refuse(*_: object) -> None:
        raise AssertionError("onnxruntime was asked")

    monkeypatch.setattr("generator.graph.model.open_onnx", refuse)
    root, path = tmp_path / "model_repository", tmp_path / "own.onnx"
    spec = tiny_spec(path, batch={"max": 4})
    assert {change.word for change in build_repository(spec, root, BuildOptions()).changes} == {"identical"}
    assert main(["build-repo", "--spec", str(root / "own/trtgen.json"), "-r", str(root)]) == 0


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter that makes the file
@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, "proved", "the best of the usual others"),
        ({"exported": True}, "proved", "with channels in BGR order, other means and stds not tried"),
        ({"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}, "failed", "with ImageNet's mean and std"),
        ({"mean": (-9.0, -9.0, -9.0)}, "failed", "accuracy 10.0% on 30 images as given, 100.0% with ImageNet's mean"),
        ({"scale": 1.0}, "failed", "with ImageNet's mean and std"),
        ({"channels": "BGR"}, "proved", "channels in RGB order"),  # which shapes are the same in
        ({"fit": "stretch", "resize": (96, 96)}, "failed", "with the shorter edge resized, its centre taken"),
        ({"labels": "shuffled"}, "not proved", "is not clearly above"),
    ],
)
def test_labelled_images_decide_on_a_given_recipe(
    tmp_path: Path, change: dict[str, Any], status: str, words: str
) -> None:
    spec, images = demo_as_file(tmp_path), tmp_path / "labelled"
    names = list(LABELS) if "labels" not in change else [*LABELS[3:], *LABELS[:3]]
    for drawn in draw_set(30, seed=97):
        (images / names[drawn.label]).mkdir(parents=True, exist_ok=True)
        (images / names[drawn.label] / f"{drawn.name}.jpg").write_bytes(drawn.jpeg)
    fields = {key: value for key, value in change.items() if key in RecipeSpec.model_fields}
    recipe = spec.recipe.model_copy(update=fields)
    spec, root = spec.model_copy(update={"recipe": recipe}), tmp_path / "model_repository"
    if "exported" in change:
        export_folder(spec.model_copy(update={"target": "onnxruntime"}), tmp_path / "export")
        spec = make_spec([str(tmp_path / "export/model.onnx")], name="own")[0]
    build_repository(spec, root, BuildOptions(verify=False))
    record = read_record(root, "own")
    assert record is not None
    assert "as given, not proved" in record.assumed["recipe"]
    candidate = published.read_candidate(root, record)
    result = check_recipe(candidate, read_labelled(images, candidate.artifact.labels))
    assert (result.status, result.stage) == (status, "recipe")
    assert words in result.measured + result.reason


def demo_as_file(folder: Path) -> ModelSpec:
    """Write the demo network as a file of a user's, and return its spec."""
    network = load_network(make_spec(["demo"])[0])
    assert network.module is not None
    size = network.recipe.crop
    torch.onnx.export(
        network.module,
        (torch.zeros(2, 3, *size),),
        folder / "own.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
    )
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in LABELS))
    recipe = network.recipe.model_dump(include={"resize", "crop", "interpolation", "mean", "std"})
    return make_spec([str(folder / "own.onnx")], labels=str(folder / "names.txt"), recipe=recipe)[0]
