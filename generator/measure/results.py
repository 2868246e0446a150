"""How results are shown and kept: aligned columns, rounded JSON, files that are whole or the ones before."""

from __future__ import annotations

import contextlib
import json
import tempfile
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from pathlib import Path


def align_columns(rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """Return a line per row, the columns `left` aligned left and the others right; never wrapped, for pipes too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def check_folder(folder: Path) -> None:
    """Try the folder of the results, or the one that it would be made in, before minutes are spent on them.

    Raises:
        PerfError: It is a file, or cannot be made or written.
    """
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        msg = f"{folder} cannot be written: {error.strerror}"
        raise PerfError(msg, hint="choose another folder", fields={"folder": None}) from error


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write name -> text into `folder`, which is made where it is absent; all are whole, or those of before.

    Raises:
        PerfError: The folder cannot be written.
    """
    written = [folder / name for name in files]
    parts = [path.with_name(f".{path.name}.part") for path in written]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, text in zip(parts, files.values(), strict=True):
            part.write_text(text, encoding="utf-8")
        for part, path in zip(parts, written, strict=True):
            part.replace(path)
    except OSError as error:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink()
        msg = f"{folder} cannot be written: {error.strerror}"
        raise PerfError(msg, hint="choose another folder", fields={"folder": None}) from error
    return written


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as text, its figures rounded."""
    return json.dumps(round_figures(document), indent=2) + "\n"


def round_figures(value: Any) -> Any:
    """Return the value with all numbers in it to six places: of milliseconds less than a clock's resolution."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: round_figures(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [round_figures(inner) for inner in value]
    return value
