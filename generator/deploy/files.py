"""Manifests as files: each says in its first line what it was when it was written, so that an edit is noticed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from generator.errors import DeployError
from generator.files import hash_bytes, write_temporary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_HEAD = "# Made by trtgen, which overwrites it unless it was edited: change what stands on it instead. SHA-256 {}\n"
_HASH = re.compile(r"# Made by trtgen.* ([0-9a-f]{64})\n")


class _Dumper(yaml.SafeDumper):
    """Write equal values twice instead of pointing to the first."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - yaml's name
        return True


def write_yaml(documents: Sequence[Any]) -> str:
    """Return the documents as one file, with its head."""
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)
    return _HEAD.format(hash_bytes(text.encode())) + text


def is_edited(text: str) -> bool:
    """Say whether a file is no longer what trtgen wrote, or never was."""
    head, _, rest = text.partition("\n")
    found = _HASH.fullmatch(f"{head}\n")
    return found is None or found[1] != hash_bytes(rest.encode())


def write_files(folder: Path, files: Mapping[str, Sequence[Any]], *, discard_edits: bool = False) -> dict[Path, str]:
    """Write YAML documents to the files below `folder`, and remove what an earlier run made and this one does not.

    Returns:
        What became of each file: `create`, `identical`, `update` or `remove`.

    Raises:
        DeployError: Somebody edited one of them, and nothing was written; or the folder cannot be written.
    """
    texts = {folder / name: write_yaml(documents) for name, documents in files.items()}
    try:
        present = {path: path.read_bytes().decode(errors="replace") for path in _find_files(folder, files)}
        changes = {path: _compare(present.get(path), text) for path, text in texts.items()}
        # what is not ours stays, and so do edits in what is not made any more
        old = [path for path, text in present.items() if path not in texts and not is_edited(text)]
        edited = [path for path, change in changes.items() if change == "update" and is_edited(present[path])]
        if edited and not discard_edits:
            names = ", ".join(map(str, edited))
            msg = f"nothing was written, since somebody edited {names}, or trtgen did not make it"
            hint = "put the change into an overlay of your own on top, then discard the edits"
            raise DeployError(msg, hint=hint, fields={"discard_edits": True})
        for path, change in changes.items():
            if change != "identical":
                path.parent.mkdir(parents=True, exist_ok=True)
                write_temporary(path, texts[path].encode()).replace(path)
        for path in old:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    except OSError as error:
        msg = f"{error.filename or folder} cannot be written or read: {error.strerror}"
        raise DeployError(msg, hint="name another folder", fields={"output": None}) from error
    return changes | dict.fromkeys(old, "remove")


def _find_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the YAML files that are there in the folders of these, at any depth."""
    tops = {name.partition("/")[0] for name in names}
    return sorted(path for top in tops for path in (folder / top).rglob("*.yaml"))


def _compare(present: str | None, text: str) -> str:
    if present is None:
        return "create"
    return "identical" if present == text else "update"
