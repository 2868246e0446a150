"""`trtgen remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from generator.cli.console import say
from generator.cli.options import RepositoryOption


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model that clients call; its members go with it.")],
    *,
    repository: RepositoryOption = Path("model_repository"),
    discard_edits: Annotated[
        bool, typer.Option("--discard-edits", help="Also remove files that somebody edited or added by hand.")
    ] = False,
) -> None:
    """Remove a model that trtgen made, with all its versions.

    Example: trtgen remove resnet50
    """
    from generator.repository.removal import remove_model

    for path in remove_model(repository, name, discard_edits=discard_edits):
        print(f"{'remove':9} {repository / path}")
    say(f"* removed   {name} from {repository}; a server that runs already serves it until it is restarted")
