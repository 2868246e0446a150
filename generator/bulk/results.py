"""The results of bulk work: a folder of Parquet files, which is its own journal.

    _bulk.json                                      of what these are the results, and whether they are complete
    part-000000000000-000000020000.parquet          the answers to the first 20,000 images of the source
    part-000000020000-000000040000.parquet          ...

A part appears at once and complete, synced to the disk, and its name says which images of the source it holds. So
those in front of the last part are done, and nothing else is: a later run goes on behind them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.bulk.table import import_pyarrow
from generator.errors import BulkError
from generator.files import write_temporary
from generator.packages import made_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LOG = logging.getLogger(__name__)
MANIFEST = "_bulk.json"  # readers of Parquet folders pass over names that begin so
_PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")
_TEMPORARY = re.compile(r"\.(part-\d{12}\.parquet|_bulk\.json)\..*")
_METADATA = b"trtgen"
_LONGEST_PART_S = 60.0  # what a crash costs at most
_ROW_GROUP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What the parts hold together: how many images, how many of them with an error, and the last one's name."""

    items: int = 0
    errors: int = 0
    last: str = ""


class Results:
    """The folder, open for one run; `open_results` makes it.

    Attributes:
        finished: What is on the disk.
        is_complete: Whether that is all of the source.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], finished: Finished, *, rows_per_part: int) -> None:
        self._folder, self._manifest, self._rows_per_part = folder, manifest, rows_per_part
        self.finished = finished
        self._part: _Part | None = None

    @property
    def is_complete(self) -> bool:
        """Say whether the source was at its end."""
        return self._manifest.get("items") == self.finished.items

    def add(self, table: Any, last: str) -> None:
        """Take the answers to the next images, the last of which is called `last`.

        Raises:
            BulkError: The disk is full.
        """
        with self._explain():
            if self._part is None:
                self._part = _Part(self._folder, self.finished, table.schema)
            self._part.add(table, last)
            if self._part.rows >= self._rows_per_part or self._part.age_s >= _LONGEST_PART_S:
                self.flush()

    def flush(self) -> None:
        """Finish the part that was begun.

        Raises:
            BulkError: The disk is full.
        """
        if self._part is not None:
            part, self._part = self._part, None
            with self._explain():
                self.finished = part.finish()

    def complete(self) -> None:
        """Finish the part that was begun, and say that it is the last one.

        Raises:
            BulkError: The disk is full.
        """
        self.flush()
        self._manifest |= {"items": self.finished.items, "errors": self.finished.errors}
        with self._explain():
            _write_manifest(self._folder, self._manifest)

    def drop(self) -> None:
        """Throw away what was not flushed."""
        if self._part is not None:
            self._part.drop()
            self._part = None

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.drop()
            msg = f"the results cannot be written to {self._folder}: {error.strerror or error}"
            hint = "make room there and run the same command again: it goes on behind what is finished"
            raise BulkError(msg, hint=hint) from error


class _Part:
    """A Parquet file that is being written, under a name that no reader takes."""

    def __init__(self, folder: Path, before: Finished, schema: Any) -> None:
        self._folder, self._before = folder, before
        self._temporary = folder / f".part-{before.items:012d}.parquet.tmp"
        self._since_s = time.monotonic()
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        self.rows, self._errors, self._last = 0, 0, before.last
        self._pa = import_pyarrow()
        self._stream = self._temporary.open("wb")
        self._writer = self._pa.parquet.ParquetWriter(self._stream, schema)

    @property
    def age_s(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._since_s

    def add(self, table: Any, last: str) -> None:
        """Take the next rows."""
        self.rows += table.num_rows
        self._errors += table.num_rows - table["error"].null_count
        self._last = last
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= _ROW_GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(self._pa.concat_tables(self._waiting))
            self._waiting, self._waiting_bytes = [], 0

    def finish(self) -> Finished:
        """Give it its name, once all of it is on the disk."""
        before = self._before
        finished = Finished(items=before.items + self.rows, errors=before.errors + self._errors, last=self._last)
        facts = {"errors": self._errors, "last": self._last}
        try:
            self._write()
            self._writer.add_key_value_metadata({_METADATA: json.dumps(facts)})
            self._writer.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        except OSError:
            self.drop()
            raise
        self._temporary.rename(self._folder / f"part-{before.items:012d}-{finished.items:012d}.parquet")
        _sync(self._folder)
        return finished

    def drop(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError, ValueError):  # the disk is full, or it was closed
            self._writer.close()
        self._writer.is_open = False  # else pyarrow closes it once more
        with contextlib.suppress(OSError):
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def open_results(folder: Path, identity: Mapping[str, Any], *, rows_per_part: int) -> Iterator[Results]:
    """Open the folder of the results, new or with what an earlier run finished.

    Args:
        folder: It is made where it is not there.
        identity: What the results follow from, as JSON has it; another run than that of the folder's is refused.
        rows_per_part: A part is finished when it has as many, or after a minute.

    Raises:
        BulkError: It holds other files, or results of something else; another run is at work; a part is damaged.
        MissingDependencyError: pyarrow is not installed.
    """
    import_pyarrow()
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            _lock(folder, handle)
            manifest, finished = _take_manifest(folder, identity), _read_parts(folder)
        except OSError as error:
            msg = f"the results cannot be written to {folder}: {error.strerror or error}"
            raise BulkError(msg, hint="give another folder", fields={"out": None}) from error
        results = Results(folder, manifest, finished, rows_per_part=rows_per_part)
        stack.callback(results.drop)
        yield results


def _lock(folder: Path, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        msg = f"another run writes its results to {folder}"
        raise BulkError(msg, hint="wait for it, or give another folder", fields={"out": None}) from error


def _take_manifest(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the folder's manifest, a new one where it has no part yet; refuse one of other results."""
    for entry in folder.iterdir():
        if _TEMPORARY.fullmatch(entry.name):
            entry.unlink()  # a crash left it
    path, names = folder / MANIFEST, {entry.name for entry in folder.iterdir()}
    if not names <= {MANIFEST}:
        return _read_manifest(path, json.loads(json.dumps(identity)))
    manifest = {"made_by": made_by(), "of": dict(identity)}
    _write_manifest(folder, manifest)
    return manifest


