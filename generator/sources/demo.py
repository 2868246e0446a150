"""The project's own small models: ten drawn shapes, classified or detected, weights in the package, no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.sources.network import Network, check_channels, resolve_recipe, torch_runner
from generator.spec.recipe import Recipe
from generator.task import find_task

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec


def load(spec: ModelSpec) -> Network:
    """Load the demo network of the spec's task (see `generator.demo`)."""
    recipe, labels = describe(spec)
    check_channels(spec, recipe)
    outputs: tuple[str, ...]
    if spec.task == "detection":
        from generator.demo.detector import load_detector

        module, outputs = load_detector(), ("boxes", "scores")
    else:
        from generator.demo.network import load_network

        module, outputs = load_network(), ("LOGITS",)
    return Network(
        description="demo detector of trtgen" if spec.task == "detection" else "demo model of trtgen",
        recipe=recipe,
        labels=labels,
        run=torch_runner(module, recipe, outputs=outputs),
        activation="softmax",
        module=module,
        outputs=outputs,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names."""
    from generator.demo import draw

    own = _detector_recipe() if spec.task == "detection" else _classifier_recipe()
    return resolve_recipe(spec, own), find_task(spec.task).resolve_labels(spec, draw.LABELS, len(draw.LABELS))


def _classifier_recipe() -> Recipe:
    from generator.demo import network

    return Recipe.model_validate(
        {
            "resize": network.RESIZE,
            "crop": network.CROP,
            "interpolation": network.INTERPOLATION,
            "mean": network.MEAN,
            "std": network.STD,
        }
    )


def _detector_recipe() -> Recipe:
    from generator.demo import detector

    return Recipe.model_validate(
        {
            "fit": "letterbox",
            "resize": detector.SIDE,
            "crop": detector.SIDE,
            "interpolation": detector.INTERPOLATION,
            "fill": detector.FILL,
            "mean": detector.MEAN,
            "std": detector.STD,
        }
    )
