"""The gate of a detector: what is right passes, and each planted fault fails its own part with its cause named."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from generator.cli import main
from generator.errors import MissingDependencyError, VerificationError
from generator.gate.candidate import Candidate
from generator.gate.causes import of_precision
from generator.gate.client import GrpcAddress, as_bytes
from generator.gate.published import read_candidate, verify_published
from generator.gate.stages import judge_pixels
from generator.images.reference import Reference, load_reference
from generator.pipeline import BuildOptions, build_repository
from generator.repository import read_record
from generator.spec.file import make_spec
from generator.spec.recipe import Recipe
from generator.task import StageResult
from generator.tasks.detection import causes
from generator.tasks.detection.anchors import measure_spread
from generator.tasks.detection.annotations import Truth
from generator.tasks.detection.answers import default_images, make_answers
from generator.tasks.detection.compare import (
    LIMITS,
    compare,
    compare_rows,
    find_different_rows,
    find_overlaps,
)
from generator.tasks.detection.decode import Rows
from generator.tasks.detection.judge import Gate
from generator.tasks.detection.labelled import measure_labelled, score_boxes
from generator.tasks.detection.naive import Found, Settings, detect, read_settings
from generator.tasks.detection.plan_stage import check_rows
from generator.tasks.detection.stages import make_stages
from tests import blobs, detectors

Edit = Callable[[Path, str, str], None]
STAGES = ["batches", "onnx", "served pixels", "served detector", "served postprocessing", "served ensemble"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the detector of rectangles, built and proved once; not to be changed."""
    folder = tmp_path_factory.mktemp("blobs")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in blobs.LABELS))
    spec = make_spec(
        [str(blobs.write_detector(folder / "blobs.onnx"))],
        task="detection",
        labels=str(folder / "labels.txt"),
        recipe=blobs.RECIPE,
        detection={"layout": "scores", "boxes": "xyxy", "units": "pixels", "class_scores": {"green": 0.3}},
        batch={"max": 8},
        instances={"preprocess": 1},
    )[0]
    options = BuildOptions(require_all=True, images=blobs.write_scenes(folder / "scenes", 32))
    report = build_repository(spec, folder / "model_repository", options).report
    assert report is not None
    assert [result.stage for result in report.results if result.status == "proved"] == STAGES
    return folder / "model_repository"


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy of the repository, to be changed at will."""
    return Path(shutil.copytree(built, tmp_path / "model_repository"))


def look_up(root: Path, name: str = "blobs") -> tuple[Candidate, Reference]:
    record = read_record(root, name)
    assert record is not None
    candidate = read_candidate(root, record)
    return candidate, load_reference(root / candidate.layout.reference)


def run_stage(root: Path, stage_name: str, served: Any = None, *, name: str = "blobs") -> StageResult:
    (stage,) = [stage for stage in make_stages(*look_up(root, name)) if stage.name == stage_name]
    return stage.run(served)


# --- what is right -------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_running_server_is_verified_and_edited_thresholds_are_said(
    root: Path, tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in config.pbtxt is what the step is judged by: it may be changed there."""
    from generator.server.embedded import EmbeddedServer

    edit(root / "blobs_postprocess/config.pbtxt", '"0.25"', '"0.35"')
    edit(root / "blobs_postprocess/config.pbtxt", '"0.45"', '"0.3"')
    with EmbeddedServer(root) as server:
        assert main(["verify", "blobs", "-r", str(root), "--url", server.grpc_url, "--json", "--require", "all"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        stages = {stage["stage"]: stage for stage in entry["stages"]}
        assert [name for name in STAGES if stages[name]["status"] == "proved"] == STAGES
        for name in ("served postprocessing", "served ensemble"):
            assert (
                "thresholds and iou as config.pbtxt says, which is not what the spec asks" in stages[name]["measured"]
            )
        assert stages["served ensemble"]["agreement"] == 1
        write_coco(tmp_path / "labelled", tmp_path / "instances.json", 6)
        served = measure_stages(root, tmp_path / "labelled", server.grpc_url)
        assert list(served) == ["labelled source", "labelled onnx", "labelled served"]
        assert served["labelled served"].figures == served["labelled onnx"].figures
        # a server that still has the old thresholds is found out
        edit(root / "blobs_postprocess/config.pbtxt", '"0.3"', '"0.45"')
        (report,) = verify_published(root, ["blobs"], grpc_url=server.grpc_url)
    assert [result.stage for result in report.failed] == ["served postprocessing"]


# --- planted faults: the graph -------------------------------------------------------------------------------------

Change = Callable[[onnx.ModelProto], None]


def behind(output: str, operator: str, *inputs: str, constants: Mapping[str, Any] | None = None, **more: Any) -> Change:
    """Put a node behind an output of the graph; `inputs` come after it."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        prefix = f"before_{len(graph.node)}_"
        for name, values in (constants or {}).items():
            if not any(tensor.name == name for tensor in graph.initializer):
                graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        for node in graph.node:
            node.output[:] = [f"{prefix}{name}" if name == output else name for name in node.output]
            node.input[:] = [f"{prefix}{name}" if name == output else name for name in node.input]
        graph.node.append(helper.make_node(operator, [f"{prefix}{output}", *inputs], [output], **more))

    return change


def add_to(tensor: str, offsets: NDArray[np.float32]) -> Change:
    """Add to a tensor inside the graph."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(offsets, "offsets"))
        (maker,) = [node for node in model.graph.node if tensor in node.output]
        maker.output[0] = f"right_{tensor}"
        added = helper.make_node("Add", [f"right_{tensor}", "offsets"], [tensor])
        model.graph.node.insert(list(model.graph.node).index(maker) + 1, added)

    return change


def with_constant(name: str, change: Callable[[Any], Any]) -> Change:
    """Change one of the graph's constants."""

    def plant(model: onnx.ModelProto) -> None:
        (found,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
        found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), name))

    return plant


