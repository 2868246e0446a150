"""clients/detect.py, run as a user runs it: a process of its own against a real tritonserver, over both protocols."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tiny_detector import COLOURS, build_tiny_detector, draw_scene
from tests.tiny_repository import build_tiny_repository, make_image, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))  # it is no package

import classify as classify_client
import detect as detect_client
from drawing import _find_place, _overlap, choose_colour, draw_boxes, open_picture
from triton_images import Detection

CLIENTS = Path(__file__).parents[1] / "clients"
both = pytest.mark.parametrize("protocol", ["grpc", "http"])
pytestmark = pytest.mark.server
SCENES: dict[str, dict[str, tuple[int, int, int, int]]] = {
    "a.png": {"red": (40, 60, 120, 100), "blue thing": (200, 10, 300, 200)},
    "deeper/b.jpg": {"green": (20, 120, 100, 230)},
    "empty.png": {},
}


def run(script: str, *arguments: str | Path, stdin: bytes = b"", code: int = 0) -> tuple[str, str]:
    """Run a client in a process of its own, check its exit code and that nothing escaped; return what it printed."""
    command = [sys.executable, "-W", "error", str(CLIENTS / script), *map(str, arguments)]
    ended = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    return ended.stdout.decode(), ended.stderr.decode()


def run_here(module: Any, *arguments: str | Path, stdin: bytes = b"", code: int = 0) -> tuple[str, str]:
    """The same in this process, which saves its start."""
    output, error = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in (("stdin", io.TextIOWrapper(io.BytesIO(stdin))), ("stdout", output), ("stderr", error)):
            patch.setattr(sys, name, stream)
        try:
            ended = module.main(list(map(str, arguments)))
        except SystemExit as stop:
            ended = stop.code
    printed, said = (stream.buffer.getvalue().decode() for stream in (output, error))
    assert ended == code, said
    return printed, said


def detect(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> tuple[str, str]:
    return run_here(detect_client, *arguments, stdin=stdin, code=code)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of a classifier, `tiny`, and a detector, `shapes`, which turns pictures upright."""
    root = build_tiny_repository(tmp_path_factory.mktemp("repository"))
    build_tiny_detector(root, max_batch_size=2, recipe={"exif": "apply"})
    with serve(root) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server that lists no models and shows no configuration, of a detector whose ensemble answers no labels."""
    from generator.server import hardening, launch

    root = build_tiny_detector(tmp_path_factory.mktemp("repository"), max_batch_size=2)
    config = root / "shapes" / "config.pbtxt"
    text = config.read_text()
    without = [
        ',\n  {\n    name: "LABELS"\n    data_type: TYPE_STRING\n    dims: [ 100 ]\n  }',
        '      output_map { key: "LABELS" value: "LABELS" }\n',
    ]
    for part in without:
        assert part in text
        text = text.replace(part, "")
    config.write_text(text)
    options = hardening.write_options
    lock = "model-repository,model-config,statistics:owner=secret"
    with pytest.MonkeyPatch.context() as patch:
        locks = [f"--http-restricted-api={lock}", f"--grpc-restricted-protocol={lock}"]
        locked = [(None, lock) for lock in locks]
        patch.setattr(launch, "write_options", lambda *given, **named: [*options(*given, **named), *locked])
        with serve(root) as addresses:
            yield addresses


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a picture of each of SCENES."""
    for name, scene in SCENES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_scene(scene, encoding="JPEG" if path.suffix == ".jpg" else "PNG"))
    return tmp_path / "images"


def parse_rows(output: str) -> dict[str, list[dict[str, Any]]]:
    """Return file name -> detections from the output of `--json`."""
    answers = [json.loads(line, parse_constant=pytest.fail) for line in output.splitlines()]
    assert all(list(answer) == ["file", "detections"] for answer in answers)
    return {Path(answer["file"]).name: answer["detections"] for answer in answers}


@both
def test_prints_the_boxes_of_an_image_best_first(urls: dict[str, str], images: Path, protocol: str) -> None:
    where = ("--protocol", protocol, "--url", urls[protocol])
    output, error = run("detect.py", images / "a.png", images / "empty.png", *where)
    assert output.splitlines() == [
        f"{images / 'a.png'}",
        "  0.9000  red  40 60 120 100",
        "  0.7000  blue thing  200 10 300 200",
        f"{images / 'empty.png'}",
        "  no object",
    ]
    assert error == ""


