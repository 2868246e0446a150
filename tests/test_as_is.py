"""Graphs that are quantised, FP16, BF16 or FP8 already: taken as they are, judged by what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from generator.cli import main
from generator.demo.draw import LABELS, draw_set
from generator.errors import ExportError, PlanError, SpecError, TrtgenError
from generator.exporting import export_folder
from generator.gate.candidate import Candidate
from generator.gate.run import run_gate
from generator.gpu import Gpu
from generator.graph.as_is import cast_to_fp32, find_float_layers
from generator.graph.model import load_proto, open_onnx, read_onnx
from generator.images.reference import load_reference
from generator.pipeline import BuildOptions, build_repository
from generator.plan.compatibility import check_gpu
from generator.repository import Layout
from generator.spec.exported import read_export
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from generator.target import choose_target
from tests.test_preflight import report_on
from tests.tiny_onnx import only, write_tiny_onnx

# Made by `python -m benchmarks.modelopt --mode int8 --dtype fp32` and `--mode fp8 --dtype fp16`.
MODELOPT = Path(__file__).parent / "data" / "modelopt"
RECIPE = {
    "resize": 112, "crop": 96, "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]
}  # fmt: skip
Write = Callable[[Path], Path]


def write_fp16(path: Path) -> Path:
    """As a converter makes it: input and output in FP32."""
    from onnxconverter_common.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(write_tiny_onnx(path)), keep_io_types=True), path)
    return path


def write_bf16(path: Path) -> Path:
    """Trained and exported in BF16, which no kernel of onnxruntime's CPU runs."""
    model = onnx.load(write_tiny_onnx(path, opset=22))
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    graph.node[0].input[0] = "bf16_image"
    graph.node.insert(0, helper.make_node("Cast", ["image"], ["bf16_image"], name="to_bf16", to=TensorProto.BFLOAT16))
    graph.node[-1].CopyFrom(helper.make_node("Cast", ["raw"], ["scores"], name="to_fp32", to=TensorProto.FLOAT))
    onnx.save(model, path)
    return path


FOR_TENSORRT = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def write_int8(path: Path, *, keep: tuple[str, ...] = (), options: dict[str, bool] = FOR_TENSORRT) -> Path:
    """As onnxruntime quantises; by default with the settings that TensorRT reads."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    rng = np.random.default_rng(0)
    images = [{"image": rng.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(4)]

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return images.pop() if images else None

    quantize_static(
        write_tiny_onnx(path.with_name("fp32.onnx")),
        path,
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(keep),
        extra_options=options,
    )
    return path


def write_fp8(path: Path) -> Path:
    """The convolution's data and weights in FP8, with scales of 1/16."""
    model = onnx.load(write_tiny_onnx(path, opset=19))
    graph = model.graph
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    graph.initializer.extend([zero, numpy_helper.from_array(np.array(1 / 16, np.float32), "sixteenth")])
    conv = graph.node[0]
    for name in list(conv.input[:2]):
        graph.node.insert(0, helper.make_node("DequantizeLinear", [f"{name}_q", "sixteenth", "zero"], [f"{name}_dq"]))
        graph.node.insert(0, helper.make_node("QuantizeLinear", [name, "sixteenth", "zero"], [f"{name}_q"]))
    conv.input[0], conv.input[1] = "image_dq", "conv_weight_dq"
    model.ir_version = 9
    onnx.save(model, path)
    return path


KINDS: dict[str, Write] = {"fp16": write_fp16, "bf16": write_bf16, "int8": write_int8, "fp8": write_fp8}
OF_TENSORRT = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}


def make(path: Path, **fields: Any) -> ModelSpec:
    options = {"recipe": "imagenet", "labels": "index", "image_size": 32, "batch": {"max": 4}, **fields}
    return make_spec([str(path)], **options)[0]