def bgr_graph(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "order"))
    for node in model.graph.node:
        node.input[:] = ["bgr" if name == "PIXELS" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", ["PIXELS", "order"], ["bgr"], axis=3))


def fewer_rows(model: onnx.ModelProto) -> None:
    """As a top-K of ten would answer."""
    for output in ("DET_BOXES", "DET_SCORES", "DET_CLASSES"):
        ends = {f"{output}_start": np.array([0]), f"{output}_end": np.array([10]), f"{output}_axis": np.array([1])}
        behind(output, "Slice", *ends, constants=ends)(model)
    for end in model.graph.output:
        end.type.tensor_type.shape.dim[1].dim_value = 10


def centre_and_size(model: onnx.ModelProto) -> None:
    """Corners become centre and size, as where nobody decoded them."""
    matrix = np.array([[0.5, 0, -1, 0], [0, 0.5, 0, -1], [0.5, 0, 1, 0], [0, 0.5, 0, 1]], np.float32)
    behind("DET_BOXES", "MatMul", "matrix", constants={"matrix": matrix})(model)


def swapped_axes(model: onnx.ModelProto) -> None:
    behind("DET_BOXES", "Gather", "xy", constants={"xy": np.array([1, 0, 3, 2])}, axis=2)(model)


def not_a_number(model: onnx.ModelProto) -> None:
    behind("DET_BOXES", "Add", "nan", constants={"nan": np.array(np.nan, np.float32)})(model)


GRAPH_FAULTS: list[tuple[str, Change, str]] = [
    ("BGR", bgr_graph, "the channels are in BGR order"),
    (
        "0.9x scale",
        with_constant("trtgen_scale", lambda values: values * np.float32(0.9)),
        "wrong scale: the graph mult",
    ),
    ("xywh for xyxy", centre_and_size, "boxes are centre and size (cxcywh)"),
    ("swapped axes", swapped_axes, "x and y are swapped"),
    ("class off by one", behind("DET_CLASSES", "Add", "next", constants={"next": np.array(1, np.int32)}), "off by one"),
    ("grid half a cell off", with_constant("grid", lambda values: values - 4), "displaced by 4 pixels, as where the c"),
    ("off by one pixel", with_constant("grid", lambda values: values + 1), "the boxes are off by one pixel"),
    (
        "a share of the image",
        behind("DET_BOXES", "Mul", "size", constants={"size": np.array(1 / 128, np.float32)}),
        "the boxes are 0.00781 times as large",
    ),
    ("top-K too small", fewer_rows, "top-K is too small"),
    ("NaN", not_a_number, "an overflow, a division by zero"),
    (
        "no sigmoid",
        behind("DET_SCORES", "Mul", "ten", constants={"ten": np.array(10, np.float32)}),
        "the Sigmoid or Softmax is missing",
    ),
    ("order", behind("DET_SCORES", "Neg"), "the Sigmoid or Softmax is missing"),
    (
        "other weights",
        with_constant("kernel", lambda values: values * np.float32(1.05)),
        "the weights or the graph diff",
    ),
]


def change_graph(root: Path, change: Change, name: str = "blobs") -> None:
    path = root / f"{name}_detector/1/model.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


@pytest.mark.parametrize(("plant", "cause"), [fault[1:] for fault in GRAPH_FAULTS], ids=[f[0] for f in GRAPH_FAULTS])
def test_a_fault_in_the_graph_fails_the_graph(root: Path, plant: Change, cause: str) -> None:
    change_graph(root, plant)
    result = run_stage(root, "onnx")
    assert result.status == "failed"
    assert cause in result.cause, result
    assert result.reason


@pytest.mark.parametrize("fault", ["BGR", "swapped axes", "other weights"])
def test_without_confident_detections_rows_and_anchors_decide(root: Path, edit: Edit, fault: str) -> None:
    """As with random weights: no score reaches the threshold."""
    edit(root / "blobs_postprocess/config.pbtxt", '"0.25"', '"0.97"')
    edit(root / "blobs_postprocess/config.pbtxt", "0.3}", "0.97}")
    result = run_stage(root, "onnx")
    assert result.status == "proved"
    assert re.search(
        r"0 confident detections; of \d+ rows 100.00% agree by box and class; single anchors", result.measured
    )
    change_graph(root, next(plant for name, plant, _ in GRAPH_FAULTS if name == fault))
    assert run_stage(root, "onnx").status == "failed"


def test_anchors_that_no_row_shows_are_compared(root: Path) -> None:
    """A graph that is wrong where nothing is, so that its best rows are all right."""
    offsets = np.zeros((1, 3 * blobs.CELLS, 1), np.float32)
    offsets[:, -1] = 30  # pixels, in the last corner
    change_graph(root, add_to("boxes", offsets))
    result = run_stage(root, "onnx")
    assert (result.status, result.figures["agreement"]) == ("failed", 1)
    assert "single anchors within" in result.reason
    assert "3e+01 px" in result.reason


# --- planted faults: what is served --------------------------------------------------------------------------------


class Steps:
    """In place of a server: the steps of a repository, each model.py run here as it stands there."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._monkeypatch = root, monkeypatch

    def ask(self, key: str, values: Any, *, needed: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        folder = self._root / f"blobs_{key}"
        module = ModuleType("step")
        triton: Any = ModuleType("triton_python_backend_utils")
        triton.get_input_tensor_by_name = lambda request, name: SimpleNamespace(as_numpy=lambda: request[name])
        triton.Tensor = lambda name, rows: (name, rows)
        triton.InferenceResponse = dict
        triton.Logger = SimpleNamespace(log_warn=print)
        self._monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
        exec(compile((folder / "1/model.py").read_text(), str(folder / "1/model.py"), "exec"), vars(module))
        model = module.TritonPythonModel()
        model.initialize(
            {"model_config": json.dumps(self._config(folder)), "model_repository": str(folder), "model_name": key}
        )
        (answers,) = model.execute([{"IMAGE": values} if key == "preprocess" else values])
        assert set(needed) <= dict(answers).keys()
        return dict(answers)

    def _config(self, folder: Path) -> dict[str, Any]:
        from google.protobuf import json_format

        from generator.triton.check import parse_config

        config = parse_config(folder.name, (folder / "config.pbtxt").read_text())
        parsed: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
        return parsed


PIXEL_FAULTS = [
    ("model.py", "self.recipe.cropped(image)\n", "self.recipe.cropped(image)[..., ::-1]\n", "BGR order"),
    ("config", '"114 114 114"', '"0 0 0"', "the padding is (0, 0, 0), the recipe says (114, 114, 114)"),
    (
        "model.py",
        "(start_x - left, start_y - top))",
        "(start_x - left + 1, start_y - top + 1))",
        "off by one pixel (+1 to the right, +1 down)",
    ),
    ("config", '"letterbox"', '"letterbox-corner"', "fitted as by fit: letterbox-corner"),
    ("config", '"bilinear"', '"linear"', "interpolation is linear"),
    (
        "model.py",
        "height, left, top, width",
        "height, 0, 0, width",
        "the offset of the image in its padding is missing",
    ),
    (
        "model.py",
        "height, left, top, width",
        "height, left + 1, top + 1, width",
        "the offset of the image is off by up to 1",
    ),
    ("model.py", "height, left, top, width", "height, top, left, width", "the offsets left and top are swapped"),
    ("model.py", "resized[1] / height, left", "resized[0] / width, left", "the scale is not that of the resized image"),
    ("model.py", "left, top, width, height\n", "left, top, height, width\n", "width and height are swapped"),
]


@pytest.mark.parametrize(("file", "old", "new", "cause"), PIXEL_FAULTS, ids=[fault[-1][:30] for fault in PIXEL_FAULTS])
def test_a_fault_in_the_preprocessing_fails_the_pixels(
    root: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, cause: str
) -> None:
    candidate, reference = look_up(root)
    steps = Steps(root, monkeypatch)
    right = judge_pixels(steps.ask("preprocess", as_bytes(reference.files)), candidate, reference)
    assert (right.status, right.measured) == ("proved", "identical, geometry equal")
    edit(root / "blobs_preprocess" / ("config.pbtxt" if file == "config" else "1/model.py"), old, new)
    result = judge_pixels(steps.ask("preprocess", as_bytes(reference.files)), candidate, reference)
    assert result.status == "failed"
    assert cause in result.cause, result
    if "height, " in old:
        assert "GEOMETRY is wrong" in result.reason


@pytest.mark.parametrize(("off", "values", "status"), [(2, 5, "proved"), (2, 10_000, "failed"), (3, 1, "failed")])
def test_pixels_of_a_gpu_may_be_off_in_few_values(root: Path, off: int, values: int, status: str) -> None:
    candidate, reference = look_up(root)
    on_gpu = dataclasses.replace(candidate, spec=candidate.spec.model_copy(update={"decode": "gpu"}))
    pixels = reference.pixels.copy()
    first = pixels[0].reshape(-1)[:values]
    first[:] = np.where(first > 127, first - off, first + off)
    assert judge_pixels({"PIXELS": pixels}, on_gpu, reference).status == status
    on_cpu = judge_pixels({"PIXELS": pixels}, candidate, reference)
    assert on_cpu.status == "failed"
    assert on_cpu.reason.startswith("1 of ")


CORNERS = "(boxes.reshape(-1, 2, 2) - offset) / scale"
BOX_FAULTS = [
    ('if options.nms == "none":', "if True:", "NMS is missing"),
    ('if options.nms == "per-class":', "if False:", "NMS compares boxes across classes (agnostic)"),
    (CORNERS, "boxes.reshape(-1, 2, 2) / scale", "the offset of the image in its padding is not undone"),
    (CORNERS, "(boxes.reshape(-1, 2, 2) - offset - 1) / scale", "the offset is off by one pixel"),
    (CORNERS, "boxes.reshape(-1, 2, 2) - offset", "the scale is not undone"),
    (CORNERS, "(boxes.reshape(-1, 2, 2) - offset) / scale[0]", "one scale is taken for both axes"),
    (".reshape(-1, 4).astype", ".reshape(-1, 4)[:, [1, 0, 3, 2]].astype", "x and y are swapped"),
    (
        "return to_original(boxes[kept], geometry), scores",
        "a = to_original(boxes[kept], geometry)\n    return np.hstack([a[:, :2], a[:, 2:] - a[:, :2]]), scores",
        "boxes are left, top, width, height (xywh)",
    ),
    ("scores[kept], classes[kept]\n", "scores[kept], classes[kept] + 1\n", "classes are off by one: one too high"),
    ("np.clip(corners, 0, size)", "corners", "boxes are not cut at the edges"),
    ("of_class.get(label, self.score)", "self.score", "the thresholds of single classes (class_scores) are not a"),
    ("len(kept) == options.most", "len(kept) == 5", "model.py differs from the one that trtgen writes"),
    ('return self.labels[index] if', 'return self.labels[index - 1] if', "labels.txt has its lines in another order"),
    (
        "number = numbers[index] = len(found[0])",
        "number = len(found[0])\n            numbers[index] = number + 1",
        "NUM_DETECTIONS or the padding",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "cause"), BOX_FAULTS, ids=[fault[-1][:30] for fault in BOX_FAULTS])
def test_a_fault_in_the_postprocessing_fails_the_postprocessing(
    root: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch, old: str, new: str, cause: str
) -> None:
    edit(root / "blobs_postprocess/1/model.py", old, new)
    result = run_stage(root, "served postprocessing", Steps(root, monkeypatch))
    assert result.status == "failed"
    assert cause in result.cause, result
    assert result.reason


@pytest.mark.server
@pytest.mark.parametrize(
    ("file", "old", "new", "failed", "cause"),
    [
        (
            "blobs_preprocess/config.pbtxt", '"114 114 114"', '"0 0 0"',
            ["served pixels"], "the padding is (0, 0, 0)",
        ),
        (
            "blobs_postprocess/1/model.py", CORNERS, CORNERS.replace("- offset", "- offset - 1"),
            ["served postprocessing", "served ensemble"], "the offset is off by one pixel",
        ),
    ],
    ids=["preprocess", "postprocess"],
)  # fmt: skip
def test_a_real_server_fails_with_its_part(
    root: Path, edit: Edit, file: str, old: str, new: str, failed: Sequence[str], cause: str
) -> None:
    edit(root / file, old, new)
    (report,) = verify_published(root, ["blobs"])
    assert [result.stage for result in report.failed] == failed
    assert cause in report.failed[0].cause
    (ensemble,) = [result for result in report.results if result.stage == "served ensemble"]
    said = "compared with what the graph answers to the served pixels" in ensemble.measured
    assert said == (failed[0] == "served pixels")  # which differ
    with pytest.raises(VerificationError, match="is not what its source is"):
        report.raise_for_status(require_all=False)


def test_another_file_on_the_server_is_found(root: Path) -> None:
    """Rows that differ, all of them or one, at the right place or among equal scores."""
    _, reference = look_up(root)

    def ask(change: Callable[[dict[str, Any]], Any]) -> StageResult:
        rows: dict[str, Any] = {
            f"DET_{name.upper()}": reference.answers[name].copy() for name in ("boxes", "scores", "classes")
        }
        change(rows)
        return run_stage(root, "served detector", SimpleNamespace(ask=lambda *_, **__: rows))

    def shift(rows: dict[str, Any], at: int) -> None:
        rows["DET_BOXES"][5, at, 2] += 0.1

    assert ask(dict.copy).status == "proved"
    for index in (0, 3):
        result = ask(partial(shift, at=index))
        assert (result.status, result.cause) == ("failed", "the server runs another file or version")
    assert ask(lambda rows: rows["DET_SCORES"].__isub__(0.001)).status == "failed"


def test_another_kernel_of_the_plan_must_find_the_same(root: Path) -> None:
    """What a plan answers in the batches that are served is the measure for its other batches."""
    candidate, reference = look_up(root)
    rows = Rows(**{name: reference.answers[name] for name in ("boxes", "scores", "classes")})
    settings = read_settings(root / "blobs_postprocess/config.pbtxt", blobs.LABELS)
    gate = Gate(candidate=candidate, reference=reference, settings=settings, limit=LIMITS["fp16"], source=rows)
    passed = StageResult(stage="plan", status="proved")

    def check(change: Callable[[dict[str, Any]], Any] = lambda _: None) -> StageResult:
        def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
            places = [
                next((at for at, own in enumerate(reference.pixels) if np.array_equal(own, image)), 0)
                for image in pixels
            ]
            answers = {f"DET_{name.upper()}": getattr(rows, name)[places] for name in ("boxes", "scores", "classes")}
            if len(pixels) == 3:
                change(answers)
            return answers

        return check_rows(passed, gate, run, rows, sizes=[1, 2, 3, 8])

    assert check() is passed
    mixed = check(lambda answers: np.copyto(answers["DET_BOXES"], answers["DET_BOXES"][::-1].copy()))
    assert "in a batch of 3" in mixed.reason
    assert "a layer mixes the rows of a batch" in mixed.cause
    assert check(lambda answers: answers["DET_SCORES"].fill(np.nan)).reason == "NaN or infinity in a batch of 3"


def test_a_post_processing_step_that_says_nothing_is_named(root: Path, edit: Edit) -> None:
    edit(root / "blobs_postprocess/config.pbtxt", '"iou"', '"iuo"')
    with pytest.raises(VerificationError, match=r"does not say which boxes are answered: KeyError: 'iou'"):
        make_stages(*look_up(root))


# --- images and answers --------------------------------------------------------------------------------------------


def test_images_that_do_not_discriminate(root: Path) -> None:
    candidate, reference = look_up(root)
    same = {name: np.repeat(values[:1], len(values), axis=0) for name, values in reference.answers.items()}
    with pytest.raises(VerificationError, match="images do not discriminate"):
        make_stages(candidate, replace(reference, answers=same))
    half = {name: np.concatenate([same[name][:20], values[20:]]) for name, values in reference.answers.items()}
    with pytest.raises(VerificationError, match="answers alike for 32 images"):
        make_stages(candidate, replace(reference, answers=half))


def test_answers_that_prove_nothing_are_refused(root: Path) -> None:
    candidate, _ = look_up(root)
    outputs = ("boxes", "scores")
    network = SimpleNamespace(onnx=None, outputs=outputs, labels=blobs.LABELS, recipe=candidate.artifact.recipe)
    calls = []

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        calls.append(len(pixels))
        boxes = np.zeros((len(pixels), 50, 4), np.float32)
        scores = np.full((len(pixels), 50, 3), 0.5 + 0.01 * drift * len(calls), np.float32)
        scores[:, 7, 1] = np.where(pixels[:, 0, 0, 0] == 9, broken, 0.5)
        return {"boxes": boxes, "scores": scores}

    network.run = run
    pixels = np.zeros((6, 8, 8, 3), np.uint8)
    pixels[4] = 9
    names = [f"{number}.jpg" for number in range(6)]
    drift, broken = 0, np.float32("nan")
    with pytest.raises(VerificationError, match=r"NaN or infinity for 1 of 6 images: 4\.jpg"):
        make_answers(candidate.spec, network, pixels, names)  # type: ignore[arg-type]
    drift, broken = 1, np.float32(0.5)
    with pytest.raises(VerificationError, match=r"answers 0\.jpg differently twice, by 0\.02"):
        make_answers(candidate.spec, network, pixels, names)  # type: ignore[arg-type]
    drift = 0
    answers = make_answers(candidate.spec, network, pixels, names)  # type: ignore[arg-type]
    assert {name: values.shape for name, values in answers.items()} == {
        "boxes": (6, 150, 4), "scores": (6, 150), "classes": (6, 150),
        "anchor_boxes": (6, 50, 4), "anchor_scores": (6, 50, 3),
    }  # fmt: skip


def test_the_default_images_are_fewer_for_large_networks() -> None:
    recipe = Recipe.model_validate(blobs.RECIPE)
    few = default_images(recipe.with_image_size((640, 640)))
    many = default_images(recipe)
    assert (len(few.names), len(many.names)) == (15, 45)
    assert {"black.png", "noise.png", "china.jpg"} <= set(few.names) <= set(many.names)


def build_net(tmp_path: Path, write: Callable[[Path], Path], detection: Mapping[str, Any]) -> Path:
    """Return a repository with a detector that `write` writes, with weights by chance."""
    path = write(tmp_path / "net.onnx")
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in detectors.NAMES))
    spec = make_spec(
        [str(path)],
        task="detection",
        labels=str(tmp_path / "labels.txt"),
        recipe={**blobs.RECIPE, "resize": [64, 64], "crop": [64, 64]},
        detection=dict(detection),
    )[0]
    options = BuildOptions(verify=False, images=blobs.write_scenes(tmp_path / "scenes", 12))
    build_repository(spec, tmp_path / "repository", options)
    return tmp_path / "repository"


@pytest.mark.parametrize("layout", ["raw", "objectness", "end2end", "scores", "logits", "sized"])
def test_every_layout_is_compared(tmp_path: Path, layout: str) -> None:
    """Boxes, or rows by box and class, and before these single anchors where there are any."""
    detection = {"boxes": "xyxy"} if layout == "end2end" else {}
    root = build_net(tmp_path, getattr(detectors, f"write_{layout}"), detection)
    result = run_stage(root, "onnx", name="net")
    assert result.status == "proved", result
    assert ("single anchors within" in result.measured) == (layout not in ("end2end", "sized"))


def test_anchors_are_compared_before_the_softmax_of_those_that_are_kept(tmp_path: Path) -> None:
    """Anchors that no row shows turn to background in the graph."""
    write = partial(detectors.write_scores, background=0, logits=True)
    reading = {"layout": "logits", "boxes": "xyxy", "units": "pixels", "background": 0}
    root = build_net(tmp_path, write, {**reading, "candidates": 20})
    result = run_stage(root, "onnx", name="net")
    assert result.status == "proved", result
    assert "single anchors within" in result.measured
    offsets = np.zeros((1, detectors.CELLS, 1 + len(detectors.NAMES)), np.float32)
    answers = look_up(root, "net")[1].answers
    unseen = (answers["anchor_scores"].max(axis=2) < answers["scores"][:, -1:]).all(axis=0)
    assert unseen.any()
    offsets[:, unseen, 0] = 50
    change_graph(root, add_to("scores", offsets), name="net")
    result = run_stage(root, "onnx", name="net")
    assert (result.status, "single anchors within" in result.reason) == ("failed", True), result


# --- labelled images -----------------------------------------------------------------------------------------------


def write_coco(folder: Path, file: Path, count: int, *, names: Sequence[str] = blobs.LABELS) -> dict[str, Any]:
    """Write scenes and their annotations in COCO's form, and return these."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    blobs.write_scenes(folder, count)
    for number in range(count):
        images.append({"id": 10 + number, "file_name": f"scene-{number:02d}.jpg"})
        _, boxes, classes = blobs.draw_scene(number)
        for (left, top, right, bottom), index in zip(boxes.tolist(), classes.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + number, "category_id": 5 + index,
                                "bbox": box, "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    categories = [{"id": 5 + index, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return content


def measure_stages(root: Path, folder: Path, url: str | None = None) -> dict[str, StageResult]:
    candidate, _ = look_up(root)
    address = GrpcAddress(url=url) if url else None
    return {result.stage: result for result in measure_labelled(candidate, folder, address)}


def test_labelled_images_give_the_ap_of_each_stage(built: Path, root: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "images", tmp_path / "instances.json", 32)
    results = measure_stages(built, tmp_path / "images")
    assert list(results) == ["labelled source", "labelled onnx"]
    assert all(result.status == "measured" for result in results.values())
    ap50, average = (results["labelled source"].figures[name] for name in ("ap50", "map"))
    assert 0.8 < average < ap50
    assert results["labelled onnx"].figures == results["labelled source"].figures
    assert "AP50 +0.0000 to source" in results["labelled onnx"].measured
    # YOLO's form says the same
    (tmp_path / "instances.json").unlink()
    (tmp_path / "labels").mkdir()
    for number in range(32):
        data, boxes, classes = blobs.draw_scene(number)
        width, height = Image.open(io.BytesIO(data)).size
        lines = [
            f"{index} {(left + right) / 2 / width} {(top + bottom) / 2 / height} {(right - left) / width} "
            f"{(bottom - top) / height}"
            for (left, top, right, bottom), index in zip(boxes, classes, strict=True)
        ]
        (tmp_path / f"labels/scene-{number:02d}.txt").write_text("\n".join(lines))
    assert measure_stages(built, tmp_path / "images")["labelled onnx"].figures == pytest.approx(
        {"ap50": ap50, "map": average}, abs=1e-6
    )
    # a graph that finds fewer
    change_graph(root, with_constant("width", lambda value: (value * 30).astype(np.float32)))
    worse = measure_stages(root, tmp_path / "images")["labelled onnx"]
    assert worse.status == "failed"
    assert "limit -0.02" in worse.reason
    assert "keep the last layers in FP32" in worse.cause


def test_average_precision_on_an_example_by_hand() -> None:
    truths = [[Truth(box=(0, 0, 10, 10), index=0), Truth(box=(50, 50, 20, 20), index=1)], []]
    right = Found(np.array([[0, 0, 10, 10], [50, 50, 70, 70]], np.float32), np.array([0.9, 0.8], np.float32),
                  np.array([0, 1], np.int32))  # fmt: skip
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    assert score_boxes(truths, [right, nothing], 2) == pytest.approx((1, 1))
    assert score_boxes(truths, [nothing, nothing], 2) == (0, 0)
    # IoU .6: right from .5 to .6
    loose = right._replace(boxes=np.array([[0, 0, 10, 6], [50, 50, 70, 62]], np.float32))
    assert score_boxes(truths, [loose, nothing], 2) == pytest.approx((1, 0.3), abs=0.051)
    crowd = [[*truths[0], Truth(box=(100, 100, 50, 50), index=0, is_crowd=True)], []]
    assert score_boxes(crowd, [right, nothing], 2) == pytest.approx((1, 1))


def test_annotations_that_cannot_be_used(built: Path, tmp_path: Path) -> None:
    images, file = tmp_path / "images", tmp_path / "a.json"

    def refused(match: str) -> None:
        with pytest.raises(VerificationError, match=match) as caught:
            measure_stages(built, images)
        assert caught.value.hint

    blobs.write_scenes(images, 3)
    refused("has images, but no annotations: COCO annotations")
    write_coco(images, file, 3, names=("red", "gren", "blue"))
    refused("the category 'gren' is none of the model's labels; 'green' is like it")
    content = write_coco(images, file, 3)
    (images / "scene-01.jpg").unlink()
    refused(r"tells of 3 images, 1 are not there: .*scene-01\.jpg first")
    blobs.write_scenes(images, 3)
    file.write_text(json.dumps({**content, "annotations": [{"image_id": 10, "category_id": 5}]}))
    refused("is not what COCO's format says: KeyError: 'bbox'")
    (tmp_path / "b.json").write_text(file.read_text())
    refused("holds several files of COCO annotations: a.json, b.json")
    (images / "broken.json").write_text("{")
    refused("broken.json cannot be read")
    for path in (images / "broken.json", file, tmp_path / "b.json"):
        path.unlink()
    text = images / "scene-00.txt"
    for line, match in (
        ("3 0.5 0.5 0.1 0.1", r"line 1: class 3, but the model has the classes 0 to 2"),
        ("0 0.5 0.5 0.1", "class and four numbers"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "class and four numbers"),
        ("red 0.5 0.5 0.1 0.1", "class and four numbers"),
        ("0 100 50 20 20", "shares of the image from 0 to 1"),
    ):
        text.write_text(f"{line}\n")
        refused(match)


def test_without_the_package_for_map_it_is_named(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingDependencyError, match="faster-coco-eval is not installed") as caught:
        measure_stages(built, tmp_path)
    assert caught.value.hint == "in trtgen's checkout: pip install -e '.[detection]'"


# --- arithmetic ----------------------------------------------------------------------------------------------------

SETTINGS = Settings(thresholds=(0.25, 0.25, 0.25), iou=0.45, nms="per-class", most=100)


def make_found(count: int = 30, seed: int = 0) -> Found:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 400, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(20, 60, (count, 2))]).astype(np.float32)
    return Found(boxes, np.linspace(0.95, 0.4, count, dtype=np.float32), rng.integers(0, 3, count).astype(np.int32))


