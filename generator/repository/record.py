"""trtgen.json: what a published model was made from, with what, what was proved, and how to make it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from generator.errors import RepositoryError
from generator.repository.layout import RECORD_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Record", "find_records", "read_record"]

# Raised when the meaning of a field changes; a record of another format is built again.
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The content of trtgen.json.

    `inputs` holds two fingerprints: `artifact` of everything the graph and the plan follow from, `configuration` of
    everything else. `plan` says where the plan runs, None without one. `contract` is what clients and older versions
    rely on. `files` maps paths in the repository to SHA-256. `head` and `assumed` are those of `Artifact`; older
    records have no `head`.
    """

    made_by: str
    command: str
    name: str
    version: int
    description: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    packages: Mapping[str, str]
    recipe: Mapping[str, Any]
    contract: Mapping[str, Any]
    graph: Mapping[str, Any]
    proof: list[Mapping[str, Any]]
    files: Mapping[str, str]
    plan: Mapping[str, Any] | None = None
    head: Mapping[str, str] | None = None
    assumed: Mapping[str, str] = field(default_factory=dict)
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """Return the file's text; the same record always gives the same bytes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_record(root: Path, name: str) -> Record | None:
    """Return the record of the model `name`, or None where there is no such model.

    Raises:
        RepositoryError: The directory exists but was not made by trtgen, or its record cannot be read.
    """
    directory = root / name
    path = directory / RECORD_FILE
    if not directory.exists():
        return None
    if not path.is_file():
        msg = f"{directory} exists, but has no {RECORD_FILE}: trtgen did not make it and does not touch it"
        raise RepositoryError(msg, hint="give the model another name, or move that directory away")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            msg = f"{path} has format {data.get('format')}, this version of trtgen reads {FORMAT}"
            raise RepositoryError(msg, hint=_start_anew(directory))
        record = Record(**data)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} cannot be read: {error}"
        raise RepositoryError(msg, hint=_start_anew(directory)) from error
    if not isinstance(record.assumed, dict) or not all(isinstance(one, str) for one in record.assumed.values()):
        msg = f"{path} cannot be read: assumed is not an object of texts"
        raise RepositoryError(msg, hint=_start_anew(directory))
    return record


def _start_anew(directory: Path) -> str:
    return f"move {directory} and its members (directories that begin with its name) away and build it again"


def find_records(root: Path) -> list[Record]:
    """Return the records of all models made by trtgen below `root`, by name."""
    if not root.is_dir():
        return []
    names = sorted(entry.name for entry in root.iterdir() if (entry / RECORD_FILE).is_file())
    return [record for name in names if (record := read_record(root, name)) is not None]
