"""The post-processing step's own code, and what a real server makes of it: from known pictures to known boxes.

The network of the served detectors answers where a picture is red, green and blue (tests/tiny_detector.py).
"""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from generator.errors import ServerError
from generator.images.served_pixels import load_step
from tests.tiny_detector import LABELS, SCORES, build_tiny_detector, draw_scene, make_recipe
from tests.tiny_repository import serve

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))

from triton_images import ClientError, Connection, Detection, Model, RefusedError  # it is no package

step = load_step("postprocess")
both = pytest.mark.parametrize("protocol", ["grpc", "http"])
IDENTITY = np.array([1, 1, 0, 0, 10_000, 10_000], np.float32)
NAMES = ("cat", "dog", "N/A", "N/A")


def make_options(most: int = 100, **changes: str) -> Any:
    values = {"score": "0.25", "iou": "0.45", "nms": "per-class", **changes}
    return step.Options({name: {"string_value": value} for name, value in values.items()}, list(NAMES), most)


def detect(boxes: Any, scores: Any, classes: Any, options: Any, geometry: NDArray[Any] = IDENTITY) -> Any:
    """Run the step on one image's rows."""
    rows = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
    return step.detect(*rows, geometry, options)


def suppress_naively(boxes: Any, scores: Any, classes: Any, *, score: float, iou: float, nms: str, most: int) -> Any:
    """Return the rows that stand, one pair after the other, in Python's own numbers."""
    kept: list[int] = []
    order = sorted((row for row in range(len(boxes)) if scores[row] >= score), key=lambda row: (-scores[row], row))
    for row in order:
        for better in kept:
            one, other = boxes[row], boxes[better]
            width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
            height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
            areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (one, other)]
            overlap = width * height > iou * (sum(areas) - width * height)
            if overlap and nms != "none" and (nms == "agnostic" or classes[row] == classes[better]):
                break
        else:
            kept.append(row)
    return kept[:most]


# whole pixels and hundredths, so that many boxes touch, coincide or have no area
_EDGE = st.integers(0, 24)
_ROWS = st.lists(st.tuples(_EDGE, _EDGE, _EDGE, _EDGE, st.integers(1, 99), st.integers(0, 2)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    _ROWS,
    st.sampled_from(["per-class", "agnostic", "none"]),
    st.sampled_from([0.2, 0.45, 0.5, 0.9]),
    st.integers(1, 12),
)
def test_the_boxes_are_those_of_a_naive_loop(rows: list[Any], nms: str, iou: float, most: int) -> None:
    boxes = [[float(edge) for edge in row[:4]] for row in rows]
    scores = [float(np.float32(row[4] / 100)) for row in rows]
    classes = [row[5] for row in rows]
    kept = suppress_naively(boxes, scores, classes, score=0.25, iou=iou, nms=nms, most=most)
    found = detect(boxes, scores, classes, make_options(most, nms=nms, iou=str(iou)))
    assert found[0].tolist() == [boxes[row] for row in kept]
    assert found[1].tolist() == [scores[row] for row in kept]
    assert found[2].tolist() == [classes[row] for row in kept]
    assert [values.dtype for values in found] == [np.float32, np.float32, np.int32]


@pytest.mark.parametrize("nms", ["per-class", "agnostic"])
@pytest.mark.parametrize("iou", [0.3, 0.45, 0.7])
def test_the_boxes_are_those_of_torchvision(nms: str, iou: float) -> None:
    import torch
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 600, (40, 2))[rng.integers(0, 40, 1000)] + rng.normal(0, 6, (1000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 90, (1000, 2))], axis=1).clip(0).astype(np.float32)
    scores, classes = rng.permutation(1000).astype(np.float32) / 1000, rng.integers(0, 4, 1000)
    sure = np.flatnonzero(scores >= 0.25)
    groups = torch.from_numpy(classes[sure] if nms == "per-class" else np.zeros_like(classes[sure]))
    kept = sure[batched_nms(torch.from_numpy(boxes[sure]), torch.from_numpy(scores[sure]), groups, iou).numpy()]
    found = detect(boxes, scores, classes, make_options(3840, nms=nms, iou=str(iou)))
    assert 40 < len(kept) < len(sure)
    assert np.array_equal(found[1], scores[kept])
    assert np.array_equal(found[0], boxes[kept])
    assert np.array_equal(found[2], classes[kept])