def measure(change: Callable[[Found], Found], precision: str) -> str:
    """Return what the comparison of five images with changed ones comes to."""
    expected = [make_found(seed=seed) for seed in range(5)]
    limit = LIMITS[precision]
    comparison = compare(expected, [change(found) for found in expected], SETTINGS, limit)
    return "failed" if comparison.fails(limit) else "proved" if comparison.confident >= 100 else "undecided"


def drop(count: int) -> Callable[[Found], Found]:
    return lambda found: Found(found.boxes[count:], found.scores[count:], found.classes[count:])


@pytest.mark.parametrize(
    ("change", "outcomes"),
    [
        (lambda found: found, "proved proved proved proved"),
        (drop(1), "failed failed proved proved"),  # 5 of 295
        (drop(4), "failed failed failed failed"),
        (lambda found: found._replace(boxes=found.boxes + 0.4), "proved proved proved proved"),
        (lambda found: found._replace(boxes=found.boxes + 0.6), "failed proved proved proved"),
        (lambda found: found._replace(boxes=found.boxes + 5), "failed failed failed failed"),
        (lambda found: found._replace(scores=found.scores * np.float32(0.99)), "failed proved proved proved"),
        (lambda found: found._replace(classes=(found.classes + 1) % 3), "failed failed failed failed"),
        (lambda found: found._replace(boxes=found.boxes[:, [1, 0, 3, 2]]), "failed failed failed failed"),
    ],
)
def test_limits_by_precision(change: Callable[[Found], Found], outcomes: str) -> None:
    assert " ".join(measure(change, precision) for precision in ("fp32", "fp16", "bf16", "int8")) == outcomes


