"""What a client prints for an image: its boxes, best first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def make_rows(
    outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int
) -> list[list[dict[str, Any]]]:
    """Return `label`, `index`, `score` and `box` (left, top, right, bottom in pixels) of each image's best boxes."""
    images = zip(*(outputs[name] for name in ("NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES")), strict=True)
    return [
        [
            {
                "label": None if labels is None else labels[index],
                "index": int(index),
                "score": float(score),
                "box": [float(edge) for edge in box],
            }
            for box, score, index in zip(
                boxes[: number[0]][:top], scores[: number[0]][:top], classes[: number[0]][:top], strict=True
            )
        ]
        for number, boxes, scores, classes in images
    ]
