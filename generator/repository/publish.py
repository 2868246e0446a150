"""From a staged tree to published files: what is new, what is the same, what may not change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from generator.errors import RepositoryError
from generator.files import hash_file
from generator.repository.journal import Move, carry_out
from generator.repository.layout import RECORD_FILE, Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from generator.repository.record import Record

# What a contract says now, and what was the only way before.
_BEFORE = {"layout": "ensemble", "plans": "one"}
Word = Literal["create", "identical", "update", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one file, in one word."""

    word: Word
    path: str


def hash_tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by its path with forward slashes, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def check_contract(old: Record | None, contract: Mapping[str, object], *, replace: bool) -> None:
    """Refuse to change what clients and older versions rely on, unless `replace`.

    Raises:
        RepositoryError: Names each part of the contract that differs, with both values.
    """
    if old is None or replace:
        return
    before, after = {**_BEFORE, **old.contract}, {**_BEFORE, **contract}
    differences = [
        f"{key}: {_short(before.get(key))} -> {_short(after[key])}" for key in after if before.get(key) != after[key]
    ]
    if differences:
        msg = f"{old.name} is published with another contract:\n  " + "\n  ".join(differences)
        hint = "give the new model another name, or replace the published versions, which removes them"
        raise RepositoryError(msg, hint=hint, fields={"replace": True})


def check_owner(root: Path, layout: Layout, old: Record | None) -> None:
    """Refuse to write into directories that trtgen did not make.

    Raises:
        RepositoryError: One of its directories exists, and no record says that it is ours.
    """
    ours = Layout.of_record(old).models if old is not None else ()
    if taken := [name for name in layout.models if name not in ours and (root / name).exists()]:
        msg = f"{root / taken[0]} exists, but trtgen did not make it and does not touch it"
        raise RepositoryError(msg, hint="give the model another name, or move that directory away")


def plan_changes(root: Path, staged: Path, layout: Layout, old: Record | None, *, replace: bool) -> list[Change]:
    """Compare the staged tree with the repository, byte by byte; a published version is never among the updates.

    Raises:
        RepositoryError: A staged file would overwrite something in a published version directory.
    """
    changes = []
    for path, digest in hash_tree(staged).items():
        target = root / path
        if replace or not target.exists():
            word: Word = "create" if not target.exists() else "update"
        else:
            word = "identical" if hash_file(target) == digest else "update"
        if word == "update" and not replace and layout.is_versioned(PurePosixPath(path)):
            msg = f"{target} is part of a published version and differs from what would be published"
            raise RepositoryError(
                msg, hint="replace the published versions, which removes them", fields={"replace": True}
            )
        changes.append(Change(word=word, path=path))
    if replace and old is not None:
        staged_paths = {change.path for change in changes}
        published = [path for name in Layout.of_record(old).models for path in hash_tree_names(root, name)]
        changes += [Change(word="remove", path=path) for path in published if path not in staged_paths]
    return changes


def hash_tree_names(root: Path, name: str) -> list[str]:
    """Return the paths of all files of the model directory `name`, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in (root / name).rglob("*") if path.is_file())


def publish(root: Path, layout: Layout, changes: Sequence[Change], *, replaced: Layout | None) -> None:
    """Carry the changes out with a journal. Call inside `staging`, after the gate has passed.

    The order keeps every moment in between right for a server that starts just then: what is `replaced` goes with all
    its members, the ensemble first, and the new one comes last, so that for a moment there is no answer rather than a
    wrong one; otherwise a new version directory appears in one rename, and the ensemble, which clients call, follows
    its members.
    """
    if replaced is not None:
        carry_out(root, [*_retirement(root, replaced), *(Move(kind="publish", path=name) for name in layout.models)])
        return
    moves = []
    for name in layout.models:
        mine = [change for change in changes if change.path.split("/")[0] == name and change.word != "identical"]
        if not (root / name).exists():
            moves.append(Move(kind="publish", path=name))
            continue
        versions = sorted({"/".join(change.path.split("/")[:2]) for change in mine if _in_version(layout, change)})
        files = sorted((change.path for change in mine if not _in_version(layout, change)), key=_config_last)
        moves += [Move(kind="publish", path=path) for path in (*versions, *files)]
    if moves:
        carry_out(root, moves)


def retire(root: Path, layout: Layout) -> None:
    """Take the model out of the repository with a journal. Call inside `staging`."""
    carry_out(root, _retirement(root, layout))


def _retirement(root: Path, layout: Layout) -> list[Move]:
    """The ensemble goes first, so that no server finds it without its members."""
    return [Move(kind="retire", path=name) for name in reversed(layout.models) if (root / name).exists()]


def _in_version(layout: Layout, change: Change) -> bool:
    return layout.is_versioned(PurePosixPath(change.path))


def _config_last(path: str) -> tuple[int, str]:
    """Files a configuration refers to come before it; the record states what is there, so it comes last."""
    name = path.rsplit("/", 1)[-1]
    return {"config.pbtxt": 1, RECORD_FILE: 2}.get(name, 0), path


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
