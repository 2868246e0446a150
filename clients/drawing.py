"""Boxes with their labels on a picture. Needs Pillow.

picture = draw_boxes(open_picture(data, apply_exif=model.applies_exif), detections)
"""

from __future__ import annotations

import colorsys
import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from triton_images import Detection

    Rectangle = tuple[float, float, float, float]

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
# Neighbouring indices get hues far apart, and none comes back soon.
GOLDEN_RATIO = 0.618034
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def open_picture(data: bytes, *, apply_exif: bool) -> Image.Image:
    """Return an encoded image as the server sees it: in RGB, on white, turned upright only with `apply_exif`.

    Raises:
        ValueError: Pillow cannot read it.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # the server has its own limit, and has taken it
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise ValueError(f"Pillow cannot read it: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if apply_exif:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = image.convert("I").point(lambda level: level / 257).convert("L")
    picture = Image.new("RGB", image.size, WHITE)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        picture.paste(image, mask=image)
    else:
        picture.paste(image.convert("RGB"))
    return picture  # without EXIF, or viewers would turn it


def draw_boxes(picture: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """Draw on the picture, the best boxes last; one colour per class, widths by the picture's size. Returns it."""
    width = max(2, round(max(picture.size) / 300))
    font = _load_font(max(11, round(max(picture.size) / 45)))
    draw = ImageDraw.Draw(picture)
    for one in reversed(detections):
        _draw_frame(draw, one.box, width, choose_colour(one.index))
    taken: list[Rectangle] = []
    for one in detections:
        text = f"{one.label or f'class {one.index}'} {one.score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        size = (right + left + width, bottom + top)
        place = _find_place(one.box, size, picture.size, taken)
        taken.append(place)
        colour = choose_colour(one.index)
        draw.rectangle(place, fill=colour, outline=_opposite(colour))
        draw.text((place[0] + width / 2, place[1]), text, fill=_opposite(colour), font=font)
    return picture


def encode_picture(picture: Image.Image, suffix: str) -> bytes:
    """Return the picture in the format of a file's suffix.

    Raises:
        ValueError: The format cannot hold it: it is too large.
    """
    stream = io.BytesIO()
    quality = {"quality": 92} if FORMATS[suffix] in ("JPEG", "WEBP") else {}
    try:
        picture.save(stream, FORMATS[suffix], **quality)
    except OSError as error:  # WebP ends at 16,383 pixels
        raise ValueError(f"{FORMATS[suffix]} cannot hold it: {error}") from None
    return stream.getvalue()


def choose_colour(index: int) -> tuple[int, int, int]:
    """Return the bright colour of a class."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:  # Pillow's own font has few letters beyond ASCII
        return ImageFont.load_default(size)


def _opposite(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever reads better on the colour."""
    red, green, blue = colour
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else WHITE


def _draw_frame(draw: ImageDraw.ImageDraw, box: Rectangle, width: int, colour: tuple[int, int, int]) -> None:
    """Draw a frame between two thin lines, dark and light, so that it shows on every ground."""
    left, top, right, bottom = box
    for inset, line, ink in ((-1, 1, BLACK), (width, 1, WHITE), (0, width, colour)):
        edges = (left + inset, top + inset, right - inset, bottom - inset)
        if edges[0] <= edges[2] and edges[1] <= edges[3]:
            draw.rectangle(edges, outline=ink, width=line)


def _find_place(
    box: Rectangle, size: tuple[float, float], picture: tuple[int, int], taken: Iterable[Rectangle]
) -> Rectangle:
    """Return where a label goes: above its box, else in it or below it, where it covers no other label."""
    width, height = size
    left = max(min(box[0], picture[0] - 1 - width), 0)
    inside_first = box[3] - box[1] > 3 * height
    wished = (box[1] - height, *((box[1], box[3]) if inside_first else (box[3], box[1])))
    tops = [max(min(top, picture[1] - 1 - height), 0) for top in wished]
    places = [(left, top, left + width, top + height) for top in tops]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
