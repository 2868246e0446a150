"""Detectors on the command line: wrong options and files with message and exit code, `show`, and `detect-plan`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from generator.cli import main
from generator.demo.scenes import draw_scenes
from generator.exporting import export_folder
from generator.graph.model import open_onnx
from generator.plan import local
from generator.spec.file import make_spec
from tests import detectors
from tests.test_plan_header import plan_bytes


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score"], "--detection takes FIELD=VALUE, and it is 'score'"),
        (["class_scores=0.4"], "--detection takes FIELD=VALUE, and it is 'class_scores=0.4'"),
        (["score=2"], "detection.score: Input should be less than 1"),
        (["score=0"], "detection.score: Input should be greater than 0"),
        (["iou=1.5"], "detection.iou: Input should be less than 1"),
        (["candidates=4000"], "detection.candidates: Input should be less than or equal to 3840"),
        (["max_detections=0"], "detection.max_detections: Input should be greater than or equal to 1"),
        (["nms=soft"], "detection.nms: Input should be 'per-class', 'agnostic' or 'none'"),
        (["layout=yolo"], "detection.layout: Input should be 'raw', 'objectness', 'end2end', 'scores' or 'logits'"),
        (["threshold=0.4"], "detection.threshold: unknown field"),
        (["class_scores=star:7"], "detection.class_scores: Input should be less than 1 (found 7)"),
        (["class_scores=stars:0.4"], "class_scores has 'stars', which is none of the labels; did you mean star?"),
    ],
)
def test_wrong_options(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [part for word in words for part in ("--detection", word)]
    assert main(["show", "demo-detector", *options]) == 1
    captured = capsys.readouterr()
    assert "error: " in captured.err
    assert said in captured.err
    assert "hint: " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--detection", "score=0.4"], "detection goes with task: detection only, it is classification"),
        (["timm/resnet18", "--task", "detection"], "source: timm brings classifiers"),
        (["demo", "--task", "segmentation"], "there is no task 'segmentation'; known are classification, detection"),
        (["fasterrcnn_resnet50_fpn"], "hint: use a detector that looks once: fcos_resnet50_fpn, "),
    ],
)
def test_wrong_models(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *arguments]) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert "found None" not in captured.err  # of fields that follow from the task


def test_show_prints_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("score=0.4", "nms=agnostic", "class_scores=star:0.6", "class_scores=heart:0.5")
    asked = [part for word in options for part in ("--detection", word)]
    assert main(["show", "demo-detector", "--json", *asked]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["task"], model["source"], model["recipe"]["fit"]) == ("detection", "demo", "letterbox")
    detection = model["detection"]
    assert (detection["score"], detection["nms"]) == (0.4, "agnostic")
    assert detection["class_scores"] == {"star": 0.6, "heart": 0.5}


class TestFiles:
    """A file that cannot be served ends the build with code 1, and nothing is left."""

    def build(self, path: Path, *options: str) -> int:
        return main(["build-repo", str(path), "--repository", str(path.parent / "repository"), *options])

    @pytest.mark.parametrize(
        ("metadata", "lines", "options", "said"),
        [
            (None, 2, [], "read as raw, has 3 classes, but"),
            (None, 3, ["--detection", "layout=end2end"], "detection.layout is end2end, which has another shape"),
            (detectors.literals(names=("one", "two")), None, [], "its metadata names 2 classes"),
            (None, 3, ["--detection", "background=0"], "has no column for detection.background: 0"),
        ],
    )
    def test_contradictions(
        self,
        metadata: Any,
        lines: int | None,
        options: list[str],
        said: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = detectors.write_raw(tmp_path / "net.onnx", metadata=metadata)
        if lines is not None:
            (tmp_path / "labels.txt").write_text("".join(f"class {line}\n" for line in range(lines)))
            options = [*options, "--labels", str(tmp_path / "labels.txt")]
        before = files_in(tmp_path)
        assert self.build(path, "--task", "detection", *options) == 1
        captured = capsys.readouterr()
        assert said in captured.err
        assert "hint: " in captured.err
        assert files_in(tmp_path) == before

    def test_a_detector_without_its_task(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = detectors.write_raw(tmp_path / "net.onnx", metadata=detectors.literals())
        assert self.build(path) == 1
        assert "--task detection" in capsys.readouterr().err

    def test_nms_in_the_graph(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = detectors.write_nms(tmp_path / "net.onnx")
        assert self.build(path, "--task", "detection", "--labels", "index") == 1
        assert "export it without NMS" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a small detector with a file beside it that begins as a plan does."""
    folder = tmp_path_factory.mktemp("exported")
    path = detectors.write_raw(folder / "net.onnx", metadata=detectors.literals())
    spec = make_spec([str(path)], task="detection", target="tensorrt-10", batch={"max": 2}, detection={"score": 0.01})
    export_folder(spec[0], folder / "net")
    (folder / "net" / "model.plan").write_bytes(plan_bytes())
    return folder / "net"


