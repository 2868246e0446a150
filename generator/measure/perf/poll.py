"""A server asked the same question from time to time while something else measures."""

from __future__ import annotations

import contextlib
import http.client
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")
TIMEOUT_S = 2.0
INTERVAL_S = 0.25


class Poll(Generic[_T]):
    """Answers in the order of asking: `samples`; `problem` is the reason of the last one that failed."""

    def __init__(self, ask: Callable[[], _T], *, errors: tuple[type[Exception], ...], interval_s: float) -> None:
        """Call `ask` every `interval_s`; `errors` are what it raises when the server does not answer."""
        self.samples: list[_T] = []
        self.problem = ""
        self._ask = ask
        self._errors = errors
        self._interval_s = interval_s
        self._stop = threading.Event()

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Ask in a thread for as long as the block runs."""
        thread = threading.Thread(target=self._repeat, name="poll", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _repeat(self) -> None:
        while True:
            try:
                self.samples.append(self._ask())
            except self._errors as error:
                self.problem = f"cannot be read: {error}"
            if self._stop.wait(self._interval_s):
                return


def get_text(url: str, path: str) -> str:
    """Return what `http://<url><path>` answers.

    Raises:
        OSError: Nobody answers; http.client.HTTPException: no HTTP; ValueError: another status than 200, or no UTF-8.
    """
    connection = http.client.HTTPConnection(url, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode("utf-8")
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ValueError(f"HTTP {response.status}")
    return text
