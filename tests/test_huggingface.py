"""Folders that transformers saved, and models in the hub's cache: made here with random weights, without downloads."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from generator.cli import main
from generator.errors import MissingDependencyError, SourceError, SpecError
from generator.images.served_pixels import prepare_without_torch
from generator.images.sets import default_images
from generator.images.training_pixels import to_rgb
from generator.repository.fingerprint import fingerprint
from generator.sources import describe_source, load_network
from generator.sources.huggingface import _check_recipe, _make_pixels, _read_recipe, read_license
from generator.sources.network import describe_license
from generator.spec.file import load_spec, make_spec
from tests.tiny_onnx import only

transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
LABELS = ["ant", "bee", "cat", "dog", "elk"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_vit(folder: Path, *, size: Any = 64, **options: Any) -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        **options,
    )
    torch.manual_seed(1)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)


def save_convnext(folder: Path) -> None:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], num_labels=len(LABELS))
    torch.manual_seed(1)
    transformers.ConvNextForImageClassification(config).save_pretrained(folder)
    # 72 and 63: the crop's corner falls on half a pixel
    transformers.ConvNextImageProcessor(size={"shortest_edge": 63}, crop_pct=0.875).save_pretrained(folder)


def save_resnet(folder: Path) -> None:
    kind = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(num_labels=len(LABELS), **kind)
    torch.manual_seed(1)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)


_SAVE: dict[str, Callable[[Path], None]] = {"vit": save_vit, "convnext": save_convnext, "resnet": save_resnet}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders vit, convnext and resnet, saved by the library itself; not to be changed."""
    place = tmp_path_factory.mktemp("saved")
    for name, save in _SAVE.items():
        save(place / name)
    return place


@pytest.fixture
def vit(folders: Path, tmp_path: Path) -> Path:
    """A copy of the folder vit, to be changed at will."""
    return Path(shutil.copytree(folders / "vit", tmp_path / "my-vit"))


@pytest.fixture(scope="module")
def images() -> tuple[list[bytes], list[PIL.Image.Image]]:
    files = [*default_images().files]
    return files, [to_rgb(PIL.Image.open(io.BytesIO(data))) for data in files]


def edit(folder: Path, name: str = "preprocessor_config.json", **changes: Any) -> None:
    path = folder / name
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def load(folder: Path | str, **options: Any) -> Any:
    return load_network(make_spec([f"{folder}/" if isinstance(folder, Path) else folder], **options)[0])


def failing(folder: Path | str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        load(folder, **options)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# --- what is taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(_SAVE))
def test_a_folder_answers_like_the_library(folders: Path, images: Any, name: str) -> None:
    """The served step's pixels are the processor's to the bit with Pillow, to one level with its default backend."""
    files, opened = images
    network = load(folders / name)
    served = prepare_without_torch(network.recipe, files)
    assert network.pixels is not None
    assert np.array_equal(served, np.stack([network.pixels(image) for image in opened]))
    processor = transformers.AutoImageProcessor.from_pretrained(folders / name)
    assert processor.backend == "torchvision"
    whole = np.stack([processor(images=image, return_tensors="np")["pixel_values"][0] for image in opened])
    level = network.recipe.scale / min(network.recipe.std)
    assert np.abs(network.recipe.normalise(served) - whole).max() < 1.001 * level
    model = transformers.AutoModelForImageClassification.from_pretrained(folders / name)
    pil = transformers.AutoImageProcessor.from_pretrained(folders / name, backend="pil")
    with torch.inference_mode():
        expected = model(**pil(images=opened, return_tensors="pt")).logits.numpy()
    assert np.abs(only(network.run(served)) - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    assert network.labels == (tuple(LABELS) if name == "vit" else tuple(f"LABEL_{index}" for index in range(5)))
    assert network.description == f"Hugging Face folder {name}, {model.config.architectures[0]}"


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({"size": 64}, {"fit": "stretch", "resize": (64, 64), "crop": (64, 64), "interpolation": "bilinear"}),
        ({"size": {"height": 80, "width": 72}, "do_center_crop": True, "crop_size": 64, "resample": 3},
         {"fit": "stretch", "resize": (80, 72), "crop": (64, 64), "interpolation": "bicubic", "rounding": "floor"}),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 73}, "do_center_crop": True,
          "crop_size": {"height": 64, "width": 60}, "resample": 1},
         {"fit": "crop", "resize": 73, "crop": (64, 60), "interpolation": "lanczos"}),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.5},
         {"fit": "stretch", "resize": (384, 384), "crop": (384, 384)}),
        ({"do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1), "scale": 1 / 255}),
        ({"do_rescale": False, "image_mean": [120, 110, 100]}, {"mean": (120, 110, 100), "scale": 1}),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, {"mean": (1, 1, 1), "scale": 1 / 127.5}),
        ({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 72}, "do_center_crop": True,
          "crop_size": {"height": 64, "width": 64}, "do_flip_channel_order": True, "do_normalize": False},
         {"channels": "BGR", "resize": 72}),
    ],
)  # fmt: skip
def test_forms_of_the_processor(vit: Path, images: Any, changes: dict[str, Any], recipe: dict[str, Any]) -> None:
    edit(vit, **changes)
    found, labels = describe_source(make_spec([f"{vit}/"])[0])
    assert {name: getattr(found, name) for name in recipe} == recipe
    assert labels == tuple(LABELS)
    if found.crop == (64, 64):
        network = load(vit)
        pixels = np.stack([network.pixels(image) for image in images[1][-4:]])
        assert np.abs(prepare_without_torch(found, images[0][-4:]).astype(int) - pixels).max() <= 1


