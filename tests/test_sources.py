"""Sources: torchvision, checkpoints and ONNX files, and what each says when it is given something else."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
from collections import defaultdict
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.error import URLError

import numpy as np
import onnx
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from generator.demo.draw import draw_set
from generator.errors import SourceError
from generator.images.training_pixels import make_pixels
from generator.sources import describe_source, load_network
from generator.sources.checkpoint import align_state_dict, load_state_dict, read_state_dict
from generator.sources.random_weights import calibrate
from generator.spec.file import make_spec
from generator.spec.recipe import IMAGENET
from tests.tiny_onnx import CLASSES, export_graph, only, write_tiny_onnx

LABELS = [f"class {index}" for index in range(CLASSES)]


def drawn_pixels(count: int = 6) -> Any:
    pixels = make_pixels(IMAGENET)
    return np.stack([pixels(Image.open(io.BytesIO(drawn.jpeg))) for drawn in draw_set(count, seed=3)])


def failing(names: list[str], **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        load_network(make_spec(names, **options)[0])
    assert caught.value.hint
    return caught.value


# --- torchvision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18", "squeezenet1_1", "vit_b_32"])
def test_random_weights_discriminate_and_follow_from_the_seed(name: str) -> None:
    spec = make_spec([name], weights="random")[0]
    pixels = drawn_pixels()
    scores = only(load_network(spec).run(pixels))
    assert len(set(scores.argmax(axis=1).tolist())) > 1
    assert scores.std(axis=0).mean() > 0.1
    assert np.array_equal(scores, only(load_network(spec).run(pixels)))
    other = only(load_network(make_spec([name], weights="random", seed=1)[0]).run(pixels))
    assert np.abs(other - scores).max() > 0.1


def test_random_weights_are_calm_for_images_unlike_those_they_were_set_with() -> None:
    """Squeeze-excitation gates at full strength give one of these images 21 times the usual length."""
    scores = only(load_network(make_spec(["efficientnet_b0"], weights="random")[0]).run(drawn_pixels(40)))
    lengths = np.linalg.norm(scores - scores.mean(axis=1, keepdims=True), axis=1)
    assert lengths.max() < 10 * np.median(lengths)


def test_recipe_and_labels_are_those_of_the_weights() -> None:
    recipe, labels = describe_source(make_spec(["efficientnet_b0"])[0])
    assert (recipe.interpolation, recipe.resize, recipe.crop) == ("bicubic", 256, (224, 224))
    assert (len(labels), labels[0]) == (1000, "tench")


def test_an_unknown_name_lists_the_near_ones() -> None:
    error = failing(["resnet5"])
    assert "'resnet5'; did you mean resnet50" in error.message


def test_unknown_weights_list_what_there_is() -> None:
    error = failing(["resnet50"], weights="IMAGENET1K_V9")
    assert "it has IMAGENET1K_V1, IMAGENET1K_V2, default and random" in error.message


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    error = failing(["resnet18"])
    assert "cannot be downloaded: Name or service not known" in error.message
    assert "resnet18-f37072fd.pth" in error.hint
    assert "weights: random" in error.hint
    assert error.fields == {"weights": "resnet18-f37072fd.pth"}


@pytest.mark.parametrize(
    ("name", "size", "reason", "hint"),
    [
        ("inception_v3", 64, "Kernel size can't be greater than actual input size", "at least 75 x 75"),
        ("alexnet", 32, "Output size is too small", "at least 63 x 63"),
        ("vit_b_32", 100, "Input shape indivisible by patch size", "for 224 x 224"),
        ("vit_b_32", (224, 192), "Wrong image width", "for 224 x 224"),
        ("maxvit_t", 100, "not divisible by partition size 7", "for 224 x 224"),
    ],
)
def test_an_image_size_that_an_architecture_does_not_take(name: str, size: Any, reason: str, hint: str) -> None:
    error = failing([name], weights="random", image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert f"{name} does not take images of {height} x {width} pixels: " in error.message
    assert reason in error.message
    assert hint in (error.hint or "")


def test_a_vision_transformer_is_built_for_another_image_size() -> None:
    network = load_network(make_spec(["vit_b_32"], weights="random", image_size=64)[0])
    assert only(network.run(np.zeros((1, 64, 64, 3), np.uint8))).shape == (1, 1000)


def test_a_head_without_a_bias_discriminates_too() -> None:
    """As MaxViT has one: the direction that all images share is taken out of its weights."""
    torch.manual_seed(1)
    features = (torch.nn.Conv2d(3, 32, 7, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    module = torch.nn.Sequential(*features, torch.nn.Linear(32, 20, bias=False))
    calibrate(module, IMAGENET, seed=0)
    with torch.inference_mode():
        scores = module(torch.from_numpy(IMAGENET.normalise(drawn_pixels(12)))).numpy()
    assert len(set(scores.argmax(axis=1).tolist())) > 3
    assert np.abs(scores.mean(axis=0)).mean() < scores.std(axis=0).mean()


# --- checkpoints ---------------------------------------------------------------------------------------------------


def small_checkpoint(classes: int = CLASSES) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state: dict[str, torch.Tensor] = torchvision.models.resnet18(num_classes=classes).state_dict()
    return state


def checkpoint_spec(path: Path, tmp_path: Path, **options: Any) -> Any:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS) + "\n")
    given = {"architecture": "resnet18", "weights": str(path), "classes": CLASSES, "labels": str(labels), **options}
    return make_spec(["own"], **given)[0]


@pytest.mark.parametrize("form", ["pt", "safetensors", "wrapped"])
def test_a_checkpoint_answers_like_the_module_it_came_from(tmp_path: Path, form: str) -> None:
    state = small_checkpoint()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, path)
    else:
        torch.save(state, path)
    network = load_network(checkpoint_spec(path, tmp_path))
    assert list(network.labels) == LABELS
    own = torchvision.models.resnet18(num_classes=CLASSES)
    own.load_state_dict(state)
    pixels = drawn_pixels(2)
    with torch.inference_mode():
        expected = own.eval()(torch.from_numpy(IMAGENET.normalise(pixels))).numpy()
    assert np.abs(only(network.run(pixels)) - expected).max() < 1e-4


def test_a_file_of_torchvisions_own_brings_its_recipe(tmp_path: Path) -> None:
    v1 = make_spec(["resnet50"], weights=str(tmp_path / "resnet50-0676ba61.pth"))[0]
    other = make_spec(["resnet50"], weights=str(tmp_path / "mine.pth"), classes=1000)[0]
    assert describe_source(v1)[0].resize == 256
    assert describe_source(other)[0].resize == 232
    assert len(describe_source(v1)[1]) == 1000


def as_training_scripts_write(state: dict[str, torch.Tensor], form: str) -> dict[str, Any]:
    averaged = {name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    args = argparse.Namespace(lr=0.1, output_dir=Path("runs/1"), resume=PureWindowsPath("C:/x"))
    if form == "torchvision":
        ema = {f"module.{name}": tensor for name, tensor in averaged.items()}
        ema["n_averaged"] = torch.tensor(3)
        return {"model": state, "model_ema": ema, "args": args, "epoch": 3, "optimizer": {"state": {}}}
    if form == "timm":
        entries = {"arch": "resnet18", "metric": np.float64(76.5), "args": args, "history": defaultdict(list, a=[1])}
        return {"state_dict": state, "state_dict_ema": averaged, **entries}
    lightning = {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}
    return {"state_dict": {**lightning, "loss.weight": torch.ones(4)}, "hyper_parameters": {"loss": torch.nn.L1Loss()}}


@pytest.mark.parametrize("form", ["torchvision", "timm", "lightning"])
def test_a_checkpoint_as_training_scripts_write_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    """The averaged weights are taken where there are any, the choice is said, and the last layer tells the classes."""
    state = small_checkpoint()
    path = tmp_path / ("w.ckpt" if form == "lightning" else "w.pth")
    torch.save(as_training_scripts_write(state, form), path)
    network = load_network(checkpoint_spec(path, tmp_path, classes=None))
    assert list(network.labels) == LABELS
    assert network.module is not None
    taken = network.module.state_dict()["fc.weight"]
    if form == "lightning":
        assert torch.equal(taken, state["fc.weight"])
        assert caplog.text == ""
    else:
        own, other = ("model_ema", "model") if form == "torchvision" else ("state_dict_ema", "state_dict")
        assert torch.equal(taken, state["fc.weight"] * 1.01)
        assert (
            f"{own}, the averaged weights, were taken; for {other}, where you trust the file: torch.save("
            in caplog.text
        )


def test_the_head_of_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = small_checkpoint()
    path = tmp_path / "w.pt"

    def save(**layers: torch.Tensor) -> Any:
        rest = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        torch.save({**rest, **{name.replace("_", "."): tensor for name, tensor in layers.items()}}, path)
        return checkpoint_spec(path, tmp_path, classes=None)

    module = load_network(save(fc_1_weight=state["fc.weight"], fc_1_bias=state["fc.bias"])).module
    assert module is not None
    assert torch.equal(module.state_dict()["fc.bias"], state["fc.bias"])
    assert "fc.1 was taken for fc, and no other layer in there but Dropout is served" in caplog.text
    deep = {"fc_0_weight": torch.ones(64, 512), "fc_0_bias": torch.ones(64)}
    spec = save(**deep, fc_3_weight=torch.ones(CLASSES, 64), fc_3_bias=torch.ones(CLASSES))
    with pytest.raises(
        SourceError, match=r"missing: fc\.weight\n.*\n.*unexpected: fc\.0\.weight \[64, 512\]"
    ) as caught:
        load_network(spec.model_copy(update={"labels": "index"}))
    assert "the last layers (fc) are not those of the architecture: export the module itself to ONNX" in str(
        caught.value.hint
    )
    twice = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in state.items()}
    torch.save(twice, path)
    with pytest.raises(SourceError, match=r"several networks of this architecture, under student\. and teacher\."):
        load_network(checkpoint_spec(path, tmp_path, classes=None))


def test_the_number_of_classes_follows_from_the_head_where_labels_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(small_checkpoint(), path)
    spec = checkpoint_spec(path, tmp_path, classes=None, labels="index")
    assert describe_source(spec)[1] == tuple(map(str, range(CLASSES)))
    with pytest.raises(SourceError, match=f"own has {CLASSES} classes and no names for them"):
        load_network(checkpoint_spec(path, tmp_path, classes=None, labels=None))
    torch.save(small_checkpoint(1), path)
    (tmp_path / "one.txt").write_text("cracked\n")
    network = load_network(checkpoint_spec(path, tmp_path, classes=None, labels=str(tmp_path / "one.txt")))
    assert network.labels == ("not cracked", "cracked")
    assert only(network.run(drawn_pixels(1))).shape == (1, 1)
    regnet = torchvision.models.regnet_y_400mf(num_classes=7)
    torch.save(regnet.state_dict(), path)
    spec = checkpoint_spec(path, tmp_path, architecture="regnet_y_400mf", classes=None, labels="index")
    assert len(describe_source(spec)[1]) == 7


@pytest.mark.parametrize("own", [True, False])
def test_googlenet_is_built_as_its_weights_were_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: bool
) -> None:
    """With transform_input, and without the auxiliary heads, which a fine-tuned checkpoint has or has not."""
    torch.manual_seed(2)
    trained = torchvision.models.googlenet(num_classes=1000, transform_input=True, aux_logits=own, init_weights=False)
    path = tmp_path / ("googlenet-1378be20.pth" if own else "mine.pth")
    torch.save(trained.state_dict(), path)
    spec = checkpoint_spec(path, tmp_path, architecture="googlenet", classes=None, labels="index")
    pixels = drawn_pixels(2)
    with torch.inference_mode():
        expected = trained.eval()(torch.from_numpy(IMAGENET.normalise(pixels))).numpy()
    assert np.abs(only(load_network(spec).run(pixels)) - expected).max() < 1e-4
    assert ("trained from scratch would answer wrongly" in caplog.text) == (not own)


@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_checkpoint_is_refused_in_words(tmp_path: Path, old: bool) -> None:
    """Old files stand unprotected: torch raises struct.error, IndexError, AssertionError and more over them."""

    def load() -> None:
        state = align_state_dict(read_state_dict(path), module.state_dict(), path, layer="0")
        load_state_dict(module, state, path, architecture="linear", layer="0")

    path = tmp_path / "w.pt"
    content = {"state_dict": {"a": torch.zeros(3), "b": torch.ones(2)}, "epoch": 3, "more": [1, (2,), {"z": None}]}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    whole, random, module = path.read_bytes(), np.random.default_rng(0), torch.nn.Sequential(torch.nn.Linear(3, 1))
    for trial in range(300):
        damaged = bytearray(whole[: random.integers(len(whole))] if trial % 2 else whole)
        for place in random.integers(len(damaged), size=3) if damaged else ():
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(SourceError) as caught:  # what can still be loaded does not fit the module
            load()
        assert caught.value.hint


class Payload:
    """Pickles to a call, as an attacker's checkpoint would."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("executed"),)


