"""Push: a proved repository becomes a release, and a channel names it. And what moves a channel back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator import __version__
from generator.errors import ReleaseError
from generator.events import Doing, ignore
from generator.files import expand_home
from generator.release.channel import CHANNELS, check_name, find_channel, move_channel, read_channel
from generator.release.manifest import (
    MANIFEST_FILE,
    RELEASES,
    Manifest,
    Origin,
    hash_content,
    is_id,
    make_id,
    manifest_path,
    read_manifest,
)
from generator.release.store import open_store
from generator.release.transfer import run_all
from generator.repository import Layout, find_records, recover
from generator.repository.journal import lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from generator.events import OnEvent
    from generator.release.manifest import File
    from generator.release.store import Store, Upload
    from generator.repository import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push did: `is_new` says whether the release was not in the store, `is_moved` the same of the channel."""

    manifest: Manifest
    is_new: bool
    is_moved: bool


def push(
    root: Path, url: str, *, channel: str = "production", allow_unproved: bool = False, on_event: OnEvent = ignore
) -> Pushed:
    """Put the model repository into a store as a release, and let a channel name it.

    The same files again are the same release: then only the channel is moved.

    Args:
        root: The repository.
        url: The store, as `open_store` takes it.
        channel: What servers follow.
        allow_unproved: Whether a repository may be pushed that the records do not prove; the manifest says so.
        on_event: Told how far it is.

    Raises:
        ReleaseError: The repository holds no model, is not proved, or changes meanwhile; the place is no store or
            cannot be used; or somebody else has moved the channel meanwhile.
        RepositoryError: Another trtgen is writing to the repository, or a record in it cannot be read.
    """
    check_name(channel)
    store = open_store(url)
    root = expand_home(root).resolve()
    if not any(root.glob("*/config.pbtxt")):
        msg = f"{root} holds no model"
        raise ReleaseError(msg, hint="build one, or name another repository", fields={"repository": None})
    recover(root)
    with lock(root):
        records = find_records(root)
        unproved = [*_find_strangers(root, records), *_find_unproved(records)]
        if not allow_unproved:
            _refuse(root, unproved)
        _check_place(store, root)
        before = find_channel(store, channel)
        with store.upload() as upload:
            files = _collect(upload, root, on_event)
            unproved += _find_changed(records, files)
            if not allow_unproved:
                _refuse(root, unproved)
            content, origin = hash_content(files), Origin.here_and_now()
            release, manifest = _find_release(store, content)
            is_new = manifest is None
            if manifest is None:
                manifest = Manifest(
                    made_by=f"trtgen {__version__}",
                    release=release or make_id(content, origin),
                    content=content,
                    pushed=origin,
                    models={record.name: record.version for record in records},
                    unproved=unproved,
                    files=files,
                )
                for number, path in enumerate(upload.finish(manifest.release), start=1):
                    on_event(Doing(step="pushing", part=path, fraction=number / len(files)))
                store.write(manifest_path(manifest.release), manifest.to_json().encode())
    is_moved = move_channel(store, channel, manifest.release, before=before, action="push")
    read_manifest(store, manifest.release)  # a prune that ran meanwhile may have taken it for unused
    return Pushed(manifest=manifest, is_new=is_new, is_moved=is_moved)


def roll_back(url: str, *, channel: str = "production", release: str | None = None) -> tuple[str, str]:
    """Let a channel name an earlier release of its history; return the one that it named and the one that it names.

    Args:
        url: The store.
        channel: What is moved.
        release: To which; by default the one that was served before the present one was pushed.

    Raises:
        ReleaseError: There is no such channel, it never named that release, the release is gone, or somebody else has
            moved the channel meanwhile.
    """
    store = open_store(url)
    now = read_channel(store, channel)
    target = release or now.previous
    if target is None:
        msg = f"{channel} in {store.url} names the first release that was pushed to it"
        raise ReleaseError(msg, hint="there is nothing to go back to: push another repository")
    if target not in {move.release for move in now.history}:
        msg = f"{channel} in {store.url} never named {target}"
        raise ReleaseError(msg, hint="choose a release of its history", command=("release", "list", store.url))
    read_manifest(store, target)
    move_channel(store, channel, target, before=find_channel(store, channel), action="rollback")
    read_manifest(store, target)
    return now.release, target


