"""ONNX files as found: each is repaired, said, and answers as the untouched file does; a wrong repair is caught."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import generator.graph.free_batch
import generator.graph.opset
from generator import build
from generator.errors import ExportError, SourceError, VerificationError
from generator.graph.free_batch import free_batch, place_batch
from generator.graph.model import open_onnx
from generator.repository import read_record
from generator.repository.fingerprint import fingerprint
from generator.sources import load_network
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from tests.tiny_onnx import CLASSES, export_graph, only, write_tiny_onnx

DATA = Path(__file__).parent / "data" / "exporters"
node = helper.make_node
RECIPE = {"resize": 52, "crop": 48, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
GREY = {**RECIPE, "channels": "grey", "mean": [0.5], "std": [0.25]}
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def spec_of(path: Path, recipe: Any = RECIPE, **options: Any) -> ModelSpec:
    return make_spec([str(path)], labels="index", recipe=recipe, batch={"max": 5}, **options)[0]


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any],
    *,
    image: list[Any],
    outputs: dict[str, list[Any]],
    opset: int = 13,
    name: str = "image",
    kind: int = FLOAT,
    listed: bool = False,
) -> Path:
    """Write a graph; `listed` weights are inputs, too, as IR version 3 has them."""
    stored = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
    inputs = [helper.make_tensor_value_info(name, kind, image)]
    if listed:
        inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in stored]
    ends = [helper.make_tensor_value_info(key, kind, shape) for key, shape in outputs.items()]
    graph = helper.make_graph(nodes, "found", inputs, ends, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8)
    onnx.save(model, path)
    return path


def weights_of(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.normal(0, 2 / max(1, prod(shape[1:])) ** 0.5, shape).astype(dtype) for shape in shapes]


def write_transformer(path: Path, *, batch: Any = 1) -> Path:
    """Tokens, a class token beside them, and attention with the batch in the second axis, all with a batch of 1."""
    patches, token, joint, out = weights_of((8, 3, 16, 16), (1, 1, 8), (8, 24), (8, CLASSES))
    shapes = {"to_tokens": [1, 8, 9], "to_heads": [10, 4, 6], "from_heads": [10, 8]}
    shapes |= {"with_batch": [10, 1, 8], "last": [1, -1]}
    nodes = [
        node("Conv", ["image", "patches"], ["grid"], strides=[16, 16]),
        node("Reshape", ["grid", "to_tokens"], ["flat"], name="tokens"),
        node("Transpose", ["flat"], ["sequence"], perm=[0, 2, 1]),
        node("Concat", ["token", "sequence"], ["all"], name="join", axis=1),
        node("Transpose", ["all"], ["second"], perm=[1, 0, 2]),
        node("MatMul", ["second", "joint"], ["projected"]),
        # [10, batch * 4, 6]: queries, keys and values of two each, as torch's attention has them
        node("Reshape", ["projected", "to_heads"], ["heads"], name="heads"),
        node("Transpose", ["heads"], ["outer"], perm=[1, 0, 2]),
        node("Split", ["outer", "parts"], ["q", "k", "v"], axis=2),
        node("Transpose", ["k"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["q", "turned"], ["alike"]),
        node("Softmax", ["alike"], ["attention"], axis=2),
        node("MatMul", ["attention", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[1, 0, 2]),
        node("Reshape", ["back", "from_heads"], ["merged"], name="merge"),
        node("Reshape", ["merged", "with_batch"], ["again"], name="split_batch"),
        node("Gather", ["again", "first"], ["chosen"], axis=0),
        node("Reshape", ["chosen", "last"], ["features"], name="last"),
        node("MatMul", ["features", "out"], ["scores"], name="out"),
    ]
    weights = {"patches": patches, "token": token, "joint": joint, "out": out, "first": np.array(0),
               "parts": np.array([2, 2, 2]), **{key: np.array(value) for key, value in shapes.items()}}  # fmt: skip
    return write(path, nodes, weights, image=[batch, 3, 48, 48], outputs={"scores": [batch, CLASSES]})


def write_old(path: Path) -> Path:
    """Opset 8 with weights among the inputs, Dropout, Upsample, a Softmax over the last axis and 4-D scores."""
    conv, bias, scale, last = weights_of((8, 3, 5, 5), (8,), (8,), (CLASSES, 8, 1, 1))
    nodes = [
        node("Conv", ["image", "conv"], ["a"], strides=[4, 4]),
        node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"], spatial=1),
        node("Upsample", ["b"], ["c"], name="up", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
        node("Relu", ["c"], ["d"]),
        node("Dropout", ["d"], ["e"], ratio=0.5),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Conv", ["f", "last"], ["g"]),
        node("Reshape", ["g", "shape"], ["h"], name="flatten"),
        node("Softmax", ["h"], ["i"], name="softmax"),
        node("Reshape", ["i", "wide"], ["scores"], name="widen"),
    ]
    weights = {"conv": conv, "scale": np.abs(scale) + 1, "bias": bias, "mean": bias * 0, "var": bias * 0 + 1}
    weights |= {"last": last, "shape": np.array([1, CLASSES]), "wide": np.array([1, CLASSES, 1, 1])}
    outputs = {"scores": [1, CLASSES, 1, 1]}
    return write(path, nodes, weights, image=[1, 3, 48, 48], outputs=outputs, opset=8, listed=True)


def write_half(path: Path) -> Path:
    """FP16 from end to end, NHWC, free height and width, and names that are ours or a shell's."""
    conv, last = weights_of((8, 3, 5, 5), (8, CLASSES), dtype=np.float16)
    nodes = [
        node("Transpose", ["PIXELS"], ["PROBABILITIES"], perm=[0, 3, 1, 2]),
        node("Conv", ["PROBABILITIES", "a b:0/w"], ["trtgen_cast"], strides=[4, 4]),
        node("Relu", ["trtgen_cast"], ["trtgen_scale"]),
        node("GlobalAveragePool", ["trtgen_scale"], ["pool/out:0"]),
        node("Flatten", ["pool/out:0"], ["LOGITS"]),
        node("MatMul", ["LOGITS", "last"], ["dense 1/out:0"]),
    ]
    weights = {"a b:0/w": conv, "last": last}
    outputs = {"dense 1/out:0": ["N", CLASSES]}
    return write(path, nodes, weights, image=["N", "H", "W", 3], outputs=outputs, name="PIXELS", kind=HALF)


