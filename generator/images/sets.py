"""The images that the gate compares on: drawn ones, extremes and photographs, or a folder of the user's."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
# With 40 images in all, one disagreement is 2.5 %, so for FP32 a single one fails the gate.
_DRAWN = 35
_DRAWN_SEED = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Encoded images with their names."""

    names: tuple[str, ...]
    files: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Encoded images with the index of the class that each belongs to."""

    images: ImageSet
    classes: tuple[int, ...]


def photographs() -> ImageSet:
    """Return the two camera JPEGs in the package (see generator/assets/ATTRIBUTION.md)."""
    folder = Path(__file__).resolve().parent.parent / "assets"
    paths = sorted(folder.glob("*.jpg"))
    return ImageSet(names=tuple(path.name for path in paths), files=tuple(path.read_bytes() for path in paths))


def extreme_pixels(shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return black, white and noise of `shape` (height, width, 3): what divides by zero or overflows does it there."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])


def extreme_images() -> ImageSet:
    """Return a black, a white and a noise image as files."""
    from PIL import Image

    files = []
    for values in extreme_pixels((256, 256, 3)):
        with io.BytesIO() as stream:
            Image.fromarray(values).save(stream, "png")
            files.append(stream.getvalue())
    return ImageSet(names=("black.png", "white.png", "noise.png"), files=tuple(files))


@functools.cache
def default_images() -> ImageSet:
    """Return the drawn set, the extremes and the photographs: the same on every machine with the same Pillow."""
    from generator.demo.draw import draw_set

    drawn = draw_set(_DRAWN, seed=_DRAWN_SEED)
    others = [extreme_images(), photographs()]
    return ImageSet(
        names=(*(f"{image.name}.jpg" for image in drawn), *(name for one in others for name in one.names)),
        files=(*(image.jpeg for image in drawn), *(file for one in others for file in one.files)),
    )


def find_images(folder: Path) -> list[Path]:
    """Return the image files below `folder`, by name.

    Raises:
        VerificationError: Not a folder, or no image in it.
    """
    if not folder.is_dir():
        msg = f"{folder} is not a folder"
        raise VerificationError(msg, hint=f"give a folder with images ({', '.join(sorted(SUFFIXES))})")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        msg = f"{folder} holds no image"
        raise VerificationError(msg, hint=f"expected are files ending in {', '.join(sorted(SUFFIXES))}")
    return paths


def read_images(folder: Path) -> ImageSet:
    """Read the images below `folder`; each must decode.

    Raises:
        VerificationError: No folder, no image, or one that does not decode.
    """
    paths = find_images(folder)
    return ImageSet(
        names=tuple(path.relative_to(folder).as_posix() for path in paths),
        files=tuple(read_image(path) for path in paths),
    )


def read_labelled(folder: Path, labels: tuple[str, ...]) -> LabelledImages:
    """Read a folder with one folder per class, named like a label or like its index.

    Raises:
        VerificationError: A folder is named like no class, or like several.
    """
    names, files, classes = [], [], []
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not folders:
        msg = f"{folder} holds no folders, one per class was expected"
        raise VerificationError(msg, hint="name them like the labels, or like their indices")
    for entry in folders:
        if labels.count(entry.name) > 1:
            msg = f"{entry}: several classes have this name"
            raise VerificationError(msg, hint="name its folders like the indices of the classes")
        if entry.name in labels:
            index = labels.index(entry.name)
        elif entry.name.isdecimal() and int(entry.name) < len(labels):
            index = int(entry.name)
        else:
            msg = f"{entry} is named like no class; the labels are {', '.join(labels[:10])}..."
            raise VerificationError(msg, hint="name each folder like a label, or like its index")
        for path in find_images(entry):
            names.append(path.relative_to(folder).as_posix())
            files.append(read_image(path))
            classes.append(index)
    return LabelledImages(images=ImageSet(names=tuple(names), files=tuple(files)), classes=tuple(classes))


def read_image(path: Path) -> bytes:
    """Return the file's content; it must decode.

    Raises:
        VerificationError: It does not.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
        return path.read_bytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        msg = f"{path} does not decode: {error}"
        raise VerificationError(msg, hint="take it out of the folder: each image must have a right answer") from error
