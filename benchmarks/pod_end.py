"""What gRPC clients see while a pod ends: the container of `trtgen deploy kubernetes`, run by the pip server.

    python -m benchmarks.pod_end

Two such servers on loopback addresses of their own stand for an old pod and its successor. A DNS server stands for the
cluster's: it answers the name of the headless service with the addresses of its pods and, as long as caches hold, with
those of before. Eight clients resolve that name, each with a connection of its own to each pod, and ask for one image
after the other. Then the old pod ends as in a cluster: it is taken out of the name, its preStop pause passes, and it
gets SIGTERM.

Exit code 1: clients saw an error with the manifests' pause, or none without one, so that nothing was shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import shutil
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe_machine
from generator.deploy.pod import CONNECTION_AGE_S, DNS_CACHE_S, PAUSE_S, PORTS, describe_served, make_arguments
from generator.deploy.source import ImageSource
from generator.pipeline import BuildOptions, build_repository
from generator.server.endpoint import is_ready
from generator.server.hardening import PIP_RELEASE
from generator.server.launch import assemble_backends, assemble_python, make_directory, make_environment
from generator.server.ports import ANY_ADDRESS, LOOPBACK, Ports, choose_ports
from generator.server.wheel import check_embedded
from generator.spec.file import make_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

CLIENTS = 8
_PODS = ("127.0.0.2", "127.0.0.3")
_SAMPLE = Path(__file__).parents[1] / "clients" / "samples" / "star.jpg"
_START_S = 60.0
_AFTER_ERROR_S = 0.02
_AROUND_S = 2.0  # of load before the end begins, and after it is over


class Pod:
    """The container of the manifests on this machine: its own arguments, with other ports, run by the pip server."""

    def __init__(
        self,
        repository: Path,
        *,
        address: str = LOOPBACK,
        grpc_port: int = 0,
        connection_age_s: float = CONNECTION_AGE_S,
    ) -> None:
        self.address = address
        self.ports = choose_ports(Ports(http=0, grpc=grpc_port, metrics=0), address=address)
        self.directory = make_directory("trtgen-pod")
        self.prefix = self.directory.name
        image = ImageSource(image="registry.example/models:1")
        served = describe_served(repository, image, image=f"trtgen-serving:{PIP_RELEASE}")
        old, new = (f"--grpc-max-connection-age={round(age * 1000)}" for age in (CONNECTION_AGE_S, connection_age_s))
        assert old in served.options
        options = tuple(new if text == old else text.replace(ANY_ADDRESS, address) for text in served.options)
        served = dataclasses.replace(served, options=options)
        triton = check_embedded()
        ports = dict(zip(PORTS, self.ports.named().values(), strict=True))
        self._command = [
            *make_arguments(served, location=str(repository), ports=ports),
            f"--backend-directory={assemble_backends(triton, self.directory)}",
            f"--backend-config=python,shm-region-prefix-name={self.prefix}_",
            "--metrics-interval-ms=250",
        ]
        python = assemble_python(triton, self.directory)
        (python / "tritonserver").symlink_to(triton.binary)
        self._environment = make_environment(triton, python=python)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("w") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        while not is_ready(f"{self.address}:{self.ports.http}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.05)

    @property
    def log(self) -> Path:
        """Tritonserver's log."""
        return self.directory / "log"

    @property
    def pid(self) -> int:
        """Tritonserver's process id: the shell of the arguments has become it."""
        assert self._process is not None
        return self._process.pid

    def end(self) -> None:
        """Send SIGTERM, as the kubelet does after the pause, and wait for the end."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


class Name:
    """A DNS server on loopback whose one name, whatever it is, has the addresses `pods`; `held_s` is a cache's time."""

    def __init__(self, pods: Sequence[str], *, held_s: float = 0) -> None:
        self._answers = [(0.0, tuple(pods))]
        self._held_s = held_s
        self._server = socketserver.UDPServer((LOOPBACK, 0), self._make_handler())
        self.url = f"dns://{LOOPBACK}:{self._server.server_address[1]}/pods.example"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def change(self, pods: Sequence[str]) -> None:
        """Let the name have other addresses, which is seen when caches forget the old ones."""
        self._answers.append((time.monotonic() + self._held_s, tuple(pods)))

    def _make_handler(self) -> type[socketserver.BaseRequestHandler]:
        answers = self._answers

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query, socket = self.request
                pods = [pods for since, pods in answers if since <= time.monotonic()][-1]
                socket.sendto(_answer(query, pods), self.client_address)

        return Handler