class TestPlan:
    """No plan runs without a GPU: the graph that it would be built from answers in its place."""

    @pytest.fixture(autouse=True)
    def _graph_for_plan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextlib.contextmanager
        def open_graph(plan: Path) -> Iterator[Any]:
            yield SimpleNamespace(run_outputs=open_onnx(plan.with_name("model.onnx")))

        monkeypatch.setattr(local, "open_engine", open_graph)

    def test_boxes_are_those_of_the_served_steps(
        self, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scenes = draw_scenes(2, seed=5)
        paths = [tmp_path / f"{scene.name}.jpg" for scene in scenes]
        for path, scene in zip(paths, scenes, strict=True):
            path.write_bytes(scene.jpeg)
        (tmp_path / "text.jpg").write_text("no image")
        command = ["detect-plan", *map(str, paths), "--plan", str(exported / "model.plan")]
        assert main([*command, "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["file"] for line in lines] == [str(path) for path in paths]
        found = lines[0]["detections"]
        assert found
        assert all(one["label"] == detectors.NAMES[one["index"]] for one in found)
        scores = [one["score"] for one in found]
        assert scores == sorted(scores, reverse=True)
        boxes = np.array([one["box"] for one in found])
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        middle = str(scores[len(scores) // 2])
        assert main([*command, "--json", "--score", middle]) == 0
        fewer = json.loads(capsys.readouterr().out.splitlines()[0])["detections"]
        assert fewer == [one for one in found if one["score"] >= float(middle) - 1e-6]
        assert main([*command, str(tmp_path / "text.jpg"), "--score", "0.9999"]) == 1
        captured = capsys.readouterr()
        assert "text.jpg: not an image" in captured.err
        assert captured.out.splitlines()[:2] == [str(paths[0]), "  no object"]

    @pytest.mark.parametrize(("score", "said"), [("0", "score is 0.0"), ("1.5", "score is 1.5")])
    def test_a_wrong_threshold(self, exported: Path, score: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["detect-plan", "x.jpg", "--plan", str(exported / "model.plan"), "--score", score]) == 1
        assert said in capsys.readouterr().err

    def test_labels_of_another_model(self, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "labels.txt").write_text("one\n")
        command = ["detect-plan", "x.jpg", "--plan", str(exported / "model.plan")]
        assert main([*command, "--labels", str(tmp_path / "labels.txt")]) == 1
        assert "there are 1 labels, the plan has 3 classes" in capsys.readouterr().err

    def test_each_command_names_the_other(self, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plan = str(exported / "model.plan")
        assert main(["classify-plan", "x.jpg", "--plan", plan]) == 1
        assert f"trtgen detect-plan x.jpg --plan {plan}" in capsys.readouterr().err

    def test_nothing_is_known_of_the_plan(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "model.plan").write_bytes(plan_bytes())
        assert main(["detect-plan", "x.jpg", "--plan", str(tmp_path / "model.plan")]) == 1
        assert "nothing says what" in capsys.readouterr().err