def test_what_the_spec_changes_is_not_measured_by_the_processor(vit: Path) -> None:
    assert load(vit, recipe={"mean": 0.4}).pixels is not None
    network = load(vit, recipe={"interpolation": "bicubic"})
    assert (network.pixels, network.recipe.interpolation) == (None, "bicubic")
    assert "does not take images [2, 3, 96, 96]: ValueError: Input image size" in failing(vit, image_size=96).message


@pytest.mark.parametrize(
    ("problem", "activation"),
    [("multi_label_classification", "sigmoid"), ("single_label_classification", "softmax"), (None, None)],
)
def test_the_activation_is_that_of_the_training(vit: Path, problem: str | None, activation: str | None) -> None:
    edit(vit, "config.json", problem_type=problem)
    assert load(vit).activation == activation


def test_how_a_folder_is_named_and_what_it_follows_from(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vit.parent)
    (spec,) = make_spec(["my-vit/"], target="onnxruntime")
    assert (spec.name, spec.source, spec.huggingface) == ("my-vit", "huggingface", str(vit))
    monkeypatch.chdir(vit)
    assert make_spec(["./"])[0].name == "my-vit"
    Path("models.yaml").write_text("models: [{name: mine, huggingface: .}]")
    assert load_spec(Path("models.yaml"))[0].huggingface == str(vit)
    with pytest.raises(SpecError, match="weights does not go with source: huggingface"):
        make_spec(["./"], weights="random")
    hub = make_spec(["hf:some-org/some.model-1.5@v2"])[0]
    assert (hub.name, hub.huggingface) == ("some.model-1.5", "hf:some-org/some.model-1.5@v2")
    first = fingerprint(spec)
    (vit / "training_args.bin").write_bytes(b"1")
    assert fingerprint(spec) == first
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (vit / name).write_bytes((vit / name).read_bytes() + b" ")
        assert fingerprint(spec)["artifact"] != first["artifact"]
        first = fingerprint(spec)


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_such_folder(vit: Path, tmp_path: Path) -> None:
    error = failing("google/vit")
    assert error.message.endswith("/google/vit does not exist")
    assert "hf:organisation/name" in error.hint
    for number in range(7):
        (tmp_path / "run" / f"log{number}").mkdir(parents=True)
    shutil.copytree(vit, tmp_path / "run" / "checkpoint-500")
    error = failing(tmp_path / "run")
    assert "has no config.json; it holds checkpoint-500/, log0/, log1/, log2/, log3/, log4/ and 2 more" in error.message
    assert error.hint == "give a folder in it: checkpoint-500"
    (vit / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json; it holds config.json, model.safetensors" in failing(vit).message
    (vit / "preprocessor_config.json").write_text("[]")
    assert "holds a list of 0; an object was expected" in failing(vit).message
    (vit / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json cannot be read: Expecting property name" in failing(vit).message


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_with_a_model_is_not_executed(vit: Path, name: str) -> None:
    (vit / "modeling.py").write_text("raise SystemExit('executed')\n")
    kind = "AutoModelForImageClassification" if name == "config.json" else "AutoImageProcessor"
    edit(vit, name, auto_map={kind: "modeling.Model"}, model_type="own" if name == "config.json" else ...)
    error = failing(vit)
    assert f"{name} asks for Python code that came with the model (auto_map); it was not executed" in error.message
    assert error.fields == {"factory": None}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"architectures": ["ViTModel"]}, "is a ViTModel; one of image classification"),
        ("config.json", {"architectures": ["DetrForObjectDetection"]}, "is a DetrForObjectDetection; one of image"),
        ("config.json", {"architectures": ["BertForSequenceClassification"]}, "is a BertForSequenceClassification;"),
        ("config.json", {"architectures": None}, "is of no stated architecture; one of image"),
        ("config.json", {"model_type": "vit9"}, "is not a model that this transformers reads: ValueError: The checkp"),
        ("preprocessor_config.json", {"image_processor_type": "NoneSuchProcessor"}, "this transformers reads: Value"),
        ("preprocessor_config.json", {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 800,
         "longest_edge": 1333}}, 'its DetrImageProcessor makes no images of one size: {"do_resize": true, "size": {'),
        ("preprocessor_config.json", {"do_resize": False}, 'makes no images of one size: {"do_resize": false'),
        ("preprocessor_config.json", {"size": {"shortest_edge": 64}}, "makes no images of one size"),
        ("preprocessor_config.json", {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True},
         "its EfficientNetImageProcessor does more than resize, crop, rescale and normalise: its pixels are up to 12"),
        ("preprocessor_config.json", {"do_center_crop": True, "crop_size": 80}, "crop [80, 80] is larger than resize"),
    ],
)  # fmt: skip
def test_a_model_or_a_processor_of_another_kind(vit: Path, name: str, changes: dict[str, Any], message: str) -> None:
    edit(vit, name, **changes)
    assert message in failing(vit).message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mean": (0.5, 0.5, 0.49)},
            "its values are up to 0.02 from what rescale_factor, image_mean and image_std say",
        ),
        ({"scale": 1 / 256}, "its values are up to"),
        ({"resize": (65, 65)}, "its pixels are up to"),
        ({"crop": (60, 60)}, "its pixels are [64, 64, 3], by its fields [60, 60, 3]"),
    ],
)
def test_a_recipe_that_is_not_what_the_processor_does(vit: Path, changes: dict[str, Any], message: str) -> None:
    """As the fields of a class that does something of its own would be read: the gate sees the pixels only."""
    processor = transformers.AutoImageProcessor.from_pretrained(vit, backend="pil")
    recipe = _read_recipe(processor)
    _check_recipe(processor, recipe, _make_pixels(processor))
    with pytest.raises(SourceError) as caught:
        _check_recipe(processor, recipe.model_copy(update=changes), _make_pixels(processor))
    assert message in caught.value.message


