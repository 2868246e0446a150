"""Many files at the same time, and the parts of large ones, with a bound on the memory that they take."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, TypeVar

from generator.release.manifest import File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
PART_BYTES = 8 << 20  # what is read or sent at once
_FILES = 8  # at the same time
_PARTS = 16  # of large files at the same time: 128 MiB


def run_all(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Result]]:
    """Do `work` for each item in several threads; yield each item with its result as it is done.

    The first failure is raised, and what has not begun then is not done.
    """
    pool = ThreadPoolExecutor(_FILES)
    try:
        items_of = {pool.submit(work, item): item for item in items}
        for future in as_completed(items_of):
            yield items_of[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def share_parts(sizes: Sequence[int]) -> int:
    """Return how many parts of one file may be under way, given the sizes of all files that are."""
    large = sum(size > PART_BYTES for size in sizes)
    return max(2, _PARTS // max(1, min(large, _FILES)))


class Copier:
    """Copies files part by part and hashes what it copies: the next parts are read while one is hashed and written.

    Args:
        window: How many parts of one file are read ahead.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._pool = ThreadPoolExecutor(_PARTS)

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(cancel_futures=True)

    def copy(self, read: Callable[[int, int], memoryview], size_bytes: int, target: Path) -> File:
        """Write a file whose parts `read(start, stop)` returns; return the size and hash of what was written."""
        digest, written = hashlib.sha256(), 0
        with target.open("wb") as stream:
            for part in self._read_parts(read, size_bytes):
                hashed = self._pool.submit(digest.update, part)
                written += stream.write(part)
                hashed.result()
        return File(size_bytes=written, sha256=digest.hexdigest())

    def _read_parts(self, read: Callable[[int, int], memoryview], size_bytes: int) -> Iterator[memoryview]:
        if size_bytes <= PART_BYTES:
            if size_bytes:
                yield read(0, size_bytes)
            return
        ahead: deque[Future[memoryview]] = deque()
        for start in range(0, size_bytes, PART_BYTES):
            ahead.append(self._pool.submit(read, start, min(start + PART_BYTES, size_bytes)))
            if len(ahead) == self._window:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
