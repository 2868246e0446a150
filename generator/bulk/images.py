"""The encoded images of a batch, read from this machine or from object storage."""

from __future__ import annotations

import functools
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from generator.buckets import explain_refusal, find_code, import_obstore, is_about_bucket, open_bucket
from generator.errors import BulkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Columns of equal length by their names: what Ray Data hands to a class, too.
Batch: TypeAlias = "dict[str, NDArray[Any]]"

_TOO_LARGE = "more than {} bytes, which is the most that is accepted"
SCHEMES = ("s3", "gs", "az")  # of buckets, which list their objects by name
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

    Raises:
        BulkError: A bucket cannot be used, so that no object of it can be read.
        MissingDependencyError: A path is a URL, and obstore is not installed.
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
    if not path:
        return _Read(None, "the row has no path")
    if "://" in path:
        return _read_object(path, most_bytes)
    try:
        # not to wait for the other end of a pipe; a Path costs more than the call
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                return _Read(None, "cannot be read: not a regular file")
            if state.st_size > most_bytes:
                return _Read(None, _TOO_LARGE.format(most_bytes))
            return _Read(stream.read())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return _Read(None, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _read_object(url: str, most_bytes: int) -> _Read:
    """Return an object, or why this one has no bytes; what stands in the way of all of them is raised."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in SCHEMES or not key:
        why = "no object is named" if scheme in SCHEMES else f"{scheme}:// is not supported; s3://, gs:// and az:// are"
        return _Read(None, f"cannot be read: {why}")
    base_error = import_obstore().exceptions.BaseError
    try:
        found = open_store(f"{scheme}://{bucket}").get(key)
        if found.meta["size"] > most_bytes:
            return _Read(None, _TOO_LARGE.format(most_bytes))
        return _Read(bytes(found.bytes()))
    except ValueError as error:  # a name that no object can have
        return _Read(None, f"cannot be read: {error}")
    except (base_error, OSError) as error:
        if isinstance(error, FileNotFoundError) and not is_about_bucket(error):
            return _Read(None, "cannot be read: no such object")
        if find_code(error) == "AccessDenied":
            return _Read(None, "cannot be read: access denied")
        raise refuse_bucket(f"{scheme}://{bucket}", error) from error


def refuse_bucket(place: str, error: Exception) -> BulkError:
    """Return the error of a bucket, or a prefix of it, that cannot be used."""
    what, hint = explain_refusal(error)
    return BulkError(f"{place} cannot be read: {what}", hint=f"{hint}; then run the same command again")


open_store = functools.cache(open_bucket)
