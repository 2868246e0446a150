"""Fixtures that several test files share: repositories that are built once, with the real gate."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from generator.measure.perf import analyzer
from generator.pipeline import BuildOptions, build_repository
from generator.spec.file import make_spec
from tests.release_parts import serve_s3, use_s3

# A shell lets what it starts in the background ignore Ctrl-C, and nohup a hang-up; children of ours would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function that returns a folder by its name, which the first process of a run fills and the others wait for."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = common / f"once-{name}", common / f"once-{name}.done"
        with (common / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def built_demo(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A repository with the demo model, built and proved once; not to be changed."""

    def build(folder: Path) -> None:
        spec = make_spec(["demo"], batch={"max": 8}, instances={"preprocess": 1, "classifier": 1})[0]
        report = build_repository(spec, folder / "model_repository", BuildOptions(require_all=True)).report
        assert report is not None

    return make_once("demo", build) / "model_repository"


@pytest.fixture(scope="session")
def program(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """perf_analyzer, installed by us; its libraries come with the extra `server`."""
    pytest.importorskip("pytriton", reason="perf_analyzer's libraries come with the extra 'server'")
    place = make_once("prefix", analyzer.install_analyzer)
    return place / "bin" / "perf_analyzer"


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


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with serve_s3() as client:
        yield client


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    use_s3(monkeypatch, s3.meta.endpoint_url)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=name)
    return f"s3://{name}/releases"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else str(request.getfixturevalue("bucket"))
