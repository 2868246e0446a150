"""Corrections of what has one right answer, as edits of the text: comments and layout stay."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, NamedTuple

from generator.doctor.backends import FILES, find_backend
from generator.doctor.redact import redact
from generator.doctor.repository import ConfiguredModel, is_file
from generator.errors import RepositoryError
from generator.files import write_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from generator.doctor.finding import Finding
    from generator.doctor.positions import Field
    from generator.doctor.repository import ModelRepository

_SUFFIXES = {".onnx": "onnxruntime", ".plan": "tensorrt", ".engine": "tensorrt", ".pt": "pytorch"}


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


class Fix(NamedTuple):
    """A configuration as it is and as it should be, and the findings that this ends."""

    path: Path
    before: str
    after: str
    findings: tuple[Finding, ...]

    def diff(self) -> str:
        """Return a unified diff, secrets hidden."""
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.after))
        made = difflib.unified_diff(before, after, str(self.path), str(self.path))
        text = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in made)
        return redact(text, of=self.before)


def find_fixes(repository: ModelRepository, findings: Sequence[Finding]) -> list[Fix]:
    """Return a fix for each configuration in which something has one right answer."""
    fixes = []
    for model in repository.models.values():
        if not isinstance(model, ConfiguredModel) or model.text is None:
            continue
        edits: list[_Edit] = []
        ended = []
        for finding in findings:
            if finding.model != model.name or finding.rule.id not in _FIXERS:
                continue
            made = _FIXERS[finding.rule.id](model, finding)
            if made and not _overlap(edits, made):
                edits += made
                ended.append(finding)
        if ended:
            after = _apply(model.text, edits)
            fixes.append(Fix(path=model.config_path, before=model.text, after=after, findings=tuple(ended)))
    return fixes


def write_fix(fix: Fix) -> None:
    """Put the corrected text in the place of the other, whole or not at all.

    Raises:
        RepositoryError: It cannot be written.
    """
    path = fix.path.resolve()
    try:
        temporary = write_temporary(path, fix.after.encode())
        temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except OSError as error:
        msg = f"{fix.path} cannot be written: {error.strerror or error}"
        raise RepositoryError(msg, hint="apply the diff where it can be written") from error


def _overlap(edits: Iterable[_Edit], more: Iterable[_Edit]) -> bool:
    return any(one.start < other.end and other.start < one.end for one in edits for other in more)


def _apply(text: str, edits: Sequence[_Edit]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _fields(model: ConfiguredModel, path: tuple[str | int, ...]) -> list[Field]:
    """Return every value of a field, which a list has several of."""
    found: list[Field] = []
    while (field := model.positions.fields.get((*path, len(found)))) is not None:
        found.append(field)
    return found


def _remove(model: ConfiguredModel, path: tuple[str | int, ...]) -> list[_Edit]:
    """Remove a field with all its values, and the line where nothing else is on it."""
    text = model.text or ""
    edits = []
    for start, end in sorted({field.whole for field in _fields(model, path)}):
        line = text.rfind("\n", 0, start) + 1
        if (rest := re.compile(r"[ \t]*[,;]?[ \t]*(?:\n|$)").match(text, end)) and not text[line:start].strip():
            edits.append(_Edit(line, rest.end(), ""))
        else:
            more = re.compile(r"[ \t]*[,;]?[ \t]?").match(text, end)
            edits.append(_Edit(start, more.end() if more else end, ""))
    return edits


def _replace(model: ConfiguredModel, path: tuple[str | int, ...], text: str) -> list[_Edit]:
    """Replace a field's one value."""
    fields = _fields(model, path)
    return [_Edit(*fields[0].span, text)] if len(fields) == 1 else []


def _insert(model: ConfiguredModel, line: str, *, behind: tuple[str | int, ...] = ()) -> list[_Edit]:
    """Insert a field behind another one, in a line of its own where that has one; at the top where none is named."""
    if not behind:
        return [_Edit(0, 0, f"{line}\n")]
    text = model.text or ""
    [field] = _fields(model, behind)[:1]
    start, end = field.whole
    indent = text[text.rfind("\n", 0, start) + 1 : start]
    return [_Edit(end, end, f" {line}" if indent.strip() else f"\n{indent}{line}")]


