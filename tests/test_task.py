"""A task from outside is built, gated and served with no file of generator/ changed; and the public API."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import generator
from generator import ModelSpec, build, register_source, register_task, serve, verify
from generator.cli import main
from generator.errors import ExportError, SpecError, TrtgenError, VerificationError
from generator.events import Doing, Done
from generator.gate.client import GrpcAddress, ServedModel, as_bytes
from generator.gate.published import read_candidate
from generator.repository import read_record
from generator.source import SOURCES
from generator.spec.file import load_spec
from generator.task import TASKS
from tests.toy_task import Bare, Toy, ToySource, write_network


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with the toy's model, built and proved."""
    register_task(Toy())
    register_source("toy", ToySource())
    root = tmp_path_factory.mktemp("toy") / "model_repository"
    network = write_network(root.parent / "network.onnx")
    spec = ModelSpec(
        name="grey", task="toy", source="toy", weights=str(network), batch={"max": 4}, instances={"report": 2}
    )
    built = build(spec, root, require_all=True)
    assert built.report is not None
    assert [(one.stage, one.status) for one in built.report.results] == [
        ("colours", "proved"),
        ("served colours", "proved"),
    ]
    yield root
    for name in ("toy", "bare"):
        TASKS._known.pop(name, None)
    SOURCES._known.pop("toy")


def test_its_members_are_those_of_the_task(toy: Path) -> None:
    assert sorted(entry.name for entry in toy.iterdir() if not entry.name.startswith(".")) == [
        "grey", "grey_network", "grey_preprocess", "grey_report",
    ]  # fmt: skip
    record = json.loads((toy / "grey/trtgen.json").read_text())
    assert record["contract"]["colours"] == 3
    assert record["head"] == {"colours": 3}
    assert "count: 2" in (toy / "grey_report/config.pbtxt").read_text()
    assert {change.word for change in build(ModelSpec(**record["spec"]), toy).changes} == {"identical"}


@pytest.mark.server
def test_it_is_served_and_its_rows_are_its_own(toy: Path) -> None:
    record = read_record(toy, "grey")
    assert record is not None
    images = []
    for size in ((30, 20), (16, 16)):
        with io.BytesIO() as stream:
            Image.new("RGB", size, (200, 100, 50)).save(stream, "png")
            images.append(stream.getvalue())
    candidate = read_candidate(toy, record)
    with (
        serve(toy) as server,
        ServedModel(GrpcAddress(url=server.grpc_url), candidate.layout, max_batch_size=4) as served,
    ):
        outputs = served.ask("ensemble", as_bytes(images))
        (report,) = verify(repository=toy, grpc_url=server.grpc_url)
    assert not report.failed
    np.testing.assert_allclose(outputs["REPORT"][:, 4], [600, 256])
    rows = TASKS.find("toy").make_rows(outputs, None, 2)
    assert [row["colour"] for row in rows[0]] == ["red", "green"]


@pytest.mark.server
def test_its_own_limits_fail_it(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "limit", -1.0)
    (report,) = verify(repository=toy)
    assert [one.stage for one in report.failed] == ["colours"]
    assert [one.reason for one in report.unproved] == ["colours failed"]
    grey = tmp_path / "images"
    grey.mkdir()
    for level in (10, 200):
        Image.new("RGB", (20, 20), (level, level, level)).save(grey / f"{level}.png")
    monkeypatch.setattr(Toy, "limit", 1e-3)
    with pytest.raises(VerificationError, match="all images are equally grey"):
        verify(repository=toy, images=grey)


def test_rows_that_depend_on_each_other_in_any_output_are_found(toy: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "mixed.onnx", mixed=True)
    spec = ModelSpec(name="mixed", task="toy", source="toy", weights=str(network), batch={"max": 4})
    with pytest.raises(ExportError, match="the batch is baked in"):
        build(spec, tmp_path / "repository")


