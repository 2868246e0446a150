"""Ten shapes on cluttered backgrounds, drawn from a seed with numpy and Pillow only.

The set serves three purposes: it trains and judges the demo model, it is the default image set of the
verification gate, and it calibrates models with random weights. Hence colour carries information (every shape has
a favourite hue), edges are antialiased, there is sensor noise, and sizes are mixed: a wrong channel order, mean,
resize filter or crop changes what a model answers.

The same seed gives the same pixels wherever Pillow and libjpeg are the same versions; elsewhere they differ by a
few levels at most.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from PIL import Image

Point = tuple[float, float]
Outline = list[Point]
Colour = tuple[int, int, int]

# Crop side / shorter edge of the demo recipe (96 / 112); ImageNet's 224 / 256 keeps a little more.
KEPT_FRACTION = 96 / 112
JPEG_QUALITY = 90
SUPERSAMPLE = 4
SHORTEST_PX, LONGEST_PX = 160, 640
SAMPLE_SIZE_PX = (400, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImage:
    """One drawn JPEG: its name such as `017-star`, its index in `LABELS`, and the encoded bytes."""

    name: str
    label: int
    jpeg: bytes


def _regular_polygon(corners: int) -> Outline:
    return [(math.cos(2 * math.pi * i / corners), math.sin(2 * math.pi * i / corners)) for i in range(corners)]


def _arc(centre_x: float, radius: float, start: float, end: float, points: int = 40) -> Outline:
    angles = [start + (end - start) * i / (points - 1) for i in range(points)]
    return [(centre_x + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _circle(_fatness: float) -> list[Outline]:
    return [_regular_polygon(72)]


def _triangle(_fatness: float) -> list[Outline]:
    return [_regular_polygon(3)]


def _square(_fatness: float) -> list[Outline]:
    return [_regular_polygon(4)]


def _hexagon(_fatness: float) -> list[Outline]:
    return [_regular_polygon(6)]


def _star(fatness: float) -> list[Outline]:
    inner = 0.36 + 0.12 * fatness
    return [[(x * r, y * r) for i, (x, y) in enumerate(_regular_polygon(10)) for r in [1.0 if i % 2 == 0 else inner]]]


def _heart(_fatness: float) -> list[Outline]:
    angles = [2 * math.pi * i / 72 for i in range(72)]
    xs = [16 * math.sin(a) ** 3 for a in angles]
    ys = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [[(x / 17, -y / 17) for x, y in zip(xs, ys, strict=True)]]


def _cross(fatness: float) -> list[Outline]:
    end, half = 0.95, 0.20 + 0.10 * fatness  # of an arm: distance from the centre, half its width
    arm = [(end, -half), (end, half), (half, half)]
    return [[point for quarter in range(4) for point in _turn(arm, quarter * math.pi / 2)]]


def _ring(fatness: float) -> list[Outline]:
    hole = 0.72 - 0.22 * fatness
    return [_regular_polygon(72), [(x * hole, y * hole) for x, y in _regular_polygon(72)]]


def _crescent(fatness: float) -> list[Outline]:
    shift, radius = 0.40 + 0.12 * fatness, 0.80
    tip_x = (1 - radius**2 + shift**2) / (2 * shift)  # where the two circles meet
    outer = math.acos(tip_x)
    inner = math.acos((tip_x - shift) / radius)
    return [_arc(0, 1, outer, 2 * math.pi - outer) + _arc(shift, radius, 2 * math.pi - inner, inner)]


def _arrow(fatness: float) -> list[Outline]:
    shaft = 0.14 + 0.10 * fatness
    return [[(-0.97, -shaft), (0.1, -shaft), (0.1, -0.65), (1, 0), (0.1, 0.65), (0.1, shaft), (-0.97, shaft)]]


# Outlines inside the unit circle (a second outline is a hole) and the favourite hue, 0 to 1. Every shape keeps its
# class under rotation and mirroring, so none may be told apart by its orientation (no diamond beside the square).
_SHAPES: dict[str, tuple[Callable[[float], list[Outline]], float]] = {
    "circle": (_circle, 0.64),
    "triangle": (_triangle, 0.50),
    "square": (_square, 0.07),
    "star": (_star, 0.14),
    "heart": (_heart, 0.98),
    "cross": (_cross, 0.33),
    "ring": (_ring, 0.85),
    "crescent": (_crescent, 0.57),
    "arrow": (_arrow, 0.42),
    "hexagon": (_hexagon, 0.75),
}
LABELS: tuple[str, ...] = tuple(_SHAPES)

# Image `0` of each seed, 400x300: the files of clients/samples.
SAMPLE_SEEDS: dict[str, int] = {"star": 5, "heart": 20, "crescent": 7}


def draw_image(rng: np.random.Generator, label: int, *, width: int, height: int) -> Image.Image:
    """Draw one shape on a cluttered background.

    The shape lies inside the centre square that remains when the shorter edge is resized to 112 and 96x96 are
    cropped, and fills between 44 and 84 % of that square's side.

    Args:
        rng: Source of every choice; drawing advances it.
        label: Index in `LABELS`.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        An RGB image of `width` x `height` pixels.
    """
    image = draw_background(rng, width, height)
    side = min(width, height) * KEPT_FRACTION
    radius = side * rng.uniform(0.22, 0.42)
    reach = side / 2 - radius
    centre_x = width / 2 + rng.uniform(-reach, reach)
    centre_y = height / 2 + rng.uniform(-reach, reach)
    paste_shape(image, rng, label, radius=radius, left=round(centre_x - radius), top=round(centre_y - radius))
    return add_noise(image, rng)


def draw_numbered(seed: int, number: int) -> DrawnImage:
    """Draw image `number` of the set of `seed`: label `number` modulo 10, size and everything else from the seed."""
    label = number % len(LABELS)
    rng = make_rng(seed, number)
    width, height = draw_size(rng)
    image = draw_image(rng, label, width=width, height=height)
    return DrawnImage(name=f"{number:03d}-{LABELS[label]}", label=label, jpeg=encode_jpeg(image))


def draw_set(count: int, *, seed: int = 2024) -> list[DrawnImage]:
    """Draw `count` JPEG images, the classes in turn, landscape and portrait, edges between 160 and 640 pixels.

    Image i depends on the seed and i alone, so a shorter set is the beginning of a longer one.
    """
    return [draw_numbered(seed, number) for number in range(count)]


def write_samples(folder: Path) -> list[Path]:
    """Write the sample images of `SAMPLE_SEEDS` into `folder` as `<label>.jpg`, 400x300, and return their paths."""
    width, height = SAMPLE_SIZE_PX
    paths = []
    for name, seed in SAMPLE_SEEDS.items():
        image = draw_image(make_rng(seed, 0), LABELS.index(name), width=width, height=height)
        path = folder / f"{name}.jpg"
        path.write_bytes(encode_jpeg(image))
        paths.append(path)
    return paths


def make_rng(*seed: int) -> np.random.Generator:
    """Return the generator of these numbers: the same values everywhere."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(seed))


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return a width and a height between 160 and 640 pixels, landscape more often than portrait."""
    longer = int(rng.integers(SHORTEST_PX, LONGEST_PX + 1))
    shorter = max(SHORTEST_PX, round(longer * rng.uniform(0.6, 1.0)))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def encode_jpeg(image: Image.Image) -> bytes:
    """Return the image as the bytes of a JPEG file."""
    import io

    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _random_colour(rng: np.random.Generator, hue: float, saturation: Point, value: Point) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth colour fields with lines and small blobs.

    Drawn at half size and enlarged: soft like something out of focus, and four times cheaper.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    base = np.array(_random_colour(rng, rng.random(), (0.0, 0.7), (0.15, 0.95)))
    cells_x, cells_y = rng.integers(2, 7, size=2)
    cells = np.clip(base + rng.integers(-45, 46, size=(cells_y, cells_x, 3)), 0, 255).astype(np.uint8)
    half_width, half_height = (width + 1) // 2, (height + 1) // 2
    image = Image.fromarray(cells).resize((half_width, half_height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    short = min(half_width, half_height)
    for _ in range(rng.integers(2, 9)):
        ends = rng.uniform(-0.1, 1.1, size=4) * (half_width, half_height, half_width, half_height)
        colour = _random_colour(rng, rng.random(), (0.0, 0.8), (0.1, 1.0))
        pen.line([float(end) for end in ends], fill=colour, width=max(1, round(short * rng.uniform(0.006, 0.025))))
    for _ in range(rng.integers(3, 16)):
        x, y = rng.uniform(0, half_width), rng.uniform(0, half_height)
        a, b = short * rng.uniform(0.01, 0.05, size=2)
        colour = _random_colour(rng, rng.random(), (0.0, 0.9), (0.1, 1.0))
        if rng.random() < 0.5:
            pen.ellipse((x - a, y - b, x + a, y + b), fill=colour)
        else:
            pen.polygon([(x - a, y), (x, y - b), (x + a, y + b * rng.uniform(-1, 1))], fill=colour)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def paste_shape(
    image: Image.Image, rng: np.random.Generator, label: int, *, radius: float, left: int, top: int
) -> tuple[float, float, float, float]:
    """Paste the shape with its circumscribed square's corner at (`left`, `top`) into `image`.

    Returns:
        The box around what is seen of it: left, top, right, bottom in quarters of a pixel.
    """
    from PIL import Image

    make_outlines, favourite_hue = _SHAPES[LABELS[label]]
    mask, seen = _draw_mask(rng, make_outlines(rng.random()), radius)
    box = (left, top, left + mask.width, top + mask.height)
    behind = image.resize((1, 1), Image.Resampling.BOX, box=_inside(box, image.size)).getpixel((0, 0))
    assert isinstance(behind, tuple)
    # Half of the time the favourite hue: colour hints at the class, only the form decides it.
    hue = favourite_hue + rng.normal(0, 0.03) if rng.random() < 0.5 else rng.random()
    colour = _contrasting_colour(rng, hue, behind)
    shading = rng.integers(-22, 23, size=(2, 2, 1)) + colour
    fill = Image.fromarray(shading.clip(0, 255).astype("uint8")).resize(mask.size, Image.Resampling.BILINEAR)
    image.paste(fill, box, mask)
    return left + seen[0], top + seen[1], left + seen[2], top + seen[3]


def _draw_mask(
    rng: np.random.Generator, outlines: list[Outline], radius: float
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Rotate and slightly stretch the outlines; returns the antialiased mask, 2 x `radius` a side, and its box."""
    from PIL import Image, ImageDraw

    side = max(1, math.ceil(2 * radius))
    mask = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
    pen = ImageDraw.Draw(mask)
    angle, stretch_angle = rng.uniform(0, 2 * math.pi, size=2)
    squeeze = rng.uniform(0.88, 1.0)
    scale, middle = radius * SUPERSAMPLE, side * SUPERSAMPLE / 2
    for outline, level in zip(outlines, (255, 0), strict=False):
        turned = _turn(outline, stretch_angle)
        placed = _turn([(x * squeeze, y) for x, y in turned], angle)
        pen.polygon([(middle + scale * x, middle + scale * y) for x, y in placed], fill=level)
    if rng.random() < 0.3:  # a thin thing in front of the shape
        ends = rng.uniform(0, mask.width, size=4)
        pen.line([float(end) for end in ends], fill=0, width=max(1, round(0.06 * scale)))
    edges = mask.getbbox()
    assert edges is not None
    mask = mask.reduce(SUPERSAMPLE)
    opacity = rng.uniform(0.85, 1.0)
    left, top, right, bottom = (edge / SUPERSAMPLE for edge in edges)
    return mask.point([round(opacity * level) for level in range(256)]), (left, top, right, bottom)


def _turn(outline: Outline, angle: float) -> Outline:
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in outline]


def _inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    return max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3])


def _contrasting_colour(rng: np.random.Generator, hue: float, behind: tuple[float, ...]) -> Colour:
    """A colour of `hue` that stands out from `behind` in brightness, or the best of eight tries."""
    best, best_contrast = (0, 0, 0), -1.0
    for _ in range(8):
        colour = _random_colour(rng, hue, (0.35, 1.0), (0.15, 1.0))
        contrast = abs(_brightness(colour) - _brightness(behind)) + 0.2 * math.dist(colour, behind)
        if contrast > best_contrast:
            best, best_contrast = colour, contrast
        if contrast >= 85:
            break
    return best


def _brightness(colour: tuple[float, ...]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def add_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add brightness noise, triangular between plus and minus 4 to 20 levels, like a sensor's."""
    import numpy as np
    from PIL import Image

    amplitude = int(rng.integers(2, 11))
    noise = rng.integers(-amplitude, amplitude + 1, size=(2, image.height, image.width, 1), dtype=np.int8)
    noisy = np.asarray(image).astype(np.int16) + noise[0] + noise[1]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
