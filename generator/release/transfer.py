"""Many files at the same time, and a file in parts, with a bound on the memory that they take."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, TypeVar

from generator.release.manifest import File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
FILES = 8  # at the same time
PARTS = 8  # of large files at the same time, but at least two of each: 256 MiB with eight large files
PART_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20  # what is read from a disk at once


def run_all(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Result]]:
    """Do `work` for each item in several threads; yield each item with its result as it is done.

    The first failure is raised, and what has not begun then is not done.
    """
    pool = ThreadPoolExecutor(FILES)
    try:
        items_of = {pool.submit(work, item): item for item in items}
        for future in as_completed(items_of):
            yield items_of[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def share_parts(sizes: Sequence[int]) -> int:
    """Return how many parts of one file may be under way at the same time, given the sizes of all files that are."""
    large = sum(size > PART_BYTES for size in sizes)
    return max(2, PARTS // max(large, 1))


def read_blocks(path: Path) -> Iterator[memoryview]:
    """Yield the blocks of a file, each in the memory of the one before the last."""
    with path.open("rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size <= _BLOCK_BYTES:
            yield memoryview(stream.readall())
            return
        block, other = memoryview(bytearray(_BLOCK_BYTES)), memoryview(bytearray(_BLOCK_BYTES))
        while count := stream.readinto(block):
            yield block[:count]
            block, other = other, block


class Saver:
    """Writes files and hashes them on the way: each block while it is written and the next one is read."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(FILES)

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()

    def save(self, blocks: Iterable[memoryview], target: Path) -> File:
        """Write a file; return the size and hash of what was written."""
        digest, size_bytes = hashlib.sha256(), 0
        hashing: Future[None] | None = None
        with target.open("wb") as stream:
            for block in blocks:
                if hashing:
                    hashing.result()
                if len(block) < _BLOCK_BYTES:  # to hand it over would take longer
                    hashing = None
                    digest.update(block)
                else:
                    hashing = self._pool.submit(digest.update, block)
                stream.write(block)
                size_bytes += len(block)
            if hashing:
                hashing.result()
        return File(size_bytes=size_bytes, sha256=digest.hexdigest())