@pytest.mark.server
def test_a_task_may_have_one_member_only(toy: Path) -> None:
    register_task(Bare())
    spec = ModelSpec(name="bare", task="bare", source="toy", weights=str(toy.parent / "network.onnx"), batch={"max": 4})
    root = toy.parent / "bare_repository"
    built = build(spec, root, require_all=True)
    assert built.report is not None
    assert [result.status for result in built.report.results] == ["proved"]
    assert [entry.name for entry in root.iterdir() if not entry.name.startswith(".")] == ["bare"]
    assert {change.word for change in build(spec, root).changes} == {"identical"}
    assert main(["list", "-r", str(root)]) == main(["remove", "bare", "-r", str(root)]) == 0


def test_spec_fields_follow_the_members(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        "models:\n- {name: a, task: toy, source: toy, instances: {classifier: 1}}\n"
        "- {name: b, task: toy, source: toy, config: {report: 'backend: \"x\"'}}\n- {name: c, task: detektion}\n"
    )
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    problems = "\n".join(caught.value.problems)
    assert "models[0].instances.classifier: unknown field" in problems
    assert "models[1].config.report: backend cannot be given here" in problems
    assert "models[2].task: there is no task 'detektion'; known are " in problems


def test_an_installed_package_brings_a_task_and_a_source(tmp_path: Path) -> None:
    """By its entry points; one that does not load disturbs no spec that does not name it."""
    (tmp_path / "brightness.dist-info").mkdir()
    (tmp_path / "brightness.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: brightness\nVersion: 1\n")
    (tmp_path / "brightness.dist-info/entry_points.txt").write_text(
        "[trtgen.tasks]\nbrightness = tests.toy_task:TOY\nbroken = no_such_module:TASK\n"
        "[trtgen.sources]\nfiles = tests.toy_task:SOURCE\n"
    )
    code = """
from generator import ModelSpec, TrtgenError
from generator.sources import describe_source
spec = ModelSpec(name="a", task="brightness", source="files")
print([role.key for role in spec.roles], describe_source(spec)[0].crop)
try:
    ModelSpec(name="b", instances={"report": 1})
except TrtgenError as error:
    print(error.message)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    roles, problem = run.stdout.splitlines()
    assert roles == "['preprocess', 'network', 'report', 'ensemble'] (16, 16)"
    assert problem == "ModelSpec: instances.report: unknown field"


# --- the public API --------------------------------------------------------------------------------------------------


def test_errors_are_of_our_tree_and_paths_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError) as caught:
        ModelSpec(name="no name", batch={"max": 0})
    assert len(caught.value.problems) == 2
    with pytest.raises(SpecError, match="there is no source 'hub'"):
        ModelSpec(name="a", source="hub")
    with pytest.raises(TrtgenError):
        build("no_such_model", tmp_path)
    with pytest.raises(VerificationError, match="is not a folder"):  # as text, too
        build("demo", tmp_path, images=str(tmp_path / "none"))
    with pytest.raises(TypeError, match="beside a spec"):
        build(ModelSpec(name="demo"), tmp_path, seed=3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrtgenError, match=f"{tmp_path}/own.onnx"):
        build(ModelSpec(name="own", onnx="own.onnx", labels="index", recipe="imagenet"), "repository")


@pytest.mark.server
def test_a_program_builds_and_serves_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Doing | Done] = []
    built = build("demo", tmp_path / "models", batch={"max": 2}, on_event=seen.append)
    assert built.report is not None
    assert not built.report.failed
    assert {type(event).__name__ for event in seen} == {"Doing", "Done"}
    with serve(tmp_path / "models") as server:
        assert server.grpc_url
    assert capfd.readouterr() == ("", "")


def test_what_is_public_is_imported_when_it_is_asked_for() -> None:
    assert all(getattr(generator, name) for name in generator.__all__)
    code = "import sys, generator; print({'pydantic', 'numpy', 'torch'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.server
def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert "unknown" in lines[-3] or "no_such_model" in lines[-3]
    assert lines[-1] == "()"
