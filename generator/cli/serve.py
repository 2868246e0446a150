"""`trtgen serve`."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say, show_progress, step
from generator.cli.options import SERVED_VARIABLES, RepositoryOption
from generator.errors import ServerError
from generator.events import Doing
from generator.release.store import is_address
from generator.signals import EndedBySignal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.server.container import Hardening
    from generator.server.embedded import EmbeddedServer
    from generator.server.ports import Ports

CONTAINER, RELEASE = "Container", "With a STORE"  # panels of --help
_REPOSITORY = Path("model_repository")
_COMMAND_ENDS_S = 10.0  # what a command gets to clean up
PortOption = Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0 takes a free one.")]


def serve(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORE -- COMMAND",
            help="A store of releases, such as s3://bucket/releases: its release is served. After --: run this once "
            "every model is ready, then stop and leave with its exit code.",
            show_default=False,
        ),
    ] = None,
    *,
    repository: RepositoryOption = _REPOSITORY,
    http_port: PortOption = 8000,
    grpc_port: PortOption = 8001,
    metrics_port: PortOption = 8002,
    address: Annotated[str, typer.Option(metavar="IPV4", help="What to bind to.")] = "127.0.0.1",
    allow_non_loopback: Annotated[
        bool, typer.Option("--allow-non-loopback", help="Accept an --address that other machines can reach.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="tritonserver's log. [default: a temporary file]")
    ] = None,
    ready_timeout_s: Annotated[float, typer.Option(metavar="S", help="How long loading the models may take.")] = 120,
    model_control: Annotated[
        Literal["none", "explicit"],
        typer.Option(help="`explicit` lets callers load and unload models; on loopback, with a secret header."),
    ] = "none",
    unlocked: Annotated[
        bool,
        typer.Option(
            "--unlocked",
            help="With --model-control explicit: without the header, for Model Analyzer. "
            "Every program on this machine may then run code as you.",
        ),
    ] = False,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="TLS for gRPC, a certificate asked of clients; made if --secrets is not there."),
    ] = False,
    hardened: Annotated[
        bool,
        typer.Option("--hardened", help="What `trtgen harden` advises: TLS, restricted APIs, limits; see its --help."),
    ] = False,
    secrets: Annotated[
        Path, typer.Option(metavar="DIR", help="With --tls and --hardened: certificates and key.")
    ] = Path("secrets"),
    mps: Annotated[
        bool | None,
        typer.Option(
            "--mps/--no-mps",
            help="Let processes share a GPU through NVIDIA's Multi-Process Service. "
            "[default: where a model has several Python processes on one]",
            show_default=False,
        ),
    ] = None,
    channel: Annotated[
        str, typer.Option(metavar="NAME", help="Whose release is served.", rich_help_panel=RELEASE)
    ] = "production",
    direct: Annotated[
        bool,
        typer.Option(
            "--direct", help="Let tritonserver read it from s3:// by itself, unchecked.", rich_help_panel=RELEASE
        ),
    ] = False,
    container: Annotated[
        bool, typer.Option("--container", help="Run the stock tritonserver with docker.", rich_help_panel=CONTAINER)
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="The image. [default: trtgen-serving:26.10]", rich_help_panel=CONTAINER),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Without GPUs.", rich_help_panel=CONTAINER)] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the command.", rich_help_panel=CONTAINER)
    ] = False,
) -> None:
    """Serve the model repository with a real tritonserver until Ctrl-C.

    Example: trtgen serve -- python clients/classify.py cat.jpg
    """
    store = command.pop(0) if command and is_address(command[0]) else None
    for wrong, msg in (
        (store is None and (direct or channel != "production"), "--channel and --direct go with a store of releases"),
        (store is not None and repository != _REPOSITORY, "give a store of releases or a --repository"),
        (direct and container, "--direct goes with the pip server, not with --container"),
        (not container and (image or cpu or dry_run), "--image, --cpu and --dry-run go with --container"),
        (container and mps, "--mps goes with the pip server, not with --container"),
        (container and command, "a command after -- goes with the pip server, not with --container"),
        (container and model_control != "none", "--model-control goes with the pip server, not with --container"),
        (unlocked and model_control == "none", "--unlocked goes with --model-control explicit"),
        (unlocked and hardened, "--unlocked does not go with --hardened"),
        (container and tls and not hardened, "with --container, --tls comes with --hardened"),
    ):
        if wrong:
            raise typer.BadParameter(msg)
    with contextlib.ExitStack() as stack:
        url = ""
        if store is not None:
            repository, url = _open_release(store, channel, direct=direct, stack=stack)
        if container:
            from generator.server.ports import Ports, check_address

            check_address(address, allow_non_loopback=allow_non_loopback, embedded=False)
            ports = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
            hardening = _read_hardening(repository, image, secrets) if hardened else None
            _serve_container(
                repository,
                ports,
                address=address,
                image=image,
                gpus=not cpu,
                log=log,
                dry_run=dry_run,
                hardening=hardening,
            )
            return
        from generator.server.embedded import EmbeddedServer

        if tls or hardened:
            from generator.server.secret_files import make_secrets

            if make_secrets(secrets, address=address):
                say(f"made {secrets}: certificates and a key for development")
        server = EmbeddedServer(
            repository,
            address=address,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            log_path=log,
            ready_timeout_s=ready_timeout_s,
            allow_non_loopback=allow_non_loopback,
            explicit=model_control == "explicit",
            locked=not unlocked,
            secrets_folder=secrets if tls or hardened else None,
            hardened=hardened,
            url=url,
            mps=mps,
        )
        _serve_embedded(server, command, log=log)


def _open_release(store: str, channel: str, *, direct: bool, stack: contextlib.ExitStack) -> tuple[Path, str]:
    """Return the folder of the channel's release and, with `direct`, the address at which tritonserver reads it."""
    if direct:
        from generator.release.direct import prepare_direct

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtgen-release-")))
        release, url = prepare_direct(store, folder, channel=channel)
        step(f"{channel} names {release}", detail=f"read by tritonserver itself, unchecked: {url}")
        return folder, url
    from generator.files import find_cache, hash_bytes
    from generator.release.fetch import pull

    folder = find_cache() / "releases" / hash_bytes(f"{store} {channel}".encode())[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with show_progress() as progress:
        pulled = pull(store, folder, channel=channel, discard_edits=True, on_event=progress.draw)
    detail = f"{pulled.fetched_bytes / 1e6:,.1f} MB fetched, every file checked"
    step(f"{channel} names {pulled.manifest.release}", detail=detail)
    return folder, ""


def _serve_embedded(server: EmbeddedServer, command: Sequence[str] | None, *, log: Path | None) -> None:
    started = time.monotonic()
    code = 0
    with contextlib.ExitStack() as stack:
        with show_progress() as progress:
            progress.draw(Doing(step="starting tritonserver"))
            stack.enter_context(server)
        _describe(server, seconds=time.monotonic() - started, log=log)
        if command:
            code = _run(command, variables=_tell_command(server))
        else:
            try:
                say("Ctrl-C stops it.")  # in here, since who reads it may be quick
                server.wait()
            except KeyboardInterrupt:
                say("stopping (Ctrl-C again kills at once)")
    if code:
        raise typer.Exit(code)


def _tell_command(server: EmbeddedServer) -> dict[str, str]:
    """Return what the command finds the server by, in its environment."""
    found = (server.http_url, server.grpc_url, server.metrics_url, str(server.repository))
    return dict(zip(SERVED_VARIABLES, found, strict=True))


def _run(command: Sequence[str], *, variables: Mapping[str, str]) -> int:
    """Run the command and return its exit code; what ends this process ends the command, too."""
    say(f"$ {shlex.join(command)}")
    try:
        process = subprocess.Popen(command, env={**os.environ, **variables})
    except OSError as error:
        msg = f"{command[0]} cannot be run: {error.strerror}"
        raise ServerError(msg, hint="give a command that is on PATH, after --") from error
    try:
        code = process.wait()
    except KeyboardInterrupt as end:
        if isinstance(end, EndedBySignal) and end.number != signal.SIGINT:  # Ctrl-C has reached it already
            process.send_signal(end.number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_COMMAND_ENDS_S)
        raise
    finally:
        process.kill()
        process.wait()
    return code if code >= 0 else 128 - code


def _describe(server: EmbeddedServer, *, seconds: float, log: Path | None) -> None:
    from generator.server.hardening import OWNER_HEADER
    from generator.server.secret_files import API_KEY

    models = server.models()
    step("tritonserver is ready", detail=f"{len(models)} models", seconds=seconds)
    width = max(len(model.name) for model in models)
    for model in models:
        say(f"  {model.name:<{width}}  {model.version}  {model.state}")
    say(f"  HTTP     http://{server.http_url}")
    say(f"  gRPC     {server.grpc_url}")
    say(f"  metrics  http://{server.metrics_url}/metrics")
    say(
        f"  log      {server.log_path}" + ("" if log else "  (removed at the end unless it fails; --log FILE keeps it)")
    )
    if server.shares_gpu:
        say("  MPS      processes share the GPU through NVIDIA's Multi-Process Service; --no-mps does without")
    if server.secrets_folder:
        names = {"ca": "ca.crt", "certificate": "client.crt", "key": "client.key"}
        options = " ".join(f"--{option} {server.secrets_folder / name}" for option, name in names.items())
        say(f"  TLS      gRPC only, HTTP has none in any release; of our clients: --tls {options}")
    if server.hardened:
        say("  closed   to everything but health, metadata and inference; who has the key opens it:")
        say(f"           --header '{OWNER_HEADER}: @{server.secrets_folder}/{API_KEY}'")
    elif server.explicit and server.secret:
        say("  locked   calls that list, load and unload models must carry the header (gRPC: triton-grpc-protocol-...)")
        say(f"           {OWNER_HEADER}: {server.secret}")


def _read_hardening(repository: Path, image: str | None, secrets: Path) -> Hardening:
    from generator.server.container import DEFAULT_IMAGE, Hardening
    from generator.server.harden import find_input_limit
    from generator.server.hardening import find_image_release, judge_release
    from generator.server.secret_files import check_secrets

    release = find_image_release(image or DEFAULT_IMAGE)
    for remark in judge_release(release):
        say(remark)
    folder = check_secrets(secrets)
    return Hardening(release=release, secrets=folder, max_input_bytes=find_input_limit(repository))


def _serve_container(
    repository: Path,
    wish: Ports,
    *,
    address: str,
    image: str | None,
    gpus: bool,
    log: Path | None,
    dry_run: bool,
    hardening: Hardening | None,
) -> None:
    from generator.server.container import DEFAULT_IMAGE, Container
    from generator.server.launch import open_repository
    from generator.server.ports import choose_ports

    root = open_repository(repository)
    # Printing must not depend on which ports happen to be taken now.
    ports = wish if dry_run and not wish.any_free else choose_ports(wish, address=address)
    run = Container(root, ports=ports, image=image or DEFAULT_IMAGE, address=address, gpus=gpus, hardening=hardening)
    run.check()
    if dry_run:
        print(shlex.join(run.argv))
        return
    say(shlex.join(run.argv))
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="trtgen-serve-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log_path = log or folder / "tritonserver.log"
        try:
            run.run(show=say, log_path=log_path)
        except KeyboardInterrupt:
            say(f"stopped (log: {log})" if log else "stopped")
        except ServerError as error:
            if not log and any(str(log_path) in text for text in (error.message, error.hint, *error.log_tail)):
                stack.pop_all()  # who reads that will look for the log
            raise
