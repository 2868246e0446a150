"""Hardened launches: what is printed for a release, and that the real server and a real nginx then refuse and answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from tritonclient.utils import InferenceServerException

from generator.cli import main
from generator.errors import PerfError, ServerError
from generator.gate.published import verify_published
from generator.measure.perf.served import read_models
from generator.server.container import STOCK_RELEASE
from generator.server.endpoint import is_ready
from generator.server.hardening import FIXES, LAST_KNOWN, OPTIONS, OWNER_HEADER, PIP_RELEASE, RESTRICTED_APIS, list_remarks
from generator.server.launch import assemble_backends, assemble_python, make_environment
from generator.server.ports import Ports, choose_ports
from generator.server.secret_files import make_secrets, read_key
from generator.server.wheel import check_embedded
from tests.server_parts import wait_until
from tests.tiny_repository import build_tiny_repository, make_image

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from triton_images import ClientError, Connection, RefusedError, Tls  # it is no package

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients"
LIMIT = 8  # max_batch_size of what is served
BODY_LIMIT = 1_000_000


class Hardened(NamedTuple):
    """A hardened server, nginx in front of it, and the folder of their certificates."""

    http: str
    grpc: str
    proxy: str
    secrets: Path
    repository: Path

    def connect(self, protocol: str, *, proxy: bool = False, certified: bool = True, key: bool = False) -> Connection:
        """Connect as our clients do; tritonserver's own HTTP has no TLS."""
        url = self.proxy if proxy else {"grpc": self.grpc, "http": self.http}[protocol]
        own = [str(self.secrets / name) for name in ("client.crt", "client.key")] if certified else [None, None]
        tls = Tls(str(self.secrets / "ca.crt"), *own) if proxy or protocol == "grpc" else None
        headers = {OWNER_HEADER: read_key(self.secrets)} if key else {}
        return Connection(protocol, url, 20.0, tls=tls, headers=headers)


