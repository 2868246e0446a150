"""`trtgen inspect`: reading the engine inspector, mapping nodes to layers, times, the network, table and page.

The answers of an inspector in tests/data/inspector are samples made in the style of TensorRT 8.6 and 10 from the real
graph of torchvision's ResNet-50 (kept there without its weights); their times are made up. What TensorRT-RTX parses is
parsed for real.
"""

from __future__ import annotations

import contextlib
import json
import re
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from onnx import TensorProto, helper
from typer.testing import CliRunner

from generator.cli.inspect import inspect
from generator.errors import PlanError, SourceError, SpecError
from generator.measure.inspect import Inspection, inspect_onnx, inspect_plan, is_plan, parsed, run, to_json
from generator.measure.inspect.describe import describe_engine, describe_network
from generator.measure.inspect.formats import data_type_of, layout_of
from generator.measure.inspect.layers import Layer, read_layers
from generator.measure.inspect.mapping import find_eliminated, map_layers, split_name
from generator.measure.inspect.nodes import OnnxGraph, read_graph
from generator.measure.inspect.page import make_page
from generator.measure.inspect.text import format_inspection
from generator.measure.inspect.timing import Timing, measure_layers, take_medians
from generator.plan.local import PlanEngine
from generator.runtime.bindings import TensorRTLog
from generator.runtime.device import Device
from generator.spec.recipe import IMAGENET
from generator.tensor import ShapeRange
from tests.tensorrt_standin import DTYPES, Context, Driver, make_plan, make_tensorrt
from tests.tiny_onnx import write_tiny_onnx

DATA = Path(__file__).parent / "data" / "inspector"
BATCH = 64


@pytest.fixture(scope="module")
def resnet() -> OnnxGraph:
    return read_graph(DATA / "sample-resnet50-without-weights.onnx")


def make_report(version: str, graph: OnnxGraph | None) -> Inspection:
    information = read_layers((DATA / f"sample-resnet50-tensorrt-{version}.json").read_text())
    run = [(name, ms) for name, ms in json.loads((DATA / f"sample-resnet50-tensorrt-{version}-times.json").read_text())]
    timing = Timing(layers_ms=take_medians([run] * 3), latency_ms=1.6, iterations=3, warm_up=1)
    facts = [("file", "sample.plan"), ("TensorRT", version)]
    return describe_engine(information, graph=graph, timing=timing, title="sample", facts=facts, batch=BATCH)