def write_several(path: Path, *, channels: int = 3, batch: int = 4) -> Path:
    """A batch of 4, a feature map beside the scores, and a branch that nobody reads."""
    conv, last = weights_of((8, channels, 5, 5), (8, CLASSES))
    nodes = [
        node("Conv", ["image", "conv"], ["map"], strides=[4, 4]),
        node("Relu", ["map"], ["relu"]),
        node("GlobalAveragePool", ["relu"], ["pooled"]),
        node("Reshape", ["pooled", "shape"], ["flat"], name="flatten"),
        node("MatMul", ["flat", "last"], ["scores"]),
        node("Sigmoid", ["map"], ["mask"], name="mask"),
    ]
    weights = {"conv": conv, "last": last, "shape": np.array([batch, 8])}
    outputs = {"mask": [batch, 8, 11, 11], "scores": [batch, CLASSES]}
    return write(path, nodes, weights, image=[batch, channels, 48, 48], outputs=outputs)


def write_pinned(path: Path, *, batch: int = 1, axes: Sequence[int] = ()) -> Path:
    """A Resize to sizes that hold the batch, and a Squeeze that takes a batch of 1 out."""
    conv, last = weights_of((8, 3, 5, 5), (8, CLASSES))
    nodes = [
        node("Conv", ["image", "conv"], ["map"], strides=[4, 4]),
        node("Resize", ["map", "", "", "sizes"], ["large"], name="up", mode="linear"),
        node("Relu", ["large"], ["relu"]),
        node("GlobalAveragePool", ["relu"], ["pooled"]),
        node("Squeeze", ["pooled", *(["axes"] if axes else [])], ["flat"], name="squeeze"),
        node("MatMul", ["flat", "last"], ["one"]),
        node("Reshape", ["one", "shape"], ["scores"], name="widen"),
    ]
    weights = {"conv": conv, "last": last, "sizes": np.array([batch, 8, 25, 19]), "shape": np.array([batch, CLASSES])}
    weights |= {"axes": np.array(axes)} if axes else {}
    return write(path, nodes, weights, image=[batch, 3, 48, 48], outputs={"scores": [batch, CLASSES]})


def write_linked(path: Path) -> Path:
    """Weights behind a symbolic link, as in a hub's cache."""
    write_tiny_onnx(path, size=48, batch=1)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0)
    blobs = path.parent / "blobs"
    blobs.mkdir()
    (path.parent / "w.data").rename(blobs / "5e1f")
    (path.parent / "w.data").symlink_to(blobs / "5e1f")
    return path


