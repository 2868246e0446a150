"""Reference: images, the pixels that training would have made of them, and the source's own answers.

It is written beside the ONNX file at export, so that a host without torch and without the source can run the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import VerificationError
from generator.images.training import prepare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.images.sets import ImageSet
    from generator.sources import Network

__all__ = ["Reference", "find_decided", "find_leads", "load_reference", "make_reference", "save_reference"]

RANDOM_HINT = "take random nodes out, such as a dropout that is left on: call model.eval() before the export"
_NOISE_SEED = 3
# Two runs of one image on the CPU differ by the order of summation only; of the largest score, if that is above 1.
_REPEATABLE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`pixels` is uint8 (N, H, W, 3); `scores` FP32 (N, classes), the source's output before any added activation.

    `decided`, bool (N,), says for which images the source's first class leads by more than its scores move when pixels
    change by one level of 255. On the others any rounding decides, so no first class can be asked for.
    """

    names: tuple[str, ...]
    files: tuple[bytes, ...]
    pixels: NDArray[np.uint8]
    scores: NDArray[np.float32]
    decided: NDArray[np.bool_]


def make_reference(network: Network, images: ImageSet) -> Reference:
    """Prepare the images as training would have done and let the source itself answer.

    Raises:
        VerificationError: The source answers NaN or infinity, or the same image differently twice.
    """
    import numpy as np

    pixels = prepare(network.recipe, images.files)
    scores = network.run(pixels)
    if broken := [images.names[index] for index in np.flatnonzero(~np.isfinite(scores).all(axis=1))]:
        msg = f"the source answers NaN or infinity for {len(broken)} of {len(scores)} images: {', '.join(broken[:5])}"
        raise VerificationError(
            msg, hint="look for a division by zero, a logarithm of zero or an overflow in the model, and bound it"
        )
    if (difference := float(np.abs(network.run(pixels[:1]) - scores[:1]).max())) > _REPEATABLE * max(
        1.0, float(np.abs(scores).max())
    ):
        msg = f"the source answers {images.names[0]} differently twice, by {difference:.2g}: nothing can be compared"
        raise VerificationError(msg, hint=RANDOM_HINT)
    return Reference(
        names=images.names,
        files=images.files,
        pixels=pixels,
        scores=scores,
        decided=find_decided(network.run, pixels, scores),
    )


def find_decided(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], pixels: NDArray[np.uint8], scores: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Say for which images the lead of the first class is more than twice what one level of pixel noise moves it.

    One level is what the gate allows served pixels to differ by. Twice, since two draws do not see the worst noise.
    """
    import numpy as np

    rows = np.arange(len(scores))
    leads = find_leads(scores)
    moved = np.zeros_like(leads)
    rng = np.random.default_rng(_NOISE_SEED)
    for _ in range(2):
        noise = rng.integers(-1, 2, pixels.shape, dtype=np.int16)
        noisy = run(np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8))
        if scores.shape[1] == 1:
            moved = np.maximum(moved, np.abs(noisy - scores)[:, 0])
        else:
            second, first = np.argsort(scores, axis=1)[:, -2:].T
            moved = np.maximum(moved, np.abs(noisy[rows, first] - noisy[rows, second] - leads))
    decided: NDArray[np.bool_] = leads > 2 * moved
    return decided


def find_leads(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far ahead each row's first class is: of the second, or of the threshold where there is one output."""
    import numpy as np

    if scores.shape[1] == 1:
        threshold = 0.5 if scores.min() >= 0 and scores.max() <= 1 else 0.0
        return np.asarray(np.abs(scores[:, 0] - np.float32(threshold)))
    second, first = np.sort(scores, axis=1)[:, -2:].T
    return np.asarray(first - second)


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
        decided=reference.decided,
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
                decided=arrays["decided"],
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        msg = f"{path} cannot be read: {error}"
        raise VerificationError(
            msg, hint="give --images DIR, which asks the source itself, or build the model again"
        ) from error
