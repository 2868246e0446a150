"""The encoded images of a batch, read from this machine or from object storage."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from generator.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Columns of equal length by their names: what Ray Data hands to a class, too.
Batch: TypeAlias = "dict[str, NDArray[Any]]"

PATH, IMAGE, ERROR = "path", "image", "error"
_READS_AT_ONCE = 16  # of objects, each of which takes tens of milliseconds to begin


class _Read(NamedTuple):
    data: bytes | None
    error: str | None = None


def read_images(batch: Batch, *, most_bytes: int) -> Batch:
    """Return the batch with the columns `image`, encoded bytes, and `error`, why there are none.

    Args:
        batch: Its column `path` has paths, or URLs of objects such as s3://bucket/cat.jpg.
        most_bytes: Larger files are not read.
    """
    paths = [str(path) for path in batch[PATH]]
    read = functools.partial(_read_one, most_bytes=most_bytes)
    found = list(_pool().map(read, paths) if any("://" in path for path in paths) else map(read, paths))
    return {**batch, IMAGE: as_column([one.data for one in found]), ERROR: as_column([one.error for one in found])}


def as_column(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return an array of these objects; numpy alone would make an axis of lists of equal length."""
    column = np.empty(len(values), np.object_)
    for place, value in enumerate(values):
        column[place] = value
    return column


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="read")


def _read_one(path: str, *, most_bytes: int) -> _Read:
    if "://" in path:
        return _read_object(path, most_bytes)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - a Path costs more than the call
            data = stream.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return _Read(None, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    return _check_size(data, most_bytes)


def _read_object(url: str, most_bytes: int) -> _Read:
    import obstore.exceptions

    base, _, key = url.partition("://")[2].partition("/")
    try:
        found = open_store(f"{url.partition('://')[0]}://{base}").get(key)
        if found.meta["size"] > most_bytes:
            return _Read(None, f"{found.meta['size']} bytes, at most {most_bytes} are accepted")
        return _Read(bytes(found.bytes()))
    except FileNotFoundError:
        return _Read(None, "cannot be read: no such object")
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        return _Read(None, f"cannot be read: {' '.join(str(error).split())}")


def _check_size(data: bytes, most_bytes: int) -> _Read:
    if len(data) > most_bytes:
        return _Read(None, f"more than {most_bytes} bytes, which is the most that is accepted")
    return _Read(data)


@functools.cache
def open_store(base: str) -> Any:
    """Return obstore's store of a bucket such as s3://bucket; it takes credentials from the environment.

    Raises:
        MissingDependencyError: obstore is not installed.
    """
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise MissingDependencyError("obstore", extra="storage", why="it reads object storage") from error
    return from_url(base)
