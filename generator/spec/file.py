"""From models.yaml, or names on the command line, to validated `ModelSpec` values.

Loading is parse, validate, resolve. Every problem of a file is reported at once, with file and field.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from generator.errors import SpecError
from generator.files import expand_home
from generator.spec.detection import DetectionOptions
from generator.spec.model import DEMO_DETECTOR, Batch, ModelSpec, make_name, name_from_file
from generator.spec.plan import BatchProfile, PlanOptions
from generator.spec.problems import describe_problems
from generator.spec.recipe import RecipeSpec
from generator.spec.serving import QueueOptions, RateLimiter
from generator.task import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_START = "start from a commented models.yaml"
_MODELS: tuple[type[BaseModel], ...] = (
    ModelSpec, Batch, RecipeSpec, DetectionOptions, PlanOptions, BatchProfile, QueueOptions, RateLimiter,
)  # fmt: skip


class _SpecFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: Annotated[list[ModelSpec], Field(min_length=1)]


def make_spec(names: Sequence[str], **options: object) -> list[ModelSpec]:
    """Return specs for names of models or ONNX files from the command line; `options` hold for each of them.

    A `name` among the options is what clients call the model, so it goes with one model only.

    Raises:
        SpecError: An option or a name is invalid.
    """
    given = {key: value for key, value in options.items() if value is not None}
    models = []
    for name in names:
        if name.endswith(".onnx"):
            models.append({**_from_file(Path(name)), "onnx": name, **given})
        elif name.startswith("timm/"):
            models.append({"name": name.removeprefix("timm/").partition("@")[0], "architecture": name, **given})
        elif name.endswith(".pt2"):
            models.append({"name": name_from_file(Path(name)), "pt2": name, **given})
        elif "/" in name:  # a folder, or hf:organisation/name@revision
            folder = name.partition("@")[0] if name.startswith("hf:") else str(_absolute(Path(name)))
            models.append({"name": make_name(Path(folder).name), "huggingface": name, **given})
        else:
            own = {"architecture": name}
            if name in ("demo", DEMO_DETECTOR) and "factory" not in given:
                own = {"source": "demo", **({"task": "detection"} if name == DEMO_DETECTOR else {})}
            models.append({"name": name, **(own if "name" in given else {}), **given})
    return _validate({"models": models}, where="command line", folder=Path())


def _from_file(path: Path) -> dict[str, object]:
    """Return what an ONNX file on the command line says itself; target and precision of an export: see `target.py`."""
    from generator.spec.exported import is_export, read_export

    if not is_export(path):
        return {"name": name_from_file(path)}
    record = read_export(path)
    return {
        "name": record.name,
        "source": "export",
        "activation": record.activation,
        **{field: record.spec[field] for field in ("task", "detection") if record.spec.get(field) is not None},
        "batch": record.spec["batch"],
        "plan": record.spec["plan"],
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
        raise SpecError(msg, hint=_START, command=("init",)) from error
    try:
        data = _parse(text)
    except (yaml.YAMLError, *_YAML_SLIPS) as error:
        msg = f"{path} is not valid YAML: {' '.join(str(error).split())}"
        raise SpecError(msg, hint=_START, command=("init",)) from error
    if not isinstance(data, dict):
        msg = f"{path} holds {type(data).__name__}, but a mapping with the key `models` was expected"
        raise SpecError(msg, hint=_START, command=("init",))
    if "made_by" in data and isinstance(data.get("spec"), dict):  # a trtgen.json: build the same model again
        data = {"models": [data["spec"]]}
    if target is not None and isinstance(data.get("models"), list):
        data["models"] = [{**model, "target": target} if isinstance(model, dict) else model for model in data["models"]]
    return _validate(data, where=str(path), folder=path.parent)


def _parse(text: str) -> Any:
    """Parse YAML, more strictly than PyYAML.

    A key stands once: PyYAML would take the last one and forget the others. A number is read as one reads it: PyYAML
    takes 010 for 8 and 1:30 for 90. And aliases are bounded: nine lines of them can stand for millions of values.
    """
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

        def compose_scalar_node(self, anchor: Any) -> Any:
            node = super().compose_scalar_node(anchor)
            if problem := _misread_number(node.tag.rpartition(":")[2], node.value):
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            return node

    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _misread_number(kind: str, text: str) -> str:
    """Say what is wrong with a number that YAML 1.1 reads otherwise than its reader does."""
    digits = text.replace("_", "").lstrip("+-")
    if kind in ("int", "float") and ":" in text:
        return f"{text} would be read as a number to the base 60; put it in quotes, or write the number"
    if kind == "int" and digits.isdecimal() and digits.startswith("0") and int(digits, 8) != int(digits):
        return f"{text} would be read as the octal number {int(digits, 8)}; write it without the leading 0"
    return ""


# More than any list of models has, and little enough to be read at once.
_MAX_ALIASED_VALUES = 100_000


def _check_aliases(root: Any) -> None:
    """Refuse a document whose aliases stand for too many values, before they become any.

    Raises:
        YAMLError: They do, or an alias stands for a value that holds it.
    """
    import yaml

    sizes: dict[int, int] = {}  # of what a node stands for, by its id; 0 while it is being counted

    def count(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
            sizes[id(node)] = 1 + sum(map(count, flat))
        elif sizes[id(node)] == 0:
            raise yaml.constructor.ConstructorError(None, None, "an alias in it stands for itself", node.start_mark)
        return sizes[id(node)]

    if count(root) - len(sizes) > _MAX_ALIASED_VALUES:
        problem = f"its aliases stand for more than {_MAX_ALIASED_VALUES:,} values"
        raise yaml.constructor.ConstructorError(None, None, problem, root.start_mark)


def describe_errors(error: ValidationError, where: str) -> list[str]:
    """Return pydantic's findings in the words of models.yaml."""
    fields = {name for model in _MODELS for name in model.model_fields} | {"models"}
    roles = [role for task in TASKS.loaded() for role in (*task.roles, task.fused) if role is not None]
    fields |= {role.key for role in roles}  # the others are in none of these specs
    return describe_problems(where, error.errors(), fields)