def run_harden(*options: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    assert main(["harden", *map(str, options)]) == 0
    said = capsys.readouterr()
    return said.out, said.err


def write_harden(*options: str | Path) -> str:
    command = [sys.executable, "-m", "generator", "harden", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hardened") / "secrets"
    assert make_secrets(folder, address="127.0.0.1")
    return folder


@pytest.fixture(scope="module")
def hardened(built_demo: Path, secrets: Path) -> Iterator[Hardened]:
    """The demo model, with what `trtgen harden` prints run as it is: its script by the pip server, its nginx.conf."""
    ports = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1")
    listen = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1").http
    given = ("--repository", built_demo, "--secrets", secrets)
    script = write_harden("--release", PIP_RELEASE, "--insecure", *given)
    urls = ("--http-url", f"localhost:{ports.http}", "--grpc-url", f"localhost:{ports.grpc}", "--listen", str(listen))
    config = write_harden("--format", "nginx", *given, *urls)
    config, count = re.subn(r"client_max_body_size \d+", f"client_max_body_size {BODY_LIMIT}", config)
    assert count == 1
    with run_script(script, secrets.parent, ports), run_nginx(config, secrets.parent / "nginx", listen):
        urls = (f"127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}", f"localhost:{listen}")
        yield Hardened(*urls, secrets, built_demo)


@contextlib.contextmanager
def run_script(script: str, folder: Path, ports: Ports) -> Iterator[None]:
    """Run the script with the pip server as the `tritonserver` on PATH, on loopback and free ports."""
    triton = check_embedded()
    backends, python = assemble_backends(triton, folder), assemble_python(triton, folder)
    (python / "tritonserver").symlink_to(triton.binary)
    (folder / "launch.sh").write_text(script)
    more = [f"--{name}-port={port}" for name, port in ports.named().items()]
    command = ["sh", str(folder / "launch.sh"), *more, f"--backend-directory={backends}", "--grpc-address=127.0.0.1"]
    environment = make_environment(triton, python=python)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        ready = wait_until(lambda: process.poll() is not None or is_ready(f"127.0.0.1:{ports.http}"), timeout_s=60)
        assert ready, (folder / "log").read_text()
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def run_nginx(text: str, folder: Path, port: int) -> Iterator[None]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx here (apt-get install nginx-light)")
    folder.mkdir(mode=0o755)
    config = folder / "nginx.conf"
    config.write_text(text)
    # The folders of tests are closed to other users, and as root nginx would become one.
    more = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([nginx, "-p", folder, "-e", "stderr", "-c", config, "-g", more], stderr=log)
    try:
        assert wait_until(lambda: process.poll() is not None or (folder / "nginx.pid").exists())
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(20)


STAR = (CLIENTS / "samples" / "star.jpg").read_bytes()
both = pytest.mark.parametrize("protocol", ["grpc", "http"])
HIDDEN = {
    "model-repository": lambda client, headers: client.get_model_repository_index(headers=headers),
    "model-config": lambda client, headers: client.get_model_config("demo", headers=headers),
    "statistics": lambda client, headers: client.get_inference_statistics("demo", headers=headers),
    "shared-memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "logging": lambda client, headers: client.get_log_settings(headers=headers),
}


@pytest.mark.server
@both
@pytest.mark.parametrize("api", RESTRICTED_APIS)
def test_restricted_apis_need_the_key(hardened: Hardened, protocol: str, api: str) -> None:
    with hardened.connect(protocol) as closed, hardened.connect(protocol, key=True) as opened:
        with pytest.raises(InferenceServerException, match="restricted"):
            HIDDEN[api](closed._client, closed._headers)
        HIDDEN[api](opened._client, opened._headers)
        wrong = dict.fromkeys(opened._headers, "0" * 32)
        with pytest.raises(InferenceServerException, match="restricted"):
            HIDDEN[api](closed._client, wrong)


@pytest.mark.server
def test_a_client_without_a_certificate_is_refused(hardened: Hardened) -> None:
    cases = [("grpc", False), ("grpc", True), ("http", True)]
    for protocol, proxy in cases:
        with hardened.connect(protocol, proxy=proxy) as connection:
            assert connection.find_model("demo").name == "demo"
        with hardened.connect(protocol, proxy=proxy, certified=False) as connection:
            with pytest.raises(ClientError) as caught:
                connection.find_model("demo")
            assert "--certificate" in caught.value.hint
        with Connection(protocol, hardened.proxy if proxy else hardened.grpc, 20.0) as connection:
            with pytest.raises(ClientError, match="takes encrypted connections only") as caught:
                connection.find_model("demo")
            assert "--tls" in caught.value.hint
        with Connection(protocol, hardened.proxy if proxy else hardened.grpc, 20.0, tls=Tls()) as connection:
            with pytest.raises(ClientError, match="no TLS connection"):
                connection.find_model("demo")


@pytest.mark.server
@both
@pytest.mark.parametrize("proxy", [False, True])
def test_clients_learn_the_batch_limit_from_the_refusal(hardened: Hardened, protocol: str, proxy: bool) -> None:
    with hardened.connect(protocol, proxy=proxy) as connection:
        with pytest.raises(ClientError, match="does not list its models"):
            connection.find_model()
        model = connection.find_model("demo")
        for _ in range(2):
            answers = connection.classify(model, [STAR] * 10, top=1)
            assert [row[0].label for row in answers] == ["star"] * 10
        assert connection._limits == {"demo": LIMIT}


@pytest.mark.server
@both
def test_the_proxy_passes_what_clients_need_and_limits_bodies(hardened: Hardened, protocol: str) -> None:
    with hardened.connect(protocol, proxy=True, key=True) as connection:
        for ask in HIDDEN.values():  # whoever has the key
            with pytest.raises(InferenceServerException) as caught:
                ask(connection._client, connection._headers)
            assert caught.value.status() in ("403", "StatusCode.PERMISSION_DENIED")
        client = connection._client
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("demo")
        assert client.get_server_metadata()
        model = connection.find_model("demo")
        large = STAR + bytes(BODY_LIMIT - len(STAR) - 2000)  # what follows the image is not looked at
        assert connection.classify(model, [large], top=1)[0][0].label == "star"
        with pytest.raises(RefusedError, match="larger than|413"):
            connection.classify(model, [large + bytes(4000)])
    with hardened.connect(protocol) as connection:
        assert connection.classify(model, [large + bytes(4000)], top=1)[0][0].label == "star"


@pytest.mark.server
def test_the_command_lines_take_certificates_and_headers(hardened: Hardened) -> None:
    names = {"--ca": "ca.crt", "--certificate": "client.crt", "--key": "client.key"}
    tls = ["--tls", *(word for option, name in names.items() for word in (option, str(hardened.secrets / name)))]
    key = ["--header", f"{OWNER_HEADER}: @{hardened.secrets}/api-key"]
    sample = CLIENTS / "samples" / "star.jpg"
    output, _ = run_client(sample, "--url", hardened.grpc, *tls, *key)  # the key lists the models
    assert output == f"{sample}\n  1.0000  star\n"
    _, error = run_client(sample, "--url", hardened.grpc, *tls, *key, script="detect.py", code=1)
    assert "serves no ensemble that detects objects" in error
    for wrong, message in (
        (tls[1:], "go with --tls"),
        (tls[:5], "go together"),
        (["--tls", "--ca", str(sample)], f"TLS cannot use {sample}"),
        (["--tls", "--ca", "absent"], "TLS cannot use absent: No such file"),
        (["--header", f"{OWNER_HEADER}: @absent"], "absent: No such file"),
    ):
        _, error = run_client(sample, "--url", hardened.grpc, *wrong, code=1)
        assert message in error
    assert "is not 'NAME: VALUE'" in run_client(sample, "--header", "key", code=2)[1]


@pytest.mark.server
def test_a_hardened_server_is_verified_and_says_what_a_measurement_lacks(hardened: Hardened) -> None:
    (report,) = verify_published(hardened.repository, ["demo"], grpc_url=hardened.grpc, secrets=hardened.secrets)
    served = {result.stage: result.status for result in report.results if result.stage.startswith("served")}
    assert len(served) == 3
    assert set(served.values()) == {"proved"}
    (report,) = verify_published(hardened.repository, ["demo"], grpc_url=hardened.proxy, secrets=hardened.secrets)
    assert not report.failed
    with pytest.raises(ServerError, match="may ask for TLS") as caught:
        next(verify_published(hardened.repository, ["demo"], grpc_url=hardened.grpc))
    assert "secrets" in caught.value.fields
    with pytest.raises(PerfError, match="does not list its models"):
        read_models("http", hardened.http, None)
    with pytest.raises(PerfError, match="hides what a measurement reads, the APIs model-config and statistics"):
        read_models("http", hardened.http, "demo")


def run_client(*arguments: str | Path, script: str = "classify.py", code: int = 0) -> tuple[str, str]:
    """Run a client, check its exit code and that nothing escaped, and return standard output and error."""
    command = [sys.executable, "-W", "error", str(CLIENTS / script), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout, run.stderr