FILES: dict[str, tuple[Any, Any, list[str]]] = {
    "transformer": (write_transformer, RECIPE, [
        "the batch of 1 is made free: rewritten are tokens, join, heads and 3 more",
    ]),
    "old": (write_old, RECIPE, [
        "8 weights that the file lists as inputs are constants",
        "opset 8 is raised to 13",
        "the batch of 1 is made free: rewritten are flatten, widen",
        "output scores ['batch', 4, 1, 1] is flattened to ['batch', 4]",
    ]),
    "half": (write_half, RECIPE, [
        "the size of images is free: fixed to [48, 48, 3]",
        "input PIXELS is float16: cast from float32",
        "output dense 1/out:0 is float16: cast to float32",
    ]),
    "several": (write_several, RECIPE, [
        "output scores is served (no other has the shape of scores), mask left out",
        "the batch of 4 is made free: rewritten are flatten",
    ]),
    "grey": (lambda path: write_several(path, channels=1, batch=1), GREY, [
        "output scores is served (no other has the shape of scores), mask left out",
        "the batch of 1 is made free: rewritten are flatten",
    ]),
    "pinned": (write_pinned, RECIPE, ["the batch of 1 is made free: rewritten are up, squeeze, widen"]),
    "pinned axes": (lambda path: write_pinned(path, axes=[-4, 2, 3]), RECIPE, [
        "the batch of 1 is made free: rewritten are up, squeeze, widen",
    ]),
    "pinned four": (lambda path: write_pinned(path, batch=4), RECIPE, [
        "the batch of 4 is made free: rewritten are up, squeeze, widen",
    ]),
    "linked": (write_linked, RECIPE, ["the batch of 1 is made free"]),
    "keras": (lambda _: DATA / "keras.onnx", RECIPE, ["the size of images is free: fixed to [48, 48, 3]"]),
    "paddle": (lambda _: DATA / "paddle.onnx", RECIPE, [
        "opset 11 is raised to 13",
        "the batch of 1 is made free: rewritten are Reshape.1",
    ]),
}  # fmt: skip


def pixels_of(spec: ModelSpec, count: int = 6) -> Any:
    shape = load_network(spec).recipe.shape
    noise = np.random.default_rng(1).integers(0, 256, (count, *shape))
    return (noise * np.linspace(0.1, 0.9, count).reshape(-1, 1, 1, 1)).astype(np.uint8)


@pytest.mark.parametrize("name", FILES)
def test_a_file_as_found_is_repaired_and_answers_as_it_did(tmp_path: Path, name: str) -> None:
    make, recipe, repairs = FILES[name]
    spec = spec_of(make(tmp_path / "found.onnx"), recipe)
    network = load_network(spec)
    assert list(network.repairs) == repairs
    model = export_graph(spec, network, tmp_path / "out")  # proves the batch
    assert (model.input.name, model.input.shape[0], model.output.shape) == ("PIXELS", -1, (-1, CLASSES))
    pixels = pixels_of(spec)
    scores = only(network.run(pixels)).astype(np.float64)
    assert len({tuple(row) for row in scores.round(3)}) == len(scores)  # else nothing would be compared
    if not np.allclose(scores.sum(axis=1), 1, atol=1e-2):
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    tolerance = 2e-2 if name == "half" else 1e-4
    np.testing.assert_allclose(only(open_onnx(model.path)(pixels)), scores, atol=tolerance)


def test_an_opset_that_was_raised_is_not_called_lowered(tmp_path: Path) -> None:
    spec = spec_of(write_old(tmp_path / "old.onnx"), target="onnxruntime")
    assert build(spec, tmp_path / "model_repository", verify=False).notes == ()


def test_a_file_that_needs_no_repair_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", size=48)
    network = load_network(spec_of(path))
    assert network.repairs == ()
    assert network.graph == onnx.load(path)


def test_a_reshape_of_one_row_is_repaired_though_the_batch_is_called_free(tmp_path: Path) -> None:
    network = load_network(spec_of(write_transformer(tmp_path / "own.onnx", batch="N")))
    assert network.repairs == ("the batch of 1 is made free: rewritten are tokens, join, heads and 3 more",)


@pytest.mark.parametrize(
    ("target", "outside", "before", "axis"),
    [
        ([1, 8], 1, 0, 0),
        ([64, 49, 96], 1, 0, 0),
        ([1, 8, 8, 7, 7, 96], 1, 0, 0),
        ([197, 12, 64], 197, 1, 1),
        ([197, 768], 197, 1, 0),
        ([197, 1, 768], 197, 0, 1),
        ([8, 9], 4, 1, 0),
        ([3, 5], 4, 1, None),
    ],
)
def test_where_a_reshape_puts_the_batch(target: list[int], outside: int, before: int, axis: int | None) -> None:
    assert place_batch(target, batch=1, outside=outside, before=before) == axis


