"""compose.yaml: valid by the Compose specification, and the same server as `trtgen serve --container`."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator.server.container import DEFAULT_IMAGE, FUSED_IMAGE, STOCK_IMAGE, Container
from generator.server.embedded import EmbeddedServer
from generator.server.ports import Ports
from tests.tiny_repository import build_tiny_repository

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "compose.yaml"
SERVERS = ("triton", "triton-cpu", "triton-fused")
SERVICES = (*SERVERS, "build", "sdk")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return loaded


class NotReady(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(400)
        self.end_headers()


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    """Validate against the schema of the Compose specification, which the package check-jsonschema carries."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_follows_the_compose_specification(tmp_path: Path) -> None:
    result = check_schema(COMPOSE)
    assert result.returncode == 0, result.stdout + result.stderr
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.read_text().replace("shm_size:", "shm_sizes:"))
    assert check_schema(broken).returncode == 1


def test_the_services(services: dict[str, Any]) -> None:
    assert tuple(services) == SERVICES


@pytest.mark.parametrize("name", SERVERS)
def test_servers_run_what_trtgen_serve_runs(services: dict[str, Any], name: str) -> None:
    """Flags, image, ports, user and rights are those of `docker run` in generator/server/container.py."""
    service = services[name]
    ports = Ports(http=8000, grpc=8001, metrics=8002)
    argv = Container(ROOT / "model_repository", ports=ports, gpus=name != "triton-cpu").argv
    image = argv.index(DEFAULT_IMAGE)
    options = argv[2:image]
    assert service["image"] == (FUSED_IMAGE if name == "triton-fused" else DEFAULT_IMAGE)
    assert service["command"] == argv[image + 1 :]
    assert [f"--publish={port}" for port in service["ports"]] == [one for one in options if one.startswith("--publish")]
    assert {f"--user={service['user']}", f"--shm-size={service['shm_size']}"} <= set(options)
    assert [f"--tmpfs={path}" for path in service["tmpfs"]] == [one for one in options if one.startswith("--tmpfs")]
    assert [f"--cap-drop={one}" for one in service["cap_drop"]] == ["--cap-drop=ALL"]
    assert [f"--security-opt={one}" for one in service["security_opt"]] == ["--security-opt=no-new-privileges"]
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"} <= set(options)
    assert ("--gpus=all" in options) == ("deploy" in service)