def tiny_graph(tmp_path: Path, *nodes: onnx.NodeProto) -> OnnxGraph:
    """A graph of pointwise nodes from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return read_graph(path)


def engine_json(*layers: dict[str, Any] | str) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "y"]})


def layer(name: str, layer_type: str = "kgen", *, reads: str = "", writes: str = "", **more: Any) -> dict[str, Any]:
    def tensors(names: str) -> list[dict[str, Any]]:
        return [
            {"Name": one, "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP32"}
            for one in names.split("; ")
            if one
        ]

    return {"Name": name, "LayerType": layer_type, "Inputs": tensors(reads), "Outputs": tensors(writes), **more}


@pytest.mark.parametrize(
    ("text", "data_type", "layout"),
    [
        ("Channel major FP16 format where channel % 8 == 0", "fp16", "NHWC8"),
        ("Row major Int8 format", "int8", "NCHW"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8", "NC/32HW32"),
        ("Row major linear FP32", "fp32", "NCHW"),
        ("Row major linear UInt8 format", "uint8", "NCHW"),
        ("Non-vectorized channel-last format BFloat16", "bf16", "NHWC"),
        ("Half", "fp16", ""),
        ("N/A due to dynamic shapes", "", ""),
    ],
)
def test_formats_are_two_words(text: str, data_type: str, layout: str) -> None:
    assert (data_type_of(text), layout_of(text)) == (data_type, layout)


def test_layers_of_all_forms_are_read() -> None:
    split = layer("a", "gemm", Metadata="[ONNX Layer: a]\x1f[ONNX Layer: b]\x1e[ONNX Layer: a]")
    split["Outputs"] = [{"Name": "y", "Dimensions": [2, 3], "Format": "Row major linear", "Datatype": "Half"}]
    old = read_layers(engine_json(split, layer("b", "Reformat", Origin="QDQ"), "c"))
    assert [one.kind for one in old] == ["matmul", "quantize", "other"]
    assert old[0].metadata == ("a", "b")
    assert old[0].precision == "fp16"
    assert old[0].outputs[0].size_bytes == 2 * 3 * 2
    raw = (
        '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: b]"}], "I/O Tensors": [{"Name": "x"}]}'
    )
    new = read_layers(raw)
    assert new[0].metadata == ("a", "b")
    names = read_layers('{"Layers": ["Conv_0 + Relu_1", "Reformatting CopyNode for Input Tensor 0 to Conv_0"]}')
    assert [one.type for one in names] == ["", ""]
    assert [one.kind for one in names] == ["other", "reformat"]


def test_layers_of_other_profiles_are_left_out() -> None:
    text = engine_json(layer("a", reads="x"), layer("b"), layer("a [profile 1]", reads="x[profile 1]"), "b [profile 1]")
    first, second = read_layers(text), read_layers(text, profile=1)
    assert [one.name for one in first] == [one.name for one in second] == ["a", "b"]
    assert second[0].inputs[0].name == "x"
    assert second[1].type == ""


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"Layers": 3}', '{"Layers": [{"LayerType": "x"}]}'])
def test_other_answers_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="engine inspector did not answer"):
        read_layers(text)


def test_tf32_is_told_by_the_kernel() -> None:
    weights: dict[str, Any] = {
        "Weights": {"Type": "Float", "Count": 9},
        "TacticName": "sm80_xmma_fprop_f32f32_tf32f32_f32_nhwc",
    }
    assert read_layers(engine_json(layer("a", "CaskConvolution", **weights)))[0].precision == "tf32"
    assert read_layers(engine_json(layer("a", "Reformat", **weights)))[0].precision == "fp32"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Conv_0 + Relu_1", ["Conv_0", "Relu_1"]),
        ("conv.weight + Quantize_8 + Conv_12 + PWN(Clip_16)", ["conv.weight", "Quantize_8", "Conv_12", "Clip_16"]),
        ("PWN(PWN(/act/Sigmoid), /act/Mul)", ["/act/Sigmoid", "/act/Mul"]),
        ("Conv_1 || Conv_2", ["Conv_1", "Conv_2"]),
        ("Transpose_2 + (Unnamed Layer* 229) [Shuffle]", ["Transpose_2", "(Unnamed Layer* 229) [Shuffle]"]),
        ("{ForeignNode[a + b...c]}", ["{ForeignNode[a + b...c]}"]),
    ],
)  # fmt: skip
def test_names_are_taken_apart(name: str, parts: list[str]) -> None:
    assert split_name(name) == parts


def chain(tmp_path: Path) -> OnnxGraph:
    """Three nodes in a row: x -> exp -> tanh -> neg -> y; the last has no name."""
    return tiny_graph(
        tmp_path,
        helper.make_node("Exp", ["x"], ["t1"], name="/m.0/exp"),
        helper.make_node("Tanh", ["t1"], ["t2"], name="/m.0/tanh"),
        helper.make_node("Neg", ["t2"], ["y"]),
    )


@pytest.mark.parametrize(
    ("described", "nodes", "source"),
    [
        (layer("__myl_x", Metadata="[ONNX Layer: /m.0/tanh]"), ["/m.0/tanh"], "metadata"),
        (layer("PWN(PWN(/m.0/exp), /m.0/tanh)", "PointWiseV2"), ["/m.0/exp", "/m.0/tanh"], "name"),
        (layer("/m_0/tanh_myl109_2"), ["/m.0/tanh"], "name"),
        (layer("reshape_after_/m.0/exp"), ["/m.0/exp"], "name"),
        (layer("node_of_y"), ["y"], "name"),
        (layer("__myl_ExpTanh_myl0_0", reads="x", writes="t2"), ["/m.0/exp", "/m.0/tanh"], "tensors"),
        (layer("__myl_ExpTanh_myl0_0", reads="t1", writes="__mye1"), [], "none"),
        (layer("{ForeignNode[/m.0/exp.../m.0/tanh]}", "Myelin"), ["/m.0/exp", "/m.0/tanh"], "region"),
        (layer("{ForeignNode[x_scale.../m.0/tanh]}", "Myelin", writes="y", reads="t1"), ["/m.0/tanh", "y"], "tensors"),
        (layer("Reformatting CopyNode for Input Tensor 0 to /m.0/exp", "Reformat"), [], "none"),
    ],
)
def test_layer_is_traced_to_its_nodes(tmp_path: Path, described: Any, nodes: list[str], source: str) -> None:
    information = read_layers(engine_json(described))
    (origin,) = map_layers(information, chain(tmp_path))
    assert list(origin.nodes) == nodes
    assert origin.source == source
    inspection = describe_engine(information, graph=chain(tmp_path), timing=None, title="t", facts=[])
    assert inspection.rows[0].inferred == (source not in ("metadata", "none"))


def test_region_leaves_nodes_of_other_layers_and_sees_through_reformats(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    named = read_layers(engine_json(layer("/m.0/tanh"), layer("{ForeignNode[/m.0/exp...y]}", "Myelin")))
    assert map_layers(named, graph)[1].nodes == ("/m.0/exp", "y")
    through = read_layers(
        engine_json(
            layer("Reformatting CopyNode for Input Tensor 0 to r", "Reformat", reads="t1", writes="re"),
            layer("r", reads="re", writes="rx"),
            layer("Reformatting CopyNode for Output Tensor 0 to r", "Reformat", reads="rx", writes="y"),
        )
    )
    assert [origin.nodes for origin in map_layers(through, graph)] == [(), ("/m.0/tanh", "y"), ()]


def test_reason_is_careful_where_a_kernel_is_of_unknown_origin(tmp_path: Path) -> None:
    graph = chain(tmp_path)
    for described, words in [
        (layer("__myl_a"), "perhaps inside a generated"),
        (layer("b", "Scale"), "folded or removed"),
    ]:
        information = read_layers(engine_json(described))
        reasons = find_eliminated(information, map_layers(information, graph), graph)
        assert len(reasons) == 3
        assert all(words in one.reason for one in reasons)


def test_arithmetic_is_that_of_resnet50(resnet: OnnxGraph) -> None:
    """For its ResNet-50 torchvision states 4.09 GMAC, the fully connected layer included."""
    assert resnet.macs == pytest.approx(4.09e9, rel=0.002)
    gemm = next(node for node in resnet.nodes if node.operator == "Gemm")
    assert gemm.macs == 2048 * 1000
    assert gemm.weights_bytes == 4 * (2048 * 1000 + 1000)
    assert gemm.shape == (1, 1000)


def test_sample_of_86_is_mapped_without_metadata(resnet: OnnxGraph) -> None:
    report = make_report("8.6", resnet)
    assert report.measure == "time"
    assert report.macs == resnet.macs * BATCH  # every product found its layer
    assert sum(row.share or 0 for row in report.rows) == pytest.approx(1)
    assert report.rows[0].operators == ("Cast", "Transpose", "Mul", "Add")
    assert report.rows[0].source == "tensors"
    patterns = [" + ".join(row.operators) for row in report.fused]
    assert patterns.count("Conv + Relu") == 33
    assert patterns.count("Conv + Add + Relu") == 16
    assert {one.operator for one in report.eliminated} == {"Identity", "Flatten"}
    assert [(row.inputs[0].layout, row.outputs[0].layout) for row in report.reformats] == [
        ("NCHW", "NHWC4"),
        ("NCHW",) * 2,
    ]
    convolution = report.rows[2]
    assert convolution.time_ms is not None
    assert convolution.tflops == pytest.approx(2 * 118013952 * BATCH / (convolution.time_ms / 1000) / 1e12)
    read = BATCH * 2 * (3 * 224 * 224 + 64 * 112 * 112) + 2 * 9408
    assert convolution.gb_per_s == pytest.approx(read / (convolution.time_ms / 1000) / 1e9)
    assert {group.name for group in report.kinds} == {
        "convolution", "pooling", "fused", "reformat", "matmul", "softmax", "no-op",
    }  # fmt: skip


def test_sample_of_10_is_mapped_by_metadata(resnet: OnnxGraph) -> None:
    report = make_report("10", resnet)
    assert {row.source for row in report.rows} == {"metadata"}
    assert report.macs == resnet.macs * BATCH
    assert not report.own
    assert {one.operator for one in report.eliminated} == {"Identity"}
    assert all("constants" in one.reason for one in report.eliminated)
    assert not any("inferred" in note for note in report.notes)


def test_without_onnx_names_are_shown_as_they_stand() -> None:
    report = make_report("8.6", None)
    assert report.node_count is None
    assert report.rows[2].nodes == ("/network/conv1/Conv", "/network/relu/Relu")
    assert any("no ONNX file was given" in note for note in report.notes)
    assert "unknown without the ONNX file" in make_page(report)


def test_foreign_onnx_is_noticed(tmp_path: Path) -> None:
    report = make_report("8.6", read_graph(write_tiny_onnx(tmp_path / "tiny.onnx")))
    assert any("is it the file that the plan was built from?" in note for note in report.notes)


def test_times_are_medians_per_occurrence() -> None:
    runs = [[("a", 1.0), ("b", 9.0), ("a", 5.0)], [("a", 3.0), ("b", 9.0), ("a", 6.0)], [("a", 2.0)]]
    found = take_medians(runs)
    assert found == {("a", 0): 2.0, ("b", 0): 9.0, ("a", 1): 5.5}
    information = read_layers(engine_json("a", "b", "a", "c"))
    timing = Timing(layers_ms=found, latency_ms=1, iterations=3, warm_up=0)
    report = describe_engine(information, graph=None, timing=timing, title="t", facts=[])
    assert [row.time_ms for row in report.rows] == [2.0, 9.0, 5.5, None]


class FakeContext:
    """An execution context that reports like TensorRT's; `asked` says whether on request only."""

    def __init__(self, *, asked: bool) -> None:
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.asked = asked

    def run(self) -> None:
        if self.profiler is not None and self.enqueue_emits_profile:
            self.profiler.report_layer_time("a [profile 1]", 0.5)

    def report_to_profiler(self) -> bool:
        if self.asked:
            self.profiler.report_layer_time("a [profile 1]", 0.25)
        return self.asked


