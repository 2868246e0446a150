"""From models.yaml, or names on the command line, to validated `ModelSpec` values.

Loading is parse, validate, resolve. Every problem of a file is reported at once, with file and field.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from generator.config_text import ConfigTexts
from generator.errors import SpecError
from generator.plan.options import BatchProfile, PlanOptions
from generator.recipe import RecipeSpec
from generator.spec import MEMBERS, Batch, Instances, ModelSpec, name_from_file
from generator.spec_problems import describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["load_spec", "make_spec"]

_MODELS: tuple[type[BaseModel], ...] = (ModelSpec, Batch, Instances, ConfigTexts, RecipeSpec, PlanOptions, BatchProfile)


class _SpecFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: Annotated[list[ModelSpec], Field(min_length=1)]


def make_spec(names: Sequence[str], **options: object) -> list[ModelSpec]:
    """Return specs for names of models or ONNX files from the command line; `options` hold for each of them.

    Raises:
        SpecError: An option or a name is invalid.
    """
    given = {key: value for key, value in options.items() if value is not None}
    models = []
    for name in names:
        if name.endswith(".onnx"):
            models.append({**_from_file(Path(name)), "onnx": name, **given})
        else:
            models.append({"name": name, **given})
    return _validate({"models": models}, where="command line", folder=Path())


def _from_file(path: Path) -> dict[str, object]:
    """Return what an ONNX file on the command line says itself; target and precision of an export: see `target.py`."""
    from generator.export.exported import is_export, read_export

    if not is_export(path):
        return {"name": name_from_file(path)}
    record = read_export(path)
    return {
        "name": record.name,
        "source": "export",
        "activation": record.activation,
        "batch": record.spec["batch"],
        "plan": record.spec["plan"],
        "experimental": bool(record.spec.get("experimental")),
    }


# What PyYAML lets through besides its own errors: dates that do not exist, numbers of 5000 digits, empty tags, depth.
_YAML_SLIPS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def load_spec(path: Path, *, target: str | None = None) -> list[ModelSpec]:
    """Read models.yaml, or the trtgen.json of a built model. Relative paths in it are relative to its folder.

    `target` replaces what the file says for its models: one file describes them for several hosts.

    Raises:
        SpecError: Unreadable, not YAML, or invalid; with every problem found.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SpecError(msg, hint="trtgen init writes a commented models.yaml") from error
    try:
        data = _parse(text)
    except (yaml.YAMLError, *_YAML_SLIPS) as error:
        msg = f"{path} is not valid YAML: {' '.join(str(error).split())}"
        raise SpecError(msg, hint="trtgen init writes a commented models.yaml to start from") from error
    if not isinstance(data, dict):
        msg = f"{path} holds {type(data).__name__}, but a mapping with the key `models` was expected"
        raise SpecError(msg, hint="trtgen init writes a commented models.yaml to start from")
    if "made_by" in data and isinstance(data.get("spec"), dict):  # a trtgen.json: build the same model again
        data = {"models": [data["spec"]]}
    if target is not None and isinstance(data.get("models"), list):
        data["models"] = [{**model, "target": target} if isinstance(model, dict) else model for model in data["models"]]
    return _validate(data, where=str(path), folder=path.parent)


def _parse(text: str) -> Any:
    """Parse YAML, in which a key stands once: PyYAML would take the last one and forget the others."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:  # before merges are put in place
            node = super().compose_mapping_node(anchor)
            lines: dict[tuple[str, str], int] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                known = (key.tag, key.value)
                if known in lines and key.tag != "tag:yaml.org,2002:merge":
                    problem = f"the key {key.value} stands in line {lines[known]} already"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                lines[known] = key.start_mark.line + 1
            return node

    return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader


def _validate(data: dict[str, Any], *, where: str, folder: Path) -> list[ModelSpec]:
    try:
        models = _SpecFile.model_validate(data).models
    except ValidationError as error:
        fields = {name for model in _MODELS for name in model.model_fields} | {"models"}
        problems = describe_problems(where, error.errors(), fields)
        raise SpecError(problems, hint="docs/spec.md lists every field") from error
    if clashes := list(_clashes(models)):
        raise SpecError([f"{where}: {clash}" for clash in clashes], hint="give each model a name of its own")
    return [_with_absolute_paths(model, folder) for model in models]


def _clashes(models: Iterable[ModelSpec]) -> Iterable[str]:
    """Directories of the model repository that two models would both write."""
    owners: dict[str, str] = {}
    for model in models:
        for directory in (model.name, *(model.name + member for member in MEMBERS)):
            if directory in owners:
                yield f"models {owners[directory]!r} and {model.name!r} both need the directory {directory}"
            owners.setdefault(directory, model.name)


def _with_absolute_paths(model: ModelSpec, folder: Path) -> ModelSpec:
    changes: dict[str, object] = {}
    if model.onnx is not None:
        changes["onnx"] = _absolute(folder / model.onnx)
    if model.calibration is not None:
        changes["calibration"] = _absolute(folder / model.calibration)
    if isinstance(model.labels, Path):
        changes["labels"] = _absolute(folder / model.labels)
    if model.source == "checkpoint":
        changes["weights"] = str(_absolute(folder / Path(model.weights).expanduser()))
    return model.model_copy(update=changes)


def _absolute(path: Path) -> Path:
    """Not resolved: a link in Hugging Face's cache leads to a file whose name has no ending, with nothing beside it."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ..