def test_fewer_than_100_detections_decide_only_what_is_beyond_doubt() -> None:
    few = [make_found(20)]
    for precision, lost, fails in (("fp32", 1, True), ("fp16", 1, False), ("fp16", 2, True), ("int8", 5, False)):
        limit = LIMITS[precision]
        comparison = compare(few, [drop(lost)(few[0])], SETTINGS, limit)
        assert (comparison.confident, comparison.fails(limit)) == (20, fails)


def test_a_detection_that_nms_drops_by_rounding_is_a_tie() -> None:
    """Two boxes that overlap by just the limit; one side keeps both, the other one; both are rows of both."""
    boxes = np.array([[0, 0, 40, 40], [0, 15, 40, 55]], np.float32)
    found = Found(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32))
    rows = Rows(boxes=boxes[None], scores=found.scores[None], classes=found.classes[None])
    comparison = compare([found], [drop(1)(found)], SETTINGS, LIMITS["fp32"], rows=(rows, rows))
    assert (comparison.missed, comparison.ties) == (0, 1)
    other = Rows(boxes=boxes[None] + 2, scores=found.scores[None], classes=found.classes[None])
    assert compare([found], [drop(1)(found)], SETTINGS, LIMITS["fp32"], rows=(rows, other)).missed == 1
    assert compare([found], [drop(1)(found)], SETTINGS, LIMITS["fp32"]).missed == 1


