"""timm's models: its own recipe, transform and weights, and what is said where there are none."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from generator.cli import main
from generator.demo.draw import draw_set
from generator.errors import MissingDependencyError, SourceError
from generator.graph.export import make_graph
from generator.images.served_pixels import prepare_without_torch
from generator.images.sets import photographs
from generator.images.training_pixels import prepare
from generator.packages import installed_packages
from generator.repository.fingerprint import fingerprint
from generator.sources import describe_source, load_network
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec

timm = pytest.importorskip("timm")
from generator.sources import timm_images as source  # noqa: E402

TINY = "timm/test_resnet.r160_in1k"
COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


def spec_of(name: str, **options: Any) -> ModelSpec:
    return make_spec([name], **options)[0]


def failing(name: str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        load_network(spec_of(name, **options))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def images() -> list[bytes]:
    """Wide, tall and odd ones, of which none keeps its size."""
    sizes = [(311, 173), (97, 450), (500, 333), (61, 60)]
    files = [image.jpeg for image in draw_set(2, seed=5)] + list(photographs().files)
    for index, size in enumerate(sizes):
        buffer = io.BytesIO()
        noise = np.random.default_rng(index).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
        Image.fromarray(noise).resize(size).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


# --- recipe and pixels ---------------------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    "center": {"input_size": (3, 160, 160), "crop_pct": 0.95, "interpolation": "bicubic"},
    "center of odd edges": {"input_size": (3, 97, 97), "crop_pct": 0.875, "interpolation": "bilinear"},
    "all of it": {"input_size": (3, 128, 128), "crop_pct": 1.0, "interpolation": "bicubic"},
    "squash": {"input_size": (3, 131, 131), "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "squash"},
    "squash, not square": {"input_size": (3, 96, 144), "crop_pct": 1.0, "crop_mode": "squash"},
    "border": {"input_size": (3, 160, 160), "crop_pct": 0.875, "crop_mode": "border", "mean": (0.2, 0.5, 0.9)},
    "border, not square": {"input_size": (3, 111, 160), "crop_pct": 1.0, "crop_mode": "border"},
}


@pytest.mark.parametrize("config", RECIPES.values(), ids=list(RECIPES))
def test_the_served_pixels_and_the_graphs_values_are_those_of_timms_transform(config: dict[str, Any]) -> None:
    spec, files = spec_of(TINY), images()
    data = source.resolve_data(spec, timm.models.PretrainedCfg(**config), {})
    recipe = source.make_recipe(spec, data)
    pixels, normalise = source.own_transform(data)
    own = prepare(recipe, files, pixels)
    served = prepare_without_torch(recipe, files)
    assert served.shape == own.shape
    assert np.abs(served.astype(int) - own).max() <= 1
    assert np.allclose(normalise(own), recipe.normalise(own), atol=1e-6)
    factor, shift = recipe.as_scale_and_shift()
    assert np.allclose(normalise(own), (own * factor + shift).transpose(0, 3, 1, 2), atol=1e-5)


def test_a_network_of_timm_is_measured_by_timms_transform_and_normalisation() -> None:
    network = load_network(spec_of(TINY, weights="random", recipe={"exif": "apply"}))
    files = images()
    assert network.pixels is not None
    assert network.module is not None
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network.module), is_training=False)
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    with torch.inference_mode():
        wanted = network.module(torch.stack([transform(image) for image in opened])).numpy()
    answers = network.run(prepare(network.recipe, files, network.pixels))["LOGITS"]
    assert np.abs(answers - wanted).max() < 1e-4
    assert len(set(answers.argmax(axis=1).tolist())) > 1
    changed = load_network(spec_of(TINY, weights="random", recipe={"interpolation": "bicubic"}))
    assert changed.pixels is None
    assert changed.recipe.interpolation == "bicubic"


def test_pretrained_weights_are_evaluated_as_timm_does_and_other_sizes_as_asked() -> None:
    """resnet50.a1_in1k: trained at 224 with crop_pct 0.95, evaluated at 288 with all of the image."""
    name = "timm/resnet50.a1_in1k"
    evaluated, labels = describe_source(spec_of(name))
    assert (evaluated.crop, evaluated.resize, evaluated.interpolation) == ((288, 288), 288, "bicubic")
    assert labels[:1] == ("tench, Tinca tinca",)
    trained, _ = describe_source(spec_of(name, image_size=224))
    assert (trained.crop, trained.resize) == ((224, 224), 235)
    other, _ = describe_source(spec_of(name, image_size=320))
    assert (other.crop, other.resize) == ((320, 320), 320)
    squashed, _ = describe_source(spec_of("timm/tf_efficientnetv2_b3.in21k_ft_in1k"))
    assert (squashed.fit, squashed.crop, squashed.resize) == ("stretch", (300, 300), (333, 333))
    assert len(describe_source(spec_of("timm/convnext_nano.in12k"))[1]) == 11821


@pytest.mark.parametrize("name", ["timm/test_vit.r160_in1k", "timm/deit_tiny_distilled_patch16_224"])
def test_another_image_size_where_the_model_is_built_for_one(name: str) -> None:
    network = load_network(spec_of(name, weights="random", image_size=64, classes=7, labels="index"))
    scores = network.run(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))["LOGITS"]
    assert scores.shape == (3, 7)
    assert scores.std(axis=0).min() > 0


@pytest.mark.parametrize("name", ["timm/test_nfnet.r160_in1k", "timm/mobilenetv4_conv_small_050.e3000_r224_in1k"])
def test_random_weights_discriminate_and_are_calm(name: str) -> None:
    network = load_network(spec_of(name, weights="random", image_size=96))
    pixels = prepare(network.recipe, images(), network.pixels)
    scores = network.run(pixels)["LOGITS"]
    assert len(set(scores.argmax(axis=1).tolist())) > 2
    lighter = pixels + (np.random.default_rng(0).random(pixels.shape) < 0.005).astype(np.uint8) * (pixels < 255)
    moved = network.run(lighter)["LOGITS"]
    centred, other = (values - values.mean(axis=1, keepdims=True) for values in (scores, moved))
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(other, axis=1)
    assert ((centred * other).sum(axis=1) / lengths).min() > 0.999


def test_attention_that_the_exporter_does_not_take_when_it_is_fused() -> None:
    spec = spec_of("timm/test_maxvit.untrained", weights="random", classes=7, labels="index", batch={"max": 2})
    network = load_network(spec)
    session = onnxruntime.InferenceSession(make_graph(spec, network)[0].SerializeToString())
    pixels = prepare(network.recipe, images()[:3], network.pixels)
    (scores,) = session.run(None, {"PIXELS": pixels})
    assert np.abs(scores - network.run(pixels)["LOGITS"]).max() < 1e-3


# --- weights -------------------------------------------------------------------------------------------------------


def save_as_train_py(module: torch.nn.Module, path: Path, **arguments: Any) -> Path:
    given = Namespace(model="test_resnet", num_classes=5, img_size=96, crop_pct=0.9, interpolation="", **arguments)
    prefixed = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"epoch": 3, "arch": "test_resnet", "state_dict": prefixed, "args": given}, path)
    return path


@pytest.mark.server
def test_a_checkpoint_of_train_py_becomes_a_proved_repository(tmp_path: Path) -> None:
    module = load_network(spec_of(TINY, weights="random", classes=5, labels="index", image_size=96)).module
    assert module is not None
    path = save_as_train_py(module, tmp_path / "model_best.pth.tar", mean=[0.4, 0.5, 0.6])
    (tmp_path / "classes.txt").write_text("ant\nbee\nfly\nmoth\nwasp\n")
    root = tmp_path / "model_repository"
    command = ["build-repo", "timm/test_resnet", "--weights", str(path), "--labels", str(tmp_path / "classes.txt")]
    assert main([*command, "--name", "insects", "--max-batch", "4", "--require", "all", "-r", str(root)]) == 0
    record = json.loads((root / "insects/trtgen.json").read_text())
    proved = {entry["stage"]: entry["status"] for entry in record["proof"]}
    assert proved.pop("recipe") == proved.pop("activation") == "assumed"
    assert len(proved) == 5
    assert set(proved.values()) == {"proved"}
    assert record["description"] == "timm test_resnet, checkpoint model_best.pth.tar"
    assert (record["recipe"]["crop"], record["recipe"]["resize"]) == ([96, 96], 106)
    assert record["recipe"]["mean"] == [0.4, 0.5, 0.6]
    assert record["packages"]["timm"] == timm.__version__
    assert (root / "insects/labels.txt").read_text().split() == ["ant", "bee", "fly", "moth", "wasp"]


def test_a_checkpoint_of_grey_images(tmp_path: Path) -> None:
    module = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    path = save_as_train_py(module, tmp_path / "last.pth.tar", in_chans=1)
    network = load_network(spec_of(TINY, weights=str(path), labels="index"))
    assert (network.recipe.channels, network.recipe.mean) == ("grey", (0.5,))
    files = images()
    assert network.pixels is not None
    own, served = prepare(network.recipe, files, network.pixels), prepare_without_torch(network.recipe, files)
    assert own.shape[1:] == (96, 96, 1)
    assert np.abs(served.astype(int) - own).max() <= 1
    assert network.run(own)["LOGITS"].shape == (len(files), 5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub's client with two commits of one model, without a network; `main` is the first."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--timm--test_resnet.r160_in1k"
    for seed, commit in enumerate((COMMIT, OTHER_COMMIT)):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet").state_dict(), snapshot / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository


def test_pretrained_weights_come_from_the_hub_at_a_commit_that_is_said(hub: Path) -> None:
    pixels = np.full((1, 160, 160, 3), 99, np.uint8)
    pixels[:, 40:] = 7
    answers = {}
    for name, commit in ((TINY, COMMIT), (f"{TINY}@{OTHER_COMMIT}", OTHER_COMMIT)):
        spec = spec_of(name)
        assert spec.name == "test_resnet.r160_in1k"
        network = load_network(spec)
        assert network.description == f"timm test_resnet.r160_in1k, {TINY}@{commit}"
        assert network.activation == "softmax"
        module = timm.create_model("test_resnet")
        file = hub / "snapshots" / commit / "model.safetensors"
        module.load_state_dict(timm.models.load_state_dict(str(file)))
        normal = torch.from_numpy(network.recipe.normalise(pixels))
        with torch.inference_mode():
            wanted = module.eval()(normal).numpy()
        answers[commit] = network.run(pixels)["LOGITS"]
        assert np.allclose(answers[commit], wanted, atol=1e-5)
    assert np.abs(answers[COMMIT] - answers[OTHER_COMMIT]).max() > 1e-3


def test_weights_that_are_not_in_the_cache(hub: Path) -> None:
    error = failing("timm/test_vit.r160_in1k")
    assert "timm/test_vit.r160_in1k cannot be downloaded" in error.message
    assert error.hint == (
        "copy model.safetensors of timm/test_vit.r160_in1k here and set weights: model.safetensors, "
        "or try weights: random"
    )
    assert "cannot be downloaded" in failing(f"{TINY}@{'c' * 40}").message
    (hub / "snapshots" / COMMIT / "model.safetensors").write_bytes(b"garbage")
    assert f"{TINY} are damaged" in failing(TINY).message


class _Gate(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for a gated model."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gate)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("gate")
def test_gated_weights() -> None:
    error = failing(TINY)
    assert error.message == f"the weights {TINY} are gated: the hub gives them to those who accepted their terms"


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/resnt50", {}, "timm has no model 'resnt50'; did you mean timm/resnet50"),
        ("timm/resnet18.a9_in1k", {}, "resnet18 has no weights 'a9_in1k'; there are timm/resnet18.a1_in1k, timm/"),
        ("timm/tf_efficientnet_b0_ap", {}, "timm calls tf_efficientnet_b0_ap tf_efficientnet_b0.ap_in1k now"),
        ("timm/resnet18", {"weights": "a1_in1k"}, "those of timm are part of the name; there are timm/resnet18."),
        ("timm/vit_small_patch14_dinov2.lvd142m", {}, "dinov2.lvd142m has no classifier: it answers features"),
        ("timm/vit_small_patch14_dinov2.lvd142m", {"weights": "random"}, "has no classifier"),
        ("timm/vit_base_patch16_clip_224.openai", {}, "timm has no names for the 512 outputs"),
        ("timm/test_vit4", {}, "timm has no weights for test_vit4; it has none"),
        (TINY, {"classes": 5}, "test_resnet.r160_in1k has 1000"),
        ("timm/test_vit.r160_in1k", {"weights": "random", "image_size": 161}, "does not take images of 161 x 161 pix"),
        (TINY, {"weights": "random", "image_size": [96, 128]}, "timm fills 96 x 128 pixels from either edge"),
    ],
)
def test_what_timm_does_not_have(name: str, options: dict[str, Any], message: str) -> None:
    assert message in failing(name, **options).message


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_convnext", num_classes=5).state_dict(), path)
    with pytest.raises(SourceError, match=r"weights\.pth does not fit timm/test_resnet with 5 classes"):
        load_network(spec_of("timm/test_resnet", weights=str(path), labels="index"))
    save_as_train_py(timm.create_model("test_resnet", num_classes=5), path)
    error = failing("timm/test_vit", weights=str(path), labels="index")
    assert f"{path} was trained as test_resnet, but timm/test_vit is asked for" in error.message
    save_as_train_py(timm.create_model("test_resnet", num_classes=5), path, mean="0.5")
    assert "do not say how images are prepared" in failing("timm/test_resnet", weights=str(path)).message
    assert "does not exist" in failing(TINY, weights="nothing.pth.tar").message


def test_a_checkpoint_gives_a_model_without_a_classifier_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    name = "vit_small_patch14_dinov2"
    torch.save(timm.create_model(name, num_classes=3, img_size=56).state_dict(), path)
    network = load_network(spec_of(f"timm/{name}.lvd142m", weights=str(path), labels="index", image_size=56))
    assert network.labels == ("0", "1", "2")


def test_a_model_that_answers_more_than_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.module(images), images

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *names, **options: Two(real(*names, **options)))
    assert "answers tuple for one image, and [1, 1000] was expected" in failing(TINY, weights="random").message


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(MissingDependencyError, match="the package timm is not installed") as caught:
        describe_source(spec_of(TINY))
    assert "[timm]" in caught.value.hint


def test_a_build_follows_from_timms_version_and_a_file_only_where_timm_is_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"one")
    specs = [spec_of(TINY), spec_of("resnet18"), spec_of(TINY, weights=str(path))]
    before = [fingerprint(spec)["artifact"] for spec in specs]
    path.write_bytes(b"two")
    assert [fingerprint(spec)["artifact"] == old for spec, old in zip(specs, before, strict=True)] == [
        True,
        True,
        False,
    ]
    packages = {**installed_packages(), "timm": "9.9"}
    monkeypatch.setattr("generator.repository.fingerprint.installed_packages", lambda: packages)
    assert [fingerprint(spec)["artifact"] == old for spec, old in zip(specs, before, strict=True)] == [
        False,
        True,
        False,
    ]


def test_every_name_of_timm_is_a_name_of_a_model() -> None:
    names = timm.list_models(include_tags=True)
    assert len(names) > 1000
    assert [spec.name for spec in make_spec([f"timm/{name}" for name in names])] == names
