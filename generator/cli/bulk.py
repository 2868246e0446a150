"""What classify-all and detect-all share."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say, show_progress, step
from generator.events import Doing

if TYPE_CHECKING:
    from collections.abc import Callable

    from generator.bulk.results import Finished
    from generator.bulk.run import Engine
    from generator.cli.console import Progress
    from generator.events import Done
    from generator.gate.candidate import Candidate

_SAID_EVERY_S = 60.0

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder, a quoted pattern, s3://bucket/prefix, or a .csv or .parquet file with a column `path`.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Where the Parquet files go, and where a run that was broken off goes on.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model.  [default: the only one of its kind there]")
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, max=2**16, metavar="N", help="Images that run at once.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes, each with the network.  [default: one for each core, at most 8; "
        "with a plan 4 for each GPU, up to 6 where it decodes]",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="HOST:PORT[,...]",
        help="Ask these servers (gRPC), in turn, in place of the repository.",
    ),
]
InFlightOption = Annotated[
    int, typer.Option("--in-flight", min=1, metavar="N", help="With --endpoint: requests that wait for an answer.")
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=1,
        max=2**31 - 1,  # gRPC knows no later deadline
        metavar="S",
        help="With --endpoint: seconds for an answer, also while a server restarts.",
    ),
]
SecretsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With --endpoint, for TLS: the folder with ca.crt, client.crt and client.key."),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine", help="What runs it: processes of this machine, or Ray's workers, on several (needs the extra ray)."
    ),
]
RowsOption = Annotated[
    int,
    typer.Option("--rows-per-part", min=1, metavar="N", help="Rows of a Parquet file, at least; fewer after a minute."),
]


def answer_all(
    source_text: str,
    out: Path,
    *,
    task: str,
    repository: Path,
    model: str | None,
    top: int | None,
    batch: int,
    workers: int | None,
    rows_per_part: int,
    endpoint: str | None,
    in_flight: int,
    timeout_s: float,
    secrets: Path | None,
    engine: str,
) -> None:
    """Answer all images of a source with a model of this task, and say what came of it.

    Raises:
        BulkError: See `generator.bulk.run`.
        RepositoryError: There is no such model.
        MissingDependencyError: Ray is not installed.
    """
    from generator.bulk.endpoint import find_served_model, make_endpoint_steps
    from generator.bulk.local import choose_model, identify_local, make_local_steps
    from generator.bulk.results import open_results
    from generator.bulk.run import run_bulk
    from generator.bulk.sources import open_source
    from generator.bulk.step import find_candidate
    from generator.files import expand_home

    if secrets is not None and endpoint is None:
        raise typer.BadParameter("--secrets goes with --endpoint")
    source = open_source(source_text)
    candidate = None
    if endpoint is not None:
        endpoints = _split_endpoints(endpoint)
        served = find_served_model(endpoints, model, task, secrets)
        batch = min(batch, served.most_images or batch)
        identity = served.identify(top)
        steps = make_endpoint_steps(
            endpoints, served, top=top, in_flight=in_flight, timeout_s=timeout_s, secrets=secrets, workers=workers or 1
        )
    else:
        root = expand_home(repository).resolve()
        name = model or choose_model(root, task)
        identity = identify_local(root, name, task=task, top=top)
        steps = make_local_steps(root, name, top=top, workers=workers)
        candidate = find_candidate(root, name)
    run_engine = _open_engine(engine, candidate)
    identity = {**source.identify(), **identity}
    with open_results(expand_home(out), identity, rows_per_part=rows_per_part) as results:
        before, since_s = results.finished, time.monotonic()
        if before.items:
            done = "all of the source" if results.is_complete else "it goes on behind them"
            say(f"{out} holds the answers to {before.items:,} images: {done}")
        try:
            with show_progress() as progress:
                run_bulk(source, results, steps, batch_size=batch, engine=run_engine, on_event=_make_drawing(progress))
        except BaseException:
            if kept := results.finished.items:
                say(f"{out} holds the answers to {kept:,} images: the same command goes on behind them")
            raise
        _say_what_came(out, before, results.finished, time.monotonic() - since_s)


def _split_endpoints(text: str) -> list[str]:
    """Return the addresses in a list that commas separate."""
    endpoints = text.split(",")
    for one in endpoints:
        found = re.fullmatch(r"[^/\s]+:(\d{1,5})", one)
        if found is None or not 0 < int(found[1]) < 2**16:
            raise typer.BadParameter(f"{one!r} is not HOST:PORT", param_hint="--endpoint")
    return endpoints


def _open_engine(name: str, candidate: Candidate | None) -> Engine:
    """Return what runs the steps, those of an endpoint where there is no candidate."""
    on_gpu = candidate if candidate is not None and candidate.plan is not None else None
    if name == "ray":
        from generator.bulk.local import count_per_gpu
        from generator.bulk.ray_engine import RayEngine

        return RayEngine(per_gpu=0 if on_gpu is None else count_per_gpu(on_gpu))
    from generator.bulk.run import run_in_processes, run_on_shared_gpus

    return run_on_shared_gpus if on_gpu is not None and on_gpu.spec.decode == "gpu" else run_in_processes


def _make_drawing(progress: Progress) -> Callable[[Doing | Done], None]:
    """Return what draws the state on a terminal, and says it every minute where there is none."""
    said_s = time.monotonic()

    def draw(event: Doing | Done) -> None:
        nonlocal said_s
        if sys.stderr.isatty():
            progress.draw(event)
        elif isinstance(event, Doing) and time.monotonic() - said_s >= _SAID_EVERY_S:
            said_s = time.monotonic()
            say(event.part)

    return draw


def _say_what_came(out: Path, before: Finished, finished: Finished, seconds: float) -> None:
    count = finished.items - before.items
    if count:
        step(f"answered {count:,} images", detail=f"{count / seconds:,.0f} images/s", seconds=seconds)
    if finished.errors:
        share = finished.errors / finished.items
        say(f"{finished.errors:,} of {finished.items:,} images ({share:.1%}) have no answer: see the column `error`")
    print(out)
