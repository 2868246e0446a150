"""`trtgen serve --container`: the command line, and what is said when docker or the server inside fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from generator.cli import main
from generator.errors import ServerError
from generator.server.container import (
    DEFAULT_IMAGE,
    STOCK_IMAGE,
    Container,
    check_readable,
    explain_container_end,
)
from generator.server.ports import Ports
from tests.server_parts import write_config

ROOT = Path(__file__).parents[1]
PORTS = Ports(http=9000, grpc=9001, metrics=9002)

# Stands for docker where there is none: `run` writes what a container would and waits, `stop` and `kill` end it.
FAKE_DOCKER = """\
#!/bin/sh
echo "$@" >> "{record}"
case "$1" in
  run) echo "{output}"; [ -n "{code}" ] && exit {code}
       while [ ! -e "{record}.stop" ]; do sleep 0.05; done ;;
  stop|kill) touch "{record}.stop" ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_config(tmp_path / "repository" / "model")
    return tmp_path / "repository"


def put_docker(directory: Path, monkeypatch: pytest.MonkeyPatch, *, output: str = "ready", code: str = "") -> Path:
    """Put the stand-in first on PATH; return the file in which it notes its arguments."""
    record = directory / "calls"
    program = directory / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(FAKE_DOCKER.format(record=record, output=output, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return record


def test_the_command_line(tmp_path: Path) -> None:
    container = Container(tmp_path, ports=PORTS)
    argv = container.argv
    assert argv[:3] == ["docker", "run", "--rm"]
    image = argv.index(DEFAULT_IMAGE)
    assert argv[image + 1] == "tritonserver"
    assert set(argv[3:image]) == {
        f"--name={container.name}",
        "--gpus=all",
        "--user=1000:1000",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--shm-size=1g",
        "--mount",
        f"type=bind,source={tmp_path},target=/models,readonly",
        "--publish=127.0.0.1:9000:8000",
        "--publish=127.0.0.1:9001:8001",
        "--publish=127.0.0.1:9002:8002",
    }
    assert "--model-repository=/models" in argv[image:]
    assert "--model-control-mode=none" in argv[image:]


def test_image_address_and_gpus_are_choices(tmp_path: Path) -> None:
    argv = Container(tmp_path, ports=PORTS, image=STOCK_IMAGE, address="10.0.0.1", gpus=False).argv
    assert STOCK_IMAGE in argv
    assert "--publish=10.0.0.1:9000:8000" in argv
    assert not [part for part in argv if part.startswith("--gpus")]


def test_the_pinned_tags() -> None:
    assert STOCK_IMAGE == "nvcr.io/nvidia/tritonserver:26.10-py3"
    assert DEFAULT_IMAGE == "trtgen-serving:26.10"


@pytest.mark.parametrize("name", ["with space", "a,b", "a:b"])
def test_any_path_is_one_field_of_the_mount(name: str, tmp_path: Path) -> None:
    argv = Container(tmp_path / name, ports=PORTS).argv
    source = f'"source={tmp_path}/a,b"' if "," in name else f"source={tmp_path}/{name}"
    assert f"type=bind,{source},target=/models,readonly" in argv


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client here")
@pytest.mark.parametrize("name", ["plain", "a,b"])
def test_the_real_docker_client_takes_every_option(name: str, tmp_path: Path) -> None:
    """It checks its options before it asks the daemon, which is out of reach on purpose."""
    (tmp_path / name).mkdir()
    environment = {**os.environ, "DOCKER_HOST": "tcp://127.0.0.1:9"}
    argv = Container(tmp_path / name, ports=PORTS).argv
    run = subprocess.run(argv, check=False, env=environment, capture_output=True, text=True)
    assert "Cannot connect to the Docker daemon" in run.stderr
    assert run.returncode == 125
    wrong = [*argv[:3], "--no-such-option"]
    run = subprocess.run(wrong, check=False, env=environment, capture_output=True, text=True)
    assert "Cannot connect" not in run.stderr


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client here")
def test_a_daemon_that_does_not_answer(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(ServerError, match="daemon does not answer") as caught:
        Container(repository, ports=PORTS).run(show=lambda _: None, log_path=tmp_path / "log")
    assert "systemctl start docker" in (caught.value.hint or "")


def test_absent_docker_names_the_way_without(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="docker was not found") as caught:
        Container(repository, ports=PORTS).run(show=lambda _: None, log_path=tmp_path / "log")
    assert "without a container" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("output", "cause", "hint"),
    [
        (
            "docker: Error response from daemon: could not select device driver '' with capabilities: [[gpu]]",
            "cannot give the container a GPU",
            "NVIDIA Container Toolkit",
        ),
        (
            "docker: Error response from daemon: pull access denied for trtgen-serving, repository does not exist",
            "the image trtgen-serving is not here",
            "docker compose build",
        ),
        (
            "docker: Error response from daemon: Bind for 127.0.0.1:8000 failed: port is already allocated",
            "one of the ports is in use",
            "on other ports",
        ),
    ],
)
def test_what_docker_says_is_explained(output: str, cause: str, hint: str, tmp_path: Path) -> None:
    error = explain_container_end(125, output, log_path=tmp_path / "log", repository=tmp_path)
    assert cause in error.message
    assert hint in (error.hint or "")


def test_other_words_of_docker_are_shown(tmp_path: Path) -> None:
    error = explain_container_end(125, "docker: the whale is asleep\n", log_path=tmp_path / "log", repository=tmp_path)
    assert error.log_tail == ["docker: the whale is asleep"]


def test_a_model_that_fails_inside_is_explained(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "E1122 12:31:28.507750 1 model_lifecycle.cc:642] failed to load 'm' version 1: Internal: No module named 'PIL'"
    )
    put_docker(tmp_path, monkeypatch, output=line, code="1")
    shown: list[str] = []
    with pytest.raises(ServerError, match="m: its Python code imports PIL") as caught:
        Container(repository, ports=PORTS).run(show=shown.append, log_path=tmp_path / "log")
    assert caught.value.hint == "pip install pillow"
    assert shown == [line]
    assert (tmp_path / "log").read_text() == f"{line}\n"


def test_an_interrupt_stops_the_container(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = put_docker(tmp_path, monkeypatch)
    container = Container(repository, ports=PORTS)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        container.run(show=interrupt, log_path=tmp_path / "log")
    run, stop = record.read_text().splitlines()
    assert run.startswith("run --rm")
    assert stop == f"stop --time=30 {container.name}"


def test_a_file_that_the_containers_user_cannot_read_is_named(repository: Path) -> None:
    check_readable(repository)
    secret = repository / "model" / "config.pbtxt"
    secret.chmod(0o600)
    if secret.stat().st_uid == 1000:
        pytest.skip("this user has the container's number")
    with pytest.raises(ServerError, match=r"cannot read .*/model/config.pbtxt \(mode -rw-------\)") as caught:
        check_readable(repository)
    assert caught.value.hint == f"chmod -R o+rX {repository}"


def serve_container(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "generator", "serve", "--container", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_dry_run_prints_the_command_and_runs_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put_docker(tmp_path, monkeypatch)
    out, _ = serve_container("--repository", str(repository), "--dry-run", "--cpu", "--image", "x:1").communicate()
    assert out.startswith("docker run --rm --name=trtgen-serve-")
    assert " x:1 tritonserver " in out
    assert "--publish=127.0.0.1:8000:8000" in out
    assert "--gpus" not in out
    assert not record.exists()


def test_the_command_ends_in_order_with_0(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = put_docker(tmp_path, monkeypatch)
    free = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = serve_container("--repository", str(repository), "--log", str(tmp_path / "log"), *free)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("docker run")
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == f"stopped (log: {tmp_path / 'log'})\n"
    assert record.read_text().splitlines()[1].startswith("stop --time=30 trtgen-serve-")


def test_the_log_is_removed_once_it_was_stopped(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_docker(tmp_path, monkeypatch)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    process = serve_container("--repository", str(repository), "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("docker run")
    assert process.stderr.readline() == "ready\n"
    assert len(list((tmp_path / "temporary").glob("trtgen-serve-*/tritonserver.log"))) == 1
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "stopped\n")
    assert list((tmp_path / "temporary").iterdir()) == []


def serve_here(repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run the command in this process, its temporary files in `folder`, on free ports."""
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    free = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    return main(["serve", "--container", "--repository", str(repository), *free, *options])


def test_a_failed_start_leaves_no_folder(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_docker(tmp_path, monkeypatch, output="Cannot connect to the Docker daemon", code="125")
    assert serve_here(repository, tmp_path / "temporary", monkeypatch) == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_log_that_the_error_names_is_kept(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_docker(tmp_path, monkeypatch, output="out of luck", code="1")
    assert serve_here(repository, tmp_path / "temporary", monkeypatch) == 1
    (log,) = (tmp_path / "temporary").glob("*/tritonserver.log")
    assert log.read_text() == "out of luck\n"
    assert str(log) in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_plans_are_checked_before_the_command_is_printed(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path / "repository" / "model")
    (tmp_path / "repository" / "model" / "1").mkdir(exist_ok=True)
    (tmp_path / "repository" / "model" / "1" / "model.plan").touch()
    put_docker(tmp_path, monkeypatch)
    assert serve_here(tmp_path / "repository", tmp_path / "temporary", monkeypatch, "--cpu", *options) == 1
    said = capsys.readouterr()
    assert "needs a GPU, and the container is to run without" in said.err
    assert "docker run" not in said.out + said.err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_another_address_needs_the_flag(repository: Path) -> None:
    process = serve_container("--repository", str(repository), "--address", "0.0.0.0", "--dry-run")
    _, text = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "neither passwords nor encryption" in text
    process = serve_container(
        "--repository", str(repository), "--address", "0.0.0.0", "--dry-run", "--allow-non-loopback"
    )
    out, _ = process.communicate(timeout=30)
    assert "--publish=0.0.0.0:8000:8000" in out
