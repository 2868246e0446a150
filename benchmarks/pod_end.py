"""What gRPC clients see while a pod ends: the container of `trtgen deploy kubernetes`, run by the pip server.

    python -m benchmarks.pod_end

Two such servers stand for an old pod and its successor. A small TCP proxy stands for the service: it gives each new
connection to one of the pods that are its endpoints, and leaves existing connections alone, as kube-proxy does and as
the answers of a headless service's name do. Eight clients, each with a connection of its own, ask for one image after
the other. Then the old pod ends as in a cluster: it is no endpoint any more, its preStop pause passes, and it gets
SIGTERM. Three ways:

- without a pause, which is what a Deployment without preStop does;
- with a pause, but with connections that last for an hour;
- as the manifests have it: the pause is longer than connections last.

Exit code 1: clients saw an error the third way, or none the first way, so that nothing was shown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe_machine
from generator.deploy.pod import CONNECTION_AGE_S, PAUSE_S, PORTS, describe_served, make_arguments
from generator.deploy.source import ImageSource
from generator.pipeline import BuildOptions, build_repository
from generator.server.endpoint import is_ready
from generator.server.hardening import PIP_RELEASE
from generator.server.launch import assemble_backends, assemble_python, make_directory, make_environment
from generator.server.ports import LOOPBACK, Ports, choose_ports
from generator.server.wheel import check_embedded
from generator.spec.file import make_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

CLIENTS = 8
_SAMPLE = Path(__file__).parents[1] / "clients" / "samples" / "star.jpg"
_START_S = 60.0
_AFTER_ERROR_S = 0.02
_AROUND_S = 2.0  # of load before the end begins, and after it is over


class Pod:
    """The container of the manifests on this machine: its own arguments, with other ports, run by the pip server."""

    def __init__(self, repository: Path, *, connection_age_s: float = CONNECTION_AGE_S) -> None:
        self.ports = choose_ports(Ports(http=0, grpc=0, metrics=0), address=LOOPBACK)
        self.directory = make_directory("trtgen-pod")
        self.prefix = self.directory.name
        image = ImageSource(image="registry.example/models:1")
        served = describe_served(repository, image, image=f"trtgen-serving:{PIP_RELEASE}")
        old, new = (f"--grpc-max-connection-age={round(age * 1000)}" for age in (CONNECTION_AGE_S, connection_age_s))
        assert old in served.options
        options = tuple(new if text == old else text.replace("0.0.0.0", LOOPBACK) for text in served.options)  # noqa: S104
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
        while not is_ready(f"{LOOPBACK}:{self.ports.http}"):
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


class Service:
    """A TCP proxy on loopback that gives each new connection to the next of its endpoints; others stay as they are."""

    def __init__(self, endpoints: Sequence[int]) -> None:
        self.endpoints = tuple(endpoints)
        self.port = 0
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connect, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoint = self.endpoints[next(self._turn) % len(self.endpoints)]
        try:
            there = await asyncio.open_connection(LOOPBACK, endpoint)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # the end of the service, which asyncio would report
            await asyncio.gather(_pass_on(reader, there[1]), _pass_on(there[0], writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


class Clients:
    """Threads that ask for one image after the other, each over a connection of its own."""

    def __init__(self, port: int, *, count: int = CLIENTS) -> None:
        self._url = f"{LOOPBACK}:{port}"
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
        # else connections of one process to one address are one
        own = [("grpc.use_local_subchannel_pool", 1)]
        with triton.InferenceServerClient(self._url, channel_args=own) as client:
            while not self._stop.is_set():
                try:
                    client.infer("demo", [image], client_timeout=10)
                    seen["OK"] += 1
                except InferenceServerException as error:
                    seen[str(error.status()).removeprefix("StatusCode.")] += 1
                    time.sleep(_AFTER_ERROR_S)


def end_pod(repository: Path, *, pause_s: float, connection_age_s: float) -> Counter[str]:
    """Return what clients of two pods see while one of them ends."""
    with (
        Pod(repository, connection_age_s=connection_age_s) as old,
        Pod(repository, connection_age_s=connection_age_s) as new,
        Service([old.ports.grpc, new.ports.grpc]) as service,
        Clients(service.port) as clients,
    ):
        time.sleep(_AROUND_S)
        service.endpoints = (new.ports.grpc,)
        time.sleep(pause_s)
        old.end()
        time.sleep(_AROUND_S)
    return clients.count()


def main() -> int:
    """Print the table of docs/kubernetes.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    ways = (
        ("no pause", 0, CONNECTION_AGE_S),
        ("a pause, and connections of an hour", PAUSE_S, 3600),
        ("the manifests'", PAUSE_S, CONNECTION_AGE_S),
    )
    print(f"{describe_machine()}\n")
    print("| way | preStop pause | connections last | answers | errors |")
    print("|---|---|---|---|---|")
    errors = []
    with tempfile.TemporaryDirectory(prefix="trtgen-pod-end-") as folder:
        repository = Path(folder) / "model_repository"
        spec = make_spec(["demo"], instances={"preprocess": 1, "classifier": 1})[0]
        build_repository(spec, repository, BuildOptions(verify=False))
        for way, pause_s, age_s in ways:
            seen = end_pod(repository, pause_s=pause_s, connection_age_s=age_s)
            answers = seen.pop("OK", 0)
            errors.append(seen.total())
            words = ", ".join(f"{count} {status}" for status, count in seen.most_common()) or "0"
            print(f"| {way} | {pause_s} s | {age_s} s | {answers} | {words} |", flush=True)
    return 1 if errors[-1] or not errors[0] else 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(main())
