"""The likely cause of a failed stage, found by trying the usual mistakes on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from generator.spec.recipe import Interpolation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference

NAN = "an overflow, a division by zero, or broken weights"


def of_pixels(candidate: Candidate, reference: Reference, pixels: NDArray[np.uint8]) -> str:
    """Say why pixels differ: channel order, interpolation, EXIF rotation."""
    import numpy as np

    from generator.images.training_pixels import prepare

    def levels(one: NDArray[np.uint8]) -> int:
        return int(np.abs(one.astype(np.int16) - pixels.astype(np.int16)).max())

    if levels(reference.pixels[..., ::-1]) <= 1:
        return "the channels are in BGR order, the source takes RGB"
    for other in get_args(Interpolation):
        if other != candidate.artifact.recipe.interpolation:
            recipe = candidate.artifact.recipe.model_copy(update={"interpolation": other})
            if levels(prepare(recipe, reference.files)) <= 1:
                return (
                    f"interpolation is {other}, the source was trained with {candidate.artifact.recipe.interpolation}"
                )
    exif = "apply" if candidate.artifact.recipe.exif == "ignore" else "ignore"
    if levels(prepare(candidate.artifact.recipe.model_copy(update={"exif": exif}), reference.files)) <= 1:
        return f"EXIF orientation is handled as {exif!r}, the recipe says {candidate.artifact.recipe.exif!r}"
    return "resize, crop, antialiasing or the decoder differ from the source's transforms"