def test_which_detection_is_the_last_of_a_full_answer_rounding_decides() -> None:
    """FP16: 100 of 120 are answered, and those around the hundredth are other ones on the two sides."""
    corners = np.array([(x, y) for x in range(0, 480, 40) for y in range(0, 400, 40)], np.float32)
    boxes = np.hstack([corners, corners + 30])
    scores = np.linspace(0.9, 0.6, len(boxes), dtype=np.float32)

    def compare_with(
        other: NDArray[np.float32], moved: float = 0, most: int = 100, precision: str = "fp16"
    ) -> tuple[int, int, int]:
        rows, found = [], []
        for values, places in ((scores, boxes), (other, boxes + np.float32(moved))):
            order = np.argsort(-values, kind="stable")
            found.append(Found(places[order[:most]], values[order[:most]], np.zeros(most, np.int32)))
            rows.append(
                Rows(boxes=places[None, order], scores=values[None, order], classes=np.zeros((1, 120), np.int32))
            )
        comparison = compare([found[0]], [found[1]], SETTINGS, LIMITS[precision], rows=(rows[0], rows[1]))
        return comparison.missed, comparison.ties, comparison.judged

    noise = np.random.default_rng(0).uniform(-0.02, 0.02, len(scores)).astype(np.float32)
    assert compare_with(scores + noise) == (0, 4, 196)
    assert compare_with(scores + noise, precision="fp32")[0] > 0  # whose scores differ by less
    assert compare_with(scores + noise, most=99)[0] > 0  # nothing was cut off
    assert compare_with(scores + noise, moved=5)[0] == 200
    assert compare_with(scores[::-1].copy())[0] > 10  # any order of scores would do otherwise


