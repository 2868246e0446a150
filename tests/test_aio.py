"""The client of asyncio against real servers: what it asks, and what it does while they restart, die and take long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from generator.server.embedded import EmbeddedServer
from generator.server.secret_files import make_secrets
from tests.server_parts import read_settled, wait_until
from tests.tiny_repository import LABELS, STARTED, build_tiny_repository, make_image

CLIENTS = Path(__file__).parents[1] / "clients"
sys.path.insert(0, str(CLIENTS))  # its modules import one another by their bare names

from aio import AsyncClient  # noqa: E402
from triton_images import ClientError, RefusedError, Tls  # noqa: E402

pytestmark = pytest.mark.server

DEAD = "127.0.0.1:1"
IMAGES = {label: make_image(label) for label in LABELS}
LIMIT = 4


class Served:
    """A server that can be killed and started again at the same port."""

    def __init__(self, repository: Path, **options: Any) -> None:
        self._stack = contextlib.ExitStack()
        self._repository, self._options = repository, options
        self._server = self._start()
        self.url = self._server.grpc_url.rpartition("://")[2]
        self.http_url = self._server.http_url.rpartition("://")[2].partition("/")[0]

    def _start(self, **ports: Any) -> EmbeddedServer:
        return self._stack.enter_context(EmbeddedServer(self._repository, **ports, **self._options))

    def kill(self) -> None:
        """End it as a crash does: nothing is answered any more."""
        os.kill(self._server.pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            self._server.wait()
        self.stop()

    def stop(self) -> None:
        """End it in order: it answers, then refuses, then closes its port."""
        self._stack.close()

    def start_again(self) -> None:
        self._server = self._start(grpc_port=int(self.url.rpartition(":")[2]))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    build_tiny_repository(root, name="slow", delay_s=0.6)
    build_tiny_repository(root, name="single", max_batch_size=0)
    return build_tiny_repository(root, max_batch_size=LIMIT)


@pytest.fixture(scope="module")
def steady(repository: Path) -> Iterator[Served]:
    """A server that no test stops."""
    served = Served(repository)
    yield served
    served.kill()  # it would first answer what cancelled callers have left


@pytest.fixture
def mortal(repository: Path) -> Iterator[Served]:
    served = Served(repository)
    yield served
    served.stop()


def make_questions(count: int) -> Iterator[tuple[int, bytes]]:
    for number, label in zip(range(count), itertools.cycle(LABELS)):
        yield number, IMAGES[label]


def connect(*endpoints: str, model: str = "tiny", **options: Any) -> AsyncClient:
    return AsyncClient(endpoints, model, **options)


async def ask_all(client: AsyncClient, images: Any, **options: Any) -> dict[Any, str]:
    """Return key -> best label, or the words of the error; every key must come once, in order."""
    answers = [
        (key, str(answer) if isinstance(answer, RefusedError) else str(answer[0].label))
        async for key, answer in client.answers(images, **options)
    ]
    found = dict(answers)
    assert len(found) == len(answers)
    return found


def check_all(answers: dict[Any, str], count: int) -> None:
    assert list(answers.items()) == [(number, LABELS[number % len(LABELS)]) for number in range(count)]


def count_work(served: Served, model: str = "tiny") -> tuple[int, int]:
    """Return how many requests the ensemble has answered, and how many images were in them."""
    from tritonclient.http import InferenceServerClient

    with InferenceServerClient(served.http_url) as client:
        statistics: dict[str, Any] = client.get_inference_statistics(model)["model_stats"][0]
    return statistics["inference_stats"]["success"]["count"], statistics["inference_count"]


def test_answers_in_order_in_as_few_requests_as_the_model_takes(steady: Served) -> None:
    async def ask() -> None:
        async with connect(steady.url) as client:
            check_all(await ask_all(client, make_questions(41)), 41)
            check_all(await ask_all(client, make_questions(4), batch_size=2), 4)
            assert await ask_all(client, []) == {}

    before = count_work(steady)
    asyncio.run(ask())
    after = read_settled(lambda: count_work(steady), before)
    assert (after[0] - before[0], after[1] - before[1]) == (11 + 2, 45)


def test_a_model_that_takes_one_image_is_asked_for_each(steady: Served) -> None:
    async def ask() -> None:
        async with connect(steady.url, model="single") as client:
            check_all(await ask_all(client, make_questions(5)), 5)

    asyncio.run(ask())


def test_bad_images_cost_only_their_own_answers(steady: Served) -> None:
    async def ask() -> dict[Any, str]:
        images = [(number, b"no image" if number in (2, 7, 8) else data) for number, data in make_questions(12)]
        async with connect(steady.url) as client:
            return await ask_all(client, images)

    answers = asyncio.run(ask())
    assert len(answers) == 12
    for number, answer in answers.items():
        if number in (2, 7, 8):
            assert answer.endswith("image 0 of 1 cannot be decoded")
        else:
            assert answer == LABELS[number % 3]


def test_asynchronous_images_are_read_as_far_as_answers_are_taken(steady: Served) -> None:
    read = 0

    async def images() -> AsyncIterator[tuple[int, bytes]]:
        nonlocal read
        for question in make_questions(1000):
            read += 1
            yield question

    async def ask() -> None:
        async with connect(steady.url, in_flight=2) as client:
            answers = client.answers(images())
            assert [key async for key, _ in take(answers, 6)] == list(range(6))
            await asyncio.sleep(0.3)
            assert read <= 6 + 4 * LIMIT

    asyncio.run(ask())


async def take(answers: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(answers)


def test_memory_does_not_grow_with_the_images(steady: Served) -> None:
    image = make_image("red", size=(150, 150))

    async def measure(client: AsyncClient, count: int) -> int:
        gc.collect()
        tracemalloc.reset_peak()
        async for _ in client.answers((number, bytes(bytearray(image))) for number in range(count)):
            pass
        return tracemalloc.get_traced_memory()[1]

    async def ask() -> tuple[int, int]:
        async with connect(steady.url, in_flight=2) as client:
            tracemalloc.start()
            try:
                await measure(client, 200)
                return await measure(client, 100), await measure(client, 1000)
            finally:
                tracemalloc.stop()

    few, many = asyncio.run(ask())
    assert many < few + 20 * len(image)  # 900 more images


@pytest.mark.parametrize(("how", "side"), [("kill", 30), ("kill", 600), ("stop", 30)])
def test_a_restart_in_the_middle_loses_and_doubles_nothing(mortal: Served, how: str, side: int) -> None:
    again = threading.Event()
    large = [make_image(label, size=(side, side)) for label in LABELS]  # 600: requests of more than 256 KiB

    def images() -> Iterator[tuple[int, bytes]]:
        for number in itertools.count():
            if number == 100:
                threading.Thread(target=restart).start()
            if again.is_set():
                return
            yield number, large[number % len(LABELS)]

    def restart() -> None:
        getattr(mortal, how)()
        time.sleep(0.5)
        mortal.start_again()
        again.set()

    async def ask() -> None:
        async with connect(mortal.url) as client:
            answers = await ask_all(client, images())
            check_all(answers, len(answers))

    asyncio.run(ask())


def test_a_dead_endpoint_costs_nothing(steady: Served) -> None:
    async def ask() -> None:
        async with connect(DEAD, steady.url, timeout_s=10) as client:
            started = time.monotonic()
            check_all(await ask_all(client, make_questions(100)), 100)
            assert time.monotonic() - started < 5

    asyncio.run(ask())


def test_two_endpoints_share_the_work_until_one_dies_in_the_middle(steady: Served, mortal: Served) -> None:
    def count_requests() -> list[int]:
        return [count_work(served)[0] for served in (steady, mortal)]

    async def ask() -> None:
        async with connect(steady.url, mortal.url) as client:
            while not count_work(mortal)[0]:  # until both are connected
                await ask_all(client, make_questions(8))
            before = read_settled(count_requests, [0, 0])
            check_all(await ask_all(client, make_questions(80)), 80)
            after = read_settled(count_requests, before)
            assert [new - old for new, old in zip(after, before, strict=True)] == [10, 10]
            found: dict[Any, str] = {}
            async for key, answer in client.answers(make_questions(1000)):
                assert not isinstance(answer, RefusedError), answer
                found[key] = str(answer[0].label)
                if len(found) == 100:
                    mortal.kill()
            check_all(found, 1000)

    asyncio.run(ask())


def test_an_endpoint_that_stays_away_ends_it_with_plain_words(mortal: Served) -> None:
    async def ask() -> None:
        async with connect(mortal.url, DEAD, timeout_s=3) as client:
            async for key, _ in client.answers(make_questions(1000)):
                if key == 100:
                    mortal.kill()

    with pytest.raises(ClientError) as caught:
        asyncio.run(ask())
    assert str(caught.value) == f"no server can be reached any more at {mortal.url}, {DEAD}, 3 s after the request"


def test_a_request_and_all_of_them_have_a_deadline(steady: Served) -> None:
    async def ask(deadline_s: float | None, **options: Any) -> None:
        async with connect(steady.url, model="slow", in_flight=1, **options) as client:
            await ask_all(client, make_questions(40), deadline_s=deadline_s)

    with pytest.raises(ClientError, match=r"no answer from .* within 0\.3 s"):
        asyncio.run(ask(None, timeout_s=0.3))
    started = time.monotonic()
    with pytest.raises(ClientError, match=r"[48] images were answered within the 1\.8 s that all of them have"):
        asyncio.run(ask(1.8))
    assert time.monotonic() - started < 4


def test_a_cancelled_caller_leaves_no_request_behind(steady: Served, repository: Path) -> None:
    async def ask() -> None:
        async with connect(steady.url, model="slow", in_flight=4) as client:
            task = asyncio.create_task(ask_all(client, make_questions(100)))
            assert await asyncio.to_thread(wait_until, started.exists)
            task.cancel()
            cancelled = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - cancelled < 2  # the server needs 5 s for what is in flight
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others
            check_all(await ask_all(client, make_questions(1)), 1)

    started = repository / "slow_preprocess" / STARTED
    started.unlink(missing_ok=True)
    asyncio.run(ask())


def test_a_caller_that_stops_early_leaves_no_request_behind(steady: Served) -> None:
    async def ask() -> None:
        async with connect(steady.url) as client:
            async for _ in client.answers(make_questions(1000)):
                break
            await asyncio.sleep(0.05)
            assert not asyncio.all_tasks() - {asyncio.current_task()}

    asyncio.run(ask())


def test_an_error_of_the_images_reaches_the_caller(steady: Served) -> None:
    def images() -> Iterator[tuple[int, bytes]]:
        yield from make_questions(10)
        raise OSError("the disk is gone")

    async def ask() -> None:
        async with connect(steady.url) as client:
            await ask_all(client, images())

    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(ask())


def test_certificates_of_both_sides(repository: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    make_secrets(secrets, address="127.0.0.1")
    ca, *own = (str(secrets / name) for name in ("ca.crt", "client.crt", "client.key"))

    async def ask(*endpoints: str, tls: Tls | None) -> None:
        async with connect(*endpoints, tls=tls) as client:
            check_all(await ask_all(client, make_questions(9)), 9)

    served = Served(repository, secrets_folder=secrets)
    try:
        asyncio.run(ask(served.url, tls=Tls(ca, *own)))
        asyncio.run(ask(served.url, DEAD, tls=Tls(ca, *own)))  # the certificate is still checked for a name
        with pytest.raises(ClientError, match="takes encrypted connections only"):
            asyncio.run(ask(served.url, tls=None))
        with pytest.raises(ClientError, match="no TLS connection"):
            asyncio.run(ask(served.url, DEAD, tls=Tls(ca)))
    finally:
        served.stop()


def run_command(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-W", "error", str(CLIENTS / "aio.py"), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout, run.stderr


def read_classes(output: str) -> dict[str, str]:
    return {Path(line["file"]).name: line["classes"][0]["label"] for line in map(json.loads, output.splitlines())}


def test_the_command(steady: Served, tmp_path: Path) -> None:
    for number, label in enumerate(LABELS):
        (tmp_path / f"{number}.jpg").write_bytes(IMAGES[label])
    (tmp_path / "3.jpg").write_bytes(b"no image")
    (tmp_path / "4.jpg").touch()
    where = ("--url", f"{DEAD},{steady.url}", "--model", "tiny", "--json", "--deadline", "30")
    output, error = run_command(tmp_path, *where, code=1)
    assert read_classes(output) == {f"{number}.jpg": label for number, label in enumerate(LABELS)}
    assert f"error: {tmp_path}/3.jpg: in ensemble 'tiny', image 0 of 1 cannot be decoded" in error
    assert f"error: {tmp_path}/4.jpg: empty" in error
    assert error.count("error:") == error.count("hint:") == 2
    output, error = run_command(tmp_path / "0.jpg", "--url", steady.url, "--model", "tiny")
    assert output.splitlines()[1].endswith("  red")
    assert error == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--url", DEAD), 1, f"no server can be reached at {DEAD}: Connection refused"),
        (("--url", f"nobody.invalid:8001,{DEAD}"), 1, "nobody.invalid:8001: no IPv4 address is known of this host"),
        (("--url", "grpc://a:8001"), 2, "'grpc://a:8001' is not HOST:PORT"),
        (("--url", "a:8001,"), 2, "'' is not HOST:PORT"),
        (("--url", "localhost:1/path,localhost:2"), 2, "'localhost:1/path' is not HOST:PORT"),
        (("--url", "a..b:8001"), 1, "no server can be reached at a..b:8001: "),
        (("--url", f"a..b:8001,{DEAD}"), 1, "a..b:8001: no IPv4 address is known of this host"),
        (("--in-flight", "0"), 2, "0 is not above 0"),
        (("--ca", "ca.crt"), 1, "--ca, --certificate and --key go with --tls"),
        (("--task", "detection", "--url", DEAD), 1, "no server can be reached"),
    ],
)
def test_the_command_with_bad_options(arguments: Sequence[str], code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(IMAGES["red"])
    output, error = run_command(tmp_path, *arguments, code=code)
    assert output == ""
    assert words in error


def test_the_command_when_the_server_goes_away(mortal: Served, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").write_bytes(IMAGES["red"])
    command = [sys.executable, str(CLIENTS / "aio.py"), str(tmp_path), "--url", mortal.url, "--model", "slow"]
    options = ["--timeout", "4", "--in-flight", "1", "--json"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stderr is not None
        client.stdout.readline()
        mortal.kill()
        _, error = client.communicate(timeout=60)
    assert client.returncode == 1
    assert f"error: no server can be reached any more at {mortal.url}, 4 s after the request (4 of 40 " in error
    assert "Traceback" not in error


def test_the_command_ends_with_ctrl_c(steady: Served, repository: Path, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").write_bytes(IMAGES["red"])
    started = repository / "slow_preprocess" / STARTED
    started.unlink(missing_ok=True)
    command = [sys.executable, str(CLIENTS / "aio.py"), str(tmp_path), "--url", steady.url, "--model", "slow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        assert wait_until(started.exists)
        client.send_signal(signal.SIGINT)
        _, error = client.communicate(timeout=20)
    assert client.returncode == 130
    assert error == ""
