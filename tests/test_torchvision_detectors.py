"""torchvision's detectors: served, they answer what torchvision's own code answers for the same pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models.detection.image_list import ImageList

from generator.demo.draw import draw_set
from generator.images.served_pixels import load_step
from generator.images.training_pixels import prepare
from generator.sources import Network, load_network
from generator.spec.file import make_spec

# At these sizes a test takes seconds; SSD has one size only.
SIZES = {
    "ssd300_vgg16": None,
    "ssdlite320_mobilenet_v3_large": None,
    "retinanet_resnet50_fpn_v2": 192,
    "fcos_resnet50_fpn": 192,
}
IMAGES = 3
MOST_ROWS = 3840  # of TensorRT's TopK


def load(name: str, **options: Any) -> Network:
    return load_network(make_spec([name], weights="random", image_size=SIZES[name], **options)[0])


def drawn_pixels(network: Network, count: int = IMAGES) -> NDArray[np.uint8]:
    return prepare(network.recipe, [image.jpeg for image in draw_set(count, seed=3)])


class Bypassed(torch.nn.Module):
    """Takes the place of torchvision's transform: images come as the network's input, boxes stay in its pixels."""

    def forward(self, images: list[torch.Tensor], targets: None) -> tuple[ImageList, None]:
        return ImageList(torch.stack(images), [(one.shape[1], one.shape[2]) for one in images]), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        return result


def ask_torchvision(network: Network, pixels: NDArray[np.uint8]) -> list[dict[str, NDArray[Any]]]:
    """Return torchvision's own detections: all of its `forward` but the transform."""
    model: Any = network.module.model  # type: ignore[union-attr]
    model.transform = Bypassed()
    with torch.inference_mode():
        found = model(list(torch.from_numpy(network.recipe.normalise(pixels))))
    return [{key: value.numpy() for key, value in one.items()} for one in found]


def detect(network: Network, pixels: NDArray[np.uint8]) -> list[tuple[NDArray[Any], ...]]:
    """Return what is served with the model's own limits: boxes, scores and classes of each image."""
    model: Any = network.module.model  # type: ignore[union-attr]
    step = load_step("postprocess")
    given = {"score": str(model.score_thresh), "iou": str(model.nms_thresh), "nms": "per-class"}
    parameters = {name: {"string_value": value} for name, value in given.items()}
    options = step.Options(parameters, list(network.labels), model.detections_per_img)
    height, width = network.recipe.crop
    geometry = np.array([1, 1, 0, 0, width, height], np.float32)
    answers = network.run(pixels)
    found = []
    for boxes, scores in zip(answers["boxes"], answers["scores"], strict=True):
        order = np.argsort(-scores, axis=None, kind="stable")[:MOST_ROWS]
        anchors, classes = np.divmod(order, scores.shape[1])
        found.append(step.detect(boxes[anchors], scores.ravel()[order], classes, geometry, options))
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
