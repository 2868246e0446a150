"""Encoded images in, labelled classes or boxes out: everything in these clients that knows about Triton.

    with Connection("grpc", "localhost:8001") as server:
        model = server.find_model()
        for scores in server.classify(model, [Path("img.jpg").read_bytes()]):
            print(scores[0].label, scores[0].score)
        model = server.find_model(task="detection")
        for detections in server.detect(model, [Path("img.jpg").read_bytes()]):
            print(*(f"{one.label} {one.score:.2f} {one.box}" for one in detections))

Needs only `pip install numpy 'tritonclient[all]'`; copy this file wherever it is useful.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import math
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_T = TypeVar("_T")

PROBE_TIMEOUT_S = 2.0
# What a detector answers, and perhaps LABELS; it is told from a classifier by them.
_DETECTION_OUTPUTS = ("NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES")
# What preprocessing makes of an image. A fused model, which does everything by itself, can tell it, too.
_PREPROCESSED = {"PIXELS", "GEOMETRY"}
# What Triton says where a queue is full, or a request has waited in one for too long (UNAVAILABLE, 503).
_BUSY = ("Exceeds maximum queue size", "Request timeout expired")
# An answer with one of these speaks about the request, so a smaller request may succeed. gRPC's names, HTTP's numbers.
_REFUSALS = {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL", "StatusCode.UNKNOWN", "400", "413", "500"}
# The largest request to a model whose limit is hidden; a lower limit is learned from the server's refusal.
_HIDDEN_BATCH_SIZE = 32
_SILENCE = {"StatusCode.UNAVAILABLE", "503"}
_TLS_HINT = "check --ca, and --certificate and --key, which the server may ask for"
_LIMIT = re.compile(r"batch-size must be <= (\d+)")
_ADDRESS = re.compile(r"[^/\s]+:(\d{1,5})(/.*)?")  # a proxy may have the server below a path


class ClientError(Exception):
    """What was found; `hint` is the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class RefusedError(ClientError):
    """The server works, but this request has no answer: one of its images is bad, or a score of it is not a number."""


class BusyError(ClientError):
    """The server works, but too many requests wait for it: the same request may be sent again."""


class HiddenError(ClientError):
    """The server does not answer this question to everybody; Triton's word for it is `restricted`."""


class _Task(NamedTuple):
    """What a model is for, in the words of the messages."""

    does: str
    infinitive: str
    makes: str
    client: str


TASKS = {
    "classification": _Task("classifies images", "classify images", "scores (FP32)", "classify.py"),
    "detection": _Task("detects objects", "detect objects", "boxes (FP32), scores and classes", "detect.py"),
}


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
class Detection:
    """One object of an image: `index` is its class, `box` left, top, right and bottom in pixels of the image.

    The image is the one that the server decoded: turned upright only where `Model.applies_exif`.
    """

    label: str | None
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Model:
    """A served model that takes encoded images; `max_batch_size` is 0 for one that takes them one by one, unbatched.

    `task` is one of TASKS. `outputs` are the scores of a classifier, or what a detector answers. What follows is read
    from configurations, and has its default where the server hides them. `members` are an ensemble's models in their
    order. `negative_label` is what an image is whose one probability, that of the labelled class, is below 0.5.
    `threshold` is the score below which a detector answers no box.
    """

    name: str
    task: str
    input: str
    outputs: tuple[str, ...]
    max_batch_size: int
    members: tuple[str, ...] = ()
    negative_label: str | None = None
    threshold: float | None = None
    applies_exif: bool = False


@dataclass(frozen=True)
class Work:
    """What a served model has done: how many requests it answered, and the seconds of all of them together."""

    requests: int
    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class Tls:
    """Files in PEM: who signed the server's certificate, by default anybody the system trusts, and the client's own."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def make_context(self) -> ssl.SSLContext:
        """Return what HTTPS needs."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def make_grpc_options(self) -> dict[str, Any]:
        """Return what Triton's gRPC clients, also that of asyncio, need."""
        files = {"root_certificates": self.ca, "certificate_chain": self.certificate, "private_key": self.key}
        return {"ssl": True, **files}

    def check(self) -> None:
        """Refuse files that cannot be read or do not belong together.

        Raises:
            ClientError: Naming them.
        """
        try:
            self.make_context()
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(filter(None, (self.ca, self.certificate, self.key)))
            hint = "give certificates and the certificate's own key, in PEM: --ca, --certificate, --key"
            raise ClientError(f"TLS cannot use {files}: {error.strerror or error}", hint) from None


