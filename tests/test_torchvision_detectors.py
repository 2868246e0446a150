"""torchvision's detectors: served, they answer what torchvision's own code answers for the same pixels."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torchvision.models.detection.image_list import ImageList

from generator.cli import main
from generator.demo.draw import draw_set
from generator.errors import SourceError
from generator.graph.export import export_onnx, make_graph
from generator.graph.model import load_proto, open_onnx
from generator.images.served_pixels import load_step
from generator.images.training_pixels import prepare
from generator.plan.preflight import check_graph
from generator.plan.profiles import make_profiles
from generator.sources import Network, describe_source, load_network, torchvision_detectors
from generator.spec.file import make_spec
from generator.spec.plan import BatchProfile
from generator.tasks.detection.compare import LIMITS, compare
from generator.tasks.detection.decode import decode, select_rows
from generator.tasks.detection.naive import Settings, detect_all, network_geometry
from generator.tasks.detection.reading import find_reading

# At these sizes a test takes seconds; SSD has one size only.
SIZES = {
    "ssd300_vgg16": None,
    "ssdlite320_mobilenet_v3_large": None,
    "retinanet_resnet50_fpn_v2": 128,
    "fcos_resnet50_fpn": 128,
}
IMAGES = 2
MOST_ROWS = 3840  # of TensorRT's TopK


@functools.cache
def load(name: str) -> Network:
    return load_network(make_spec([name], weights="random", image_size=SIZES[name])[0])


def drawn_pixels(network: Network, count: int = IMAGES) -> NDArray[np.uint8]:
    return prepare(network.recipe, [image.jpeg for image in draw_set(count, seed=3)])


def run(network: Network, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return boxes and scores; SSD answers logits, the first of them for background."""
    answers = network.run(pixels)
    if "logits" in answers:
        answers["scores"] = torch.from_numpy(answers.pop("logits")).softmax(dim=2)[..., 1:].numpy()
    return answers


class Bypassed(torch.nn.Module):
    """Takes the place of torchvision's transform: images come as the network's input, boxes stay in its pixels."""

    def forward(self, images: list[torch.Tensor], targets: None) -> tuple[ImageList, None]:
        return ImageList(torch.stack(images), [(one.shape[1], one.shape[2]) for one in images]), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        return result


def ask_torchvision(network: Network, pixels: NDArray[np.uint8]) -> list[dict[str, NDArray[Any]]]:
    """Return torchvision's own detections: all of its `forward` but the transform."""
    model: Any = network.module.answer.model  # type: ignore[union-attr]
    model.transform = Bypassed()
    with torch.inference_mode():
        found = model(list(torch.from_numpy(network.recipe.normalise(pixels))))
    return [{key: value.numpy() for key, value in one.items()} for one in found]


def detect(network: Network, pixels: NDArray[np.uint8]) -> list[tuple[NDArray[Any], ...]]:
    """Return what is served with the model's own limits: boxes, scores and classes of each image."""
    model: Any = network.module.answer.model  # type: ignore[union-attr]
    step = load_step("postprocess")
    given = {"score": str(model.score_thresh), "iou": str(model.nms_thresh), "nms": "per-class"}
    parameters = {name: {"string_value": value} for name, value in given.items()}
    options = step.Options(parameters, list(network.labels), model.detections_per_img)
    height, width = network.recipe.crop
    geometry = np.array([1, 1, 0, 0, width, height], np.float32)
    return [step.detect(*rows, geometry, options) for rows in best_rows(network, pixels, MOST_ROWS)]


def best_rows(network: Network, pixels: NDArray[np.uint8], most: int) -> list[tuple[NDArray[Any], ...]]:
    """Return boxes, scores and classes of the best scores of each image, in numpy."""
    answers = run(network, pixels)
    found: list[tuple[NDArray[Any], ...]] = []
    for boxes, scores in zip(answers["boxes"], answers["scores"], strict=True):
        order = np.argsort(-scores, axis=None, kind="stable")[:most]
        anchors, classes = np.divmod(order, scores.shape[1])
        found.append((boxes[anchors], scores.ravel()[order], classes))
    return found


