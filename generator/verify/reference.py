"""Reference: images, the pixels that training would have made of them, and the source's own answers.

It is written beside the ONNX file at export, so that a host without torch and without the source can run the gate.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.recipe import Recipe
    from generator.sources import Network
    from generator.verify.images import ImageSet

__all__ = ["Reference", "load_reference", "make_reference", "save_reference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`pixels` is uint8 (N, H, W, 3); `scores` FP32 (N, classes), the source's output before any added activation."""

    names: tuple[str, ...]
    files: tuple[bytes, ...]
    pixels: NDArray[np.uint8]
    scores: NDArray[np.float32]


def make_reference(network: Network, images: ImageSet) -> Reference:
    """Prepare the images as training would have done and let the source itself answer."""
    pixels = prepare(network.recipe, images.files)
    return Reference(names=images.names, files=images.files, pixels=pixels, scores=network.run(pixels))


def prepare(recipe: Recipe, files: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return the pixels of encoded images, made with torchvision's own transforms."""
    import numpy as np
    from PIL import Image, ImageOps

    from generator.recipe import make_pixels

    to_pixels = make_pixels(recipe)
    prepared = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            prepared.append(to_pixels(ImageOps.exif_transpose(image) if recipe.exif == "apply" else image))
    return np.stack(prepared)


def save_reference(reference: Reference, path: Path) -> None:
    """Write the reference as reference.npz; the same reference always gives the same bytes."""
    import numpy as np

    np.savez_compressed(
        path,
        names=np.array(reference.names),
        file_bytes=np.frombuffer(b"".join(reference.files), np.uint8),
        file_sizes=np.array([len(data) for data in reference.files]),
        pixels=reference.pixels,
        scores=reference.scores,
    )


def load_reference(path: Path) -> Reference:
    """Read reference.npz.

    Raises:
        VerificationError: Absent, or not what `save_reference` writes.
    """
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["file_sizes"])
            data = arrays["file_bytes"].tobytes()
            files = tuple(data[end - size : end] for end, size in zip(ends, arrays["file_sizes"], strict=True))
            return Reference(
                names=tuple(str(name) for name in arrays["names"]),
                files=files,
                pixels=arrays["pixels"],
                scores=arrays["scores"],
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        msg = f"{path} cannot be read: {error}"
        raise VerificationError(
            msg, hint="give --images DIR, which asks the source itself, or build the model again"
        ) from error