def test_weights_that_are_not_whole(vit: Path, folders: Path) -> None:
    weights = vit / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:2000], b"\xff" * 4000, b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        assert f"the weights in {vit} cannot be loaded: " in failing(vit).message
        assert describe_source(make_spec([f"{vit}/"])[0])[1] == tuple(LABELS)  # which does not read them
    shutil.copy(folders / "resnet" / "model.safetensors", weights)
    assert " lack classifier.bias, classifier.weight" in failing(vit).message
    weights.write_bytes(whole)
    edit(vit, "config.json", hidden_size=16)
    assert f"the weights in {vit} " in failing(vit).message
    weights.rename(vit / "pytorch_model.bin")
    error = failing(vit)
    assert "holds pickled weights only (pytorch_model.bin), whose loading could run code; model.safe" in error.message
    assert "ViTForImageClassification as M; M.from_pretrained(" in error.hint
    (vit / "pytorch_model.bin").unlink()
    assert "holds no weights; model.safetensors was expected" in failing(vit).message


def test_a_network_without_its_last_layer_is_refused(vit: Path) -> None:
    """The library fills it with random weights, and only warns."""
    base = transformers.ViTForImageClassification.from_pretrained(vit).vit
    base.save_pretrained(vit)
    edit(vit, "config.json", architectures=["ViTForImageClassification"])
    assert failing(vit).message.endswith("lack classifier.bias, classifier.weight, which would be random")


