"""Encoded images become pixels on the CPU: the preprocessing step's own code, in the threads of one process."""

from __future__ import annotations

import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .decoded import Decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NO_GEOMETRY = (0.0,) * 6
# The step resizes to no more than so many times the crop; what it cuts out of that on the way is no larger.
_MOST_WASTE = 16


class CpuImages:
    """Decodes, resizes and crops as the preprocessing step does, several images at once.

    Pillow gives up the interpreter lock while it decodes and resizes.

    Args:
        step: The module of the preprocessing step, `templates/preprocess/1/model.py`.
        recipe: Its `Recipe`.
        threads: How many images are decoded at once.
    """

    def __init__(self, step: Any, recipe: Any, *, threads: int) -> None:
        self._step, self._recipe = step, recipe
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        _share_limit(step, recipe)

    def decode(self, files: Sequence[bytes]) -> Decoded:
        """Return the pixels of encoded images; one that is bad costs only its own."""
        pixels = np.empty((len(files), *self._recipe.shape), np.uint8)
        run = map if len(files) == 1 else self._pool.map
        found = list(run(self._decode_one, files, pixels))
        return Decoded(pixels=pixels, geometry=[place for place, _ in found], errors=[error for _, error in found])

    def _decode_one(self, data: bytes, pixels: NDArray[np.uint8]) -> tuple[Sequence[float], str | None]:
        """Write the pixels of one image and return its geometry, or why there are none."""
        try:
            image = self._step.open_image(data, self._recipe)
            pixels[...] = self._recipe.cropped(image)
        except self._step.BadImageError as error:
            words = str(error)
        except (MemoryError, Image.DecompressionBombError):
            words = "too long a strip to be resized"
        else:
            return self._recipe.geometry(*image.size), None
        pixels[...] = 0
        return _NO_GEOMETRY, words

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _share_limit(step: Any, recipe: Any) -> None:
    """Set Pillow's own limit once for all threads, and have it not fill the log with what it finds odd.

    The step sets and clears both for each image, which is for one thread: another would read without a limit meanwhile.
    Pillow applies the limit to what is cut out of resized images, too.
    """
    height, width = recipe.crop
    Image.MAX_IMAGE_PIXELS = max(recipe.max_pixels, _MOST_WASTE * height * width)
    warnings.simplefilter("ignore")
    step._limit = lambda _: contextlib.nullcontext()  # noqa: SLF001 - our own file