def _refuse(root: Path, unproved: Sequence[str]) -> None:
    if unproved:
        msg = f"{root} is not proved to work:\n  " + "\n  ".join(unproved)
        raise ReleaseError(
            msg, hint="build it again with the gate, or push it unproved", fields={"allow_unproved": True}
        )


def _find_strangers(root: Path, records: Sequence[Record]) -> Iterator[str]:
    """Yield the models that no record is about."""
    ours = {model for record in records for model in Layout.of_record(record).models}
    for path in sorted(root.glob("*/config.pbtxt")):
        if path.parent.name not in ours:
            yield f"{path.parent.name}: trtgen did not make it"


def _find_unproved(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        for entry in record.proof:
            if entry["status"] == "not proved":
                yield f"{record.name}: {entry['stage']} is not proved ({entry.get('reason', 'no reason is recorded')})"


def _find_changed(records: Sequence[Record], files: Mapping[str, File]) -> Iterator[str]:
    """Yield the files that are not those that were proved."""
    for record in records:
        for path, sha256 in record.files.items():
            if path not in files:
                yield f"{path}: it is missing"
            elif files[path].sha256 != sha256:
                yield f"{path}: it was changed after it was proved"


def _check_place(store: Store, root: Path) -> None:
    """Refuse a prefix in which a server may look for models: one that is half uploaded would end its readiness."""
    others = [name for name in store.list_names("") if name not in (f"{RELEASES}/", f"{CHANNELS}/")]
    if others:
        msg = f"{store.url} holds other things ({', '.join(others[:3])}): a server may read its models there"
        raise ReleaseError(msg, hint="give releases a prefix of their own, such as one that does not exist yet")
    folder = getattr(store, "root", None)
    if folder is not None and (folder.is_relative_to(root) or any(folder.parent.glob("*/config.pbtxt"))):
        msg = f"{folder} lies in a model repository, where a server would take it for a model"
        raise ReleaseError(msg, hint="give releases a folder elsewhere")


def _collect(upload: Upload, root: Path, on_event: OnEvent) -> dict[str, File]:
    """Hand every file of the repository to the upload; return them by their paths, sorted."""
    sources = {path.relative_to(root).as_posix(): path for path in _find_files(root)}
    size_bytes, done = sum(path.stat().st_size for path in sources.values()), 0
    largest_first = sorted(sources, key=lambda path: -sources[path].stat().st_size)
    files = {}
    for path, file in run_all(lambda path: upload.add(sources[path], path), largest_first):
        files[path] = file
        done += file.size_bytes
        on_event(Doing(step="reading", part=path, fraction=done / max(size_bytes, 1)))
    return dict(sorted(files.items()))


def _find_files(root: Path) -> Iterator[Path]:
    """Yield the files below `root`, but for the manifest that a pull left.

    Raises:
        ReleaseError: One cannot be kept in a store.
    """
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            if not any(path.iterdir()):
                msg = f"{path} is empty, and object storage has no folders, without which Triton misses this one"
                raise ReleaseError(msg, hint="put a file into it, or remove it")
        elif not path.is_file():
            raise ReleaseError(f"{path} is not a regular file", hint="remove it")
        elif path != root / MANIFEST_FILE:
            yield path


def _find_release(store: Store, content: str) -> tuple[str | None, Manifest | None]:
    """Return id and manifest of the release with this content; without the latter where a push of it did not end."""
    names = [name.rstrip("/") for name in store.list_names(RELEASES)]
    same = [name for name in names if is_id(name) and name.endswith(f"-{content[:16]}")]
    for name in same:
        if store.read(manifest_path(name)) is not None:
            return name, read_manifest(store, name)
    return (same[0] if same else None), None
