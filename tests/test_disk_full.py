"""A disk that fills up at any byte of a build: a clear error, the repository as before, nothing left behind."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from generator.errors import RepositoryError
from generator.pipeline import BuildOptions, build_repository
from generator.repository import journal, recover
from generator.repository.publish import hash_tree
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from tests.tiny_onnx import write_tiny_onnx

QUICK = BuildOptions(verify=False)
RECIPE = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}


class Disk:
    """Room for so many bytes below a folder; every file opened there for writing draws on it."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room, self.written = folder, room, 0
        self.real_open = builtins.open

    def open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        inside = not isinstance(file, int) and Path(os.fsdecode(file)).resolve().is_relative_to(self.folder)
        if not inside or mode in ("r", "rb", "rt"):
            return self.real_open(file, mode, *arguments, **options)
        raw = _Raw(os.fspath(file), mode.replace("b", "").replace("t", ""), self)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=options.get("encoding", "utf-8"))


class _Raw(io.FileIO):
    def __init__(self, path: str, mode: str, disk: Disk) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        size = len(memoryview(data).cast("B"))
        if self.disk.written + size > self.disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.disk.written += size
        return super().write(data) or 0


def fill(monkeypatch: pytest.MonkeyPatch, disk: Disk) -> None:
    monkeypatch.setattr(builtins, "open", disk.open)
    monkeypatch.setattr(io, "open", disk.open)


def tiny(tmp_path: Path, **options: Any) -> ModelSpec:
    path = write_tiny_onnx(tmp_path / "tiny.onnx", seed=options.pop("seed", 0))
    return make_spec([str(path)], labels="index", recipe=RECIPE, **options)[0]


def failure_of(spec: ModelSpec, root: Path) -> str:
    """The error of a build with its hint, empty if it went well."""
    try:
        build_repository(spec, root, QUICK)
    except RepositoryError as error:
        return f"{error.message}\n{error.hint}"
    return ""


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"max_queue_delay_microseconds": 9}], ids=["version", "configuration"]
)
def test_a_full_disk_leaves_the_repository_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    home = tmp_path / "disk"
    home.mkdir()
    root = home / "repo"
    build_repository(tiny(tmp_path), root, QUICK)
    before = hash_tree(root)
    spec = tiny(tmp_path, **changed)
    disk = Disk(home, 10**9)
    with monkeypatch.context() as patch:  # how much a build writes
        fill(patch, disk)
        build_repository(spec, tmp_path / "measure" / "repo", QUICK)
        disk.folder = tmp_path
        build_repository(spec, tmp_path / "measured" / "repo", QUICK)
    total = disk.written
    assert total > 1000
    rooms = sorted({0, 1, 100, 1000, *(total * part // 12 for part in range(1, 12))})
    failed = 0
    for room in rooms:
        with monkeypatch.context() as patch:
            fill(patch, Disk(home, room))
            message = failure_of(spec, root)
        if not message:
            break
        failed += 1
        assert "No space left on device" in message
        assert "make room" in message
        if journal.staging_folder(root).exists():  # the change was decided: the next command finishes it
            recover(root)
            break
        assert hash_tree(root) == before
        assert sorted(path.name for path in home.iterdir()) == ["repo"]
    assert failed >= 3
    build_repository(spec, root, QUICK)
    assert "identical" in {change.word for change in build_repository(spec, root, QUICK).changes}


def test_a_first_build_on_a_full_disk_leaves_an_empty_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "disk"
    home.mkdir()
    spec = tiny(tmp_path)
    with monkeypatch.context() as patch:
        fill(patch, Disk(home, 5000))
        with pytest.raises(RepositoryError, match="was left as it was: No space left on device"):
            build_repository(spec, home / "repo", QUICK)
    assert hash_tree(home) == {}


def test_a_disk_that_fails_while_publishing_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repo"
    spec = tiny(tmp_path)
    rename = Path.rename
    calls = 0

    def failing(path: Path, target: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(RepositoryError, match="was interrupted: Input/output error") as caught:
            build_repository(spec, root, QUICK)
    assert "finishes what is staged" in str(caught.value.hint)
    words = {change.word for change in build_repository(spec, root, QUICK).changes}
    assert words == {"identical"}
