"""How timm prepares images: its data configuration, the recipe that says the same, and its own transform.

Pretrained and random weights get what timm's validate.py does, at the size that the published accuracy was measured at
(`test_input_size`, `test_crop_pct`); a checkpoint of its train.py what the arguments that lie in it say.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.spec.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from generator.spec.model import ModelSpec

# What timm's train.py and validate.py take of their arguments for the preparation of images.
_DATA_ARGUMENTS = ("in_chans", "input_size", "img_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def resolve_data(spec: ModelSpec, config: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's own data configuration of the model, as `timm.data.create_transform` takes it."""
    from timm.data import resolve_data_config

    given = {name: arguments[name] for name in _DATA_ARGUMENTS if arguments.get(name)}
    size = (spec.image_size, spec.image_size) if isinstance(spec.image_size, int) else spec.image_size
    if size is not None:
        given["input_size"] = (given.get("in_chans", config.input_size[0]), *size)
    # train.py evaluates as it trains; and who asks for the training's size gets the training's crop
    as_evaluated = not arguments and size != tuple(config.input_size[1:])
    data: dict[str, Any] = resolve_data_config(given, pretrained_cfg=config.to_dict(), use_test_size=as_evaluated)
    if data["input_size"][0] == 1:  # its value is the average of the three, as in timm's loader
        data |= {name: (sum(data[name]) / len(data[name]),) for name in ("mean", "std")}
    return data


def make_recipe(spec: ModelSpec, data: Mapping[str, Any]) -> Recipe:
    """Return the recipe that says what `timm.data.create_transform` does.

    Raises:
        SourceError: No recipe says it.
    """
    channels, *size = data["input_size"]
    if channels not in (1, 3):
        msg = f"{spec.name} takes images of {channels} channels; 3 or 1 were expected"
        raise SourceError(msg, hint="take a model of colour or grey images")
    scaled = [math.floor(edge / data["crop_pct"]) for edge in size]
    fit = {"squash": "stretch", "border": "letterbox"}.get(data["crop_mode"], "crop")
    if fit == "crop" and scaled[0] != scaled[1] and spec.recipe.fit is None and spec.recipe.base is None:
        msg = f"{spec.name}: timm fills {size[0]} x {size[1]} pixels from either edge, which no recipe does"
        hint = "set recipe.fit to stretch or letterbox and recipe.resize to the size, as it was trained"
        raise SourceError(msg, hint=hint, fields={"recipe.fit": "stretch"})
    return Recipe.model_validate(
        {
            "fit": fit,
            "resize": max(scaled) if fit == "crop" else scaled,
            "crop": size,
            "interpolation": data["interpolation"],
            "fill": [round(255 * value) for value in (*data["mean"], *data["mean"], *data["mean"])[:3]],
            "channels": "grey" if channels == 1 else "RGB",
            "mean": data["mean"],
            "std": data["std"],
        }
    )


def resolve_own(spec: ModelSpec, config: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Recipe]:
    """Return timm's own data configuration, and the recipe that says the same.

    Raises:
        SourceError: No recipe says it, or a checkpoint's arguments are not those of timm's train.py.
    """
    try:
        data = resolve_data(spec, config, arguments)
        return data, make_recipe(spec, data)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        if not arguments:
            raise
        msg = f"{spec.weights}: its training arguments do not say how images are prepared as timm's do: {error!r}"
        raise SourceError(msg, hint="save its state dict alone and give that, with recipe where it differs") from error


def own_transform(
    data: Mapping[str, Any],
) -> tuple[Callable[[Image], NDArray[np.uint8]], Callable[[NDArray[np.uint8]], NDArray[np.float32]]]:
    """Return timm's own transform in two: an RGB image to pixels (H, W, C), pixels (N, H, W, C) to FP32 NCHW."""
    import numpy as np
    from timm.data import create_transform

    *steps, to_tensor, normalise = create_transform(**data, is_training=False).transforms

    def pixels(image: Image) -> NDArray[np.uint8]:
        image = image.convert("L") if data["input_size"][0] == 1 else image
        for step in steps:
            image = step(image)
        made = np.asarray(image, np.uint8)
        return made if made.ndim == 3 else made[..., None]

    def normalised(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack([normalise(to_tensor(image)).numpy() for image in batch])

    return pixels, normalised
