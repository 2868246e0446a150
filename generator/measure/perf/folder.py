"""The folder of the results, tried before minutes are spent on what belongs into it."""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING

from generator.errors import PerfError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_folder"]


def check_folder(folder: Path) -> None:
    """Make the folder and a file in it, and take away again what was not there before.

    Raises:
        PerfError: It is a file, or cannot be made or written.
    """
    made: list[Path] = []
    try:
        absent = [one for one in (folder, *folder.absolute().parents) if not one.exists()]
        if folder.exists() and not folder.is_dir():
            raise PerfError(f"--output {folder} is no folder", hint="choose a folder with --output")
        for one in reversed(absent):
            one.mkdir()
            made.append(one)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        msg = f"--output {folder} cannot be written: {error.strerror}"
        raise PerfError(msg, hint="choose a folder with --output") from error
    finally:
        for one in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                one.rmdir()