def _read_manifest(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of results with this identity."""
    another: dict[str, Any] = {"hint": "give another folder, or remove this one", "fields": {"out": None}}
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        before: dict[str, Any] = manifest["of"]
        names = sorted({*before, *identity})
    except FileNotFoundError as error:
        msg = f"{path.parent} holds files, but no {MANIFEST}: it is not a results folder"
        raise BulkError(msg, **another) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BulkError(f"{path} cannot be read: {error}", **another) from error
    if others := [name for name in names if before.get(name) != identity.get(name)]:
        changes = "; ".join(f"{name} was {before.get(name)} and is {identity.get(name)}" for name in others)
        raise BulkError(f"{path.parent} holds results of something else: {changes}", **another)
    return manifest


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    path = folder / MANIFEST
    write_temporary(path, (json.dumps(manifest, indent=2) + "\n").encode()).rename(path)
    _sync(folder)


def _read_parts(folder: Path) -> Finished:
    """Return what the parts hold, which must follow each other; the last one is removed if it is cut off."""
    names = sorted(path.name for path in folder.iterdir())
    parts = [found for name in names if (found := _PART.fullmatch(name))]
    finished = Finished()
    for part in parts:
        path, first, stop = folder / part[0], int(part[1]), int(part[2])
        facts = _read_facts(path, stop - first)
        if facts is None and part is parts[-1]:
            _LOG.warning("%s is incomplete: it is removed, and its images are done again", path)
            path.unlink()
        elif facts is None or first != finished.items:
            why = f"{path.name} is damaged" if facts is None else f"item {finished.items} is in no part"
            msg = f"the results in {folder} cannot be continued: {why}"
            raise BulkError(msg, hint="remove that part and all after it; their images are done again")
        else:
            finished = Finished(items=stop, errors=finished.errors + facts["errors"], last=facts["last"])
    return finished


def _read_facts(path: Path, rows: int) -> dict[str, Any] | None:
    """Return what a part says of itself; None if it is damaged, or has another number of rows.

    Raises:
        BulkError: It cannot be read.
    """
    pa = import_pyarrow()
    try:
        metadata = pa.parquet.read_metadata(path)
        facts: dict[str, Any] = json.loads(metadata.metadata[_METADATA])
    except OSError as error:
        if error.errno:  # it may be whole
            msg = f"{path} cannot be read: {os.strerror(error.errno)}"
            hint = "let this user read it, or give another folder"
            raise BulkError(msg, hint=hint, fields={"out": None}) from error
        return None
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return facts if metadata.num_rows == rows else None


def _sync(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
