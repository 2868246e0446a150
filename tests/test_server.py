"""The pip tritonserver: start, answers, every way to stop, and what is refused before it starts."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from tritonclient import grpc
from tritonclient import http as http_client

from generator.cli import main
from generator.errors import MissingDependencyError, PerfError, ServerError
from generator.measure.perf.served import read_models
from generator.server import embedded, stubs, supervisor, wheel
from generator.server.embedded import EmbeddedServer
from generator.server.endpoint import ModelState
from generator.server.hardening import OWNER_HEADER
from generator.server.ports import Ports, choose_ports
from generator.server.wheel import check_embedded
from generator.signals import _TWICE_S
from tests.server_parts import (
    ECHO,
    add_doubling_model,
    add_ensemble,
    add_python_model,
    find_leftovers,
    find_processes,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SLOW = ECHO.replace("answers = []", "open({started!r}, 'w').close(); import time; time.sleep(1.0); answers = []")
START_AND_WAIT = """\
import sys
from pathlib import Path
from generator.server.embedded import EmbeddedServer
with EmbeddedServer(Path(sys.argv[1])) as server:
    print(server._identifier, server.grpc_url, flush=True)
    server.wait()
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("server") / "repository"
    add_doubling_model(root / "double")
    add_python_model(root / "echo")
    add_ensemble(root / "chain", member="double")
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A repository that no other test serves."""
    add_doubling_model(tmp_path / "repository" / "double")
    add_python_model(tmp_path / "repository" / "echo")
    return tmp_path / "repository"


@pytest.mark.server
def test_every_model_is_listed_ready(server: EmbeddedServer) -> None:
    assert server.models() == [
        ModelState(name=name, version="1", state="READY") for name in ("chain", "double", "echo")
    ]


@pytest.mark.server
@pytest.mark.parametrize(("model", "names"), [("double", "XY"), ("echo", "XY"), ("chain", ("IN", "OUT"))])
@pytest.mark.parametrize("kind", [grpc, http_client], ids=["grpc", "http"])
def test_both_protocols_answer(server: EmbeddedServer, model: str, names: str, kind: type) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    url = server.grpc_url if kind is grpc else server.http_url
    tensor = kind.InferInput(names[0], [3, 4], "FP32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(array)
    with kind.InferenceServerClient(url) as client:  # type: ignore[attr-defined]
        answer = client.infer(model, [tensor]).as_numpy(names[1])
    np.testing.assert_array_equal(answer, array if model == "echo" else array * 2)


@pytest.mark.server
def test_metrics_are_served(server: EmbeddedServer) -> None:
    connection = http.client.HTTPConnection(server.metrics_url, timeout=10)
    connection.request("GET", "/metrics")
    assert b"nv_inference_count" in connection.getresponse().read()
    connection.close()


@pytest.mark.server
def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections("tcp") if c.status == "LISTEN"]
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    urls = (server.http_url, server.grpc_url, server.metrics_url)
    assert sorted(address.port for address in listening) == sorted(int(url.rpartition(":")[2]) for url in urls)


@pytest.mark.server
def test_the_repository_gets_no_byte_code(server: EmbeddedServer) -> None:
    assert server.models()
    assert not list(server.repository.rglob("__pycache__"))


@pytest.mark.server
def test_a_port_of_a_running_server_is_refused_by_name(server: EmbeddedServer) -> None:
    port = int(server.grpc_url.rpartition(":")[2])
    before = psutil.Process().children(recursive=True)
    with (
        pytest.raises(ServerError, match=f"the grpc port {port} on 127.0.0.1 is in use") as caught,
        EmbeddedServer(server.repository, grpc_port=port),
    ):
        pass
    assert f"sport = :{port}" in (caught.value.hint or "")
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.server
def test_stop_leaves_nothing_and_the_port_can_be_taken_again(own: Path) -> None:
    server = EmbeddedServer(own)
    with server:
        log, identifier = server.log_path, server._identifier
        ports = [int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url, server.metrics_url)]
        assert len(find_leftovers(identifier)) >= 3  # a region for each of the two stubs, and the directory
        processes = find_processes(own)
        assert sum("stub" in process.name() for process in processes) == 2
    assert not [process for process in processes if process.is_running()]
    assert find_leftovers(identifier) == []
    assert not log.exists()
    server.stop()
    with EmbeddedServer(own, http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2]) as again:
        assert again.http_url == f"127.0.0.1:{ports[0]}"
        again.stop(timeout_s=0)


@pytest.mark.server
def test_requests_in_flight_are_answered_before_the_end(tmp_path: Path) -> None:
    started = tmp_path / "started"
    add_python_model(tmp_path / "repository" / "slow", SLOW.format(started=str(started)))
    answers: list[object] = []
    answered = threading.Event()

    def keep(result: object, error: object) -> None:
        answers.append(error or result)
        answered.set()

    tensor = grpc.InferInput("X", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    with EmbeddedServer(tmp_path / "repository") as server, grpc.InferenceServerClient(server.grpc_url) as client:
        client.async_infer("slow", [tensor], callback=keep)
        assert wait_until(started.exists)
        server.stop()
        assert answered.wait(10)
    assert not isinstance(answers[0], Exception), answers


@pytest.mark.server
def test_stop_0_kills_at_once(own: Path) -> None:
    with EmbeddedServer(own) as server:
        identifier = server._identifier
        started = time.monotonic()
        server.stop(timeout_s=0)
        assert time.monotonic() - started < 1.5
    assert find_leftovers(identifier) == []
    assert find_processes(own) == []


@pytest.mark.server
def test_stop_ends_although_a_signal_left_the_lock_of_popen_held(own: Path) -> None:
    """Popen.wait takes it in front of its `try`: what a signal raises there leaves it held."""
    with EmbeddedServer(own) as server:
        supervisor = server._supervisor
        assert supervisor is not None
        lock = supervisor._waitpid_lock  # type: ignore[attr-defined]
        lock.acquire()
        stopping = threading.Thread(target=server.stop, kwargs={"timeout_s": 0})
        stopping.start()
        stopping.join(10)
        ended = not stopping.is_alive()
        lock.release()
        stopping.join()
        supervisor.wait()
    assert ended
    assert find_processes(own) == []


@pytest.mark.server
def test_a_server_started_in_a_thread_outlives_the_thread(repository: Path) -> None:
    """A parent-death signal would end it: Linux means the thread that forked."""
    server = EmbeddedServer(repository)
    thread = threading.Thread(target=server.__enter__)
    thread.start()
    thread.join()
    with contextlib.ExitStack() as stack:
        stack.push(server)
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(server.pid).wait(timeout=1.0)
        assert {model.state for model in server.models()} == {"READY"}
        server.stop(timeout_s=0)


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_owner_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    add_doubling_model(root / "double", instances="count: 2 kind: KIND_CPU")
    owner = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(root)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert owner.stdout is not None
    identifier = owner.stdout.readline().split()[0]
    assert len(find_processes(root)) == 4  # supervisor, tritonserver, two stubs
    assert find_leftovers(identifier)
    owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    assert wait_until(lambda: not find_processes(root)), find_processes(root)
    assert wait_until(lambda: not find_leftovers(identifier)), find_leftovers(identifier)


@pytest.mark.server
def test_the_death_of_the_supervisor_ends_the_server(own: Path) -> None:
    with EmbeddedServer(own) as server:
        supervisor = psutil.Process(server.pid).parent()
        assert supervisor is not None
        supervisor.kill()
        with pytest.raises(ServerError, match="SIGKILL"):
            server.wait()
    assert wait_until(lambda: not find_processes(own)), find_processes(own)
    assert wait_until(lambda: not find_leftovers(server._identifier)), find_leftovers(server._identifier)
    server.log_path.unlink()


@pytest.mark.server
def test_wait_says_how_the_server_died_and_keeps_the_log(own: Path) -> None:
    with EmbeddedServer(own) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError) as caught:
            server.wait()
    assert "tritonserver stopped: it was ended by SIGKILL" in caught.value.message
    assert caught.value.hint == f"read its log: {server.log_path}"
    assert server.log_path.is_file()
    assert caught.value.log_tail
    assert find_processes(own) == []
    assert find_leftovers(server._identifier) == []
    server.log_path.unlink()


@pytest.mark.server
def test_wait_ends_when_another_thread_stops_the_server(repository: Path) -> None:
    with EmbeddedServer(repository) as server:
        threading.Thread(target=server.stop, kwargs={"timeout_s": 0}).start()
        server.wait()


@pytest.mark.server
def test_an_interrupt_while_models_load_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    add_python_model(root / "slow", ECHO + "\n    def initialize(self, args):\n        import time; time.sleep(60)\n")
    owner = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(root)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert wait_until(lambda: any("stub" in process.info["name"] for process in find_processes(root)))
    owner.send_signal(signal.SIGINT)
    _, trace = owner.communicate(timeout=20)
    assert "KeyboardInterrupt" in trace
    assert find_processes(root) == []


@pytest.mark.server
def test_only_the_chosen_models_are_loaded_and_others_may_be_broken(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    add_doubling_model(root / "double")
    add_ensemble(root / "chain", member="double")
    add_python_model(root / "broken", "import surely_absent")
    (root / "leftover").mkdir()
    with EmbeddedServer(root, models=["chain"]) as server:
        assert [(model.name, model.state) for model in server.models()] == [("chain", "READY"), ("double", "READY")]
        for kind, url in ((grpc, server.grpc_url), (http_client, server.http_url)):
            with kind.InferenceServerClient(url) as client, pytest.raises(Exception, match="restricted"):
                client.load_model("broken")
        server.stop(timeout_s=0)


def test_explicit_control_stays_on_this_machine(repository: Path) -> None:
    with pytest.raises(ServerError, match=r"0\.0\.0\.0 can be reached from other machines, and whoever may load"):
        EmbeddedServer(repository, address="0.0.0.0", allow_non_loopback=True, explicit=True).__enter__()


@pytest.mark.server
def test_a_free_port_that_is_lost_is_replaced(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice is taken by another program, which also answers there."""
    attempts = []

    def lose_once(wish: Ports, *, address: str) -> Ports:
        attempts.append(wish)
        chosen = choose_ports(wish, address=address)
        return Ports(http=taken, grpc=chosen.grpc, metrics=chosen.metrics) if len(attempts) == 1 else chosen

    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(embedded, "choose_ports", lose_once)
        with EmbeddedServer(repository) as server:
            assert server.http_url != f"127.0.0.1:{taken}"
            server.stop(timeout_s=0)
    assert len(attempts) == 2


