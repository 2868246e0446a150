"""Image files in, pixels out: decode, resize, crop or pad. Runs inside Triton's Python backend.

The recipe comes from `parameters` in config.pbtxt, so this file is the same for every model. It needs numpy and
Pillow, nothing else. IMAGE is BYTES [N, 1], one encoded image each, as it is or as base64 text; PIXELS is UINT8 [N,
height, width, 3], RGB, or [N, height, width, 1], grey. GEOMETRY, where config.pbtxt has it, is FP32 [N, 6]: how each
original became its pixels.
Normalisation is part of the network: four times fewer bytes travel between here and there.

Each request is answered for itself: one with an image that cannot be decoded gets INVALID_ARG with the image's index
and the reason, the others of the same execution get their pixels.
"""

import binascii
import contextlib
import ctypes
import io
import json
import math
import re
import struct
import warnings

import numpy as np
import PIL
import triton_python_backend_utils as pb_utils
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# How base64 text of each format begins, also behind what makes it a data URL. No image file itself begins so.
_BASE64_IMAGE = re.compile(
    rb"[ \t\r\n]{0,64}(?:data:image/[\w.+-]{1,64};base64,)?(?=/9j/|iVBORw0KGg|UklGR|R0lGOD|Qk[0-3])"
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # EXIF's tag, and what turns an image with each of its values upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A strip of 3x700 pixels would be resized to 256x59733 for one crop in its middle.
_MOST_WASTE = 16
# How far each filter reaches, in pixels of the resized image where that is the smaller one.
_SUPPORT = {
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.BICUBIC: 2.0,
    Image.Resampling.LANCZOS: 3.0,
}
# glibc's names for what malloc asks the system for by itself, and what it keeps of what was freed, in bytes
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LARGEST_KEPT, _MOST_KEPT = 32 << 20, 128 << 20

# Pillow's own limit holds while a file is read (see `_limit`), and would be in the way of resizing.
Image.MAX_IMAGE_PIXELS = None


class BadImageError(ValueError):
    """The bytes are no image that we serve; the message says why."""


class Recipe:
    """Resize, crop, padding and limits, read from the text parameters of config.pbtxt."""

    def __init__(self, parameters):
        values = {name: parameter["string_value"] for name, parameter in parameters.items()}
        self.resize = [int(edge) for edge in values["resize"].split()]
        self.crop = tuple(int(edge) for edge in values["crop"].split())
        self.fit = values.get("fit", "crop")
        self.floor = values.get("rounding") == "floor"
        self.is_grey = values.get("channels") == "grey"
        self.shape = (*self.crop, 1 if self.is_grey else 3)
        fill = Image.new("RGB", (1, 1), tuple(int(level) for level in values.get("fill", "0 0 0").split()))
        self.fill = (fill.convert("L") if self.is_grey else fill).getpixel((0, 0))
        # None: bilinear without antialiasing, which is no filter of Pillow's `resize`
        self.filter = None if values["interpolation"] == "linear" else Image.Resampling[values["interpolation"].upper()]
        self.apply_exif = values["exif"] == "apply"
        self.max_pixels = int(values["max_pixels"])
        self.max_bytes = int(values["max_bytes"])
        self.pillow = values.get("pillow", PIL.__version__)

    def resized(self, width, height):
        """Return (width, height) after resizing.

        One edge given: the shorter gets that length, the longer is truncated. Two: both, or as much as fits into them.
        """
        if self.fit.startswith("letterbox"):
            ratio = min(self.resize[0] / height, self.resize[1] / width)
            whole = int if self.fit == "letterbox-corner" else round  # as YOLOX and as YOLOv5 do
            return max(whole(width * ratio), 1), max(whole(height * ratio), 1)
        if len(self.resize) == 2:
            return self.resize[1], self.resize[0]
        edge = self.resize[0]
        if width <= height:
            return edge, int(edge * height / width)
        return int(edge * width / height), edge

    def corner(self, spare):
        """Return where the crop begins on an axis with `spare` pixels more than it; negative where it is padded."""
        if self.fit == "letterbox-corner":
            return 0
        if spare < 0:
            return -(-spare // 2)
        return spare // 2 if self.floor else round(spare / 2.0)  # transformers; torchvision and timm: half to even

    def geometry(self, width, height):
        """Return how an image of this size becomes pixels: x * scale x + left, y * scale y + top; and its size."""
        resized = self.resized(width, height)
        left, top = (-self.corner(edge - crop) for edge, crop in zip(resized, reversed(self.crop), strict=True))
        return resized[0] / width, resized[1] / height, left, top, width, height

    def cropped(self, image):
        """Return the image resized and cropped, or padded, around its centre: (height, width, channels)."""
        if self.is_grey:
            image = image.convert("L")
        width, height = self.resized(image.width, image.height)
        crop_height, crop_width = self.crop
        left, top = self.corner(width - crop_width), self.corner(height - crop_height)
        start_x, start_y = max(left, 0), max(top, 0)
        end_x, end_y = min(left + crop_width, width), min(top + crop_height, height)
        part = resize_part(image, (width, height), (start_x, start_y, end_x - start_x, end_y - start_y), self.filter)
        if part.size != (crop_width, crop_height):
            canvas = Image.new(image.mode, (crop_width, crop_height), self.fill)
            canvas.paste(part, (start_x - left, start_y - top))
            part = canvas
        return np.asarray(part).reshape(self.shape)


def resize_part(image, size, part, resample):
    """Return exactly what `image.resize(size).crop(part)` gives, for less; `part` is (left, top, width, height).

    Pillow resizes one axis after the other. Here each has a call of its own, and what the part does not need is left
    out in between. Each axis is resized at its whole length: given a box, Pillow keeps its ends in single precision,
    which turns exact halves into other levels, and may also take the axes in another order.
    """
    width, height = size
    left, top, part_width, part_height = part
    right, bottom = left + part_width, top + part_height
    if resample is None:
        scale_x, scale_y = image.width / width, image.height / height
        matrix = (scale_x, 0, left * scale_x, 0, scale_y, top * scale_y)
        return image.transform((part_width, part_height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    if width * height > _MOST_WASTE * part_width * part_height:  # a thin strip, where a level more or less is no matter
        scale_x, scale_y = image.width / width, image.height / height
        box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        return image.resize((part_width, part_height), resample, box=box)
    if resample == Image.Resampling.NEAREST:
        return image.resize(size, resample).crop((left, top, right, bottom))
    if _TALL_FIRST and image.height > height and image.height - height > 2 * (image.width - width):
        low, high = _needed(image.width, width, left, right, resample)
        band = image.crop((low, 0, high, image.height)).resize((high - low, height), resample)
        whole = band.crop((-low, top, image.width - low, bottom))  # black where nothing is read
        return whole.resize((width, part_height), resample).crop((left, 0, right, part_height))
    low, high = _needed(image.height, height, top, bottom, resample)
    band = image.crop((0, low, image.width, high)).resize((width, high - low), resample)
    whole = band.crop((left, -low, right, image.height - low))
    return whole.resize((part_width, height), resample).crop((0, top, part_width, bottom))


def _needed(length, resized, start, end, resample):
    """Return from which to which pixel of one axis the filter reads for the resized ones from `start` to `end`."""
    scale = length / resized
    reach = _SUPPORT[resample] * max(scale, 1.0) + 1.0
    return max(math.floor(start * scale - reach), 0), min(math.ceil(end * scale + reach), length)


def _takes_tall_images_vertically_first():
    """Say whether this Pillow does as 13.0 does: heights that shrink more than twice as much as widths go first."""
    image = Image.frombytes("L", (8, 64), bytes(x * y * 37 % 256 for y in range(64) for x in range(8)))
    bilinear = Image.Resampling.BILINEAR
    return image.resize((7, 32), bilinear) == image.resize((8, 32), bilinear).resize((7, 32), bilinear)


_TALL_FIRST = _takes_tall_images_vertically_first()


def to_rgb(image):
    """Return the image in RGB: transparency on white, 16 bits scaled to 8, everything else as Pillow converts it."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535).astype(np.uint16)
        # divided by 257 and rounded, without leaving 16 bits: a small file may hold 50 million levels
        return Image.fromarray((levels // 257 + (levels % 257 > 128)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", foreground.size, _WHITE)
        return Image.alpha_composite(background, foreground).convert("RGB")
    return image.convert("RGB")


def upright(image):
    """Return the image turned as its EXIF orientation says; EXIF that cannot be read says nothing.

    Pillow's exif_transpose also writes the EXIF anew, and stumbles over what else is in it.
    """
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except (LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        turn = None
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _limit(pixels):
    """Let Pillow itself refuse twice as many pixels, and not fill the log with what it finds odd.

    It makes the canvas of a GIF, gigabytes if a few bytes in the file say so, before anybody can ask for its size.
    """
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = None


def from_base64(data):
    """Return the image file that base64 text stands for, and any other bytes as they are.

    Such text is all that a client can send whose requests are JSON. The first bytes decide, so that an image that
    comes as it is costs nothing here.
    """
    start = _BASE64_IMAGE.match(data)
    if start is None:
        return data
    text = data[start.end() :].translate(None, b" \t\r\n")
    end = _BASE64.match(text).end()
    if text[end:] not in (b"", b"=", b"=="):
        wrong = ascii(text[end : end + 1].decode("latin-1"))
        raise BadImageError(f"base64 text with {wrong} behind {end} characters, A-Z a-z 0-9 + / were expected")
    if len(text) % 4:
        raise BadImageError(f"base64 text of {len(text)} characters, a multiple of 4 was expected")
    return binascii.a2b_base64(text)


def decode(data, recipe):
    """Return the pixels (height, width, channels) of one encoded image, or raise BadImageError."""
    return recipe.cropped(open_image(data, recipe))


def open_image(data, recipe):
    """Return one encoded image in RGB, turned upright where the recipe says so, or raise BadImageError."""
    if not data:
        raise BadImageError("no bytes, an encoded image was expected")
    data = from_base64(data)
    if len(data) > recipe.max_bytes:
        raise BadImageError(f"{len(data)} bytes, at most {recipe.max_bytes} are accepted")
    try:
        with _limit(recipe.max_pixels):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > recipe.max_pixels:
                raise BadImageError(f"{image.width}x{image.height} pixels, at most {recipe.max_pixels} are accepted")
            image.load()
            return to_rgb(upright(image) if recipe.apply_exif else image)
    except Image.DecompressionBombError:
        most = recipe.max_pixels
        raise BadImageError(f"more than {2 * most} pixels, at most {most} are accepted") from None
    except PIL.UnidentifiedImageError:
        raise BadImageError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError(f"broken image: {error}") from None


def keep_freed_memory():
    """Let malloc keep what an image took for the next one; up to 128 MiB per process, photographs of 12 megapixels.

    Where glibc gives it back to the system, which depends on the size and on what lies above it in the heap, the next
    image pays a page fault per 4 KiB: a quarter to a third of the time of decoding, resizing and cropping.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


class TritonPythonModel:
    """What Triton calls: initialize once per instance, execute for every batch of requests."""

    def initialize(self, args):
        """Read the recipe; warn where Pillow is another version than the one the pixels were proved with."""
        keep_freed_memory()
        config = json.loads(args["model_config"])
        self.recipe = Recipe(config["parameters"])
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        self.tells_geometry = len(config["output"]) > 1
        if self.recipe.pillow != PIL.__version__:
            pb_utils.Logger.log_warn(
                f"{args['model_name']}: Pillow is {PIL.__version__}, the pixels were proved with {self.recipe.pillow}: "
                "install that version, or run `trtgen verify` against this server"
            )

    def execute(self, requests):
        """Return one response per request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        images = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy().reshape(-1)
        pixels = np.empty((len(images), *self.recipe.shape), np.uint8)
        geometry = np.empty((len(images), 6), np.float32)
        for index, data in enumerate(images):
            try:
                image = open_image(data, self.recipe)
                pixels[index] = self.recipe.cropped(image)
            except BadImageError as error:
                message = f"{self.input}[{index}] of {len(images)}: {error}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
            geometry[index] = self.recipe.geometry(*image.size)
        answers = [pb_utils.Tensor(self.output, pixels)]
        if self.tells_geometry:
            answers.append(pb_utils.Tensor("GEOMETRY", geometry))
        return pb_utils.InferenceResponse(answers)
