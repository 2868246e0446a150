"""`trtgen remove`: a model that trtgen made leaves the repository in one step that survives a crash."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from generator.errors import RepositoryError
from generator.repository import Layout, find_records, recover, staging
from generator.repository.edits import check_edits
from generator.repository.publish import hash_tree_names, retire

if TYPE_CHECKING:
    from pathlib import Path

    from generator.repository import Record

_LOG = logging.getLogger(__name__)


def remove_model(root: Path, name: str, *, discard_edits: bool = False) -> list[str]:
    """Remove the ensemble `name` and its members with all versions; return the paths of the files that are gone.

    Raises:
        RepositoryError: There is no such model, or it holds what somebody edited or added.
    """
    for line in recover(root):
        _LOG.warning("%s", line)
    _find(root, name)  # before the lock, which would make a repository that is not there
    with staging(root):
        record = _find(root, name)
        if not discard_edits:
            check_edits(root, record, removing=True)
        layout = Layout.of_record(record)
        files = [path for model in layout.models for path in hash_tree_names(root, model)]
        retire(root, layout)
    return files


def _find(root: Path, name: str) -> Record:
    records = {record.name: record for record in find_records(root)}
    if name in records:
        return records[name]
    for record in records.values():
        if name in Layout.of_record(record).models:
            msg = f"{name} is a member of {record.name} and is removed with it"
            command = ("remove", record.name)
            raise RepositoryError(msg, hint="remove that", command=command, fields={"repository": root})
    msg = f"{root} holds no model {name!r} made by trtgen; it has {', '.join(records) or 'none'}"
    raise RepositoryError(msg, hint="give one of those names, or another repository", fields={"repository": None})