@pytest.mark.parametrize("planted", ["another axis", "another operator", "another output"])
def test_a_wrong_repair_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """The rows of a batch swapped with the channels; another operator than before; other scores than the file's."""
    make = {"another axis": write_transformer, "another operator": write_old, "another output": write_several}[planted]
    if planted == "another axis":
        own = place_batch

        def swap(target: Any, **given: Any) -> int | None:
            return 0 if list(target) == [10, 4, 6] else own(target, **given)

        monkeypatch.setattr(generator.graph.free_batch, "place_batch", swap)
    if planted == "another operator":
        own_convert = generator.graph.opset._convert

        def convert(model: onnx.ModelProto) -> onnx.ModelProto:
            converted = own_convert(model)
            for one in converted.graph.node:
                if one.op_type == "Relu":
                    one.op_type = "Abs"
            return converted

        monkeypatch.setattr(generator.graph.opset, "_convert", convert)
    spec = spec_of(make(tmp_path / "found.onnx"))
    if planted == "another output":
        load = load_network

        def swapped(given: ModelSpec) -> Any:
            network = load(given)
            assert network.graph is not None
            last = next(tensor for tensor in network.graph.graph.initializer if tensor.name == "last")
            last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last)[:, ::-1].copy(), "last"))
            return network

        monkeypatch.setattr("generator.sources.load_network", swapped)
    with pytest.raises((ExportError, VerificationError), match=r"baked in|is not what its source is"):
        build(spec, tmp_path / "model_repository")
    assert read_record(tmp_path / "model_repository", spec.name) is None


def test_several_outputs_with_the_shape_of_scores_are_refused_until_one_is_named(tmp_path: Path) -> None:
    path = write_several(tmp_path / "own.onnx")
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("pooled", FLOAT, [4, 8, 1, 1]))
    onnx.save(model, path)
    with pytest.raises(
        SourceError, match=r"several outputs .*scores float32 \[4, 4\], pooled float32 \[4, 8, 1, 1\]"
    ) as caught:
        load_network(spec_of(path))
    assert caught.value.fields == {"output_tensor": None}
    with pytest.raises(SourceError, match="no output 'score'; it has mask, scores, pooled; did you mean scores"):
        load_network(spec_of(path, output_tensor="score"))
    with pytest.raises(SourceError, match=r"output mask .*: floating-point \[batch, classes\]"):
        load_network(spec_of(path, output_tensor="mask"))
    asked = spec_of(path, output_tensor="pooled")
    assert only(load_network(asked).run(pixels_of(asked))).shape == (6, 8)
    assert load_network(asked).repairs[0] == "output pooled is served (as asked), mask, scores left out"
    hashes = [fingerprint(spec)["artifact"] for spec in (asked, spec_of(path), spec_of(path, output_tensor="scores"))]
    assert len(set(hashes)) == 3


def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    path = write_old(tmp_path / "own.onnx")
    model = onnx.load(path)
    del model.graph.node[1].attribute[:]
    model.graph.node[1].name = "norm"
    model.graph.node[1].attribute.append(helper.make_attribute("spatial", 0))
    for one in model.graph.initializer:
        if one.name in ("scale", "bias", "mean", "var"):
            one.CopyFrom(numpy_helper.from_array(np.ones((8, 11, 11), np.float32), one.name))
    del model.graph.input[1:]
    model.ir_version = 8
    onnx.save(model, path)
    with pytest.raises(
        SourceError, match=r"has opset 8, .* stops at node norm \(BatchNormalization\): Attribute spatial"
    ):
        load_network(spec_of(path))


def test_a_batch_that_cannot_be_freed_names_the_node(tmp_path: Path) -> None:
    spec = spec_of(write_tiny_onnx(tmp_path / "own.onnx", size=48, batch=1, reshape_batch=1))
    with pytest.raises(ExportError, match=r"the batch is baked in by node flatten \(Reshape\)"):
        export_graph(spec, load_network(spec), tmp_path / "out")


@pytest.mark.parametrize(("channels", "recipe"), [(1, RECIPE), (3, GREY)])
def test_channels_that_are_not_the_recipes(tmp_path: Path, channels: int, recipe: Any) -> None:
    path = write_several(tmp_path / "own.onnx", channels=channels)
    with pytest.raises(SourceError, match=f"input image has {channels} channel.*the recipe's channels are") as caught:
        load_network(spec_of(path, recipe))
    assert caught.value.hint == f"recipe: channels: {'grey' if channels == 1 else 'RGB or BGR'}"


def test_free_batch_leaves_a_graph_whose_batch_is_free(tmp_path: Path) -> None:
    model = onnx.load(write_tiny_onnx(tmp_path / "own.onnx", size=48))
    before = onnx.ModelProto()
    before.CopyFrom(model)
    assert free_batch(model, (1, 3, 48, 48)) == []
    assert model == before
