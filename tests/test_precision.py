"""Precision: the converted graphs answer like the FP32 graph, and are what TensorRT fuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from generator.demo.draw import draw_set
from generator.errors import ExportError, MissingDependencyError
from generator.graph.model import load_proto, read_onnx
from generator.graph.precision import convert_graph, graph_precision, read_calibration
from generator.graph.precision import half as half_module
from generator.graph.precision.placement import place
from generator.graph.precision.scales import choose_threshold, weight_scales
from generator.graph.precision.types import infer_types
from generator.graph.precision.value_ranges import Histogram, collect_histograms
from generator.graph.precision.view import GraphView, find_head, find_tail, normalise_names
from generator.images.reference import Reference, make_reference
from generator.images.sets import default_images
from generator.images.training_pixels import prepare
from generator.sources import load_network
from generator.spec.file import make_spec
from generator.spec.recipe import Recipe
from generator.tasks.classification.activation import Head
from generator.tasks.classification.compare import LIMITS, comparable, compare
from tests.tiny_onnx import export_graph

SIZE = 32
Pixels = NDArray[np.uint8]


def run(path: Path, pixels: Pixels) -> NDArray[np.float32]:
    """Run a graph as it is: onnxruntime's Q/DQ rewriting computes bias scales in FP16, where they vanish."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return scores


def passes_gate(path: Path, reference: Reference, precision: str) -> bool:
    """Compare as the gate does."""
    scores = run(path, reference.pixels)
    if not np.isfinite(scores).all():
        return False
    expected = comparable(Head(output="logits", activation="softmax").finish(reference.answers["scores"]), "softmax")
    return compare(expected, comparable(scores, "softmax")).meets(LIMITS[precision])


class Demo:
    """The demo model, exported for TensorRT 10 and for 8.6, with the gate's images and calibration images."""

    def __init__(self, folder: Path) -> None:
        spec = make_spec(["demo"], target="tensorrt-10", precision="fp32", batch={"max": 8})[0]
        self.network = load_network(spec)
        self.new = export_graph(spec, self.network, folder / "new").path
        old = make_spec(["demo"], target="tensorrt-8.6", precision="fp32", batch={"max": 8})[0]
        self.old = export_graph(old, self.network, folder / "old").path
        self.reference = make_reference(spec, self.network, default_images())
        self.calibration: Pixels = read_calibration(None, self.network.recipe).pixels


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