def _drop_field(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    return _remove(model, finding.field)


def _drop_format(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    """Remove the format of what is no image; four dims may be those of one, with the batch among them."""
    tensor = model.config.input[int(finding.field[1])]
    return [] if len(tensor.dims) == 4 and model.config.max_batch_size > 0 else _remove(model, finding.field)


def _drop_batch(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    """Take the batch out of dims, where the rest is the network's."""
    stated, made = finding.values["stated"], finding.values["made"]
    assert isinstance(stated, list)
    assert isinstance(made, list)
    dims = stated[1:]
    rest = [own in (-1, size) for own, size in zip(made[1:], dims[1:], strict=False)]
    if model.config.max_batch_size <= 0 or len(dims) != len(made) or not all(rest):
        return []
    whole = sorted({field.whole for field in _fields(model, finding.field)})
    new = f"dims: [ {', '.join(map(str, dims[1:]))} ]"
    return [_Edit(start, end, "" if number else new) for number, (start, end) in enumerate(whole)]


def _take_data_type(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    return _replace(model, finding.field, str(finding.values["made"]))


def _take_newest(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    """State -1 where a step states no version."""
    if finding.values["version"]:
        return []
    return _insert(model, "model_version: -1", behind=(*finding.field[:-1], "model_name"))


def _name_labels(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    """Name the one file of that name, in upper or lower case, that is in the folder or one below."""
    name = str(finding.values["path"]).rpartition("/")[2].lower()
    paths = [path for pattern in ("*", "*/*") for path in sorted(model.path.glob(pattern))]
    found = [path for path in paths if path.name.lower() == name and is_file(path)]
    if len(found) != 1:
        return []
    return _replace(model, finding.field, f'"{found[0].relative_to(model.path)}"')


def _name_backend(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    """Name the backend of the one file that tells, and the file where its name is not the usual one."""
    del finding
    if (file := _find_one_file(model, "")) is None:
        return []
    backend = _find_kind(file) or ""
    named = "" if file == FILES[backend] else f'\ndefault_model_filename: "{file}"'
    return _insert(model, f'backend: "{backend}"{named}')


def _name_file(model: ConfiguredModel, finding: Finding) -> list[_Edit]:
    """Name the one file of the backend's kind that every version has."""
    del finding
    if (file := _find_one_file(model, find_backend(model))) is None:
        return []
    stated = _replace(model, ("default_model_filename",), f'"{file}"')
    return stated or _insert(model, f'default_model_filename: "{file}"')


def _find_one_file(model: ConfiguredModel, backend: str) -> str | None:
    """Return the name of the only file of a known kind, the same in every version that is served."""
    found = set()
    for version in model.served_versions:
        files = sorted(path.name for path in (model.path / str(version)).iterdir() if is_file(path))
        kinds = {name: _find_kind(name) for name in files}
        found.add(tuple(name for name, kind in kinds.items() if kind and backend in ("", kind)))
    names = found.pop() if len(found) == 1 else ()
    return names[0] if len(names) == 1 else None


def _find_kind(name: str) -> str | None:
    return "python" if name == FILES["python"] else _SUFFIXES.get(f".{name.rpartition('.')[2]}")


_FIXERS: dict[str, Callable[[ConfiguredModel, Finding], list[_Edit]]] = {
    "backend-unstated": _name_backend,
    "ensemble-member-version": _take_newest,
    "instance-cpu-with-gpus": _drop_field,
    "layout-named-file-missing": _name_labels,
    "layout-no-model-file": _name_file,
    "network-data-type": _take_data_type,
    "network-dims": _drop_batch,
    "tensor-format-dims": _drop_format,
}
FIXABLE = frozenset(_FIXERS)
