"""What an earlier trtgen built (0.1.0 on 2026-11-25) is read, verified, served, listed and left as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from generator import ModelSpec, build, verify
from generator.cli import main
from generator.repository.publish import hash_tree

DATA = Path(__file__).parent / "data" / "earlier"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it beside its source, with the packages that it was built with."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "model_repository"
    record = root / "own/trtgen.json"
    record.write_text(record.read_text().replace("PLACE", str(tmp_path)))
    packages = json.loads(record.read_text())["packages"]
    for module in ("repository.fingerprint", "tasks.members", "pipeline"):
        monkeypatch.setattr(f"generator.{module}.installed_packages", lambda: packages)
    return root


@pytest.mark.server
def test_it_is_verified_and_built_again_beside_itself(earlier: Path) -> None:
    """Its preprocessing step is another one, so a build makes version 2; what is served as version 1 is not touched."""
    (report,) = verify(repository=earlier)
    assert [result.status for result in report.results] == ["proved"] * 5 + ["assumed"] * 2
    before = {path: digest for path, digest in hash_tree(earlier).items() if "/1/" in path}
    spec = json.loads((earlier / "own/trtgen.json").read_text())["spec"]
    built = build(ModelSpec(**spec), earlier)
    assert built.version == 2
    after = hash_tree(earlier)
    assert {path: after[path] for path in before} == before
    assert {change.word for change in build(ModelSpec(**spec), earlier).changes} == {"identical"}


def test_the_model_of_a_task_that_is_not_installed_is_named(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = earlier / "own/trtgen.json"
    path.write_text(
        path.read_text().replace('"name": "own",\n    "source"', '"name": "own",\n    "task": "gone",\n    "source"')
    )
    for command in ("list", "verify", "remove own"):
        assert main([*command.split(), "-r", str(earlier)]) == 1
        said = capsys.readouterr().err
        assert "there is no task 'gone'; known are classification" in said
        assert "hint: install the package that brings this task" in said


def test_it_is_listed_and_removed(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "-r", str(earlier), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["name"], model["versions"], model["edited"]) == ("own", [1], [])
    assert main(["remove", "own", "-r", str(earlier)]) == 0
    assert not (earlier / "own_classifier").exists()