class GraphMaker:
    """A graph from UINT8 pixels to probabilities, node by node."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.add("Cast", "PIXELS", name="cast", to=TensorProto.FLOAT)
        self.add("Transpose", "cast", name="nchw", perm=[0, 3, 1, 2])
        self.add("Mul", "nchw", self.constant("scale", np.full((1, 3, 1, 1), 1 / 64)), name="scaled")
        self.add("Add", "scaled", self.constant("shift", np.full((1, 3, 1, 1), -2.0)), name="image")

    def constant(self, name: str, values: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def add(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, given: str, channels: tuple[int, int], *, name: str, kernel: int = 3, group: int = 1) -> str:
        fan_in = channels[0] // group * kernel**2
        weight = self.rng.normal(0, (2 / fan_in) ** 0.5, (channels[1], channels[0] // group, kernel, kernel))
        return self.add(
            "Conv", given, self.constant(f"{name}_weight", weight),
            self.constant(f"{name}_bias", self.rng.normal(0, 0.1, channels[1])), name=name,
            kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4, group=group,
        )  # fmt: skip

    def classify(self, given: str, channels: int, *, classes: int = 4) -> None:
        pooled = self.add("GlobalAveragePool", given, name="global_pool")
        flat = self.add("Flatten", pooled, name="flat")
        weight = self.constant("linear_weight", self.rng.normal(0, 1, (classes, channels)))
        bias = self.constant("linear_bias", self.rng.normal(0, 0.1, classes))
        self.add("Gemm", flat, weight, bias, name="linear", transB=1)
        self.nodes.append(helper.make_node("Softmax", ["linear"], ["PROBABILITIES"], name="softmax", axis=1))

    def save(self, path: Path, *, opset: int = 18, classes: int = 4) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "made",
            [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
            [helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
        return path


def write_residual(path: Path, *, opset: int = 18) -> Path:
    """Stem with MaxPool, a block with an identity shortcut, one whose shortcut is a convolution, and the classifier."""
    maker = GraphMaker()
    stem = maker.add("Relu", maker.conv("image", (3, 8), name="stem"), name="stem_relu")
    pool = maker.add("MaxPool", stem, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    inner = maker.add("Relu", maker.conv(pool, (8, 8), name="a1"), name="a1_relu")
    joined = maker.add("Add", maker.conv(inner, (8, 8), name="a2"), pool, name="a_add")
    block = maker.add("Relu", joined, name="a_relu")
    inner = maker.add("Relu", maker.conv(block, (8, 8), name="b1"), name="b1_relu")
    shortcut = maker.conv(block, (8, 16), name="down", kernel=1)
    joined = maker.add("Add", maker.conv(inner, (8, 16), name="b2"), shortcut, name="b_add")
    maker.classify(maker.add("Relu", joined, name="b_relu"), 16)
    return maker.save(path, opset=opset)


def write_gated(path: Path) -> Path:
    """A block of EfficientNet: depthwise convolution, SiLU, squeeze-excitation, projection, shortcut."""
    maker = GraphMaker()

    def silu(given: str) -> str:
        return maker.add("Mul", given, maker.add("Sigmoid", given, name=f"{given}_sigmoid"), name=f"{given}_silu")

    stem = silu(maker.conv("image", (3, 8), name="stem"))
    wide = silu(maker.conv(stem, (8, 8), name="depthwise", group=8))
    squeezed = maker.add("GlobalAveragePool", wide, name="squeeze")
    gate = maker.conv(silu(maker.conv(squeezed, (8, 4), name="se1", kernel=1)), (4, 8), name="se2", kernel=1)
    gated = maker.add("Mul", maker.add("Sigmoid", gate, name="gate"), wide, name="gated")
    joined = maker.add("Add", maker.conv(gated, (8, 8), name="project", kernel=1), stem, name="add")
    maker.classify(silu(maker.conv(joined, (8, 8), name="top", kernel=1)), 8)
    return maker.save(path)


def write_overflowing(path: Path, *, where: str) -> Path:
    """Scales by 1e6 and back: as a `constant` beyond FP16, or in `values` only, with two constants of 1e3 each.

    With `fork`, two nodes read the large values.
    """
    maker = GraphMaker()
    given = maker.add("Relu", maker.conv("image", (3, 8), name="stem"), name="stem_relu")
    if where == "constant":
        given = maker.add("Mul", given, maker.constant("huge", 1e6), name="up")
        given = maker.add("Mul", given, maker.constant("tiny", 1e-6), name="down")
    else:
        for name, factor in (("up1", 1e3), ("up2", 1e3)):
            given = maker.add("Mul", given, maker.constant(f"{name}_factor", factor), name=name)
        down = maker.add("Mul", given, maker.constant("down_factor", 1e-3), name="down1")
        if where == "fork":
            again = maker.add("Mul", given, maker.constant("again_factor", 3e-4), name="again")
            down = maker.add("Add", down, again, name="joined")
        given = maker.add("Mul", down, maker.constant("down2_factor", 1e-3), name="down2")
    maker.classify(maker.add("Relu", maker.conv(given, (8, 8), name="last"), name="last_relu"), 8)
    return maker.save(path)


@pytest.fixture(scope="module")
def noise() -> Pixels:
    """Images that differ in brightness and colour, so that pooled features differ too."""
    rng = np.random.default_rng(5)
    levels = rng.uniform(0, 255, (40, 1, 1, 3))
    return np.clip(levels + rng.normal(0, 30, (40, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def nodes_of(path: Path) -> dict[str, Any]:
    return {node.name: node for node in onnx.load(path).graph.node}


def constants_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def makers_of(path: Path) -> dict[str, Any]:
    return {output: node for node in onnx.load(path).graph.node for output in node.output}


def assert_same_interface(source: Path, converted: Path) -> None:
    before, after = read_onnx(source), read_onnx(converted)
    assert (after.input, after.output) == (before.input, before.output)
    assert after.input.data_type.numpy == "uint8"
    assert after.output.data_type.numpy == "float32"
    assert after.input.shape[0] == after.output.shape[0] == -1
    onnx.checker.check_model(str(converted), full_check=True)


def build_with_rtx(path: Path, tmp_path: Path) -> None:
    """Parse and build with TensorRT-RTX, which needs no GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    from generator.plan.library import open_log

    log = open_log("tensorrt_rtx")
    log.clear()
    builder = trt.Builder(log.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log.logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    given = network.get_input(0)
    shape = tuple(given.shape)[1:]
    profile.set_shape(given.name, (1, *shape), (4, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.last_error()
    assert given.dtype == trt.uint8
    assert network.get_output(0).dtype == trt.float32


# What the file itself holds


@pytest.mark.parametrize(
    ("target", "precision", "held"),
    [
        ("onnxruntime", "fp32", "fp32"), ("tensorrt-8.6", "fp32", "fp32"), ("tensorrt-8.6", "fp16", "fp32"),
        ("tensorrt-8.6", "int8", "int8"), ("tensorrt-10", "fp16", "fp16"),
        ("tensorrt-11", "int8", "int8"),
    ],
)  # fmt: skip
def test_what_the_graph_holds(target: str, precision: str, held: str) -> None:
    assert graph_precision(target, precision) == held


def test_impossible_precision_is_refused() -> None:
    with pytest.raises(ExportError, match="fp16 is not available for target onnxruntime"):
        graph_precision("onnxruntime", "fp16")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_for_8_is_a_copy(demo: Demo, tmp_path: Path, precision: str) -> None:
    converted = convert_graph(demo.old, tmp_path / "model.onnx", precision=precision, target="tensorrt-8.6")
    assert converted.path.read_bytes() == demo.old.read_bytes()


# fp16


def test_fp16_demo_passes_gate(demo: Demo, tmp_path: Path) -> None:
    converted = convert_graph(demo.new, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10")
    assert_same_interface(demo.new, converted.path)
    assert passes_gate(converted.path, demo.reference, "fp16")
    assert converted.warnings == ()
    weights = [t for t in constants_of(converted.path).values() if len(t.dims) == 4 and t.name.endswith("weight")]
    assert len(weights) == 7
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}
    assert converted.path.stat().st_size < 0.55 * demo.new.stat().st_size
    build_with_rtx(converted.path, tmp_path)


def test_fp16_keeps_head_and_softmax_in_float(tmp_path: Path) -> None:
    source = write_residual(tmp_path / "source.onnx")
    converted = convert_graph(source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10")
    model = onnx.shape_inference.infer_shapes(onnx.load(converted.path))
    types = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.value_info, *model.graph.output)}
    nodes = nodes_of(converted.path)
    floats = ("cast", "nchw", "scaled", "image", "softmax")
    assert {types[nodes[name].output[0]] for name in floats} == {TensorProto.FLOAT}
    assert {types[nodes[name].output[0]] for name in ("stem", "a_add", "linear")} == {TensorProto.FLOAT16}
    assert {"cast", "image", "softmax"} <= set(converted.kept_nodes)
    # one cast into FP16, one out of it, and the first of the head: none in between
    assert sum(node.op_type == "Cast" for node in nodes.values()) == 3


@pytest.mark.parametrize(
    ("patterns", "floats"),
    [
        (["a1"], {"a1"}),
        (["b*"], {"b1", "b2"}),
        (["Conv"], {"stem", "a1", "a2", "b1", "b2", "down"}),
        (["linear"], set()),
    ],
)
def test_keep_stays_fp32(tmp_path: Path, noise: Pixels, patterns: Sequence[str], floats: set[str]) -> None:
    source = write_residual(tmp_path / "source.onnx")
    converted = convert_graph(
        source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10", keep=patterns, calibration=noise
    )
    assert_same_interface(source, converted.path)
    constants = constants_of(converted.path)
    assert {
        name
        for name, node in nodes_of(converted.path).items()
        if node.op_type == "Conv" and constants[node.input[1]].data_type == TensorProto.FLOAT
    } == floats
    assert floats <= set(converted.kept_nodes)
    np.testing.assert_allclose(run(converted.path, noise), run(source, noise), atol=5e-3)


def test_keep_that_fits_nothing_is_an_error(tmp_path: Path) -> None:
    source = write_residual(tmp_path / "source.onnx")
    with pytest.raises(ExportError, match=r"keep: a_ad fits no node.*alike: a_add"):
        convert_graph(source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10", keep=["a_ad"])


@pytest.mark.parametrize(("where", "named"), [("constant", "up"), ("values", "up2")])
def test_fp16_overflow_stays_fp32_and_is_named(tmp_path: Path, noise: Pixels, where: str, named: str) -> None:
    source = write_overflowing(tmp_path / "source.onnx", where=where)
    converted = convert_graph(source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10")
    assert named in converted.kept_nodes
    assert any(text.startswith(f"node {named} stays in FP32: its ") for text in converted.warnings)
    assert "stem" not in converted.kept_nodes
    scores = run(converted.path, noise)
    np.testing.assert_allclose(scores, run(source, noise), atol=5e-3)
    build_with_rtx(converted.path, tmp_path)


def test_fp16_overflow_of_a_constant_without_our_search_fails_the_gate(tmp_path: Path, noise: Pixels) -> None:
    source = write_overflowing(tmp_path / "source.onnx", where="constant")
    model = load_proto(source)
    normalise_names(model)
    onnx.save(half_module.to_fp16(model, []), tmp_path / "overflow.onnx")
    scores = np.log(run(source, noise))
    reference = Reference(
        names=("",) * len(noise),
        files=(b"",) * len(noise),
        pixels=noise,
        answers={"scores": scores, "decided": np.ones(len(noise), bool)},
    )
    assert passes_gate(source, reference, "fp32")
    assert not passes_gate(tmp_path / "overflow.onnx", reference, "fp16")


@pytest.mark.parametrize("where", ["values", "fork"])
def test_fp16_overflow_of_values_is_invisible_on_the_cpu_and_found_all_the_same(
    tmp_path: Path, noise: Pixels, where: str
) -> None:
    from onnx.reference import ReferenceEvaluator

    source = write_overflowing(tmp_path / "source.onnx", where=where)
    model = load_proto(source)
    normalise_names(model)
    onnx.save(half_module.to_fp16(model, []), tmp_path / "overflow.onnx")
    # onnxruntime's CPU kernels compute FP16 in FP32 and drop the casts between; numpy does what a GPU would
    assert np.isfinite(run(tmp_path / "overflow.onnx", noise)).all()
    with np.errstate(all="ignore"):
        truth: Any = ReferenceEvaluator(str(tmp_path / "overflow.onnx")).run(None, {"PIXELS": noise[:2]})
    assert not np.isfinite(truth[0]).all()
    converted = convert_graph(source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10").path
    kept: Any = ReferenceEvaluator(str(converted)).run(None, {"PIXELS": noise[:2]})
    np.testing.assert_allclose(kept[0], run(source, noise[:2]), atol=5e-3)


def test_constant_in_two_precisions(tmp_path: Path, noise: Pixels) -> None:
    maker = GraphMaker()
    factor = maker.constant("factor", 0.3)
    given = maker.add("Mul", maker.conv("image", (3, 8), name="stem"), factor, name="first")
    maker.classify(maker.add("Mul", given, factor, name="second"), 8)
    source = maker.save(tmp_path / "source.onnx")
    converted = convert_graph(
        source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10", keep=["second"]
    ).path
    np.testing.assert_allclose(run(converted, noise), run(source, noise), atol=5e-3)


def test_converter_is_imported_only_when_needed_and_missed_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import generator.graph.precision as p, generator.graph.precision.half, sys; "
    program += "sys.exit(any(name in sys.modules for name in ('onnxconverter_common', 'onnx', 'onnxruntime', 'torch')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "onnxconverter_common", None)
    source = write_residual(tmp_path / "source.onnx")
    with pytest.raises(MissingDependencyError, match="onnxconverter-common"):
        convert_graph(source, tmp_path / "model.onnx", precision="fp16", target="tensorrt-10")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("keep", [(), ("fused",)])
def test_an_operator_of_another_domain_goes_along(
    tmp_path: Path, noise: Pixels, precision: str, keep: Sequence[str]
) -> None:
    """Of onnxruntime's own operators onnx knows no types, and TensorRT reads some of them."""
    maker = GraphMaker()
    fused = maker.add("Gelu", maker.conv("image", (3, 8), name="stem"), name="fused", domain="com.microsoft")
    maker.classify(maker.conv(fused, (8, 8), name="last"), 8)
    source = maker.save(tmp_path / "source.onnx")
    model = load_proto(source)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, source)
    converted = convert_graph(
        source, tmp_path / "model.onnx", precision=precision, target="tensorrt-10", keep=keep, calibration=noise
    )
    assert_same_interface(source, converted.path)
    made = infer_types(load_proto(converted.path))[nodes_of(converted.path)["fused"].output[0]]
    assert made == (TensorProto.FLOAT if keep else TensorProto.FLOAT16)
    np.testing.assert_allclose(run(converted.path, noise), run(source, noise), atol=5e-2)
    build_with_rtx(converted.path, tmp_path)


# int8: placement


def place_graph(path: Path, kept: Sequence[str] = ()) -> Any:
    model = load_proto(path)
    normalise_names(model)
    return place(GraphView.of(model), kept)


def test_activation_and_tail_are_found(tmp_path: Path) -> None:
    model = load_proto(write_residual(tmp_path / "source.onnx"))
    normalise_names(model)
    assert find_head(GraphView.of(model)) == ["cast", "nchw", "scaled", "image"]
    assert find_tail(GraphView.of(model)) == ["softmax"]


def test_residual_placement(tmp_path: Path) -> None:
    placement = place_graph(write_residual(tmp_path / "source.onnx"))
    assert dict(placement.edges) == {
        "image": ("stem",),
        "stem_relu": ("pool",),  # MaxPool moves INT8
        "pool": ("a1", "a_add"),  # the identity shortcut is quantized, a2's output is not
        "a1_relu": ("a2",),
        "a_relu": ("b1", "down"),
        "b1_relu": ("b2",),
        "down": ("b_add",),  # of two convolutions the shortcut's is quantized, the later one fuses
        "b_relu": ("global_pool",),
    }
    assert placement.twins == {"pool": "stem_relu"}
    assert placement.kept == {"linear": "the last layer"}


def test_gated_placement(tmp_path: Path) -> None:
    placement = place_graph(write_gated(tmp_path / "source.onnx"))
    assert placement.nodes == ("stem", "depthwise", "project", "top")
    assert placement.kept == {"se1": "works on 1x1 maps", "se2": "works on 1x1 maps", "linear": "the last layer"}
    assert placement.edges["stem_silu"] == ("depthwise", "add")
    assert placement.edges["gated"] == ("project",)
    assert not {"depthwise_silu", "depthwise", "squeeze", "gate"} & set(placement.edges)


def test_kept_nodes_read_floats(tmp_path: Path) -> None:
    placement = place_graph(write_residual(tmp_path / "source.onnx"), ["a1", "a_add", "down"])
    assert placement.edges["a_relu"] == ("b1",)
    assert "a1" not in placement.nodes
    assert not {"a1", "a_add", "down"} & {reader for readers in placement.edges.values() for reader in readers}
    assert placement.kept["a1"] == "keep"


def test_linear_layers_in_the_middle_are_quantized_per_output(tmp_path: Path) -> None:
    maker = GraphMaker()
    pooled = maker.add("GlobalAveragePool", maker.conv("image", (3, 8), name="stem"), name="squeezed")
    flat = maker.add("Flatten", pooled, name="flat_features")
    weight = maker.constant("w1", maker.rng.normal(0, 1, (8, 16)))
    hidden = maker.add("MatMul", flat, weight, name="hidden")
    for name, shape, transposed in (("g1", (16, 12), 0), ("g2", (4, 12), 1)):
        weight = maker.constant(f"{name}_weight", maker.rng.normal(0, 1, shape))
        hidden = maker.add("Gemm", hidden, weight, name=name, transB=transposed)
    maker.nodes.append(helper.make_node("Softmax", [hidden], ["PROBABILITIES"], name="softmax"))
    placement = place_graph(maker.save(tmp_path / "source.onnx"))
    assert {site.node: site.axis for site in placement.weights} == {"stem": 0, "hidden": 1, "g1": 1}
    assert placement.kept == {"g2": "the last layer"}


# int8: the written graph


@pytest.mark.parametrize("target", ["tensorrt-8.6", "tensorrt-10"])
def test_int8_is_what_tensorrt_fuses(tmp_path: Path, noise: Pixels, target: str) -> None:
    source = write_residual(tmp_path / "source.onnx", opset=17 if target == "tensorrt-8.6" else 18)
    path = convert_graph(source, tmp_path / "model.onnx", precision="int8", target=target, calibration=noise).path
    assert_same_interface(source, path)
    nodes, makers, constants = nodes_of(path), makers_of(path), constants_of(path)

    def operator(tensor: str) -> str:
        return str(makers[tensor].op_type) if tensor in makers else "constant"

    for name in ("stem", "a1", "a2", "b1", "b2", "down"):
        assert [operator(tensor) for tensor in nodes[name].input[:2]] == ["DequantizeLinear", "DequantizeLinear"]
        assert operator(nodes[name].input[2]) == "constant"  # the bias
    for relu in ("stem_relu", "a1_relu", "b1_relu"):
        assert operator(nodes[relu].input[0]) == "Conv"
    assert [operator(tensor) for tensor in nodes["a_add"].input] == ["Conv", "DequantizeLinear"]
    assert [operator(tensor) for tensor in nodes["b_add"].input] == ["Conv", "DequantizeLinear"]
    assert operator(nodes["linear"].input[0]) == "Flatten"
    scale_type = TensorProto.FLOAT if target == "tensorrt-8.6" else TensorProto.FLOAT16
    for node in nodes.values():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[1]].data_type == scale_type
            assert constants[node.input[2]].data_type == TensorProto.INT8
            assert not numpy_helper.to_array(constants[node.input[2]]).any()
    weight = makers[nodes["a1"].input[1]]
    assert {item.name: item.i for item in weight.attribute} == {"axis": 0}
    assert list(constants[weight.input[1]].dims) == [8]
    if target == "tensorrt-8.6":
        assert read_onnx(path).opset == 17
        assert operator(weight.input[0]) == "QuantizeLinear"
    else:
        assert read_onnx(path).opset >= 19
        assert constants[weight.input[0]].data_type == TensorProto.INT8
        build_with_rtx(path, tmp_path)
    pair = {tensor: float(numpy_helper.to_array(constants[f"{tensor}_scale"])) for tensor in ("stem_relu", "pool")}
    assert pair["stem_relu"] == pair["pool"]
    np.testing.assert_allclose(run(path, noise), run(source, noise), atol=0.05)


@pytest.mark.parametrize("target", ["tensorrt-8.6", "tensorrt-10"])
def test_int8_demo_passes_gate_and_keeps_its_accuracy(demo: Demo, tmp_path: Path, target: str) -> None:
    source = demo.old if target == "tensorrt-8.6" else demo.new
    converted = convert_graph(
        source, tmp_path / "model.onnx", precision="int8", target=target, calibration=demo.calibration
    )
    assert_same_interface(source, converted.path)
    assert len(converted.quantized_nodes) == 7
    assert "the last layer" in converted.kept_nodes.values()
    assert passes_gate(converted.path, demo.reference, "int8")
    build_with_rtx(converted.path, tmp_path)
    held_out = draw_set(200, seed=91)
    pixels = prepare(demo.network.recipe, [image.jpeg for image in held_out])
    labels = np.array([image.label for image in held_out])
    full, low = (float((run(path, pixels).argmax(axis=1) == labels).mean()) for path in (source, converted.path))
    assert full > 0.9
    assert low >= full - 0.01


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_collapsed_scales_fail_the_gate(demo: Demo, tmp_path: Path, factor: float) -> None:
    path = tmp_path / "model.onnx"
    convert_graph(demo.old, path, precision="int8", target="tensorrt-8.6", calibration=demo.calibration)
    assert passes_gate(path, demo.reference, "int8")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and not tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    assert not passes_gate(path, demo.reference, "int8")


def test_dead_tensor_is_named(tmp_path: Path, noise: Pixels) -> None:
    maker = GraphMaker()
    dead = maker.add("Mul", maker.conv("image", (3, 8), name="stem"), maker.constant("zero", 0), name="dead")
    maker.classify(maker.conv(dead, (8, 8), name="after"), 8)
    source = maker.save(tmp_path / "source.onnx")
    with pytest.raises(ExportError, match=r"dead \(read by after\) is zero on every calibration image"):
        convert_graph(source, tmp_path / "model.onnx", precision="int8", target="tensorrt-10", calibration=noise)
    assert not (tmp_path / "model.onnx").exists()
    kept = convert_graph(
        source, tmp_path / "model.onnx", precision="int8", target="tensorrt-10", calibration=noise, keep=["after"]
    )
    assert kept.kept_nodes["after"] == "keep"


def test_infinite_values_are_named(tmp_path: Path, noise: Pixels) -> None:
    maker = GraphMaker()
    given = maker.add("Mul", maker.conv("image", (3, 8), name="stem"), maker.constant("huge", 3e38), name="burst")
    maker.classify(maker.conv(given, (8, 8), name="after"), 8)
    source = maker.save(tmp_path / "source.onnx", opset=17)
    with pytest.raises(ExportError, match=r"burst \(read by after\) becomes infinite or NaN"):
        convert_graph(source, tmp_path / "model.onnx", precision="int8", target="tensorrt-8.6", calibration=noise)


def test_weights_keep_their_grid() -> None:
    weights = np.random.default_rng(1).normal(0, 1, (6, 4, 3, 3)).astype(np.float32)
    weights *= np.array([1, 1e-3, 1e-6, 10, 0, 1], np.float32)[:, None, None, None]
    for dtype in ("float32", "float16"):
        scales = weight_scales("w", weights, 0, dtype=dtype)
        assert scales.dtype == dtype
        assert scales[4] == 1
        largest = np.abs(weights).max(axis=(1, 2, 3))
        assert (scales.astype(np.float64) * 127 >= largest.astype(np.float64) * (1 - 1e-6)).all()
        assert (np.delete(scales * 127.0 / np.maximum(largest, 1e-30), [2, 4]) < 1.05).all()
    weights[0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="weight w has values up to nan"):
        weight_scales("w", weights, 0, dtype="float32")


@pytest.mark.parametrize(("count", "error"), [(7, True), (8, False)])
def test_few_calibration_images(demo: Demo, tmp_path: Path, count: int, error: bool) -> None:
    def convert() -> Any:
        return convert_graph(
            demo.new, tmp_path / "m.onnx", precision="int8", target="tensorrt-10", calibration=demo.calibration[:count]
        )

    if error:
        with pytest.raises(ExportError, match="8 calibration images at least, 7 were given"):
            convert()
    else:
        assert any("come from 8 images only" in text for text in convert().warnings)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (None, "int8 needs calibration images"),
        (np.zeros((40, 3, 96, 96), np.uint8), r"uint8 \[40, 3, 96, 96\]"),
        (np.zeros((40, 96, 96, 3), np.float32), "float32"),
    ],
)
def test_wrong_calibration_pixels(demo: Demo, tmp_path: Path, pixels: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        convert_graph(demo.new, tmp_path / "m.onnx", precision="int8", target="tensorrt-10", calibration=pixels)
    assert not list(tmp_path.iterdir())


def test_types_are_inferred_without_the_weights(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf ends at 2 GB, and so do onnx's functions that take a model; with fp16 and int8 ViT-H/14 is beyond."""
    infer = onnx.shape_inference.infer_shapes

    def limited(model: onnx.ModelProto, *arguments: Any, **options: Any) -> onnx.ModelProto:
        if model.ByteSize() > 100_000:
            msg = "this protobuf is too large"
            raise ValueError(msg)
        return infer(model, *arguments, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", limited)
    assert demo.new.stat().st_size > 1_000_000
    for precision in ("fp16", "int8"):
        converted = convert_graph(
            demo.new, tmp_path / precision / "model.onnx", precision=precision, target="tensorrt-10",
            calibration=demo.calibration,
        )  # fmt: skip
        assert_same_interface(demo.new, converted.path)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_same_bytes_for_same_input(demo: Demo, tmp_path: Path, precision: str) -> None:
    files = []
    for name in ("one", "two"):
        convert_graph(
            demo.new, tmp_path / name / "m.onnx", precision=precision, target="tensorrt-11",
            calibration=demo.calibration[:40],
        )  # fmt: skip
        files.append((tmp_path / name / "m.onnx").read_bytes())
        assert [path.name for path in (tmp_path / name).iterdir()] == ["m.onnx"]
    assert files[0] == files[1]


def test_failure_leaves_the_old_file(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: onnx.ModelProto, _kept: Any) -> onnx.ModelProto:
        model.graph.node[2].op_type = "Nonsense"
        return model

    destination = tmp_path / "model.onnx"
    destination.write_bytes(b"old")
    monkeypatch.setattr(half_module, "to_fp16", spoil)
    with pytest.raises(ExportError, match="converted graph is not valid"):
        convert_graph(demo.new, destination, precision="fp16", target="tensorrt-10")
    assert destination.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [destination]


# Observation and scales


def test_histogram_does_not_depend_on_batches() -> None:
    values = np.random.default_rng(2).normal(0, 1, 10_000).astype(np.float32)
    values[7_000] = 37.5
    whole, parts = Histogram(), Histogram()
    whole.add(values)
    for start in range(0, len(values), 700):
        parts.add(values[start : start + 700])
    assert whole.largest == parts.largest == 37.5
    assert whole.top == parts.top == 64
    assert whole.counts is not None
    assert parts.counts is not None
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == len(values)


def test_threshold_clips_outliers_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    bell, flat = Histogram(), Histogram()
    bell.add(np.append(rng.normal(0, 1, 1_000_000), 30).astype(np.float32))
    flat.add(rng.uniform(0, 4, 100_000).astype(np.float32))
    assert 4 < choose_threshold(bell) < 12
    assert choose_threshold(flat) > 3.9


def test_observed_values_are_those_of_the_graph(tmp_path: Path, noise: Pixels) -> None:
    model = load_proto(write_residual(tmp_path / "source.onnx"))
    seen = collect_histograms(model, ["image", "stem_relu"], noise)
    image = noise.astype(np.float32) / 64 - 2
    assert seen["image"].largest == pytest.approx(float(np.abs(image).max()))
    assert seen["image"].counts is not None
    assert seen["image"].counts.sum() == image.size


# Calibration images


RECIPE = Recipe(resize=40, crop=(32, 32), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def fill(tmp_path: Path) -> Callable[[int, int], Path]:
    """Write a folder with so many images, and so many files that are none."""

    def write(good: int, broken: int) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(good):
            Image.new("RGB", (60, 50), (number, 0, 0)).save(folder / f"good{number:03d}.png")
        for number in range(broken):
            (folder / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
        return folder

    return write


def test_folder_is_prepared_with_the_recipe(fill: Callable[[int, int], Path]) -> None:
    calibration = read_calibration(fill(33, 0), RECIPE)
    assert calibration.pixels.shape == (33, 32, 32, 3)
    assert calibration.pixels.dtype == np.uint8
    assert sorted(calibration.pixels[:, 0, 0, 0].tolist()) == list(range(33))
    assert calibration.warning is None


def test_broken_images_are_named(fill: Callable[[int, int], Path]) -> None:
    calibration = read_calibration(fill(40, 2), RECIPE)
    assert len(calibration.pixels) == 40
    assert calibration.warning is not None
    assert "broken0.jpg, broken1.jpg" in calibration.warning


def test_few_images_are_said(fill: Callable[[int, int], Path]) -> None:
    assert "only 9 calibration images" in (read_calibration(fill(9, 0), RECIPE).warning or "")


@pytest.mark.parametrize(
    ("good", "broken", "words"),
    [(0, 0, "holds no image"), (9, 10, "10 of 19 calibration images do not decode"), (7, 1, "7 images that decode")],
)
def test_useless_folders(fill: Callable[[int, int], Path], good: int, broken: int, words: str) -> None:
    with pytest.raises(ExportError, match=words) as raised:
        read_calibration(fill(good, broken), RECIPE)
    assert raised.value.hint


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a folder"):
        read_calibration(tmp_path / "absent", RECIPE)


def test_drawn_images_come_with_a_warning_and_are_not_the_gates(demo: Demo) -> None:
    calibration = read_calibration(None, demo.network.recipe)
    assert "not your data" in (calibration.warning or "")
    assert calibration.pixels.shape == (128, 96, 96, 3)
    gate = {image.tobytes() for image in demo.reference.pixels}
    assert not gate & {image.tobytes() for image in calibration.pixels}


@pytest.mark.parametrize(
    ("target", "operator"), [("tensorrt-8.6", "AveragePool"), ("tensorrt-10", "GlobalAveragePool")]
)
def test_tensorrt_8_pools_int8_in_windows(tmp_path: Path, noise: Pixels, target: str, operator: str) -> None:
    source = write_residual(tmp_path / "source.onnx", opset=17)
    path = tmp_path / "model.onnx"
    convert_graph(source, path, precision="int8", target=target, calibration=noise)
    (pool,) = [node for node in onnx.load(path).graph.node if node.name == "global_pool"]
    assert pool.op_type == operator
    if operator == "AveragePool":
        assert [list(one.ints) for one in pool.attribute] == [[SIZE // 2, SIZE // 2]]
    else:
        assert not pool.attribute