class Connection(contextlib.AbstractContextManager["Connection"]):
    """A Triton server; gRPC and HTTP give the same answers and the same errors.

    Args:
        protocol: `grpc` or `http`.
        url: `host:port`, without a scheme.
        timeout_s: The longest wait for one answer.
        tls: What encryption needs; by default there is none. Triton's own HTTP has none, a proxy in front of it may.
        headers: Sent with every request, such as the one that opens restricted APIs.

    Attributes:
        headers: The same in the words of the protocol.

    Raises:
        ClientError: One of these is not valid.
    """

    def __init__(
        self,
        protocol: str,
        url: str,
        timeout_s: float = 60.0,
        *,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        _check_connection(protocol, url, headers or {})
        try:
            self._triton = importlib.import_module(f"tritonclient.{protocol}")
        except ImportError as error:
            hint = "pip install numpy 'tritonclient[all]'"
            raise ClientError(f"Triton's {protocol} client is not installed: {error}", hint) from None
        self._protocol, self._url, self._timeout_s = protocol, url, timeout_s
        self._connected = False
        self._tls, self._limits = tls, dict[str, int]()
        # In gRPC the header that opens restricted APIs has a prefix of Triton's.
        prefixes = ("", "triton-grpc-protocol-") if protocol == "grpc" else ("",)
        self.headers = {
            f"{prefix}{name.lower()}": text for name, text in (headers or {}).items() for prefix in prefixes
        }
        options: dict[str, Any] = {}
        if protocol == "http":
            options = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        if tls:
            tls.check()
            options |= {"ssl": True, "ssl_context_factory": tls.make_context}
            if protocol == "grpc":
                options = tls.make_grpc_options()
        self._client = self._triton.InferenceServerClient(url, **options)

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def find_model(self, name: str | None = None, task: str = "classification") -> Model:
        """Return the served model `name`, or the one ensemble or fused model for `task` when no name is given."""
        ready = self._list_ready(name)
        if name is None:
            name = self._choose_ensemble(ready, task)
        try:
            metadata = self._ask("get_model_metadata", name)
        except RefusedError as error:
            raise ClientError(str(error), "check --model, then the server's log") from None
        found = _find_task(metadata)
        if found != task:
            hint = f"ensembles that do: {', '.join(self._find_ensembles(ready, task)) or 'none'}"
            if found is not None:
                message = f"the model {name!r} {TASKS[found].does}, it does not {TASKS[task].infinitive}"
                raise ClientError(message, f"use {TASKS[found].client}; {hint}")
            takes, gives = (
                ", ".join(f"{tensor['datatype']} {tensor['name']}" for tensor in metadata[side])
                for side in ("inputs", "outputs")
            )
            wanted = f"{TASKS[task].makes} from encoded images (BYTES)"
            raise ClientError(f"the model {name!r} makes {gives} from {takes}, not {wanted}", hint)
        return self._describe(metadata, task)

    def list_models(self) -> list[Model]:
        """Return every ensemble and fused model that takes images, for whatever task."""
        known = self._read_ensembles(self._list_ready())
        return [self._describe(metadata, task) for metadata, task in known.values()]

    def classify(self, model: Model, images: Sequence[bytes], top: int = 5) -> list[list[Score]]:
        """Send one request and return the `top` best classes of every image.

        The server sorts and labels them (its classification extension), so that few bytes travel back and no label
        file is needed here.

        Raises:
            RefusedError: One of the images is bad, or a score of it is not a number. Nothing is known about the others.
        """
        return parse_classes(model, self._infer(model, images, class_count=top)) if images else []

    def detect(
        self, model: Model, images: Sequence[bytes], labels: Sequence[str] | None = None
    ) -> list[list[Detection]]:
        """Send one request and return the objects of every image, best first.

        Args:
            model: A detector.
            images: Encoded images.
            labels: The names of the classes, in place of those that the server answers.

        Raises:
            RefusedError: One of the images is bad, or a box of it is not a number. Nothing is known about the others.
            ClientError: A class of the answer is not among `labels`.
        """
        return parse_detections(model, self._infer(model, images), labels) if images else []

    def classify_each(self, model: Model, images: Sequence[bytes], top: int = 5) -> list[list[Score] | RefusedError]:
        """Like `classify`, but one bad image costs only its own answer: a refused request is halved and sent again."""
        return _ask_each(lambda some: self.classify(model, some, top), images)

    def detect_each(
        self, model: Model, images: Sequence[bytes], labels: Sequence[str] | None = None
    ) -> list[list[Detection] | RefusedError]:
        """Like `detect`, but one bad image costs only its own answer."""
        return _ask_each(lambda some: self.detect(model, some, labels), images)

    def read_work(self, name: str) -> Work:
        """Return what a model has done since it was loaded, its versions together."""
        of_versions = self._ask("get_inference_statistics", name).get("model_stats", [])
        statistics = [one.get("inference_stats", {}) for one in of_versions]

        def add(part: str, field: str) -> int:
            return sum(int(one.get(part, {}).get(field, 0)) for one in statistics)

        compute_ns = sum(add(part, "ns") for part in ("compute_input", "compute_infer", "compute_output"))
        return Work(add("success", "count"), add("queue", "ns") / 1e9, compute_ns / 1e9)

    def _infer(self, model: Model, images: Sequence[bytes], class_count: int = 0) -> list[NDArray[Any]]:
        """Return the model's outputs, each with the images as its first axis."""
        import numpy as np

        size = self._limits.get(model.name, max(len(images), 1))
        try:
            parts = [self._ask_for(model, images[at : at + size], class_count) for at in range(0, len(images), size)]
        except RefusedError as error:
            limit = read_limit(error) or 0
            if not 0 < limit < size:
                raise
            self._limits[model.name] = limit
            return self._infer(model, images, class_count)
        return [np.concatenate(one) for one in zip(*parts, strict=True)]

    def _ask_for(self, model: Model, images: Sequence[bytes], class_count: int) -> list[NDArray[Any]]:
        """Send one request."""
        request = make_request(self._triton, model, images, class_count)
        limit = {"client_timeout": self._timeout_s} if self._protocol == "grpc" else {}
        with self._explained():
            answer = self._client.infer(**request, headers=self.headers, **limit)
        return read_outputs(model, answer)

    def _list_ready(self, name: str | None = None) -> list[str]:
        """Return the models that are ready, or raise where `name` is not; none where the server lists nothing."""
        try:
            index = self._ask("get_model_repository_index")
        except HiddenError as error:
            self._connected = True
            if name is None:
                raise ClientError(f"the server at {self._url} does not list its models", "give --model NAME") from error
            return []
        entries = index.get("models", []) if isinstance(index, dict) else index
        ready = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})
        self._connected = True
        if name is not None and name not in ready:
            why = "; ".join(entry.get("reason") or "it is not loaded" for entry in entries if entry["name"] == name)
            raise ClientError(
                f"the model {name!r} is not ready at {self._url}: {why or 'there is none of this name'}",
                f"ready models: {', '.join(ready) or 'none'}",
            )
        return ready

    def _choose_ensemble(self, ready: list[str], task: str) -> str:
        known = self._read_ensembles(ready)
        found = [name for name, (_, its_task) in known.items() if its_task == task]
        if len(found) == 1:
            return found[0]
        if found:
            message = f"{self._url} serves {len(found)} ensembles that {TASKS[task].infinitive}: {', '.join(found)}"
            raise ClientError(message, f"choose one: --model {found[0]}")
        message = f"{self._url} serves no ensemble that {TASKS[task].does}; ready models: {', '.join(ready) or 'none'}"
        for name, (_, other) in known.items():
            raise ClientError(message, f"{name} {TASKS[other].does}: use {TASKS[other].client}")
        raise ClientError(message, "serve a model repository that has one, such as trtgen makes")

    def _find_ensembles(self, ready: list[str], task: str) -> list[str]:
        return [name for name, (_, its_task) in self._read_ensembles(ready).items() if its_task == task]

    def _read_ensembles(self, ready: list[str]) -> dict[str, tuple[dict[str, Any], str]]:
        """Return the metadata and the task of each ensemble and fused model that takes images."""
        known = {name: self._ask("get_model_metadata", name) for name in ready}
        return {
            name: (it, task)
            for name, it in known.items()
            if (task := _find_task(it)) is not None and (it.get("platform") == "ensemble" or _is_fused(it))
        }

    def _describe(self, metadata: dict[str, Any], task: str) -> Model:
        """Return the model with what its configuration and those of its members say."""
        name, (image,) = metadata["name"], metadata["inputs"]
        types = {tensor["name"]: tensor["datatype"] for tensor in metadata["outputs"]}
        if task == "detection":
            outputs = (*_DETECTION_OUTPUTS, *(one for one in ("LABELS",) if types.get(one) == "BYTES"))
        else:
            outputs = tuple(_find_scores(types))
        config = self._read_config(name)
        members = tuple(step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", []))
        limit = config.get("max_batch_size", 0) if config else _HIDDEN_BATCH_SIZE * (len(image["shape"]) > 1)
        if task == "classification":
            negative = _parameter(config, "negative_label")
            return Model(name, task, image["name"], outputs, limit, members, negative_label=negative)
        configs = [config, *(self._read_config(member) for member in members)]
        exif = any(_parameter(one, "exif") == "apply" for one in configs)
        thresholds = [one for config in configs for one in _read_thresholds(config)]
        threshold = min(thresholds, default=None)
        return Model(name, task, image["name"], outputs, limit, members, threshold=threshold, applies_exif=exif)

    def _read_config(self, name: str) -> dict[str, Any]:
        """Return a model's configuration; empty where the server hides it."""
        try:
            config: dict[str, Any] = self._ask("get_model_config", name)
        except HiddenError:
            return {}
        return config.get("config", config)  # type: ignore[no-any-return]

    def _ask(self, question: str, *arguments: str) -> Any:
        options = {"as_json": True, "client_timeout": self._timeout_s} if self._protocol == "grpc" else {}
        with self._explained():
            return getattr(self._client, question)(*arguments, headers=self.headers, **options)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            raise self.explain(error.status() or "", error.message()) from None
        except TimeoutError as error:
            raise self.explain("StatusCode.DEADLINE_EXCEEDED", str(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.explain("StatusCode.UNAVAILABLE", str(error) or type(error).__name__) from None

    def explain(self, status: str, message: str) -> ClientError:
        """Return what a failed request says, in plain words; asks the server again where it does not answer.

        Args:
            status: gRPC's name with `StatusCode.` before it, or HTTP's number.
            message: What came with it.
        """
        hidden = status in {"403", "StatusCode.PERMISSION_DENIED"}  # a proxy's word for it
        if hidden or ("restricted" in message and "expecting header" in message):
            return HiddenError(f"the server at {self._url} refuses: {message}", "ask whoever runs it")
        if self._connected and status in _REFUSALS:
            return RefusedError(message, "look at the image, then at the server's log")
        if status == "StatusCode.DEADLINE_EXCEEDED":
            found = f"no answer from {self._url} within {self._timeout_s:g} s"
            return ClientError(found, "raise --timeout or lower --batch-size; the server's log shows if it is busy")
        if not self._connected and (error := self._explain_tls(status, message)):
            return error
        if status in _SILENCE:
            return self._explain_silence(message)
        if self._connected:
            found, hint = f"the server at {self._url} refuses: {message}", "look at its log"
        else:
            found = f"{self._url} does not answer as Triton's inference API: {message}"
            hint = "Triton's own ports are 8000 (HTTP), 8001 (gRPC) and 8002 (metrics): check --url"
        return ClientError(found, _TLS_HINT if self._tls and not self._connected else hint)

    def _explain_tls(self, status: str, message: str) -> ClientError | None:
        """Return the error where one of the two sides wants TLS and does not get it."""
        if (self._tls and status not in _SILENCE) or not _answers_tls(self._url):
            return None
        if self._tls:
            return ClientError(f"no TLS connection to {self._url}: {message}", _TLS_HINT)
        return ClientError(f"{self._url} takes encrypted connections only", f"add --tls; {_TLS_HINT}")

    def _explain_silence(self, message: str) -> ClientError:
        if any(words in message for words in _BUSY):
            return BusyError(f"the server at {self._url} is busy: {message}", "send the same request again in a moment")
        try:
            spoken = _detect_protocol(self._url)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name such as a..b
            why = getattr(error, "strerror", None) or str(error)
            if self._connected:
                found = f"the server at {self._url} went away: {why}"
                return ClientError(found, "look at its log, start it again and repeat the command")
            found = f"no server can be reached at {self._url}: {why}"
            return ClientError(found, "start one (trtgen serve, or docker compose up), or give its address with --url")
        if spoken == "neither" and not self._tls and _answers_tls(self._url):
            hint = (
                "add --tls, with --ca for a certificate of its own making; --certificate and --key if it asks for one"
            )
            return ClientError(f"{self._url} takes encrypted connections only", hint)
        if spoken != self._protocol and not self._connected:
            found = f"{self._url} speaks {spoken}, not {self._protocol}"
            return ClientError(found, f"add --protocol {spoken}, or give --url the server's {self._protocol} port")
        return ClientError(f"the server at {self._url} cannot answer now: {message}", "look at its log and try again")


def make_request(triton: Any, model: Model, images: Sequence[bytes], class_count: int) -> dict[str, Any]:
    """Return the arguments of `infer`, the headers apart; `triton` is one of Triton's client modules."""
    import numpy as np

    shape = [len(images), 1] if model.max_batch_size else [1]
    tensor = triton.InferInput(model.input, shape, "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(shape))
    wanted = [triton.InferRequestedOutput(name, class_count=class_count) for name in model.outputs]
    return {"model_name": model.name, "inputs": [tensor], "outputs": wanted}


def read_outputs(model: Model, answer: Any) -> list[NDArray[Any]]:
    """Return the model's outputs in an answer of Triton's client, each with the images as its first axis."""
    import numpy as np

    outputs = [answer.as_numpy(name) for name in model.outputs]
    return outputs if model.max_batch_size else [values[np.newaxis] for values in outputs]


def parse_classes(model: Model, outputs: Sequence[NDArray[Any]]) -> list[list[Score]]:
    """Return the classes of each image, as the server ranked them."""
    (rows,) = outputs
    return [[_parse_class(cell, model.negative_label) for cell in row] for row in rows]


def parse_detections(
    model: Model, outputs: Sequence[NDArray[Any]], labels: Sequence[str] | None = None
) -> list[list[Detection]]:
    """Return the objects of each image, best first; `labels` are as in `Connection.detect`."""
    tensors = dict(zip(model.outputs, outputs, strict=True))
    return [_parse_boxes(tensors, image, labels) for image in range(len(outputs[0]))]


def read_limit(error: RefusedError) -> int | None:
    """Return how many images a request may have, where that is why it was refused."""
    limit = _LIMIT.search(str(error))
    return int(limit[1]) if limit else None


def _find_task(metadata: dict[str, Any]) -> str | None:
    """Say what a model does with encoded images, or None. What answers pixels is a part of another model."""
    inputs, outputs = metadata.get("inputs", []), metadata.get("outputs", [])
    if len(inputs) != 1 or inputs[0]["datatype"] != "BYTES":
        return None
    types = {tensor["name"]: tensor["datatype"] for tensor in outputs}
    if types.keys() >= {*_DETECTION_OUTPUTS}:
        return "detection"
    others = {datatype for name, datatype in types.items() if name not in _PREPROCESSED}
    return "classification" if len(_find_scores(types)) == 1 and "UINT8" not in others else None


def _find_scores(types: dict[str, str]) -> list[str]:
    """Return the outputs that may be a classifier's scores."""
    return [name for name, datatype in types.items() if datatype in {"FP32", "FP64"} and name not in _PREPROCESSED]


def _is_fused(metadata: dict[str, Any]) -> bool:
    """Say whether a model with a task also tells what it decoded: then it is no member of an ensemble."""
    return "PIXELS" in {tensor["name"] for tensor in metadata["outputs"]}


def _parameter(config: dict[str, Any], name: str) -> str | None:
    value: str | None = config.get("parameters", {}).get(name, {}).get("string_value")
    return value


def _read_thresholds(config: dict[str, Any]) -> list[float]:
    """Return the score, and those of single classes, below which this model drops boxes; none if it drops none."""
    score = _parameter(config, "score")
    return [] if score is None else [float(score), *json.loads(_parameter(config, "class_scores") or "{}").values()]


def is_address(url: str) -> bool:
    """Tell whether this is `host:port`, without a scheme, which Triton's clients would misread."""
    match = _ADDRESS.fullmatch(url)
    return match is not None and 0 < int(match[1]) < 2**16


def _check_connection(protocol: str, url: str, headers: Mapping[str, str]) -> None:
    if protocol not in ("grpc", "http"):
        raise ClientError(f"{protocol!r} is not a protocol of Triton's", "give grpc or http")
    if not is_address(url):
        raise ClientError(f"{url!r} is not a valid address", "give host:port, without a scheme")
    for name, text in headers.items():
        if not (name + text).isascii() or not (name + text).isprintable():
            raise ClientError(f"the header {name!r} is not printable ASCII, as headers are", "encode its value")


def _ask_each(ask: Callable[[Sequence[bytes]], list[_T]], images: Sequence[bytes]) -> list[_T | RefusedError]:
    """Ask for all images, and again for each half where the request is refused."""
    try:
        return list(ask(images))
    except RefusedError as error:
        if len(images) == 1:
            return [error]
    half = len(images) // 2
    return _ask_each(ask, images[:half]) + _ask_each(ask, images[half:])


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


def _parse_boxes(tensors: dict[str, NDArray[Any]], image: int, names: Sequence[str] | None) -> list[Detection]:
    """Return the rows of one image that count; `names` are the classes', else the answer's own labels."""
    count = int(tensors["NUM_DETECTIONS"][image].reshape(-1)[0])
    boxes, scores, classes = (tensors[name][image][:count].tolist() for name in ("BOXES", "SCORES", "CLASSES"))
    labels: list[str | None] = [None] * len(classes)
    if names is not None:
        if beyond := [index for index in classes if not 0 <= index < len(names)]:
            message = f"the model answers class {beyond[0]}, and there are {len(names)} labels: 0 to {len(names) - 1}"
            raise ClientError(message, "give the labels of this model, one a line, in the order of its classes")
        labels = [names[index] for index in classes]
    elif "LABELS" in tensors:
        labels = [label.decode(errors="replace") or None for label in tensors["LABELS"][image][:count]]
    if not all(math.isfinite(value) for row in (*boxes, scores) for value in row):
        message = "the model answers a box or a score that is not a number"
        raise RefusedError(message, "look at the server's log, and verify the model (trtgen verify)")
    return [
        Detection(label, index, score, (left, top, right, bottom))
        for label, index, score, (left, top, right, bottom) in zip(labels, classes, scores, boxes, strict=True)
    ]


def _detect_protocol(url: str) -> str:
    """Ask in HTTP/1 and see who answers: a gRPC port begins with an HTTP/2 frame instead. OSError: nobody answers."""
    host, _, port = url.partition("/")[0].rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S) as probe:
        probe.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        answer = probe.recv(5)
    return {b"HTTP/": "http", b"": "neither"}.get(answer, "grpc")


def _answers_tls(url: str) -> bool:
    """Tell whether the server begins a TLS connection, whoever signed its certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = url.partition("/")[0].rpartition(":")
    with (
        contextlib.suppress(OSError, UnicodeError),
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S) as probe,
        context.wrap_socket(probe),
    ):
        return True
    return False
