"""Recipes: read from torchvision, changed by the spec, and equal to torchvision's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torchvision
from PIL import Image
from pydantic import ValidationError

from generator.images.training_pixels import make_pixels
from generator.sources.torchvision import from_transforms
from generator.spec.recipe import IMAGENET, Recipe, RecipeSpec


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
