"""The source's own answers, and on which images its first class is decided."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from generator.errors import VerificationError
from generator.images.reference import RANDOM_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.sources import Network

_NOISE_SEED = 3
# Two runs of one image on the CPU differ by the order of summation only; of the largest score, if that is above 1.
_REPEATABLE = 1e-3


def make_answers(network: Network, pixels: NDArray[np.uint8], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return `scores`, FP32 (N, classes): the source's output before any added activation, and `decided`, bool (N,).

    `decided` says for which images the source's first class leads by more than its scores move when pixels change by
    one level of 255. On the others any rounding decides, so no first class can be asked for.

    Raises:
        VerificationError: The source answers NaN or infinity, or the same image differently twice.
    """
    import numpy as np

    run = partial(_run, network)
    scores = run(pixels)
    if broken := [names[index] for index in np.flatnonzero(~np.isfinite(scores).all(axis=1))]:
        msg = f"the source answers NaN or infinity for {len(broken)} of {len(scores)} images: {', '.join(broken[:5])}"
        raise VerificationError(
            msg, hint="look for a division by zero, a logarithm of zero or an overflow in the model, and bound it"
        )
    if (difference := float(np.abs(run(pixels[:1]) - scores[:1]).max())) > _REPEATABLE * max(
        1.0, float(np.abs(scores).max())
    ):
        msg = f"the source answers {names[0]} differently twice, by {difference:.2g}: nothing can be compared"
        raise VerificationError(msg, hint=RANDOM_HINT)
    return {"scores": scores, "decided": find_decided(run, pixels, scores)}


def _run(network: Network, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    (scores,) = network.run(pixels).values()
    return scores


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
