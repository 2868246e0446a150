"""Where the images of bulk work are: a folder, a pattern, a prefix of a bucket, a CSV or Parquet file of paths.

Every source yields its images one by one in an order that is always the same, and can go on behind any of them. Of a
folder no more is held than the names of those folders that are being read.
"""

from __future__ import annotations

import abc
import contextlib
import csv
import itertools
import logging
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from generator.buckets import import_obstore
from generator.bulk.images import SCHEMES, open_store, refuse_bucket
from generator.bulk.table import import_pyarrow
from generator.errors import BulkError
from generator.files import expand_home
from generator.images.sets import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOG = logging.getLogger(__name__)
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]+)/?(.*)")
_COLUMN = "path"
_MAGIC = re.compile(r"[*?[]")
_LISTED_AT_ONCE = 1000


class Item(NamedTuple):
    """An image: its path or URL, and its name in the source, behind which a later run goes on."""

    path: str
    name: str


class Source(Protocol):
    """A sequence of images."""

    def identify(self) -> dict[str, Any]:
        """Return what must not change between two runs that share their results."""

    def iterate(self, start: int, after: str) -> Iterator[Item]:
        """Yield what is behind the first `start` images, of which `after` was the name of the last; BulkError."""

    def count(self) -> int | None:
        """Return how many there are, None where it would cost much to find out; BulkError."""


def open_source(text: str) -> Source:
    """Return the source that `text` means.

    Raises:
        BulkError: There is none, or it cannot be read.
        MissingDependencyError: It is a bucket, and obstore is not installed; or Parquet, and pyarrow is not.
    """
    if "://" in text:
        return _open_bucket(text)
    path = expand_home(Path(text))
    if path.is_dir():
        return FolderSource(path.absolute())
    if path.is_file():
        kind = {".csv": CsvSource, ".parquet": ParquetSource}.get(path.suffix.lower())
        if kind is None:
            msg = f"{text} is a file; a folder, a pattern, s3://bucket/prefix, or a .csv or .parquet file was expected"
            raise BulkError(msg, hint="for a few images use clients/classify.py or clients/detect.py")
        return kind(path.absolute())
    if _MAGIC.search(text):
        return _open_pattern(path.absolute())
    raise BulkError(f"{text} does not exist", hint="give a folder, a quoted pattern, s3://bucket/prefix, or a list")


@dataclass(frozen=True, slots=True)
class FolderSource:
    """The images below a folder, or those files whose path below it fits `patterns`, one for each of its parts."""

    root: Path
    patterns: tuple[str, ...] = ()

    def identify(self) -> dict[str, Any]:
        """Return the folder and the pattern; a file that appears behind the last one that was read still counts."""
        return {"source": os.path.join(self.root, *self.patterns)}  # noqa: PTH118 - a Path drops the "/" of "**/"

    def iterate(self, start: int, after: str) -> Iterator[Item]:  # noqa: ARG002 - the name says it all
        """Yield the files by the order of their paths below the folder."""
        for name in self._walk(after):
            yield Item(f"{self.root}/{name}", name)

    def count(self) -> int:
        """Return how many files there are now."""
        files, pending = 0, [""]
        while pending:
            folder = pending.pop()
            for name in self._list(folder):
                if name.endswith("/"):
                    pending.append(folder + name)
                else:
                    files += 1
        return files

    def _walk(self, after: str) -> Iterator[str]:
        """Yield the files' paths below the root that are greater than `after`; a folder's name counts with its "/"."""
        pending = [""]
        while pending:
            name = pending.pop()
            if name and not name.endswith("/"):
                yield name
                continue
            inner = (name + one for one in self._list(name))
            ahead = (one for one in inner if one > after or (one.endswith("/") and after.startswith(one)))
            pending += sorted(ahead, reverse=True)

    def _list(self, folder: str) -> Iterator[str]:
        """Yield the names in one folder that may matter."""
        path = f"{self.root}/{folder}"
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not self.patterns or _may_hold(f"{folder}{entry.name}".split("/"), self.patterns):
                            yield f"{entry.name}/"
                    elif self._takes(folder, entry.name) and _may_be_file(entry):
                        yield entry.name
        except FileNotFoundError:
            _LOG.warning("%s vanished while its folder was read", path)
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise BulkError(msg, hint="check its permissions, or give the folders that can be read") from error

    def _takes(self, folder: str, name: str) -> bool:
        if self.patterns:
            return _matches(f"{folder}{name}".split("/"), self.patterns)
        return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a million names


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a file, also where that cannot be told: who reads it says why, of this one alone."""
    try:
        return entry.is_file()
    except OSError:  # such as a link to itself
        return True


def _open_pattern(path: Path) -> FolderSource:
    parts = path.parts
    first = next(number for number, part in enumerate(parts) if _MAGIC.search(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        raise BulkError(f"{path} fits nothing: {root} is not a folder", hint="check the path")
    return FolderSource(root, parts[first:])


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Say whether a path fits patterns for its parts; `**` stands for any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[skipped:], patterns[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _may_hold(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Say whether a file in this folder, or further below, may fit the patterns."""
    for part, pattern in zip(parts, patterns, strict=False):
        if pattern == "**":
            return True
        if not fnmatchcase(part, pattern):
            return False
    return len(parts) < len(patterns)


