"""`trtgen monitor`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from generator.cli.console import say
from generator.cli.options import RepositoryOption

WATCHING, SCRAPING = "Alerts", "Example of a Prometheus"  # panels of --help


def _check_address(text: str) -> str:
    found = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", text, re.ASCII)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT, such as localhost:8002, without http:// and a path")
    return text


def _check_job(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise typer.BadParameter(f"{text!r} is not a job name: printable text was expected, such as triton")
    return text


def monitor(
    *,
    repository: RepositoryOption = Path("model_repository"),
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")] = Path("monitoring"),
    job: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            parser=_check_job,
            help="Prometheus' job for the servers; JOB-ready is that of the blackbox exporter.",
            rich_help_panel=WATCHING,
        ),
    ] = "triton",
    canary_job: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=_check_job,
            help="Prometheus' job for the canary.  [default: JOB-canary]",
            rich_help_panel=WATCHING,
        ),
    ] = None,
    queue_ms: Annotated[
        float,
        typer.Option(
            min=0.001,
            metavar="MS",
            help="Mean wait in front of a model that is too long; half of its queue's timeout where it has one.",
            rich_help_panel=WATCHING,
        ),
    ] = 100,
    failing: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=75,
            metavar="PERCENT",
            help="Share of failed requests that is too high.",
            rich_help_panel=WATCHING,
        ),
    ] = 5,
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            parser=_check_address,
            help="A server's metrics; repeatable.  [default: localhost:8002]",
            rich_help_panel=SCRAPING,
        ),
    ] = None,
    http_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            parser=_check_address,
            help="A server's HTTP; repeatable.  [default: localhost:8000]",
            rich_help_panel=SCRAPING,
        ),
    ] = None,
    canary_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            parser=_check_address,
            help="A canary's metrics; repeatable.",
            rich_help_panel=SCRAPING,
        ),
    ] = None,
    discard_edits: Annotated[
        bool,
        typer.Option("--discard-edits", help="Also replace files that this command did not write, or somebody edited."),
    ] = False,
) -> None:
    """Write Prometheus rules with their unit tests, a Grafana dashboard and what to scrape, for a repository's servers.

    Example: trtgen monitor -r models --output monitoring --queue-ms 50
    """
    from generator.files import expand_home
    from generator.monitoring.files import RULES, UNIT_TESTS, make_files
    from generator.monitoring.rules import Limits
    from generator.monitoring.scrape import Targets
    from generator.monitoring.watched import find_watched
    from generator.written import write_files

    output = expand_home(output)
    models = find_watched(expand_home(repository))
    limits = Limits(
        job=job,
        ready_job=f"{job}-ready",
        canary_job=canary_job or f"{job}-canary",
        queue_s=queue_ms / 1000,
        failing_share=failing / 100,
    )
    targets = Targets(
        metrics=tuple(metrics_url or ["localhost:8002"]),
        http=tuple(http_url or ["localhost:8000"]),
        canary=tuple(canary_url or []),
    )
    for path, word in write_files(make_files(models, limits, targets), output, discard_edits=discard_edits).items():
        print(f"{word:9} {path}")
    say(f"check them: promtool check rules {output / RULES}; promtool test rules {output / UNIT_TESTS}")
