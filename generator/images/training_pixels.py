"""Pixels as training made them: with torchvision's own transforms, independently of the served step."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from generator.spec.recipe import Recipe


def prepare(recipe: Recipe, files: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return the pixels of encoded images, made with torchvision's own transforms."""
    import numpy as np
    from PIL import Image, ImageOps

    to_pixels = make_pixels(recipe)
    prepared = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            prepared.append(to_pixels(ImageOps.exif_transpose(image) if recipe.exif == "apply" else image))
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
    """Return the function that training would have used: a Pillow image to pixels (H, W, 3), uint8.

    It resizes the whole image and then crops, with torchvision's own code, independently of the serving step that it
    is the measure for.
    """
    import numpy as np
    from torchvision.transforms import functional
    from torchvision.transforms.functional import InterpolationMode

    mode = InterpolationMode(recipe.interpolation)
    size = [recipe.resize] if isinstance(recipe.resize, int) else list(recipe.resize)

    def pixels(image: Image) -> NDArray[np.uint8]:
        resized = functional.resize(to_rgb(image), size, interpolation=mode, antialias=True)
        return np.asarray(functional.center_crop(resized, list(recipe.crop)), np.uint8)

    return pixels