class PlainPayload:
    """A call of a function by its own name, which a class that does nothing can stand for."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return subprocess.run, (["touch", "executed"],)


class SystemPayload:
    """A call of a module that torch never allows."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["weights", "beside", "plain", "system"])
def test_code_in_a_checkpoint_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, old: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state, allowed = small_checkpoint(), torch.serialization.get_safe_globals()
    content = {
        "weights": {"state_dict": Payload()},
        "beside": {"state_dict": state, "args": Payload()},
        "plain": {"state_dict": state, "args": PlainPayload()},
        "system": {"state_dict": state, "args": SystemPayload()},
    }[place]
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    spec = checkpoint_spec(tmp_path / "w.pt", tmp_path)
    if place == "plain" and not old:
        assert list(load_network(spec).labels) == LABELS
    else:
        with pytest.raises(SourceError, match="could run code; it was not loaded"):
            load_network(spec)
    assert not (tmp_path / "executed").exists()
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


def test_a_pickled_module_is_named(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=CLASSES), tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"holds a pickled torchvision\.models\.resnet\.ResNet"):
        load_network(checkpoint_spec(tmp_path / "w.pt", tmp_path))


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"

    def message(content: Any, **options: Any) -> str:
        torch.save(content, path)
        with pytest.raises(SourceError) as caught:
            load_network(checkpoint_spec(path, tmp_path, **options))
        return caught.value.message

    state = small_checkpoint()
    missing = {name: tensor for name, tensor in state.items() if name != "conv1.weight"}
    assert "missing: conv1.weight" in message(missing)
    assert "unexpected: extra.weight" in message({**state, "extra.weight": torch.zeros(1)})
    assert f"fc.weight has shape [{CLASSES}, 512], but [7, 512] is expected" in message(
        state, classes=7, labels="index"
    )
    with pytest.raises(SourceError) as caught:
        load_network(checkpoint_spec(path, tmp_path, classes=7, labels="index"))
    assert f"its last layer has {CLASSES} classes" in str(caught.value.hint)
    assert "holds NaN or infinity in fc.bias" in message({**state, "fc.bias": state["fc.bias"] * float("nan")})
    assert "a state dict (name -> tensor) was expected" in message([1, 2])


