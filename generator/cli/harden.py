"""`trtgen harden`: a launch of tritonserver with every option that closes something, for one release."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.console import say
from generator.cli.options import RepositoryOption
from generator.errors import ServerError

if TYPE_CHECKING:
    from generator.server.harden import Launch

PROXY = "nginx"  # a panel of --help
UrlOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Tritonserver, as nginx reaches it.", rich_help_panel=PROXY)
]


class Format(str, Enum):
    """What is printed."""

    flags = "flags"
    compose = "compose"
    docker = "docker"
    nginx = "nginx"


def harden(
    *,
    release: Annotated[
        str | None, typer.Option(metavar="YY.MM", help="Release of the container.  [default: compose.yaml's]")
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="A script, a compose file, a docker command, or the proxy's file.")
    ] = Format.flags,
    repository: RepositoryOption = Path("model_repository"),
    secrets: Annotated[
        Path, typer.Option(metavar="DIR", help="Certificates and key; `trtgen serve --tls` makes a set for a trial.")
    ] = Path("secrets"),
    cpu: Annotated[bool, typer.Option("--cpu", help="Without GPUs.")] = False,
    http_url: UrlOption = "localhost:8000",
    grpc_url: UrlOption = "localhost:8001",
    listen: Annotated[
        int, typer.Option(min=1, max=65535, metavar="PORT", help="nginx's own port.", rich_help_panel=PROXY)
    ] = 8443,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --format compose: write compose.yaml and nginx.conf there."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Go on with a release that can be taken over whatever its options.")
    ] = False,
) -> None:
    """Print a hardened launch of tritonserver, with the reason of each option and what the release lacks.

    Example: trtgen harden --release 26.10 --format compose --output hardened
    """
    from generator.files import expand_home
    from generator.server.container import STOCK_RELEASE, Hardening
    from generator.server.harden import Launch, find_input_limit
    from generator.server.hardening import judge_release

    if output is not None and form is not Format.compose:
        raise typer.BadParameter("--output goes with --format compose")
    chosen = release or STOCK_RELEASE
    for remark in judge_release(chosen, insecure=insecure):
        say(remark)
    root = expand_home(repository).resolve()
    if not root.is_dir():
        say(f"note: there is no repository {repository}: requests may have as many bytes as Triton takes by default")
    launch = Launch(
        repository=root,
        hardening=Hardening(
            release=chosen, secrets=expand_home(secrets).resolve(), max_input_bytes=find_input_limit(root)
        ),
        gpus=not cpu,
    )
    if output is not None:
        _write_files(output, launch)
    elif form is Format.nginx:
        print(launch.write_nginx(http_url=http_url, grpc_url=grpc_url, port=listen), end="")
    else:
        write = {Format.flags: launch.write_flags, Format.docker: launch.write_docker}
        print(write.get(form, launch.write_compose)(), end="")


def _write_files(folder: Path, launch: Launch) -> None:
    texts = {"compose.yaml": launch.write_compose(), "nginx.conf": launch.write_nginx_of_compose()}
    if present := [name for name in texts if (folder / name).exists()]:
        msg = f"{folder / present[0]} exists and was not changed"
        raise ServerError(msg, hint="move it away, or name another folder", fields={"output": None})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
    except OSError as error:
        msg = f"{folder} cannot be written: {error.strerror}"
        raise ServerError(msg, hint="name another folder", fields={"output": None}) from error
