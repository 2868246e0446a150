"""Pull: a release becomes a model repository on this disk; every file's hash is checked, and it appears in one step."""

from __future__ import annotations

import contextlib
import errno
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import ReleaseError
from generator.events import Doing, ignore
from generator.files import expand_home, hash_file, write_temporary
from generator.release.channel import read_channel
from generator.release.manifest import MANIFEST_FILE, RELEASES, File, read_manifest, read_pulled
from generator.release.store import open_store
from generator.release.transfer import Saver, run_all, share_parts
from generator.repository.journal import lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from generator.events import OnEvent
    from generator.release.manifest import Manifest
    from generator.release.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull did: the bytes that came from the store, and those that were on this disk already."""

    manifest: Manifest
    fetched_bytes: int
    kept_bytes: int


def pull(
    url: str,
    destination: Path,
    *,
    channel: str = "production",
    release: str | None = None,
    discard_edits: bool = False,
    on_event: OnEvent = ignore,
) -> Pulled:
    """Make `destination` the repository of a release: all of it, or as it was.

    What is fetched is kept beside the destination until all of it is there, also after a kill, for the next pull. Files
    that have not changed since the release that was there are linked, not fetched.

    Args:
        url: The store.
        destination: A folder that is not there, is empty, or was pulled.
        channel: Whose release is meant.
        release: Which one, in place of the channel's.
        discard_edits: Whether files in the destination that somebody edited may be replaced.
        on_event: Told how far it is.

    Raises:
        ReleaseError: There is no such channel or release, a file is not what its manifest says, the destination is
            something else or was edited, the disk is full, or another pull is under way there.
        RepositoryError: Another pull into the same destination is under way.
    """
    store = open_store(url)
    manifest = read_manifest(store, release or read_channel(store, channel).release)
    destination = expand_home(destination).resolve()
    with _disk_errors(destination):
        present = _read_present(destination, discard_edits=discard_edits)
        if present == manifest.files and read_pulled(destination) == manifest:
            return Pulled(manifest=manifest, fetched_bytes=0, kept_bytes=manifest.size_bytes)
        place = destination.with_name(f".{destination.name}.pull")
        with lock(place):
            staged = place / "files"
            kept_bytes = _take_present(manifest, staged, destination, present)
            missing = {path: file for path, file in manifest.files.items() if not (staged / path).exists()}
            _check_space(staged, missing, release=manifest.release)
            _fetch(store, manifest.release, missing, staged, on_event)
            write_temporary(staged / MANIFEST_FILE, manifest.to_json().encode()).replace(staged / MANIFEST_FILE)
            _exchange(staged, destination, retired=place / "retired")
            shutil.rmtree(place, ignore_errors=True)
    return Pulled(manifest=manifest, fetched_bytes=manifest.size_bytes - kept_bytes, kept_bytes=kept_bytes)


def _read_present(destination: Path, *, discard_edits: bool) -> dict[str, File]:
    """Return the files in the destination, hashed; refuse what was not pulled, or was edited since.

    Raises:
        ReleaseError: Names it.
    """
    if destination.is_mount():
        inside = destination / "models"
        msg = f"{destination} is a mount of its own, so nothing can be moved there in one step"
        raise ReleaseError(msg, hint=f"use a folder in it, such as {inside}", fields={"repository": inside})
    if not destination.exists() or not any(destination.iterdir()):
        return {}
    pulled = read_pulled(destination)
    if pulled is None:
        msg = f"{destination} is not empty and was not pulled: it is left as it is"
        raise ReleaseError(msg, hint="pull into another folder", fields={"repository": None})
    present = _hash_files(destination)
    edited = [path for path, file in present.items() if pulled.files.get(path) != file]
    if edited and not discard_edits:
        msg = f"{destination} is left as it is, since it was changed after it was pulled: {', '.join(edited[:5])}"
        raise ReleaseError(msg, hint="copy what you need, then discard the edits", fields={"discard_edits": True})
    return present


def _hash_files(folder: Path) -> dict[str, File]:
    """Return every file below `folder` but for the manifest, by its path."""

    def read(path: Path) -> File:
        return File(size_bytes=path.stat().st_size, sha256=hash_file(path))

    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE]
    return {path.relative_to(folder).as_posix(): file for path, file in run_all(read, paths)}


def _take_present(manifest: Manifest, staged: Path, destination: Path, present: Mapping[str, File]) -> int:
    """Leave in `staged` only what belongs there, and add what the destination has; return how many bytes that are."""
    staged.mkdir(exist_ok=True)
    for path, file in _hash_files(staged).items():  # of a pull that was killed
        if manifest.files.get(path) != file:
            (staged / path).unlink()
    for folder in sorted((path for path in staged.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()
    places = {file: destination / path for path, file in present.items()}
    for path, file in manifest.files.items():
        target = staged / path
        if file in places and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(places[file], target)
    return sum(file.size_bytes for path, file in manifest.files.items() if (staged / path).exists())


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # some file systems of a network have none
        shutil.copyfile(source, target)


def _check_space(staged: Path, missing: Mapping[str, File], *, release: str) -> None:
    needed, free = sum(file.size_bytes for file in missing.values()), shutil.disk_usage(staged).free
    if needed > free:
        msg = f"{release} needs {needed:,} bytes on the disk of {staged.parent.parent}, which has {free:,} left"
        raise ReleaseError(msg, hint="make room and run the same command")


def _fetch(store: Store, release: str, missing: Mapping[str, File], staged: Path, on_event: OnEvent) -> None:
    saver, parts = Saver(), share_parts([file.size_bytes for file in missing.values()])

    def fetch(path: str) -> None:
        source, target = f"{RELEASES}/{release}/{path}", staged / path
        target.parent.mkdir(parents=True, exist_ok=True)
        found = saver.save(store.read_blocks(source, missing[path].size_bytes, parts=parts), target)
        if found != missing[path]:
            target.unlink()
            msg = (
                f"{source} in {store.url} is damaged: it has {found.size_bytes:,} bytes and SHA-256 {found.sha256}, "
                f"the manifest says {missing[path].size_bytes:,} and {missing[path].sha256}"
            )
            hint = "go back to the release before it"
            raise ReleaseError(msg, hint=hint, command=("release", "rollback", store.url))

    done, size_bytes = 0, sum(file.size_bytes for file in missing.values())
    largest_first = sorted(missing, key=lambda path: -missing[path].size_bytes)
    try:
        for path, _ in run_all(fetch, largest_first):
            done += missing[path].size_bytes
            on_event(Doing(step="pulling", part=path, fraction=done / max(size_bytes, 1)))
    finally:
        saver.close()


def _exchange(staged: Path, destination: Path, *, retired: Path) -> None:
    """Put `staged` in the place of the destination. Between the two renames there is none, never half of one."""
    shutil.rmtree(retired, ignore_errors=True)
    if destination.exists():
        destination.rename(retired)
    staged.rename(destination)


@contextlib.contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """Translate what the disk says.

    Raises:
        ReleaseError: With its words.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        msg = f"{destination} was left as it was: {error.strerror}{where}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room there and run the same command: it goes on from here" if full else "give another folder"
        raise ReleaseError(msg, hint=hint, fields={} if full else {"repository": None}) from error
