"""The gate: what is right passes, and each planted fault is caught by its stage with its likely cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from generator.cli import main
from generator.demo.draw import LABELS, draw_set
from generator.errors import VerificationError
from generator.gate.published import verify_published
from generator.gate.run import GateReport
from generator.images.reference import Reference, load_reference, make_reference, save_reference
from generator.images.sets import ImageSet, default_images, photographs, read_labelled
from generator.repository import read_record
from generator.tasks.classification.activation import Activation, Head
from generator.tasks.classification.compare import LIMITS, Limit, comparable, compare, discriminates

Edit = Callable[[Path, str, str], None]


def gate(root: Path, **options: Any) -> GateReport:
    (report,) = verify_published(root, ["demo"], **options)
    return report


def change_graph(root: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    path = root / "demo_classifier/1/model.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def initializer(model: onnx.ModelProto, name: str) -> Any:
    (found,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    return found


# --- what is right -------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_what_was_built_is_proved_at_every_stage(built_demo: Path) -> None:
    record = read_record(built_demo, "demo")
    assert record is not None
    stages = {entry["stage"]: entry["status"] for entry in record.proof}
    assert stages == dict.fromkeys(
        ["batches", "onnx", "served pixels", "served classifier", "served ensemble"], "proved"
    )
    report = gate(built_demo)
    assert report.failed == report.unproved == ()
    assert report.images == 40


@pytest.mark.server
def test_other_images_ask_the_source_itself(built_demo: Path, tmp_path: Path) -> None:
    for drawn in draw_set(12, seed=99):
        (tmp_path / f"{drawn.name}.jpg").write_bytes(drawn.jpeg)
    report = gate(built_demo, images=tmp_path)
    assert (report.images, report.failed) == (12, ())


@pytest.mark.server
def test_labelled_images_give_the_accuracy_of_each_stage(built_demo: Path, tmp_path: Path) -> None:
    for drawn in draw_set(30, seed=98):
        folder = tmp_path / (LABELS[drawn.label] if drawn.label else "0")  # a folder may also be named by its index
        folder.mkdir(exist_ok=True)
        (folder / f"{drawn.name}.jpg").write_bytes(drawn.jpeg)
    accuracies = {
        result.stage: result.figures.get("accuracy") for result in gate(built_demo, labelled=tmp_path).results[-3:]
    }
    assert list(accuracies) == ["labelled source", "labelled onnx", "labelled ensemble"]
    assert all(accuracy is not None and accuracy >= 0.97 for accuracy in accuracies.values())
    (tmp_path / "dodecahedron").mkdir()
    with pytest.raises(VerificationError, match="dodecahedron is named like no class"):
        gate(built_demo, labelled=tmp_path)
    with pytest.raises(VerificationError, match="dodecahedron: several classes have this name"):
        read_labelled(tmp_path, (*LABELS, "dodecahedron", "dodecahedron"))


# --- planted faults ------------------------------------------------------------------------------------------------


def bgr_step(root: Path, edit: Edit) -> None:
    edit(root / "demo_preprocess/1/model.py", "self.recipe.cropped(image)", "self.recipe.cropped(image)[..., ::-1]")


def bicubic_step(root: Path, edit: Edit) -> None:
    edit(root / "demo_preprocess/config.pbtxt", '"bilinear"', '"bicubic"')


def linear_step(root: Path, edit: Edit) -> None:
    edit(root / "demo_preprocess/config.pbtxt", '"bilinear"', '"linear"')


def swapped_ensemble_labels(root: Path, edit: Edit) -> None:
    edit(root / "demo/labels.txt", "arrow\nhexagon", "hexagon\narrow")


def swapped_classifier_labels(root: Path, edit: Edit) -> None:
    edit(root / "demo_classifier/labels.txt", "circle\ntriangle", "triangle\ncircle")


def bgr_graph(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "order"))
        for node in model.graph.node:
            node.input[:] = ["bgr" if name == "PIXELS" else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Gather", ["PIXELS", "order"], ["bgr"], axis=3))

    change_graph(root, change)


def wrong_mean(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        shift = initializer(model, "shift")
        halves = np.full((1, 3, 1, 1), -0.5, np.float32) / np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
        shift.CopyFrom(numpy_helper.from_array(halves, "shift"))

    change_graph(root, change)


def not_a_number(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bias"))
        values = numpy_helper.to_array(bias).copy()
        values[0] = np.nan
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    change_graph(root, change)


def softmax_twice(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["once" if name == "PROBABILITIES" else name for name in node.output]
        model.graph.node.append(helper.make_node("Softmax", ["once"], ["PROBABILITIES"], axis=1))

    change_graph(root, change)


def no_softmax(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "Identity"
        del model.graph.node[-1].attribute[:]

    change_graph(root, change)


def baked_batch(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, len(LABELS)], np.int64), "fixed"))
        for node in model.graph.node:
            node.output[:] = ["before" if name == "PROBABILITIES" else name for name in node.output]
        model.graph.node.append(helper.make_node("Reshape", ["before", "fixed"], ["PROBABILITIES"], name="baked"))

    change_graph(root, change)


def other_weights(root: Path, edit: Edit) -> None:
    def change(model: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT)
        largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data)) or weight
        values = numpy_helper.to_array(largest).copy()
        largest.CopyFrom(numpy_helper.from_array((values * 1.2).astype(np.float32), largest.name))

    change_graph(root, change)


FAULTS = [
    (bgr_step, "served pixels", "BGR order"),
    (bicubic_step, "served pixels", "interpolation is bicubic, the source was trained with bilinear"),
    (linear_step, "served pixels", "interpolation is linear, the source was trained with bilinear"),
    (swapped_ensemble_labels, "served ensemble", "labels.txt has its lines in another order"),
    (swapped_classifier_labels, "served classifier", "labels.txt has its lines in another order"),
    (bgr_graph, "onnx", "BGR order"),
    (wrong_mean, "onnx", "wrong mean: the graph normalises with [0.500, 0.500, 0.500]"),
    (not_a_number, "onnx", "an overflow, a division by zero, or broken weights"),
    (not_a_number, "batches", "an overflow, a division by zero, or broken weights"),
    (softmax_twice, "onnx", "Softmax twice"),
    (no_softmax, "onnx", "the Softmax is missing"),
    (baked_batch, "batches", "a batch axis is baked in"),
    (other_weights, "onnx", "the weights or the graph differ from the source"),
]


@pytest.mark.server
@pytest.mark.parametrize(("plant", "stage", "cause"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_caught(
    demo: Path, edit: Edit, plant: Callable[[Path, Edit], None], stage: str, cause: str
) -> None:
    plant(demo, edit)
    report = gate(demo)
    failed = {result.stage: result for result in report.failed}
    assert stage in failed
    assert cause in failed[stage].cause
    assert failed[stage].reason
    with pytest.raises(VerificationError, match="is not what its source is") as caught:
        report.raise_for_status(require_all=False)
    assert cause in caught.value.message


def test_the_baked_batch_names_its_node(demo: Path, edit: Edit) -> None:
    baked_batch(demo, edit)
    assert "node baked (Reshape)" in gate(demo).failed[0].reason


# --- images --------------------------------------------------------------------------------------------------------


def test_images_that_do_not_discriminate(built_demo: Path, tmp_path: Path) -> None:
    for number in range(4):
        shutil.copy(photographs_folder() / "china.jpg", tmp_path / f"{number}.jpg")
    with pytest.raises(VerificationError, match="images do not discriminate"):
        gate(built_demo, images=tmp_path)


def photographs_folder() -> Path:
    import generator

    return Path(generator.__file__).parent / "assets"


def test_image_folders_that_cannot_be_used(built_demo: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="holds no image"):
        gate(built_demo, images=tmp_path)
    with pytest.raises(VerificationError, match="is not a folder"):
        gate(built_demo, images=tmp_path / "none")
    (tmp_path / "a.jpg").write_bytes(photographs().files[0][:5000])
    with pytest.raises(VerificationError, match=r"a\.jpg does not decode"):
        gate(built_demo, images=tmp_path)


def test_a_reference_survives_its_file(built_demo: Path, tmp_path: Path) -> None:
    reference = load_reference(built_demo / "demo_classifier/1/reference.npz")
    save_reference(reference, tmp_path / "copy.npz")
    copy = load_reference(tmp_path / "copy.npz")
    assert copy.names == reference.names
    assert copy.files == reference.files
    assert np.array_equal(copy.answers["scores"], reference.answers["scores"])
    assert (tmp_path / "copy.npz").read_bytes() == (built_demo / "demo_classifier/1/reference.npz").read_bytes()
    (tmp_path / "copy.npz").write_bytes(b"PK broken")
    with pytest.raises(VerificationError, match="cannot be read"):
        load_reference(tmp_path / "copy.npz")


def test_the_default_set_mixes_drawn_images_and_photographs() -> None:
    images = default_images()
    assert len(images.names) == 40
    assert {"china.jpg", "flower.jpg"} <= set(images.names)


# --- arithmetic ----------------------------------------------------------------------------------------------------


def scores(rows: int = 6, classes: int = 10) -> Any:
    return np.random.default_rng(4).normal(0, 3, (rows, classes)).astype(np.float32)


def softmax(values: Any) -> Any:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def measure(expected: Any, actual: Any, activation: Activation = "softmax") -> float:
    final = Head(output="logits", activation=activation).finish(expected)
    return compare(comparable(final, activation), comparable(actual, activation)).worst_cosine


def test_scores_and_their_probabilities_are_the_same_to_the_gate() -> None:
    assert measure(scores(), softmax(scores())) > 0.9999999
    assert measure(scores() * 40, softmax(scores() * 40)) > 0.999999  # far beyond what FP32 probabilities can tell
    assert measure(scores(), 1 / (1 + np.exp(-scores())), "sigmoid") > 0.9999999
    assert measure(scores(), scores(), "none") == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 10])
def test_scores_of_another_length_do_not_pass(classes: int) -> None:
    """Their cosine is 1, their first classes agree, and the probabilities are wrong."""
    assert measure(scores(classes=classes), softmax(scores(classes=classes) * 0.8)) < 0.99


def test_a_swapped_image_and_a_missing_number_never_pass() -> None:
    assert measure(scores(), softmax(scores())[::-1]) < 0.9
    broken = softmax(scores())
    broken[2] = np.nan
    comparison = compare(comparable(softmax(scores()), "softmax"), broken.astype(np.float64))
    assert not comparison.meets(Limit(cosine=-1, top1=0))


def test_two_classes_discriminate_too() -> None:
    limit = LIMITS["fp32"]
    assert discriminates(comparable(softmax(scores(classes=2)), "softmax"), limit)
    assert not discriminates(np.ones((5, 3)), limit)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_the_command_prints_a_table_and_json(built_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "-r", str(built_demo)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all("proved" in line for line in lines)
    assert main(["verify", "demo", "-r", str(built_demo), "--json", "--require", "all"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["model"], len(entry["stages"])) == ("demo", 5)


@pytest.mark.server
def test_the_command_fails_with_the_cause(demo: Path, edit: Edit, capsys: pytest.CaptureFixture[str]) -> None:
    bgr_step(demo, edit)
    assert main(["verify", "-r", str(demo)]) == 1
    captured = capsys.readouterr()
    assert "failed" in captured.out
    assert "likely cause: the channels are in BGR order" in captured.err


def test_a_server_that_is_not_there_is_not_the_models_fault(
    built_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "demo", "-r", str(built_demo), "--url", "localhost:1"]) == 1
    said = capsys.readouterr().err
    assert "no Triton server answers gRPC at localhost:1" in said
    assert f"or start one: trtgen serve --repository {built_demo}\n" in said
    assert "is not what its source is" not in said


@pytest.mark.server
def test_a_server_of_other_models_is_not_the_models_fault(
    built_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from generator.server.embedded import EmbeddedServer

    shutil.copytree(built_demo / "demo_preprocess", tmp_path / "demo_preprocess")
    with EmbeddedServer(tmp_path) as server:
        assert main(["verify", "demo", "-r", str(built_demo), "--url", server.grpc_url]) == 1
    said = capsys.readouterr().err
    assert f"the server at {server.grpc_url} does not serve demo_classifier; it serves demo_preprocess" in said
    assert "give another address" in said


def test_models_that_are_not_there(built_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "resnet50", "-r", str(built_demo)]) == 1
    assert "holds no model 'resnet50'; it has demo" in capsys.readouterr().err
    assert main(["verify", "-r", str(tmp_path)]) == 1
    assert "hint: build one: trtgen build-repo demo" in capsys.readouterr().err


def test_a_gate_without_a_server_says_what_it_did_not_prove(built_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from generator.errors import MissingDependencyError
    from generator.server import wheel

    def absent() -> Any:
        raise MissingDependencyError("nvidia-pytriton", extra="server", why="the pip tritonserver")

    monkeypatch.setattr(wheel, "check_embedded", absent)
    report = gate(built_demo)
    assert [result.stage for result in report.unproved] == ["served pixels", "served classifier", "served ensemble"]
    assert "pip install -e '.[server]'" in report.unproved[0].reason
    report.raise_for_status(require_all=False)
    with pytest.raises(VerificationError, match="required to be proved"):
        report.raise_for_status(require_all=True)


def test_a_reference_is_made_by_the_source() -> None:
    from generator.sources import load_network
    from generator.spec.file import make_spec

    spec = make_spec(["demo"])[0]
    network = load_network(spec)
    drawn = draw_set(10, seed=5)
    images = ImageSet(names=tuple(d.name for d in drawn), files=tuple(d.jpeg for d in drawn))
    reference = make_reference(spec, network, images)
    assert isinstance(reference, Reference)
    assert reference.pixels.shape == (10, 96, 96, 3)
    assert [int(row.argmax()) for row in reference.answers["scores"]] == [d.label for d in drawn]
