"""`trtgen build-repo`."""

from __future__ import annotations

import json
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say, show_progress
from generator.cli.each import end_with, run_each
from generator.cli.options import (
    PROOF,
    ArchitectureOption,
    CalibrationOption,
    ClassesOption,
    ImageSizeOption,
    ImagesOption,
    LabelsOption,
    MaxBatchOption,
    NameOption,
    NamesArgument,
    PrecisionOption,
    RecipeOption,
    RepositoryOption,
    SpecOption,
    TargetOption,
    WeightsOption,
    specs_from,
)
from generator.errors import SpecError, TrtgenError

if TYPE_CHECKING:
    from generator.pipeline import Built
    from generator.spec.model import ModelSpec


def build_repo(
    names: NamesArgument = None,
    *,
    name: NameOption = None,
    spec: SpecOption = None,
    repository: RepositoryOption = Path("model_repository"),
    weights: WeightsOption = None,
    architecture: ArchitectureOption = None,
    classes: ClassesOption = None,
    labels: LabelsOption = None,
    recipe: RecipeOption = None,
    image_size: ImageSizeOption = None,
    max_batch: MaxBatchOption = None,
    onnx: Annotated[
        list[Path] | None,
        typer.Option("--onnx", metavar="FILE", help="An ONNX file, or a graph that `trtgen export` wrote; repeatable."),
    ] = None,
    target: TargetOption = None,
    precision: PrecisionOption = None,
    calibration: CalibrationOption = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build the model repository: export, build the plan, configure, prove, publish.

    Example: trtgen build-repo resnet50 --max-batch 16
    """
    if wrong := [path for path in onnx or [] if path.suffix != ".onnx"]:
        what = "is a folder" if wrong[0].is_dir() else "does not end in .onnx"
        msg = f"--onnx takes the path of an ONNX file, and {wrong[0]} {what}"
        raise SpecError(msg, hint="give it as --onnx exported/NAME/model.onnx")
    specs = specs_from(
        [*(names or []), *(str(path) for path in onnx or [])],
        spec,
        name=name,
        weights=weights,
        architecture=architecture,
        classes=classes,
        labels=labels,
        recipe=recipe,
        image_size=image_size,
        max_batch=max_batch,
        target=target,
        precision=precision,
        calibration=calibration,
    )
    if require and not verify:
        msg = "--require all asks for every stage of the gate, --no-verify for none"
        raise SpecError(msg, hint="leave one of them out")
    from generator.pipeline import BuildOptions, build_repository

    options = BuildOptions(
        verify=verify,
        require_all=require == "all",
        replace=replace,
        discard_edits=discard_edits,
        dry_run=dry_run,
        images=images,
        spec_file=spec,
    )

    def build(model: ModelSpec) -> Built:
        with show_progress() as progress:
            built = build_repository(model, repository, replace_fields(options, on_event=progress.draw))
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
        return {"name": name, "error": result.message, "hint": result.hint}
    return {
        "name": name,
        "version": result.version,
        "files": {change.path: change.word for change in result.changes},
        "proof": result.report.as_proof() if result.report else None,
    }
