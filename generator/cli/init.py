"""`trtgen init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from generator.errors import SpecError


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write.")] = Path("models.yaml"),
) -> None:
    """Write a commented models.yaml to start from.

    Example: trtgen init models.yaml
    """
    from generator.render import read_static

    try:
        with path.open("xb") as stream:
            stream.write(read_static("models.yaml"))
    except FileExistsError as error:
        msg = f"{path} exists already and is left as it is"
        raise SpecError(msg, hint="give another name: trtgen init other.yaml") from error
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}"
        raise SpecError(msg, hint="give a path that you may write: trtgen init FILE") from error
    print(path)
