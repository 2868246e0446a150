"""The demo detector: its drawn scenes, its preprocessing, what it finds, and that both exporters write it as it is."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from generator.demo import detector, draw, scenes, train_detector
from generator.demo.network import normalise_pixels
from generator.graph.names import NEWEST_OPSET_OF_8
from generator.images.training_pixels import make_pixels
from generator.spec.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRESH_SEED = 77


def open_jpeg(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


@pytest.fixture(scope="module")
def demo_detector() -> torch.nn.Module:
    return detector.load_detector()


@pytest.fixture(scope="module")
def fresh() -> tuple[NDArray[np.uint8], list[train_detector.Shapes]]:
    assert FRESH_SEED not in {train_detector.TRAINING_SEED, train_detector.HELD_OUT_SEED}
    return train_detector.draw_letterboxed(100, seed=FRESH_SEED)


def test_scenes_come_from_seed_and_number_alone() -> None:
    first, again, shorter, other = (
        scenes.draw_scenes(count, seed=seed) for count, seed in ((6, 3), (6, 3), (2, 3), (6, 4))
    )
    for left, right in itertools.chain(zip(first, again, strict=True), zip(first, shorter, strict=False)):
        assert left.name == right.name
        assert left.jpeg == right.jpeg
        assert np.array_equal(left.boxes, right.boxes)
        assert np.array_equal(left.classes, right.classes)
    assert len({scene.jpeg for scene in first + other}) == 12
    assert [scene.name for scene in shorter] == ["scene-000", "scene-001"]


def test_the_clients_scenes_are_what_is_drawn() -> None:
    """Other versions of libjpeg may round differently, hence a mean difference instead of equal bytes."""
    kept = {
        path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[1] / "clients" / "scenes").iterdir())
    }
    drawn = {scene.name: scene.jpeg for scene in scenes.draw_scenes(6) if scene.name in kept}
    assert list(kept) == list(drawn) == ["scene-001", "scene-002", "scene-005"]
    for name, jpeg in drawn.items():
        one, other = (np.asarray(open_jpeg(data)).astype(int) for data in (jpeg, kept[name]))
        assert np.abs(one - other).mean() < 1


def test_a_scene_has_one_to_six_shapes_inside_it_that_hardly_overlap() -> None:
    drawn = scenes.draw_scenes(60)
    assert {len(scene.boxes) for scene in drawn} == {1, 2, 3, 4, 5, 6}
    assert {int(label) for scene in drawn for label in scene.classes} == set(range(10))
    assert sum(width > height for width, height in (open_jpeg(scene.jpeg).size for scene in drawn)) in range(20, 50)
    covered = []
    for scene in drawn:
        width, height = open_jpeg(scene.jpeg).size
        boxes = scene.boxes
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(scene.classes), 4)
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        edges = (boxes[:, 2:] - boxes[:, :2]) / max(width, height)
        assert (edges > 0.04).all()
        assert (edges <= 0.49).all()
        for a, b in itertools.combinations(boxes, 2):
            shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
            covered.append(shared / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))
    assert 0 < max(covered) < 0.5


@pytest.mark.parametrize("label", range(10))
def test_a_box_is_tight_around_what_was_drawn(label: int) -> None:
    """What differs from the plain image after pasting lies in the box and touches its four edges."""
    for number in range(5):
        image = Image.new("RGB", (120, 90), (128, 128, 128))
        rng = draw.make_rng(FRESH_SEED, label, number)
        left, top, right, bottom = draw.paste_shape(image, rng, label, radius=30.3, left=17, top=11)
        changed = (np.asarray(image) != 128).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        # an edge pixel that is hardly covered may keep its colour
        for edge, seen in ((left, columns[0]), (top, rows[0]), (right, columns[-1] + 1), (bottom, rows[-1] + 1)):
            assert abs(edge - seen) <= 1, (number, label)


def test_drawing_scenes_loads_no_torch() -> None:
    program = (
        "import sys; from generator.demo.scenes import draw_scenes; draw_scenes(2); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("size", [(160, 431), (640, 401), (300, 300), (99, 96), (640, 3)])
def test_preprocessing_is_that_of_the_recipe(size: tuple[int, int]) -> None:
    recipe = Recipe.model_validate(
        {
            "fit": detector.FIT,
            "resize": (detector.SIDE, detector.SIDE),
            "crop": (detector.SIDE, detector.SIDE),
            "fill": detector.FILL,
            "interpolation": detector.INTERPOLATION,
            "mean": detector.MEAN,
            "std": detector.STD,
        }
    )
    image = draw.draw_image(np.random.default_rng(5), 3, width=size[0], height=size[1]) if min(size) > 90 else None
    image = image or Image.effect_noise(size, 60).convert("RGB")
    pixels, (scale_x, scale_y, left, top) = detector.letterbox_image(image)
    assert np.array_equal(pixels, make_pixels(recipe)(image))
    np.testing.assert_allclose(normalise_pixels(pixels[None]), recipe.normalise(pixels[None]), rtol=0, atol=1e-6)
    # the corners of the image are where its pixels end and the fill begins
    right, bottom = size[0] * scale_x + left, size[1] * scale_y + top
    assert (pixels[:top] == 114).all()
    assert (pixels[round(bottom) :] == 114).all()
    assert (pixels[:, :left] == 114).all()
    assert (pixels[:, round(right) :] == 114).all()


def test_average_precision_of_known_answers() -> None:
    """Worked out by hand: three shapes of class 0; found: right, wrong, right, the first once more."""
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    truth = [train_detector.Shapes(boxes, np.zeros(3, np.int64), np.ones(3, np.float32))]
    answers = np.array([[0, 0, 10, 10], [60, 0, 70, 10], [20, 0, 30, 9], [0, 0, 10, 9]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    found = [train_detector.Shapes(answers, np.zeros(4, np.int64), scores)]
    assert train_detector.measure_ap(found, truth, iou=0.5)[0] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert train_detector.measure_ap(found, truth, iou=0.95)[0] == pytest.approx(1 / 3)
    other = [train_detector.Shapes(answers, np.ones(4, np.int64), scores)]
    assert train_detector.measure_ap(other, truth, iou=0.5)[0] == 0
    assert np.isnan(train_detector.measure_ap(other, truth, iou=0.5)[1:]).all()


def test_turned_and_mirrored_boxes_stay_on_their_pixels() -> None:
    torch.manual_seed(5)
    seen = set()
    for _ in range(40):
        images = torch.zeros(1, 3, detector.SIDE, detector.SIDE)
        images[:, :, 20:50, 5:90] = 1
        turned, boxes = train_detector._turn_and_mirror(images, torch.tensor([[[5.0, 20.0, 90.0, 50.0]]]))
        left, top, right, bottom = (int(edge) for edge in boxes[0, 0])
        assert turned[:, :, top:bottom, left:right].min() == 1
        assert turned.sum() == 3 * 30 * 85
        seen.add((left, top, right, bottom))
    assert len(seen) == 8


def test_weights_are_small() -> None:
    assert detector.WEIGHTS_PATH.stat().st_size <= 4_000_000


def test_fresh_scenes_are_found(
    demo_detector: torch.nn.Module, fresh: tuple[NDArray[np.uint8], list[train_detector.Shapes]]
) -> None:
    pixels, truth = fresh
    found = train_detector.detect(demo_detector, pixels)
    assert train_detector.measure_ap(found, truth, iou=0.5).mean() >= 0.9
    assert train_detector.measure_ap(found, truth, iou=0.9).mean() >= 0.4


def test_scores_tell_how_likely_a_box_is_right(
    demo_detector: torch.nn.Module, fresh: tuple[NDArray[np.uint8], list[train_detector.Shapes]]
) -> None:
    """At the usual threshold hardly a box is wrong, and the detector is as sure as it is right."""
    found = train_detector.detect(demo_detector, fresh[0], lowest_score=0.25)
    right = np.concatenate([train_detector._match(*pair, iou=0.5) for pair in zip(found, fresh[1], strict=True)])
    assert right.sum() >= 0.9 * sum(len(shapes.boxes) for shapes in fresh[1])
    assert right.mean() >= 0.9
    assert abs(np.concatenate([answer.scores for answer in found]).mean() - right.mean()) < 0.05


class PixelsInFront(torch.nn.Module):
    """The graph that is served begins so: uint8 NHWC, cast before it is transposed."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(detector.MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(detector.STD).view(3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = self.network((pixels.float().permute(0, 3, 1, 2) / 255 - self.mean) / self.std)
        return boxes, scores


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["opset 18", "opset 17"])
def test_both_exporters_write_what_torch_answers(
    dynamo: bool,
    demo_detector: torch.nn.Module,
    fresh: tuple[NDArray[np.uint8], list[train_detector.Shapes]],
    tmp_path: Path,
) -> None:
    wrapped = PixelsInFront(demo_detector).eval()
    example = torch.zeros(2, detector.SIDE, detector.SIDE, 3, dtype=torch.uint8)
    path, names = tmp_path / "model.onnx", ["boxes", "scores"]
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=8)
        program = torch.export.export(wrapped, (example,), dynamic_shapes={"pixels": {0: batch}}, strict=False)
        exported = torch.onnx.export(program, dynamo=True, output_names=names, opset_version=18, verbose=False)
        assert exported is not None
        exported.save(path)
    else:
        torch.onnx.export(
            wrapped,
            (example,),
            path,
            dynamo=False,
            opset_version=NEWEST_OPSET_OF_8,
            input_names=["pixels"],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in ("pixels", *names)},
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        pixels = fresh[0][:count]
        with torch.inference_mode():
            boxes, scores = wrapped(torch.from_numpy(pixels))
        found_boxes, found_scores = session.run(names, {session.get_inputs()[0].name: pixels})
        assert boxes.shape == (count, 576, 4)
        assert scores.shape == (count, 576, 10)
        np.testing.assert_allclose(found_boxes, boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found_scores, scores, rtol=0, atol=1e-5)
