"""A store in a folder. There is no conditional write on a file system: a lock and a rename make one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from generator.errors import ReleaseError
from generator.files import hash_bytes, write_temporary
from generator.release.manifest import RELEASES, File
from generator.release.store import Stored
from generator.release.transfer import Saver, read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

INCOMING = ".incoming"  # the end of a folder's name that is being filled


class FolderStore:
    """A store in `root`, which is made by the first write."""

    def __init__(self, root: Path, *, url: str) -> None:
        self.root = root
        self.url = url

    def read(self, path: str) -> Stored | None:
        """See `Store`."""
        with self._errors():
            try:
                data = (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stored(data=data, tag={"e_tag": hash_bytes(data)})

    def read_blocks(self, path: str, size_bytes: int, *, parts: int) -> Iterator[memoryview]:  # noqa: ARG002
        """See `Store`."""
        with self._errors():
            yield from read_blocks(self.root / path)

    def write(self, path: str, data: bytes) -> None:
        """See `Store`."""
        target = self.root / path
        with self._errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_temporary(target, data).replace(target)

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        """See `Store`."""
        folder = (self.root / path).parent
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self.read(path) != before:
                    return False
                self.write(path, data)
                os.fsync(handle)
            finally:
                os.close(handle)
        return True

    @contextlib.contextmanager
    def upload(self) -> Iterator[_Upload]:
        """See `Store`."""
        folder = self.root / RELEASES / f"{uuid.uuid4().hex}{INCOMING}"
        upload = _Upload(self, folder)
        try:
            with self._errors():
                folder.mkdir(parents=True)
            yield upload
        finally:
            upload.close()
            shutil.rmtree(folder, ignore_errors=True)

    def list_names(self, folder: str) -> list[str]:
        """See `Store`."""
        with self._errors():
            try:
                with os.scandir(self.root / folder) as entries:
                    return sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
            except FileNotFoundError:
                return []

    def last_change(self, folder: str) -> datetime | None:
        """See `Store`."""
        with self._errors():
            times = [path.stat().st_mtime for path in (self.root / folder).rglob("*")]
        return datetime.fromtimestamp(max(times), timezone.utc) if times else None

    def remove(self, path: str) -> None:
        """See `Store`."""
        with self._errors():
            (self.root / path).unlink()

    def delete(self, folder: str) -> None:
        """See `Store`."""
        with self._errors():
            shutil.rmtree(self.root / folder)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate what the file system says.

        Raises:
            ReleaseError: With its words.
        """
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            where = f" ({error.filename})" if error.filename else ""
            msg = f"the releases in {self.root} cannot be used: {error.strerror}{where}"
            hint = "make room on its disk and run the same command" if full else "give a folder that you may use"
            raise ReleaseError(msg, hint=hint) from error


class _Upload:
    def __init__(self, store: FolderStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._saver = Saver()

    def add(self, source: Path, path: str) -> File:
        target = self._folder / path
        with self._store._errors():  # noqa: SLF001 - its other half
            target.parent.mkdir(parents=True, exist_ok=True)
            return self._saver.save(read_blocks(source), target)

    def finish(self, release: str) -> Iterable[str]:
        target = self._folder.with_name(release)
        with self._store._errors():  # noqa: SLF001 - its other half
            if target.exists():  # of a push that died before it wrote the manifest
                shutil.rmtree(target)
            self._folder.rename(target)
        return ()

    def close(self) -> None:
        self._saver.close()
