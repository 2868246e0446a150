"""`trtgen verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say, show_progress
from generator.cli.options import JsonOption, RepositoryOption

if TYPE_CHECKING:
    from generator.gate import GateReport


def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Models; all if none.")] = None,
    *,
    repository: RepositoryOption = Path("model_repository"),
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Compare on these images; asks the source itself (needs torch)."),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled",
            metavar="DIR",
            help="Also give the accuracy of each stage: a folder per class, for a detector COCO or YOLO annotations.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="HOST:PORT", help="gRPC address of a running server; by default one is started."),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --url, for TLS: the folder with ca.crt, client.crt and client.key."),
    ] = None,
    require: Annotated[
        Literal["all"] | None, typer.Option("--require", help="Also fail if a stage cannot run here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that what is published answers like its source: the graph, the plan, each served step, the JPEG ensemble.

    Example: trtgen verify resnet50 --labelled validation/
    """
    from generator.gate.published import verify_published

    if secrets is not None and url is None:
        raise typer.BadParameter("--secrets goes with --url")
    reports = []
    with show_progress() as progress:
        for report in verify_published(
            repository,
            names or [],
            images=images,
            labelled=labelled,
            grpc_url=url,
            secrets=secrets,
            on_event=progress.draw,
        ):
            progress.hide()
            reports.append(report)
            if not as_json:
                _print_table(report)
    if as_json:
        print(json.dumps([{"model": r.model, "images": r.images, "stages": r.as_proof()} for r in reports], indent=2))
    for report in reports:
        report.raise_for_status(require_all=require == "all")


def _print_table(report: GateReport) -> None:
    say(f"{report.model}: {report.images} images")
    width = max((len(result.stage) for result in report.results), default=0)
    for result in report.results:
        accuracy = f"accuracy {result.figures['accuracy']:.1%}" if "accuracy" in result.figures else ""
        text = "  ".join(part for part in (result.measured, accuracy) if part) or result.reason
        print(f"{report.model}  {result.stage:{width}}  {result.status:11} {text}")
