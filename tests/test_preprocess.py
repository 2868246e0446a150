"""The preprocessing step's own code against torchvision's transforms, image by image.

The step runs inside Triton; here its pure part is imported with the one module that only Triton has left empty.
What it answers over the wire is tested with a real server in test_chain.py.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generator.demo.draw import draw_set
from generator.images.sets import photographs
from generator.images.training_pixels import make_pixels
from generator.render import template_root
from generator.spec.recipe import IMAGENET, Recipe


@pytest.fixture(scope="module")
def step() -> Any:
    """The module templates/preprocess/1/model.py."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("preprocess_step", template_root() / "preprocess" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del sys.modules["triton_python_backend_utils"]
    return module


def read(step: Any, recipe: Recipe) -> Any:
    return step.Recipe({name: {"string_value": value} for name, value in recipe.parameters().items()})


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 31 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


RECIPES = {
    "imagenet": IMAGENET,
    "bicubic": IMAGENET.model_copy(update={"interpolation": "bicubic"}),
    "nearest": IMAGENET.model_copy(update={"interpolation": "nearest"}),
    "odd crop": Recipe.model_validate({**IMAGENET.model_dump(), "resize": 235, "crop": (224, 111)}),
    "both edges": Recipe.model_validate({**IMAGENET.model_dump(), "resize": (240, 300), "crop": (224, 256)}),
    "lanczos, no crop": Recipe.model_validate(
        {**IMAGENET.model_dump(), "resize": (96, 96), "crop": (96, 96), "interpolation": "lanczos"}
    ),
}
CHANGES: dict[str, dict[str, Any]] = {
    "floor": {"rounding": "floor", "resize": 235, "crop": (224, 111)},
    "letterbox": {"fit": "letterbox", "resize": 224, "fill": (114, 20, 3)},
    "letterbox, wide": {"fit": "letterbox", "resize": (100, 333), "crop": (100, 333), "interpolation": "bicubic"},
    "border": {"fit": "letterbox", "resize": 255, "fill": (124, 116, 104)},
    "corner": {"fit": "letterbox-corner", "resize": 224, "fill": (114, 114, 114)},
    "grey": {"channels": "grey", "mean": 0.5, "std": 0.5},
    "grey letterbox": {
        "channels": "grey",
        "mean": 0.5,
        "std": 0.5,
        "fit": "letterbox",
        "resize": 224,
        "fill": (9, 99, 200),
    },
}
for _name, _changes in CHANGES.items():
    RECIPES[_name] = Recipe.model_validate({**IMAGENET.model_dump(), **_changes})
LINEAR = {
    name: Recipe.model_validate({**RECIPES[name].model_dump(), "interpolation": "linear"})
    for name in ("imagenet", "both edges", "letterbox", "corner", "grey")
}
SIZES = [
    (500, 375),
    (375, 500),
    (224, 224),
    (100, 80),
    (257, 1023),
    (2048, 300),
    (1, 1),
    (30, 40),
    (3, 700),
    (700, 3),
    (362, 518),
    (260, 1000),
]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_training(step: Any, name: str, size: tuple[int, int]) -> None:
    recipe = RECIPES[name]
    image = noise(*size)
    ours = step.decode(encode(image), read(step, recipe)).astype(int)
    difference = np.abs(ours - make_pixels(recipe)(image).astype(int))
    if max(size) > 100 * min(size):
        # only the part is resized then, and each release of Pillow has treated such strips in a way of its own
        assert difference.mean() < 3
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("size", SIZES)
def test_linear_pixels_are_within_a_level_of_torchs_own(step: Any, name: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = step.decode(encode(image), read(step, LINEAR[name])).astype(int)
    assert np.abs(ours - make_pixels(LINEAR[name])(image).astype(int)).max() <= 1


def test_linear_does_not_antialias(step: Any) -> None:
    image = noise(1000, 1000)
    ours = [step.decode(encode(image), read(step, one)).astype(int) for one in (LINEAR["imagenet"], IMAGENET)]
    assert np.abs(ours[0] - ours[1]).max() > 50


def test_photographs_too(step: Any) -> None:
    for data in photographs().files:
        expected = make_pixels(IMAGENET)(Image.open(io.BytesIO(data))).astype(int)
        assert np.array_equal(step.decode(data, read(step, IMAGENET)).astype(int), expected)


@pytest.mark.parametrize("recipe", [IMAGENET, IMAGENET.model_copy(update={"resize": 232}), RECIPES["bicubic"]])
def test_drawn_images_too(step: Any, recipe: Recipe) -> None:
    for drawn in draw_set(60, seed=77):
        expected = make_pixels(recipe)(Image.open(io.BytesIO(drawn.jpeg)))
        assert np.array_equal(step.decode(drawn.jpeg, read(step, recipe)), expected)


def test_a_strip_takes_no_more_than_its_part(step: Any) -> None:
    """One pixel wide and a million long: resized as a whole it would take 200 gigabytes."""
    assert step.decode(encode(Image.new("L", (1, 1_000_000), 7)), read(step, IMAGENET)).shape == (224, 224, 3)


def colour_of(step: Any, data: bytes, recipe: Recipe = IMAGENET) -> list[int]:
    pixels = step.decode(data, read(step, recipe))
    return [int(value) for value in pixels[112, 112]]


def test_other_kinds_of_images(step: Any) -> None:
    red = Image.new("RGB", (40, 30), (200, 30, 40))
    assert colour_of(step, encode(red.convert("CMYK"), "JPEG", quality=95)) == pytest.approx([200, 30, 40], abs=4)
    assert colour_of(step, encode(red.convert("L"))) == [82, 82, 82]
    assert colour_of(step, encode(red.quantize(4))) == pytest.approx([200, 30, 40], abs=2)
    assert colour_of(step, encode(red, "WEBP", lossless=True)) == [200, 30, 40]
    frames = [red, Image.new("RGB", (40, 30), (0, 0, 255))]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colour_of(step, animated) == pytest.approx([200, 30, 40], abs=4)


def test_transparency_lies_on_white(step: Any) -> None:
    assert colour_of(step, encode(Image.new("RGBA", (40, 30), (0, 0, 0, 0)))) == [255, 255, 255]
    assert colour_of(step, encode(Image.new("LA", (40, 30), (0, 128)))) == pytest.approx([127] * 3, abs=1)


def test_sixteen_bits_are_scaled(step: Any) -> None:
    grey = Image.fromarray(np.full((30, 40), 128 * 257, np.uint16))
    assert colour_of(step, encode(grey)) == [128, 128, 128]


def test_exif_rotation_follows_the_recipe(step: Any) -> None:
    image = Image.new("RGB", (300, 300), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 300, 150))  # the upper half is red
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    data = encode(image, "JPEG", exif=exif, quality=95)

    def top(recipe: Recipe) -> Any:
        return step.decode(data, read(step, recipe))[20, 112]

    assert top(IMAGENET)[0] > 200
    assert top(IMAGENET.model_copy(update={"exif": "apply"}))[2] > 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no bytes"),
        (b"hello, this is text", "not an image in one of the formats JPEG, PNG, WEBP, GIF, BMP"),
        (bytes(range(256)) * 4, "not an image"),
        (encode(noise(200, 100), "JPEG")[:2000], "broken image"),
        (encode(noise(50, 50), "TIFF"), "not an image in one of the formats"),
    ],
)
def test_what_is_no_image_is_refused(step: Any, data: bytes, message: str) -> None:
    with pytest.raises(step.BadImageError, match=message):
        step.decode(data, read(step, IMAGENET))


