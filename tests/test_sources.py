"""Sources: torchvision, checkpoints and ONNX files, and what each says when it is given something else."""

from __future__ import annotations

import io
from pathlib import Path
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
from generator.recipe import IMAGENET, make_pixels
from generator.sources import describe_source, load_network
from generator.sources.checkpoint import load_state_dict
from generator.spec_file import make_spec
from tests.tiny_onnx import CLASSES, write_tiny_onnx

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


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18", "squeezenet1_1", "vit_b_16"])
def test_random_weights_discriminate_and_follow_from_the_seed(name: str) -> None:
    spec = make_spec([name], weights="random")[0]
    pixels = drawn_pixels()
    scores = load_network(spec).run(pixels)
    assert len(set(scores.argmax(axis=1).tolist())) > 1
    assert scores.std(axis=0).mean() > 0.1
    assert np.array_equal(scores, load_network(spec).run(pixels))
    other = load_network(make_spec([name], weights="random", seed=1)[0]).run(pixels)
    assert np.abs(other - scores).max() > 0.1


def test_random_weights_are_calm_for_images_unlike_those_they_were_set_with() -> None:
    """Squeeze-excitation gates at full strength give one of these images 21 times the usual length."""
    scores = load_network(make_spec(["efficientnet_b0"], weights="random")[0]).run(drawn_pixels(40))
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
    assert error.hint is not None
    assert "resnet18-f37072fd.pth" in error.hint
    assert "--weights random" in error.hint


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
    assert np.abs(network.run(pixels) - expected).max() < 1e-4


def test_a_file_of_torchvisions_own_brings_its_recipe(tmp_path: Path) -> None:
    v1 = make_spec(["resnet50"], weights=str(tmp_path / "resnet50-0676ba61.pth"))[0]
    other = make_spec(["resnet50"], weights=str(tmp_path / "mine.pth"))[0]
    assert describe_source(v1)[0].resize == 256
    assert describe_source(other)[0].resize == 232
    assert len(describe_source(v1)[1]) == 1000


@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_checkpoint_is_refused_in_words(tmp_path: Path, old: bool) -> None:
    """Old files stand unprotected: torch raises struct.error, IndexError, AssertionError and more over them."""
    path = tmp_path / "w.pt"
    content = {"state_dict": {"a": torch.zeros(3), "b": torch.ones(2)}, "epoch": 3, "more": [1, (2,), {"z": None}]}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    whole, random, module = path.read_bytes(), np.random.default_rng(0), torch.nn.Linear(3, 1)
    for trial in range(300):
        damaged = bytearray(whole[: random.integers(len(whole))] if trial % 2 else whole)
        for place in random.integers(len(damaged), size=3) if damaged else ():
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(SourceError) as caught:  # what can still be loaded does not fit the module
            load_state_dict(module, path, architecture="linear", classes=1)
        assert caught.value.hint


class Payload:
    """Pickles to a call, as an attacker's checkpoint would."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("executed"),)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="could run code; it was not loaded"):
        load_network(checkpoint_spec(tmp_path / "w.pt", tmp_path))
    assert not (tmp_path / "executed").exists()


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


# --- ONNX files ----------------------------------------------------------------------------------------------------


def test_an_onnx_file_needs_to_be_told_its_recipe(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "own.onnx", size=224)
    error = failing([str(path)], labels="index")
    assert "recipe lacks resize, crop, interpolation, mean, std" in error.message


def test_onnx_files_that_cannot_be_served(tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"

    def message(**options: Any) -> str:
        return failing([str(path)], labels="index", recipe="imagenet", **options).message

    assert "cannot be read" in message()
    path.write_bytes(b"\x08\x09garbage that is no protobuf" * 9)
    assert "not an ONNX file" in message()
    write_tiny_onnx(path, size=224, batch=1)
    assert "the batch is baked in: input image has shape [1, 3, 224, 224]" in message()
    write_tiny_onnx(path, size=299)
    assert "image has height 299, but the recipe crops to [224, 224]" in message()
    write_tiny_onnx(path, size=224, opset=12)
    assert "has opset 12, at least 13 was expected" in message()
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
    assert "the field raw: true in a spec (--spec FILE" in (error.hint or "")
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
    assert np.isfinite(load_network(spec).run(np.zeros((1, 224, 224, 3), np.uint8))).all()
