"""An export as a folder: the graph for its target, the source's answers, and export.json, which says what they are.

It is what travels from the machine with torch to the host that builds the plan, which needs neither torch nor the
source: `trtgen build-repo --onnx FOLDER/model.onnx`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["EXPORT_FILE", "REFERENCE_FILE", "ExportRecord", "is_export", "read_export", "write_export"]

EXPORT_FILE = "export.json"
REFERENCE_FILE = "reference.npz"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """The content of export.json.

    `keep` names the nodes that stay in FP32, `files` maps the names of the folder's other files to their SHA-256.
    `head` and `assumed` are those of `Artifact`; older exports have no `head`.
    """

    made_by: str
    name: str
    description: str
    target: str
    precision: str
    activation: str
    recipe: Mapping[str, Any]
    labels: list[str]
    notes: list[str]
    keep: list[str]
    spec: Mapping[str, Any]
    packages: Mapping[str, str]
    files: Mapping[str, str]
    head: Mapping[str, str] | None = None
    assumed: Mapping[str, str] = field(default_factory=dict)
    format: int = field(default=FORMAT)


def is_export(onnx: Path) -> bool:
    """Say whether `trtgen export` wrote this file."""
    return onnx.with_name(EXPORT_FILE).is_file()


def write_export(record: ExportRecord, folder: Path) -> Path:
    """Write export.json."""
    path = folder / EXPORT_FILE
    path.write_text(json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_export(onnx: Path) -> ExportRecord:
    """Read the export.json beside `onnx` and check that the files are those it names.

    Raises:
        SourceError: Absent, of another format, damaged, not of this graph, or a file is missing or was changed.
    """
    from generator.files import hash_file

    path = onnx.with_name(EXPORT_FILE)
    hint = "copy the whole folder that trtgen export wrote, or export again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            msg = f"{path} has format {data.get('format')}, this version of trtgen reads {FORMAT}"
            raise SourceError(msg, hint="export again with this version of trtgen")
        record = ExportRecord(**data)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SourceError(msg, hint=hint) from error
    if problems := list(_problems(record, onnx.name)):
        msg = f"{path} does not hold: {'; '.join(problems)}"
        raise SourceError(msg, hint=hint)
    for name, digest in record.files.items():
        file = onnx.parent / name
        if not file.is_file() or hash_file(file) != digest:
            what = "is not what was exported" if file.is_file() else "is missing"
            msg = f"{file} {what}"
            raise SourceError(msg, hint=hint)
    return record


def _problems(record: ExportRecord, graph: str) -> Iterator[str]:
    """Say what keeps a record from being one: it came with the files, and readers rely on each field's form."""
    from pydantic import ValidationError

    from generator.spec.recipe import Recipe

    for name in ("made_by", "name", "description", "target", "precision", "activation"):
        if not isinstance(getattr(record, name), str):
            yield f"{name} is no text"
    if not isinstance(record.assumed, dict) or not all(isinstance(one, str) for one in record.assumed.values()):
        yield "assumed is not an object of texts"
    for name in ("labels", "notes", "keep"):
        value = getattr(record, name)
        if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
            yield f"{name} is no list of texts"
    if not isinstance(record.spec, dict) or not {"batch", "plan"} <= set(record.spec):
        yield "spec does not have batch and plan"
    try:
        Recipe.model_validate(record.recipe)
    except ValidationError:
        yield "recipe is no recipe"
    if not isinstance(record.files, dict):
        yield "files is no object"
    else:
        # they are copied by these names, so none may lead out of the folder
        yield from (f"{name!r} is no name of a file" for name in record.files if name in ("", "..") or "/" in name)
        yield from (f"{name} is not among its files" for name in (graph, REFERENCE_FILE) if name not in record.files)