def test_rows_of_equal_scores_may_change_places() -> None:
    rng = np.random.default_rng(2)
    scores = np.sort(rng.uniform(0.1, 1, (3, 40)).astype(np.float32).round(1), axis=1)[:, ::-1].copy()
    rows = Rows(boxes=rng.uniform(0, 99, (3, 40, 4)).astype(np.float32), scores=scores,
                classes=rng.integers(0, 4, (3, 40)).astype(np.int32))  # fmt: skip
    order = np.stack([np.lexsort((rng.random(40), -one)) for one in scores])
    moved = Rows(boxes=np.take_along_axis(rows.boxes, order[..., None], 1), scores=scores,
                 classes=np.take_along_axis(rows.classes, order, 1))  # fmt: skip
    assert find_different_rows(rows, moved, score=1e-4, box=1e-2)[0] == 0
    assert compare_rows(rows, moved, LIMITS["fp32"])[1] == 0
    repeated = replace(
        rows, boxes=np.repeat(rows.boxes[:, :1], 40, axis=1), scores=np.repeat(scores[:, :1], 40, axis=1)
    )
    assert find_different_rows(rows, repeated, score=1e-4, box=1e-2)[0] > 0
    swapped = replace(rows, classes=np.roll(rows.classes, 1, axis=1))
    counted, missed = compare_rows(rows, swapped, LIMITS["fp32"])
    assert missed > counted / 2


