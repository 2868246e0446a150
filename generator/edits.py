"""Published files that somebody edited: found by the record's hashes, shown line by line, never overwritten unasked."""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from generator.errors import RepositoryError, TrtgenError
from generator.onnx_model import hash_file
from generator.repository import Layout, Record
from generator.repository.layout import RECORD_FILE
from generator.repository.publish import hash_tree_names
from generator.spec import ModelSpec
from generator.staging import read_published, stage_files

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_edits", "find_added", "find_edited"]

_MOST_LINES = 40


def find_edited(root: Path, layout: Layout, record: Record) -> list[str]:
    """Return the published files outside version directories whose content is no longer what the record says."""
    return [
        path
        for path, digest in record.files.items()
        if not layout.is_versioned(PurePosixPath(path))
        and (root / path).is_file()
        and hash_file(root / path) != digest
    ]


def find_added(root: Path, layout: Layout, record: Record) -> list[str]:
    """Return the files outside version directories that trtgen did not put there."""
    known = {*record.files, str(layout.record)}
    return [
        path
        for name in layout.models
        for path in hash_tree_names(root, name)
        if path not in known and not layout.is_versioned(PurePosixPath(path))
    ]


def check_edits(root: Path, layout: Layout, record: Record, *, removing: bool) -> None:
    """Refuse to overwrite or remove what somebody edited; with `removing`, what somebody added counts as well.

    Raises:
        RepositoryError: Names the files, with the lines that differ from what was published.
    """
    edited = find_edited(root, layout, record)
    added = find_added(root, layout, record) if removing else []
    parts = [f"{root / path} was added since trtgen published {record.name}" for path in added]
    if edited:
        parts += _describe(root, layout, record, edited)
    if parts:
        raise RepositoryError("\n".join(parts), hint=_hint(edited, removing=removing))


def _hint(edited: list[str], *, removing: bool) -> str:
    if removing:
        return "keep a copy of what is needed, then add --discard-edits: it is removed with the rest"
    if any(path.endswith("/config.pbtxt") for path in edited):
        return "move the change into the field config of the spec (docs/spec.md), then add --discard-edits: trtgen's text is written"
    return "change the spec instead, then add --discard-edits: trtgen's files are written"


def _describe(root: Path, layout: Layout, record: Record, edited: list[str]) -> Iterable[str]:
    """Yield each edited file with its lines, against a rendering that is the published one if its hash says so."""
    with tempfile.TemporaryDirectory(prefix="trtgen-published-") as folder:
        again = Path(folder)
        try:
            spec = ModelSpec.model_validate(record.spec)
            stage_files(spec, again, layout, read_published(root, record, layout), dict(record.inputs))
        except (TrtgenError, ValidationError, OSError, KeyError):
            pass  # the files are named all the same
        for path in edited:
            yield f"{root / path} was edited since trtgen published it"
            yield from _differing_lines(again / path, root / path, record.files[path])


def _differing_lines(rendered: Path, edited: Path, published: str) -> Iterable[str]:
    if not rendered.is_file():
        return
    label = "published" if hash_file(rendered) == published else "what trtgen writes now"
    try:
        before, after = (path.read_text(encoding="utf-8").splitlines() for path in (rendered, edited))
    except UnicodeDecodeError:
        return
    lines = list(difflib.unified_diff(before, after, label, str(edited), n=0, lineterm=""))
    yield from (f"  {line}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  ... {len(lines) - _MOST_LINES} more lines"
