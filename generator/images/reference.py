"""Reference: images, the pixels that training would have made of them, and the source's own answers.

It is written beside the ONNX file at export, so that a host without torch and without the source can run the gate.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import VerificationError
from generator.images.training_pixels import prepare
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.images.sets import ImageSet
    from generator.sources import Network
    from generator.spec.model import ModelSpec

RANDOM_HINT = "take random nodes out, such as a dropout that is left on: call model.eval() before the export"
_OWN_ARRAYS = frozenset({"names", "file_bytes", "file_sizes", "pixels"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`pixels` is uint8 (N, H, W, C); `answers` holds what the task keeps of the source's own answers, N rows each."""

    names: tuple[str, ...]
    files: tuple[bytes, ...]
    pixels: NDArray[np.uint8]
    answers: Mapping[str, NDArray[Any]]


def make_reference(spec: ModelSpec, network: Network, images: ImageSet) -> Reference:
    """Prepare the images as training would have done and let the source itself answer.

    Raises:
        VerificationError: Nothing can be compared with the answers.
    """
    pixels = prepare(network.recipe, images.files, network.pixels)
    answers = find_task(spec.task).make_answers(spec, network, pixels, images.names)
    return Reference(names=images.names, files=images.files, pixels=pixels, answers=answers)


def save_reference(reference: Reference, path: Path) -> None:
    """Write the reference as reference.npz; the same reference always gives the same bytes."""
    import numpy as np

    stream = io.BytesIO()  # where the disk is full, a half-written archive would complain once more as it is dropped
    np.savez_compressed(
        stream,
        names=np.array(reference.names),
        file_bytes=np.frombuffer(b"".join(reference.files), np.uint8),
        file_sizes=np.array([len(data) for data in reference.files]),
        pixels=reference.pixels,
        **reference.answers,
    )
    path.write_bytes(stream.getvalue())


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
                answers={name: arrays[name] for name in arrays.files if name not in _OWN_ARRAYS},
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        msg = f"{path} cannot be read: {error}"
        hint = "give images, which the source itself is asked about, or build the model again"
        raise VerificationError(msg, hint=hint, fields={"images": None}) from error