# What the spec becomes


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_by_itself_and_said(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path / "own.onnx")
    assert read_onnx(path).precision == kind
    spec, line = choose_target(make(path, target="tensorrt-11"))
    assert (spec.precision, choose_target(spec)[0]) == ("as-is", spec)
    assert line.startswith(f"tensorrt-11, as-is: {path} holds {kind.upper()}")
    if kind != "fp8":  # a word that nobody can ask a conversion with
        assert choose_target(make(path, target="tensorrt-11", precision=kind))[0].precision in ("as-is", "bf16")


def test_an_fp32_graph_is_converted_as_before(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx")
    for target, precision in (("onnxruntime", "fp32"), ("tensorrt-11", "fp16")):
        assert (choose_target(make(path, target=target))[0].precision) == precision
    assert choose_target(make(path, target="tensorrt-11", precision="as-is"))[0].precision == "as-is"


@pytest.mark.parametrize(
    ("kind", "asked", "target"),
    [
        ("int8", "fp16", "tensorrt-10"), ("int8", "fp32", "tensorrt-10"), ("fp16", "int8", "tensorrt-11"),
        ("fp8", "int8", "tensorrt-10"), ("bf16", "fp16", "tensorrt-10"), ("fp16", "bf16", "tensorrt-10"),
        ("int8", "fp16", "tensorrt-8.6"),
    ],
)  # fmt: skip
def test_another_precision_is_refused(tmp_path: Path, kind: str, asked: str, target: str) -> None:
    path = KINDS[kind](tmp_path / "own.onnx")
    with pytest.raises(SpecError, match=rf"precision is {asked}, but .*own\.onnx holds {kind.upper()}") as caught:
        choose_target(make(path, target=target, precision=asked))
    assert "leave precision out, or give the graph in FP32" in (caught.value.hint or "")
    assert caught.value.fields == {"precision": "as-is"}


def test_no_graph_is_converted_to_bf16(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"precision is bf16, but .*own\.onnx holds FP32"):
        choose_target(make(write_tiny_onnx(tmp_path / "own.onnx"), target="tensorrt-10", precision="bf16"))


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("bf16", "onnxruntime", "holds BF16, which onnxruntime on the CPU does not run"),
        ("bf16", "tensorrt-8.6", r"holds BF16, which tensorrt-8\.6 does not run"),
        ("fp8", "tensorrt-8.6", r"holds FP8 \(Q/DQ\), which tensorrt-8\.6 does not run"),
    ],
)
def test_a_target_that_has_no_such_type(tmp_path: Path, kind: str, target: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        choose_target(make(KINDS[kind](tmp_path / "own.onnx"), target=target))
    assert "tensorrt-10 or later" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("held", "capability", "needed"),
    [(("fp8", "fp16"), "8.6", "8.9"), (("int8", "bf16"), "7.5", "8.0"), (("bf16",), "7.0", "8.0")],
)
def test_a_gpu_that_has_no_such_type(held: tuple[str, ...], capability: str, needed: str) -> None:
    def gpu(version: str) -> Gpu:
        other: dict[str, Any] = {"index": 0, "multiprocessors": 1, "memory_bytes": 1, "driver": "", "cuda": ""}
        return Gpu(name="A GPU", compute_capability=version, **other)

    with pytest.raises(PlanError, match=f"of compute capability {needed} or later; A GPU has {capability}"):
        check_gpu(Path("own.onnx"), held, gpu(capability))
    for version in (needed, "9.0", "12.0"):
        check_gpu(Path("own.onnx"), held, gpu(version))
    check_gpu(Path("own.onnx"), ("int8", "fp16"), gpu("7.5"))


# TensorRT


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_graph_is_parsed_and_built(tmp_path: Path, kind: str) -> None:
    export_folder(make(KINDS[kind](tmp_path / "own.onnx"), target="tensorrt-11"), tmp_path / "exported")
    model = read_onnx(tmp_path / "exported" / "model.onnx")
    report = report_on(model)
    report.raise_for_status()
    assert (report.built, report.precision) == (True, kind)
    assert report.layer_types[OF_TENSORRT[kind]] > 1


