"""NVIDIA's Multi-Process Service beside a server: when it is started, who finds it, and that it ends with the server.

Its program is a stand-in, since the real one needs a GPU; on one, benchmarks.gpu_decoding measures what it gives.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from generator.cli import main
from generator.errors import ServerError
from generator.server.embedded import EmbeddedServer
from generator.server.mps import CONTROL, PIPES, find_mps
from generator.server.stubs import find_stubs
from tests.server_parts import add_python_model

GROUP = "\ninstance_group [ {{ kind: {kind} count: {count} }} ]\n"
# Called with -d it leaves a process behind; told to quit it ends that one, unless it is deaf.
PROGRAM = """\
#!{python}
import os, pathlib, signal, subprocess, sys
control = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"], "control")
if sys.argv[1:] == ["-d"]:
    service = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    control.write_text(str(service.pid))
elif sys.stdin.read() == "quit\\n" and not {deaf}:
    os.kill(int(control.read_text()), signal.SIGTERM)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that puts the stand-in on PATH."""
    monkeypatch.setenv(PIPES, str(tmp_path / "nobody"))

    def put(*, deaf: bool = False) -> Path:
        program = tmp_path / "bin" / CONTROL
        program.parent.mkdir()
        program.write_text(PROGRAM.format(python=sys.executable, deaf=deaf))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        return program

    return put


def make_repository(root: Path, *, kind: str, count: int) -> Path:
    add_python_model(root / "echo")
    with (root / "echo" / "config.pbtxt").open("a") as config:
        config.write(GROUP.format(kind=kind, count=count))
    return root


@pytest.mark.parametrize(
    ("kind", "count", "wanted", "is_started"),
    [
        ("KIND_GPU", 2, None, True),
        ("KIND_GPU", 1, None, False),
        ("KIND_CPU", 2, None, False),
        ("KIND_GPU", 2, False, False),
        ("KIND_CPU", 1, True, True),
    ],
)
def test_it_is_for_several_processes_on_a_gpu(
    kind: str, count: int, wanted: bool | None, is_started: bool, tmp_path: Path, install: Callable[..., Path]
) -> None:
    root = make_repository(tmp_path / "models", kind=kind, count=count)
    program = str(install())
    assert find_mps(root, (), wanted=wanted) == (program if is_started else None)
    assert find_mps(root, ("another",), wanted=None) is None


def test_one_that_runs_already_is_left_alone(
    tmp_path: Path, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_repository(tmp_path / "models", kind="KIND_GPU", count=2)
    install()
    (tmp_path / "control").touch()
    monkeypatch.setenv(PIPES, str(tmp_path))
    assert find_mps(root, (), wanted=None) is None
    assert find_mps(root, (), wanted=True) is None


def test_it_is_asked_for_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_repository(tmp_path / "models", kind="KIND_GPU", count=2)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mps(root, (), wanted=None) is None
    with pytest.raises(ServerError, match=f"{CONTROL} is not on PATH") as caught:
        find_mps(root, (), wanted=True)
    assert caught.value.command == ("serve",)


@pytest.mark.server
@pytest.mark.parametrize("deaf", [False, True])
def test_its_clients_find_it_and_it_ends_with_the_server(
    deaf: bool, tmp_path: Path, install: Callable[..., Path]
) -> None:
    add_python_model(tmp_path / "models" / "echo")
    install(deaf=deaf)
    with EmbeddedServer(tmp_path / "models", mps=True) as server:
        (stub,) = find_stubs(server.pid)
        folder = Path(stub.environ()[PIPES])
        service = psutil.Process(int((folder / "control").read_text()))
        assert service.is_running()
        assert stub.environ()["CUDA_MPS_LOG_DIRECTORY"] == str(folder)
    assert not service.is_running()
    assert not folder.exists()


@pytest.mark.server
def test_one_that_does_not_start_costs_nothing_but_its_time(tmp_path: Path, install: Callable[..., Path]) -> None:
    add_python_model(tmp_path / "models" / "echo")
    install().write_text("#!/bin/sh\necho no GPU here >&2\nexit 1\n")
    with EmbeddedServer(tmp_path / "models", mps=True, log_path=tmp_path / "log") as server:
        assert [state.name for state in server.models()] == ["echo"]
        assert "no GPU here" in (tmp_path / "log").read_text()


def test_containers_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--mps", "--container"]) == 2
    assert "--mps goes with the pip server" in capsys.readouterr().err
