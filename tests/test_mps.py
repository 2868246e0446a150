"""NVIDIA's Multi-Process Service beside a server: when it is started, who finds it, and that it ends with the server.

Its program is a stand-in, since the real one needs a GPU; on one, benchmarks.gpu_decoding measures what it gives.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from generator.bulk import run
from generator.cli import main, serve
from generator.errors import ServerError
from generator.server import embedded, supervisor
from generator.server.embedded import EmbeddedServer
from generator.server.mps import CONTROL, PIPES, find_mps, is_running, share_gpus
from generator.server.ports import Ports, choose_ports
from generator.server.stubs import find_stubs
from tests.server_parts import add_ensemble, add_python_model, wait_until

# Called with -d it leaves a process behind; told to quit it ends that one when its clients are gone.
PROGRAM = """\
#!{python}
import os, pathlib, psutil, signal, subprocess, sys, time
here = pathlib.Path(__file__).parent
control = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"], "control")

def is_client(process):
    try:
        return process.environ().get("IS_CLIENT") == "yes" and process.status() != "zombie"
    except psutil.Error:
        return False

if sys.argv[1:] == ["-d"]:
    steps = f"sleep {late}; echo $$ > {{control}}.new; mv {{control}}.new {{control}}; exec sleep 600"
    service = subprocess.Popen(["sh", "-c", steps], start_new_session=True, stdout=subprocess.DEVNULL)
    with (here / "services").open("a") as started:
        started.write(f"{{service.pid}}\\n")
elif sys.argv[1:] == [] and sys.stdin.read() == "quit\\n" and not {deaf}:
    while any(map(is_client, psutil.process_iter())):
        time.sleep(0.01)
    (here / "quit").touch()
    os.kill(int(control.read_text()), signal.SIGTERM)
time.sleep({hangs})
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """A function that puts the stand-in on PATH."""
    monkeypatch.setenv(PIPES, str(tmp_path / "nobody"))

    def put(*, deaf: bool = False, hangs: int = 0, late: float = 0) -> Path:
        program = tmp_path / "bin" / CONTROL
        program.parent.mkdir()
        program.write_text(PROGRAM.format(python=sys.executable, deaf=deaf, hangs=hangs, late=late))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        return program

    yield put
    for pid in find_services(tmp_path / "bin" / CONTROL):
        os.kill(pid, signal.SIGKILL)


def find_services(program: Path) -> list[int]:
    """Return the processes that stand-ins have left behind and that live."""
    path = program.parent / "services"
    started = map(int, path.read_text().split()) if path.exists() else ()
    return [pid for pid in started if psutil.pid_exists(pid)]


def make_repository(root: Path, groups: str, *, backend: str = "python") -> Path:
    add_python_model(root / "echo")
    config = root / "echo" / "config.pbtxt"
    text = config.read_text().replace("instance_group { count: 1 kind: KIND_CPU }", f"instance_group [ {groups} ]")
    assert groups in text
    config.write_text(text.replace('backend: "python"', f'backend: "{backend}"'))
    return root


@pytest.mark.parametrize(
    ("groups", "wanted", "is_started"),
    [
        ("{ kind: KIND_GPU count: 2 }", None, True),
        ("{ kind: KIND_GPU count: 1 }", None, False),
        ("{ kind: KIND_CPU count: 2 }", None, False),
        ("{ kind: KIND_GPU count: 2 }", False, False),
        ("{ kind: KIND_CPU count: 1 }", True, True),
        ("{ kind: KIND_GPU count: 2 gpus: [ 1 ] }", None, True),
        ("{ kind: KIND_GPU count: 1 gpus: [ 0, 1 ] }", None, False),
        ("{ kind: KIND_GPU gpus: [ 0 ] }, { kind: KIND_GPU gpus: [ 1 ] }", None, False),
        ("{ kind: KIND_GPU gpus: [ 0, 1 ] }, { kind: KIND_GPU gpus: [ 1 ] }", None, True),
        ("{ kind: KIND_GPU }, { kind: KIND_GPU gpus: [ 1 ] }", None, True),
        ("{ kind: KIND_GPU count: 1 }, { kind: KIND_CPU count: 2 }", None, False),
    ],
)
def test_it_is_for_several_processes_on_a_gpu(
    groups: str, wanted: bool | None, is_started: bool, tmp_path: Path, install: Callable[..., Path]
) -> None:
    root = make_repository(tmp_path / "models", groups)
    add_ensemble(root / "chain", member="echo")
    program = str(install())
    for models in ((), ("echo",), ("chain",)):
        assert find_mps(root, models, tmp_path, wanted=wanted) == (program if is_started else None)
    assert find_mps(root, ("another",), tmp_path, wanted=None) is None