@pytest.mark.parametrize(
    ("name", "in_float"),
    [
        ("shapes-int8-fp32", "1 of 6 layers stay in float: not all they take is quantised: node_linear"),
        # a convolution of 3 channels is no gain in FP8
        ("shapes-fp8-fp16", "2 of 6 layers stay in float: not all they take is quantised: node_Conv_82, node_linear"),
    ],
    ids=["int8", "fp8"],
)
def test_what_modelopt_makes_is_parsed_and_built(tmp_path: Path, name: str, in_float: str) -> None:
    spec = make_spec([str(MODELOPT / f"{name}.onnx")], recipe=RECIPE, labels="index", target="tensorrt-10")[0]
    assert export_folder(spec, tmp_path / "exported") == (in_float,)
    report = report_on(read_onnx(tmp_path / "exported" / "model.onnx"))
    report.raise_for_status()
    assert report.layer_types["FP8" if "fp8" in name else "INT8"] >= 4


class TestEight:
    """TensorRT 8.6 reads opset 17 and FP32 scales."""

    def test_opset_19_is_lowered_and_answers_the_same(self, tmp_path: Path) -> None:
        source = MODELOPT / "shapes-int8-fp32.onnx"
        assert read_onnx(source).opset == 19
        spec = make_spec([str(source)], recipe=RECIPE, labels="index", target="tensorrt-8.6")[0]
        said: list[Any] = []
        export_folder(spec, tmp_path / "exported", on_event=said.append)
        repairs = ["opset 19 is lowered to 17"]
        assert [event.detail for event in said if event.step == "repaired"] == repairs
        assert read_export(tmp_path / "exported" / "model.onnx").repairs == repairs
        lowered = load_proto(tmp_path / "exported" / "model.onnx")
        onnx.checker.check_model(lowered, full_check=True)
        assert (lowered.opset_import[0].version, lowered.ir_version) == (17, 8)
        report = run_gate_on(spec, tmp_path / "exported")
        assert report["onnx"].status == "proved"
        assert report["onnx"].figures["worst_cosine"] > 0.9999

    def test_global_pooling_gets_the_form_that_it_reads(self, tmp_path: Path) -> None:
        """As onnxruntime quantises: a pair in front of the pooling."""
        spec = make(write_int8(tmp_path / "own.onnx"), target="tensorrt-8.6")
        export_folder(spec, tmp_path / "exported")
        assert read_export(tmp_path / "exported" / "model.onnx").repairs == [
            "opset 18 is lowered to 17",
            "global pooling of INT8 is one of its input's size: pool",
        ]
        graph = load_proto(tmp_path / "exported" / "model.onnx").graph
        assert "GlobalAveragePool" not in {node.op_type for node in graph.node}
        pixels = np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), np.uint8)
        export_folder(make(tmp_path / "own.onnx", target="tensorrt-10"), tmp_path / "unchanged")
        fitted, unchanged = (open_onnx(tmp_path / name / "model.onnx") for name in ("exported", "unchanged"))
        np.testing.assert_allclose(only(fitted(pixels)), only(unchanged(pixels)), atol=1e-6)

    def test_fp16_scales_are_refused(self, tmp_path: Path) -> None:
        model = onnx.load(write_int8(tmp_path / "own.onnx"))
        model.opset_import[0].version = 19
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_scale"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        onnx.save(model, tmp_path / "own.onnx")
        model = onnx.load(tmp_path / "own.onnx")
        from generator.graph.as_is import lower_opset

        with pytest.raises(ExportError, match=r"scales of Q/DQ are FP32: node .* has others") as caught:
            lower_opset(model, tmp_path / "own.onnx")
        assert "--high_precision_dtype fp32" in (caught.value.hint or "")

    def test_what_has_no_form_in_opset_17(self, tmp_path: Path) -> None:
        model = onnx.load(write_tiny_onnx(tmp_path / "own.onnx", opset=20))
        model.graph.node[1].op_type = "Gelu"
        model.ir_version = 9
        onnx.save(model, tmp_path / "own.onnx")
        with pytest.raises(ExportError, match=r"opset 20, TensorRT 8\.6 reads 17 at most, and it cannot be lowered"):
            export_folder(make(tmp_path / "own.onnx", target="tensorrt-8.6"), tmp_path / "exported")
        assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({"QuantizeBias": False}, r"\(QuantizeLinear\) has a zero point other than 0", "ActivationSymmetric"),
        ({"ActivationSymmetric": True}, r"\(DequantizeLinear\) makes a bias of INT32", "'QuantizeBias': False"),
    ],
)
def test_what_tensorrt_does_not_read_is_found_without_it(
    tmp_path: Path, options: dict[str, bool], words: str, hint: str
) -> None:
    """Onnxruntime's defaults, which it runs itself."""
    path = write_int8(tmp_path / "own.onnx", options=options)
    with pytest.raises(ExportError, match=words) as caught:
        export_folder(make(path, target="tensorrt-10"), tmp_path / "exported")
    assert hint in (caught.value.hint or "")
    export_folder(make(path, target="onnxruntime"), tmp_path / "exported")


