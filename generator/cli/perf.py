"""`trtgen perf`: how fast the served models are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from generator.cli.console import say

SPREAD_WORTH_A_NOTE = 0.2


def _parse_concurrencies(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers from 1, such as 1,2,4,8")
    return values


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
    model: Annotated[str | None, typer.Option(help="Model to measure.  [default: the one ensemble served]")] = None,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="Protocol of the requests.")] = "grpc",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_check_address,
            help="The server.  [default: localhost:8001, http :8000]",
        ),
    ] = None,
    concurrency: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of requests in flight.")] = "1,2,4,8",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.")] = 1,
    shared_memory: Annotated[
        Literal["none", "system"],
        typer.Option(help="How images reach the server: in the request, or in shared memory of its host."),
    ] = "none",
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of images.  [default: drawn images]")
    ] = None,
    members: Annotated[bool, typer.Option(help="Also measure an ensemble's members on their own.")] = True,
    measurement_requests: Annotated[
        int, typer.Option(min=1, help="Least number of requests in each of the three windows of a measurement.")
    ] = 100,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time of one measurement, in seconds.")] = 300,
    metrics_url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_check_address,
            help="The server's metrics, for GPU utilisation and power.  [default: the server's host, 8002]",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for perf.csv and perf.json.")] = Path("perf"),
    install: Annotated[bool, typer.Option("--install", help="Put perf_analyzer beside this Python and leave.")] = False,
) -> None:
    """Measure throughput, latency and time per stage of a served model with perf_analyzer."""
    from generator.perf import analyzer, report, served, sweep
    from generator.perf import images as image_sets
    from generator.perf.about import describe_run
    from generator.perf.folder import check_folder

    if install:
        print(analyzer.install_analyzer(Path(sys.prefix) / "bin"))
        return
    concurrencies = _parse_concurrencies(concurrency)
    check_folder(output)
    program = analyzer.find_analyzer()
    version = analyzer.check_analyzer(program)
    url = url or {"grpc": "localhost:8001", "http": "localhost:8000"}[protocol]
    server, models = served.read_models(protocol, url, model)
    served.check_batch_size(models, batch_size)
    chosen = image_sets.collect_images(images)
    load = sweep.Load(
        analyzer=program,
        protocol=protocol,
        url=url,
        concurrencies=concurrencies,
        requests=measurement_requests,
        timeout_s=timeout,
        batch_size=batch_size,
        shared_memory=shared_memory,
        metrics_url=metrics_url or _find_metrics_url(url),
    )
    models = models if members else models[:1]
    say(f"measuring {', '.join(one.name for one in models)} at {url} with {chosen.source}: 3 s or more per line")
    measurements = []
    try:
        for one in sweep.measure(models, chosen, load):
            say(f"* {one.model}  concurrency {one.concurrency}  {one.infer_per_s:.1f} images/s")
            measurements.append(one)
    finally:  # what was measured before an error or Ctrl-C is worth keeping
        if measurements:
            print(report.format_table(measurements))
            about = describe_run(
                server=server, analyzer_version=version, load=load, images=chosen, arguments=sys.argv[1:]
            )
            for path in report.write_report(measurements, about=about, folder=output):
                say(f"wrote {path}")
    unknown = [one.gpu.unknown for one in measurements if one.gpu.unknown]
    if unknown:
        say(f"note: GPU figures are missing: {unknown[0]}")
    if any(one.spread is not None and one.spread > SPREAD_WORTH_A_NOTE for one in measurements):
        say("note: a large spread means a busy machine or short windows; raise --measurement-requests, measure again")
