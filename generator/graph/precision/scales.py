"""Histogram or weights -> INT8 scales, symmetric: the value 127 stands for is the threshold, zero is zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import ExportError
from generator.graph.precision.value_ranges import BINS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from generator.graph.precision.value_ranges import Histogram

LEVELS = 127
_CANDIDATES = 160
# Clipping below this share of the largest value seen is not considered.
_LOWEST_SHARE = 0.15
_SMALLEST = {"float32": 1.2e-38, "float16": 2.0**-24}
_LARGEST = {"float32": 3.4e38 / LEVELS, "float16": 65504.0 / LEVELS}


def choose_threshold(histogram: Histogram) -> float:
    """Return the absolute value that 127 stands for.

    What is clipped is weighed against how coarse the rest becomes: the least mean squared error is taken.
    """
    import numpy as np

    if histogram.counts is None:
        return histogram.largest
    counts = histogram.counts.astype(np.float64)
    centres = (np.arange(BINS) + 0.5) * (histogram.top / BINS)
    candidates = np.linspace(_LOWEST_SHARE, 1.0, _CANDIDATES) * histogram.largest
    beyond = np.searchsorted(centres, candidates)
    tail_counts, tail_sums, tail_squares = (
        np.append(np.cumsum((counts * centres**power)[::-1])[::-1], 0.0)[beyond] for power in range(3)
    )
    clipped = tail_squares - 2 * candidates * tail_sums + candidates**2 * tail_counts
    # zeros are exact in any scale: after a Relu they are most of the values
    rounded = (counts[1:].sum() - tail_counts) * (candidates / LEVELS) ** 2 / 12
    return float(candidates[int(np.argmin(clipped + rounded))])


def activation_scales(
    histograms: Mapping[str, Histogram], readers: Mapping[str, Any], *, dtype: str
) -> dict[str, float]:
    """Return the scale of each tensor as a number that `dtype` holds exactly.

    Raises:
        ExportError: Scales that are zero, not finite, or out of the type's range; every such tensor is listed.
    """
    import numpy as np

    scales, problems = {}, []
    for name, histogram in histograms.items():
        threshold = choose_threshold(histogram)
        if not histogram.finite:
            problems.append(f"{name} (read by {', '.join(readers[name])}) becomes infinite or NaN")
        elif threshold == 0:
            problems.append(f"{name} (read by {', '.join(readers[name])}) is zero on every calibration image")
        elif not _SMALLEST[dtype] <= threshold / LEVELS <= _LARGEST[dtype]:
            reached = f"{name} (read by {', '.join(readers[name])}) reaches {threshold:.3g}"
            problems.append(f"{reached}, which {dtype} has no scale for")
        scales[name] = float(np.dtype(dtype).type(threshold / LEVELS))
    if problems:
        msg = "the scales of these tensors collapse, and with them the INT8 network:\n  " + "\n  ".join(problems)
        raise ExportError(msg, hint="calibrate with images like those to be served, or name the nodes in keep")
    return scales


def weight_scales(name: str, weights: NDArray[np.float32], axis: int, *, dtype: str) -> NDArray[Any]:
    """Return a scale per slice of `axis`, never smaller than what the largest weight needs, in `dtype`.

    A slice of zeros gets scale 1, with which it stays zero.

    Raises:
        ExportError: A weight is not finite, or too large for `dtype`.
    """
    import numpy as np

    others = tuple(index for index in range(weights.ndim) if index != axis)
    largest = np.abs(weights).max(axis=others)
    if not (largest <= _LARGEST[dtype] * LEVELS).all():
        msg = f"weight {name} has values up to {largest.max():.3g}: NaN, infinite, or beyond {dtype}"
        raise ExportError(msg, hint="the source's weights are damaged, or its node belongs into keep")
    exact = largest.astype(np.float64) / LEVELS
    scales: NDArray[Any] = exact.astype(dtype)
    short = scales.astype(np.float64) < exact
    scales[short] = np.nextafter(scales[short], np.dtype(dtype).type(np.inf))
    scales[largest == 0] = 1
    return scales
