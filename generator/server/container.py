"""The stock tritonserver in a container: the command line, and running it."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import ServerError
from generator.files import expand_home
from generator.server.configs import find_options
from generator.server.failures import explain_end, find_failures, tail
from generator.server.hardening import KEY, STOP_TIMEOUT_S, Values, describe, read_key_in_shell, write_options
from generator.server.launch import create_log, find_fused
from generator.server.plans import check_container_plans, has_version_compatible
from generator.server.ports import ANY_ADDRESS, LOOPBACK, Ports
from generator.server.secret_files import API_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STOCK_RELEASE = "26.10"
STOCK_IMAGE = f"nvcr.io/nvidia/tritonserver:{STOCK_RELEASE}-py3"
DEFAULT_IMAGE = "trtgen-serving:26.10"  # the stock image with the Pillow that the preprocessing step needs
FUSED_IMAGE = "trtgen-serving-fused:26.10"  # that with what a fused model runs its network with

_SECRETS = "/secrets"  # in the container
_INSIDE = (8000, 8001, 8002)  # tritonserver's own ports
USER = 1000  # triton-server in the stock image
_DOCKER_FAILED = 125  # docker's own exit code, when the container did not run
_KEPT_LINES = 5000

_WITHOUT = "or serve with the tritonserver from pip, without a container"
# pattern, cause, hint, fields of the hint
_DOCKER_RULES: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    (
        r"Cannot connect to the Docker daemon|permission denied while trying to connect",
        "docker is installed, but its daemon does not answer",
        f"start it (systemctl start docker) or join the group docker, {_WITHOUT}",
        {},
    ),
    (
        r"could not select device driver|nvidia-container-cli|unresolvable CDI devices",
        "docker cannot give the container a GPU",
        "install the NVIDIA Container Toolkit, or serve ONNX models on the CPU, without GPUs",
        {"gpus": False},
    ),
    (
        r"pull access denied for (\S+?),|manifest for (\S+) not found|No such image: (\S+)",
        "the image {} is not here and cannot be pulled",
        "build it: docker compose build (see compose.yaml), or take the stock one",
        {"image": STOCK_IMAGE},
    ),
    (
        r"port is already allocated|address already in use",
        "one of the ports is in use by another program",
        "stop that program, or serve on other ports",
        dict.fromkeys(("http_port", "grpc_port", "metrics_port")),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """What a hardened launch needs to know beside the repository; `secrets` is a folder of this machine."""

    release: str
    secrets: Path
    max_input_bytes: int

    def make_command(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Return what starts tritonserver in the container, and the options behind it with the reason of each.

        A shell reads the key from its file, so that it stands in no description of the container.
        """
        values = Values(address=ANY_ADDRESS, secrets=_SECRETS, key=KEY, max_input_bytes=self.max_input_bytes)
        written = write_options(values, "tls", "hardened", release=self.release)
        locks = [f'"{text}"' for _, text in written if KEY in text]
        options = [(text, describe(option)) for option, text in written if KEY not in text]
        script = f"{read_key_in_shell(f'{_SECRETS}/{API_KEY}')}; exec tritonserver"
        return ["sh", "-ec", " ".join([script, '"$@"', *locks]), "sh"], options