def test_layers_that_stay_in_float_are_named(tmp_path: Path) -> None:
    path = write_int8(tmp_path / "own.onnx", keep=("linear",))
    assert find_float_layers(load_proto(path)) == (["linear"], 2)
    notes = export_folder(make(path, target="tensorrt-10"), tmp_path / "exported")
    assert notes == ("1 of 2 layers stay in float: not all they take is quantised: linear",)
    assert find_float_layers(load_proto(write_int8(tmp_path / "all.onnx"))) == ([], 2)


# The gate


def run_gate_on(spec: ModelSpec, exported: Path) -> dict[str, Any]:
    """Return the stages of the gate on an export, as the GPU host runs them, without what needs a GPU or a server."""
    from generator.exporting import take_export

    taken = make_spec([str(exported / "model.onnx")])[0]
    taken, _ = choose_target(taken)
    staged = exported.parent / "staged"
    layout = Layout.of(taken, 1)
    artifact = take_export(taken, (staged / layout.onnx).parent)
    candidate = Candidate(repository=staged, layout=layout, spec=taken, artifact=artifact)
    return {result.stage: result for result in run_gate(candidate, load_reference(exported / "reference.npz")).results}


@pytest.mark.parametrize("kind", KINDS)
def test_judged_by_what_it_holds(tmp_path: Path, kind: str) -> None:
    spec = make(KINDS[kind](tmp_path / "own.onnx"), target="tensorrt-10")
    export_folder(spec, tmp_path / "exported")
    report = run_gate_on(spec, tmp_path / "exported")
    assert (report["batches"].status, report["onnx"].status) == ("proved", "proved")
    assert report["plan"].status == "not proved"  # there is no GPU
    copy = ", as a copy in FP32" if kind == "bf16" else ""
    assert "top-1 100.0%" in report["onnx"].measured
    assert report["onnx"].measured.endswith(copy)
    assert report["batches"].measured.endswith(copy)
    compared = {
        "fp16": "compared with the FP16 graph, not with its original",
        "bf16": "compared with a copy of the BF16 graph in FP32, since onnxruntime has no BF16 on the CPU",
        "int8": "compared with the quantised graph, not with its original",
        "fp8": "compared with the quantised graph, not with its original",
    }
    assert (report["precision"].status, compared[kind] in report["precision"].reason) == ("assumed", True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_was_changed_on_the_way_is_found(tmp_path: Path, kind: str) -> None:
    """The limit is not that of the precision: the graph is the source's own, only pixels are put in front of it."""
    export_folder(make(KINDS[kind](tmp_path / "own.onnx"), target="tensorrt-10"), tmp_path / "exported")
    path = tmp_path / "exported" / "model.onnx"
    model = onnx.load(path)
    (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == "trtgen_scale"]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(0.99), scale.name))
    onnx.save(model, path)
    record = json.loads((tmp_path / "exported" / "export.json").read_text())
    from generator.files import hash_file

    record["files"]["model.onnx"] = hash_file(path)
    (tmp_path / "exported" / "export.json").write_text(json.dumps(record))
    report = run_gate_on(make(path.parent.parent / "own.onnx", target="tensorrt-10"), tmp_path / "exported")
    assert report["onnx"].status == "failed"
    assert "wrong scale" in report["onnx"].cause


