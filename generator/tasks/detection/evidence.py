"""What a detector's own answers say against a reading of them.

The gate compares with what the reading makes of these answers, so it would not see a wrong one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.tasks.detection.decode import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from generator.sources import Network
    from generator.tasks.detection.reading import Reading

# In pixels: as far as boxes from 0 to 1 may reach.
_SMALL = 4.0
# The share of the image in whose corner not all boxes lie.
_CORNER = 1 / 8
# In edges of the image: half of the boxes do not lie beyond.
_FAR = 8.0


def check_answers(reading: Reading, network: Network) -> None:
    """Let the source answer three images, and compare with what the reading says of boxes, scores and classes.

    Raises:
        SourceError: They contradict it.
    """
    import numpy as np

    # numbers as they came
    asis = replace(
        reading,
        layout="scores" if reading.layout == "logits" else reading.layout,
        boxes="xyxy",
        units="pixels",
        background=None,
    )
    dense = decode(asis, network.run(_make_pixels(network)), network.recipe.crop)
    if not (np.isfinite(dense.boxes).all() and np.isfinite(dense.scores).all()):
        return  # the proof of the batch says so
    edge = max(network.recipe.crop)
    found = [*_of_scores(reading, dense.scores), *_of_boxes(reading, dense.boxes, edge)]
    if dense.classes is not None:
        found += _of_classes(reading, dense.classes)
    for reason, field, value in found[:1]:
        msg = f"{network.onnx}: {', '.join(reading.tensors)} read as {reading.layout}: {reason}"
        if not field:
            raise SourceError(msg, hint=value)
        fields: dict[str, object] = {"detection": f"{field}={value}"}
        raise SourceError(msg, hint=f"set detection.{field}: {value}", fields=fields)


def _make_pixels(network: Network) -> NDArray[np.uint8]:
    """Return two photographs and noise, as the network gets them."""
    import numpy as np

    from generator.images.sets import photographs
    from generator.images.training_pixels import prepare

    noise = np.random.default_rng(5).integers(0, 256, (1, *network.recipe.shape), np.uint8)
    return np.concatenate([prepare(network.recipe, photographs().files, network.pixels), noise])


def _of_scores(reading: Reading, scores: NDArray[np.float32]) -> Iterator[tuple[str, str, str]]:
    low, high = float(scores.min()), float(scores.max())
    are_probabilities = low > -1e-3 and high < 1 + 1e-3
    reach = f"its scores reach from {low:.3g} to {high:.3g}"
    if reading.layout == "logits" and are_probabilities:
        yield f"{reach}, so they are no logits", "layout", "scores"
    elif reading.layout == "scores" and not are_probabilities:
        yield f"{reach}, so they are no probabilities", "layout", "logits"
    elif reading.layout != "logits" and not are_probabilities:
        yield f"{reach}, 0 to 1 was expected", "", "set another detection.layout, or export it with its scores' sigmoid"


def _of_boxes(reading: Reading, boxes: NDArray[np.float32], edge: int) -> Iterator[tuple[str, str, str]]:
    import numpy as np

    sizes = np.abs(boxes)
    farthest = f"no box reaches beyond {sizes.max():.3g} pixels"
    if reading.units == "pixels" and sizes.max() <= _SMALL:
        yield farthest, "units", "normalised"
    elif reading.units == "pixels" and sizes.max() <= edge * _CORNER:
        yield farthest, "", "export it with its boxes decoded to pixels (--decode_in_inference with YOLOX)"
    if reading.units == "normalised" and np.median(sizes) > _FAR:
        yield f"half of its numbers are beyond {np.median(sizes):.3g} times the image", "units", "pixels"
    ordered = (boxes[..., 2:] >= boxes[..., :2]).all(axis=-1)
    if reading.boxes == "xyxy" and ordered.mean() < 0.5:
        share = f"{1 - ordered.mean():.0%}"
        yield (
            f"of {share} of its boxes the right edge is left of the left one, or the lower above the upper",
            "boxes",
            "cxcywh",
        )
    if reading.boxes == "cxcywh" and ordered.all():
        yield "of all of its boxes the last two numbers are above the first two, as corners are", "boxes", "xyxy"


def _of_classes(reading: Reading, classes: NDArray[np.int32]) -> Iterator[tuple[str, str, str]]:
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= reading.classes:
        hint = "set labels to a file with a line for every number, from 0"
        yield f"its classes are {low} to {high}, but there are {reading.classes}, from 0", "", hint
