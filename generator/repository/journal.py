"""Publishing several directories as if it were one step: stage, write a journal, move, forget the journal.

Everything new is complete and on disk in `.<repository>.trtgen/` beside the repository before the journal is written;
from then on the change is decided. A journal that is found later is simply carried out again: every move knows
whether it was done. A staging folder without a journal is a build that died before it decided, and is removed.
A staging folder inside the repository would be taken for a broken model by tritonserver, hence the sibling.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from generator.errors import RepositoryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_JOURNAL = "journal.json"
_STAGED = "staged"
_RETIRED = "retired"
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step: `retire` takes a path out of the repository, `publish` puts a staged path in (files are replaced)."""

    kind: str
    path: str


def staging_folder(root: Path) -> Path:
    """Return the folder beside the repository that holds everything unfinished."""
    absolute = root.resolve()  # `.` has no name of its own
    return absolute.parent / f".{absolute.name}.trtgen"


def published_root(folder: Path) -> Path:
    """Return the repository that `folder` is staged for; itself where it is none of ours."""
    place = folder.parent
    ours = folder.name == _STAGED and place.name.startswith(".") and place.suffix == ".trtgen"
    return place.with_name(place.stem[1:]) if ours else folder


@contextlib.contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold the repository for one writer.

    Raises:
        RepositoryError: The repository cannot be made or written, or another trtgen is writing.
    """
    made = [folder for folder in (root, *root.parents) if not _exists(folder)]
    try:
        handle = _open_directory(root)
    except OSError as error:
        _remove_empty(made)
        msg = f"the model repository {root} cannot be used: {error.strerror}"
        raise RepositoryError(msg, hint="give a folder that you may write", fields={"repository": None}) from error
    try:
        _take(root, handle)
    except BlockingIOError as error:
        os.close(handle)
        msg = f"another trtgen is writing to {root}"
        raise RepositoryError(msg, hint="wait until it has finished and run the same command again") from error
    try:
        yield
    finally:
        if not _exists(staging_folder(root) / _JOURNAL):
            _remove_empty(made)
        os.close(handle)


def _open_directory(root: Path) -> int:
    root.mkdir(parents=True, exist_ok=True)
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY)


def _take(root: Path, handle: int) -> None:
    """Lock the open folder; BlockingIOError where another holds it, or removed it just now as its build failed."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not _exists(root) or not os.path.samestat(root.stat(), os.fstat(handle)):
        raise BlockingIOError


def _exists(path: Path) -> bool:
    """Say whether it is there, as far as can be seen: `Path.exists` raises where a folder may not be searched."""
    return os.path.exists(path)  # noqa: PTH110


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that hold nothing, innermost first: a build that failed leaves nothing behind."""
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something, or never came to be
            folder.rmdir()


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """Hold the lock, recover what an earlier run left, and give an empty folder on the repository's file system.

    Raises:
        RepositoryError: As `lock`; or the folder beside the repository cannot be written or is on another device, or
            holds what an earlier run left and this user may not finish or remove.
    """
    folder = staging_folder(root)
    with lock(root), _disk_errors(root):
        try:
            _recover_locked(root)
        except PermissionError as error:
            if _exists(folder / _JOURNAL):
                raise _not_finished(root, error) from error
            raise RepositoryError(_not_removed(folder, error), hint=f"remove it as its owner: {folder}") from error
        staged = folder / _STAGED
        try:
            staged.mkdir(parents=True)
            same_device = staged.stat().st_dev == root.stat().st_dev
        except PermissionError as error:
            msg = f"{folder} cannot be made: {error.strerror}"
            raise RepositoryError(
                msg, hint="trtgen stages beside the repository: its parent folder must be writable"
            ) from error
        try:
            if not same_device:
                msg = f"{root} is a mount of its own, so nothing can be moved into it in one step from {folder}"
                inside = root / "models"
                raise RepositoryError(msg, hint=f"use a folder in it, such as {inside}", fields={"repository": inside})
            yield staged
        finally:
            if not (folder / _JOURNAL).exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Translate what a full or broken disk raises anywhere in a build.

    Raises:
        RepositoryError: With the system's word and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        if (staging_folder(root) / _JOURNAL).exists():
            msg = f"publishing in {root} was interrupted: {error.strerror}"
            raise RepositoryError(msg, hint="make room and run the same command: it finishes what is staged") from error
        msg = f"{root} was left as it was: {error.strerror}"
        raise RepositoryError(msg, hint=f"make room on the disk of {root.parent} and run the same command") from error


def carry_out(root: Path, moves: Sequence[Move]) -> None:
    """Make the staged paths of `moves` the published ones, in order. Call inside `staging`."""
    folder = staging_folder(root)
    _sync_tree(folder / _STAGED)
    temporary = folder / f"{_JOURNAL}.new"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump([asdict(move) for move in moves], stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / _JOURNAL)
    _sync(folder)
    _redo(root, moves)


def recover(root: Path, *, otherwise: str = "") -> list[str]:
    """Finish or forget what an interrupted build left; return a line for each thing done.

    While another trtgen is writing, nothing is touched: at each moment of publishing the repository answers right.
    `otherwise` is what the caller does with it then, for the line that says so.

    Raises:
        RepositoryError: A change that was decided cannot be finished.
    """
    folder = staging_folder(root)
    if not _exists(folder):
        return []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(root))
        except RepositoryError as error:
            return [f"{error.message}; {otherwise}"] if otherwise else []
        try:
            return _recover_locked(root)
        except OSError as error:
            if _exists(folder / _JOURNAL):
                raise _not_finished(root, error) from error
            return [_not_removed(folder, error)]


def _not_finished(root: Path, error: OSError) -> RepositoryError:
    msg = f"publishing in {root} was interrupted and cannot be finished: {error.strerror or error}"
    if error.errno in _DISK_ERRORS:
        return RepositoryError(msg, hint=f"make room on the disk of {root.parent} and run the same command")
    return RepositoryError(msg, hint=f"run it as a user who may write there and in {staging_folder(root)}")


def _not_removed(folder: Path, error: OSError) -> str:
    return f"{folder}, left by a build that did not finish, cannot be removed: {error.strerror or error}"


def _recover_locked(root: Path) -> list[str]:
    folder = staging_folder(root)
    if not folder.exists():
        return []
    journal = folder / _JOURNAL
    if not journal.exists():
        shutil.rmtree(folder)
        return [f"removed the staging folder {folder} of a build that did not finish"]
    moves = [Move(**entry) for entry in json.loads(journal.read_text(encoding="utf-8"))]
    _redo(root, moves)
    shutil.rmtree(folder)
    done = "publishing" if any(move.kind == "publish" for move in moves) else "removing"
    return [f"finished {done} {', '.join(sorted({move.path.split('/')[0] for move in moves}))}"]


def _redo(root: Path, moves: Sequence[Move]) -> None:
    folder = staging_folder(root)
    for index, move in enumerate(moves):
        if move.kind == "retire":
            source, target = root / move.path, folder / _RETIRED / str(index)
            pending = source.exists() and not target.exists()
        else:
            source, target = folder / _STAGED / move.path, root / move.path
            pending = source.exists()
        if pending:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            _sync(source.parent)
            _sync(target.parent)
    (folder / _JOURNAL).unlink()
    _sync(folder)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