@pytest.mark.parametrize("name", ["none.pt", "text.pt", "text.safetensors"])
def test_files_that_are_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(SourceError, match=r"does not exist|is not a|could run code"):
        load_network(checkpoint_spec(tmp_path / name, tmp_path))


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\nc\n", f"has 3 lines, but own has {CLASSES} classes"),
        ("a\n\nc\nd\n", "has no name in line 2"),
        ("\n\n", "has no name in line 1"),
    ],
)
def test_label_files_that_do_not_fit(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "l.txt"
    path.write_text(content)
    onnx_path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    assert message in failing([str(onnx_path)], labels=str(path), recipe="imagenet").message


def test_labels_may_hold_any_text(tmp_path: Path) -> None:
    labels = ["a:b", "Straße \u2028 neu", " leading", "日本"]
    path = tmp_path / "l.txt"
    path.write_text("\n".join(labels) + "\n", encoding="utf-8-sig", newline="")
    onnx_path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    spec = make_spec([str(onnx_path)], labels=str(path), recipe="imagenet")[0]
    assert list(load_network(spec).labels) == labels


def test_empty_lines_at_the_end_are_no_labels_and_a_name_may_stand_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "l.txt"
    path.write_text("a\r\nb\r\nc\r\na\r\n\r\n  \r\n", newline="")
    onnx_path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    spec = make_spec([str(onnx_path)], labels=str(path), recipe="imagenet")[0]
    assert load_network(spec).labels == ("a", "b", "c", "a")
    assert "has 'a' in lines 1 and 4: answers tell these classes apart by their index only" in caplog.text


# --- ONNX files ----------------------------------------------------------------------------------------------------


def test_an_onnx_file_needs_to_be_told_its_recipe(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    error = failing([str(path)], labels="index")
    assert "recipe lacks resize, crop, interpolation, mean, std" in error.message
    assert "labels" not in error.message
    both = failing([str(path)])
    assert "recipe lacks resize, crop, interpolation, mean, std; " in both.message
    assert "labels is missing" in both.message
    assert both.fields == {"recipe": "imagenet", "labels": None}


def test_onnx_files_that_cannot_be_served(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"

    def message(**options: Any) -> str:
        return failing([str(path)], labels="index", recipe="imagenet", **options).message

    assert "cannot be read" in message()
    path.write_bytes(b"\x08\x09garbage that is no protobuf" * 9)
    assert "not an ONNX file" in message()
    write_tiny_onnx(path, size=299)
    assert "image has height 299, but the recipe crops to [224, 224]" in message()
    write_tiny_onnx(path, size=224, opset=99)
    assert "onnxruntime cannot load" in message()
    write_tiny_onnx(path, size=224)
    assert "raw is set, but input image is float32" in message(raw=True)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch", 1]))
    onnx.save(model, path)
    assert "inputs ['image', 'mask']" in message()
    model = onnx.load(write_tiny_onnx(path, size=224))
    model.graph.node[1].op_type, model.graph.node[1].domain = "FooBar", "com.microsoft"
    onnx.save(model, path)
    error = failing([str(path)], labels="index", recipe="imagenet")
    assert "has the operator FooBar of the domain com.microsoft (node relu)" in error.message
    assert "standard operators" in (error.hint or "")
    model = onnx.load(write_tiny_onnx(path, size=224, layout="NHWC"))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, path)
    error = failing([str(path)], labels="index", recipe="imagenet")
    assert "input image is uint8, float32 was expected" in error.message
    assert "set raw: true" in error.hint
    assert error.fields == {"raw": True}
    model = onnx.load(write_tiny_onnx(path, size=224))
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    (tmp_path / "w.data").unlink()
    assert "keeps weights in w.data, which is not beside it" in message()


@pytest.mark.parametrize(("name", "value"), [("conv_bias", np.nan), ("linear_weight", np.inf)])
def test_an_onnx_file_with_weights_that_are_no_numbers(tmp_path: Path, name: str, value: float) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    model = onnx.load(path)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    weights = onnx.numpy_helper.to_array(tensor).copy()
    weights.flat[0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, name))
    onnx.save(model, path)
    error = failing([str(path)], labels="index", recipe="imagenet")
    assert error.message == f"{path} holds NaN or infinity in {name}"


def test_an_infinity_that_is_no_weight_may_be_meant(tmp_path: Path) -> None:
    """As the bound of a Clip, or the mask before a Softmax."""
    path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.inf, np.float32), "bound"))
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Clip", ["conv", "", "bound"], ["relu"], name="relu"))
    onnx.save(model, path)
    spec = make_spec([str(path)], labels="index", recipe="imagenet")[0]
    assert np.isfinite(only(load_network(spec).run(np.zeros((1, 224, 224, 3), np.uint8)))).all()


@pytest.mark.parametrize("name", ["demo", "resnet18"])
def test_one_grey_channel_for_a_network_that_takes_three(name: str) -> None:
    spec = make_spec([name], recipe={"channels": "grey", "mean": 0.5, "std": 0.5}, weights="default")[0]
    with pytest.raises(SourceError, match="the recipe makes one grey channel, the network takes three") as caught:
        load_network(spec)
    assert caught.value.hint == "leave channels out: grey images get three equal channels"


def test_a_raw_graph_gets_rgb(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"base": "imagenet", "crop": 32, "resize": 36}
    spec = make_spec([str(write_tiny_onnx(tmp_path / "own.onnx"))], labels="index", recipe=recipe)[0]
    path = export_graph(spec, load_network(spec), tmp_path / "raw").path
    recipe["channels"] = "BGR"
    with pytest.raises(SourceError, match="with raw nothing is put before the graph, and PIXELS are RGB"):
        load_network(make_spec([str(path)], labels="index", raw=True, recipe=recipe)[0])
