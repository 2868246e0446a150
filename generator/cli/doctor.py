"""`trtgen doctor`: what is wrong with any model repository, or what a log of tritonserver says."""

from __future__ import annotations

import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.errors import SourceError, SpecError, TrtgenError, near

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.doctor.finding import Finding
    from generator.doctor.repository import ModelRepository


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
    tensorrt: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The container's TensorRT, with which plans are compared.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="X.Y", help="Compute capability of the GPU that serves, such as 9.0.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Explain a log of tritonserver instead; - reads it from stdin.")
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Let the pip server judge the configurations, too, without their files.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Show a diff of what has one right answer.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Apply that diff.")] = False,
    output: Annotated[Format, typer.Option("--format", help="How to print the findings.")] = Format.text,
    fail_on: Annotated[Level, typer.Option(help="The exit code is 1 from this severity on.")] = Level.error,
    ignore: Annotated[list[str] | None, typer.Option(metavar="RULE", help="Leave a rule out; may be repeated.")] = None,
) -> None:
    """Read a model repository, ours or not, and say what is wrong with it; nothing of it is run.

    The exit code is 0 where nothing is found, 1 where something is, and 2 where there is nothing to read.

    Example: trtgen doctor models --release 26.10
    """
    from generator.cli.console import report
    from generator.doctor.formats import FORMATS
    from generator.rules.rule import SEVERITIES
    from generator.server.container import STOCK_RELEASE

    chosen = release or STOCK_RELEASE
    ignored = ignore or []
    try:
        _check_options(chosen, ignored, fix=fix, write=write, plain=output is Format.text and log is None)
        if (repository is None) == (log is None):
            raise SpecError("one of REPOSITORY and --log was expected", hint="trtgen doctor models")
        if repository is None:
            findings, models = _explain(str(log)), 0
        else:
            read_and_examine = _prepare(repository, chosen, tensorrt, gpu)
            read, findings = read_and_examine()
            if fix and _fix(read, findings, write=write):
                read, findings = read_and_examine()
            findings += _prove(read) if prove else []
            models = len(read.models)
    except TrtgenError as error:
        report(error)
        raise typer.Exit(2) from error
    findings = [finding for finding in findings if finding.rule.id not in ignored]
    print(FORMATS[output.value](findings, models=models, release=chosen))
    counted = SEVERITIES[: SEVERITIES.index(fail_on.value) + 1]
    if any(finding.severity in counted for finding in findings):
        raise typer.Exit(1)


def _check_options(release: str, ignored: Sequence[str], *, fix: bool, write: bool, plain: bool) -> None:
    from generator.rules import BY_ID
    from generator.rules.rule import release_key

    try:
        release_key(release)
    except ValueError as error:
        raise SpecError(str(error), hint="give one such as 26.10", fields={"release": None}) from error
    if unknown := [rule for rule in ignored if rule not in BY_ID]:
        meant = near(unknown[0], BY_ID, most=1)
        hint = f"did you mean {meant[0]}?" if meant else "docs/rules.md lists them"
        raise SpecError(f"there is no rule {unknown[0]} to ignore", hint=hint, fields={"ignore": None})
    if write and not fix:
        raise SpecError("--write applies what --fix shows", hint="give both")
    if fix and not plain:
        raise SpecError("--fix goes with a repository and the format text", hint="leave the others out")


def _prepare(
    repository: Path, release: str, tensorrt: str | None, gpu: str | None
) -> Callable[[], tuple[ModelRepository, list[Finding]]]:
    """Return what reads and examines the repository, as often as it is called."""
    from generator.doctor.examine import examine
    from generator.doctor.repository import read_repository
    from generator.plan.library import TensorRTVersion

    try:
        version = TensorRTVersion.parse(tensorrt) if tensorrt else None
    except ValueError as error:
        raise SpecError(str(error), hint="give one such as 10.9.0.34", fields={"tensorrt": None}) from error
    if gpu is not None and not re.fullmatch(r"\d+\.\d", gpu):
        raise SpecError(f"{gpu!r} is not a compute capability", hint="give one such as 9.0", fields={"gpu": None})

    def read_and_examine() -> tuple[ModelRepository, list[Finding]]:
        read = read_repository(repository)
        return read, examine(read, release, tensorrt=version, gpu=gpu)

    return read_and_examine


def _fix(repository: ModelRepository, findings: Sequence[Finding], *, write: bool) -> bool:
    """Show what has one right answer; return whether something was written."""
    from generator.cli.console import say
    from generator.doctor.fix import find_fixes, write_fix
    from generator.doctor.formats import make_printable

    fixes = find_fixes(repository, findings)
    for one in fixes:
        print("\n".join(map(make_printable, one.diff().split("\n"))))
        if write:
            write_fix(one)
            say(f"* wrote {one.path}")
    if not fixes:
        say("nothing of what was found has one right answer")
    elif not write:
        say("--write applies this")
    return write and bool(fixes)


def _prove(repository: ModelRepository) -> list[Finding]:
    from generator.cli.console import say
    from generator.doctor.formats import make_printable
    from generator.doctor.prove import SERVER_RELEASE, prove

    proof = prove(repository)
    judged = len(proof.agreed) + len(proof.disagreements)
    agreed = f"{len(proof.agreed)} of {judged} models"
    say(f"tritonserver {SERVER_RELEASE}, by whose rules this is, and doctor agree on {agreed}")
    for model, reason in proof.not_judged.items():
        say(f"  not judged: {make_printable(model)}: {reason}")
    return proof.disagreements


def _explain(name: str) -> list[Finding]:
    from generator.doctor.log import explain_log

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}", hint="give a log of tritonserver") from error
    return explain_log(data.decode(errors="replace"), Path("stdin" if name == "-" else name))