def _validate(data: dict[str, Any], *, where: str, folder: Path) -> list[ModelSpec]:
    try:
        models = _SpecFile.model_validate(data).models
    except ValidationError as error:
        raise SpecError(describe_errors(error, where), hint="docs/spec.md lists every field") from error
    if clashes := list(_clashes(models)):
        raise SpecError([f"{where}: {clash}" for clash in clashes], hint="give each model a name of its own")
    return [resolve_paths(model, folder) for model in models]


def _clashes(models: Iterable[ModelSpec]) -> Iterable[str]:
    """Directories of the model repository that two models would both write."""
    owners: dict[str, str] = {}
    for model in models:
        for directory in model.model_names:
            if directory in owners:
                yield f"models {owners[directory]!r} and {model.name!r} both need the directory {directory}"
            owners.setdefault(directory, model.name)


def resolve_paths(model: ModelSpec, folder: Path) -> ModelSpec:
    """Return the spec with its relative paths relative to `folder`, absolute."""
    changes: dict[str, object] = {}
    if model.onnx is not None:
        changes["onnx"] = _absolute(folder / model.onnx)
    if model.calibration is not None:
        changes["calibration"] = _absolute(folder / model.calibration)
    if isinstance(model.labels, Path):
        changes["labels"] = _absolute(folder / model.labels)
    if model.weights_file is not None:
        changes["weights"] = str(_absolute(folder / expand_home(model.weights_file)))
    if model.pt2 is not None:
        changes["pt2"] = _absolute(folder / model.pt2)
    if model.huggingface is not None and not model.is_on_hub:
        changes["huggingface"] = str(_absolute(folder / model.huggingface))
    if model.factory is not None and (parts := model.factory.rpartition(":"))[0].endswith(".py"):
        changes["factory"] = f"{_absolute(folder / expand_home(Path(parts[0])))}:{parts[2]}"
    return model.model_copy(update=changes)


def _absolute(path: Path) -> Path:
    """Not resolved: a link in Hugging Face's cache leads to a file whose name has no ending, with nothing beside it."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ..
