"""Hardened launches: what is printed for a release, and that the real server and a real nginx then refuse and answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from tritonclient import grpc
from tritonclient import http as http_client
from tritonclient.utils import InferenceServerException

from generator.cli import main
from generator.errors import PerfError
from generator.gate.published import verify_published
from generator.measure.perf.served import read_models
from generator.server.container import STOCK_RELEASE
from generator.server.embedded import EmbeddedServer
from generator.server.hardening import FIXES, LAST_KNOWN, OPTIONS, OWNER_HEADER, list_remarks
from generator.server.ports import Ports, choose_ports
from generator.server.secret_files import make_secrets, read_key
from generator.server.wheel import check_embedded
from tests.server_parts import wait_until
from tests.tiny_repository import build_tiny_repository, make_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients"
LIMIT = 3  # max_batch_size of what is served
BODY_LIMIT = 200_000


class Hardened(NamedTuple):
    """A hardened server, nginx in front of it, and the folder of their certificates."""

    http: str
    grpc: str
    proxy: str
    secrets: Path
    repository: Path

    @property
    def tls(self) -> list[str]:
        names = {"--ca": "ca.crt", "--certificate": "client.crt", "--key": "client.key"}
        return ["--tls", *(word for option, name in names.items() for word in (option, str(self.secrets / name)))]


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
    """The demo model, and what `trtgen harden` prints run as it is: its script with the pip server, its nginx.conf."""
    with EmbeddedServer(built_demo, secrets_folder=secrets, hardened=True) as server, contextlib.ExitStack() as stack:
        listen = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1").http
        (port,) = (url.rpartition(":")[2] for url in [server.grpc_url])
        text = write_harden(
            *("--format", "nginx", "--repository", built_demo, "--secrets", secrets, "--listen", str(listen)),
            *("--http-url", server.http_url, "--grpc-url", f"localhost:{port}"),
        )
        text, count = re.subn(r"client_max_body_size \d+", f"client_max_body_size {BODY_LIMIT}", text)
        assert count == 1
        stack.enter_context(run_nginx(text, secrets.parent / "nginx", listen))
        yield Hardened(server.http_url, server.grpc_url, f"localhost:{listen}", secrets, built_demo)


@contextlib.contextmanager
def run_nginx(text: str, folder: Path, port: int) -> Iterator[None]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx here (apt-get install nginx-light)")
    folder.mkdir(mode=0o755)
    config = folder / "nginx.conf"
    config.write_text(text)
    command = [nginx, "-p", str(folder), "-e", "stderr", "-c", str(config), "-g", "daemon off;"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_until(lambda: process.poll() is not None or (folder / "nginx.pid").exists())
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        yield
    finally:
        process.terminate()
        process.wait(20)


def run_client(*arguments: str | Path, script: str = "classify.py", code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-W", "error", str(CLIENTS / script), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout, run.stderr
