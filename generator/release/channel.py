"""channels/NAME.json: which release a channel names, and those that it named before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from generator.errors import ReleaseError
from generator.release.manifest import Origin, is_id
from generator.spec.records import JsonRecord

if TYPE_CHECKING:
    from generator.release.store import Store, Stored

CHANNELS = "channels"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_KEPT = 100  # moves


class Move(BaseModel):
    """One change of a channel: to which release, by whom, and how it came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    release: str
    by: Origin
    action: Literal["push", "rollback"]


class Channel(JsonRecord):
    """The content of channels/NAME.json: the moves, the last one first."""

    history: Annotated[list[Move], Field(min_length=1)]
    format: Literal[1] = 1

    @property
    def release(self) -> str:
        """The release that is served."""
        return self.history[0].release

    @property
    def previous(self) -> str | None:
        """The release that a rollback goes to: what was served before the present one was pushed; None without one.

        So two rollbacks go two releases back, and not forth again.
        """
        pushes = [move for move in self.history if move.action == "push"]
        names = [move.release for move in pushes]
        if self.release not in names:
            return None
        return next((name for name in names[names.index(self.release) :] if name != self.release), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A channel as it was read; None where there is none yet, with what the store needs to swap it."""

    channel: Channel | None
    stored: Stored | None


def check_name(name: str) -> None:
    """Refuse what is no name of a channel.

    Raises:
        ReleaseError: It is not.
    """
    if not _NAME.fullmatch(name):
        msg = f"{name!r} is not a valid name of a channel: lower-case letters, digits, '.', '_' and '-' were expected"
        raise ReleaseError(msg, hint="give a name such as production", fields={"channel": "production"})


def find_channel(store: Store, name: str) -> Found:
    """Return a channel, or that there is none yet.

    Raises:
        ReleaseError: It cannot be read.
    """
    check_name(name)
    stored = store.read(f"{CHANNELS}/{name}.json")
    if stored is None:
        return Found(channel=None, stored=None)
    try:
        return Found(channel=Channel.parse(stored.data), stored=stored)
    except ValueError as error:
        msg = f"the channel {name} in {store.url} cannot be used: {error}"
        raise ReleaseError(msg, hint="remove its file from the store and push again") from error


def read_channel(store: Store, name: str) -> Channel:
    """Return a channel.

    Raises:
        ReleaseError: There is none of this name; says which there are.
    """
    channel = find_channel(store, name).channel
    if channel is None:
        others = ", ".join(list_channels(store)) or "none"
        msg = f"{store.url} has no channel {name}; it has {others}"
        raise ReleaseError(msg, hint="name one of those, or push to it first", fields={"channel": None})
    return channel


def list_channels(store: Store) -> list[str]:
    """Return the names of all channels, sorted."""
    return [
        name.removesuffix(".json")
        for name in store.list_names(CHANNELS)
        if _NAME.fullmatch(name) and name.endswith(".json")
    ]


def move_channel(store: Store, name: str, release: str, *, before: Found, action: Literal["push", "rollback"]) -> bool:
    """Let a channel name a release; say whether it did not yet.

    Args:
        store: Where.
        name: The channel.
        release: What it is to name.
        before: The channel as the decision was made on it: if another one has moved it since, nothing is done.
        action: What this is.

    Raises:
        ReleaseError: Somebody else has moved it meanwhile; says who.
    """
    assert is_id(release)
    past = before.channel.history if before.channel else []
    if past and past[0].release == release:
        return False
    move = Move(release=release, by=Origin.here_and_now(), action=action)
    data = Channel(history=[move, *past][:_KEPT]).to_json().encode()
    if store.swap(f"{CHANNELS}/{name}.json", data, before.stored):
        return True
    winner = read_channel(store, name).history[0]
    if winner.release == release:  # of the same files, or by this request, whose first answer was lost
        return winner == move
    msg = (
        f"{name} in {store.url} was moved meanwhile: it names {winner.release}, by a {winner.action} of {winner.by}, "
        f"and not {release}"
    )
    raise ReleaseError(
        msg,
        hint="look at what is served now; the same command again puts this release in its place",
        command=("release", "list", store.url),
    )