def test_thresholds_of_single_classes() -> None:
    options = make_options(class_scores='{"dog": 0.7, "N/A": 0.1}', nms="none")
    rows = [[0, 0, 9, 9]] * 6
    # 0.7 in FP32 lies below 0.7; two classes are called N/A, and one has no label
    found = detect(rows, [0.2, 0.6, 0.7, 0.15, 0.3, 0.15], [0, 1, 1, 3, 0, 2], options)
    assert found[2].tolist() == [1, 0, 3, 2]
    assert detect(rows[:2], [0.7, 0.69], [1, 1], options)[1].tolist() == [np.float32(0.7)]
    assert detect(rows[:1], [0.25], [0], options)[1].tolist() == [0.25]
    assert options.name(1) == "dog"
    assert options.name(4) == options.name(-1) == ""


def test_a_box_that_is_not_a_number_counts_only_where_it_is_answered() -> None:
    options, nan, inf = make_options(), float("nan"), float("inf")
    assert detect([[nan, 0, 1, 1], [0, 0, 5, 5]], [0.2, 0.9], [0, 0], options)[0].tolist() == [[0, 0, 5, 5]]
    assert len(detect([[0, 0, 5, 5]], [nan], [0], options)[0]) == 0
    for wrong in (nan, inf):
        with pytest.raises(ValueError, match="boxes that are not numbers"):
            detect([[0, 0, 5, wrong], [0, 0, 5, 5]], [0.3, 0.9], [0, 0], options)


