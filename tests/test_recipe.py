"""Recipes: read from torchvision, changed by the spec, and equal to torchvision's own transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from pydantic import ValidationError

from generator.images.training_pixels import make_pixels
from generator.sources.torchvision import from_transforms
from generator.spec.recipe import IMAGENET, RECIPES, Recipe, RecipeSpec


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * height)
    small = rng.integers(0, 256, (max(height // 3, 1), max(width // 3, 1), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "vit_b_16", "inception_v3", "swin_t"])
def test_pixels_and_normalisation_equal_torchvisions_own(name: str) -> None:
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    recipe = from_transforms(transforms)
    image = photo(500, 375)
    ours = recipe.normalise(make_pixels(recipe)(image)[None])[0]
    assert np.abs(ours - transforms(image).numpy()).max() < 1e-5


def test_every_torchvision_classifier_has_a_recipe() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            from_transforms(weights.transforms())


def test_other_transforms_are_refused() -> None:
    with pytest.raises(ValueError, match="not a classification preset"):
        from_transforms(object())


def test_a_spec_changes_only_what_it_names() -> None:
    changed = RecipeSpec(crop=192, interpolation="bicubic").apply_to(IMAGENET)
    assert changed == IMAGENET.model_copy(update={"crop": (192, 192), "interpolation": "bicubic"})


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValidationError, match="larger than resize"):
        RecipeSpec(crop=300).apply_to(IMAGENET)


def test_another_image_size_keeps_the_proportion() -> None:
    assert IMAGENET.with_image_size((448, 448)).resize == 512
    wide = IMAGENET.with_image_size((224, 448))
    assert (wide.crop, wide.resize) == ((224, 448), 512)
    fixed = Recipe.model_validate({**IMAGENET.model_dump(), "resize": (256, 256)}).with_image_size((112, 224))
    assert fixed.resize == (128, 256)


def test_a_letterbox_lies_where_yolo_puts_it() -> None:
    """640x427 in 640x640: 106 rows above and 107 below, as round(213 / 2 - 0.1) and round(213 / 2 + 0.1) give."""
    white = Image.new("RGB", (640, 427), "white")
    pixels = make_pixels(RECIPES["yolo"])(white)
    rows = (pixels == 255).all(axis=(1, 2)).nonzero()[0]
    assert (rows[0], rows[-1]) == (106, 106 + 426)
    assert (pixels[0] == 114).all()
    corner = make_pixels(RecipeSpec(base="yolo", fit="letterbox-corner").apply_to(None))(white)
    assert (corner[:427] == 255).all()
    assert (corner[427:] == 114).all()


def test_a_crop_on_half_a_pixel() -> None:
    """A column of its own level each: 7 wide, 4 are taken from the second (transformers) or third (round half even)."""
    ramp = Image.fromarray(np.repeat(np.arange(7, dtype=np.uint8)[None, :, None], 7, axis=0).repeat(3, axis=2))
    first = [
        int(
            make_pixels(Recipe.model_validate({**IMAGENET.model_dump(), "resize": 7, "crop": 4, **change}))(ramp)[
                0, 0, 0
            ]
        )
        for change in ({}, {"rounding": "floor"})
    ]
    assert first == [2, 1]


def test_names_stand_for_what_their_libraries_do() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    values = pixels.astype(np.float64)
    caffe = values[..., ::-1] - [103.939, 116.779, 123.68]
    for name, wanted in {"keras-caffe": caffe, "keras-tf": values / 127.5 - 1, "yolo": values / 255}.items():
        np.testing.assert_allclose(RECIPES[name].normalise(pixels), wanted.transpose(0, 3, 1, 2), atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_scale_and_shift_are_the_normalisation(name: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    recipe = RECIPES[name]
    factor, summand = (values.reshape(1, -1, 1, 1) for values in recipe.as_scale_and_shift())
    ordered = pixels[..., ::-1] if recipe.channels == "BGR" else pixels
    made = ordered.astype(np.float32).transpose(0, 3, 1, 2) * factor + summand
    np.testing.assert_allclose(made, recipe.normalise(pixels), atol=2e-5)


def test_what_follows_from_what() -> None:
    """`crop_pct`, a pair to resize to, one value for all channels, and the size that a letterbox is fitted into."""
    assert RecipeSpec(crop=288, crop_pct=0.9).apply_to(IMAGENET).resize == 320
    assert RecipeSpec(fit="stretch", crop_pct=0.875).apply_to(IMAGENET).resize == (256, 256)
    assert RecipeSpec(resize=(240, 300)).apply_to(IMAGENET).fit == "stretch"
    assert RecipeSpec(fit="letterbox").apply_to(IMAGENET).resize == (224, 224)
    assert RecipeSpec(base="yolo", crop=320).apply_to(IMAGENET).resize == (320, 320)
    assert RecipeSpec(base="yolo", fit="crop", crop=320).apply_to(None).resize == 320
    grey = RecipeSpec(channels="grey", mean=0.5, std=0.25).apply_to(IMAGENET)
    assert (grey.mean, grey.std, grey.shape) == ((0.5,), (0.25,), (224, 224, 1))
    assert RecipeSpec(mean=0.5).apply_to(IMAGENET).mean == (0.5, 0.5, 0.5)
    assert RecipeSpec.model_validate({"scale": "1/127.5"}).scale == 1 / 127.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"channels": "grey"}, "mean has 3 values, but channels is grey: 1 was expected"),
        ({"crop_pct": 0.9, "resize": 256}, "crop_pct and resize state the same"),
        ({"fit": "letterbox", "resize": 200}, "larger than resize"),
        ({"mean": [0.5]}, "mean has 1 values, but channels is RGB: 3 was expected"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RecipeSpec.model_validate(fields).apply_to(IMAGENET)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(LookupError) as caught:
        RecipeSpec(crop=224, fit="stretch").apply_to(None)
    assert caught.value.args == ("interpolation", "mean", "std")