@pytest.mark.server
def test_an_interrupted_publish_is_recovered_first(tmp_path: Path) -> None:
    """A staging folder without a journal is a build that died; `recover` removes it."""
    root = tmp_path / "repository"
    add_doubling_model(root / "double")
    staging = tmp_path / ".repository.trtgen" / "staged"
    staging.mkdir(parents=True)
    with EmbeddedServer(root) as server:
        assert not staging.exists()
        server.stop(timeout_s=0)


@pytest.mark.server
@pytest.mark.parametrize("special", ["with space", "Überraschung", "a,b:c'd"])
def test_any_path_can_be_served(special: str, tmp_path: Path) -> None:
    add_doubling_model(tmp_path / special / "repository" / "double")
    log = tmp_path / special / "logs" / "server.log"
    with EmbeddedServer(tmp_path / special / "repository", log_path=log) as server:
        assert server.models()[0].state == "READY"
        server.stop(timeout_s=0)
    assert "successfully loaded 'double'" in log.read_text()
    (tmp_path / special / "repository" / "double" / "1" / "model.onnx").unlink()
    with pytest.raises(ServerError) as caught, EmbeddedServer(tmp_path / special / "repository", log_path=log):
        pass
    assert f"{tmp_path / special}/repository/double/1/model.onnx" in caught.value.message