def overlap(box: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the IoU with each other box; 1 for one that is the same within a hundredth of a pixel."""
    shared = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    same = np.abs(others - box).max(axis=1) < 0.01  # without an area, too
    return np.where(same, 1, shared / np.maximum(areas - shared, 1e-9))


@pytest.mark.parametrize("name", SIZES)
def test_served_detections_are_torchvisions_own(name: str) -> None:
    network = load(name)
    pixels = drawn_pixels(network)
    first_class = 1 if name.startswith("ssd") else 0
    compared = 0
    for own, (boxes, scores, classes) in zip(ask_torchvision(network, pixels), detect(network, pixels), strict=True):
        assert len(own["boxes"]) == len(boxes)
        left = np.ones(len(boxes), bool)
        for box, score, label in zip(own["boxes"], own["scores"], own["labels"], strict=True):
            alike = (np.abs(scores - score) <= 1e-4) & (classes + first_class == label) & left
            alike &= overlap(box, boxes) >= 0.99
            assert alike.any(), f"{label} at {box}, {score}"
            left[np.flatnonzero(alike)[0]] = False
            compared += 1
    assert compared >= 100


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_random_weights_tell_images_apart_and_stay_calm(name: str) -> None:
    network = load(name)
    pixels = drawn_pixels(network, 6)
    scores = run(network, pixels)["scores"]
    noise = np.random.default_rng(0).integers(-1, 2, pixels.shape)
    noisy = run(network, (pixels + noise).clip(0, 255).astype(np.uint8))["scores"]
    confident = scores.max(axis=2) >= 0.35
    assert 5 <= np.median(confident.sum(axis=1)) <= 200
    assert len({*scores.argmax(axis=2)[confident].tolist()}) > 5
    by_noise, by_image = np.abs(noisy - scores)[confident].max(axis=1), np.abs(scores[::-1] - scores)[confident]
    assert np.median(by_noise) < 0.05
    assert np.median(by_image.max(axis=1)) > 0.2


def round_to_half(network: Network) -> Any:
    """Return a copy that keeps weights and values in FP16; as in a plan, boxes are decoded in FP32."""
    detector: Any = copy.deepcopy(network.module)

    def round_values(_: Any, values: Any) -> Any:
        return tuple(one.half().float() if isinstance(one, torch.Tensor) else one for one in values)

    for layer in detector.modules():
        for weights in layer.parameters(recurse=False):
            weights.data = weights.data.half().float()
        if not any(layer.children()):
            layer.register_forward_pre_hook(round_values)
    return detector


@pytest.mark.parametrize("name", ["ssd300_vgg16", "ssdlite320_mobilenet_v3_large"])
def test_a_copy_runs_its_own_backbone(name: str) -> None:
    network = load(name)
    images = torch.from_numpy(network.recipe.normalise(drawn_pixels(network, 1)))
    other: Any = copy.deepcopy(network.module)
    with torch.inference_mode():
        before = other(images)[1]
        for weights in other.answer.model.backbone.parameters():
            weights.data = weights.data / 2
        assert not torch.equal(other(images)[1], before)


def test_random_weights_agree_in_half_precision() -> None:
    """As built, VGG has neighbours with nearly equal scores, of which rounding chooses, and boxes beyond the edges."""
    network = load("ssd300_vgg16")
    recipe = network.recipe
    pixels = drawn_pixels(network, 6)
    with torch.inference_mode():
        boxes, logits = round_to_half(network)(torch.from_numpy(recipe.normalise(pixels)))
    spec = make_spec(["ssd300_vgg16"], weights="random")[0]
    reading = find_reading(spec, network)
    answers = [network.run(pixels), {"boxes": boxes.numpy(), "logits": logits.numpy()}]
    rows = [select_rows(decode(reading, one, recipe.crop), reading) for one in answers]
    settings = Settings(thresholds=(0.25,) * len(network.labels), iou=0.45, nms="per-class", most=100)
    found = [detect_all(one, network_geometry(len(pixels), recipe.crop), settings) for one in rows]
    comparison = compare(found[0], found[1], settings, LIMITS["fp16"])
    assert comparison.confident >= 100
    assert comparison.agreement >= 0.995
    assert comparison.score > 1e-4  # it was rounded


def test_a_pixel_without_features_is_0_in_half_precision_not_nan() -> None:
    """Where F.normalize divides 0 by 0."""
    features = torch.zeros(1, 512, 2, 2, dtype=torch.float16)
    features[..., 0, 0] = 3
    backbone = SimpleNamespace(features=lambda images: images, extra=[])
    (found,) = torchvision_detectors._find_vgg_features(backbone, features)
    assert (found[..., 0, 0] - 512**-0.5).abs().max() < 1e-3
    found[..., 0, 0] = 0
    assert (found == 0).all()


def test_random_weights_follow_from_the_seed() -> None:
    name = "ssdlite320_mobilenet_v3_large"
    same = load(name)
    again, other = (load_network(make_spec([name], weights="random", seed=seed)[0]) for seed in (0, 1))
    pixels = drawn_pixels(same, 1)
    scores = [run(network, pixels)["scores"] for network in (same, again, other)]
    assert np.array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 0.2


@pytest.mark.parametrize(
    ("name", "target", "opset"),
    [
        ("fcos_resnet50_fpn", "tensorrt-10", 18),
        ("ssd300_vgg16", "tensorrt-8.6", 17),
        ("ssdlite320_mobilenet_v3_large", "tensorrt-8.6", 17),
    ],
)
def test_the_graph_answers_the_best_rows(tmp_path: Path, name: str, target: str, opset: int) -> None:
    network = load(name)
    options = {"weights": "random", "image_size": SIZES[name], "precision": "fp32", "batch": {"max": 3}}
    spec = make_spec([name], target=target, **options)[0]
    graph, _ = make_graph(spec, network)
    model, _ = export_onnx(spec, network, graph, {}, tmp_path)
    assert model.opset == opset
    pixels = drawn_pixels(network)
    answers = open_onnx(model.path)(pixels)
    for index, (boxes, scores, classes) in enumerate(best_rows(network, pixels, 1000)):
        assert np.abs(answers["DET_SCORES"][index] - scores).max() < 1e-4
        alike = answers["DET_CLASSES"][index] == classes
        alike &= np.abs(answers["DET_BOXES"][index] - boxes).max(axis=1) < 0.1
        assert alike.mean() > 0.97  # the order of equal scores is anybody's
    assert not [node for node in load_proto(model.path).graph.node if node.op_type == "Expand"]
    profiles = make_profiles(model, [BatchProfile(min=1, opt=2, max=3)])
    check_graph(model, profiles, build=name.startswith("ssdlite")).raise_for_status()


@pytest.mark.parametrize(
    ("name", "layout", "background"),
    [("ssdlite320_mobilenet_v3_large", "logits", 0), ("fcos_resnet50_fpn", "scores", None)],
)
def test_the_reading_of_each(name: str, layout: str, background: int | None) -> None:
    spec = make_spec([name], weights="random", image_size=SIZES[name])[0]
    reading = find_reading(spec, load(name))
    assert (reading.layout, reading.background, reading.tensors) == (layout, background, ("boxes", layout))
    assert spec.detection is not None
    assert reading.choose_nms(spec.detection) == "per-class"


# --- what is known without weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_recipes_are_those_of_the_models(name: str) -> None:
    recipe, labels = describe_source(make_spec([name])[0])
    assert recipe.interpolation == "linear"
    if name.startswith("ssd"):
        edge = 320 if "lite" in name else 300
        assert (recipe.fit, recipe.crop, recipe.resize) == ("stretch", (edge, edge), (edge, edge))
        assert (len(labels), labels[0], labels[11]) == (90, "person", "N/A")
    else:
        assert (recipe.fit, recipe.crop, recipe.fill) == ("letterbox-corner", (640, 640), (124, 116, 104))
        assert (len(labels), labels[0], labels[1]) == (91, "__background__", "person")
    if name == "ssd300_vgg16":  # of a network that takes levels of 0 to 255
        pixel = recipe.normalise(np.full((1, 1, 1, 3), 200, np.uint8)).ravel()
        assert np.abs(pixel - (200 - 255 * np.array([0.48235, 0.45882, 0.40784]))).max() < 1e-3


def test_the_command_shows_a_detector(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "retinanet_resnet50_fpn", "--image-size", "320", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["models"]
    assert (shown["task"], shown["classes"], shown["recipe"]["resize"]) == ("detection", 91, [320, 320])


def failing(name: str, **options: Any) -> SourceError:
    spec = make_spec([name], **options)[0]
    with pytest.raises(SourceError) as described:
        describe_source(spec)
    with pytest.raises(SourceError) as caught:
        load_network(spec)
    assert caught.value.message == described.value.message
    return caught.value


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"])
def test_detectors_that_look_twice_are_refused(name: str) -> None:
    error = failing(name)
    assert "NMS and RoIAlign in its middle" in error.message
    assert "ssd300_vgg16" in error.hint


def test_unknown_names_and_weights() -> None:
    assert "no detector 'ssd300'; did you mean ssd300_vgg16" in failing("ssd300").message
    assert "no detector 'vgg16'; known are fcos_resnet50_fpn, " in failing("vgg16", task="detection").message
    assert "it has COCO_V1, default and random" in failing("ssd300_vgg16", weights="COCO_V2").message


def test_sizes_that_torchvision_does_not_run() -> None:
    error = failing("ssd300_vgg16", weights="random", image_size=320)
    assert error.message == "ssd300_vgg16 does not take images of 320 x 320 pixels"
    assert error.hint == "leave image_size and crop out for 300 x 300"
    error = failing("fcos_resnet50_fpn", weights="random", image_size=[320, 500])
    assert error.message == "fcos_resnet50_fpn does not take images of 320 x 500 pixels"
    assert error.hint == "set image_size to multiples of 32, such as 640"


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(SourceError, match="cannot be downloaded: Name or service not known") as caught:
        load_network(make_spec(["fcos_resnet50_fpn"])[0])
    assert caught.value.fields == {"weights": "fcos_resnet50_fpn_coco-99b0c9b7.pth"}


# --- checkpoints ---------------------------------------------------------------------------------------------------


def checkpoint_spec(path: Path, architecture: str, **options: Any) -> Any:
    return make_spec(["own"], architecture=architecture, weights=str(path), **options)[0]


def build(name: str, columns: int) -> Any:
    torch.manual_seed(5)
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=columns).eval()


def test_a_checkpoint_tells_its_classes(tmp_path: Path) -> None:
    """As torchvision's training script writes one; background is no class."""
    name = "ssdlite320_mobilenet_v3_large"
    model = build(name, 6)
    path = tmp_path / "w.pth"
    torch.save({"model": model.state_dict(), "epoch": 3, "optimizer": {"state": {}}}, path)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    spec = checkpoint_spec(path, name, labels=str(tmp_path / "labels.txt"))
    assert spec.task == "detection"
    assert describe_source(spec)[1] == ("a", "b", "c", "d", "e")
    network = load_network(spec)
    assert network.run(np.zeros((1, 320, 320, 3), np.uint8))["logits"].shape == (1, 3234, 1 + 5)
    loaded: Any = network.module.answer.model  # type: ignore[union-attr]
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(SourceError, match="classes is 6, but the model has 5"):
        load_network(spec.model_copy(update={"classes": 6}))
    torch.save(build("fcos_resnet50_fpn", 5).state_dict(), path)
    with pytest.raises(SourceError, match=f"does not fit {name} with 90 classes:\n"):
        load_network(checkpoint_spec(path, name))


@pytest.mark.parametrize("own", [True, False])
def test_a_retinanet_as_older_releases_wrote_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, own: bool) -> None:
    """Other names in the heads, a frozen normalisation that counts no batches, and nothing added to its variance."""
    name = "retinanet_resnet50_fpn"
    model = build(name, 91 if own else 4)
    state = {
        re.sub(r"(_head\.conv)\.(\d)\.0", lambda one: f"{one[1]}.{2 * int(one[2])}", key): tensor
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "head.regression_head.conv.6.bias" in state
    path = tmp_path / ("retinanet_resnet50_fpn_coco-eeacb38b.pth" if own else "w.pth")
    torch.save(state, path)
    network = load_network(checkpoint_spec(path, name, image_size=64, **({} if own else {"labels": "index"})))
    assert len(network.labels) == (91 if own else 4)
    loaded: Any = network.module.answer.model  # type: ignore[union-attr]
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert loaded.backbone.body.bn1.eps == 0
    assert np.isfinite(network.run(drawn_pixels(network, 1))["scores"]).all()
    assert ("taken for one that was fine-tuned from torchvision's weights of COCO" in caplog.text) == (not own)
