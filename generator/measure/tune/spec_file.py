"""The chosen fields in a copy of the spec: comments and everything else stay as they are."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError, SpecError
from generator.measure.tune.knobs import apply_settings, describe_settings, merge_settings
from generator.spec.file import load_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from generator.measure.tune.knobs import Settings
    from generator.spec.model import ModelSpec


def make_text(spec: ModelSpec, file: Path | None, settings: Settings, path: Path) -> str:
    """Return the text of a models.yaml for `path` with these fields set: `file` edited, or one made from the spec.

    Raises:
        SpecError: It would not say the same in all other fields: the file has the fields in a form that is not edited,
            or its relative paths would lead elsewhere.
    """
    import yaml

    if file is None:
        fields = {"name": spec.name, "source": spec.source, "task": spec.task}
        fields |= spec.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        return yaml.safe_dump({"models": [merge_settings(_drop_empty(fields), settings)]}, sort_keys=False)
    text = file.read_text(encoding="utf-8")
    fitting = {model.name: model for model in load_spec(file)}
    fitting[spec.name] = apply_settings(fitting[spec.name], settings)
    try:
        edited = _edit(text, spec.name, settings)
        found = {model.name: model for model in _load(edited, path)}
    except (SpecError, LookupError):
        found = {}
    if found != fitting:
        raise SpecError(
            f"{file} cannot be copied to {path} with {describe_settings(settings)} set",
            hint="write the copy into its folder, write those fields on lines of their own, or leave the spec out",
            fields={"write": None, "spec": None},
        )
    return edited


def write_text(text: str, path: Path) -> None:
    """Write a file that is not there yet.

    Raises:
        PerfError: It is there, or cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            stream.write(text)
        try:
            os.link(stream.name, path)  # unlike a rename it takes the place of no file
        finally:
            Path(stream.name).unlink()
        path.chmod(0o644)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}"
        raise PerfError(msg, hint="name another file", fields={"write": None}) from error


def _load(text: str, path: Path) -> list[ModelSpec]:
    """Return what `text` says in the folder of `path`."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".yaml", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        return load_spec(Path(stream.name))


def _drop_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: kept for key, one in value.items() if (kept := _drop_empty(one)) not in ({}, None)}


def _edit(text: str, name: str, settings: Settings) -> str:
    """Return YAML with the fields of the model `name` set; LookupError where that needs more than an edit."""
    import yaml

    changes: dict[str, Any] = {}
    for field, value in settings.items():
        outer, _, inner = field.partition(".")
        changes[outer] = {**changes.get(outer, {}), inner: value} if inner else value
    models = _find(yaml.compose(text, Loader=yaml.SafeLoader), "models")
    model = next(
        (one for one in getattr(models, "value", ()) if getattr(_find(one, "name"), "value", None) == name), None
    )
    if model is None:
        raise LookupError(name)
    for start, end, new in sorted(_list_edits(text, model, changes), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _find(node: Any, key: str) -> Any:
    """Return the value of a key, None where there is none."""
    pairs = node.value if type(node).__name__ == "MappingNode" else ()
    return next((value for name, value in pairs if name.value == key), None)


def _list_edits(text: str, node: Any, changes: Mapping[str, Any]) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and the text between them that sets the keys of a mapping that is not empty."""
    import yaml

    def dump(value: Any) -> str:
        return (
            yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
            .removesuffix("...\n")
            .strip()
        )

    new = []
    for key, value in changes.items():
        found = _find(node, key)
        if found is None:
            new.append(f"{key}: {dump(value)}")
        elif isinstance(value, dict) and isinstance(found, yaml.MappingNode) and found.value:
            yield from _list_edits(text, found, value)
        elif isinstance(found, yaml.ScalarNode) or found.flow_style:
            start, end = found.start_mark.index, found.end_mark.index
            yield start, end, f" {dump(value)}" if start == end else dump(value)
        else:
            raise LookupError(key)
    if not new:
        return
    first = node.value[0][0].start_mark
    if node.flow_style:
        yield first.index, first.index, "".join(f"{line}, " for line in new)
        return
    # Behind a key with its value on one line, and behind the comment there: `- name: demo` stays first.
    ends = [value.end_mark for _, value in node.value if value.start_mark.line == value.end_mark.line]
    if not ends:
        raise LookupError("no line to write behind")
    end = text.find("\n", ends[0].index)
    at = len(text) if end < 0 else end
    yield at, at, "".join(f"\n{' ' * first.column}{line}" for line in new)