@pytest.mark.parametrize("name", SERVERS)
def test_servers_are_closed(services: dict[str, Any], name: str) -> None:
    service = services[name]
    flags = set(service["command"])
    assert {"--model-control-mode=none", "--disable-auto-complete-config", "--exit-on-error=true"} <= flags
    assert {"--strict-readiness=true", "--allow-sagemaker=false", "--allow-vertex-ai=false"} <= flags
    assert service["volumes"] == ["./model_repository:/models:ro"]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["shm_size"] == "1g"
    assert "network_mode" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_rights_it_does_not_need(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["user"] == ("${TRTGEN_USER:-1000:1000}" if name == "build" else "1000:1000")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert not {"privileged", "cap_add", "pid", "ipc"} & set(service)


def test_only_the_first_server_asks_for_gpus_and_starts_by_default(services: dict[str, Any]) -> None:
    (device,) = services["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "profiles" not in services["triton"]  # `docker compose build` makes the image of both
    assert services["triton-cpu"]["profiles"] == ["cpu"]
    assert services["sdk"]["profiles"] == ["sdk"]
    assert services["triton-fused"]["profiles"] == ["fused"]
    assert services["triton-fused"]["deploy"] == services["triton"]["deploy"]
    assert services["build"]["profiles"] == ["build"]
    assert services["build"]["deploy"] == services["triton"]["deploy"]
    for name in ("triton-cpu", "sdk"):
        assert not {"deploy", "gpus", "devices", "runtime"} & set(services[name])


def test_the_serving_image_is_the_pinned_one_with_the_pillow_of_the_gate(services: dict[str, Any]) -> None:
    build = services["triton"]["build"]
    assert services["triton-cpu"]["build"] == build
    lines = build["dockerfile_inline"].splitlines()
    assert lines[:2] == [f"FROM {STOCK_IMAGE}", "ARG PILLOW_VERSION"]
    assert '"pillow==$${PILLOW_VERSION}"' in lines[2]  # $$: Compose leaves it to the build
    default = re.fullmatch(r"\$\{PILLOW_VERSION:-([0-9.]+)\}", build["args"]["PILLOW_VERSION"])
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = re.search(r'^pillow==([0-9.]+); python_version >= "3\.11"$', constraints, re.MULTILINE)
    assert default
    assert pinned
    assert default[1] == pinned[1]


def test_plans_are_built_with_the_tensorrt_of_the_serving_image(services: dict[str, Any]) -> None:
    build = services["build"]["build"]
    lines = build["dockerfile_inline"].splitlines()
    assert lines[0] == f"FROM {STOCK_IMAGE}"
    assert "tensorrt-cu13-bindings==$${TRT_VERSION%%+*}.*" in build["dockerfile_inline"]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # everything that trtgen needs but what only a source needs
    requirements = [text for text in metadata.requires("trtgen") or () if "extra ==" not in text]
    needed = {re.split(r"[^\w-]", text)[0] for text in requirements}
    installed = build["dockerfile_inline"].replace('"', "").replace("[grpc]", "").split()
    assert needed - set(installed) == {"torch", "torchvision", "onnxscript", "safetensors"}
    assert build["context"] == "."


def test_images_are_of_one_release(services: dict[str, Any]) -> None:
    assert services["sdk"]["image"] == f"{STOCK_IMAGE}-sdk"
    assert services["build"]["image"].rpartition(":")[2] == DEFAULT_IMAGE.rpartition(":")[2]
    release = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d\.\d\d)-py3", STOCK_IMAGE)
    assert release
    assert DEFAULT_IMAGE.endswith(f":{release[1]}")


def test_stopping_waits_longer_than_the_server_does(services: dict[str, Any]) -> None:
    for name in SERVERS:
        (flag,) = (one for one in services[name]["command"] if one.startswith("--exit-timeout-secs="))
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > int(flag.partition("=")[2])


def test_the_shell_reaches_a_server_of_this_machine(services: dict[str, Any]) -> None:
    sdk = services["sdk"]
    assert (sdk["network_mode"], sdk["command"], sdk["tty"], sdk["stdin_open"]) == ("host", "bash", True, True)
    assert (sdk["volumes"], sdk["working_dir"]) == ([".:/work"], "/work")


@pytest.mark.server
def test_the_health_check_tells_ready_from_absent(services: dict[str, Any], tmp_path: Path) -> None:
    """The command of the health check, with this machine's Python and port, against a real server and without one."""
    kind, program, *arguments = services["triton"]["healthcheck"]["test"]
    assert services["triton-cpu"]["healthcheck"] == services["triton"]["healthcheck"]
    assert (kind, program) == ("CMD", "python3")

    def check(port: int) -> int:
        assert sum("8000" in argument for argument in arguments) == 1
        command = [sys.executable, *(argument.replace("8000", str(port)) for argument in arguments)]
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode

    with EmbeddedServer(build_tiny_repository(tmp_path / "models")) as server:
        port = int(server.http_url.rpartition(":")[2])
        assert check(port) == 0
    assert check(port) != 0
    # a server that answers but is not ready: 400, in Triton's protocol
    with HTTPServer(("127.0.0.1", 0), NotReady) as not_ready:
        threading.Thread(target=not_ready.handle_request, daemon=True).start()
        assert check(not_ready.server_port) != 0


def test_the_image_of_fused_models_has_the_bindings_of_its_libnvinfer(services: dict[str, Any]) -> None:
    lines = services["triton-fused"]["build"]["dockerfile_inline"].splitlines()
    assert lines[0] == f"FROM {STOCK_IMAGE}"
    bindings = '"tensorrt-cu13-bindings==$${TRT_VERSION%%+*}.*"'  # as the build image, from the image's own variable
    assert lines[-1].endswith(f"--no-deps {bindings}")
    assert bindings in services["build"]["build"]["dockerfile_inline"]
    assert "-c /tmp/constraints.txt cuda-python numpy onnxruntime pillow" in lines[-2]  # Pillow as the gate's
