"""The engine of `--endpoint`: servers answer, and keep the plan, the preprocessing and the batching to themselves."""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.bulk.channel import describe_channel, is_reachable
from generator.bulk.images import ERROR, IMAGE, Batch, as_column, read_images
from generator.bulk.step import ANSWERS
from generator.errors import BulkError
from generator.gate.client import GrpcAddress, as_bytes, is_restricted, list_ready
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    from generator.bulk.step import Step

_ASK_TIMEOUT_S = 20.0
_REQUEST_BYTES = 64 << 20  # gRPC cannot carry 2 GiB
_ALL_CLASSES = 1_000_000  # the server ranks all when asked for more than there are
_LIMIT = re.compile(r"batch-size must be <= (\d+)")
_AT_PLACE = re.compile(r"^(in ensemble '[^']*', )?IMAGE\[0\] of 1: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as its server describes it.

    `outputs` says of each whether the server ranks and labels it. `max_batch_size` is 0 for a model that takes single
    images, and None where the server hides it.
    """

    name: str
    version: str
    task: str
    input: str
    outputs: dict[str, bool]
    max_batch_size: int | None
    negative_label: str | None

    @property
    def most_images(self) -> int | None:
        """How many images a request may have; None where the server hides it."""
        return None if self.max_batch_size is None else max(self.max_batch_size, 1)

    def identify(self, top: int | None) -> dict[str, Any]:
        """Return what the answers follow from besides the images."""
        return {"task": self.task, "model": self.name, "version": self.version, "served": True, "top": top}


def find_served_model(endpoints: Sequence[str], name: str | None, task: str, secrets: Path | None) -> ServedModel:
    """Return the model `name`, or the only one for a task, as the first server that is there has it.

    Args:
        endpoints: `host:port` of each server's gRPC.
        name: The model that clients call.
        task: What it must be for.
        secrets: The folder of certificates, None without TLS.

    Raises:
        BulkError: No server answers, or the first that does has no such model.
        ServerError: A file of the folder is missing.
    """
    from tritonclient.utils import InferenceServerException

    problems = []
    for endpoint in endpoints:
        try:
            with contextlib.closing(GrpcAddress(url=endpoint, secrets=secrets).connect()) as client:
                return _find(client, endpoint, name, task)
        except InferenceServerException as error:
            problems.append(f"{endpoint}: {error.message()}")
    msg = f"no Triton server answers gRPC: {'; '.join(problems)}"
    raise BulkError(msg, hint="give the gRPC address of another, or start one", command=("serve",))


def _find(client: InferenceServerClient, endpoint: str, name: str | None, task: str) -> ServedModel:
    ready = list_ready(client, [name] if name else [], _ASK_TIMEOUT_S)
    if name and name not in ready:
        msg = f"the server at {endpoint} does not serve {name}; it serves {', '.join(ready) or 'no model'}"
        raise BulkError(msg, hint="name what it serves, or give another address", fields={"model": None})
    models = [_describe(client, one, task) for one in ([name] if name else ready)]
    found = [one for one in models if one is not None]
    if len(found) == 1:
        return found[0]
    if name:
        msg = f"{name}, which the server at {endpoint} serves, does not take encoded images for {task}"
        raise BulkError(msg, hint="name another model", fields={"model": None})
    names = ", ".join(one.name for one in found)
    msg = f"the server at {endpoint} says of {len(found)} models that they are for {task}" + (names and f": {names}")
    raise BulkError(msg, hint="name one", fields={"model": found[0].name if found else None})


def _describe(client: InferenceServerClient, name: str, task: str) -> ServedModel | None:
    """Return a model that takes encoded images for this task, else None."""
    metadata = client.get_model_metadata(name, client_timeout=_ASK_TIMEOUT_S)
    outputs = find_task(task).find_answers({one.name: one.datatype for one in metadata.outputs})
    if not outputs or [one.datatype for one in metadata.inputs] != ["BYTES"]:
        return None
    config = _read_config(client, name)
    hidden = None if len(metadata.inputs[0].shape) > 1 else 0
    negative = config and config.parameters["negative_label"].string_value
    return ServedModel(
        name=name,
        version=max(metadata.versions, key=int, default=""),
        task=task,
        input=metadata.inputs[0].name,
        outputs=outputs,
        max_batch_size=config.max_batch_size if config else hidden,
        negative_label=negative or None,
    )


def _read_config(client: InferenceServerClient, name: str) -> Any:
    """Return a model's configuration, None where the server hides it."""
    from tritonclient.utils import InferenceServerException

    try:
        return client.get_model_config(name, client_timeout=_ASK_TIMEOUT_S).config
    except InferenceServerException as error:
        if is_restricted(error):
            return None
        raise


def make_endpoint_steps(
    endpoints: Sequence[str],
    model: ServedModel,
    *,
    top: int | None,
    in_flight: int,
    timeout_s: float,
    secrets: Path | None,
    workers: int,
) -> list[Callable[[], Step]]:
    """Return what makes the step of each process; together they have `in_flight` requests."""
    make = functools.partial(EndpointStep, endpoints, model, top=top, timeout_s=timeout_s, secrets=secrets)
    shares = [in_flight // workers + (number < in_flight % workers) for number in range(workers)]
    return [functools.partial(make, calls_at_once=share) for share in shares if share]


class EndpointStep:
    """Asks servers, one request for each call.

    A request waits while a server restarts, and is repeated where the server did not take it; `channel` says how. Its
    version of the model is that of the beginning, so all rows are of one.

    Args:
        endpoints: `host:port` of each server's gRPC, asked in turn.
        model: What they serve.
        top: How many classes, or boxes, an image has at most; None: all.
        calls_at_once: How many threads may call it.
        timeout_s: The longest wait for one answer.
        secrets: The folder of certificates, None without TLS.

    Raises:
        BulkError: A host is not known.
        ServerError: A file of the folder is missing.
    """

    most_bytes = _REQUEST_BYTES

    def __init__(
        self,
        endpoints: Sequence[str],
        model: ServedModel,
        *,
        top: int | None = None,
        calls_at_once: int = 1,
        timeout_s: float = 120.0,
        secrets: Path | None = None,
    ) -> None:
        self.calls_at_once = calls_at_once
        self._endpoints, self._model, self._top, self._timeout_s = endpoints, model, top, timeout_s
        self._task = find_task(model.task)
        self._most_images = model.most_images
        try:
            target, options = describe_channel(endpoints)
        except OSError as error:
            raise BulkError(str(error), hint="check the address", fields={"endpoint": None}) from error
        self._client = GrpcAddress(url=target, secrets=secrets, options=tuple(options)).connect()

    def __call__(self, batch: Batch) -> Batch:
        """Return the answers to a batch; see Step.

        Raises:
            BulkError: The servers do not answer, or refuse for another reason than an image.
        """
        if IMAGE not in batch:
            batch = read_images(batch, most_bytes=self.most_bytes)
        answers: list[Any] = list(batch[ERROR])
        for places in self._split([place for place, error in enumerate(answers) if error is None], batch[IMAGE]):
            for place, answer in zip(places, self._ask([batch[IMAGE][place] for place in places]), strict=True):
                answers[place] = answer
        others = {name: column for name, column in batch.items() if name not in (IMAGE, ERROR)}
        rows = [None if isinstance(answer, str) else answer for answer in answers]
        errors = [answer if isinstance(answer, str) else None for answer in answers]
        return {**others, ANSWERS[self._model.task]: as_column(rows), ERROR: as_column(errors)}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _split(self, places: Sequence[int], images: NDArray[Any]) -> Iterator[list[int]]:
        """Yield the places of the images of each request."""
        most = self._most_images or len(places)
        request: list[int] = []
        size = 0
        for place in places:
            if request and (len(request) == most or size + len(images[place]) > _REQUEST_BYTES):
                yield request
                request, size = [], 0
            request.append(place)
            size += len(images[place])
        if request:
            yield request

    def _ask(self, images: Sequence[bytes]) -> list[list[dict[str, Any]] | str]:
        """Return each image's answer, or why there is none.

        Where all are refused, each is asked for alone, or as many as the server says that it takes.
        """
        from tritonclient.utils import InferenceServerException

        try:
            outputs = self._infer(images)
        except InferenceServerException as error:
            if error.status() != "StatusCode.INVALID_ARGUMENT":
                raise self._explain(error) from error
            if len(images) == 1:
                return [_AT_PLACE.sub("", error.message())]
            size = 1
            if limit := _LIMIT.search(error.message()):
                size = self._most_images = max(min(int(limit[1]), len(images) - 1), 1)
            parts = (images[start : start + size] for start in range(0, len(images), size))
            return [answer for part in parts for answer in self._ask(part)]
        return [self._read({name: rows[number] for name, rows in outputs.items()}) for number in range(len(images))]

    def _read(self, outputs: dict[str, NDArray[Any]]) -> list[dict[str, Any]] | str:
        try:
            return self._task.read_answer(outputs, self._model.negative_label, self._top)
        except ValueError as error:
            return str(error)

    def _infer(self, images: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        model = self._model
        rows = as_bytes(images)
        if model.max_batch_size == 0:
            rows = rows[0]
        tensor = InferInput(model.input, list(rows.shape), "BYTES")
        tensor.set_data_from_numpy(rows)
        ranked = self._top or _ALL_CLASSES
        wanted = [InferRequestedOutput(name, class_count=ranked * ranks) for name, ranks in model.outputs.items()]
        answer = self._client.infer(
            model.name, [tensor], model_version=model.version, outputs=wanted, client_timeout=self._timeout_s
        )
        outputs = {name: answer.as_numpy(name) for name in model.outputs}
        return {name: values[None] for name, values in outputs.items()} if model.max_batch_size == 0 else outputs

    def _explain(self, error: InferenceServerException) -> BulkError:
        everybody = ", ".join(self._endpoints)
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            if any(map(is_reachable, self._endpoints)):
                msg = f"no answer from {everybody} within {self._timeout_s:g} s"
                return BulkError(msg, hint="send fewer requests at once, or wait longer", fields={"timeout": None})
            msg = f"no server can be reached any more at {everybody}, {self._timeout_s:g} s after the request"
            return BulkError(msg, hint="start one, then run the same command again: it goes on behind what is finished")
        return BulkError(
            f"{self._model.name} at {everybody} does not answer: {error.message()}", hint="look at its log"
        )