def test_instances_within_tritonserver_need_none(tmp_path: Path, install: Callable[..., Path]) -> None:
    root = make_repository(tmp_path / "models", "{ kind: KIND_GPU count: 2 }", backend="tensorrt")
    install()
    assert find_mps(root, (), tmp_path, wanted=None) is None


def test_one_that_runs_already_is_left_alone(
    tmp_path: Path, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_repository(tmp_path / "models", "{ kind: KIND_GPU count: 2 }")
    install()
    (tmp_path / "control").touch()
    monkeypatch.setenv(PIPES, str(tmp_path))
    assert find_mps(root, (), tmp_path, wanted=None) is None
    assert find_mps(root, (), tmp_path, wanted=True) is None


def test_a_folder_that_holds_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.server.mps._USUAL_PIPES", tmp_path / "usual")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "control").touch()
    for value in ("", str(tmp_path / "control"), str(tmp_path / ("x" * 300))):
        monkeypatch.setenv(PIPES, value)
        assert not is_running()
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "control").touch()
    monkeypatch.setenv(PIPES, "")
    assert is_running()
    monkeypatch.delenv(PIPES)
    assert is_running()


def test_it_is_asked_for_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_repository(tmp_path / "models", "{ kind: KIND_GPU count: 2 }")
    (tmp_path / CONTROL).mkdir()
    monkeypatch.setenv(PIPES, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mps(root, (), tmp_path, wanted=None) is None
    with pytest.raises(ServerError, match=f"{CONTROL} is not on PATH") as caught:
        find_mps(root, (), tmp_path, wanted=True)
    assert caught.value.command == ("serve",)


def test_a_relative_path_is_one_of_this_folder(
    tmp_path: Path, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor works in another."""
    program = install()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    root = make_repository(tmp_path / "models", "{ kind: KIND_GPU count: 2 }")
    assert find_mps(root, (), tmp_path, wanted=None) == str(program)


def test_a_folder_too_deep_for_sockets(
    tmp_path: Path, install: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = make_repository(tmp_path / "models", "{ kind: KIND_GPU count: 2 }")
    program = str(install())
    fits = Path("/" + "ü" * 43 + "x")  # with /control_privileged it has 107 bytes
    deep = Path(f"{fits}x")
    assert find_mps(root, (), fits, wanted=True) == program
    assert not caplog.messages
    assert find_mps(root, (), deep, wanted=None) is None
    assert "is too long a path for the sockets" in caplog.text
    with pytest.raises(ServerError, match="is too long a path for the sockets") as caught:
        find_mps(root, (), deep, wanted=True)
    assert caught.value.command == ("serve",)


# The supervisor, with another program in tritonserver's place.


class Supervised:
    """A supervisor of `argv`, beside the service of `program`."""

    def __init__(self, folder: Path, program: Path, argv: list[str]) -> None:
        self.folder, self.log = folder / "run", folder / "log"
        (self.folder / "mps").mkdir(parents=True)
        spec = {"argv": argv, "log": str(self.log), "remove": str(self.folder), "shm_prefix": "trtgen-none-"}
        spec |= {"stop_timeout_s": "30", "mps": str(program)}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {PIPES: str(self.folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(self.folder / "mps")},
            start_new_session=True,
        )

    def wait_for_server(self) -> int:
        """Return the process id of the server, which has started."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def send(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """A function that starts a supervisor."""
    started: list[Supervised] = []

    def start(program: Path, *argv: str) -> Supervised:
        started.append(Supervised(tmp_path, program, list(argv or ("sleep", "600"))))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdin, one.process.stdout):
            assert pipe is not None
            pipe.close()


def close_input(one: Supervised) -> None:
    """As the system does when trtgen is killed."""
    assert one.process.stdin is not None
    one.process.stdin.close()


WAYS: dict[str, Callable[[Supervised, int], Any]] = {
    "trtgen is killed": lambda one, _: close_input(one),
    "it is told to stop": lambda one, _: one.send(b"stop 30\n"),
    "it is told to kill": lambda one, _: one.send(b"stop 0\n"),
    "the supervisor is told to end": lambda one, _: one.process.terminate(),
    "the supervisor is killed": lambda one, _: one.process.kill(),
    "the server crashes": lambda _, server: os.kill(server, signal.SIGSEGV),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("deaf", [False, True])
def test_the_service_ends_when(
    way: str, deaf: bool, install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    program = install(deaf=deaf)
    one = supervise(program)
    server = one.wait_for_server()
    assert len(find_services(program)) == 1
    WAYS[way](one, server)
    one.process.wait(10)
    if way != "the supervisor is killed":  # else what it started ends a moment later
        assert not find_services(program)
    assert wait_until(lambda: not find_services(program))
    assert (program.parent / "quit").exists() is not deaf


def test_the_service_ends_when_the_supervisor_is_killed_before_it_is_there(
    install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    program = install(late=0.5)
    one = supervise(program)
    assert wait_until(lambda: bool(find_services(program)))
    one.process.kill()
    assert wait_until(lambda: not find_services(program))


def test_the_service_ends_when_what_keeps_it_was_killed(
    install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    program = install()
    one = supervise(program)
    server = one.wait_for_server()
    (keeper,) = (child for child in psutil.Process(one.process.pid).children() if child.pid != server)
    keeper.kill()
    one.send(b"stop 1\n")
    assert one.process.wait(10) == 128 + signal.SIGTERM
    assert not find_services(program)


def test_clients_are_gone_before_the_service_is_told_to_end(
    install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    """It waits for them, and nobody else ends those that a crash leaves."""
    program = install()
    started = program.parent / "started"
    one = supervise(program, "env", "IS_CLIENT=yes", "sh", "-c", f"sleep 600 & touch {started}; wait")
    server = one.wait_for_server()
    assert wait_until(started.exists)
    os.kill(server, signal.SIGKILL)
    one.process.wait(10)
    assert (program.parent / "quit").exists()


def test_the_server_starts_when_the_service_does(
    install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    one = supervise(install(late=0.5), "sh", "-c", f'test -e "${PIPES}/control"')
    one.wait_for_server()
    assert one.process.wait(10) == 0


def test_a_program_that_hangs(install: Callable[..., Path], supervise: Callable[..., Supervised]) -> None:
    program = install(hangs=600)
    one = supervise(program)
    started = time.monotonic()
    one.wait_for_server()
    one.send(b"stop 0\n")
    assert one.process.wait(20) == 128 + signal.SIGTERM
    assert time.monotonic() - started < embedded._MARGIN_S - 2
    assert not find_services(program)
    assert "timed out" in one.log.read_text()


@pytest.mark.parametrize("text", ["no program at all", None])
def test_a_program_that_cannot_be_run(
    text: str | None, install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    """It was replaced, or removed, after it was found."""
    program = install()
    program.unlink() if text is None else program.write_text(text)
    one = supervise(program)
    one.wait_for_server()
    one.send(b"stop 1\n")
    assert one.process.wait(10) == 128 + signal.SIGTERM
    assert not one.folder.exists()
    assert f"\n{program}: [Errno" in f"\n{one.log.read_text()}"
    assert "Traceback" not in one.log.read_text()


def test_a_program_that_is_gone_when_the_service_is_to_end(
    install: Callable[..., Path], supervise: Callable[..., Supervised]
) -> None:
    program = install()
    one = supervise(program)
    one.wait_for_server()
    program.unlink()
    one.send(b"stop 1\n")
    assert one.process.wait(10) == 128 + signal.SIGTERM
    assert not find_services(program)
    assert f"\n{program}: [Errno" in f"\n{one.log.read_text()}"
    assert "Traceback" not in one.log.read_text()


# Processes that are started meanwhile.


def test_processes_find_it_and_it_ends_behind_them(
    tmp_path: Path, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = install()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_MPS_LOG_DIRECTORY", str(tmp_path / "own"))
    before = dict(os.environ)
    with share_gpus():
        assert os.environ["CUDA_MPS_LOG_DIRECTORY"] == os.environ[PIPES] != before[PIPES]
        said = subprocess.run(["sh", "-c", f'cat "${PIPES}/control"'], stdout=subprocess.PIPE, check=True).stdout
        assert find_services(program) == [int(said)]
        with share_gpus():  # it is there
            assert len(find_services(program)) == 1
    assert not find_services(program)
    assert os.environ == before
    assert not list(tmp_path.glob("trtgen-mps-*"))
    monkeypatch.delenv("CUDA_MPS_LOG_DIRECTORY")
    before = dict(os.environ)
    with pytest.raises(BrokenPipeError), share_gpus():
        raise BrokenPipeError
    assert not find_services(program)
    assert os.environ == before


def test_bulk_work_is_done_beside_it(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    program = install()
    seen: list[list[int]] = []
    monkeypatch.setattr(run, "run_in_processes", lambda *_arguments: seen.append(find_services(program)))
    nothing: Any = None
    run.run_on_shared_gpus(iter(()), [], nothing, nothing)
    assert len(seen) == len(seen[0]) == 1
    assert not find_services(program)


@pytest.mark.parametrize(("visible", "is_kept"), [("1", False), ("2,3", False), ("GPU-8f0f6a,GPU-11", True)])
def test_clients_alone_choose_gpus_by_number(
    visible: str, is_kept: bool, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service numbers those again that it may see."""
    program = install()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with share_gpus():
        (service,) = find_services(program)
        assert ("CUDA_VISIBLE_DEVICES" in psutil.Process(service).environ()) == is_kept
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("how", ["none is installed", "one runs"])
def test_none_is_started_where(
    how: str, tmp_path: Path, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "one runs":
        install()
        (tmp_path / "nobody").mkdir()
        (tmp_path / "nobody" / "control").touch()
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    before = dict(os.environ)
    with share_gpus():
        assert os.environ == before
    assert not (tmp_path / "bin" / "services").exists()


def test_processes_do_without_one_that_does_not_start(
    tmp_path: Path, install: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install().write_text("no program at all")
    deep = tmp_path / ("x" * 107)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with share_gpus():
        assert "did not start: processes take turns on the GPU" in caplog.text
        assert "[Errno" in caplog.text
        assert "is too long a path" in caplog.text
    assert not list(deep.iterdir())


_SHARING = r"""
import os, signal, time
from generator.server.mps import share_gpus
os.write(1, b"starting\n")
with share_gpus():
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"heard\n"))
    os.write(1, b"shared\n")
    time.sleep(600)
"""


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """A function that starts a process, with a group of its own as in a terminal, that shares GPUs."""
    started: list[Any] = []

    def start() -> Any:
        command = [sys.executable, "-c", _SHARING]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True))
        assert started[-1].stdout.readline() == b"starting\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_ends_when_who_started_it_is_killed(
    tmp_path: Path, install: Callable[..., Path], sharing: Callable[[], Any]
) -> None:
    program = install()
    process = sharing()
    assert process.stdout.readline() == b"shared\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == b"heard\n"
    assert len(find_services(program)) == 1
    process.kill()
    assert wait_until(lambda: not find_services(program) and not list(tmp_path.glob("trtgen-mps-*")))


def test_ctrl_c_while_it_starts(tmp_path: Path, install: Callable[..., Path], sharing: Callable[[], Any]) -> None:
    program = install(late=1)
    process = sharing()
    assert wait_until(lambda: len(find_services(program)) == 1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(15)
    assert not find_services(program)
    assert not list(tmp_path.glob("trtgen-mps-*"))


# The server itself.


@pytest.mark.server
@pytest.mark.parametrize("deaf", [False, True])
def test_its_clients_find_it_and_it_ends_with_the_server(
    deaf: bool, tmp_path: Path, install: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    add_python_model(tmp_path / "models" / "echo")
    program = install(deaf=deaf)
    with EmbeddedServer(tmp_path / "models", mps=True) as server:
        (stub,) = find_stubs(server.pid)
        folder = Path(stub.environ()[PIPES])
        assert find_services(program) == [int((folder / "control").read_text())]
        assert stub.environ()["CUDA_MPS_LOG_DIRECTORY"] == str(folder)
        serve._describe(server, seconds=1, log=None)
        assert "  MPS      processes share the GPU" in capsys.readouterr().err
    assert not find_services(program)
    assert not folder.exists()


@pytest.mark.server
def test_each_start_has_its_own(tmp_path: Path, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    add_python_model(tmp_path / "models" / "echo")
    program, attempts = install(), []

    def lose_once(wish: Ports, *, address: str) -> Ports:
        attempts.append(wish)
        chosen = choose_ports(wish, address=address)
        return Ports(http=taken, grpc=chosen.grpc, metrics=chosen.metrics) if len(attempts) == 1 else chosen

    monkeypatch.setattr(embedded, "choose_ports", lose_once)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        with EmbeddedServer(tmp_path / "models", mps=True) as server:
            assert len((program.parent / "services").read_text().split()) == 2
            assert len(find_services(program)) == 1
            server.stop(0)
    assert not find_services(program)


@pytest.mark.server
def test_one_that_does_not_start_costs_nothing_but_its_time(
    tmp_path: Path,
    install: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_python_model(tmp_path / "models" / "echo")
    install().write_text("#!/bin/sh\necho no GPU here >&2\nexit 1\n")
    started = time.monotonic()
    with EmbeddedServer(tmp_path / "models", mps=True, log_path=tmp_path / "log") as server:
        assert time.monotonic() - started < 5  # it is not waited for
        assert [state.name for state in server.models()] == ["echo"]
        assert "no GPU here" in (tmp_path / "log").read_text()
        assert f"{CONTROL} did not start: processes take turns on the GPU" in caplog.text
        serve._describe(server, seconds=1, log=None)
        assert "MPS" not in capsys.readouterr().err


def test_serve_says_that_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_python_model(tmp_path / "models" / "echo")
    monkeypatch.setenv("PATH", str(tmp_path))
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    assert main(["serve", "--mps", "--repository", str(tmp_path / "models"), *ports, "--", "/bin/true"]) == 1
    assert f"{CONTROL} is not on PATH" in capsys.readouterr().err


def test_containers_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--mps", "--container"]) == 2
    assert "--mps goes with the pip server" in capsys.readouterr().err
