"""Exported graphs: uint8 NHWC in, probabilities out, every batch, equal to the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from generator.errors import ExportError
from generator.graph.batches import prove_dynamic_batch
from generator.graph.model import open_onnx, read_onnx
from generator.sources import Network, load_network
from generator.sources.network import torch_runner
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from generator.spec.recipe import IMAGENET
from generator.tasks.classification.activation import Head, guess_head
from generator.tasks.classification.compare import comparable, compare
from tests.tiny_onnx import CLASSES, export_graph, only, write_tiny_onnx

SMALL = IMAGENET.model_copy(update={"resize": 36, "crop": (32, 32)})
RECIPE = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": SMALL.mean, "std": SMALL.std}


def tiny_spec(path: Path, **options: Any) -> ModelSpec:
    return make_spec([str(path)], labels="index", recipe=RECIPE, **options)[0]


def pixels(count: int = 5, size: int = 32) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def module_network(module: torch.nn.Module, labels: int) -> Network:
    return Network(
        description="test",
        recipe=SMALL,
        labels=tuple(str(index) for index in range(labels)),
        run=torch_runner(module.eval(), SMALL),
        module=module.eval(),
    )


def similarity(network: Network, path: Path, activation: str) -> float:
    batch = pixels()
    expected = comparable(guess_head(activation, only(network.run(batch))).finish(only(network.run(batch))), activation)
    return compare(expected, comparable(only(open_onnx(path)(batch)), activation)).worst_cosine


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_a_torchvision_model_becomes_the_graph_it_was(tmp_path: Path, name: str) -> None:
    spec = make_spec([name], weights="random", image_size=64, batch={"max": 5})[0]
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path)
    assert (model.input.name, model.input.data_type.numpy, model.input.shape) == ("PIXELS", "uint8", (-1, 64, 64, 3))
    assert (model.output.name, model.output.shape) == ("PROBABILITIES", (-1, 1000))
    batch = pixels(size=64)
    probabilities = only(open_onnx(model.path)(batch))
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-5
    expected = comparable(Head(output="logits", activation="softmax").finish(only(network.run(batch))), "softmax")
    assert compare(expected, comparable(probabilities, "softmax")).worst_cosine > 0.99999
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_the_same_input_gives_the_same_bytes_without_traces_of_this_machine(tmp_path: Path) -> None:
    spec = make_spec(["resnet18"], weights="random", image_size=64)[0]
    files = [export_graph(spec, load_network(spec), tmp_path / run).path.read_bytes() for run in ("a", "b")]
    assert files[0] == files[1]
    assert str(Path(torch.__file__).parent).encode() not in files[0]
    assert b"File " not in files[0]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("activation", "name"), [("softmax", "PROBABILITIES"), ("none", "LOGITS")])
def test_an_onnx_file_is_wrapped(tmp_path: Path, layout: str, activation: str, name: str) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", layout=layout)
    spec = tiny_spec(path, activation=activation)
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path / "out")
    assert (model.input.shape, model.output.name, model.output.shape) == ((-1, 32, 32, 3), name, (-1, CLASSES))
    assert similarity(network, model.path, activation) > 0.99999


@pytest.mark.parametrize(
    ("source", "target"),
    [("NCHW", "onnxruntime"), ("NHWC", "onnxruntime"), ("module", "onnxruntime"), ("module", "tensorrt-8.6")],
)
def test_bgr_and_another_scale_are_the_graphs_business(tmp_path: Path, source: str, target: str) -> None:
    """A graph that forgot to turn the channels would answer as it does with RGB and BGR swapped."""
    recipe = {**RECIPE, "channels": "BGR", "scale": 1.0, "mean": [103.9, 116.8, 123.7], "std": 40.0}
    if source == "module":
        spec = make_spec(["demo"], recipe={"channels": "BGR"}, target=target, precision="fp32")[0]
    else:
        write_tiny_onnx(tmp_path / "net.onnx", layout=source)
        spec = make_spec([str(tmp_path / "net.onnx")], labels="index", recipe=recipe, target=target, precision="fp32")[
            0
        ]
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path / "graph")
    batch = pixels(size=network.recipe.crop[0])
    answers = {
        order: comparable(only(open_onnx(model.path)(given)), "softmax")
        for order, given in (("RGB", batch), ("BGR", np.ascontiguousarray(batch[..., ::-1])))
    }
    expected = comparable(guess_head("softmax", only(network.run(batch))).finish(only(network.run(batch))), "softmax")
    assert compare(expected, answers["RGB"]).worst_cosine > 0.99999
    assert compare(expected, answers["BGR"]).worst_cosine < 0.9999


def test_a_sigmoid_gives_independent_probabilities(tmp_path: Path) -> None:
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx"), activation="sigmoid")
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path / "out")
    expected = 1 / (1 + np.exp(-only(network.run(pixels()))))
    assert np.abs(only(open_onnx(model.path)(pixels())) - expected).max() < 1e-5


def test_a_softmax_inside_an_onnx_file_is_not_doubled(tmp_path: Path) -> None:
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx", tail="softmax"))
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path / "out")
    assert np.abs(only(open_onnx(model.path)(pixels())) - only(network.run(pixels()))).max() < 1e-6
    with pytest.raises(ExportError, match="activation is sigmoid, but the source ends in Softmax"):
        export_graph(tiny_spec(tmp_path / "own.onnx", activation="sigmoid"), network, tmp_path / "other")


class Small(torch.nn.Module):
    """A convolution, a mean and a linear layer, with one thing to get wrong."""

    def __init__(self, *, softmax: bool = False, baked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.linear = torch.nn.Linear(8, CLASSES)
        self.softmax, self.baked = softmax, baked

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.convolution(images).relu().mean(dim=(2, 3))
        if self.baked:
            features = features.reshape(2, 8)
        scores: torch.Tensor = self.linear(features)
        return scores.softmax(dim=1) if self.softmax else scores


def test_a_softmax_inside_a_module_is_not_doubled(tmp_path: Path) -> None:
    network = module_network(Small(softmax=True), CLASSES)
    model = export_graph(make_spec(["small"])[0], network, tmp_path)
    assert np.abs(only(open_onnx(model.path)(pixels())) - only(network.run(pixels()))).max() < 1e-6
    assert model.output.name == "PROBABILITIES"
    proto = onnx.load(model.path)
    assert [node.op_type for node in proto.graph.node].count("Softmax") == 1


def test_a_module_with_a_baked_batch_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the batch is baked in") as caught:
        export_graph(make_spec(["small"])[0], module_network(Small(baked=True), CLASSES), tmp_path)
    assert "test_export.py" in caught.value.message


@pytest.mark.parametrize(
    ("options", "node"),
    [({"reshape_batch": 1}, "flatten"), ({"tail": "mix"}, "mix")],
)
def test_an_onnx_file_with_a_baked_batch_is_refused_with_the_node(
    tmp_path: Path, options: dict[str, Any], node: str
) -> None:
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx", **options))
    with pytest.raises(ExportError, match=f"the batch is baked in by (node {node}|a node that mixes)") as caught:
        export_graph(spec, load_network(spec), tmp_path / "out")
    assert "with a batch of 2" in caught.value.message


def test_a_node_without_a_name_is_named_by_its_output(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", reshape_batch=1)
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, path)
    spec = tiny_spec(path)
    with pytest.raises(ExportError, match=r"baked in by the node of output features \(Reshape\): with"):
        export_graph(spec, load_network(spec), tmp_path / "out")


@pytest.mark.parametrize(
    ("divisor", "words"),
    [
        ("zero", "output PROBABILITIES is NaN or infinite for single images"),
        ("rows", "row 0 is NaN or infinite, which"),
    ],
)
def test_nan_is_not_taken_for_a_baked_batch(tmp_path: Path, divisor: str, words: str) -> None:
    """0 / 0 for every image, or from two rows on: the second is the batch's fault."""
    path = write_tiny_onnx(tmp_path / "own.onnx")
    model = onnx.load(path)
    graph, node = model.graph, onnx.helper.make_node
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
    last = graph.node.pop()
    graph.node.extend(
        [
            node("Shape", ["raw"], ["count"], start=0, end=1),
            node("Cast", ["count"], ["float_count"], to=onnx.TensorProto.FLOAT),
            node("Equal", ["float_count", "one"], ["alone"]),
            node("Cast", ["alone"], ["rows"], to=onnx.TensorProto.FLOAT),
            node("Mul", ["raw", divisor], ["up"]),
            node("Div", ["up", divisor], [last.output[0]]),
        ]
    )
    onnx.save(model, path)
    spec = tiny_spec(path)
    with pytest.raises(ExportError) as caught:
        export_graph(spec, load_network(spec), tmp_path / "out")
    assert words in caught.value.message
    assert ("baked in" in caught.value.message) is (divisor == "rows")


