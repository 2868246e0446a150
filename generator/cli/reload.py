"""`trtgen reload`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from generator.cli.console import say, show_progress, step
from generator.cli.options import RepositoryOption
from generator.errors import RepositoryError

_KEY_VARIABLE = "TRTGEN_KEY"


def reload(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model that clients call.")],
    *,
    repository: RepositoryOption = Path("model_repository"),
    http_url: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server, on this machine.")] = "127.0.0.1:8000",
    version: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Go back to this one, without proof; by default the last is loaded."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"The key of its repository API.  [default: the environment's {_KEY_VARIABLE}]"
        ),
    ] = None,
) -> None:
    """Prove the last version of a model in a second server, then load it into the one that serves, without a break.

    The server runs with --model-control explicit. If a part does not load there, the old version is served on.

    Example: trtgen reload resnet50 --key secrets/api-key
    """
    from generator.files import expand_home
    from generator.gate.published import verify_published
    from generator.repository import read_record
    from generator.server.reload import LiveServer

    root = expand_home(repository).resolve()
    live = LiveServer(http_url, root, key=_read_key(key))
    record = read_record(root, name)
    if record is None:
        msg = f"{root} holds no model {name!r} made by trtgen"
        raise RepositoryError(msg, hint="build it", command=("build-repo", name), fields={"repository": repository})
    if version is None:
        with show_progress() as progress:
            for report in verify_published(root, [name], on_event=progress.draw):
                report.raise_for_status(require_all=True)
        step(f"proved {name}", detail=f"version {record.version}, in a second server")
    before = live.reload(record, version)
    step(f"loaded {name}", detail=f"version {version or record.version} into {http_url}")
    if old := [one for one in before[name] if one != (version or record.version)]:
        say(f"back again: trtgen reload {name} --version {max(old)}")
    if version is not None:
        say("this lasts until the server is started again: `versions` in the spec says what it serves then")


def _read_key(path: Path | None) -> str:
    if path is None:
        return os.environ.get(_KEY_VARIABLE, "")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        msg = f"the key {path} cannot be read: {why}"
        raise RepositoryError(msg, hint="name another file", fields={"key": None}) from error
