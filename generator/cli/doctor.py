"""`trtgen doctor`: what is wrong with any model repository, or what a log of tritonserver says."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from generator.errors import SourceError, SpecError


class Format(str, Enum):
    """How findings are printed."""

    text = "text"
    json = "json"
    sarif = "sarif"
    github = "github"


class Level(str, Enum):
    """From which severity on the exit code is 1."""

    error = "error"
    warning = "warning"
    note = "note"


def doctor(
    repository: Annotated[
        Path | None,
        typer.Argument(metavar="REPOSITORY", help="What tritonserver gets as --model-repository.", show_default=False),
    ] = None,
    *,
    release: Annotated[
        str | None, typer.Option(metavar="YY.MM", help="Release of the container.  [default: compose.yaml's]")
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Explain a log of tritonserver instead; - reads it from stdin.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print the findings.")] = Format.text,
    fail_on: Annotated[Level, typer.Option(help="The exit code is 1 from this severity on.")] = Level.error,
    ignore: Annotated[list[str] | None, typer.Option(metavar="RULE", help="Leave a rule out; may be repeated.")] = None,
) -> None:
    """Read a model repository, ours or not, and say what is wrong with it; nothing of it is run.

    The exit code is 0 where nothing is found, 1 where something is, and 2 where there is nothing to read.

    Example: trtgen doctor models --release 26.10
    """
    from generator.cli.console import report
    from generator.doctor.examine import examine
    from generator.doctor.formats import FORMATS
    from generator.doctor.log import explain_log
    from generator.doctor.repository import read_repository
    from generator.rules import BY_ID
    from generator.rules.rule import SEVERITIES, release_key
    from generator.server.container import STOCK_RELEASE

    chosen = release or STOCK_RELEASE
    try:
        release_key(chosen)
    except ValueError as error:
        raise SpecError(str(error), hint="give one such as 26.10", fields={"release": None}) from error
    if unknown := [rule for rule in ignore or () if rule not in BY_ID]:
        msg = f"--ignore {unknown[0]}: there is no such rule"
        raise SpecError(msg, hint="rules are listed in docs/rules.md")
    if (repository is None) == (log is None):
        raise SpecError("one of REPOSITORY and --log was expected", hint="trtgen doctor models")
    try:
        if repository is not None:
            read = read_repository(repository)
            findings, models = examine(read, chosen), len(read.models)
        else:
            findings, models = explain_log(*_read_log(str(log))), 0
    except SourceError as error:
        report(error)
        raise typer.Exit(2) from error
    findings = [finding for finding in findings if finding.rule.id not in (ignore or ())]
    print(FORMATS[output.value](findings, models=models, release=chosen))
    counted = SEVERITIES[: SEVERITIES.index(fail_on.value) + 1]
    if any(finding.severity in counted for finding in findings):
        raise typer.Exit(1)


def _read_log(name: str) -> tuple[str, Path]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}", hint="give a log of tritonserver") from error
    return data.decode(errors="replace"), Path("stdin" if name == "-" else name)
