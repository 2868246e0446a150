"""The tritonserver that comes from pip, as a context manager.

    with EmbeddedServer(Path("model_repository")) as server:
        server.grpc_url, server.models()

For development, CI and trusted hosts: it binds to loopback, and the server is of Triton's release 24.10. Its one native
backend is Python's; `templates/backends/` holds Python-based ones under the native names, so that a repository runs
here as it runs in the stock container.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import ServerError
from generator.files import expand_home
from generator.server import endpoint, failures, stubs
from generator.server.configs import find_options
from generator.server.hardening import OWNER_HEADER, STOP_TIMEOUT_S, Values
from generator.server.launch import (
    assemble_backends,
    assemble_python,
    create_log,
    give_safe_path,
    make_argv,
    make_directory,
    make_environment,
    open_repository,
)
from generator.server.mps import CONTROL, find_mps, has_started, make_mps_environment
from generator.server.plans import check_local_plans
from generator.server.ports import ANY_ADDRESS, LOOPBACK, Ports, check_address, choose_ports, is_loopback
from generator.server.secret_files import check_secrets, read_key
from generator.server.wheel import EmbeddedTriton, check_embedded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import psutil
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # a free port may be taken before the server binds it; a crash may hide what a model complains about
_POLL_S = 0.05
_MPS_FOLDER = "mps"
_DRAIN_S = 2.0  # several hundred images of a small model
_DEAD_STUB_STOP_TIMEOUT_S = 5.0  # an orderly stop never ends once a stub is dead
_MARGIN_S = 15.0  # what the supervisor may take to remove everything after the server's end
_REAP_S = 2.0  # its exit code follows its end at once


class EmbeddedServer:
    """A running tritonserver on `repository`; entering the context returns once every model is ready.

    Args:
        repository: The model repository's root.
        address: What to bind to, IPv4.
        http_port: 0 takes a free one, as for the other two.
        grpc_port: See `http_port`.
        metrics_port: See `http_port`.
        log_path: Where tritonserver's log goes; by default a temporary file that is kept only when the server failed.
        ready_timeout_s: How long loading the models may take.
        allow_non_loopback: Whether an address that other machines can reach is accepted.
        models: Load only these and, for ensembles, their members; by default every model of the repository.
        explicit: Whether callers may load and unload models while it runs, as they may with a choice of `models`.
        locked: Whether such calls must carry `secret` in the header OWNER_HEADER.
        backends: A directory of backends in place of ours; configurations may then leave out what a backend fills in.
        secrets_folder: Certificates and key for TLS over gRPC, which then asks every client for a certificate.
        hardened: Whether it also gets the other options of `trtgen harden`, as far as release 24.10 has them; needs
            `secrets_folder`.
        url: Where tritonserver itself reads the models (s3://), in place of `repository`, which then holds their
            configurations only.
        mps: Whether the processes share the GPU through NVIDIA's Multi-Process Service, which lives as long as the
            server; by default where `mps.find_mps` finds that it pays.

    Attributes:
        http_url: `host:port`, as are `grpc_url` and `metrics_url`.
        pid: tritonserver's process id.
        log_path: The log.
        shares_gpu: Whether it has the Multi-Process Service of its own, which did start.
        secret: What callers of restricted APIs must send as the header OWNER_HEADER; empty when nothing is locked.
    """

    def __init__(
        self,
        repository: Path,
        *,
        address: str = LOOPBACK,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_path: Path | None = None,
        ready_timeout_s: float = 120,
        allow_non_loopback: bool = False,
        models: Sequence[str] = (),
        explicit: bool = False,
        locked: bool = True,
        backends: Path | None = None,
        secrets_folder: Path | None = None,
        hardened: bool = False,
        url: str = "",
        mps: bool | None = None,
    ) -> None:
        self.repository = repository
        self.address = address
        self.ready_timeout_s = ready_timeout_s
        self.log_path = expand_home(log_path).resolve() if log_path else Path()
        self.http_url = self.grpc_url = self.metrics_url = ""
        self.pid = 0
        self._wish = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
        self._allow_non_loopback = allow_non_loopback
        self._own_log = log_path is None
        self._backends = backends
        self._only = tuple(models)
        self.explicit = explicit
        self.secrets_folder = None if secrets_folder is None else check_secrets(secrets_folder)
        if hardened and self.secrets_folder is None:
            msg = "a hardened server needs certificates and a key"
            raise ServerError(msg, hint="name the folder that has them", fields={"secrets_folder": None})
        self.hardened = hardened
        self.secret = secrets.token_hex(16) if locked else ""
        if self.hardened and self.secrets_folder:
            self.secret = read_key(self.secrets_folder)
        self._identifier = ""
        self._directory: Path | None = None
        self._url = url
        self._mps = mps
        self.shares_gpu = False
        self._served = url or repository  # what tritonserver was given
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._failed = False
        self._stubs: dict[psutil.Process, str] = {}
        self._exit_timeout_s: float = STOP_TIMEOUT_S

    def __enter__(self) -> Self:
        """Start and wait until every model is ready.

        Raises:
            MissingDependencyError: The pip server is not installed.
            ServerError: It cannot run here, a port is taken, a model does not load, or loading takes too long.
            PlanError: A plan was built for another TensorRT or GPU.
            DeviceError: There is a plan, but no GPU.
        """
        check_address(self.address, allow_non_loopback=self._allow_non_loopback)
        if self.explicit and not is_loopback(self.address):
            raise ServerError(
                f"{self.address} can be reached from other machines, and whoever may load models may run code",
                hint="serve on this machine only where callers may load models",
                fields={"address": "127.0.0.1"},
            )
        triton = check_embedded()
        self.repository = open_repository(self.repository)
        check_local_plans(self.repository, self._only)
        for attempt in range(1, _ATTEMPTS + 1):
            ports = choose_ports(self._wish, address=self.address)
            try:
                self._launch(triton, ports)
                self._wait_until_ready(ports)
                # Callers who unload models end their processes in order.
                self._stubs = {} if self.explicit else stubs.find_stubs(self.pid)
            except ServerError:
                code = self._supervisor.poll() if self._supervisor else None
                self.stop()
                if attempt == _ATTEMPTS or not self._may_succeed_again(code):
                    raise
                logger.info("a port was taken meanwhile, or tritonserver crashed without a word: starting again")
            except BaseException:
                # Ctrl-C while the models load: __exit__ will not be called.
                self.stop(0)
                raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who interrupts the body does not want to wait for an orderly end.
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            self.stop(0 if interrupted else self._exit_timeout_s)
        except KeyboardInterrupt:  # while it ends in order
            self.stop(0)
            raise

    def models(self) -> list[endpoint.ModelState]:
        """Return the state of every model version.

        Raises:
            ServerError: The server does not answer.
        """
        states = endpoint.list_models(self.http_url, headers={OWNER_HEADER: self.secret})
        # With a choice of models the others are listed too, without a version.
        return [state for state in states if state.version or not self._only]

    def wait(self) -> None:
        """Block until the server ends.

        Raises:
            ServerError: It ended without `stop`, or a process of one of its models did, which Triton leaves dead.
        """
        supervisor = self._supervisor
        if supervisor is None:
            return
        dead = stubs.wait_for_end(
            supervisor, self._stubs, is_serving=lambda: not self._stopping and endpoint.is_ready(self.http_url)
        )
        if self._stopping:
            return
        self._failed = True
        if dead:
            self._exit_timeout_s = _DEAD_STUB_STOP_TIMEOUT_S
            raise ServerError(
                f"a Python process of {', '.join(dead)} has ended (a crash, or the system's lack of memory: dmesg | "
                "tail); tritonserver does not start it again and would fail requests",
                hint=f"read its log: {self.log_path}, then start the server again",
                command=("serve",),
                fields={"repository": self.repository},
                log_tail=failures.tail(self._read_log()),
            )
        raise self._explain_end(supervisor.returncode, ready=True)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the server: requests that wait get up to 2 s to be taken and are answered, then its models are unloaded.

        tritonserver takes about a second for each instance of a Python model. After `timeout_s` its processes are
        killed; 0 kills at once, also when an earlier call was interrupted. Afterwards no process, shared memory or
        temporary directory of it is left. Calling it again does nothing.
        """
        supervisor = self._supervisor
        if supervisor is not None:
            self._failed = self._failed or (supervisor.poll() is not None and not self._stopping)
            self._stopping = True
            if not self._failed:
                self._drain(min(timeout_s, _DRAIN_S))
            _end(supervisor, timeout_s)
            self._supervisor = None
        if self._directory is not None:  # it still exists only if the supervisor was killed or did not start
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._own_log and not self._failed:
            log, self.log_path = self.log_path, Path()
            if log.name:  # another thread may stop it as well
                log.unlink(missing_ok=True)

    def _drain(self, limit_s: float) -> None:
        """Wait until no request waits in a queue: release 24.10 refuses over gRPC what waits when it is told to end."""
        deadline = time.monotonic() + limit_s
        idle = 0
        while idle < 2 and time.monotonic() < deadline:  # between two members a request is in no queue for a moment
            pending = endpoint.count_pending(self.metrics_url)
            if pending is None:
                return
            idle = 0 if pending else idle + 1
            time.sleep(_POLL_S)

    def _launch(self, triton: EmbeddedTriton, ports: Ports) -> None:
        """Start the supervisor, which starts tritonserver."""
        self._stopping = self._failed = False
        self._identifier = f"trtgen-{uuid.uuid4().hex[:12]}"
        host = LOOPBACK if self.address in (ANY_ADDRESS, "localhost") else self.address
        self.http_url, self.grpc_url, self.metrics_url = (f"{host}:{port}" for port in ports.named().values())
        try:
            if self._own_log and not self.log_path.name:
                descriptor, name = tempfile.mkstemp(prefix="trtgen-serve-", suffix=".log")
                os.close(descriptor)
                self.log_path = Path(name)
            create_log(self.log_path)
            self._directory = make_directory(self._identifier)
            self._supervisor = self._start_supervisor(triton, ports, self._directory)
        except OSError as error:
            msg = f"cannot start tritonserver: {error}"
            raise ServerError(msg, hint="check the space and rights in /tmp") from error
        assert self._supervisor.stdout is not None
        self.pid = int(self._supervisor.stdout.readline() or 0)
        if self.pid and self.shares_gpu and not has_started(self._directory / _MPS_FOLDER):
            self.shares_gpu = False
            logger.warning(
                "%s did not start: processes take turns on the GPU; why is in the log %s", CONTROL, self.log_path
            )
        logger.info("tritonserver %s is process %d, log %s", triton.wheel_version, self.pid, self.log_path)

    def _start_supervisor(self, triton: EmbeddedTriton, ports: Ports, directory: Path) -> subprocess.Popen[bytes]:
        """Fill `directory` and start the supervisor, which removes it in the end."""
        self._served = self._url or give_safe_path(self.repository, directory)
        fetched = directory / "fetched"  # where tritonserver keeps what it reads from S3
        fetched.mkdir()
        models = self._only or (("*",) if self.explicit else ())
        mps_folder = directory / _MPS_FOLDER
        mps = find_mps(self.repository, self._only, mps_folder, wanted=self._mps)
        self.shares_gpu = mps is not None
        if mps:
            mps_folder.mkdir()
        arguments = {
            "argv": make_argv(
                triton,
                self._served,
                options=find_options(self.repository),
                backends=self._backends or assemble_backends(triton, directory),
                completed=self._backends is not None,
                values=Values(
                    address=self.address,
                    control="explicit" if models else "none",
                    secrets=str(self.secrets_folder),
                    key=self.secret,
                ),
                uses=("tls", "hardened") if self.hardened else ("tls",) if self.secrets_folder else (),
                ports=ports,
                identifier=self._identifier,
                models=models,
                locked=bool(models and self.secret),
            ),
            "log": str(self.log_path),
            "remove": str(directory),
            "shm_prefix": f"{self._identifier}_",
            "stop_timeout_s": STOP_TIMEOUT_S,
            "mps": mps,
        }
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py")), json.dumps(arguments)],
                bufsize=0,  # a request to stop is sent at once, or refused at once
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env={
                    **make_environment(triton, python=assemble_python(triton, directory)),
                    "TRITON_AWS_MOUNT_DIRECTORY": str(fetched),
                    **(make_mps_environment(mps_folder) if mps else {}),
                },
                start_new_session=True,  # Ctrl-C in a terminal must reach this process only, which stops the server
            )

    def _wait_until_ready(self, ports: Ports) -> None:
        assert self._supervisor is not None
        deadline = time.monotonic() + self.ready_timeout_s
        while True:
            code = self._supervisor.poll()
            if code is not None:
                self._failed = True
                raise self._explain_end(code, ready=False)
            # Its own ports: another server may answer at one of them.
            listening = endpoint.find_listening_ports(self.pid)
            if listening.issuperset(ports.named().values()) and endpoint.is_ready(self.http_url):
                return
            log = self._read_log()
            if failures.has_hung(log) or time.monotonic() >= deadline:
                self._failed = True
                raise failures.explain_timeout(
                    log, log_path=self.log_path, repository=self.repository, timeout_s=self.ready_timeout_s
                )
            time.sleep(_POLL_S)

    def _may_succeed_again(self, code: int | None) -> bool:
        """Tell whether the failed start, which ended with this exit code, is worth another attempt."""
        log = self._read_log()
        lost_port = self._wish.any_free and failures.is_port_conflict(log)
        return lost_port or (code is not None and failures.is_silent_crash(code, log))

    def _explain_end(self, code: int, *, ready: bool) -> ServerError:
        return failures.explain_end(
            code, self._read_log(), log_path=self.log_path, repository=self.repository, ready=ready
        )

    def _read_log(self) -> str:
        """Return the log, with the repository's own path where tritonserver was given a link to it."""
        if not self.log_path.is_file():
            return ""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return (
            text
            if self._url or self._served == self.repository
            else text.replace(str(self._served), str(self.repository))
        )


def _end(supervisor: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Have the supervisor end the server, and wait for the end of both."""
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with contextlib.suppress(BrokenPipeError, ValueError):  # it has already ended
        supervisor.stdin.write(f"stop {timeout_s}\n".encode())
    # Its standard output closes when it ends. Popen.wait needs a lock that an exception from a signal handler may have
    # left held.
    if not supervisor.stdout.closed and not connection.wait([supervisor.stdout.fileno()], timeout_s + _MARGIN_S):
        logger.warning("process %d does not end; killing it", supervisor.pid)
        supervisor.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(timeout=_REAP_S)
    supervisor.stdin.close()
    supervisor.stdout.close()
