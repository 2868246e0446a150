"""`trtgen perf`: how fast the served models are."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say
from generator.cli.hints import write_command
from generator.cli.options import SERVED_VARIABLES, make_wait_option, parse_numbers, parse_rates
from generator.cli.perf_results import Wanted, measure_all

if TYPE_CHECKING:
    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.served import MeasuredModel
    from generator.measure.perf.sweep import Load
LOAD, RESULTS = "Load", "Results"  # panels of --help
_HTTP, _GRPC, _METRICS, _REPOSITORY = SERVED_VARIABLES


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
            help="The server.  [default: that of `trtgen serve --`, else 127.0.0.1:8001, http :8000]",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Numbers of requests in flight.  [default: 1,2,4,8]", rich_help_panel=LOAD
        ),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Requests sent per second, however many are answered, in place of --concurrency.",
            rich_help_panel=LOAD,
        ),
    ] = None,
    arrivals: Annotated[
        Literal["constant", "poisson"],
        typer.Option(help="Distances between the requests of --request-rate: equal, or random.", rich_help_panel=LOAD),
    ] = "constant",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.", rich_help_panel=LOAD)] = 1,
    shared_memory: Annotated[
        Literal["none", "system", "cuda"],
        typer.Option(
            help="How images reach the server: in the request, or in shared memory of its host, or of its GPU.",
            rich_help_panel=LOAD,
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
        make_wait_option("Longest time of one measurement, in seconds.", panel=LOAD),
    ] = 300,
    metrics_url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_check_address,
            envvar=_METRICS,
            help="The server's metrics, for its cores, GPUs and power.  [default: the server's host, 8002]",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Make the advised change in a copy of the repository's configurations, serve that, measure again.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="Compare with the perf.json of an earlier run.", rich_help_panel=RESULTS),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for perf.html, perf.csv and perf.json.", rich_help_panel=RESULTS),
    ] = Path("perf"),
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Measure nothing: write what perf_analyzer and Model Analyzer need for a model of --repository.",
        ),
    ] = None,
    repository: Annotated[
        Path,
        typer.Option(
            "--repository",
            "-r",
            metavar="DIR",
            envvar=_REPOSITORY,
            help="The model repository, for --check and --export.",
        ),
    ] = Path("model_repository"),
    install: Annotated[bool, typer.Option("--install", help="Put perf_analyzer beside this Python and leave.")] = False,
) -> None:
    """Measure throughput, latency and time per stage of a served model with perf_analyzer.

    Example: trtgen serve -- trtgen perf --concurrency 1,8,32 --images photos/ --check
    """
    from generator.measure.perf import analyzer, served, sweep
    from generator.measure.perf.images import collect_images
    from generator.measure.results import check_folder

    if install:
        print(analyzer.install_analyzer(Path(sys.prefix)))
        return
    for wrong, msg in (
        (concurrency and request_rate, "--request-rate goes in place of --concurrency"),
        (request_rate and check, "--check goes with --concurrency: what is answered to a fixed rate cannot grow"),
        (request_rate and export, "--export goes with --concurrency"),
        (arrivals != "constant" and not request_rate, "--arrivals goes with --request-rate"),
    ):
        if wrong:
            raise typer.BadParameter(msg)
    concurrencies = [] if request_rate else parse_numbers("1,2,4,8" if concurrency is None else concurrency)
    rates = parse_rates(request_rate) if request_rate else []
    check_folder(output if export is None else export)
    program = analyzer.find_analyzer()
    version = analyzer.check_analyzer(program)
    told = os.environ.get({"grpc": _GRPC, "http": _HTTP}[protocol])
    url = served.find_address(url or told or {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}[protocol])
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
        request_rates=rates,
        arrivals=arrivals,
    )
    if export is not None:
        _export(export, repository, model, collect_images(images), load)
        return
    server, models = served.read_models(protocol, url, model)
    served.check_batch_size(models, batch_size)
    root = _open_served(repository, models) if check else None
    wanted = Wanted(
        models=models if members else models[:1],
        parts=models,
        images=collect_images(images),
        load=load,
        check_in=root,
        compare=compare,
        output=output,
    )
    measure_all(wanted, server=server, analyzer_version=version)


def _open_served(repository: Path, models: list[MeasuredModel]) -> Path:
    """Return the repository's root, which must be the one that the measured server has."""
    from generator.measure.perf.check import check_served
    from generator.server.launch import open_repository
    from generator.server.wheel import check_embedded

    check_embedded()  # what is to serve the copy
    root = open_repository(repository)
    check_served(root, models)
    return root


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