def running_engine(trt: Any, context: FakeContext) -> Any:
    return types.SimpleNamespace(trt=trt, contexts=[context], enqueue=lambda *_: context.run(), wait=lambda: None)


@pytest.mark.parametrize(("asked", "expected"), [(True, 0.25), (False, 0.5)])
def test_profiler_hears_both_ways_of_reporting(asked: bool, expected: float) -> None:
    context = FakeContext(asked=asked)
    trt = types.SimpleNamespace(IProfiler=type("IProfiler", (), {}))
    timing = measure_layers(running_engine(trt, context), ((1,),), iterations=4, warm_up=2)
    assert timing.layers_ms == {("a", 0): expected}


def test_profiler_of_the_bindings_takes_our_methods() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    context = FakeContext(asked=True)
    timing = measure_layers(running_engine(trt, context), ((1,),), iterations=1, warm_up=0)
    assert timing.layers_ms == {("a", 0): 0.25}
    for owner, names in {
        trt.IExecutionContext: ("profiler", "enqueue_emits_profile", "report_to_profiler"),
        trt.ICudaEngine: ("create_engine_inspector",),
        trt.EngineInspector: ("execution_context", "get_engine_information"),
        trt.LayerInformationFormat: ("JSON",),
    }.items():
        assert all(hasattr(owner, name) for name in names)


