"""Releases of a model repository on object storage or in a folder: push, pull, roll back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generator.cli.console import say, show_progress, step
from generator.cli.options import JsonOption, RepositoryOption

if TYPE_CHECKING:
    from generator.release.prune import Contents

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="s3://BUCKET/PREFIX, gs://..., az://..., or a folder.")
]
ChannelOption = Annotated[str, typer.Option(metavar="NAME", help="What servers follow.", show_default=True)]
_COLUMNS = ("release", "models", "files", "MB", "pushed", "channels")


def push(
    store: StoreArgument,
    *,
    repository: RepositoryOption = Path("model_repository"),
    channel: ChannelOption = "production",
    allow_unproved: Annotated[
        bool, typer.Option("--allow-unproved", help="Also what the records do not prove; the release says so.")
    ] = False,
) -> None:
    """Push the model repository as a release that never changes, and let a channel name it.

    The same files again are the same release. If somebody else moves the channel meanwhile, that one stays.

    Example: trtgen release push s3://bucket/releases --channel staging
    """
    from generator.release.publish import push as push_release

    with show_progress() as progress:
        pushed = push_release(repository, store, channel=channel, allow_unproved=allow_unproved, on_event=progress.draw)
    manifest = pushed.manifest
    detail = f"{len(manifest.files)} files, {_megabytes(manifest.size_bytes)} MB"
    step("pushed" if pushed.is_new else "already there, not pushed again", detail=detail)
    for line in manifest.unproved:
        say(f"! not proved: {line}")
    say(f"  {channel} {'names it now' if pushed.is_moved else 'named it already'}")
    print(manifest.release)


def pull(
    store: StoreArgument,
    *,
    repository: RepositoryOption = Path("model_repository"),
    channel: ChannelOption = "production",
    release: Annotated[
        str | None, typer.Option(metavar="ID", help="This one, in place of the channel's.", show_default=False)
    ] = None,
    discard_edits: Annotated[
        bool, typer.Option("--discard-edits", help="Replace what somebody changed after it was pulled.")
    ] = False,
) -> None:
    """Pull a release into a folder, each file checked by its hash: all of it, or the folder stays as it was.

    Files that have not changed are taken from what is there. After an interruption it goes on.

    Example: trtgen release pull s3://bucket/releases --repository models
    """
    from generator.release.fetch import pull as pull_release

    with show_progress() as progress:
        pulled = pull_release(
            store,
            repository,
            channel=channel,
            release=release,
            discard_edits=discard_edits,
            on_event=progress.draw,
        )
    detail = f"{_megabytes(pulled.fetched_bytes)} MB fetched, {_megabytes(pulled.kept_bytes)} MB were there"
    step(f"pulled into {repository}", detail=detail)
    print(pulled.manifest.release)


def list_releases(store: StoreArgument, *, as_json: JsonOption = False) -> None:
    """List the releases of a store, and which of them the channels name.

    Example: trtgen release list s3://bucket/releases
    """
    from generator.measure.results import align_columns
    from generator.release.prune import read_contents
    from generator.release.store import open_store

    contents = read_contents(open_store(store))
    if as_json:
        print(json.dumps(_as_json(contents), indent=2))
        return
    named = {name: channel.release for name, channel in contents.channels.items()}
    rows = [_COLUMNS]
    for one in contents.releases:
        models = ", ".join(f"{name} {version}" for name, version in one.models.items()) or "not of trtgen"
        channels = ", ".join(name for name, release in named.items() if release == one.release)
        about = (one.release, models, str(len(one.files)), _megabytes(one.size_bytes), str(one.pushed), channels)
        rows.append(about)
    print("\n".join(align_columns(rows, left=(0, 1, 4, 5))))
    for name, channel in contents.channels.items():
        move = channel.history[0]
        say(f"{name}: {move.release}, by a {move.action} of {move.by}; a rollback goes to {channel.previous or 'none'}")
    for name, why in contents.damaged.items():
        say(f"! the manifest of {name} cannot be used: {why}")
    for name in contents.unfinished:
        say(f"! {name} is unfinished: it is being pushed, or the push was interrupted; prune removes it")


def rollback(
    store: StoreArgument,
    *,
    channel: ChannelOption = "production",
    to: Annotated[
        str | None,
        typer.Option(metavar="ID", help="To this release of the channel's history.", show_default=False),
    ] = None,
) -> None:
    """Let a channel name the release again that was served before the present one was pushed.

    Example: trtgen release rollback s3://bucket/releases --channel production
    """
    from generator.release.publish import roll_back

    before, after = roll_back(store, channel=channel, release=to)
    step(f"{channel} names {after}", detail=f"before: {before}")
    print(after)


def prune(
    store: StoreArgument,
    *,
    older_than_days: Annotated[float, typer.Option(min=0, max=36500, metavar="N", help="Keep what is younger.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete releases that no channel names or would roll back to, and what interrupted pushes left.

    The age is counted by the store's clock, not by this machine's.

    Example: trtgen release prune s3://bucket/releases --older-than-days 90
    """
    from generator.release.prune import prune as prune_releases

    gone = prune_releases(store, older_than_days=older_than_days, dry_run=dry_run)
    step("would be deleted" if dry_run else "deleted", detail=f"{len(gone)} releases")
    for name in gone:
        print(name)


def _as_json(contents: Contents) -> dict[str, Any]:
    return {
        "channels": {name: channel.model_dump(mode="json") for name, channel in contents.channels.items()},
        "releases": [one.model_dump(mode="json", exclude={"files", "format"}) for one in contents.releases],
        "damaged": dict(contents.damaged),
        "unfinished": contents.unfinished,
    }


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f}"