def test_an_address_that_others_reach_needs_a_flag(repository: Path) -> None:
    with pytest.raises(ServerError, match="security fixes") as caught, EmbeddedServer(repository, address="0.0.0.0"):
        pass
    assert "allow other addresses" in (caught.value.hint or "")


@pytest.mark.server
def test_an_address_that_others_reach_can_be_allowed(repository: Path) -> None:
    with EmbeddedServer(repository, address="0.0.0.0", allow_non_loopback=True) as server:
        assert server.http_url.startswith("127.0.0.1:")
        assert server.models()
        server.stop(timeout_s=0)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("::1", "IPv6"),
        ("192.0.2.1", "Cannot assign requested address"),
        ("nowhere.invalid", "nowhere.invalid:0: Name or service not known"),
    ],
)
def test_an_address_that_cannot_be_bound(address: str, words: str, repository: Path) -> None:
    with pytest.raises(ServerError, match=words), EmbeddedServer(repository, address=address, allow_non_loopback=True):
        pass


def test_ports_are_checked_before_anything_starts(repository: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"\[7000, 7000\] are not different"),
        EmbeddedServer(repository, http_port=7000, grpc_port=7000),
    ):
        pass
    with (
        pytest.raises(ServerError, match="metrics port 70000 does not exist"),
        EmbeddedServer(repository, metrics_port=70000),
    ):
        pass