def _answer(query: bytes, addresses: Sequence[str]) -> bytes:
    """Return the DNS message that answers a query with addresses, or with nothing where it asks for something else."""
    end = query.index(b"\0", 12) + 5  # of the question: name, type, class
    is_address = query[end - 4 : end - 2] == b"\0\1"
    # a name's pointer to the question, A, IN, a time to live of 5 s, 4 bytes
    records = [struct.pack(">HHHIH", 0xC00C, 1, 1, 5, 4) + ipaddress.IPv4Address(one).packed for one in addresses]
    records = records if is_address else []
    return query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(records), 0, 0) + query[12:end] + b"".join(records)


class Clients:
    """Threads that ask for one image after the other, each over connections of its own, in turn to each pod.

    `resolved_s` is how long they wait before they ask for a name again, gRPC's own by default.
    """

    def __init__(self, url: str, *, count: int = CLIENTS, resolved_s: float = 30) -> None:
        self._url = url
        self._resolved_ms = round(resolved_s * 1000)
        self._stop = threading.Event()
        self._counts = [Counter[str]() for _ in range(count)]
        self._threads = [threading.Thread(target=self._ask, args=(one,)) for one in self._counts]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self) -> Counter[str]:
        """Return how often each status came back; an answer is `OK`."""
        return sum(self._counts, Counter())

    def _ask(self, seen: Counter[str]) -> None:
        import numpy as np
        import tritonclient.grpc as triton
        from tritonclient.utils import InferenceServerException

        image = triton.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[_SAMPLE.read_bytes()]], np.object_))
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # else connections of one process to one address are one
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
            ("grpc.dns_min_time_between_resolutions_ms", self._resolved_ms),
        ]
        with triton.InferenceServerClient(self._url, channel_args=options) as client:
            while not self._stop.is_set():
                try:
                    client.infer("demo", [image], client_timeout=10)
                    seen["OK"] += 1
                except InferenceServerException as error:
                    seen[str(error.status()).removeprefix("StatusCode.")] += 1
                    time.sleep(_AFTER_ERROR_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a pod ends, all in seconds: see `Pod`, `Name` and `Clients`."""

    pause_s: float
    connection_age_s: float = CONNECTION_AGE_S
    held_s: float = 0
    resolved_s: float = 30

    def run(self, repository: Path) -> Counter[str]:
        """Return how often clients of two pods see each status while one of them ends."""
        port = choose_ports(Ports(http=0, grpc=0, metrics=0), address=_PODS[0]).grpc
        with (
            Pod(repository, address=_PODS[0], grpc_port=port, connection_age_s=self.connection_age_s) as old,
            Pod(repository, address=_PODS[1], grpc_port=port, connection_age_s=self.connection_age_s),
            Name(_PODS, held_s=self.held_s) as name,
            Clients(f"{name.url}:{port}", resolved_s=self.resolved_s) as clients,
        ):
            time.sleep(_AROUND_S)
            name.change(_PODS[1:])
            time.sleep(self.pause_s)
            old.end()
            time.sleep(_AROUND_S)
        return clients.count()


WAYS = {
    "no pause": Way(pause_s=0),
    "a pause, and connections of an hour": Way(pause_s=PAUSE_S, connection_age_s=3600),
    "a shorter pause, and names cached for 30 s": Way(pause_s=35, held_s=DNS_CACHE_S),
    "the manifests', and names cached for 30 s": Way(pause_s=PAUSE_S, held_s=DNS_CACHE_S),
}


def main() -> int:
    """Print the table of docs/kubernetes.md."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{describe_machine()}\n")
    print("| way | preStop pause | connections last | answers | errors |")
    print("|---|---|---|---|---|")
    errors = []
    with tempfile.TemporaryDirectory(prefix="trtgen-pod-end-") as folder:
        repository = Path(folder) / "model_repository"
        spec = make_spec(["demo"], instances={"preprocess": 1, "classifier": 1})[0]
        build_repository(spec, repository, BuildOptions(verify=False))
        for name, way in WAYS.items():
            seen = way.run(repository)
            answers = seen.pop("OK", 0)
            errors.append(seen.total())
            words = ", ".join(f"{count} {status}" for status, count in seen.most_common()) or "0"
            print(f"| {name} | {way.pause_s:g} s | {way.connection_age_s:g} s | {answers} | {words} |", flush=True)
    return 1 if errors[-1] or not errors[0] else 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(main())
