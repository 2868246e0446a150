"""Files that a command writes for its user into a folder, again and again, without losing what somebody edited there.

`.trtgen.json` in the folder has the hash of each file as it was written, also where a later one could not be.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from generator.errors import OutputError
from generator.files import hash_bytes, hash_file, write_temporary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WRITTEN = ".trtgen.json"


def write_files(files: Mapping[str, str], folder: Path, *, discard_edits: bool = False) -> dict[Path, str]:
    """Write name -> text into `folder`, and remove what an earlier run made and this one does not.

    A file that is there is replaced only if it is as it was written here before, or with `discard_edits`. What others
    made stays, and so does an edited file that is not made any more. A run is about the files and folders directly in
    `folder` that it writes to: what another command wrote beside them is not touched.

    Returns:
        What became of each file: `create`, `identical`, `update` or `remove`.

    Raises:
        OutputError: Somebody edited or made one of them, and nothing was written; or the folder cannot be written.
    """
    try:
        known = _read_hashes(folder / WRITTEN)
        wanted = {name: hash_bytes(text.encode()) for name, text in files.items()}
        present = {name: hash_file(folder / name) for name in {*wanted, *known} if (folder / name).exists()}
        edited = [name for name in wanted if present.get(name) not in (None, wanted[name], known.get(name))]
        if edited and not discard_edits:
            msg = f"{folder} has files that were edited, or made by others: {', '.join(edited)}; nothing was written"
            hint = "keep the changes elsewhere, then discard the edits"
            raise OutputError(msg, hint=hint, fields={"discard_edits": True})
        changes = {name: "update" if name in present else "create" for name in wanted}
        changes |= {name: "identical" for name in wanted if present.get(name) == wanted[name]}
        tops = {_top(name) for name in wanted}
        old = sorted(name for name in known if name not in wanted and _top(name) in tops)
        changes |= {name: "remove" for name in old if present.get(name) == known[name]}
        hashes = dict(known)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, change in changes.items():
                path = folder / name
                if change == "remove":
                    path.unlink()
                    if not any(path.parent.iterdir()):
                        path.parent.rmdir()
                    continue
                if change != "identical":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_temporary(path, files[name].encode()).replace(path)
                hashes[name] = wanted[name]
            hashes = {name: digest for name, digest in hashes.items() if name not in old}
        finally:  # what was written before something failed is not to look like somebody's edit
            if hashes != known:
                text = json.dumps(hashes, indent=2) + "\n"
                write_temporary(folder / WRITTEN, text.encode()).replace(folder / WRITTEN)
    except OSError as error:
        msg = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise OutputError(msg, hint="name another folder", fields={"output": None}) from error
    return {folder / name: change for name, change in changes.items()}


def write_yaml(documents: Sequence[Any]) -> str:
    """Return the documents as one YAML file for people to read."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _top(name: str) -> str:
    return name.partition("/")[0]


def _read_hashes(path: Path) -> dict[str, str]:
    """Return name -> hash as written last; empty where that was never done, or its file is no such table."""
    try:
        hashes = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return hashes if isinstance(hashes, dict) else {}


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is read, and equal values twice instead of pointing to the first."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - yaml's name
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