def test_network_is_what_the_parser_makes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    report = inspect_onnx(write_tiny_onnx(tmp_path / "tiny.onnx", layout="NHWC"))
    assert report.subject == "network"
    assert ("parser", "TensorRT-RTX") in [(key, value.split(" ")[0]) for key, value in report.facts]
    by_node = {row.nodes[0]: row for row in report.rows if row.nodes}
    assert by_node["conv"].type == "CONVOLUTION"
    assert by_node["conv"].outputs[0].shape == (-1, 16, 8, 8)
    assert by_node["conv"].macs == 16 * 8 * 8 * 3 * 5 * 5
    assert report.macs == by_node["conv"].macs + 16 * 4
    assert by_node["relu"].kind == "elementwise"
    assert any(not row.nodes for row in report.rows)  # constants and shapes of the parser's own


def test_nodes_without_names_are_found_by_the_parsers_names(tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path, helper.make_node("Relu", ["x"], ["c"]), helper.make_node("Sigmoid", ["c"], ["y"]))
    layers = [
        Layer(name="node_of_c", type="ACTIVATION", kind="elementwise", precision="", metadata=("node_of_c",)),
        Layer(name="node_of_y", type="ACTIVATION", kind="elementwise", precision=""),
    ]
    report = describe_network(layers, graph, parser="p", title="t", facts=[])
    assert [row.nodes for row in report.rows] == [("c",), ("y",)]
    assert [row.operators for row in report.rows] == [("Relu",), ("Sigmoid",)]
    assert not any("became no layer" in note for note in report.notes)
    report = describe_network(layers[:1], graph, parser="p", title="t", facts=[])
    assert any("1 ONNX nodes became no layer of the network: y (Sigmoid)" in note for note in report.notes)


