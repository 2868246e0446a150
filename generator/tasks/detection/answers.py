"""The source's own answers: its best rows, and what it says of single anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import VerificationError
from generator.images.reference import RANDOM_HINT
from generator.images.sets import ImageSet, extreme_images, photographs
from generator.tasks.detection.anchors import sample_anchors
from generator.tasks.detection.decode import decode, select_rows
from generator.tasks.detection.reading import find_reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

# Some 100 boxes that the demo detector is sure of; fewer for large networks, whose pixels and time on a CPU count.
_DRAWN, _DRAWN_FOR_LARGE, _LARGE = 40, 10, 320
_SCENES_SEED = 11
# RetinaNet at 640 pixels answers 28 MB an image.
_BATCH = 4
# Two runs of one image on the CPU differ by the order of summation only; of the largest value, if that is above 1.
_REPEATABLE = 1e-3


def default_images(recipe: Recipe) -> ImageSet:
    """Return drawn scenes, the extremes and the photographs: the same on every machine with the same Pillow."""
    from generator.demo.scenes import draw_scenes

    scenes = draw_scenes(_DRAWN if max(recipe.crop) <= _LARGE else _DRAWN_FOR_LARGE, seed=_SCENES_SEED)
    others = [extreme_images(), photographs()]
    return ImageSet(
        names=(*(f"{scene.name}.jpg" for scene in scenes), *(name for one in others for name in one.names)),
        files=(*(scene.jpeg for scene in scenes), *(file for one in others for file in one.files)),
    )


def make_answers(
    spec: ModelSpec, network: Network, pixels: NDArray[np.uint8], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Return the source's best rows and a sample of its anchors, both as decoded here.

    `boxes` FP32 (N, K, 4), `scores` FP32 (N, K) and `classes` INT32 (N, K) are what the graph has to answer;
    `anchor_boxes` (N, S, 4) and `anchor_scores` (N, S, C) about 300 evenly spaced anchors before that.

    Raises:
        VerificationError: The source answers NaN or infinity, or the same image differently twice.
    """
    import numpy as np

    reading = find_reading(spec, network)

    def answer(batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        dense = decode(reading, network.run(batch), network.recipe.crop)
        rows = select_rows(dense, reading)
        sample = sample_anchors(dense.boxes.shape[1])
        return {
            "boxes": rows.boxes,
            "scores": rows.scores,
            "classes": rows.classes,
            "anchor_boxes": dense.boxes[:, sample],
            "anchor_scores": dense.scores[:, sample],
            "finite": np.isfinite(dense.boxes).all(axis=(1, 2)) & np.isfinite(dense.scores).all(axis=(1, 2)),
        }

    parts = [answer(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if broken := [names[index] for index in np.flatnonzero(~answers.pop("finite"))]:
        msg = f"the source answers NaN or infinity for {len(broken)} of {len(names)} images: {', '.join(broken[:5])}"
        hint = "look for a division by zero, a logarithm of zero or an overflow in the model, and bound it"
        raise VerificationError(msg, hint=hint)
    again = answer(pixels[:1])
    for name in ("anchor_boxes", "anchor_scores"):  # rows with equal scores may change places
        difference = float(np.abs(again[name] - answers[name][:1]).max())
        if difference > _REPEATABLE * max(1.0, float(np.abs(answers[name]).max())):
            msg = f"the source answers {names[0]} differently twice, by {difference:.2g}: nothing can be compared"
            raise VerificationError(msg, hint=RANDOM_HINT)
    return answers
