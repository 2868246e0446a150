"""Encoded images in, labelled classes out: everything in these clients that knows about Triton.

    with Connection("grpc", "localhost:8001") as server:
        model = server.find_model()
        for scores in server.classify(model, [Path("img.jpg").read_bytes()]):
            print(scores[0].label, scores[0].score)

Needs only `pip install numpy 'tritonclient[all]'`; copy this file wherever it is useful.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import math
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROBE_TIMEOUT_S = 2.0
# An answer with one of these speaks about the request, so a smaller request may succeed. gRPC's names, HTTP's numbers.
_REFUSALS = {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL", "StatusCode.UNKNOWN", "400", "500"}


class ClientError(Exception):
    """What was found; `hint` is the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class RefusedError(ClientError):
    """The server works, but this request has no answer: one of its images is bad, or a score of it is not a number."""


@dataclass(frozen=True)
class Score:
    """One class of an image: `index` is its place in the output, `score` the value there.

    A model that decides between two classes with one output names the class that holds; `index` is None for the
    one that has no output of its own.
    """

    label: str | None
    index: int | None
    score: float


@dataclass(frozen=True)
class Model:
    """A served model that takes encoded images; `max_batch_size` is 0 for one that takes them one by one, unbatched.

    `negative_label` is what an image is whose one probability, that of the labelled class, is below 0.5; the server
    says it in the model's `parameters`.
    """

    name: str
    input: str
    output: str
    max_batch_size: int
    negative_label: str | None = None


