"""Many images, with asyncio: several requests in flight, several servers, and no image lost while one restarts.

    async with AsyncClient(["localhost:8001"]) as client:
        async for name, answer in client.answers((path, path.read_bytes()) for path in paths):
            print(name, answer)

    python clients/aio.py photos/
    python clients/aio.py photos/ --url gpu-1:8001,gpu-2:8001 --in-flight 16 --deadline 600

gRPC itself spreads, waits and repeats, as channel.py says; there is no retry loop here. The command prints what
classify.py and detect.py print. Exit code: 0 = every image was answered, 1 = not every one (standard error says why),
2 = wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import importlib
import itertools
import sys
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

import classify
import detect
from channel import describe_channel, is_reachable
from command_line import (
    DEFAULT_URLS,
    REQUEST_BYTES,
    add_request_options,
    address,
    complain,
    find_images,
    make_batches,
    make_parser,
    positive,
    read_security,
    run_command,
)
from triton_images import (
    TASKS,
    ClientError,
    Connection,
    RefusedError,
    make_request,
    parse_classes,
    parse_detections,
    read_limit,
    read_outputs,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence

    from triton_images import Detection, Model, Score, Tls

_Key = TypeVar("_Key")
_T = TypeVar("_T")

BATCH_SIZE = 32  # more images in a request make no difference


class AsyncClient(contextlib.AbstractAsyncContextManager["AsyncClient"]):
    """Servers of one model, asked in turn.

    Args:
        endpoints: `host:port` of each; see `describe_channel`.
        model: The model's name; by default the one ensemble or fused model for `task`.
        task: One of TASKS.
        in_flight: The most requests that wait for an answer.
        timeout_s: The longest wait for one answer, also across a restart of the server.
        tls: What encryption needs.
        headers: Sent with every request.

    Attributes:
        model: The served model, once the context is entered.

    Raises:
        ClientError: No server can be reached, or none serves such a model.
    """

    model: Model

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str | None = None,
        task: str = "classification",
        *,
        in_flight: int = 8,
        timeout_s: float = 60.0,
        tls: Tls | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._endpoints, self._name, self._task = endpoints, model, task
        self._in_flight, self._limit = in_flight, asyncio.Semaphore(in_flight)
        self._timeout_s, self._tls, self._headers = timeout_s, tls, headers

    async def __aenter__(self) -> AsyncClient:  # noqa: PYI034 - Self is not in Python 3.10
        try:
            target, options = await asyncio.to_thread(describe_channel, self._endpoints)
        except OSError as error:
            raise ClientError(str(error), "check --url; of several servers IPv4 addresses are needed") from None
        self._server = await asyncio.to_thread(self._find_server)
        self._triton = importlib.import_module("tritonclient.grpc.aio")
        security = self._tls.make_grpc_options() if self._tls else {}
        self._client = self._triton.InferenceServerClient(target, channel_args=options, **security)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        self._server.__exit__()

    def _find_server(self) -> Connection:
        """Return a connection to the first server that has the model; set it."""
        problems = []
        for endpoint in self._endpoints:
            server = Connection("grpc", endpoint, self._timeout_s, tls=self._tls, headers=self._headers)
            try:
                self.model = server.find_model(self._name, self._task)
            except ClientError as error:
                server.__exit__()
                problems.append(error)
            else:
                return server
        raise problems[0]

    async def answers(
        self,
        images: Iterable[tuple[_Key, bytes]] | AsyncIterable[tuple[_Key, bytes]],
        *,
        batch_size: int | None = None,
        top: int = 5,
        deadline_s: float | None = None,
    ) -> AsyncIterator[tuple[_Key, list[Score] | list[Detection] | RefusedError]]:
        """Yield each image's key and answer, in the order of the images.

        At most twice as many requests as may be in flight are held, of at most 64 MiB and an image: `images` is read as
        far as the answers are taken, in a thread where it is no asynchronous iterable.

        Args:
            images: Any key, such as the file's name, and the encoded image.
            batch_size: Images per request; by default 32, and never more than the model takes.
            top: The most classes per image.
            deadline_s: The longest time for all of them.

        Raises:
            ClientError: A request has no answer within its time, or not all have one within `deadline_s`.
        """
        size = max(min(batch_size or BATCH_SIZE, self.model.max_batch_size), 1)
        count = 0
        batches = _read_batches(images, size)
        running: collections.deque[tuple[list[_Key], asyncio.Task[list[Any]]]] = collections.deque()
        loop = asyncio.get_running_loop()
        end = None if deadline_s is None else loop.time() + deadline_s

        async def wait_for(awaited: Awaitable[_T]) -> _T:
            try:
                return await asyncio.wait_for(awaited, None if end is None else max(end - loop.time(), 0))
            except asyncio.TimeoutError:
                message = f"{count} images were answered within the {deadline_s:g} s that all of them have"
                raise ClientError(message, "raise --deadline, or --in-flight where the server is not busy") from None

        try:
            more = True
            while more or running:
                while more and len(running) < 2 * self._in_flight:
                    batch = await wait_for(batches.__anext__())
                    if more := bool(batch):
                        asked = self._ask([data for _, data in batch], top)
                        running.append(([key for key, _ in batch], asyncio.ensure_future(asked)))
                if running:
                    keys, task = running[0]
                    for key, answer in zip(keys, await wait_for(task), strict=True):
                        yield key, answer
                        count += 1
                    running.popleft()
        finally:
            for _, task in running:
                task.cancel()
            await asyncio.gather(*(task for _, task in running), return_exceptions=True)

    async def _ask(self, images: Sequence[bytes], top: int) -> list[Any]:
        async with self._limit:
            return await self._ask_each(images, top)

    async def _ask_each(self, images: Sequence[bytes], top: int) -> list[Any]:
        """Ask for all images in one request and, where that is refused, for each alone."""
        try:
            return await self._infer(images, top)
        except RefusedError as error:
            if len(images) == 1:
                return [error]
            limit = read_limit(error) or 1  # the server may hide what it takes
        size = limit if 0 < limit < len(images) else 1
        parts = [await self._ask_each(images[at : at + size], top) for at in range(0, len(images), size)]
        return list(itertools.chain.from_iterable(parts))

    async def _infer(self, images: Sequence[bytes], top: int) -> list[Any]:
        """Send one request."""
        from tritonclient.utils import InferenceServerException

        request = make_request(self._triton, self.model, images, top if self._task == "classification" else 0)
        try:
            answer = await self._client.infer(**request, headers=self._server.headers, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise await asyncio.to_thread(self._explain, error.status() or "", error.message()) from None
        outputs = read_outputs(self.model, answer)
        if self._task == "classification":
            return parse_classes(self.model, outputs)
        return parse_detections(self.model, outputs)

    def _explain(self, status: str, message: str) -> ClientError:
        everybody = ", ".join(self._endpoints)
        if status == "StatusCode.DEADLINE_EXCEEDED" and not any(map(is_reachable, self._endpoints)):
            found = f"no server can be reached any more at {everybody}, {self._timeout_s:g} s after the request"
            return ClientError(found, "look at its log, start it again and repeat the command")
        error = self._server.explain(status, message)
        if len(self._endpoints) > 1 and not isinstance(error, RefusedError):
            return ClientError(f"{error} (one of {everybody})", error.hint)
        return error


async def _read_batches(
    images: Iterable[tuple[_Key, bytes]] | AsyncIterable[tuple[_Key, bytes]], size: int
) -> AsyncIterator[list[tuple[_Key, bytes]]]:
    """Yield up to `size` images at a time, fewer where they are large; an empty list is the end."""
    batch: list[tuple[_Key, bytes]] = []

    def add(image: tuple[_Key, bytes]) -> bool:
        batch.append(image)
        return len(batch) == size or sum(len(data) for _, data in batch) > REQUEST_BYTES

    if isinstance(images, AsyncIterable):
        async for image in images:
            if add(image):
                yield batch
                batch = []
    else:
        iterator = iter(images)
        while await asyncio.to_thread(lambda: any(map(add, iterator))):
            yield batch
            batch = []
    if batch:
        yield batch
    yield []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: parse(arguments), lambda options: asyncio.run(run(options)))


async def run(options: argparse.Namespace) -> int:
    """Ask for everything that was asked for, and print each answer, in order."""
    names, without = find_images(options.images)
    if not names:
        return 1
    tls, headers = read_security(options)
    print_result: Any = classify.print_result if options.task == "classification" else detect.print_result
    files = itertools.chain.from_iterable(make_batches(names, 1))  # it tells of what cannot be read
    done = 0
    client = AsyncClient(
        options.url,
        options.model,
        options.task,
        in_flight=options.in_flight,
        timeout_s=options.timeout,
        tls=tls,
        headers=headers,
    )
    async with client:
        answers = client.answers(files, batch_size=options.batch_size, top=options.top, deadline_s=options.deadline)
        try:
            async for name, answer in answers:
                if isinstance(answer, RefusedError):
                    complain(f"{name}: {answer}", answer.hint)
                else:
                    print_result(name, answer, as_json=options.json)
                    done += 1
        except ClientError as error:
            raise ClientError(f"{error} ({done} of {len(names)} images answered before)", error.hint) from None
    return 1 if without or done < len(names) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("Ask Triton for many images, several requests at a time.", add_server=add_servers)
    parser.add_argument("--task", choices=sorted(TASKS), default="classification", help="default: classification")
    parser.add_argument("--top", type=positive(int), default=5, metavar="K", help="most classes per image; default: 5")
    parser.add_argument(
        "--in-flight", type=positive(int), default=8, metavar="N", help="most requests that wait; default: 8"
    )
    parser.add_argument("--deadline", type=positive(float), metavar="S", help="seconds for everything; default: none")
    return parser.parse_args(arguments)


def add_servers(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the servers are, and what each request has."""
    default = [DEFAULT_URLS["grpc"]]
    parser.add_argument(
        "--url", type=addresses, default=default, metavar="HOST:PORT[,...]", help="gRPC; default: localhost:8001"
    )
    add_request_options(parser)


def addresses(text: str) -> list[str]:
    """Return the addresses in a list that commas separate."""
    endpoints = text.split(",")
    for one in endpoints:
        if "/" in one:  # which only HTTP has
            raise argparse.ArgumentTypeError(f"{one!r} is not HOST:PORT")
    return [address(one) for one in endpoints]


if __name__ == "__main__":
    sys.exit(main())