class Container:
    """One `docker run` in the foreground.

    Args:
        repository: The model repository's root.
        ports: The ports on this machine.
        image: The image to run.
        address: The address on this machine that the ports are published on.
        gpus: Whether the container gets the GPUs.
        hardening: What a hardened launch needs; by default it is none.
    """

    def __init__(
        self,
        repository: Path,
        *,
        ports: Ports,
        image: str = DEFAULT_IMAGE,
        address: str = LOOPBACK,
        gpus: bool = True,
        hardening: Hardening | None = None,
    ) -> None:
        self.repository = repository
        self.hardening = hardening
        self.image, self.gpus = image, gpus
        self.name = f"trtgen-serve-{uuid.uuid4().hex[:8]}"
        self.argv = self._make_argv(ports, address)

    def _make_argv(self, ports: Ports, address: str) -> list[str]:
        """Return the `docker run` command line.

        The container has no rights beyond reading the repository: another user than root, no capabilities, a read-only
        root file system. Shared memory is 1 GB, since each instance of a Python model needs its part.
        """
        command = ["tritonserver"]
        options = [text for _, text in write_options(Values(address=ANY_ADDRESS))]
        if self.hardening:
            command, described = self.hardening.make_command()
            options = [text for text, _ in described]
        published = zip(ports.named().values(), _INSIDE, strict=True)
        return [
            "docker",
            "run",
            "--rm",
            f"--name={self.name}",
            *(["--gpus=all"] if self.gpus else []),
            f"--user={USER}:{USER}",
            "--read-only",
            "--tmpfs=/tmp",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--shm-size=1g",
            *_mount(self.repository, "/models"),
            *(_mount(self.hardening.secrets, _SECRETS) if self.hardening else ()),
            *(f"--publish={address}:{outside}:{inside}" for outside, inside in published),
            self.image,
            *command,
            "--model-repository=/models",
            *options,  # they bind to every address: docker decides which of the host lead there
            *find_model_options(self.repository),
        ]

    def check(self) -> None:
        """Refuse what would fail in the container; docker itself is not needed.

        Raises:
            ServerError: A file cannot be read in there, or the image lacks what a fused model needs.
            PlanError: A plan was built for another TensorRT or GPU.
            DeviceError: There is a plan, but the container gets no GPU.
        """
        check_container_plans(self.repository, self.image, gpus=self.gpus)
        check_readable(self.repository)
        if self.image in (DEFAULT_IMAGE, STOCK_IMAGE) and (fused := find_fused(self.repository)):
            msg = f"{fused[0]} is a fused model, and {self.image} lacks the packages that run its network"
            hint = "build the image that has them (docker compose build triton-fused) and serve with it"
            raise ServerError(msg, hint=hint, fields={"image": FUSED_IMAGE})
        if self.hardening:
            check_readable(self.hardening.secrets, hint=f"chown -R {USER} {shlex.quote(str(self.hardening.secrets))}")

    def run(self, *, show: Callable[[str], None], log_path: Path) -> None:
        """Run until the server ends, after `check`; every line of its log goes to `show` and to `log_path`.

        An exception that a signal raises in here, such as KeyboardInterrupt, stops the container on its way out.

        Raises:
            ServerError: docker is absent or fails, or tritonserver ends with an error.
        """
        if shutil.which("docker") is None:
            raise ServerError(
                "docker was not found on PATH",
                hint=f"install Docker Engine and, for GPUs, the NVIDIA Container Toolkit, {_WITHOUT}",
            )
        create_log(log_path)
        # Its own session: Ctrl-C reaches this process only, which then stops the container in order.
        process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        lines: list[str] = []
        try:
            assert process.stdout is not None
            with process.stdout, log_path.open("a", encoding="utf-8") as log:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    show(line.rstrip("\n"))
                    if len(lines) < _KEPT_LINES:  # a failure to load comes first
                        lines.append(line)
            code = process.wait()
        except BaseException:
            self._stop(process)
            raise
        if code != 0:
            raise explain_container_end(code, "".join(lines), log_path=log_path, repository=self.repository)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        """Stop the container; a second signal while this waits kills it."""
        try:
            subprocess.run(["docker", "stop", f"--time={STOP_TIMEOUT_S}", self.name], check=False, capture_output=True)
        except BaseException:
            subprocess.run(["docker", "kill", self.name], check=False, capture_output=True)
            raise
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def find_model_options(repository: Path) -> list[str]:
    """Return the options that the stock server needs for the models below `repository`, and for nothing else."""
    # such plans carry code, which Triton runs only if it is told to
    compatible = ["--backend-config=tensorrt,version-compatible=true"] if has_version_compatible(repository) else []
    return [*find_options(repository), *compatible]


def _mount(folder: Path, target: str) -> list[str]:
    source = str(expand_home(folder).resolve())
    # --mount is a line of CSV: a path with a comma is quoted. (-v would not take a path with a colon.)
    field = f'"source={source}"' if "," in source else f"source={source}"
    return ["--mount", f"type=bind,{field},target={target},readonly"]


def check_readable(folder: Path, *, hint: str = "") -> None:
    """Refuse a folder, by default a repository, with a file that the container's user may not read.

    Raises:
        ServerError: Names the first one.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink():
            continue
        status = path.stat()
        needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        if status.st_uid != USER and status.st_mode & needed != needed:
            raise ServerError(
                f"the container's user ({USER}) cannot read {path} (mode {stat.filemode(status.st_mode)})",
                hint=hint or f"chmod -R o+rX {shlex.quote(str(folder))}",
            )


def explain_container_end(code: int, output: str, *, log_path: Path, repository: Path) -> ServerError:
    """Return the error for a container that ended with this exit code."""
    if code != _DOCKER_FAILED:
        ready = not find_failures(output, repository)
        return explain_end(code, output, log_path=log_path, repository=repository, ready=ready)
    for pattern, cause, hint, fields in _DOCKER_RULES:
        if match := re.search(pattern, output):
            what = next(filter(None, match.groups()), "")
            return ServerError(cause.format(what), hint=hint, fields=fields, log_tail=tail(output, lines=3))
    return ServerError(
        "docker could not run the container",
        hint=f"run the printed docker command by hand, {_WITHOUT}",
        log_tail=tail(output),
    )