def test_overlaps_and_spread() -> None:
    one = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    assert find_overlaps(one, one).tolist() == [[1, 0], [0, 1]]
    assert find_overlaps(one[:1], np.array([[5, 0, 15, 10]], np.float32))[0, 0] == pytest.approx(1 / 3)
    values = np.random.default_rng(0).random((9, 30, 4), np.float32)
    spread = measure_spread(values * 100, values[..., :2])
    assert spread.has_boxes
    assert spread.has_scores
    alike = measure_spread(
        np.repeat(values[:1], 9, axis=0), np.full((9, 30, 2), 1.6e-4, np.float32) + values[..., :2] * 1e-9
    )
    assert not alike.has_boxes
    assert not alike.has_scores


def test_the_plain_loop_on_an_example_by_hand() -> None:
    boxes = np.array(
        [[10, 10, 50, 50], [12, 10, 52, 50], [12, 10, 52, 50], [-5, 80, 20, 130], [60, 60, 70, 70]], np.float32
    )
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.2], np.float32)
    classes = np.array([0, 0, 1, 2, 2], np.int32)
    geometry = np.array([0.5, 0.25, 2, 10, 120, 400], np.float32)
    found = detect(boxes, scores, classes, geometry, SETTINGS)
    assert found.classes.tolist() == [0, 1, 2]
    assert found.boxes.tolist() == [[16, 0, 96, 160], [20, 0, 100, 160], [0, 280, 36, 400]]
    one = replace(SETTINGS, nms="agnostic", most=2, thresholds=(0.25, 0.25, 0.65))
    assert detect(boxes, scores, classes, geometry, one).scores.tolist() == [np.float32(0.9)]
    assert detect(boxes, scores, classes, geometry, replace(SETTINGS, nms="none", most=2)).classes.tolist() == [0, 0]


