"""Published files that somebody edited: found by the record's hashes, shown line by line, never overwritten unasked."""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from generator.errors import RepositoryError, TrtgenError
from generator.files import hash_file
from generator.plan.choice import PLAN_FILE
from generator.repository import Layout
from generator.repository.publish import hash_tree_names
from generator.repository.stage import read_published, stage_files
from generator.spec.model import ModelSpec
from generator.triton.plans import state_plans

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from generator.repository import Record

_MOST_LINES = 40


def find_edited(root: Path, record: Record, *, versions: bool) -> list[str]:
    """Return the files that are no longer what was published, those in version directories only with `versions`."""
    layout = Layout.of_record(record)
    return [
        path
        for path, digest in record.files.items()
        if (versions or not layout.is_versioned(PurePosixPath(path)))
        and (root / path).is_file()
        and hash_file(root / path) != digest
    ]


def find_damaged(root: Path, files: Mapping[str, str]) -> list[str]:
    """Return the files that are gone or no longer what was published: `files` has their hashes."""
    return [path for path, digest in files.items() if not (root / path).is_file() or hash_file(root / path) != digest]


def check_edits(root: Path, record: Record, *, removing: bool) -> None:
    """Refuse to overwrite what somebody edited; with `removing` also to remove that from versions, or what was added.

    A build writes nothing into a published version, so that edits there are safe from it.

    Raises:
        RepositoryError: Names the files, with the lines that differ.
    """
    edited = find_edited(root, record, versions=removing)
    added = _find_added(root, record) if removing else []
    if not edited and not added:
        return
    lines = [*_describe_edited(root, record, edited), *(f"{root / path} was not made by trtgen" for path in added)]
    msg = f"{record.name} is left as it is, since somebody edited it:\n" + "\n".join(lines)
    if removing:
        hint = "copy what you need, then discard the edits: they are removed, too"
    elif any(path.endswith("/config.pbtxt") for path in edited):
        hint = "state it in the field config of the spec (docs/spec.md), then discard the edits"
    else:
        hint = "change the spec instead, then discard the edits"
    raise RepositoryError(msg, hint=hint, fields={"discard_edits": True})


def _find_added(root: Path, record: Record) -> list[str]:
    """Return the files beside the published ones, outside version directories."""
    layout = Layout.of_record(record)
    known = {*record.files, str(layout.record)}
    paths = (path for name in layout.models for path in hash_tree_names(root, name))
    return [path for path in paths if path not in known and not layout.is_versioned(PurePosixPath(path))]


def _describe_edited(root: Path, record: Record, edited: list[str]) -> Iterable[str]:
    """Yield each file and its lines beside those of a new rendering: that of the publishing, where its hash says so."""
    with tempfile.TemporaryDirectory(prefix="trtgen-published-") as folder:
        if edited:
            _render_again(root, record, Path(folder))
        for path in edited:
            yield f"{root / path} was changed after trtgen published it"
            yield from _differing_lines(Path(folder, path), root / path, record.files[path])


def _render_again(root: Path, record: Record, folder: Path) -> None:
    """Write the record's files into `folder`; none where the record or the published graph cannot be read."""
    layout = Layout.of_record(record)
    try:
        spec = ModelSpec.model_validate(record.spec)
        stage_files(spec, folder, layout, read_published(root, record, spec, layout), dict(record.inputs))
        if record.plans:
            config = folder / layout.network / "config.pbtxt"
            text = state_plans(config.read_text("utf-8"), record.for_capability, has_default=PLAN_FILE in record.plans)
            config.write_text(text, encoding="utf-8")
    except (TrtgenError, KeyError, OSError, TypeError, ValueError):
        return  # the error that is being made names the files all the same


def _differing_lines(rendered: Path, edited: Path, published: str) -> Iterable[str]:
    try:
        before, after = (path.read_text(encoding="utf-8").splitlines() for path in (rendered, edited))
    except (OSError, UnicodeDecodeError):  # not rendered, or no text
        return
    label = "published" if hash_file(rendered) == published else "as trtgen would write it now"
    lines = list(difflib.unified_diff(before, after, label, str(edited), n=0, lineterm=""))
    yield from (f"  {line}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  ... and {len(lines) - _MOST_LINES} more lines"
