"""`trtgen perf`: how fast the served models are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say, show_progress
from generator.cli.hints import write_command
from generator.cli.options import RepositoryOption, parse_numbers
from generator.errors import PerfError
from generator.events import Doing

if TYPE_CHECKING:
    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.measurement import Unsettled
    from generator.measure.perf.sweep import Load
LOAD = "Load"  # a panel of --help


def _check_address(text: str | None) -> str | None:
    match = re.fullmatch(r"[^/]+:(\d+)", text or "localhost:1")
    if not match or not 0 < int(match[1]) < 2**16:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return text


def _find_metrics_url(url: str) -> str:
    """Triton's metrics are on the host that serves the models, by default on port 8002."""
    return f"{url.rpartition(':')[0]}:8002"


def perf(
    *,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model to measure.  [default: the one ensemble served]")
    ] = None,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="Protocol of the requests.")] = "grpc",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_check_address,
            help="The server.  [default: 127.0.0.1:8001, http :8000]",
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of requests in flight.", rich_help_panel=LOAD)
    ] = "1,2,4,8",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.", rich_help_panel=LOAD)] = 1,
    shared_memory: Annotated[
        Literal["none", "system"],
        typer.Option(
            help="How images reach the server: in the request, or in shared memory of its host.", rich_help_panel=LOAD
        ),
    ] = "none",
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Folder of images.  [default: drawn images]",
            rich_help_panel=LOAD,
        ),
    ] = None,
    members: Annotated[bool, typer.Option(help="Also measure an ensemble's members on their own.")] = True,
    measurement_requests: Annotated[
        int,
        typer.Option(min=1, help="Least number of requests in each window of a measurement.", rich_help_panel=LOAD),
    ] = 100,
    max_spread: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            min=0.1,
            help="How far three windows in a row may differ; else nothing has settled.",
            rich_help_panel=LOAD,
        ),
    ] = 20,
    timeout: Annotated[
        float,
        typer.Option(min=1, metavar="S", help="Longest time of one measurement, in seconds.", rich_help_panel=LOAD),
    ] = 300,
    metrics_url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_check_address,
            help="The server's metrics, for GPU utilisation and power.  [default: the server's host, 8002]",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for perf.csv and perf.json.")] = Path("perf"),
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Measure nothing: write what perf_analyzer and Model Analyzer need for a model of --repository.",
        ),
    ] = None,
    repository: RepositoryOption = Path("model_repository"),
    install: Annotated[bool, typer.Option("--install", help="Put perf_analyzer beside this Python and leave.")] = False,
) -> None:
    """Measure throughput, latency and time per stage of a served model with perf_analyzer.

    Example: trtgen perf --concurrency 1,8,32 --images photos/
    """
    from generator.measure.perf import analyzer, served, sweep
    from generator.measure.perf.images import collect_images
    from generator.measure.perf.measurement import Measurement
    from generator.measure.perf.output import describe_load, format_table, make_files
    from generator.measure.results import check_folder, write_files

    if install:
        print(analyzer.install_analyzer(Path(sys.prefix)))
        return
    concurrencies = parse_numbers(concurrency)
    check_folder(output if export is None else export)
    program = analyzer.find_analyzer()
    version = analyzer.check_analyzer(program)
    url = served.find_address(url or {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}[protocol])
    load = sweep.Load(
        analyzer=program,
        protocol=protocol,
        url=url,
        concurrencies=concurrencies,
        requests_per_window=measurement_requests,
        timeout_s=timeout,
        batch_size=batch_size,
        shared_memory=shared_memory,
        metrics_url=metrics_url or _find_metrics_url(url),
        max_spread_percent=max_spread,
    )
    if export is not None:
        _export(export, repository, model, collect_images(images), load)
        return
    server, models = served.read_models(protocol, url, model)
    served.check_batch_size(models, batch_size)
    chosen = collect_images(images)
    models = models if members else models[:1]
    say(f"measuring {', '.join(one.name for one in models)} at {url} with {chosen.source}: 3 s or more per line")
    found: list[Measurement | Unsettled] = []
    try:
        with show_progress() as progress:
            progress.draw(Doing(step="measuring"))
            for one in sweep.measure(models, chosen, load):
                told = (
                    f"{one.infer_per_s:.1f} images/s" if isinstance(one, Measurement) else f"not settled: {one.problem}"
                )
                say(f"* {one.model}  concurrency {one.concurrency}  {told}")
                found.append(one)
    finally:  # what was measured before an error or Ctrl-C is worth keeping
        if found:
            print(format_table(found))
            about = describe_load(server=server, analyzer_version=version, load=load, images=chosen)
            for path in write_files(make_files(found, about), output):
                say(f"wrote {path}")
    measured = [one for one in found if isinstance(one, Measurement)]
    unknown = [one.gpu.unknown for one in measured if one.gpu.unknown]
    if unknown:
        say(f"note: GPU figures are missing: {unknown[0]}")
    if len(measured) < len(found):
        raise PerfError(
            f"{len(found) - len(measured)} of {len(found)} measurements did not settle, so they have no figures",
            hint="stop what else keeps the machine busy, raise --measurement-requests, or allow a larger --max-spread",
        )


def _export(folder: Path, repository: Path, name: str | None, images: RequestImages, load: Load) -> None:
    """Write the files and say how they are used."""
    from generator.measure.perf import served
    from generator.measure.perf.export import write_export
    from generator.server.launch import open_repository

    serve = write_command(("serve",), {"repository": repository})
    root = open_repository(repository)
    models = served.read_repository(root, name)
    served.check_batch_size(models, load.batch_size)
    written, missing = write_export(folder, repository=root, models=models, images=images, load=load)
    for path in written:
        print(path)
    if missing:
        say(f"note: no tritonserver for Model Analyzer's local mode was written: {missing}")
    say(f"beside `{serve}`: {folder}/perf_analyzer.sh")
    say(f"alone: model-analyzer profile -f {folder}/model_analyzer.yaml")
    say(f"beside `{serve} --model-control explicit --unlocked`: the same with --triton-launch-mode remote")
