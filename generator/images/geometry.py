"""Where an image lies in its pixels, as torchvision's transforms put it, independently of the served step."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.recipe import Recipe

FIELDS = ("scale x", "scale y", "left", "top", "width", "height")


def measure_geometry(recipe: Recipe, files: Sequence[bytes]) -> NDArray[np.float32]:
    """Return `FIELDS` of each encoded image, FP32 (N, 6): x * scale x + left is where its x lies in the pixels.

    Width and height are the image's own, after turning it where the recipe asks for that.
    """
    import numpy as np
    import PIL.Image
    from PIL import ImageOps

    found = []
    for data in files:
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = (ImageOps.exif_transpose(image) if recipe.exif == "apply" else image).size
        resized = _resize(recipe, width, height)
        left, top = (_place(recipe, edge, crop) for edge, crop in zip(resized, reversed(recipe.crop), strict=True))
        found.append((resized[0] / width, resized[1] / height, left, top, width, height))
    return np.array(found, np.float32)


def _resize(recipe: Recipe, width: int, height: int) -> tuple[int, int]:
    """Return width and height after resizing."""
    if isinstance(recipe.resize, int):  # torchvision: the shorter edge exactly, the longer one truncated
        longer = int(recipe.resize * max(width, height) / min(width, height))
        return (recipe.resize, longer) if width <= height else (longer, recipe.resize)
    high, wide = recipe.resize
    if recipe.fit.startswith("letterbox"):
        ratio = min(high / height, wide / width)
        to_whole = int if recipe.fit == "letterbox-corner" else round
        return max(1, to_whole(width * ratio)), max(1, to_whole(height * ratio))
    return wide, high


def _place(recipe: Recipe, edge: int, crop: int) -> int:
    """Return where an axis of `edge` pixels begins in `crop` of them; negative where its beginning is cut off."""
    if recipe.fit == "letterbox-corner":
        return 0
    if edge < crop:
        return (crop - edge) // 2
    return -((edge - crop) // 2) if recipe.rounding == "floor" else -round((edge - crop) / 2)