def test_boxes_end_at_the_edges_of_the_original() -> None:
    geometry = np.array([0.5, 0.25, 0, 8, 100, 40], np.float32)
    found = detect(
        [[-5, 4, 30, 12], [20, 13, 99, 99], [60, 0, 64, 64]], [0.9, 0.8, 0.7], [0, 0, 1], make_options(), geometry
    )
    assert found[0].tolist() == [[0, 0, 60, 16], [40, 20, 100, 40], [100, 0, 100, 40]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "high"}, "parameter score is 'high', a number between 0 and 1 was expected"),
        ({"score": "0"}, "parameter score is '0', a number between"),
        ({"iou": "1.5"}, "parameter iou is '1.5', a number between"),
        ({"iou": "nan"}, "parameter iou is 'nan', a number between"),
        ({"nms": "soft"}, "parameter nms is 'soft', one of per-class, agnostic, none was expected"),
        ({"class_scores": '{"bird": 0.5}'}, "parameter class_scores names 'bird', which is not in labels.txt"),
        ({"class_scores": '{"cat": 2}'}, "parameter class_scores of cat is 2, a number between"),
        ({"class_scores": '{"cat": null}'}, "parameter class_scores of cat is None, a number between"),
        ({"class_scores": "cat: 0.5"}, "parameter class_scores is 'cat: 0.5', a JSON object of labels and numbers was"),
        ({"class_scores": "[0.5]"}, "parameter class_scores is '.0.5.', a JSON object"),
    ],
)
def test_parameters_changed_by_hand_to_what_they_cannot_be(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_options(100, **changes)


def test_a_parameter_that_was_removed() -> None:
    for name in ("score", "iou", "nms"):
        values = {one: {"string_value": "none" if one == "nms" else "0.5"} for one in ("score", "iou", "nms")}
        del values[name]
        with pytest.raises(ValueError, match=f"parameter {name} is None"):
            step.Options(values, list(NAMES), 10)


SIZES = [(320, 240), (240, 320), (333, 500), (64, 64), (1000, 90), (1, 5), (5, 1), (4000, 3000), (17, 1281)]
RECIPES: dict[str, dict[str, Any]] = {
    "crop": {"fit": "crop", "resize": 80},
    "crop, floor": {"fit": "crop", "resize": 71, "rounding": "floor"},
    "stretch": {"fit": "stretch"},
    "stretch, oblong": {"fit": "stretch", "crop": (48, 64), "resize": (48, 64)},
    "letterbox": {},
    "letterbox with a border": {"resize": 70, "crop": 64},
    "letterbox-corner": {"fit": "letterbox-corner"},
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", SIZES)
def test_geometry_leads_from_the_original_to_the_pixels_and_back(name: str, size: tuple[int, int]) -> None:
    """A white rectangle is looked for in the pixels that the preprocessing makes, and its edges are led back."""
    from PIL import Image

    prepare = load_step("preprocess")
    recipe = make_recipe(**RECIPES[name])
    settings_ = prepare.Recipe({key: {"string_value": value} for key, value in recipe.parameters().items()})
    width, height = size
    box = (width // 4, height // 4, width - width // 4, height - height // 3)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    geometry = np.array(settings_.geometry(*size), np.float32)
    scale, offset = geometry[:2].astype(float), geometry[2:4].astype(float)
    there = np.array(box, float).reshape(2, 2) * scale + offset

    back = step.to_original(there.reshape(1, 4), geometry)
    assert np.abs(back - np.array([box], float)).max() <= 1e-3
    assert geometry[4:].tolist() == [width, height]

    pixels = settings_.cropped(image).astype(float).mean(axis=2)
    pixels = np.where(pixels == 114, 0, pixels)  # the fill
    if pixels.max() < 128:  # thinner than a pixel of the network
        assert min(there[1] - there[0]) < 1.01
        return
    rows, columns = np.flatnonzero(pixels.max(axis=1) >= 128), np.flatnonzero(pixels.max(axis=0) >= 128)
    seen = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]])
    assert np.abs(seen - np.clip(there, 0, pixels.shape[::-1])).max() <= 1