def test_an_absent_or_empty_repository_names_the_next_command(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="there is no model repository at") as caught,
        EmbeddedServer(tmp_path / "none"),
    ):
        pass
    assert caught.value.command == ("build-repo", "resnet50")
    assert caught.value.fields == {"repository": tmp_path / "none"}
    (tmp_path / "empty" / "not a model").mkdir(parents=True)
    with pytest.raises(ServerError, match="holds no model"), EmbeddedServer(tmp_path / "empty"):
        pass


def test_a_log_that_cannot_be_written(repository: Path) -> None:
    with (
        pytest.raises(ServerError, match="cannot write the log") as caught,
        EmbeddedServer(repository, log_path=Path("/proc/server.log")),
    ):
        pass
    assert caught.value.hint == "name another file for the log"


# What this machine is not: the conditions are simulated where they are read.


def test_the_wheel_is_found_without_importing_it() -> None:
    code = "import sys; from generator.server.wheel import check_embedded as c; print(c().binary)"
    code += "; print(sorted({'pytriton', 'numpy', 'tritonclient', 'onnx'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    binary, imported = run.stdout.splitlines()
    assert Path(binary).is_file()
    assert imported == "[]"


def test_numpy_2_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.4.0" if name == "numpy" else real(name))
    with pytest.raises(ServerError, match=r"numpy 2.4.0 is installed; .* crashes with numpy 2") as caught:
        check_embedded()
    assert caught.value.hint == "pip install 'numpy<2'"


@pytest.mark.parametrize(("module", "package"), [("pytriton", "nvidia-pytriton"), ("psutil", "psutil")])
def test_an_absent_package_names_the_extra(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else real(name))
    with pytest.raises(MissingDependencyError, match=f"the package {package} is not installed") as caught:
        check_embedded()
    assert caught.value.hint == "in trtgen's checkout: pip install -e '.[server]'"