def test_the_copy_of_a_bf16_graph_has_its_values(tmp_path: Path) -> None:
    path = write_bf16(tmp_path / "own.onnx")
    copy = cast_to_fp32(load_proto(path))
    onnx.checker.check_model(copy, full_check=True)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    for tensor in load_proto(path).graph.initializer:
        assert weights[tensor.name].dtype != ml_dtypes.bfloat16
        assert (weights[tensor.name] == numpy_helper.to_array(tensor)).all()
    assert open_onnx(path)(np.zeros((2, 3, 32, 32), np.float32))["scores"].shape == (2, 4)


# The whole way


@pytest.mark.server
def test_modelopt_int8_is_published_and_served(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = {"name": "shapes", "onnx": str(MODELOPT / "shapes-int8-fp32.onnx"), "recipe": RECIPE, "labels": "labels.txt"}
    Path("labels.txt").write_text("\n".join(LABELS))
    Path("models.yaml").write_text(json.dumps({"models": [spec]}))
    assert main(["build-repo", "--spec", "models.yaml", "--require", "all", "-r", "repo"]) == 0
    said = capfd.readouterr().err
    assert "onnxruntime, as-is: " in said
    assert "holds INT8 (Q/DQ) and is taken as it is" in said
    assert "assumed: precision: compared with the quantised graph, not with its original" in said
    record = json.loads(Path("repo/shapes/trtgen.json").read_text())
    assert record["spec"]["precision"] == "as-is"
    assert {entry["stage"]: entry["status"] for entry in record["proof"]}["served ensemble"] == "proved"
    held = load_proto(Path("repo/shapes_classifier/1/model.onnx")).graph.node
    source = load_proto(MODELOPT / "shapes-int8-fp32.onnx").graph.node
    count = [sum(node.op_type == "QuantizeLinear" for node in nodes) for nodes in (held, source)]
    assert count[0] == count[1] > 3
    assert main(["build-repo", "--spec", "models.yaml", "-r", "repo"]) == 0
    assert "version 1 is up to date" in capfd.readouterr().err
    for image in draw_set(60, seed=99):
        folder = Path("labelled", LABELS[image.label])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image.name}.jpg").write_bytes(image.jpeg)
    assert main(["verify", "-r", "repo", "--labelled", "labelled", "--json"]) == 0
    (report,) = json.loads(capfd.readouterr().out)
    stages = {entry["stage"]: entry for entry in report["stages"]}
    assert stages["precision"]["status"] == "measured"
    assert stages["precision"]["accuracy"] == stages["labelled source"]["accuracy"] > 0.7


@pytest.mark.server
def test_fp16_is_published_and_served(tmp_path: Path) -> None:
    built = build_repository(
        make(write_fp16(tmp_path / "own.onnx"), target="onnxruntime"),
        tmp_path / "repo",
        BuildOptions(require_all=True),
    )
    assert built.report is not None
    assert not built.report.unproved


def test_as_is_takes_a_file() -> None:
    with pytest.raises(TrtgenError, match="precision: as-is takes an ONNX file as it is, and onnx is not given"):
        make_spec(["demo"], precision="as-is")