def test_demo_model_goes_through_the_parser(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from generator.sources.demo import load
    from generator.spec.file import make_spec
    from tests.tiny_onnx import export_graph

    spec = make_spec(["demo"], batch={"max": 2}, target="onnxruntime", precision="fp32")[0]
    model = export_graph(spec, load(spec), tmp_path)
    report = inspect_onnx(model.path)
    assert report.subject == "network"
    assert report.node_count == model.node_count
    # its convolutions and its last matrix product hold all the arithmetic, and each of them was found
    assert report.macs == read_graph(model.path).macs > 1e6
    assert any(row.type == "SOFTMAX" and row.outputs[0].shape == (-1, 10) for row in report.rows)
    first = next(row for row in report.rows if row.operators == ("Cast",))
    assert (first.inputs[0].data_type, first.precision) == ("uint8", "fp32")
    text = format_inspection(report, top=3)
    assert "2 more" not in text
    assert re.search(r"\.\.\. \d+ more of \d+", text)


def test_refused_graph_names_node_and_operator(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = tiny_graph(tmp_path, helper.make_node("Sigmoid", ["x"], ["t"], name="fine")).path
    proto = onnx.load(graph)
    proto.graph.node.append(helper.make_node("Strange", ["t"], ["y"], name="odd", domain="of.mine"))
    proto.opset_import.append(helper.make_opsetid("of.mine", 1))
    onnx.save(proto, graph)
    with pytest.raises(PlanError, match=r"refuses .*\n.*odd \(Strange\)") as caught:
        inspect_onnx(graph)
    assert caught.value.hint


def test_source_and_license_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file states, and what the record of an export or a repository says of what it was made of."""
    monkeypatch.setattr(parsed, "_LIBRARIES", ("tensorrt_that_is_absent",))
    monkeypatch.setattr("generator.gpu.why_no_gpu", lambda: "there is no GPU")
    path = write_tiny_onnx(tmp_path / "model.onnx")
    assert not {"license", "source"} & dict(inspect_onnx(path).facts).keys()
    model = onnx.load(path)
    model.metadata_props.add(key="license", value="AGPL-3.0 \n License")
    onnx.save(model, path)
    assert dict(inspect_onnx(path).facts)["license"] == "AGPL-3.0 License"
    assert "AGPL-3.0 License" in run_command(str(path)).stdout
    record = {"recipe": IMAGENET.model_dump(mode="json"), "labels": ["a"], "description": "ONNX file y.onnx (GPL)"}
    (tmp_path / "export.json").write_text(json.dumps(record))
    (tmp_path / "model.plan").write_bytes(PLAN)
    for found in (inspect_onnx(path), inspect_plan(tmp_path / "model.plan", onnx=None, batch=None, iterations=5)):
        assert dict(found.facts)["source"] == "ONNX file y.onnx (GPL)"
    (tmp_path / "export.json").write_text("{}")
    assert "source" not in dict(inspect_onnx(path).facts)


def test_without_parser_the_graph_itself_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsed, "_LIBRARIES", ("tensorrt_that_is_absent",))
    report = inspect_onnx(write_tiny_onnx(tmp_path / "tiny.onnx"))
    assert report.subject == "onnx"
    assert [row.type for row in report.rows][:3] == ["Conv", "Relu", "GlobalAveragePool"]
    assert report.macs == 16 * 8 * 8 * 3 * 5 * 5 + 16 * 4
    assert any("preflight" in note for note in report.notes)
    assert "Conv" in format_inspection(report)


def test_page_is_self_contained_and_escaped(resnet: OnnxGraph) -> None:
    page = make_page(make_report("8.6", resnet))
    assert not re.search(r"<script|<link|https?://|url\(|@import|src=", page)
    assert page.count("<div><i ") == 62
    assert "Conv + Add + Relu" in page
    evil = engine_json(layer("<b>a</b>\x1f&", reads="x", writes="y"))
    timing = Timing(layers_ms=take_medians([[("<b>a</b>\x1f&", 1.0)]]), latency_ms=1, iterations=1, warm_up=0)
    report = describe_engine(read_layers(evil), graph=None, timing=timing, title="<em>", facts=[("k", "<u>")])
    page = make_page(report)
    assert "<b>a" not in page
    assert "&lt;b&gt;a&lt;/b&gt; \u00b7 &amp;" in page
    assert "<em>" not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


def test_json_holds_everything(resnet: OnnxGraph) -> None:
    report = make_report("10", resnet)
    data = json.loads(json.dumps(to_json(report)))
    assert data["facts"]["TensorRT"] == "10"
    assert len(data["rows"]) == 58
    assert data["rows"][1]["operators"] == ["Conv", "Relu"]
    assert data["rows"][1]["tflops"] > 1
    assert data["fused"][0] == 0


def test_names_only_are_told_apart_by_operator(resnet: OnnxGraph) -> None:
    names = [one["Name"] for one in json.loads((DATA / "sample-resnet50-tensorrt-8.6.json").read_text())["Layers"]]
    report = describe_engine(read_layers(engine_json(*names)), graph=resnet, timing=None, title="t", facts=[])
    assert any("only its layers' names" in note for note in report.notes)
    assert report.measure == "macs"
    assert report.rows[0].operators == ("Cast", "Transpose", "Mul", "Add")
    assert report.rows[0].source == "region"
    assert report.rows[2].kind == "convolution"


PLAN = b"ftrt" + bytes(12) + (64).to_bytes(8, "little") + bytes([8, 6, 0, 12]) + bytes(36)


def test_plan_without_gpu_shows_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.gpu.why_no_gpu", lambda: "there is no GPU")
    (tmp_path / "model.plan").write_bytes(PLAN)
    report = inspect_plan(tmp_path / "model.plan", onnx=None, batch=None, iterations=5)
    assert report.subject == "header"
    assert dict(report.facts)["TensorRT"] == "8.6.0.12"
    assert any("cannot be opened here" in note and "there is no GPU" in note for note in report.notes)
    assert any("no passport" in note for note in report.notes)
    assert "8.6.0.12" in make_page(report)
    assert "8.6.0.12" in format_inspection(report)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"what", "plan"), (PLAN[:20], "cut off"), (b"vtrt" + PLAN[4:], "TensorRT-RTX"), (b"", "plan")],
)
def test_other_files_are_no_plans(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=words) as caught:
        inspect_plan(path, onnx=None, batch=None, iterations=1)
    assert caught.value.hint


def test_kind_of_file_is_told_by_content_then_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(PLAN)
    (tmp_path / "model.engine").write_bytes(b"junk")
    assert is_plan(tmp_path / "model.onnx")
    assert is_plan(tmp_path / "model.engine")
    assert not is_plan(write_tiny_onnx(tmp_path / "tiny.onnx"))
    with pytest.raises(PlanError, match="cannot be read"):
        is_plan(tmp_path / "absent.plan")


def fake_engine(*ranges: tuple[int, int, int]) -> Any:
    shape = types.SimpleNamespace
    profiles = [{"x": ShapeRange(min=(a, 8), opt=(b, 8), max=(c, 8))} for a, b, c in ranges]
    return shape(inputs=[shape(name="x", shape=(-1 if ranges else 4, 8))], all_profiles=profiles, path=Path("p.plan"))


def test_batch_is_chosen_from_the_profiles() -> None:
    assert run._choose_batch(fake_engine((1, 8, 32)), None) == 8
    assert run._choose_batch(fake_engine((1, 1, 1), (2, 64, 128)), 100) == 100
    assert run._choose_batch(fake_engine(), None) == 4
    with pytest.raises(PlanError, match="takes a batch of 200; they take 1 to 1, 2 to 128") as caught:
        run._choose_batch(fake_engine((1, 1, 1), (2, 64, 128)), 200)
    assert (caught.value.command, caught.value.fields) == (("inspect", "p.plan"), {"batch": 1})
    with pytest.raises(PlanError, match="they take 4 to 4"):
        run._choose_batch(fake_engine(), 8)


def test_graph_beside_the_plan_is_taken_only_if_it_is_the_one(tmp_path: Path) -> None:
    onnx_path = write_tiny_onnx(tmp_path / "model.onnx")
    plan = tmp_path / "model.plan"
    right: Any = types.SimpleNamespace(onnx_sha256=read_graph(onnx_path).sha256)
    wrong: Any = types.SimpleNamespace(onnx_sha256="0" * 64)
    notes: list[str] = []
    assert run._find_graph(plan, None, right, notes) is not None
    assert run._find_graph(plan, None, wrong, notes) is None
    assert run._find_graph(plan, None, None, notes) is None
    assert notes == []
    assert run._find_graph(plan, onnx_path, wrong, notes) is not None
    assert "another hash" in notes[0]


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(inspect)
    return CliRunner().invoke(app, list(arguments))


def test_command_prints_table_json_and_writes_the_page(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "tiny.onnx")
    shown = run_command(str(path), "--html", str(tmp_path / "page.html"))
    assert shown.exit_code == 0, shown.output
    assert "GMAC" in shown.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    data = json.loads(run_command(str(path), "--json").stdout)
    assert data["macs"] == 16 * 8 * 8 * 3 * 5 * 5 + 16 * 4


def test_command_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    path = str(write_tiny_onnx(tmp_path / "tiny.onnx"))
    refused = run_command(path, "--batch", "4", "--onnx", path).exception
    assert isinstance(refused, SpecError)
    assert "--onnx, --batch: only a plan runs" in refused.message
    (tmp_path / "junk.onnx").write_bytes(b"junk that is no protobuf")
    assert isinstance(run_command(str(tmp_path / "junk.onnx")).exception, SourceError)
    unwritable = run_command(path, "--html", str(tmp_path / "absent" / "page.html")).exception
    assert isinstance(unwritable, PlanError)
    assert unwritable.hint


@pytest.mark.parametrize("kind", ["UINT8", "FLOAT"])
def test_engine_is_asked_filled_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: OnnxGraph, kind: str
) -> None:
    """The way through a GPU, on stand-ins for the driver and TensorRT, to which inspector and profiler are added."""
    inspector = types.SimpleNamespace(
        execution_context=None, get_engine_information=lambda form: engine_json(layer("a", writes="y"), form)
    )
    path, driver = tmp_path / "model.plan", Driver()
    path.write_bytes(make_plan({"X": (kind, [-1, 99])}, profiles=[{"X": ([1, 99], [8, 99], [32, 99])}]))
    trt = make_tensorrt(driver)
    trt.IProfiler = type("IProfiler", (), {})
    trt.LayerInformationFormat = types.SimpleNamespace(JSON="json")
    gpu: Any = types.SimpleNamespace(name="GPU", driver="580")
    engine = PlanEngine(path, gpu, Device(driver), trt=trt, log=TensorRTLog(trt))
    engine.engine.create_engine_inspector = lambda: inspector
    monkeypatch.setattr(Context, "enqueue_emits_profile", True, raising=False)
    monkeypatch.setattr("generator.plan.local.open_engine", lambda _path: contextlib.nullcontext(engine))
    monkeypatch.setattr("generator.gpu.find_gpu", lambda: gpu)

    def report_layer(context: Any) -> None:
        context.profiler.report_layer_time("a [profile 1]", 0.25)

    monkeypatch.setattr(Context, "report_to_profiler", report_layer, raising=False)
    report = run._inspect_engine(path, graph=resnet, facts=[], notes=["first"], batch=None, iterations=3)
    assert inspector.execution_context is engine.contexts[0]
    assert trt.runs == [(0, {"X": (8, 99)})] * (1 + 2 * (run._WARM_UP + 3))
    assert engine.host_inputs[0].array.view(DTYPES[kind])[: 8 * 99].std() > 0.9, "zeros draw less power"
    assert [row.name for row in report.rows] == ["a", "json"]
    assert report.rows[0].time_ms == 0.25
    assert report.batch == 8
    assert dict(report.facts) == {"measured on": "GPU, driver 580", "batch": "8"}
    assert report.notes[0] == "first"
