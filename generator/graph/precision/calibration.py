"""The images that INT8 scales are taken from: a folder of the user's, or drawn ones with a warning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import ExportError, VerificationError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.recipe import Recipe

FEWEST_IMAGES = 8
FEW_IMAGES = 32
# More do not move a scale noticeably, and take time: ResNet-50 needs 0.1 s an image on two cores.
_MOST_IMAGES = 512
_DRAWN = 128
# Neither the gate's images (11) nor those that random weights get their statistics from (7).
_DRAWN_SEED = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`pixels` is uint8 (N, H, W, 3), prepared with the model's recipe. `warning` is for the user."""

    pixels: NDArray[np.uint8]
    warning: str | None = None


def read_calibration(folder: Path | None, recipe: Recipe) -> Calibration:
    """Prepare the images below `folder`, or drawn ones, as the network gets them when it serves.

    Of more than 512 images, every n-th is taken. Broken ones are skipped and named in the warning.

    Raises:
        ExportError: No folder, no image, fewer than 8 that decode, or more than half broken.
    """
    from generator.images.training_pixels import prepare

    if folder is None:
        from generator.demo.draw import draw_set

        return Calibration(
            pixels=prepare(recipe, [image.jpeg for image in draw_set(_DRAWN, seed=_DRAWN_SEED)]),
            warning="INT8 scales come from drawn images, which are not your data; set calibration to "
            "a folder with 100 or more images as they will be served",
        )
    paths = _find(folder)
    chosen = paths[:: -(-len(paths) // _MOST_IMAGES)]
    prepared, broken = [], []
    for path in chosen:
        pixels = _prepare(path, recipe)
        if pixels is None:
            broken.append(path.relative_to(folder).as_posix())
        else:
            prepared.append(pixels)
    named = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
    if len(broken) * 2 > len(chosen):
        msg = f"{folder}: {len(broken)} of {len(chosen)} calibration images do not decode: {named}"
        raise ExportError(msg, hint="give a folder with images as they will be served")
    if len(prepared) < FEWEST_IMAGES:
        msg = f"{folder} holds {len(prepared)} images that decode, calibration needs {FEWEST_IMAGES} at least"
        raise ExportError(msg, hint="give 100 images or more, as they will be served")
    complaints = []
    if broken:
        complaints.append(f"{len(broken)} images of {folder} do not decode and were left out: {named}")
    if len(prepared) < FEW_IMAGES:
        complaints.append(f"only {len(prepared)} calibration images in {folder}: take 100 or more")
    import numpy as np

    return Calibration(
        pixels=np.concatenate(prepared),
        warning="; ".join(complaints) or None,
    )


def _find(folder: Path) -> list[Path]:
    from generator.images.sets import find_images

    try:
        return find_images(folder)
    except VerificationError as error:
        msg = f"calibration: {error.message}"
        raise ExportError(msg, hint="give a folder with 100 images or more, as they will be served") from error


def _prepare(path: Path, recipe: Recipe) -> NDArray[np.uint8] | None:
    """Return the pixels (1, H, W, 3) of a file, None where it does not decode."""
    from PIL import Image

    from generator.images.training_pixels import prepare

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata, unusual sizes
            return prepare(recipe, [path.read_bytes()])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
