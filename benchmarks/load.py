"""Questions for a served demo model whose right answers are known, and a load of them."""

from __future__ import annotations

import importlib
import io
import random
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING

import numpy as np

from generator.demo.draw import draw_set
from generator.graph.model import open_onnx
from generator.images.sets import photographs
from generator.images.training_pixels import make_pixels
from generator.repository import read_record
from generator.spec.recipe import Recipe
from generator.tasks.classification.compare import comparable, compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

SCORE_TOLERANCE = 1e-4  # what another order of sums, in a batch of another size, may change
_TIMEOUT_S = 60.0
# gRPC's name and HTTP's number for a request that is itself at fault.
_INVALID_ARG = ("StatusCode.INVALID_ARGUMENT", "400")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """One request's bytes and its right answer: the scores (classes,), or the words with which it is refused.

    Scores are compared by their largest difference, or by the gate's cosine where one is given: an FP16 plan has other
    kernels for other batch sizes.
    """

    name: str
    data: bytes
    scores: NDArray[np.float32] | None = None
    words: str = ""
    least_cosine: float | None = None

    def find_difference(self, scores: NDArray[np.float32]) -> str:
        """Say how far `scores` are from the right ones; nothing where they count as the same."""
        assert self.scores is not None
        if self.least_cosine is not None:
            cosine = likeness(self.scores[None], scores[None])
            return "" if cosine >= self.least_cosine else f"scores are off: cosine {cosine:.6f}"
        error_size = float(np.abs(scores - self.scores).max())
        return "" if error_size <= SCORE_TOLERANCE else f"scores are off by {error_size:.3g}"


def likeness(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Return the gate's cosine of the worst pair of rows of probabilities."""
    first, second = (comparable(scores, "softmax") for scores in (expected, actual))
    return compare(first, second).worst_cosine


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, between two moments of time.monotonic(); `problem` is empty for the right answer."""

    question: Question
    started: float
    ended: float
    problem: str = ""


@dataclass(slots=True)
class Tally:
    """Answers, counted: right scores, right refusals, and everything else in words."""

    right: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, answers: Iterable[Answer]) -> None:
        """Add these answers."""
        for answer in answers:
            if answer.problem:
                self.problems.append(f"{answer.question.name}: {answer.problem}")
            elif answer.question.scores is None:
                self.refused += 1
            else:
                self.right += 1


def make_questions(repository: Path, *, name: str = "demo", drawn: int = 200, seed: int = 4242) -> list[Question]:
    """Return drawn images of mixed sizes and the photographs, with the scores that each has alone.

    No server gives them: the pixels are made with torchvision's transforms, and the published graph runs here.
    """
    from PIL import Image

    record = read_record(repository, name)
    assert record is not None, f"{repository} holds no {name}"
    to_pixels = make_pixels(Recipe.model_validate(record.recipe))
    run = open_onnx(repository / f"{name}_classifier" / str(record.version) / "model.onnx")
    photos = photographs()
    files = [(image.name, image.jpeg) for image in draw_set(drawn, seed=seed)]
    files += zip(photos.names, photos.files, strict=True)
    pixels = (to_pixels(Image.open(io.BytesIO(data))) for _, data in files)
    return [
        Question(name=file[0], data=file[1], scores=next(iter(run(one[None]).values()))[0])
        for file, one in zip(files, pixels, strict=True)
    ]


def make_bad_questions(*, seed: int = 4242) -> list[Question]:
    """Return what is no image: garbage, nothing, text, and JPEGs that end too early."""
    rng = np.random.default_rng(seed)
    drawn = draw_set(4, seed=seed)
    unknown = "not an image in one of the formats"
    return [
        *(Question(name=f"garbage {size}", data=rng.bytes(size), words=unknown) for size in (10, 1000, 100_000)),
        *(
            Question(name=f"truncated {one.name}", data=one.jpeg[: len(one.jpeg) * share // 8], words="broken image")
            for one, share in zip(drawn, (2, 4, 6, 7), strict=True)
        ),
        Question(name="text", data=b"<html><body>404 Not Found</body></html>", words=unknown),
        Question(name="nothing", data=b"", words="no bytes"),
    ]


def mix(
    good: Sequence[Question], bad: Sequence[Question], count: int, *, bad_share: float, seed: int
) -> list[Question]:
    """Return `count` questions in a random order; the bad ones among them are the share, rounded."""
    rng = random.Random(seed)  # noqa: S311 - an order, no secret
    bad_count = round(count * bad_share)
    chosen = [bad[index % len(bad)] for index in range(bad_count)]
    chosen += [good[index % len(good)] for index in range(count - bad_count)]
    rng.shuffle(chosen)
    return chosen


class Client:
    """One connection to the ensemble `model`, over `grpc` or `http`."""

    def __init__(self, protocol: str, url: str, *, model: str = "demo", output: str = "PROBABILITIES") -> None:
        self._triton = importlib.import_module(f"tritonclient.{protocol}")
        self._model, self._output = model, output
        limits = {"connection_timeout": _TIMEOUT_S, "network_timeout": _TIMEOUT_S} if protocol == "http" else {}
        self._options = {} if protocol == "http" else {"client_timeout": _TIMEOUT_S}
        self._client = self._triton.InferenceServerClient(url, **limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def classify(self, data: bytes) -> NDArray[np.float32]:
        """Return the scores (classes,) of one image."""
        tensor = self._triton.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[data]], np.object_))
        scores: NDArray[np.float32] = self._client.infer(self._model, [tensor], **self._options).as_numpy(self._output)
        first: NDArray[np.float32] = scores[0]
        return first

    def ask(self, question: Question) -> Answer:
        """Send one request and judge its answer."""
        started = time.monotonic()
        problem = self._find_problem(question)
        return Answer(question=question, started=started, ended=time.monotonic(), problem=problem)

    def _find_problem(self, question: Question) -> str:
        from tritonclient.utils import InferenceServerException

        try:
            scores = self.classify(question.data)
        except InferenceServerException as error:
            status, words = str(error.status()), str(error.message())
            expected = question.scores is None and status in _INVALID_ARG and question.words in words
            return "" if expected else f"{status}: {words}"
        except (OSError, HTTPException) as error:  # HTTP only: gRPC's client has a status for it
            return f"{type(error).__name__}: {error}"
        if question.scores is None:
            return "answered, a refusal was expected"
        return question.find_difference(scores)


class Load:
    """Threads that ask, one question each at a time: so many questions are always under way.

        with Load("grpc", url, questions, concurrency=8) as load:
            ...
        load.answers

    `served` goes to `Client`. Leaving the context waits until all questions are answered, or, after `stop`, those under
    way. A client that fails otherwise than by an answer ends the load with its error: a load of which a part was never
    sent proves nothing.
    """

    def __init__(
        self, protocol: str, url: str, questions: Iterable[Question], *, concurrency: int, **served: str
    ) -> None:
        self.answers: list[Answer] = []
        self._questions = iter(questions)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._protocol, self._url, self._served = protocol, url, served
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(concurrency)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        for thread in self._threads:
            thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped.set()

    def _work(self) -> None:
        try:
            self._ask_on()
        except Exception as error:  # noqa: BLE001 - raised again by __exit__
            self._failure = error
            self.stop()

    def _ask_on(self) -> None:
        with Client(self._protocol, self._url, **self._served) as client:
            while not self._stopped.is_set():
                with self._lock:
                    question = next(self._questions, None)
                if question is None:
                    return
                answer = client.ask(question)
                self.answers.append(answer)