class Served:
    """A running server of the two detectors, and connections to it."""

    def __init__(self, urls: dict[str, str]) -> None:
        self.connections = {protocol: Connection(protocol, urls[protocol]) for protocol in ("grpc", "http")}

    def detect(self, protocol: str, model: str, *images: bytes) -> list[list[Detection]]:
        connection = self.connections[protocol]
        return connection.detect(self.find(protocol, model), images)

    def find(self, protocol: str, model: str) -> Model:
        return self.connections[protocol].find_model(model, "detection")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`shapes` as YOLO is prepared; `upright` with the other choices, changed by hand in config.pbtxt at that."""
    root = build_tiny_detector(tmp_path_factory.mktemp("repository"))
    stretch = {"fit": "stretch", "exif": "apply"}
    build_tiny_detector(root, name="upright", recipe=stretch, nms="none", score=0.45, max_detections=3)
    config = root / "upright_postprocess" / "config.pbtxt"
    by_hand = 'parameters { key: "class_scores" value { string_value: "{\\"green\\": 0.75}" } }'
    config.write_text(f"{config.read_text()}\n{by_hand}\n")
    with serve(root) as urls:
        running = Served(urls)
        yield running
        for connection in running.connections.values():
            connection.__exit__()


def check(found: list[Detection], expected: dict[str, tuple[int, int, int, int]], tolerance: float) -> None:
    """Compare with rectangles that were drawn; each edge within `tolerance` pixels of the original."""
    assert [one.label for one in found] == [label for label in LABELS if label in expected]
    for one in found:
        assert one.label is not None
        assert one.index == LABELS.index(one.label)
        assert one.score == pytest.approx(SCORES[one.label])
        assert one.box == pytest.approx(expected[one.label], abs=tolerance)


SCENE = {"red": (40, 60, 120, 100), "blue thing": (200, 10, 300, 200)}


@pytest.mark.server
@both
def test_boxes_of_known_pictures(served: Served, protocol: str) -> None:
    (found,) = served.detect(protocol, "shapes", draw_scene(SCENE))
    check(found, SCENE, 5)  # a pixel of the network is five of the picture
    large = {"green": (100, 200, 1600, 2900), "red": (2000, 1000, 3900, 1500)}
    (found,) = served.detect(protocol, "shapes", draw_scene(large, size=(4000, 3000), encoding="JPEG"))
    check(found, large, 63)
    assert served.detect(protocol, "shapes", draw_scene({})) == [[]]
    for ground in ((0, 0, 0), (200, 200, 200), (114, 114, 114)):
        assert served.detect(protocol, "shapes", draw_scene({}, size=(64, 64), ground=ground)) == [[]]
    (found,) = served.detect(protocol, "shapes", draw_scene({"red": (0, 0, 1, 5)}, size=(1, 5), encoding="BMP"))
    assert [one.label for one in found] == ["red"]
    assert found[0].box == pytest.approx((0, 0, 1, 5), abs=0.5)


@pytest.mark.server
@both
def test_boxes_are_those_of_the_picture_as_the_recipe_opens_it(served: Served, protocol: str) -> None:
    for encoding in ("JPEG", "PNG"):
        turned = draw_scene({"red": (40, 60, 120, 100)}, encoding=encoding, orientation=6)
        (found,) = served.detect(protocol, "shapes", turned)
        check(found, {"red": (40, 60, 120, 100)}, 5)  # as it lies in the file
        (found, *_) = served.detect(protocol, "upright", turned)
        # a quarter turn clockwise: x = 240 - y, y = x, in a picture of 240x320
        check(found[:1], {"red": (140, 40, 180, 120)}, 5)
    assert served.find(protocol, "upright").applies_exif
    assert not served.find(protocol, "shapes").applies_exif


@pytest.mark.server
@both
def test_thresholds_nms_and_rows_are_those_of_the_configuration(served: Served, protocol: str) -> None:
    scene = {**SCENE, "green": (130, 120, 190, 200)}
    (found,) = served.detect(protocol, "shapes", draw_scene(scene))
    assert [one.label for one in found] == ["red", "green", "blue thing"]
    # without NMS each comes twice; the second green one has 0.5, and of the four left three are answered
    (found,) = served.detect(protocol, "upright", draw_scene(scene))
    assert [(one.label, round(one.score, 2)) for one in found] == [("red", 0.9), ("green", 0.8), ("blue thing", 0.7)]
    (found,) = served.detect(protocol, "upright", draw_scene({"green": scene["green"], "red": scene["red"]}))
    assert [(one.label, round(one.score, 2)) for one in found] == [("red", 0.9), ("green", 0.8), ("red", 0.6)]
    assert served.find(protocol, "upright").threshold == 0.45
    assert served.find(protocol, "shapes").threshold == 0.25


@pytest.mark.server
@both
def test_batches_are_split_as_they_were_put_together(served: Served, protocol: str) -> None:
    scenes = [{"red": (10 * n, 20, 10 * n + 60, 100 + 10 * n)} if n % 3 else {} for n in range(8)]
    found = served.detect(protocol, "shapes", *(draw_scene(scene) for scene in scenes))
    for one, scene in zip(found, scenes, strict=True):
        check(one, scene, 5)


@pytest.mark.server
def test_parallel_requests_get_their_own_answers_and_both_protocols_the_same(served: Served) -> None:
    scenes = [{"green": (5 * n, 3 * n, 5 * n + 80, 3 * n + 90)} for n in range(24)]
    images = [draw_scene(scene, size=(320 + n, 240)) for n, scene in enumerate(scenes)]
    models = {protocol: served.find(protocol, "shapes") for protocol in served.connections}
    alone = [served.connections["grpc"].detect(models["grpc"], [image])[0] for image in images]
    for found, scene in zip(alone, scenes, strict=True):
        check(found, scene, 6)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda image: served.connections["grpc"].detect(models["grpc"], [image])[0], images))
    assert together == alone
    assert served.connections["http"].detect(models["http"], images[:8]) == alone[:8]


@pytest.mark.server
@both
def test_an_answer_that_is_not_a_number_fails_only_its_own_request(served: Served, protocol: str) -> None:
    connection, model = served.connections[protocol], served.find(protocol, "shapes")
    flawed = draw_scene({}, size=(64, 64), ground=(255, 255, 255))
    with pytest.raises(RefusedError, match="image 1 of 3: the network answers boxes that are not numbers"):
        connection.detect(model, [draw_scene(SCENE), flawed, draw_scene({})])
    found = connection.detect_each(model, [draw_scene(SCENE), flawed, b"no image", draw_scene({})])
    check(found[0], SCENE, 5)  # type: ignore[arg-type]
    assert isinstance(found[1], RefusedError)
    assert "not an image in one of the formats" in str(found[2])
    assert found[3] == []


@pytest.mark.server
@both
def test_rows_that_do_not_count_are_padding(served: Served, protocol: str) -> None:
    import importlib

    client = importlib.import_module(f"tritonclient.{protocol}")
    connection = served.connections[protocol]._client
    image = client.InferInput("IMAGE", [2, 1], "BYTES")
    image.set_data_from_numpy(np.array([[draw_scene(SCENE)], [draw_scene({})]], np.object_))
    answer = connection.infer("shapes", [image])
    assert answer.as_numpy("NUM_DETECTIONS").tolist() == [[2], [0]]
    padding = {"BOXES": 0, "SCORES": 0, "CLASSES": -1, "LABELS": b""}
    for name, value in padding.items():
        values = answer.as_numpy(name)
        assert values.shape == (2, 100, 4) if name == "BOXES" else (2, 100)
        assert (values[0, 2:] == value).all()
        assert (values[1] == value).all()
    assert answer.as_numpy("LABELS")[0, :2].tolist() == [b"red", b"blue thing"]


@pytest.mark.server
def test_a_model_whose_parameter_is_no_number_does_not_load(tmp_path: Path) -> None:
    root = build_tiny_detector(tmp_path / "repository", score=0.31)
    config = root / "shapes_postprocess" / "config.pbtxt"
    config.write_text(config.read_text().replace('"0.31"', '"a third"'))
    with pytest.raises(ServerError) as caught, serve(root):
        pass
    assert "parameter score is 'a third', a number between 0 and 1 was expected" in str(caught.value)


@pytest.mark.server
@both
def test_a_choice_of_detectors_and_a_server_without_a_classifier(served: Served, protocol: str) -> None:
    connection = served.connections[protocol]
    with pytest.raises(ClientError, match="serves 2 ensembles that detect objects: shapes, upright") as caught:
        connection.find_model(task="detection")
    assert caught.value.hint == "choose one: --model shapes"
    with pytest.raises(
        ClientError, match="serves no ensemble that classifies images; ready models: shapes, "
    ) as caught:
        connection.find_model()
    assert caught.value.hint == "shapes detects objects: use detect.py"


def test_the_clients_rows_are_those_of_the_task() -> None:
    """What detect.py prints as JSON has the fields of `trtgen detect-plan`."""
    from generator.tasks.detection.rows import make_rows

    outputs = {
        "NUM_DETECTIONS": np.array([[1]]),
        "BOXES": np.array([[[1, 2, 3, 4]]], np.float32),
        "SCORES": np.array([[0.5]], np.float32),
        "CLASSES": np.array([[1]], np.int32),
    }
    ((row,),) = make_rows(outputs, LABELS, 5)
    assert list(row) == list(Detection.__dataclass_fields__)