class Connection(contextlib.AbstractContextManager["Connection"]):
    """A Triton server; gRPC and HTTP give the same answers and the same errors.

    Args:
        protocol: `grpc` or `http`.
        url: `host:port`, without a scheme.
        timeout_s: The longest wait for one answer.
    """

    def __init__(self, protocol: str, url: str, timeout_s: float = 60.0) -> None:
        try:
            self._triton = importlib.import_module(f"tritonclient.{protocol}")
        except ImportError as error:
            hint = "pip install numpy 'tritonclient[all]'"
            raise ClientError(f"Triton's {protocol} client is not installed: {error}", hint) from None
        self._protocol, self._url, self._timeout_s = protocol, url, timeout_s
        self._connected = False
        limits = {"connection_timeout": timeout_s, "network_timeout": timeout_s} if protocol == "http" else {}
        self._client = self._triton.InferenceServerClient(url, **limits)

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def find_model(self, name: str | None = None) -> Model:
        """Return the served model `name`, or the one ensemble that takes images when no name is given."""
        index = self._ask("get_model_repository_index")
        entries = index.get("models", []) if isinstance(index, dict) else index
        ready = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})
        self._connected = True
        if name is None:
            name = self._choose_ensemble(ready)
        elif name not in ready:
            why = "; ".join(entry.get("reason") or "it is not loaded" for entry in entries if entry["name"] == name)
            raise ClientError(
                f"the model {name!r} is not ready at {self._url}: {why or 'there is none of this name'}",
                f"ready models: {', '.join(ready) or 'none'}",
            )
        metadata = self._ask("get_model_metadata", name)
        if not _takes_images(metadata):
            takes, gives = (
                ", ".join(f"{tensor['datatype']} {tensor['name']}" for tensor in metadata[side])
                for side in ("inputs", "outputs")
            )
            message = f"the model {name!r} makes {gives} from {takes}, not scores (FP32) from encoded images (BYTES)"
            raise ClientError(message, f"ensembles that do: {', '.join(self._find_ensembles(ready)) or 'none'}")
        config = self._ask("get_model_config", name)
        config = config.get("config", config)
        output = next(tensor["name"] for tensor in metadata["outputs"] if tensor["datatype"].startswith("FP"))
        negative = config.get("parameters", {}).get("negative_label", {}).get("string_value")
        return Model(name, metadata["inputs"][0]["name"], output, config.get("max_batch_size", 0), negative)

    def classify(self, model: Model, images: Sequence[bytes], top: int = 5) -> list[list[Score]]:
        """Send one request and return the `top` best classes of every image.

        The server sorts and labels them (its classification extension), so that few bytes travel back and no label
        file is needed here.

        Raises:
            RefusedError: One of the images is bad, or a score of it is not a number. Nothing is known about the others.
        """
        import numpy as np

        shape = [len(images), 1] if model.max_batch_size else [1]
        tensor = self._triton.InferInput(model.input, shape, "BYTES")
        tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(shape))
        wanted = self._triton.InferRequestedOutput(model.output, class_count=top)
        limit = {"client_timeout": self._timeout_s} if self._protocol == "grpc" else {}
        with self._explained():
            answer = self._client.infer(model.name, [tensor], outputs=[wanted], **limit)
        rows = answer.as_numpy(model.output).reshape(len(images), -1)
        return [[_parse_class(cell, model.negative_label) for cell in row] for row in rows]

    def classify_each(self, model: Model, images: Sequence[bytes], top: int = 5) -> list[list[Score] | RefusedError]:
        """Like `classify`, but one bad image costs only its own answer: a refused request is halved and sent again."""
        try:
            return list(self.classify(model, images, top))
        except RefusedError as error:
            if len(images) == 1:
                return [error]
        half = len(images) // 2
        return self.classify_each(model, images[:half], top) + self.classify_each(model, images[half:], top)

    def _choose_ensemble(self, ready: list[str]) -> str:
        found = self._find_ensembles(ready)
        if len(found) == 1:
            return found[0]
        if found:
            message = f"{self._url} serves {len(found)} ensembles that classify images: {', '.join(found)}"
            raise ClientError(message, f"choose one: --model {found[0]}")
        message = f"{self._url} serves no ensemble that classifies images; ready models: {', '.join(ready) or 'none'}"
        raise ClientError(message, "serve a model repository that has one, such as trtgen makes")

    def _find_ensembles(self, ready: list[str]) -> list[str]:
        known = {name: self._ask("get_model_metadata", name) for name in ready}
        return [name for name, it in known.items() if it.get("platform") == "ensemble" and _takes_images(it)]

    def _ask(self, question: str, *arguments: str) -> Any:
        options = {"as_json": True, "client_timeout": self._timeout_s} if self._protocol == "grpc" else {}
        with self._explained():
            return getattr(self._client, question)(*arguments, **options)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            raise self._explain(error.status() or "", error.message()) from None
        except TimeoutError as error:
            raise self._explain("StatusCode.DEADLINE_EXCEEDED", str(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._explain("StatusCode.UNAVAILABLE", str(error) or type(error).__name__) from None

    def _explain(self, status: str, message: str) -> ClientError:
        if self._connected and status in _REFUSALS:
            return RefusedError(message, "look at the image, then at the server's log")
        if status == "StatusCode.DEADLINE_EXCEEDED":
            found = f"no answer from {self._url} within {self._timeout_s:g} s"
            return ClientError(found, "raise --timeout or lower --batch-size; the server's log shows if it is busy")
        if status in {"StatusCode.UNAVAILABLE", "503"}:
            return self._explain_silence(message)
        if self._connected:
            return ClientError(f"the server at {self._url} refuses: {message}", "look at its log")
        found = f"{self._url} does not answer as Triton's inference API: {message}"
        return ClientError(found, "Triton's own ports are 8000 (HTTP), 8001 (gRPC) and 8002 (metrics): check --url")

    def _explain_silence(self, message: str) -> ClientError:
        try:
            spoken = _detect_protocol(self._url)
        except OSError as error:
            why = error.strerror or str(error)
            if self._connected:
                found = f"the server at {self._url} went away: {why}"
                return ClientError(found, "look at its log, start it again and repeat the command")
            found = f"no server can be reached at {self._url}: {why}"
            return ClientError(found, "start one (trtgen serve, or docker compose up), or give its address with --url")
        if spoken != self._protocol and not self._connected:
            found = f"{self._url} speaks {spoken}, not {self._protocol}"
            return ClientError(found, f"add --protocol {spoken}, or give --url the server's {self._protocol} port")
        return ClientError(f"the server at {self._url} cannot answer now: {message}", "look at its log and try again")


def _takes_images(metadata: dict[str, Any]) -> bool:
    inputs, outputs = metadata.get("inputs", []), metadata.get("outputs", [])
    scores = [tensor for tensor in outputs if tensor["datatype"] in {"FP32", "FP64"}]
    return len(inputs) == 1 and inputs[0]["datatype"] == "BYTES" and len(scores) == 1


def _parse_class(cell: bytes, negative_label: str | None) -> Score:
    number, index, *label = cell.decode(errors="replace").split(":", 2)
    score = Score(label[0] if label else None, int(index), float(number))
    if not math.isfinite(score.score):
        message = f"the model's score of {score.label or f'class {index}'} is {score.score}, a number was expected"
        hint = "trtgen verify compares the model with its source; in FP16 values overflow that FP32 can hold"
        raise RefusedError(message, hint)
    if negative_label is not None and 0 <= score.score < 0.5:
        return Score(negative_label, None, round(1 - score.score, 6))  # the server rounds to six decimals
    return score


def _detect_protocol(url: str) -> str:
    """Ask in HTTP/1 and see who answers: a gRPC port begins with an HTTP/2 frame instead. OSError: nobody answers."""
    host, _, port = url.partition("/")[0].rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S) as probe:
        probe.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        answer = probe.recv(5)
    return {b"HTTP/": "http", b"": "neither"}.get(answer, "grpc")
