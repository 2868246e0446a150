"""`trtgen build-repo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say, show_progress
from generator.cli.hints import describe_hint
from generator.cli.options import PROOF, ImagesOption, JsonOption, RepositoryOption, takes_models
from generator.cli.several_models import end_with, run_each
from generator.errors import SpecError, TrtgenError

if TYPE_CHECKING:
    from generator.pipeline import Built
    from generator.spec.model import ModelSpec


@takes_models
def build_repo(
    specs: list[ModelSpec],
    *,
    repository: RepositoryOption = Path("model_repository"),
    images: ImagesOption = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run the gate before publishing.", rich_help_panel=PROOF)
    ] = True,
    require: Annotated[
        Literal["all"] | None,
        typer.Option("--require", help="Also fail if a stage of the gate cannot run here.", rich_help_panel=PROOF),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the published versions where classes, shapes or recipe changed.")
    ] = False,
    discard_edits: Annotated[
        bool, typer.Option("--discard-edits", help="Overwrite published files that somebody edited by hand.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the model repository: export, build the plan, configure, prove, publish.

    Example: trtgen build-repo resnet50 --max-batch 16
    """
    if require and not verify:
        msg = "--require all asks for every stage of the gate, --no-verify for none"
        raise SpecError(msg, hint="leave one of them out")
    from generator import api

    def build(model: ModelSpec) -> Built:
        with show_progress() as progress:
            built = api.build(
                model,
                repository,
                images=images,
                verify=verify,
                require_all=require == "all",
                replace=replace,
                discard_edits=discard_edits,
                dry_run=dry_run,
                on_event=progress.draw,
            )
        _tell(built, repository, dry_run=dry_run)
        if not as_json:
            for change in built.changes:
                print(f"{change.word:9} {repository / change.path}")
        return built

    results = run_each(specs, build)
    if as_json:
        print(json.dumps([_as_dict(name, result) for name, result in results.items()], indent=2))
    end_with(results)


def _tell(built: Built, repository: Path, *, dry_run: bool) -> None:
    words = {change.word for change in built.changes}
    if words == {"identical"}:
        say(f"* {built.name} version {built.version} is up to date in {repository}")
        return
    for note in built.notes:
        say(f"! {built.name}: {note}")
    for result in built.report.results if built.report else ():
        if result.status in ("not proved", "assumed"):
            say(f"! {built.name}: {result.status}: {result.stage}: {result.reason}")
    verb = "would be published" if dry_run else "published"
    say(f"* {verb:8}  {built.name} version {built.version} in {repository}")


def _as_dict(name: str, result: Built | TrtgenError) -> dict[str, object]:
    if isinstance(result, TrtgenError):
        return {"name": name, "error": result.message, "hint": describe_hint(result)}
    return {
        "name": name,
        "version": result.version,
        "files": {change.path: change.word for change in result.changes},
        "proof": result.report.as_proof() if result.report else None,
    }