@dataclass(frozen=True, slots=True)
class BucketSource:
    """The images below a prefix of a bucket, such as s3://bucket and photos."""

    bucket: str
    prefix: str

    def identify(self) -> dict[str, Any]:
        """Return the prefix; an object that appears behind the last one that was read still counts."""
        return {"source": f"{self.bucket}/{self.prefix}"}

    def iterate(self, start: int, after: str) -> Iterator[Item]:  # noqa: ARG002 - the name says it all
        """Yield the objects by name."""
        base_error = import_obstore().exceptions.BaseError
        try:
            for page in open_store(self.bucket).list(
                self.prefix or None, offset=after or None, chunk_size=_LISTED_AT_ONCE
            ):
                for one in page:
                    name = one["path"]
                    if os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - no path of this machine
                        yield Item(f"{self.bucket}/{name}", name)
        except (base_error, OSError) as error:
            raise refuse_bucket(f"{self.bucket}/{self.prefix}", error) from error

    def count(self) -> None:
        """Return nothing: each thousand takes a request."""


def _open_bucket(text: str) -> BucketSource:
    found = _URL.fullmatch(text)
    if found is None or found[1] not in SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise BulkError(f"{text} is none of {schemes} with a bucket and a prefix", hint="such as s3://bucket/photos")
    bucket = f"{found[1]}://{found[2]}"
    open_store(bucket)
    return BucketSource(bucket, found[3].strip("/"))


@dataclass(frozen=True, slots=True)
class _ListSource(abc.ABC):
    """A file of paths; a relative one is below the file's folder."""

    path: Path

    def identify(self) -> dict[str, Any]:
        """Return the file and its state: its rows are told by their numbers."""
        state = self.path.stat()
        return {"source": str(self.path), "size_bytes": state.st_size, "modified_ns": state.st_mtime_ns}

    def iterate(self, start: int, after: str) -> Iterator[Item]:  # noqa: ARG002 - the number says it all
        """Yield the rows in their order."""
        for text in self._read(start):
            path = text if "://" in text or not text else os.path.join(self.path.parent, text)  # noqa: PTH118 - a million
            yield Item(path, "")

    def count(self) -> int:
        """Return how many rows there are."""
        return sum(1 for _ in self._read(0))

    @abc.abstractmethod
    def _read(self, start: int) -> Iterator[str]:
        """Yield the column from this row on."""

    def _refuse(self, why: object) -> BulkError:
        hint = f"give a file with a column {_COLUMN!r}, a path or URL in each row"
        return BulkError(f"{self.path} cannot be read as a list of paths: {why}", hint=hint)


class CsvSource(_ListSource):
    """The column `path` of a CSV file."""

    __slots__ = ()

    def _read(self, start: int) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                rows = csv.reader(stream)
                names = next(rows, [])
                if _COLUMN not in names:
                    raise self._refuse(f"its columns are {', '.join(names) or 'none'}")
                place = names.index(_COLUMN)
                for row in itertools.islice((row for row in rows if row), start, None):
                    yield row[place] if place < len(row) else ""
        except (OSError, csv.Error) as error:
            raise self._refuse(error) from error


class ParquetSource(_ListSource):
    """The column `path` of a Parquet file."""

    __slots__ = ()

    def _read(self, start: int) -> Iterator[str]:
        with self._open() as file:
            groups, skipped = list(range(file.metadata.num_row_groups)), 0
            while groups and skipped + (rows := file.metadata.row_group(groups[0]).num_rows) <= start:
                skipped += rows
                groups.pop(0)
            batches = file.iter_batches(batch_size=_LISTED_AT_ONCE, row_groups=groups, columns=[_COLUMN])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            yield from (value or "" for value in itertools.islice(values, start - skipped, None))

    def count(self) -> int:
        """Return how many rows the file says that it has."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        pa = import_pyarrow()
        try:
            with pa.parquet.ParquetFile(self.path) as file:
                if _COLUMN not in (names := file.schema_arrow.names):
                    raise self._refuse(f"its columns are {', '.join(names)}")
                if (kind := str(file.schema_arrow.field(_COLUMN).type)) not in ("string", "large_string"):
                    raise self._refuse(f"its column {_COLUMN} holds {kind}, text was expected")
                yield file
        except (OSError, pa.ArrowException) as error:
            raise self._refuse(error) from error
