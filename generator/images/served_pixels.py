"""Pixels as the served preprocessing step makes them, without a server and without torch.

There is one implementation, `templates/preprocess/1/model.py`; it is loaded here as it is.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.render import template_root

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.recipe import Recipe

_ONLY_IN_TRITON = "triton_python_backend_utils"
_ON_GPU_MOST, _ON_GPU_SHARE = 2, 0.001


def prepare_without_torch(
    recipe: Recipe, files: Sequence[bytes], names: Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """Return the pixels (N, H, W, C) of encoded images, the same bytes that the served step answers with.

    Args:
        recipe: The model's recipe.
        files: Encoded images.
        names: What to call them in errors; default: image 0, image 1, ...

    Raises:
        SourceError: One is no image that the step takes; names it and says why.
    """
    import numpy as np

    pixels = np.empty((len(files), *recipe.shape), np.uint8)
    for index, data in enumerate(files):
        pixels[index], _ = prepare_one(recipe, data, names[index] if names is not None else f"image {index}")
    return pixels


def prepare_one(recipe: Recipe, data: bytes, name: str) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """Return the pixels (H, W, C) of one encoded image and its geometry, six numbers, as the served step answers.

    Raises:
        SourceError: It is no image that the step takes; calls it `name` and says why.
    """
    from PIL import Image

    step = load_step("preprocess")
    settings = step.Recipe({key: {"string_value": value} for key, value in recipe.parameters().items()})
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # as in the step's own process, which has limits of its own
    try:
        image = step.open_image(data, settings)
        return settings.cropped(image), settings.geometry(*image.size)
    except step.BadImageError as error:
        raise SourceError(f"{name}: {error}", hint="give another image") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def load_step(name: str) -> Any:
    """Return the served step `preprocess` or `postprocess` as a module."""
    return load_own_step(name)


def load_own_step(name: str) -> Any:
    """Return a served step as a module that nobody else has, for who changes its limits."""
    # outside Triton its module does not exist, and nothing of it is used by what is called here
    return load_code(template_root() / name / "1" / "model.py", ModuleType(_ONLY_IN_TRITON))


def load_code(path: Path, triton: ModuleType) -> Any:
    """Return a served step's file as a module, on `triton` in place of what there is in a server only."""
    from PIL import Image

    spec = importlib.util.spec_from_file_location(f"trtgen_{path.parent.parent.name}_step", path)
    assert spec is not None
    assert spec.loader is not None
    step = importlib.util.module_from_spec(spec)
    limit = Image.MAX_IMAGE_PIXELS
    absent = _ONLY_IN_TRITON not in sys.modules
    if absent:
        sys.modules[_ONLY_IN_TRITON] = triton
    try:
        spec.loader.exec_module(step)
    finally:
        if absent:
            del sys.modules[_ONLY_IN_TRITON]
        Image.MAX_IMAGE_PIXELS = limit
    return step


def are_alike(pixels: NDArray[np.uint8], expected: NDArray[np.uint8], *, on_gpu: bool) -> NDArray[np.bool_]:
    """Tell of each image (N, ...) whether its pixels are the expected: within one level of 255.

    A GPU's decoder rounds by itself and the resize behind it again, so one of a thousand values that it made may be two
    levels off.
    """
    import numpy as np

    levels = np.abs(pixels.astype(np.int16) - expected).reshape(len(pixels), -1)
    most = _ON_GPU_MOST if on_gpu else 1
    return np.asarray((levels.max(axis=1) <= most) & ((levels > 1).mean(axis=1) <= _ON_GPU_SHARE), np.bool_)
