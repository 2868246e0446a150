"""The project's own small model: ten drawn shapes, weights in the package, no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.sources.network import Network, check_channels, resolve_recipe, torch_runner
from generator.spec.recipe import Recipe
from generator.task import find_task

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec


def load(spec: ModelSpec) -> Network:
    """Load the demo network (see `generator.demo`)."""
    from generator.demo import network

    recipe, labels = describe(spec)
    check_channels(spec, recipe)
    module = network.load_network()
    return Network(
        description="demo model of trtgen",
        recipe=recipe,
        labels=labels,
        run=torch_runner(module, recipe),
        activation="softmax",
        module=module,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names."""
    from generator.demo import draw, network

    own = Recipe.model_validate(
        {
            "resize": network.RESIZE,
            "crop": network.CROP,
            "interpolation": network.INTERPOLATION,
            "mean": network.MEAN,
            "std": network.STD,
        }
    )
    return resolve_recipe(spec, own), find_task(spec.task).resolve_labels(spec, draw.LABELS, len(draw.LABELS))