def test_protocols_answer_alike_and_as_rows_of_the_task(urls: dict[str, str], images: Path) -> None:
    answers = [detect(images, "--json", "--protocol", it, "--url", urls[it])[0] for it in ("grpc", "http")]
    assert answers[0] == answers[1]
    rows = parse_rows(answers[0])
    assert list(rows) == ["a.png", "b.jpg", "empty.png"]
    assert rows["a.png"] == [
        {"label": "red", "index": 0, "score": 0.9, "box": [40, 60, 120, 100]},
        {"label": "blue thing", "index": 2, "score": 0.7, "box": [200, 10, 300, 200]},
    ]
    assert rows["empty.png"] == []


@both
def test_score_drops_more_and_says_what_the_server_drops(urls: dict[str, str], images: Path, protocol: str) -> None:
    where = (images / "a.png", "--json", "--protocol", protocol, "--url", urls[protocol])
    output, error = detect(*where, "--score", "0.8")
    assert [one["label"] for one in parse_rows(output)["a.png"]] == ["red"]
    assert error == ""
    output, error = detect(*where, "--score", "0.1")
    assert len(parse_rows(output)["a.png"]) == 2
    assert error.startswith(
        "note: shapes answers no box with a score below 0.25, so --score 0.1 changes nothing\nhint:"
    )


@both
def test_each_client_finds_the_model_of_its_kind(urls: dict[str, str], images: Path, protocol: str) -> None:
    where = ("--protocol", protocol, "--url", urls[protocol])
    (images / "green.jpg").write_bytes(make_image("green"))
    assert "  red  " in detect(images / "a.png", *where)[0]
    assert "  green" in run_here(classify_client, images / "green.jpg", *where)[0]
    _, error = run_here(classify_client, images / "a.png", "--model", "shapes", *where, code=1)
    assert error == (
        "error: the model 'shapes' detects objects, it does not classify images\n"
        "hint: use detect.py; ensembles that do: tiny\n"
    )
    _, error = detect(images / "a.png", "--model", "tiny", *where, code=1)
    assert error.startswith(
        "error: the model 'tiny' classifies images, it does not detect objects\nhint: use classify.py"
    )
    for member in ("shapes_preprocess", "tiny_preprocess"):  # that also answers GEOMETRY, FP32
        for client, wanted in ((detect_client, "boxes (FP32), scores and classes"), (classify_client, "scores (FP32)")):
            _, error = run_here(client, images / "a.png", "--model", member, *where, code=1)
            assert f"from BYTES IMAGE, not {wanted} from encoded images (BYTES)" in error


@both
def test_bad_images_cost_only_their_own_answers(urls: dict[str, str], images: Path, protocol: str) -> None:
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:60])
    (images / "white.png").write_bytes(draw_scene({}, size=(64, 64), ground=(255, 255, 255)))
    output, error = detect(
        images, images / "absent.jpg", "--json", "--protocol", protocol, "--url", urls[protocol], code=1
    )
    assert list(parse_rows(output)) == ["a.png", "b.jpg", "empty.png"]
    assert f"error: {images / 'broken.png'}: in ensemble 'shapes', IMAGE[0] of 1: broken image" in error
    assert (
        f"error: {images / 'white.png'}: in ensemble 'shapes', image 0 of 1: the network answers boxes that are"
        in error
    )
    assert f"error: {images / 'absent.jpg'}: No such file or directory" in error
    assert error.count("error:") == error.count("hint:") == 3


