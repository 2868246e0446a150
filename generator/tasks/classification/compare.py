"""How two sets of scores are compared: cosine of centred log-probabilities, and agreement of the first class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Log-probabilities below this say nothing that matters, and soon leave FP32's range (1e-38 is -87).
_LOWEST = -50.0
# Log-odds beyond this are decided by the last bits of an FP32 probability.
_LOG_ODDS = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a stage must reach: the cosine of the worst image, and the share of images with the same first class."""

    cosine: float
    top1: float


# Set by design, not fitted to a model; not to be loosened without a reason.
LIMITS = {
    "fp32": Limit(cosine=0.99999, top1=1.0),
    "fp16": Limit(cosine=0.999, top1=0.995),
    "bf16": Limit(cosine=0.99, top1=0.98),
    "int8": Limit(cosine=0.97, top1=0.97),
    # FP8 (E4M3) keeps 4 bits of a value, INT8 up to 8 of the largest: on the whole they err alike (docs/plans.md)
    "fp8": Limit(cosine=0.97, top1=0.97),
}
# A graph that came in low precision, against the file that it was: nothing was converted on the way.
AS_IS = LIMITS["fp16"]
# An FP32 plan may use TF32 for its products, and sums in another order than the CPU.
PLAN_FP32 = Limit(cosine=0.9999, top1=0.999)


def plan_limit(precision: str) -> Limit:
    """Return the limit for a plan of this precision."""
    return PLAN_FP32 if precision == "fp32" else LIMITS[precision]


def ensemble_limit(artifact: Limit) -> Limit:
    """Return the limit for the whole way from the file, where pixels may differ by one level of 255."""
    return Limit(cosine=0.999 * artifact.cosine, top1=artifact.top1 - 0.005)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome over all images; `differing` holds the index of each whose first class differs.

    `cosines` has one for each image, lowered where lengths differ, see `compare`. `top1` is the share among the images
    that count, nan where none does. `confused` holds the index of each of these whose first class differs.
    """

    cosines: tuple[float, ...]
    worst_image: int
    top1: float
    differing: tuple[int, ...]
    confused: frozenset[int]

    @property
    def worst_cosine(self) -> float:
        """That of the image that is farthest off, NaN where there is one."""
        return self.cosines[self.worst_image]

    def meets(self, limit: Limit) -> bool:
        """Say whether both limits are reached (a cosine of NaN never is)."""
        return self.worst_cosine >= limit.cosine and not self.top1 < limit.top1

    def agreement(self, limit: Limit) -> float:
        """Return the share of images that reach the cosine and have the same first class, where that counts."""
        alike = [cosine >= limit.cosine and index not in self.confused for index, cosine in enumerate(self.cosines)]
        return sum(alike) / len(alike)


def comparable(answers: NDArray[np.floating[Any]], activation: str) -> NDArray[np.float64]:
    """Return what cosines are taken of, float64 (N, classes), for answers behind `activation`.

    Softmax: centred log-probabilities. Sigmoid: log-odds. None: the raw outputs.
    """
    import numpy as np

    values = answers.astype(np.float64)
    if activation == "none":
        return values
    if activation == "sigmoid":
        clipped = np.clip(values, 1e-12, 1 - 1e-12)
        return np.clip(np.log(clipped / (1 - clipped)), -_LOG_ODDS, _LOG_ODDS)
    values = np.log(np.maximum(values, np.exp(_LOWEST)))
    centred: NDArray[np.float64] = values - values.mean(axis=1, keepdims=True)
    return centred


def first_classes(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the first class of each row of `comparable` values; one output decides between the classes 0 and 1."""
    import numpy as np

    return values.argmax(axis=1) if values.shape[1] > 1 else (values[:, 0] > 0).astype(np.intp)


def compare(
    expected: NDArray[np.float64], actual: NDArray[np.float64], counted: NDArray[np.bool_] | None = None
) -> Comparison:
    """Compare rows of `comparable` values, image by image: cosine, lowered where the lengths of two rows differ.

    `counted`, bool (N,), says which images' first classes count; all by default.
    """
    import numpy as np

    similarities = _similarities(expected, actual)
    differs = first_classes(expected) != first_classes(actual)
    counted = np.ones(len(expected), np.bool_) if counted is None else counted
    worst = int(np.argmin(np.where(np.isnan(similarities), -np.inf, similarities)))
    return Comparison(
        cosines=tuple(similarities.tolist()),
        worst_image=worst,
        top1=1 - float(differs[counted].mean()) if counted.any() else float("nan"),
        differing=tuple(np.flatnonzero(differs).tolist()),
        confused=frozenset(np.flatnonzero(differs & counted).tolist()),
    )


def discriminates(expected: NDArray[np.float64], limit: Limit) -> bool:
    """Say whether mixing up two images would be noticed: most pairs of images must fail the limit.

    Several classes must come first, but for one output: few images of other things pass its threshold.
    """
    import numpy as np

    if len(expected) < 2 or (expected.shape[1] > 1 and len(set(first_classes(expected).tolist())) < 2):
        return False
    first, second = np.triu_indices(len(expected), 1)
    alike = _similarities(expected[first], expected[second]) >= limit.cosine
    return float(alike.mean()) < 0.5


def _similarities(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each pair of rows, lowered where their lengths differ.

    1 - |x - y|^2 / (2 |x|^2) is the cosine where both are equally long. The cosine alone would let scores through that
    are all twice as large, and for two classes it is always 1 or -1. Rows near zero are judged against a tenth of
    the usual length, since rounding is not relative to a row that happens to be small.
    """
    import numpy as np

    lengths = np.linalg.norm(one, axis=1)
    floor = 0.1 * float(np.sqrt((lengths**2).mean()))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (one * other).sum(axis=1) / (lengths * np.linalg.norm(other, axis=1))
        distances = 1 - ((one - other) ** 2).sum(axis=1) / (2 * np.maximum(lengths, floor) ** 2)
        usable = lengths > floor
        similarities: NDArray[np.float64] = np.where(usable, np.minimum(cosines, distances), distances)
    return similarities
