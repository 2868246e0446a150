"""What TensorRT-RTX, a real parser and builder, says about graphs on a machine without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from generator.cli.check import check
from generator.errors import PlanError
from generator.exporting import export_folder
from generator.graph.model import OnnxModel, read_onnx
from generator.plan.preflight import PreflightReport, check_graph
from generator.plan.profiles import make_profiles
from generator.sources import load_network
from generator.spec.file import make_spec
from generator.spec.plan import BatchProfile
from tests.test_build_plan import asymmetric, custom_domain, int32_bias, late_cast, no_kernel, unsupported
from tests.tiny_onnx import export_graph, write_tiny_onnx

MODELS = ("demo", "resnet18", "resnet50", "efficientnet_b0")
# Layers of these types must be there, or the graph is not what its name says.
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
CALIBRATION_IMAGES = 8  # enough for scales; how good they are is the gate's question


def report_on(model: OnnxModel, *, build: bool = True) -> PreflightReport:
    profiles = make_profiles(model, [BatchProfile(min=1, opt=1, max=1), BatchProfile(min=2, opt=8, max=32)])
    return check_graph(model, profiles, build=build, max_batch_size=32)


def test_report_of_a_graph_that_is_accepted(tmp_path: Path) -> None:
    report = report_on(read_onnx(write_tiny_onnx(tmp_path / "tiny.onnx")))
    assert report.accepted
    assert report.built
    assert report.parsed
    assert report.library.startswith("TensorRT-RTX 1.")
    assert report.operators == {
        "Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "Identity": 1
    }  # fmt: skip
    assert sum(report.layer_types.values()) == report.layers > 5
    assert report.plan_bytes > 1000
    assert report.profiles == (
        "image 1x3x32x32 1x3x32x32 1x3x32x32",
        "image 2x3x32x32 8x3x32x32 32x3x32x32",
    )
    assert "builder accepts every layer" in report.proves
    assert "TensorRT of your target" in report.does_not_prove
    report.raise_for_status()
    values = json.loads(json.dumps(report.as_json()))
    assert values["accepted"] is True
    assert values["layers"] == report.layers


def test_parsing_alone(tmp_path: Path) -> None:
    report = report_on(read_onnx(write_tiny_onnx(tmp_path / "tiny.onnx")), build=False)
    assert report.accepted
    assert report.built is None
    assert report.plan_bytes == 0
    assert "no builder has seen it" in report.proves


@pytest.mark.parametrize(
    ("plant", "node", "operator", "hint"),
    [
        (unsupported, "determinant", "Det", "no such operator"),
        (custom_domain, "frob", "Frobnicate", "no such operator"),
        (late_cast, "transpose", "Transpose", "Cast directly behind the input"),
        (int32_bias, "dequantize_bias", "DequantizeLinear", "QuantizeBias"),
        (asymmetric, "quantize", "QuantizeLinear", "zero points of 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refused_by_the_parser(
    tmp_path: Path, plant: Callable[[Path], Path], node: str, operator: str, hint: str
) -> None:
    report = report_on(read_onnx(plant(tmp_path / "planted.onnx")))
    assert not report.accepted
    assert not report.parsed
    assert report.built is None
    (fault,) = report.faults
    assert (fault.node, fault.operator) == (node, operator)
    assert hint in fault.hint
    assert "does not read this graph" in report.proves
    with pytest.raises(PlanError, match=node):
        report.raise_for_status()
    assert report.as_json()["faults"][0]["hint"] == fault.hint


def test_read_but_not_built(tmp_path: Path) -> None:
    report = report_on(read_onnx(no_kernel(tmp_path / "planted.onnx")))
    assert report.parsed
    assert report.built is False
    assert "reads this graph, but does not build it" in report.proves
    with pytest.raises(PlanError, match="no runners that implement"):
        report.raise_for_status()


def test_profiles_with_a_gap_never_reach_the_parser(tmp_path: Path) -> None:
    model = read_onnx(write_tiny_onnx(tmp_path / "tiny.onnx"))
    profiles = make_profiles(model, [BatchProfile(min=1, opt=2, max=4), BatchProfile(min=8, opt=8, max=32)])
    with pytest.raises(PlanError, match="no profile covers 5-7"):
        check_graph(model, profiles, max_batch_size=32)
    with pytest.raises(PlanError, match="there is no optimization profile"):
        check_graph(model, [])


def test_graph_of_fixed_shape(tmp_path: Path) -> None:
    model = read_onnx(write_tiny_onnx(tmp_path / "static.onnx", batch=2))
    assert check_graph(model, []).built
    with pytest.raises(PlanError, match="the graph fixes this axis to 2"):
        report_on(model)


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(check)
    return app


def test_command_prints_the_report(tmp_path: Path, command: typer.Typer) -> None:
    path = write_tiny_onnx(tmp_path / "tiny.onnx")
    result = CliRunner().invoke(command, [str(path), "--profile", "1,1,1", "--profile", "2,4,8"])
    assert result.exit_code == 0
    assert "operators  Conv 1" in result.stdout
    assert "profile    image 2x3x32x32 4x3x32x32 8x3x32x32" in result.stdout
    assert "does not prove: what the TensorRT of your target" in result.stderr
    result = CliRunner().invoke(command, [str(path), "--json", "--no-build", "--max-batch", "4"])
    assert json.loads(result.stdout)["profiles"] == ["image 1x3x32x32 4x3x32x32 4x3x32x32"]


def test_command_says_what_build_repo_would_not_take(tmp_path: Path, command: typer.Typer) -> None:
    path = write_tiny_onnx(tmp_path / "two.onnx")
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", 16]))
    onnx.save(model, path)
    result = CliRunner().invoke(command, [str(path), "--no-build"])
    assert result.exit_code == 0
    assert "! build-repo does not take this graph" in result.stderr
    assert "has several outputs with the shape of scores: scores" in result.stderr
    result = CliRunner().invoke(command, [str(write_tiny_onnx(path)), "--no-build"])
    assert "build-repo" not in result.stderr
    result = CliRunner().invoke(command, [str(path), "--task", "toy"])
    assert result.exit_code == 2
    assert "there is no task 'toy'; known are classification" in result.stderr


def test_command_lists_the_repairs_of_an_export(tmp_path: Path, command: typer.Typer) -> None:
    spec = make_spec(
        [str(write_tiny_onnx(tmp_path / "own.onnx", batch=1))], target="tensorrt-11", precision="fp32",
        recipe="imagenet", labels="index", image_size=32,
    )[0]  # fmt: skip
    export_folder(spec, tmp_path / "exported")
    arguments = [str(tmp_path / "exported" / "model.onnx"), "--no-build"]
    assert "repaired   the batch of 1 is made free" in CliRunner().invoke(command, arguments).stdout
    assert json.loads(CliRunner().invoke(command, [*arguments, "--json"]).stdout)["repairs"] == [
        "the batch of 1 is made free"
    ]
    (tmp_path / "exported" / "reference.npz").unlink()
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0
    assert "! build-repo does not take this graph" in result.stderr
    assert "reference.npz is missing" in result.stderr


def test_command_fails_on_refusal(tmp_path: Path, command: typer.Typer) -> None:
    result = CliRunner().invoke(command, [str(unsupported(tmp_path / "planted.onnx"))])
    assert isinstance(result.exception, PlanError)
    assert "refused    node determinant (Det): UNSUPPORTED_NODE" in result.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "planted.onnx"]


# The models of the project, in every precision


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], OnnxModel]]:
    made: dict[str, OnnxModel] = {}

    def export(name: str) -> OnnxModel:
        if name not in made:
            # half the usual edge: the same graph, and a fraction of the time for random weights and for calibration
            wish = {} if name == "demo" else {"weights": "random", "image_size": 112}
            spec = make_spec([name], target="tensorrt-11", precision="fp32", **wish)[0]
            made[name] = export_graph(spec, load_network(spec), tmp_path_factory.mktemp(name))
        return made[name]

    yield export
    made.clear()


@pytest.mark.slow
@pytest.mark.parametrize("precision", [name for name in TYPES if name != "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_are_accepted(exported: Callable[[str], OnnxModel], tmp_path: Path, name: str, precision: str) -> None:
    model = exported(name)
    if precision != "fp32":
        from generator.graph.precision import convert_graph

        shape = (CALIBRATION_IMAGES, *model.input.shape[1:])
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8) if precision == "int8" else None
        converted = convert_graph(
            model.path, tmp_path / "model.onnx", precision=precision, target="tensorrt-11", calibration=images
        )
        model = read_onnx(converted.path)
    report = report_on(model)
    report.raise_for_status()
    assert report.built
    assert report.precision == precision
    assert report.layer_types.get(TYPES[precision], 0) > 5