def test_layers_read_equal_weights_without_copies(tmp_path: Path) -> None:
    """The older exporter writes equal biases once and copies them for the other layers."""
    first, second = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3)
    for layer in (first, second):
        assert layer.bias is not None
        torch.nn.init.zeros_(layer.bias)
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES))
    module = torch.nn.Sequential(first, torch.nn.ReLU(), second, *pooled)
    network = module_network(module, CLASSES)
    model = export_graph(make_spec(["small"], target="tensorrt-8.6", precision="fp32")[0], network, tmp_path)
    graph = onnx.load(model.path).graph
    weights = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert [set(node.input[1:]) <= weights for node in convolutions] == [True, True]
    assert similarity(network, model.path, "softmax") > 0.99999


def test_copies_of_copies_and_those_that_a_branch_reads_are_weights(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx")
    model = onnx.load(path)
    graph, node, info = model.graph, onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    first, last = graph.node[0], graph.node.pop()
    first.input[2] = "copy_of_copy"
    branches = [
        onnx.helper.make_graph(
            [node(operator, ["raw", "bias_copy"], [operator])], operator, [], [info(operator, 1, ["batch", CLASSES])]
        )
        for operator in ("Add", "Sub")
    ]
    graph.node.append(node("If", ["yes"], [last.output[0]], then_branch=branches[0], else_branch=branches[1]))
    copies = [("conv_bias", "copy"), ("copy", "copy_of_copy"), ("linear_bias", "bias_copy")]
    for position, (weight, copy) in enumerate(copies):
        graph.node.insert(position, node("Identity", [weight], [copy]))
        graph.value_info.append(info(copy, 1, None))
    onnx.save(model, path)
    spec = tiny_spec(path)
    network = load_network(spec)
    exported = export_graph(spec, network, tmp_path / "out")
    assert "Identity" not in {node.op_type for node in onnx.load(exported.path).graph.node}
    assert similarity(network, exported.path, "softmax") > 0.99999


def test_a_broken_graph_is_refused(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx")
    spec = tiny_spec(path)
    network = load_network(spec)
    assert network.graph is not None
    network.graph.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"not a valid ONNX graph: .*NoSuchOperator"):
        export_graph(spec, network, tmp_path / "out")


def test_the_proof_covers_the_largest_batch(tmp_path: Path) -> None:
    spec = tiny_spec(write_tiny_onnx(tmp_path / "own.onnx"), batch={"max": 1})
    model = export_graph(spec, load_network(spec), tmp_path / "out")
    assert prove_dynamic_batch(read_onnx(model.path), maximum=1) == 0
    assert prove_dynamic_batch(read_onnx(model.path), maximum=17) < 1e-4


def test_weights_above_the_limit_of_protobuf_travel_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import generator.graph.export

    monkeypatch.setattr(generator.graph.export, "_MAX_SINGLE_FILE_BYTES", 1000)
    path = write_tiny_onnx(tmp_path / "own.onnx")
    spec = tiny_spec(path)
    network = load_network(spec)
    model = export_graph(spec, network, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in (tmp_path / "out").iterdir()), "the container's user"
    assert similarity(network, model.path, "softmax") > 0.99999
    # and such a file is a source as good as any
    outer = onnx.load(path)
    onnx.save(outer, path, save_as_external_data=True, location="own.onnx.data", size_threshold=0)
    again = export_graph(spec, load_network(spec), tmp_path / "b")
    assert similarity(load_network(spec), again.path, "softmax") > 0.999