@pytest.mark.parametrize(
    ("target", "name", "value", "words"),
    [
        (platform, "machine", lambda: "aarch64", "Linux on aarch64; the pip tritonserver is for Linux on x86_64"),
        (platform, "system", lambda: "Darwin", "this machine is Darwin"),
        (platform, "libc_ver", lambda: ("glibc", "2.31"), "is glibc 2.31; the pip tritonserver needs glibc 2.35"),
        (platform, "libc_ver", lambda: ("musl", "1.2.5"), "is musl 1.2.5; the pip tritonserver needs glibc 2.35"),
        (platform, "libc_ver", lambda: ("", ""), "is an unknown one; the pip tritonserver needs glibc 2.35"),
        (wheel, "_MAXIMUM_PYTHON", (3, 9), "the pip tritonserver with trtgen needs 3.10 to 3.12"),
    ],
)
def test_a_machine_that_it_cannot_run_on(
    target: object, name: str, value: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, name, value)
    with pytest.raises(ServerError, match=words) as caught:
        check_embedded()
    assert caught.value.hint


def test_the_directory_that_a_killed_python_backend_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in /tmp under a random name; there the tests of others would disturb."""
    before = tmp_path / "python_env_before"
    before.mkdir()
    monkeypatch.setattr(supervisor, "_find_environments", lambda: set(tmp_path.iterdir()))
    names = ("python_env_000001", "python_env_000002")
    first, second = (tmp_path / name for name in names)
    first.mkdir()
    second.mkdir()
    supervisor._remove_environment({before})
    assert sorted(tmp_path.iterdir()) == [first, second, before]  # whose they are is not known
    supervisor._remove_environment({before, second})
    assert sorted(tmp_path.iterdir()) == [second, before]
    (second / "unpacked").touch()
    supervisor._remove_environment({before})
    assert second.exists()


# The command.


@contextlib.contextmanager
def serve_command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "generator", "serve", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    text = ""
    for line in process.stderr:
        text += line
        if words in line:
            return text
    raise AssertionError(text)


FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_models_and_urls_and_ends_with_0(number: signal.Signals, own: Path) -> None:
    with serve_command("--repository", str(own), *FREE) as process:
        text = read_until(process, "Ctrl-C stops it")
        for line in ("double  1  READY", "echo    1  READY", "HTTP     http://127.0.0.1:", "gRPC     127.0.0.1:"):
            assert line in text
        process.send_signal(number)
        out, rest = process.communicate(timeout=60)
    assert "stopping" in rest
    assert process.returncode == 0
    log = re.search(r"log +(\S+)  \(removed at the end unless it fails; --log FILE keeps it\)", text)
    assert log
    assert not Path(log[1]).exists()
    assert out == ""
    assert find_processes(own) == []


@pytest.mark.server
def test_serve_ends_with_the_commands_exit_code_or_signal(own: Path, tmp_path: Path) -> None:
    code = f"""
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / "ended")!r}).touch(), sys.exit(7)))
pathlib.Path({str(tmp_path / "started")!r}).touch()
signal.pause()
"""
    told = "echo $TRTGEN_HTTP_URL $TRTGEN_GRPC_URL $TRTGEN_METRICS_URL $TRTGEN_REPOSITORY; kill -KILL $$"
    with serve_command("--repository", str(own), *FREE, "--", "sh", "-c", told) as process:
        out, text = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    http, grpc, metrics, root = out.split()
    assert f"http://{http}\n" in text
    assert f"gRPC     {grpc}\n" in text
    assert f"http://{metrics}/metrics\n" in text
    assert root == str(own.resolve())
    with serve_command("--repository", str(own), *FREE, "--", sys.executable, "-c", code) as process:
        assert wait_until((tmp_path / "started").exists)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
    assert (process.returncode, text.splitlines()[-1]) == (128 + signal.SIGTERM, "error: ended by SIGTERM")
    assert (tmp_path / "ended").exists(), "the command was told"
    assert find_processes(own) == []


@pytest.mark.server
def test_a_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    add_doubling_model(root / "double", instances="count: 8 kind: KIND_CPU")  # 8 s and more to stop in order
    with serve_command("--repository", str(root), *FREE) as process:
        read_until(process, "Ctrl-C stops it")
        process.send_signal(signal.SIGINT)
        read_until(process, "stopping")
        time.sleep(1.5 * _TWICE_S)  # sooner it would be the same one
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert time.monotonic() - started < 5
    assert process.returncode == 130
    assert find_processes(root) == []


@pytest.mark.server
def test_an_interrupt_before_it_is_ready_ends_with_130(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    add_python_model(root / "slow", ECHO + "\n    def initialize(self, args):\n        import time; time.sleep(60)\n")
    with serve_command("--repository", str(root), *FREE) as process:
        assert wait_until(lambda: any("stub" in found.info["name"] for found in find_processes(root)))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert find_processes(root) == []


@pytest.mark.server
def test_serve_fails_with_the_cause_and_the_next_command(tmp_path: Path) -> None:
    add_python_model(tmp_path / "repository" / "echo", "import surely_absent")
    log = tmp_path / "server.log"
    with serve_command("--repository", str(tmp_path / "repository"), "--log", str(log), *FREE) as process:
        _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: tritonserver did not start: echo: its Python code imports surely_absent" in text
    assert "hint: pip install surely_absent" in text
    assert f"(log: {log})" in text


@pytest.mark.server
def test_serve_says_when_the_server_dies(own: Path, tmp_path: Path) -> None:
    with serve_command("--repository", str(own), "--log", str(tmp_path / "log"), *FREE) as process:
        read_until(process, "Ctrl-C stops it")
        [server] = [found for found in find_processes(own) if found.name() == "tritonserver"]
        server.kill()
        _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: tritonserver stopped: it was ended by SIGKILL" in text


@pytest.mark.server
@pytest.mark.parametrize("unlocked", [False, True])
def test_explicit_control_is_for_who_has_the_secret(unlocked: bool, own: Path) -> None:
    options = ["--model-control", "explicit", *(["--unlocked"] if unlocked else [])]
    with serve_command("--repository", str(own), *options, *FREE) as process:
        text = read_until(process, "Ctrl-C stops it")
        assert "double  1  READY" in text
        secret = text.partition(f"{OWNER_HEADER}: ")[2].partition("\n")[0]
        assert bool(secret) is not unlocked
        for protocol, kind, url, prefix in (
            ("grpc", grpc, "gRPC     ", "triton-grpc-protocol-"),
            ("http", http_client, "HTTP     http://", ""),
        ):
            address = text.partition(url)[2].split()[0]
            assert [model.name for model in read_models(protocol, address, "double")[1]] == ["double"]
            with pytest.raises(PerfError, match="restricted" if secret else "0 ensembles, not one") as caught:
                read_models(protocol, address, None)
            assert "model" in caught.value.fields
            headers = {f"{prefix}{OWNER_HEADER}": secret} if secret else {}
            with kind.InferenceServerClient(address) as client:
                if secret:
                    for call in (client.load_model, client.unload_model, client.get_model_repository_index):
                        with pytest.raises(Exception, match="restricted"):
                            call(*(["double"] if call != client.get_model_repository_index else []))
                client.unload_model("echo", headers=headers)
                # Its process has ended in order, which is no reason to stop.
                assert wait_until(lambda: not any("stub" in one.info["name"] for one in find_processes(own / "echo")))
                time.sleep(2 * stubs._CHECK_S)
                client.load_model("echo", headers=headers)
                assert client.is_model_ready("echo")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unlocked"], "--unlocked goes with --model-control explicit"),
        (["--model-control", "explicit", "--container"], "goes with the pip server"),
    ],
)
def test_model_control_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_container_options_need_container(repository: Path) -> None:
    with serve_command("--repository", str(repository), "--cpu") as process:
        _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "go with --container" in text