def test_boxes_at_their_places_are_not_called_displaced() -> None:
    draw = np.random.default_rng(3)
    corners = np.sort(draw.uniform(0, 300, (1, 60, 2, 2)), axis=2).reshape(1, 60, 4)
    scores = np.linspace(0.9, 0.1, 60, dtype=np.float32)[None]
    classes = draw.integers(0, 3, (1, 60)).astype(np.int32)
    source = Rows(boxes=corners.astype(np.float32), scores=scores, classes=classes)
    assert "displaced by 4 pixels" in causes.of_rows(source, replace(source, boxes=source.boxes + 4))
    assert "displaced" not in causes.of_rows(source, replace(source, scores=scores - np.float32(5e-4)))


@pytest.mark.parametrize(
    ("precision", "is_as_is", "said"),
    [
        ("fp32", False, "TF32 rounds to 10 bits: try plan.tf32: false"),
        ("fp16", False, "fp16 overflows or rounds too much: name the nodes to keep in FP32"),
        ("int8", False, "scales that do not fit these images"),
        ("int8", True, "TensorRT rounds this INT8 graph otherwise than onnxruntime"),
    ],
)
def test_what_a_plan_may_round(precision: str, is_as_is: bool, said: str) -> None:
    candidate: Any = SimpleNamespace(precision=precision, spec=SimpleNamespace(is_as_is=is_as_is))
    assert said in of_precision(candidate)
