"""A store in a bucket of S3, Google Cloud Storage or Azure, by the package obstore."""

from __future__ import annotations

import contextlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from generator.buckets import explain_refusal, find_code, import_obstore, is_about_bucket, open_bucket
from generator.errors import ReleaseError
from generator.files import hash_file
from generator.release.manifest import RELEASES, File
from generator.release.store import Stored
from generator.release.transfer import FILES, PART_BYTES, run_all, share_parts

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from concurrent.futures import Future
    from datetime import datetime
    from pathlib import Path

    from obstore import UpdateVersion

_GO_BACK = "roll back to the release before it, or push the repository again"
# S3's word -> what is wrong with a store of releases or an object of it, what to do.
_OF_OBJECTS = {
    "NoSuchKey": ("it is gone", _GO_BACK),
    "InvalidRange": ("it is shorter than its manifest says", _GO_BACK),
    "AccessDenied": ("these credentials may not do that", "give them the rights to list, read, write and delete there"),
}


class Bucket:
    """A store below a prefix of a bucket."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._parts = ThreadPoolExecutor(2 * FILES)
        with self._errors():
            self._objects = open_bucket(url)

    def read(self, path: str) -> Stored | None:
        """See `Store`."""
        with self._errors():
            try:
                found = self._objects.get(path)
            except FileNotFoundError as error:
                if is_about_bucket(error):
                    raise
                return None
            tag = {key: str(value) for key in ("e_tag", "version") if (value := found.meta.get(key)) is not None}
            return Stored(data=bytes(found.bytes()), tag=tag)

    def read_blocks(self, path: str, size_bytes: int, *, parts: int) -> Iterator[memoryview]:
        """See `Store`."""
        ranges = [(start, min(start + PART_BYTES, size_bytes)) for start in range(0, size_bytes, PART_BYTES)]
        if len(ranges) < 2:
            yield from (self._read_part(path, *one) for one in ranges)
            return
        ahead: deque[Future[memoryview]] = deque()
        try:
            for one in ranges:
                ahead.append(self._parts.submit(self._read_part, path, *one))
                if len(ahead) == parts:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _read_part(self, path: str, start: int, stop: int) -> memoryview:
        with self._errors(path):
            return memoryview(self._objects.get_range(path, start=start, end=stop))

    def write(self, path: str, data: bytes) -> None:
        """See `Store`."""
        with self._errors():
            self._objects.put(path, data)

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        """See `Store`."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        # obstore refuses a version of None: a key without a value has to be left out
        now = cast("UpdateVersion", dict(before.tag)) if before else None
        with self._errors():
            try:
                self._objects.put(path, data, mode=now or "create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    @contextlib.contextmanager
    def upload(self) -> Iterator[_Upload]:
        """See `Store`. What a failed push leaves is finished by the next one of the same content, or pruned."""
        yield _Upload(self)

    def list_names(self, folder: str) -> list[str]:
        """See `Store`."""
        with self._errors():
            found = self._objects.list_with_delimiter(folder or None)
        folders = [f"{name.rpartition('/')[2]}/" for name in found["common_prefixes"]]
        return sorted([*folders, *(one["path"].rpartition("/")[2] for one in found["objects"])])

    def last_change(self, folder: str) -> datetime | None:
        """See `Store`."""
        return max((one["last_modified"] for one in self._list(folder)), default=None)

    def remove(self, path: str) -> None:
        """See `Store`."""
        with self._errors():
            self._objects.delete(path)

    def delete(self, folder: str) -> None:
        """See `Store`."""
        if paths := [one["path"] for one in self._list(folder)]:
            with self._errors():
                self._objects.delete(paths)

    def _list(self, folder: str) -> list[Any]:
        with self._errors():
            return [one for chunk in self._objects.list(folder) for one in chunk]

    def put_file(self, source: Path, path: str, *, parts: int) -> None:
        """Send a file, in `parts` parts at the same time if it is large, each with its SHA-256 where S3 checks it."""
        with self._errors():
            self._objects.put(path, source, chunk_size=PART_BYTES, max_concurrency=parts)

    @contextlib.contextmanager
    def _errors(self, path: str = "") -> Iterator[None]:
        """Translate what obstore raises, about an object or the whole.

        Raises:
            ReleaseError: With what the store says, and what to do.
        """
        base_error = import_obstore().exceptions.BaseError
        try:
            yield
        except (base_error, FileNotFoundError, PermissionError, ValueError) as error:
            what, hint = _OF_OBJECTS.get(find_code(error)) or explain_refusal(error)
            place = f"{self.url}/{path}" if path else self.url
            raise ReleaseError(f"{place} cannot be used: {what}", hint=hint) from error


class _Upload:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._sources: dict[str, tuple[Path, os.stat_result]] = {}

    def add(self, source: Path, path: str) -> File:
        before = source.stat()
        self._sources[path] = (source, before)
        return File(size_bytes=before.st_size, sha256=hash_file(source))

    def finish(self, release: str) -> Iterator[str]:
        parts = share_parts([status.st_size for _, status in self._sources.values()])

        def send(path: str) -> None:
            source, before = self._sources[path]
            self._bucket.put_file(source, f"{RELEASES}/{release}/{path}", parts=parts)
            now = source.stat()
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                msg = f"{source} was changed while it was pushed"
                raise ReleaseError(msg, hint="push again when nothing writes there")

        largest_first = sorted(self._sources, key=lambda path: -self._sources[path][1].st_size)
        for path, _ in run_all(send, largest_first):
            yield path
