"""Fixtures that several test files share: repositories that are built once, with the real gate."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from generator.measure.perf import analyzer
from generator.pipeline import BuildOptions, build_repository
from generator.spec.file import make_spec

# A shell lets what it starts in the background ignore Ctrl-C, and nohup a hang-up; children of ours would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def built_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the demo model, built and proved once; not to be changed."""
    root = tmp_path_factory.mktemp("built") / "model_repository"
    spec = make_spec(["demo"], batch={"max": 8}, instances={"preprocess": 1, "classifier": 1})[0]
    report = build_repository(spec, root, BuildOptions(require_all=True)).report
    assert report is not None
    return root


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """perf_analyzer, installed by us; its libraries come with the extra `server`."""
    pytest.importorskip("pytriton", reason="perf_analyzer's libraries come with the extra 'server'")
    return analyzer.install_analyzer(tmp_path_factory.mktemp("prefix"))


@pytest.fixture
def demo(built_demo: Path, tmp_path: Path) -> Path:
    """A copy of the repository with the demo model, to be changed at will."""
    return Path(shutil.copytree(built_demo, tmp_path / "model_repository"))


@pytest.fixture
def edit() -> Callable[[Path, str, str], None]:
    """Replace text in a file; the text must be there."""

    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return replace
