"""Hardened launches: what is printed for a release, and that the real server and a real nginx refuse and answer."""

from __future__ import annotations

import contextlib
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
from generator.rules.rule import release_key
from generator.server.container import STOCK_RELEASE, Container, Hardening
from generator.server.endpoint import is_ready
from generator.server.harden import Launch, find_input_limit
from generator.server.hardening import (
    FIXES,
    OPTIONS,
    OWNER_HEADER,
    PIP_RELEASE,
    PROXY,
    RESTRICTED_APIS,
    Option,
    Values,
    describe,
)
from generator.server.launch import assemble_backends, assemble_python, make_environment
from generator.server.ports import Ports, choose_ports
from generator.server.secret_files import CLIENT_FILES, SERVER_FILES, make_secrets, read_key
from generator.server.wheel import check_embedded
from tests.server_parts import wait_until
from tests.tiny_repository import build_tiny_repository, make_image

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from triton_images import ClientError, Connection, RefusedError, Tls  # it is no package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients"
LIMIT = 8  # max_batch_size of what is served
BODY_LIMIT = 1_000_000
PAGE = ROOT / "docs" / "hardening.md"


def make_tables() -> dict[str, str]:
    """Return the tables of docs/hardening.md, made of the code's."""

    def table(head: str, rows: Iterable[str]) -> str:
        return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])

    uses = {"always": "every server", "tls": "`--tls`, `--hardened`", "hardened": "`--hardened`"}
    age = str(Values(address="").max_connection_age_ms)
    values = {
        "{secrets}": "DIR",
        "{key}": "KEY",
        "{max_input_bytes}": "BYTES",
        "{max_connection_age_ms}": age,
    }

    def describe(option: Option) -> str:
        value = option.value
        for field, word in {**values, **dict.fromkeys(("{control}", "{http_address}", "{address}"), "")}.items():
            value = value.replace(field, word)
        return f"`{option.name}{f'={value}' if value else ''}`"

    options = (f"| {describe(one)} | {one.first} | {uses[one.use]} | {one.reason} | {one.without} |" for one in OPTIONS)
    return {
        "options": table("| option | since | for | why | where a release lacks it |", options),
        "fixes": table("| since | fix |", (f"| {first} | {what} |" for first, what in FIXES)),
        "proxy": table("| what | how |", (f"| {what} | {how} |" for what, how in PROXY)),
    }


def with_tables(page: str) -> str:
    for name, text in make_tables().items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        assert start, name
        assert end, name
        page = f"{before}{start}{text}{end}{after}"
    return page