def test_weights_with_nan_are_refused(vit: Path) -> None:
    module = transformers.ViTForImageClassification.from_pretrained(vit)
    module.classifier.bias.data[2] = float("nan")
    module.save_pretrained(vit)
    assert failing(vit).message.endswith("hold NaN or infinity in classifier.bias")


def test_without_the_library_the_extra_is_named(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="transformers is not installed") as caught:
        load(vit)
    assert "pip install -e '.[huggingface]'" in caught.value.hint


# --- the hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub on this machine that answers 401 for what is gated and 404 for everything else."""
    from huggingface_hub import constants

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = "GatedRepo" if "gated" in self.path else "RevisionNotFound" if "v9" in self.path else "RepoNotFound"
            self.send_response(401 if code == "GatedRepo" else 404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_in_the_hubs_cache(folders: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the library's own cache: refs name a commit, its snapshot links to blobs without endings."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = hub / "models--org--tiny-vit"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for path in (folders / "vit").iterdir():
        shutil.copy(path, place / "blobs" / path.stem)
        (place / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{path.stem}")
    for asked in ("hf:org/tiny-vit", f"hf:org/tiny-vit@{COMMIT}"):
        network = load(asked)
        assert network.description == f"org/tiny-vit of the Hugging Face hub at {COMMIT}, ViTForImageClassification"
        assert network.labels == tuple(LABELS)
    artifacts = [fingerprint(make_spec([name])[0])["artifact"] for name in ("hf:org/tiny-vit", "hf:org/tiny-vit@v2")]
    assert artifacts[0] != artifacts[1]
    error = failing("hf:org/tiny-vit@v2")
    assert error.message == "org/tiny-vit@v2 is not, or not whole, in the local cache, and the hub cannot be reached"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("hf:org/gated", "org/gated of the hub is gated"),
        ("hf:org/none", "the hub has no model org/none, or it is private"),
        ("hf:org/some@v9", "org/some of the hub has no revision v9"),
        ("hf:org/some/deeper", "org/some/deeper cannot be fetched from the hub: Repo id must"),
    ],
)
def test_a_model_that_the_hub_does_not_give(hub: Path, asked: str, message: str) -> None:
    assert message in failing(asked).message


def test_a_folder_that_timm_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    from timm.models import save_for_hf

    folder = tmp_path / "birds"
    save_for_hf(timm.create_model("test_resnet.r160_in1k", num_classes=5), folder, safe_serialization="both")
    for file in ("model.safetensors", "pytorch_model.bin"):
        assert main(["build-repo", f"{folder}/"]) == 1
        said = capsys.readouterr().err
        assert f"the model in {folder} was saved by timm, not by transformers" in said
        name, weights = said.split("trtgen build-repo ")[1].split(" --weights ")
        assert (name, weights.split()[0]) == ("timm/test_resnet.r160_in1k", str(folder / file))
        assert len(load(name, weights=weights.split()[0], labels="index").labels) == 5
        (folder / file).unlink()


# --- the whole chain -----------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_folder_becomes_a_proved_repository(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["build-repo", f"{folders}/convnext", "--require", "all", "--max-batch", "4", "--target", "onnxruntime"]
    assert main(arguments) == 0, capsys.readouterr().err
    record = json.loads(Path("model_repository/convnext/trtgen.json").read_text())
    assert {entry["stage"]: entry["status"] for entry in record["proof"]}["served pixels"] == "proved"
    assert "recipe" not in record["assumed"]
    recipe = record["recipe"]
    assert (recipe["rounding"], recipe["resize"], recipe["crop"]) == ("floor", 72, [63, 63])
    assert record["packages"]["transformers"] == transformers.__version__
    capsys.readouterr()
    assert main(arguments) == 0
    assert "is up to date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# A model\n", " (apache-2.0)"),
        ("---\nlicense: other\nlicense_name: faipl-1.0\n---\n", " (faipl-1.0)"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", " (mit, apache-2.0)"),
        ("# A model\n", ""),
        ("---\nlicense: [mit\n---\n", ""),
        ("---", ""),
        ("---\n- mit\n---\n", ""),
    ],
)
def test_the_license_of_the_card_is_said(tmp_path: Path, card: str, stated: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert describe_license(read_license(tmp_path)) == stated


def test_a_model_with_a_card_says_its_license(vit: Path) -> None:
    (vit / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert load(vit).description == "Hugging Face folder my-vit, ViTForImageClassification (apache-2.0)"
