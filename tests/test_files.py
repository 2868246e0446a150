"""What is said of a file of another kind than the one that was expected."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from generator.cli import main
from generator.errors import SourceError, SpecError
from generator.files import ONNX, expand_home, find_cache, name_kind
from generator.graph.model import read_onnx
from generator.sources import load_network
from generator.spec.file import make_spec
from tests.tiny_onnx import write_tiny_onnx

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102400000\n"


def picture(form: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, form)
    return stream.getvalue()


def torch_file(content: Any = None, *, old: bool = False) -> bytes:
    stream = io.BytesIO()
    content = content or {"weight": torch.zeros(3)}
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def zip_file() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, weight=np.zeros(3))
    return stream.getvalue()


KINDS: list[tuple[Callable[[], bytes], str, str]] = [
    (lambda: POINTER, "a Git LFS pointer", "git lfs pull"),
    (lambda: picture("JPEG"), "a JPEG image", "images go to the client"),
    (lambda: picture("PNG"), "a PNG image", "images go to the client"),
    (torch_file, "a zip archive, as torch.save writes", "give both, architecture and weights"),
    (lambda: torch_file()[:-40], "a zip archive, as torch.save writes", "give both, architecture and weights"),
    (lambda: torch_file(old=True), "a pickle, as torch.save once wrote", "give both, architecture and weights"),
    (zip_file, "a zip archive;", "unpack it"),
    (lambda: save({"weight": torch.zeros(3)}), "a safetensors file", "give both, architecture and weights"),
    (lambda: b"<!DOCTYPE HTML><html>404</html>", "a web page", "download"),
]


@pytest.mark.parametrize(("make", "kind", "hint"), KINDS)
def test_given_as_onnx(tmp_path: Path, make: Callable[[], bytes], kind: str, hint: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make())
    with pytest.raises(SourceError, match=f"{path} is {kind}.* an ONNX file was expected") as caught:
        read_onnx(path)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("w.pt", lambda: POINTER, "is a Git LFS pointer"),
        ("w.safetensors", lambda: POINTER, "is a Git LFS pointer"),
        ("w.pth", lambda: picture("JPEG"), "is a JPEG image"),
        ("w.safetensors", torch_file, "is a zip archive, as torch.save writes; that is no checkpoint with the ending"),
        ("w.pt", lambda: save({"weight": torch.zeros(3)}), "is a safetensors file; that is no checkpoint with"),
        ("w.pt", lambda: torch_file()[:-40], "is not a checkpoint that torch can load"),
        ("w.pth", lambda: torch_file(old=True)[:-40], "is not a checkpoint that torch can load"),
        ("w.bin", lambda: torch_file({"args": Path()}, old=True), "whose loading could run code"),
        ("w.safetensors", lambda: torch_file(old=True), "is a pickle, as torch.save once wrote; that is no checkpoint"),
        ("w.pt", zip_file, "is a zip archive; that is no checkpoint with the ending .pt"),
    ],
)
def test_given_as_a_checkpoint(tmp_path: Path, name: str, data: Callable[[], bytes], words: str) -> None:
    path, labels = tmp_path / name, tmp_path / "labels.txt"
    path.write_bytes(data())
    labels.write_text("a\nb\n")
    spec = make_spec(["own"], architecture="resnet18", weights=str(path), classes=2, labels=str(labels))[0]
    with pytest.raises(SourceError, match=words) as caught:
        load_network(spec)
    assert caught.value.hint


def test_the_right_kinds_are_not_named(tmp_path: Path) -> None:
    assert name_kind(write_tiny_onnx(tmp_path / "own.onnx")) == (ONNX, "")
    for size in (0, 1, 8, 9):
        (tmp_path / "short").write_bytes(b"\0" * size)
        assert name_kind(tmp_path / "short") == ("", "")


STRANGER = "~no-such-user/models"


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "-r", STRANGER],
        ["harden", "--repository", STRANGER],
        ["harden", "--secrets", STRANGER],
        ["reload", "demo", "--repository", STRANGER],
        ["canary", "localhost:1", "-r", STRANGER],
        ["monitor", "-r", STRANGER],
        ["monitor", "--output", STRANGER],
        ["classify-all", STRANGER, "--out", "results"],
        ["classify-all", ".", "--out", "results", "-r", STRANGER],
        ["deploy", "kubernetes", "-r", STRANGER, "--repository-image", "models:1"],
        ["release", "list", STRANGER],
        ["release", "push", "store", "-r", STRANGER],
        ["build-repo", "resnet18", "--weights", f"{STRANGER}/a.pt", "--classes", "2", "--labels", "index"],
        ["build-repo", "mine", "--factory", f"{STRANGER}/a.py:make", "--recipe", "imagenet", "--labels", "index"],
    ],
    ids=" ".join,
)
def test_the_home_folder_of_nobody(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "~no-such-user" in said
    assert "hint: " in said
    assert not list(tmp_path.glob("~*"))


def test_a_home_folder_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand_home(Path("~/x")) == Path.home() / "x"
    with pytest.raises(SpecError, match=r"^~nobody-here/x cannot be found: there is no user 'nobody-here'$") as caught:
        expand_home(Path("~nobody-here/x"))
    assert caught.value.hint == "give the path from / on; a folder of that name here is ./~nobody-here"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user id that /etc/passwd does not have
    with pytest.raises(SpecError, match="the home folder of this user is not known") as caught:
        find_cache()
    assert caught.value.hint == "set HOME"