def test_the_page_has_the_tables_of_the_code() -> None:
    """`python -m tests.test_harden` writes them."""
    assert with_tables(PAGE.read_text()) == PAGE.read_text()


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
    given = ("--repository", built_demo, "--secrets", secrets)
    script = write_harden("--release", PIP_RELEASE, "--insecure", *given)
    ports = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1")
    listen = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1").http
    places = ("--http-url", f"localhost:{ports.http}", "--grpc-url", f"localhost:{ports.grpc}", "--listen", str(listen))
    config = write_harden("--format", "nginx", *given, *places)
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
HIDDEN: dict[str, Callable[[Any, dict[str, str]], Any]] = {
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
            HIDDEN[api](closed._client, closed.headers)
        HIDDEN[api](opened._client, opened.headers)
        wrong = dict.fromkeys(opened.headers, "0" * 32)
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
        stranger = Connection(protocol, hardened.proxy if proxy else hardened.grpc, 20.0, tls=Tls())
        with stranger, pytest.raises(ClientError, match="no TLS connection"):
            stranger.find_model("demo")


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
                ask(connection._client, connection.headers)
            assert caught.value.status() in ("403", "StatusCode.PERMISSION_DENIED")
        client = connection._client
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("demo")
        assert client.get_server_metadata()
        model = connection.find_model("demo")
        large = STAR + bytes(BODY_LIMIT - len(STAR) - 2000)  # what follows the image is not looked at
        assert connection.classify(model, [large], top=1)[0][0].label == "star"
        with pytest.raises(RefusedError, match=r"larger than|413"):
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
    with pytest.raises(PerfError, match="asks for TLS"):
        read_models("grpc", hardened.grpc, "demo")
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


def run_harden(*options: str | Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    assert main(["harden", *map(str, options)]) == code
    said = capsys.readouterr()
    return said.out, said.err


def read_flags(text: str) -> set[str]:
    """Return the names of tritonserver's options in a launch of any form; docker's own come before the image."""
    return set(
        re.findall(
            r"--([a-z0-9-]+)", re.sub(r"^\s*#.*$", "", text.partition("trtgen-serving")[2] or text, flags=re.MULTILINE)
        )
    )


@pytest.mark.server
def test_the_table_names_options_that_the_pip_server_has() -> None:
    triton = check_embedded()
    environment = make_environment(triton, python=Path(sys.executable).parent)
    run = subprocess.run([triton.binary, "--help"], env=environment, capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+--([a-z0-9-]+)", run.stdout + run.stderr, re.MULTILINE))
    later = {option.name for option in OPTIONS if release_key(option.first) > release_key(PIP_RELEASE)}
    ours = {option.name for option in OPTIONS}
    # --help leaves some out that the parser takes; those run in the other tests.
    assert ours - known <= later | {"grpc-http2-max-ping-strikes", "grpc-http2-min-recv-ping-interval-without-data"}
    assert not later & known
    assert later == {"allow-client-shm", "http-max-input-size"}


@pytest.mark.parametrize("form", ["flags", "docker", "compose"])
@pytest.mark.parametrize(
    ("release", "absent"),
    [
        ("23.02", {"grpc-restricted-protocol", "http-restricted-api", "metrics-address", "trace-config"}),
        ("24.10", {"http-max-input-size", "allow-client-shm"}),
        ("26.03", {"allow-client-shm"}),
        ("26.08", set()),
        ("27.01", set()),
    ],
)
def test_each_release_gets_the_options_that_it_knows(
    form: str, release: str, absent: set[str], secrets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--release", release, "--format", form, "--insecure", "--secrets", secrets, "--repository", tmp_path)
    text, said = run_harden(*options, capsys=capsys)
    flags = read_flags(text)
    assert not flags & absent
    assert {option.name for option in OPTIONS} - flags <= absent | {
        option.name for option in OPTIONS if release_key(option.first) > release_key(release)
    }
    for name in absent:
        assert f"# {release} has no --{name}: " in text
    assert "# no release has TLS for HTTP: " in text
    assert read_key(secrets) not in text + said
    assert ("taken for 27.01, too" in said) is (release == "27.01")


@pytest.mark.parametrize("release", ["25.07", "26.10"])
def test_docker_runs_the_image_of_the_release_and_says_why_each_option(
    release: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, _ = run_harden("--release", release, "--format", "docker", "--repository", tmp_path, capsys=capsys)
    assert f"\n  trtgen-serving:{release} \\\n" in text
    assert f"# the image: printf 'FROM nvcr.io/nvidia/tritonserver:{release}-py3\\nRUN " in text
    command = text.partition("docker run ")[2]
    for option in OPTIONS:
        assert (f"--{option.name}" in command) == (f"\n# --{option.name}  {describe(option)}\n" in text), option.name


def test_configurations_of_others_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "garbage": b"\xff\xfe",
        "later": b"teleport: 1",
        "own": b'parameters { key: "max_bytes" value { string_value: "32MB" } }',
        "ours": b'max_batch_size: 2 parameters { key: "max_bytes" value { string_value: "1000" } }',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_bytes(content)
    (tmp_path / "huge").mkdir()
    with (tmp_path / "huge" / "config.pbtxt").open("wb") as file:
        file.truncate(3 << 30)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.pbtxt")
    text, _ = run_harden("--repository", tmp_path, capsys=capsys)
    assert f"--http-max-input-size={2 * 1000 + 2**16} " in text


def test_insecure_releases_are_refused_and_old_ones_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    _, error = run_harden("--release", "25.06", capsys=capsys, code=1)
    assert "release 25.06 can be taken over by whoever reaches it" in error
    assert "25.07: HTTP requests that overflow the stack" in error
    assert "--insecure" in error
    assert "warning: release 25.06 is insecure" in run_harden("--release", "25.06", "--insecure", capsys=capsys)[1]
    _, said = run_harden("--release", "26.06", capsys=capsys)
    assert "warning: release 26.06 lacks the fixes of 26.07: " in said
    assert "25.07" not in said
    assert "warning" not in run_harden("--release", "26.07", capsys=capsys)[1]
    for wrong in ("26.4", "latest"):
        assert "is not a release" in run_harden("--release", wrong, "--insecure", capsys=capsys, code=1)[1]


@pytest.mark.parametrize("key", [None, ""])
def test_a_launch_without_a_key_starts_nothing(key: str | None, secrets: Path, tmp_path: Path) -> None:
    """An empty key would open the restricted APIs to everybody."""
    own = shutil.copytree(secrets, tmp_path / "secrets")
    (own / "api-key").unlink()
    if key is not None:
        (own / "api-key").write_text(key)
    (tmp_path / "tritonserver").write_text("#!/bin/sh\ntouch started\n")
    (tmp_path / "tritonserver").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    hardening = Hardening(release="26.10", secrets=own, max_input_bytes=1)
    launch = Launch(repository=tmp_path, hardening=hardening)
    (shell, option, script, *_), _ = hardening.make_command()
    for command in (launch.write_flags(), script.replace("/secrets", str(own))):
        run = subprocess.run([shell, option, command], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert run.returncode != 0
        assert not (tmp_path / "started").exists()
    (own / "api-key").write_text("key\n")
    assert (
        subprocess.run([shell, option, launch.write_flags()], cwd=tmp_path, env=environment, check=False).returncode
        == 0
    )
    assert (tmp_path / "started").exists()


def test_compose_is_valid_closed_and_beside_its_proxy(
    built_demo: Path, secrets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--format", "compose", "--output", tmp_path / "out", "--repository", built_demo, "--secrets", secrets)
    run_harden(*options, capsys=capsys)
    path = tmp_path / "out" / "compose.yaml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    services = yaml.safe_load(path.read_text())["services"]
    hardening = Hardening(release=STOCK_RELEASE, secrets=secrets, max_input_bytes=find_input_limit(built_demo))
    argv = Container(built_demo, ports=Ports(http=1, grpc=2, metrics=3), hardening=hardening).argv
    triton = services["triton"]
    assert [word.replace("$$", "$") for word in triton["command"]] == argv[argv.index(triton["image"]) + 1 :]
    assert f"--http-max-input-size={32 * 2**20 * LIMIT + 2**16}" in triton["command"]
    assert triton["ports"] == ["127.0.0.1:8002:8002"]
    for service in services.values():
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
        assert service["security_opt"] == ["no-new-privileges"]
        assert service["user"] != "0:0"
        assert all(volume.endswith(":ro") for volume in service["volumes"])
    nginx = (tmp_path / "out" / "nginx.conf").read_text()
    assert f"client_max_body_size {32 * 2**20 * LIMIT + 2**16};" in nginx
    assert "grpcs://triton:8001" in nginx
    assert "exists and was not changed" in run_harden(*options, capsys=capsys, code=1)[1]


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client here")
def test_the_real_docker_client_takes_the_printed_command(secrets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = run_harden("--format", "docker", "--repository", secrets, "--secrets", secrets, capsys=capsys)
    environment = {**os.environ, "DOCKER_HOST": "tcp://127.0.0.1:9"}
    run = subprocess.run(["sh", "-c", text], check=False, env=environment, capture_output=True, text=True)
    assert (run.returncode, "Cannot connect to the Docker daemon" in run.stderr) == (125, True)


@pytest.mark.server
def test_serve_makes_certificates_once_and_asks_for_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root, folder, picture = build_tiny_repository(tmp_path / "models"), tmp_path / "secrets", tmp_path / "a.jpg"
    picture.write_bytes(make_image("blue"))
    client = [sys.executable, str(CLIENTS / "classify.py"), str(picture)]
    serve = ["serve", "--repository", str(root), "--secrets", str(folder), "--hardened"]
    tls = f"--tls --ca {folder}/ca.crt --certificate {folder}/client.crt --key {folder}/client.key"
    header = f"{OWNER_HEADER}: @{folder}/api-key"
    made = False
    for _ in range(3):  # a free port may be taken before the server binds it
        ports = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1")
        where = [f"--{name}-port={port}" for name, port in ports.named().items()]
        url = ["--url", f"127.0.0.1:{ports.grpc}"]
        code = main([*serve, *where, "--", *client, *url, *tls.split(), "--header", header])
        said = capfd.readouterr()
        made = made or f"made {folder}" in said.err
        if "is in use by another program" not in said.err:
            break
    assert (code, made) == (0, True)
    assert "blue" in said.out
    assert tls in said.err
    assert f"--header '{header}'" in said.err
    assert read_key(folder) not in said.out + said.err
    assert sorted(path.name for path in folder.iterdir()) == sorted({*SERVER_FILES, *CLIENT_FILES})
    assert not any(path.stat().st_mode & 0o077 for path in (folder, folder / "server.key", folder / "api-key"))
    assert make_secrets(folder, address="127.0.0.1") is False
    (folder / "server.key").unlink()
    assert main(["serve", "--repository", str(root), "--secrets", str(folder), "--tls"]) == 1
    assert f"{folder} lacks server.key" in capfd.readouterr().err


def test_a_hardened_container(built_demo: Path, secrets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["serve", "--container", "--hardened", "--dry-run", "--cpu", "--repository", str(built_demo)]
    readable = [secrets, *secrets.iterdir()]
    for path in readable:
        path.chmod(path.stat().st_mode | 0o055)
    assert main([*options, "--secrets", str(secrets)]) == 0
    text = capsys.readouterr().out
    assert {"allow-client-shm", "grpc-use-ssl-mutual", "http-restricted-api"} <= read_flags(text)
    assert f"source={secrets},target=/secrets,readonly" in text
    assert main([*options, "--secrets", str(secrets), "--image", "mine:latest"]) == 1
    assert "does not say its release" in capsys.readouterr().err
    assert main([*options, "--secrets", str(secrets), "--image", "nvcr.io/nvidia/tritonserver:24.10-py3"]) == 1
    assert "can be taken over" in capsys.readouterr().err
    assert main([*options, "--secrets", str(built_demo)]) == 1
    assert "lacks ca.crt, server.crt" in capsys.readouterr().err
    for path in readable[1:]:
        path.chmod(0o600)
    assert main([*options, "--secrets", str(secrets)]) == (0 if os.geteuid() == 1000 else 1)
    if os.geteuid() != 1000:
        assert f"chown -R 1000 {secrets}" in capsys.readouterr().err


def test_without_openssl_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="openssl, which makes the certificates, was not found"):
        make_secrets(tmp_path / "secrets", address="127.0.0.1")
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
