"""`trtgen merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.console import say

if TYPE_CHECKING:
    from generator.repository.merge import Merged


def merge(
    repositories: Annotated[
        list[Path],
        typer.Argument(metavar="REPOSITORY", help="Builds of the same models, one for each compute capability."),
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The repository of the result; may be one of them.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Merge this one only; may be repeated.", show_default=False),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove what is published there under the same name.")
    ] = False,
    discard_edits: Annotated[
        bool, typer.Option("--discard-edits", help="Overwrite published files that somebody edited by hand.")
    ] = False,
) -> None:
    """Put builds of the same models for different GPUs into one repository; each server takes the plan for its GPU.

    Neither a GPU nor TensorRT is needed: the files are those that were proved where they were built.

    Example: trtgen merge models-l4 models-h100 --output models
    """
    from generator.repository.merge import merge_repositories

    merged = merge_repositories(repositories, output, models=model or (), replace=replace, discard_edits=discard_edits)
    for one in merged:
        for change in one.changes:
            print(f"{change.word:9} {output / change.path}")
        _tell(one, output)


def _tell(merged: Merged, output: Path) -> None:
    if {change.word for change in merged.changes} == {"identical"}:
        say(f"* {merged.name} version {merged.version} is up to date in {output}")
        return
    for note in merged.notes:
        say(f"! {merged.name}: {note}")
    for plan in merged.plans.values():
        where = "8.0 and later" if plan["hardware_compatibility"] == "ampere-plus" else plan["compute_capability"]
        say(f"* plan      for {where}, built on {plan['gpu']}, from {plan['repository']}")
    say(f"* published {merged.name} version {merged.version} in {output}; on each GPU: trtgen verify -r {output}")
