"""The chain from end to end: built models, a real tritonserver, the real client, real JPEGs, both protocols."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generator.cli import main
from generator.demo.draw import LABELS, draw_set
from generator.server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "clients" / "samples"
pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(built_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The demo model and resnet18; tests/test_readme.py builds resnet50 and efficientnet_b0 as they come."""
    root = Path(shutil.copytree(built_demo, tmp_path_factory.mktemp("chain") / "model_repository"))
    options = ["--weights", "random", "--max-batch", "4", "--require", "all", "-r", str(root)]
    assert main(["build-repo", "resnet18", *options]) == 0
    found = ["--labels", "index", "--recipe", "imagenet", "--image-size", "48", "--max-batch", "4", "--require", "all"]
    assert main(["build-repo", str(ROOT / "tests/data/exporters/paddle.onnx"), *found, "-r", str(root)]) == 0
    with EmbeddedServer(root) as running:
        yield running


def classify(server: EmbeddedServer, protocol: str, *arguments: str | Path) -> list[dict[str, Any]]:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    run = subprocess.run(
        [sys.executable, ROOT / "clients/classify.py", "--json", "--protocol", protocol, "--url", url, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.slow
def test_every_promised_model_answers_alike_over_both_protocols(server: EmbeddedServer) -> None:
    for model in ("demo", "resnet18"):
        over_grpc, over_http = (classify(server, protocol, "--model", model, SAMPLES) for protocol in ("grpc", "http"))
        assert over_grpc == over_http
        assert len(over_grpc) == 3


def test_an_onnx_file_as_found_is_served_and_its_repairs_are_recorded(server: EmbeddedServer) -> None:
    """Of Paddle's exporter: opset 11 and a batch of 1."""
    answers = classify(server, "grpc", "--model", "paddle", "--top", "1", SAMPLES)
    assert len(answers) == 3
    record = json.loads((server.repository / "paddle/trtgen.json").read_text())
    assert record["repairs"] == ["opset 11 is raised to 13", "the batch of 1 is made free: rewritten are Reshape.1"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_samples_get_their_own_names(server: EmbeddedServer, protocol: str) -> None:
    for answer in classify(server, protocol, "--model", "demo", "--top", "1", SAMPLES):
        best = answer["classes"][0]
        assert best["label"] == Path(str(answer["file"])).stem
        assert best["score"] > 0.9


def test_fifty_fresh_images_in_batches(server: EmbeddedServer, tmp_path: Path) -> None:
    drawn = draw_set(50, seed=321)
    for image in drawn:
        (tmp_path / f"{image.name}.jpg").write_bytes(image.jpeg)
    answers = classify(server, "grpc", "--model", "demo", "--top", "1", tmp_path)
    right = sum(
        answer["classes"][0]["label"] == LABELS[image.label] for answer, image in zip(answers, drawn, strict=True)
    )
    assert right >= 48


def test_a_bad_image_is_named_and_the_others_are_answered(server: EmbeddedServer, tmp_path: Path) -> None:
    for image in draw_set(5, seed=322):
        (tmp_path / f"{image.name}.jpg").write_bytes(image.jpeg)
    (tmp_path / "002-broken.jpg").write_bytes(b"\xff\xd8\xff garbage")
    run = subprocess.run(
        [sys.executable, ROOT / "clients/classify.py", "--url", server.grpc_url, "--model", "demo", "--json", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert len(run.stdout.splitlines()) == 5
    assert "002-broken.jpg" in run.stderr
    assert "not an image in one of the formats" in run.stderr
