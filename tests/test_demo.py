"""The demo model: its drawn images, its preprocessing, and what it answers."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from generator.demo import draw, network, train

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = Path(__file__).parents[1] / "clients" / "samples"
FRESH_SEED = 77


def open_jpeg(jpeg: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    image.load()
    return image


@pytest.fixture(scope="module")
def demo_network() -> torch.nn.Module:
    return network.load_network()


@pytest.fixture(scope="module")
def fresh() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    assert FRESH_SEED not in {train.TRAINING_SEED, train.HELD_OUT_SEED}
    return train.draw_crops(500, seed=FRESH_SEED)


def test_same_seed_draws_same_bytes() -> None:
    assert draw.draw_set(20, seed=3) == draw.draw_set(20, seed=3)


def test_shorter_set_is_beginning_of_longer_one() -> None:
    assert draw.draw_set(12, seed=3)[:5] == draw.draw_set(5, seed=3)


def test_seeds_draw_different_images() -> None:
    assert len({image.jpeg for seed in range(5) for image in draw.draw_set(3, seed=seed)}) == 15


def test_labels_come_in_turn_and_names_tell_them() -> None:
    images = draw.draw_set(23)
    assert [image.label for image in images] == [*range(10), *range(10), 0, 1, 2]
    assert len(set(draw.LABELS)) == 10
    assert images[13].name == f"013-{draw.LABELS[3]}"


def test_sizes_are_mixed() -> None:
    images = [open_jpeg(image.jpeg) for image in draw.draw_set(60)]
    sizes = [image.size for image in images]
    assert {image.mode for image in images} == {"RGB"}
    assert all(160 <= edge <= 640 for size in sizes for edge in size)
    assert len(set(sizes)) > 50
    assert sum(width > height for width, height in sizes) >= 15
    assert sum(width < height for width, height in sizes) >= 15
    assert min(min(size) for size in sizes) < 200
    assert max(max(size) for size in sizes) > 600


@pytest.mark.parametrize("fatness", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("label", draw.LABELS)
def test_outline_fills_and_keeps_inside_unit_circle(label: str, fatness: float) -> None:
    make_outlines, _ = draw._SHAPES[label]
    distances = [math.hypot(x, y) for outline in make_outlines(fatness) for x, y in outline]
    assert 0.95 <= max(distances) <= 1.001


def test_drawing_loads_no_torch() -> None:
    program = "import sys; from generator.demo.draw import draw_set; draw_set(2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("size", [(160, 431), (640, 401), (300, 300), (99, 96), (113, 500)])
def test_preprocessing_is_that_of_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    width, height = size
    image = draw.draw_image(np.random.default_rng(5), 3, width=width, height=height)
    transform = ImageClassification(
        crop_size=network.CROP, resize_size=network.RESIZE, interpolation=InterpolationMode(network.INTERPOLATION)
    )
    prepared = network.normalise_pixels(network.crop_image(image)[None])
    torch.testing.assert_close(prepared, transform(image)[None], rtol=0, atol=1e-6)


def test_weights_are_small() -> None:
    assert network.WEIGHTS_PATH.stat().st_size <= 4_000_000


def test_fresh_images_are_recognised(
    demo_network: torch.nn.Module, fresh: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    pixels, labels = fresh
    probabilities = train.predict(demo_network, pixels)
    confidence, answers = probabilities.max(dim=1)
    accuracy = (answers.numpy() == labels).mean()
    assert accuracy >= 0.97
    # Calibrated: as sure as it is right, within three points.
    assert abs(confidence.mean().item() - accuracy) < 0.03


def test_channel_order_changes_outputs(
    demo_network: torch.nn.Module, fresh: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    """The gate asks for a cosine of 0.999 on the worst image: a BGR mix-up must miss that on a third of them."""
    pixels = fresh[0][:100]
    rgb, bgr = (train.predict(demo_network, order).log() for order in (pixels, pixels[..., ::-1]))
    rgb, bgr = rgb - rgb.mean(dim=1, keepdim=True), bgr - bgr.mean(dim=1, keepdim=True)
    cosines = torch.nn.functional.cosine_similarity(rgb, bgr, dim=1)
    assert cosines.min().item() < 0.99
    assert (cosines < 0.999).float().mean().item() > 1 / 3


@pytest.mark.parametrize("label", draw.SAMPLE_SEEDS)
def test_sample_is_recognised(label: str, demo_network: torch.nn.Module) -> None:
    image = open_jpeg((SAMPLES / f"{label}.jpg").read_bytes())
    probability, answer = train.predict(demo_network, network.crop_image(image)[None])[0].max(dim=0)
    assert draw.LABELS[int(answer)] == label
    assert probability.item() > 0.9


def test_samples_are_what_the_generator_draws(tmp_path: Path) -> None:
    """Other versions of libjpeg may round differently, hence a mean difference instead of equal bytes."""
    for path in draw.write_samples(tmp_path):
        drawn, kept = (np.asarray(Image.open(p)).astype(int) for p in (path, SAMPLES / path.name))
        assert drawn.shape == kept.shape == (300, 400, 3)
        assert np.abs(drawn - kept).mean() < 1
