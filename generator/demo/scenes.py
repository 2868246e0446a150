"""Scenes of one to six drawn shapes with their boxes, from a seed: what the demo detector is trained and judged on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.demo.draw import LABELS, add_noise, draw_background, draw_size, encode_jpeg, make_rng, paste_shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_SHAPES = 6
# Of the image's longer edge; small ones are more frequent.
SMALLEST_RADIUS, LARGEST_RADIUS = 0.06, 0.24
# Two circumscribed circles may come this close, as a share of both radii: corners overlap, no shape hides another.
CLOSEST = 0.85
PLACES_TRIED = 20
# Tells the scenes of a seed from `draw_set`'s images of the same seed.
_STREAM = 15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """One drawn JPEG and its shapes in the order of drawing, a later one in front of an earlier one.

    `boxes` is FP32 (N, 4): left, top, right, bottom in pixels of the image, tight around each shape as if nothing lay
    in front of it. `classes` is int64 (N,), indices in `LABELS`.
    """

    name: str
    jpeg: bytes
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


def draw_scene(seed: int, number: int, *, fewest: int = 1) -> Scene:
    """Draw scene `number` of `seed`: how many shapes, which, where, and everything else from these two numbers.

    It has `fewest` to six shapes, fewer only where there is hardly room.
    """
    import numpy as np

    rng = make_rng(seed, number, _STREAM)
    width, height = draw_size(rng)
    image = draw_background(rng, width, height)
    circles: list[tuple[float, float, float]] = []
    boxes, classes = [], []
    for _ in range(int(rng.integers(fewest, MOST_SHAPES + 1))):
        circle = _find_place(rng, width, height, circles)
        if circle is None:
            break
        circles.append(circle)
        x, y, radius = circle
        classes.append(int(rng.integers(len(LABELS))))
        boxes.append(paste_shape(image, rng, classes[-1], radius=radius, left=round(x - radius), top=round(y - radius)))
    edges = np.clip(np.array(boxes, np.float32), 0, np.array([width, height] * 2, np.float32))
    return Scene(
        name=f"scene-{number:03d}",
        jpeg=encode_jpeg(add_noise(image, rng)),
        boxes=edges,
        classes=np.array(classes, np.int64),
    )


def draw_scenes(count: int, *, seed: int = 2024) -> tuple[Scene, ...]:
    """Draw `count` scenes. Scene i depends on the seed and i alone: fewer are the beginning of more."""
    return tuple(draw_scene(seed, number) for number in range(count))


def _find_place(
    rng: np.random.Generator, width: int, height: int, taken: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Return centre and radius of a circle inside the image and beside those `taken`; None if there is hardly room."""
    for _ in range(PLACES_TRIED):
        share = rng.random()
        radius = max(width, height) * (SMALLEST_RADIUS + (LARGEST_RADIUS - SMALLEST_RADIUS) * share * share)
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if all(math.dist((x, y), other[:2]) > CLOSEST * (radius + other[2]) for other in taken):
            return x, y, radius
    return None
