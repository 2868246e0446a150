"""Pixels as training made them: with torchvision's own transforms, independently of the served step."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from generator.spec.recipe import Recipe


def prepare(
    recipe: Recipe, files: Sequence[bytes], own: Callable[[Image], NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """Return the pixels of encoded images, made with the source's `own` transform, or else with torchvision's."""
    import numpy as np
    import PIL.Image
    from PIL import ImageOps

    to_pixels = own or make_pixels(recipe)
    prepared = []
    for data in files:
        with PIL.Image.open(io.BytesIO(data)) as image:
            prepared.append(to_pixels(to_rgb(ImageOps.exif_transpose(image) if recipe.exif == "apply" else image)))
    return np.stack(prepared)


def to_rgb(image: Image) -> Image:
    """Return the image in RGB, as documented for what training sets do not hold: transparency on white, 16 bits scaled.

    Everything else is converted as torchvision's loader does it.
    """
    import numpy as np
    import PIL.Image

    if image.mode.startswith("I"):
        levels = np.rint(np.asarray(image, np.float64) / 257)
        return PIL.Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def make_pixels(recipe: Recipe) -> Callable[[Image], NDArray[np.uint8]]:
    """Return the function that training would have used: an RGB image to pixels (H, W, C), uint8.

    It resizes the whole image and then crops or pads, with torchvision's own code, independently of the serving step
    that it is the measure for.
    """
    import numpy as np
    from torchvision.transforms import functional

    def pixels(image: Image) -> NDArray[np.uint8]:
        image = functional.to_grayscale(image) if recipe.channels == "grey" else image
        resized = _resize(recipe, image)
        if recipe.fit == "letterbox-corner":
            right, below = recipe.crop[1] - resized.width, recipe.crop[0] - resized.height
            resized = functional.pad(resized, [0, 0, max(right, 0), max(below, 0)], fill=_fill(recipe))
            cropped = functional.crop(resized, 0, 0, *recipe.crop)
        elif recipe.rounding == "floor":
            top, left = (resized.height - recipe.crop[0]) // 2, (resized.width - recipe.crop[1]) // 2
            cropped = functional.crop(resized, top, left, *recipe.crop)
        else:
            if recipe.fit == "letterbox":
                sides = [max(recipe.crop[1] - resized.width, 0), max(recipe.crop[0] - resized.height, 0)]
                around = [*(side // 2 for side in sides), *(side - side // 2 for side in sides)]
                resized = functional.pad(resized, around, fill=_fill(recipe))
            cropped = functional.center_crop(resized, list(recipe.crop))
        return np.asarray(cropped, np.uint8).reshape(recipe.shape)

    return pixels


def _resize(recipe: Recipe, image: Image) -> Any:
    from torchvision.transforms import functional
    from torchvision.transforms.functional import InterpolationMode

    size = [recipe.resize] if isinstance(recipe.resize, int) else list(recipe.resize)
    if recipe.fit.startswith("letterbox"):
        ratio = min(size[0] / image.height, size[1] / image.width)
        edges = (image.height * ratio, image.width * ratio)
        size = [max(1, int(edge) if recipe.fit == "letterbox-corner" else round(edge)) for edge in edges]
    if recipe.interpolation == "linear":
        tensor = functional.pil_to_tensor(image)
        resized = functional.resize(tensor, size, interpolation=InterpolationMode.BILINEAR, antialias=False)
        return functional.to_pil_image(resized)
    mode = InterpolationMode(recipe.interpolation)
    return functional.resize(image, size, interpolation=mode, antialias=True)


def _fill(recipe: Recipe) -> Any:
    """Return the fill in the image's own mode: a grey one is what Pillow makes of the colour."""
    import PIL.Image

    colour = PIL.Image.new("RGB", (1, 1), recipe.fill)
    return colour.convert("L" if recipe.channels == "grey" else "RGB").getpixel((0, 0))
