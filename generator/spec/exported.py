"""An export as a folder: the graph for its target, the source's answers, and export.json, which says what they are.

It is what travels from the machine with torch to the host that builds the plan, which needs neither torch nor the
source: `trtgen build-repo --onnx FOLDER/model.onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from generator.errors import SourceError
from generator.spec.recipe import Recipe  # noqa: TC001 - pydantic reads the annotations
from generator.spec.records import JsonRecord

if TYPE_CHECKING:
    from pathlib import Path

EXPORT_FILE = "export.json"
REFERENCE_FILE = "reference.npz"


def _has_batch_and_plan(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    if missing := {"batch", "plan"} - set(spec):
        raise ValueError(f"{', '.join(sorted(missing))} is missing")
    return spec


def _is_file_name(name: str) -> str:
    if name in ("", "..") or "/" in name:  # files are copied by their names, so none may lead out of the folder
        raise ValueError(f"{name!r} is not the name of a file")
    return name


class ExportRecord(JsonRecord):
    """The content of export.json.

    `keep` names the nodes that stay in FP32, `files` maps the names of the folder's other files to their SHA-256.
    `head`, `assumed` and `repairs` are those of `Artifact`; older exports have no `head` and no `repairs`.
    """

    made_by: str
    name: str
    description: str
    target: str
    precision: str
    activation: str
    recipe: Recipe
    labels: list[str]
    notes: list[str]
    keep: list[str]
    spec: Annotated[Mapping[str, Any], AfterValidator(_has_batch_and_plan)]
    packages: Mapping[str, str]
    files: Mapping[Annotated[str, AfterValidator(_is_file_name)], str]
    head: Mapping[str, Any] | None = None
    assumed: Mapping[str, str] = Field(default_factory=dict)
    repairs: list[str] = Field(default_factory=list)
    format: Literal[1] = 1


def is_export(onnx: Path) -> bool:
    """Say whether `trtgen export` wrote this file."""
    return onnx.with_name(EXPORT_FILE).is_file()


def write_export(record: ExportRecord, folder: Path) -> None:
    """Write export.json."""
    (folder / EXPORT_FILE).write_text(record.to_json(), encoding="utf-8")


def read_export(onnx: Path) -> ExportRecord:
    """Read the export.json beside `onnx` and check that the files are those it names.

    Raises:
        SourceError: Absent, of another format, damaged, not of this graph, or a file is missing or was changed.
    """
    from generator.files import hash_file

    path = onnx.with_name(EXPORT_FILE)
    hint = "copy the whole folder of the export, or export again"
    try:
        record = ExportRecord.read(path)
    except ValueError as error:
        msg = f"{path} cannot be read: {error}"
        raise SourceError(msg, hint=hint) from error
    for name in (onnx.name, REFERENCE_FILE):
        if name not in record.files:
            msg = f"{path} does not list {name} among its files"
            raise SourceError(msg, hint=hint)
    for name, digest in record.files.items():
        file = onnx.parent / name
        if not file.is_file() or hash_file(file) != digest:
            what = "is not what was exported" if file.is_file() else "is missing"
            msg = f"{file} {what}"
            raise SourceError(msg, hint=hint)
    return record
