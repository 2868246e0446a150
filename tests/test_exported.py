"""Exports: made on one machine, built on another that has neither torch nor the source."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import onnx
import pytest

from generator.errors import DeviceError, ExportError, MissingDependencyError, PlanError, SourceError, VerificationError
from generator.exporting import export_folder
from generator.graph.model import read_onnx
from generator.pipeline import BuildOptions, build_repository
from generator.repository import read_record
from generator.spec.exported import EXPORT_FILE, read_export
from generator.spec.file import load_spec, make_spec
from generator.target import choose_target
from tests.tiny_onnx import write_tiny_onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the demo model for onnxruntime."""
    folder = tmp_path_factory.mktemp("exported") / "demo"
    export_folder(make_spec(["demo"], target="onnxruntime", batch={"max": 8})[0], folder)
    return folder


def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy")) / "model.onnx"


def test_an_export_states_what_it_is(exported: Path) -> None:
    record = read_export(exported / "model.onnx")
    assert (record.name, record.target, record.precision) == ("demo", "onnxruntime", "fp32")
    assert sorted(record.files) == ["model.onnx", "reference.npz"]
    assert record.labels[0] in (exported / EXPORT_FILE).read_text()


@pytest.mark.server
def test_a_host_without_torch_builds_and_proves_an_export(exported: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "blocked"
    for name in ("torch", "torchvision", "onnxscript"):
        (blocker / name).mkdir(parents=True)
        (blocker / name / "__init__.py").write_text(f"raise ModuleNotFoundError('no {name} here', name='{name}')")
    done = subprocess.run(
        [sys.executable, "-m", "generator", "build-repo", "--onnx", exported / "model.onnx", "--require", "all",
         "--repository", tmp_path / "models", "--json"],
        env={**os.environ, "PYTHONPATH": str(blocker)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = json.loads(done.stdout)
    assert {stage["status"] for stage in built["proof"]} == {"proved"}
    record = read_record(tmp_path / "models", "demo")
    assert record is not None
    assert record.spec["source"] == "export"
    assert record.spec["batch"]["max"] == 8
    # and again, from its own record: nothing to do
    (spec,) = load_spec(tmp_path / "models" / "demo" / "trtgen.json")
    again = build_repository(spec, tmp_path / "models", BuildOptions())
    assert {change.word for change in again.changes} == {"identical"}


def test_what_was_settled_by_the_export_stays(exported: Path) -> None:
    onnx = str(exported / "model.onnx")
    with pytest.raises(PlanError, match="was exported for onnxruntime"):
        choose_target(make_spec([onnx], target="tensorrt-10")[0])
    assert choose_target(make_spec([onnx], batch={"max": 4})[0])[0].batch.max == 4


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_a_changed_or_missing_file_is_found(exported: Path, tmp_path: Path, name: str) -> None:
    onnx = copy(exported, tmp_path)
    spec = make_spec([str(onnx)])[0]
    with (onnx.parent / name).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(SourceError, match="is not what was exported"):
        build_repository(spec, tmp_path / "models", BuildOptions())
    (onnx.parent / name).unlink()
    with pytest.raises(SourceError, match=r"is missing|cannot be read"):
        build_repository(spec, tmp_path / "models", BuildOptions())
    assert not (tmp_path / "models").exists() or not any((tmp_path / "models").iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "name": 3}'])
def test_a_broken_record_of_an_export_is_refused(exported: Path, tmp_path: Path, text: str) -> None:
    onnx = copy(exported, tmp_path)
    onnx.with_name(EXPORT_FILE).write_text(text)
    with pytest.raises(SourceError) as caught:
        make_spec([str(onnx)])
    assert caught.value.hint


def test_an_export_needs_a_target_where_no_tensorrt_is(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="none was given") as caught:
        export_folder(make_spec(["demo"])[0], tmp_path / "x")
    assert caught.value.fields == {"target": "tensorrt-10"}
    assert not any(tmp_path.iterdir())


def test_a_network_that_answers_alike_for_all_images_is_not_exported(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * 0, tensor.name))
    onnx.save(model, path)
    spec = make_spec([str(path)], labels="index", recipe="imagenet", target="onnxruntime")[0]
    with pytest.raises(VerificationError, match="images do not discriminate"):
        export_folder(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ExportError, match="is no export"):
        export_folder(make_spec(["demo"], target="onnxruntime")[0], tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_tensorrt_8_gets_opset_17(tmp_path: Path) -> None:
    export_folder(make_spec(["demo"], target="tensorrt-8.6", precision="fp16")[0], tmp_path / "demo")
    assert read_onnx(tmp_path / "demo" / "model.onnx").opset == 17
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_graph_with_bf16_weights_is_exported_as_it_is(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", size=64)
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, f"{weight.name}_bf16"))
    name = weight.name.removesuffix("_bf16")
    model.graph.node.insert(0, onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    onnx.save(model, path)
    options = {"labels": "index", "recipe": "imagenet", "image_size": 64, "target": "tensorrt-10"}
    export_folder(make_spec([str(path)], **options, precision="bf16")[0], tmp_path / "bf16")
    assert read_onnx(tmp_path / "bf16" / "model.onnx").precision == "bf16"
    assert read_export(tmp_path / "bf16" / "model.onnx").precision == "bf16"


def test_nodes_to_keep_travel_with_the_export(tmp_path: Path) -> None:
    """The graph for 8.6 is FP32, so that only the record can say which layers must stay so."""
    spec = make_spec(["demo"], target="tensorrt-8.6", precision="fp16", keep=["Gemm"])[0]
    export_folder(spec, tmp_path / "demo")
    (name,) = read_export(tmp_path / "demo" / "model.onnx").keep
    (node,) = [one for one in onnx.load(tmp_path / "demo" / "model.onnx").graph.node if one.op_type == "Gemm"]
    assert name == node.name


def test_a_plan_cannot_be_built_without_tensorrt(tmp_path: Path) -> None:
    spec = make_spec(["demo"], target="tensorrt-10")[0]
    with pytest.raises((MissingDependencyError, DeviceError)) as caught:
        build_repository(spec, tmp_path / "models", BuildOptions())
    assert (caught.value.command, caught.value.fields) == (("export",), {"target": "tensorrt-10"})
    assert not (tmp_path / "models").exists() or not any((tmp_path / "models").iterdir())


def test_precision_without_tensorrt_says_how_to_go_on() -> None:
    with pytest.raises(PlanError, match="precision int8 needs TensorRT") as caught:
        choose_target(make_spec(["demo"], precision="int8")[0])
    assert (caught.value.command, caught.value.fields) == (("export",), {"target": "tensorrt-10"})