@both
def test_standard_input_and_labels_of_a_file(urls: dict[str, str], images: Path, tmp_path: Path, protocol: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text("rot\ngrün\nblau\n")
    where = ("-", "--json", "--protocol", protocol, "--url", urls[protocol], "--labels", names)
    output, _ = detect(*where, stdin=(images / "a.png").read_bytes())
    assert [one["label"] for one in parse_rows(output)["-"]] == ["rot", "blau"]
    names.write_text("rot\ngrün")
    _, error = detect(*where, stdin=(images / "a.png").read_bytes(), code=1)
    assert "error: the model answers class 2, and there are 2 labels: 0 to 1 (0 of 1 images searched before)" in error


@both
def test_a_hardened_server(hardened: dict[str, str], images: Path, tmp_path: Path, protocol: str) -> None:
    where = ("--protocol", protocol, "--url", hardened[protocol])
    _, error = detect(images, *where, code=1)
    assert error == f"error: the server at {hardened[protocol]} does not list its models\nhint: give --model NAME\n"
    output, error = detect(images, "--model", "shapes", "--score", "0.1", "--json", *where)
    assert [(one["label"], one["index"]) for one in parse_rows(output)["a.png"]] == [(None, 0), (None, 2)]
    assert error == ""  # its threshold is not known
    assert "  0.9000  class 0  40 60 120 100" in detect(images / "a.png", "--model", "shapes", *where)[0]
    (tmp_path / "names.txt").write_text("rot\ngrün\nblau\n")
    output, _ = detect(images / "a.png", "--model", "shapes", "--labels", tmp_path / "names.txt", *where)
    assert "  0.7000  blau  200 10 300 200" in output
    _, error = detect(images, "--model", "absent", *where, code=1)
    assert "unknown model: 'absent' is not found" in error
    assert "the image" not in error


def near(picture: Image.Image, point: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    """Say whether a pixel has about this colour."""
    return bool(np.abs(np.array(picture.convert("RGB").getpixel(point)) - colour).max() < 60)


@both
def test_draws_into_a_folder(urls: dict[str, str], images: Path, tmp_path: Path, protocol: str) -> None:
    before = {path: path.read_bytes() for path in images.rglob("*.*")}
    (images / "notes").write_bytes(draw_scene(SCENES["a.png"]))
    where = ("--protocol", protocol, "--url", urls[protocol])
    detect(images, images / "notes", "--draw", tmp_path / "drawn", *where)
    drawn = {path.relative_to(tmp_path / "drawn").as_posix(): path for path in (tmp_path / "drawn").rglob("*.*")}
    assert sorted(drawn) == ["a.png", "deeper/b.jpg", "empty.png", "notes.png"]
    assert {path: path.read_bytes() for path in before} == before
    with Image.open(drawn["a.png"]) as picture, Image.open(images / "a.png") as original:
        assert picture.size == original.size
        changed = np.array(picture).astype(int) - np.array(original)
        rows, columns = np.nonzero(np.abs(changed).sum(axis=2))
        # the frames, a line around them, and the labels above
        assert (columns.min(), columns.max(), rows.max()) == (39, 301, 201)
    with Image.open(drawn["empty.png"]) as picture, Image.open(images / "empty.png") as original:
        assert np.array_equal(np.array(picture), np.array(original))
    with Image.open(drawn["deeper/b.jpg"]) as picture:
        assert picture.format == "JPEG"


def test_draws_the_picture_as_the_server_turned_it(urls: dict[str, str], tmp_path: Path) -> None:
    for encoding in ("JPEG", "PNG"):
        picture = tmp_path / f"turned.{encoding.lower()}"
        picture.write_bytes(draw_scene({"red": (40, 60, 120, 100)}, encoding=encoding, orientation=6))
        out = tmp_path / "out.png"
        output, _ = detect(picture, "--draw", out, "--url", urls["grpc"])
        assert [round(int(edge), -1) for edge in output.split()[-4:]] == [140, 40, 180, 120]
        with Image.open(out) as drawn:
            assert drawn.size == (240, 320)
            assert not drawn.getexif()
            assert near(drawn, (160, 80), COLOURS["red"])  # inside of the box


def test_drawings_that_cannot_be(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    where = ("--url", urls["grpc"])
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((images, "--draw", tmp_path / "one.png"), "is one file, and there are 3 images\nhint: give a folder"),
        (
            (images, "--draw", tmp_path / "one.pdf"),
            "is neither a folder nor a picture\nhint: make the folder, or use .bmp",
        ),
        ((images, "--draw", images), "is one of the images, and would be overwritten"),
        ((images / "a.png", "--draw", images / "deeper" / ".." / "a.png"), "is one of the images, and would be"),
        ((images / "a.png", images / "deeper" / "a.png", "--draw", tmp_path), "two images have the same name"),
    ]
    for arguments, message in cases:
        output, error = detect(*arguments, *where, code=1)
        assert output == ""
        assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    (tmp_path / "file").touch()
    _, error = detect(images / "a.png", "--draw", tmp_path / "file" / "deeper.png", *where, code=1)
    assert f"{tmp_path / 'file' / 'deeper.png'} cannot be written: {tmp_path / 'file'} is a file" in error
    # base64 text is an image for the server, not for Pillow
    (tmp_path / "text.png").write_bytes(base64.b64encode((images / "a.png").read_bytes()))
    output, error = detect(tmp_path / "text.png", images / "a.png", "--draw", tmp_path / "drawn", *where, code=1)
    assert output.count("red") == 2
    assert "text.png: it was searched, but cannot be drawn: Pillow cannot read it" in error
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["a.png"]


def test_drawing_needs_pillow_and_nothing_else_does(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    (tmp_path / "PIL.py").write_text("raise ImportError('none here')")
    paths = [str(tmp_path), str(CLIENTS)]
    code = f"import sys; sys.path[:0] = {paths}; import detect; sys.exit(detect.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(images / "a.png"), "--url", urls["grpc"]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = subprocess.run([*command, "--draw", "x.png"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: --draw needs Pillow: none here\nhint: pip install pillow\n"


def read_results(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def test_coco_results_by_order(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    detect(images, "--coco", tmp_path / "results.json", "--url", urls["grpc"])
    rows = read_results(tmp_path / "results.json")
    assert rows[:2] == [
        {"image_id": 1, "category_id": 1, "bbox": [40, 60, 80, 40], "score": 0.9, "file_name": "a.png"},
        {"image_id": 1, "category_id": 3, "bbox": [200, 10, 100, 190], "score": 0.7, "file_name": "a.png"},
    ]
    assert [(row["image_id"], row["category_id"], row["file_name"]) for row in rows[2:]] == [(2, 2, "deeper/b.jpg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "results.json"]


def make_annotations(**changes: Any) -> dict[str, Any]:
    """COCO annotations of SCENES with ids of their own, without a category for green."""
    categories = {"blue thing": 4, "red": 90}
    numbers = {"empty.png": 7, "a.png": 500, "b.jpg": 12}
    truth = [
        {"id": 1, "image_id": 500, "category_id": 90, "bbox": [40, 60, 80, 40], "area": 3200, "iscrowd": 0},
        {"id": 2, "image_id": 500, "category_id": 4, "bbox": [200, 10, 100, 190], "area": 19000, "iscrowd": 0},
    ]
    return {
        "info": {},
        "images": [{"id": it, "file_name": name, "width": 320, "height": 240} for name, it in numbers.items()],
        "categories": [{"id": it, "name": name} for name, it in categories.items()],
        "annotations": truth,
        **changes,
    }


def test_coco_results_with_the_ids_of_annotations(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(make_annotations()))
    (images / "other.png").write_bytes((images / "a.png").read_bytes())
    _, error = detect(images, "--coco", results, "--annotations", truth, "--url", urls["grpc"])
    rows = read_results(results)
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(500, 90), (500, 4)]
    assert error == (
        f"note: not in the annotations, so not in the results: {images / 'other.png'}\n"
        "note: boxes of classes that the annotations do not have are not in the results: green (1)\n"
    )


def test_coco_results_are_scored_by_pycocotools(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(make_annotations()))
    detect(images, "--coco", results, "--annotations", truth, "--url", urls["grpc"])
    data = coco.COCO(str(truth))
    judged = evaluation.COCOeval(data, data.loadRes(str(results)), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[:3] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a file of COCO annotations: JSONDecodeError"),
        ("[]", "is not a file of COCO annotations: TypeError"),
        (json.dumps(make_annotations(categories=[{"id": 1}])), "is not a file of COCO annotations: KeyError: 'name'"),
    ],
)
def test_annotations_that_are_none(images: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "truth.json").write_text(content)
    output, error = detect(images, "--coco", tmp_path / "r.json", "--annotations", tmp_path / "truth.json", code=1)
    assert output == ""
    assert message in error
    assert "hint: images with file_name and id, and categories with name and id were expected" in error
    assert not (tmp_path / "r.json").exists()


def test_files_that_cannot_be_written_or_read(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    where = (images / "a.png", "--url", urls["grpc"])
    output, error = detect(*where, "--coco", "/dev/full", code=1)
    assert "red" in output
    assert "error: /dev/full cannot be written: No space left on device" in error
    _, error = detect(*where, "--labels", tmp_path, code=1)
    assert f"error: {tmp_path}: Is a directory" in error
    (tmp_path / "none.txt").write_text("\n\n")
    _, error = detect(*where, "--labels", tmp_path / "none.txt", code=1)
    assert "no label in this file" in error
    _, error = detect(*where, "--labels", images / "a.png", code=1)
    assert "is not a text file" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: IMAGE"),
        (("x.jpg", "--score", "1.5"), "--score: 1.5 is not between 0 and 1"),
        (("x.jpg", "--score", "nan"), "--score: nan is not between 0 and 1"),
        (("x.jpg", "--score", "high"), "--score: invalid share value: 'high'"),
        (("x.jpg", "--draw", ""), "--draw: the argument is empty"),
        (("x.jpg", "--annotations", "y.json"), "--annotations needs --coco"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    output, error = detect(*arguments, code=2)
    assert output == ""
    assert message in error


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_frames_and_labels_show_on_every_ground(ground: tuple[int, int, int]) -> None:
    """Whatever the class's colour, a frame has pixels far from the ground, and its label from what is behind it."""
    for index in range(12):
        picture = draw_boxes(Image.new("RGB", (400, 300), ground), [Detection("box", index, 0.5, (100, 100, 300, 200))])
        pixels = np.array(picture).astype(int)
        across = pixels[150, 90:120]
        assert np.abs(across - ground).max() > 100
        label = pixels[86:99, 101:150].reshape(-1, 3)  # above the frame
        luminance = np.abs((label - pixels[98, 101]) @ (0.299, 0.587, 0.114))
        assert 0.05 < (luminance > 100).mean() < 0.5


def test_colours_and_widths() -> None:
    assert len({choose_colour(index) for index in range(100)}) == 100

    def count(size: int) -> int:
        """Return how many pixels of a row the left edge of a box takes."""
        box = (size * 0.25, size * 0.5, size * 0.75, size * 0.9)
        drawn = draw_boxes(Image.new("RGB", (size, size)), [Detection(None, 3, 0.5, box)])
        row = np.array(drawn)[round(size * 0.7), : size // 2].astype(int)
        return int((row.sum(axis=1) > 0).sum())

    assert 2 <= count(300) < count(1500) < count(4000)


def test_pictures_of_every_kind_are_drawn_on() -> None:
    box = [Detection("red", 0, 0.5, (0, 0, 1, 5))]
    for mode in ("L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "RGB"):
        stream = io.BytesIO()
        Image.new(mode, (1, 5)).save(stream, "TIFF" if mode == "CMYK" else "PNG")
        assert draw_boxes(open_picture(stream.getvalue(), apply_exif=False), box).size == (1, 5)
    stream = io.BytesIO()
    Image.new("RGBA", (9, 9), (200, 0, 0, 0)).save(stream, "PNG")
    assert open_picture(stream.getvalue(), apply_exif=True).getpixel((4, 4)) == (255, 255, 255)
    stream = io.BytesIO()
    Image.new("I;16", (9, 9), 257 * 100).save(stream, "PNG")
    assert open_picture(stream.getvalue(), apply_exif=True).getpixel((4, 4)) == (100, 100, 100)


def test_labels_stay_in_the_picture_and_off_each_other() -> None:
    taken: list[tuple[float, float, float, float]] = []
    for box in (
        (300.0, 0.0, 320.0, 200.0),
        (300.0, 5.0, 318.0, 210.0),
        (0.0, 0.0, 5.0, 240.0),
        (0.0, 230.0, 9.0, 240.0),
    ):
        place = _find_place(box, (80, 12), (320, 240), taken)
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] < 320
        assert place[3] < 240
        assert not any(_overlap(place, other) for other in taken)
        taken.append(place)
    everywhere = [(0.0, 0.0, 320.0, 240.0)]
    assert _find_place((100.0, 50.0, 200.0, 150.0), (80, 12), (320, 240), everywhere) == (100, 38, 180, 50)
