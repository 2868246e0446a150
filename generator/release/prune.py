"""What a store holds, and which of it nobody needs any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from generator.errors import ReleaseError
from generator.release.channel import Channel, list_channels, read_channel
from generator.release.folder import INCOMING
from generator.release.manifest import RELEASES, Manifest, is_id, manifest_path, parse_manifest
from generator.release.store import open_store
from generator.release.transfer import run_all

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from generator.release.store import Store

_CLOCK = f"{RELEASES}/.clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The channels by name and the releases, the newest first; `damaged` are those whose manifest cannot be used."""

    channels: Mapping[str, Channel]
    releases: list[Manifest]
    damaged: Mapping[str, str]
    unfinished: list[str]


def read_contents(store: Store) -> Contents:
    """Return what a store holds.

    Raises:
        ReleaseError: It cannot be read, or holds no release.
    """
    names = [name.rstrip("/") for name in store.list_names(RELEASES)]
    if not names:
        raise ReleaseError(f"{store.url} holds no releases", hint="push one", command=("release", "push", store.url))

    def read(name: str) -> Manifest | str | None:
        stored = store.read(manifest_path(name))
        if stored is None:
            return None
        try:
            return parse_manifest(stored.data, name)
        except ValueError as error:
            return str(error)

    found = dict(run_all(read, [name for name in names if is_id(name)]))
    manifests = [one for one in found.values() if isinstance(one, Manifest)]
    return Contents(
        channels=_read_channels(store),
        releases=sorted(manifests, key=lambda one: one.release, reverse=True),
        damaged={name: one for name, one in sorted(found.items()) if isinstance(one, str)},
        unfinished=sorted([name for name in names if name.endswith(INCOMING) or found.get(name, "") is None]),
    )


def prune(url: str, *, older_than_days: float, dry_run: bool = False) -> list[str]:
    """Delete the releases that nobody needs and that are older than so many days; return their ids, sorted.

    Needed is what a channel names, and what its rollback goes to. The age is that of the last file, by the clock of the
    store alone. What a push left that did not end goes the same way. With `dry_run` nothing is deleted.

    Raises:
        ReleaseError: The store cannot be read or written, or holds no release.
    """
    store = open_store(url)
    contents = read_contents(store)
    needed = _find_needed(contents.channels)
    oldest = _read_clock(store) - timedelta(days=older_than_days)
    names = [*(manifest.release for manifest in contents.releases), *contents.damaged, *contents.unfinished]
    gone = []
    for name in sorted(set(names) - needed):
        changed = store.last_change(f"{RELEASES}/{name}")
        if changed is not None and changed <= oldest and (dry_run or _delete(store, name)):
            gone.append(name)
    return gone


def _find_needed(channels: Mapping[str, Channel]) -> set[str]:
    return {name for channel in channels.values() for name in (channel.release, channel.previous) if name}


def _read_clock(store: Store) -> datetime:
    """Return the time by the store's clock: this machine's may be off, and what is young would be deleted."""
    store.write(f"{_CLOCK}/now", b"now")
    now = store.last_change(_CLOCK)
    store.delete(_CLOCK)
    assert now is not None
    return now


def _delete(store: Store, name: str) -> bool:
    """Delete a release, unless a channel was moved to it meanwhile; say whether it is gone.

    First without its manifest, then the channels are read again: a push or rollback that moves a channel to it reads
    the manifest after that, so that one of the two sees the other.
    """
    manifest = store.read(manifest_path(name))
    if manifest is not None:
        store.remove(manifest_path(name))
        if name in _find_needed(_read_channels(store)):
            store.write(manifest_path(name), manifest.data)
            return False
    store.delete(f"{RELEASES}/{name}")
    return True


def _read_channels(store: Store) -> dict[str, Channel]:
    return {name: read_channel(store, name) for name in list_channels(store)}
