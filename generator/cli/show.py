"""`trtgen show`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generator.cli.console import say
from generator.cli.options import takes_models

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe


@takes_models
def show(
    specs: list[ModelSpec],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the resolved spec and the recipe of each model; nothing is downloaded or built.

    Example: trtgen show efficientnet_b0 --image-size 300
    """
    import yaml

    from generator.decoding import choose_decode
    from generator.sources import describe_source
    from generator.spec.config_text import given_fields
    from generator.target import choose_target

    models: list[dict[str, Any]] = []
    recipes: list[Recipe] = []
    for asked in specs:
        model, reason = choose_target(asked)
        if reason:
            say(f"* target    {model.name}: {reason}")
        resolved, categories = describe_source(model)
        model, reason = choose_decode(model, partial(_keep, resolved), None)
        if reason:
            say(f"* decode    {model.name}: {reason}")
        data = model.model_dump(mode="json")
        data["batch"]["opt"] = model.batch.optimum
        # a default holds where `config` does not state the same
        for role in model.roles:
            given = given_fields(getattr(model.config, role.key))
            if role.default_instances is not None and "instance_group" not in given:
                data["instances"][role.key] = model.instance_counts()[role.key]
            if role.holds_network and "dynamic_batching" not in given:
                data["max_queue_delay_microseconds"] = model.queue_delay_microseconds()
        data["recipe"] = resolved.model_dump(mode="json")
        data["classes"] = len(categories)
        models.append(data)
        recipes.append(resolved)
    if as_json:
        print(json.dumps({"models": models}, indent=2))
    else:
        for data, recipe in zip(models, recipes, strict=True):
            print(f"# {data['name']}: {' -> '.join(describe_steps(recipe))}")
        print(yaml.safe_dump({"models": models}, sort_keys=False), end="")


def describe_steps(recipe: Recipe) -> list[str]:
    """Return what happens to an image until it is the network's input, step by step."""
    height, width, channels = recipe.shape
    steps = ["image file", *(["turned upright"] if recipe.exif == "apply" else [])]
    steps.append("grey" if recipe.channels == "grey" else "RGB")
    if isinstance(recipe.resize, int):
        steps.append(f"shorter edge to {recipe.resize}, {recipe.interpolation}")
    else:
        how = "stretched to" if recipe.fit == "stretch" else "fitted into"
        steps.append(f"{how} {recipe.resize[0]}x{recipe.resize[1]}, {recipe.interpolation}")
    if recipe.fit.startswith("letterbox"):
        where = "right and below" if recipe.fit == "letterbox-corner" else "on both sides"
        steps.append(f"filled to {height}x{width} {where} with {recipe.fill}")
    elif recipe.resize != recipe.crop:
        steps.append(f"{height}x{width} from its centre")
    steps.append(f"PIXELS uint8 [{height}, {width}, {channels}]")
    steps += ["BGR"] if recipe.channels == "BGR" else []
    factor = f"x {recipe.scale:g}" if recipe.scale >= 1 else f"/ {1 / recipe.scale:g}"
    steps.append(factor)
    steps += [f"- {_list(recipe.mean)}"] if any(recipe.mean) else []
    steps += [f"/ {_list(recipe.std)}"] if any(value != 1 for value in recipe.std) else []
    return [*steps, "network"]


def _list(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:g}' for value in values)})"


def _keep(recipe: Recipe, _: ModelSpec) -> Recipe:
    return recipe