def test_limits(step: Any) -> None:
    data = encode(noise(60, 50))
    with pytest.raises(step.BadImageError, match="60x50 pixels, at most 2999 are accepted"):
        step.decode(data, read(step, IMAGENET.model_copy(update={"max_pixels": 2999})))
    with pytest.raises(step.BadImageError, match=f"{len(data)} bytes, at most 1024"):
        step.decode(data, read(step, IMAGENET.model_copy(update={"max_bytes": 1024})))


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP"])
def test_base64_text_is_the_image_it_stands_for(step: Any, kind: str) -> None:
    for width in (39, 40, 41):  # of each format texts with each length of padding
        data = encode(noise(width, 30), kind)
        texts = (
            base64.b64encode(data),
            base64.encodebytes(data),
            b" \r\n\t" + base64.b64encode(data) + b"\n",
            b"data:image/svg+xml;base64," + base64.b64encode(data),
        )
        expected = step.decode(data, read(step, IMAGENET))
        assert all(np.array_equal(step.decode(text, read(step, IMAGENET)), expected) for text in texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:40] + b"%" + text[40:], "base64 text with '%' behind 40 characters, A-Z a-z 0-9"),
        (lambda text: text[:40] + b"=" + text[40:], "base64 text with '=' behind 40 characters"),
        (lambda text: text[:40] + b"\xff" + text[40:], r"base64 text with '\\xff' behind 40 characters"),
        (lambda text: text + b"===", r"base64 text with '=' behind \d+ characters"),
        (lambda text: text[:41], "base64 text of 41 characters, a multiple of 4 was expected"),
        (lambda text: text[:40], "broken image"),
    ],
)
def test_base64_text_that_is_none_is_refused(step: Any, change: Callable[[bytes], bytes], message: str) -> None:
    data = encode(noise(40, 30), "JPEG")
    text = base64.b64encode(data + bytes(-len(data) % 3))  # a length that needs no padding
    with pytest.raises(step.BadImageError, match=message):
        step.decode(change(text), read(step, IMAGENET))


def test_limits_are_those_of_the_image_that_the_text_stands_for(step: Any) -> None:
    data = encode(noise(60, 50))
    text = base64.encodebytes(data)
    assert len(text) > len(data)
    step.decode(text, read(step, IMAGENET.model_copy(update={"max_bytes": len(data)})))
    with pytest.raises(step.BadImageError, match=f"{len(data)} bytes, at most {len(data) - 1} are accepted"):
        step.decode(text, read(step, IMAGENET.model_copy(update={"max_bytes": len(data) - 1})))
    with pytest.raises(step.BadImageError, match="60x50 pixels, at most 2999 are accepted"):
        step.decode(text, read(step, IMAGENET.model_copy(update={"max_pixels": 2999})))


def test_the_memory_of_one_image_serves_the_next() -> None:
    code = """
import json, resource, sys
from types import SimpleNamespace
from benchmarks.preprocess import make_jpegs
from generator.images.served_pixels import load_step
from generator.spec.recipe import IMAGENET
step = load_step("preprocess")
step.pb_utils.Logger = SimpleNamespace(log_warn=print)
config = {
    "input": [{"name": "IMAGE"}],
    "output": [{"name": "PIXELS"}],
    "parameters": {name: {"string_value": value} for name, value in IMAGENET.parameters().items()},
}
model = step.TritonPythonModel()
model.initialize({"model_config": json.dumps(config), "model_name": "m"})
files = make_jpegs(2048, 1536)
for data in files * 3:
    step.decode(data, model.recipe)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for data in files * 5:
    step.decode(data, model.recipe)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1000, "an image of this size takes 6,000 page faults where it is given back"
