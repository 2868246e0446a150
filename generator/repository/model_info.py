"""What a plan needs to answer images without a server: the recipe and the class names that it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from generator.errors import PlanError
from generator.repository import Layout, Record, read_record
from generator.repository.layout import RECORD_FILE
from generator.spec.exported import EXPORT_FILE
from generator.spec.recipe import RECIPES, Recipe
from generator.spec.records import name_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.tensor import Tensor

_RECIPE_HINT = "set recipe to imagenet, or to a JSON file with resize, crop, interpolation, mean, std"
_BOTH = {"recipe": None, "labels": None}


class ModelInfo(BaseModel):
    """What it was made of, how images become rows, and what its outputs mean, as export.json and trtgen.json say."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    labels: tuple[str, ...]
    description: str = ""
    spec: Mapping[str, Any] = {}
    head: Mapping[str, Any] | None = None

    @property
    def task(self) -> str:
        """What kind of model it is."""
        return str(self.spec.get("task", "classification"))


def find_model_info(plan: Path) -> ModelInfo | None:
    """Return what the export.json beside the plan says, else the record of its repository, else None.

    Raises:
        PlanError: The export.json cannot be read, or it or the record does not say recipe and labels.
        RepositoryError: The record cannot be read.
    """
    plan = plan.absolute()
    if (export := plan.with_name(EXPORT_FILE)).is_file():
        try:
            return ModelInfo.model_validate_json(export.read_bytes())
        except (OSError, ValidationError) as error:
            msg = f"{export} does not say recipe and labels: {_why(error)}"
            raise PlanError(msg, hint="export again, or give recipe and labels", fields=_BOTH) from error
    model = plan.parent.parent
    record = _find_record(model.parent, model.name)
    if record is None:
        return None
    try:
        own = {"description": record.description, "recipe": record.recipe, "spec": record.spec, "head": record.head}
        return ModelInfo.model_validate({**own, **record.contract})
    except ValidationError as error:
        msg = f"the trtgen.json of {record.name} does not say labels: {_why(error)}"
        raise PlanError(msg, hint="build the model again, or give recipe and labels", fields=_BOTH) from error


def _find_record(root: Path, member: str) -> Record | None:
    """Return the record of the served model that `member` belongs to; its name is what the member's begins with."""
    for folder in root.iterdir() if root.is_dir() else ():
        if member.startswith(folder.name) and (folder / RECORD_FILE).is_file():
            record = read_record(root, folder.name)
            if record is not None and member in Layout.of_record(record).models:
                return record
    return None


def read_recipe(text: str, tensor: Tensor) -> Recipe:
    """Return the recipe that `--recipe` asks for: a name, at the plan's own image size, or a JSON file.

    Raises:
        PlanError: Neither, or not a recipe.
    """
    if text in RECIPES:
        if len(tensor.shape) != 4 or tensor.shape[3] != 3:
            _refuse_input(tensor)
        return RECIPES[text].with_image_size((tensor.shape[1], tensor.shape[2]))
    try:
        data = json.loads(Path(text).read_bytes())
        return Recipe.model_validate(data.get("recipe", data) if isinstance(data, dict) else data)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{text} is not a recipe: {_why(error)}"
        raise PlanError(msg, hint=_RECIPE_HINT, fields={"recipe": None}) from error


def check_model_info(recipe: Recipe, labels: Sequence[str] | None, given: Tensor, made: Tensor) -> None:
    """Compare recipe and labels with the plan's input and output.

    Raises:
        PlanError: The plan takes other pixels than the recipe makes, or has another number of classes.
    """
    if given.data_type.numpy != "uint8" or len(given.shape) != 4 or given.shape[3] not in (1, 3):
        _refuse_input(given)
    if given.shape[1:] != recipe.shape:
        size, crop = ("x".join(map(str, shape)) for shape in (given.shape[1:], recipe.shape))
        msg = f"the plan takes images of {size}, the recipe makes {crop}"
        raise PlanError(msg, hint="give the recipe the plan was built for, or build it again", fields={"recipe": None})
    if labels is not None and len(labels) != made.shape[-1]:
        msg = f"there are {len(labels)} labels, the plan has {made.shape[-1]} classes"
        hint = "set labels to a file with one name a line, in the order of the network's outputs"
        raise PlanError(msg, hint=hint, fields={"labels": None})


def _refuse_input(tensor: Tensor) -> NoReturn:
    text = "x".join(str(edge) for edge in tensor.shape[1:])
    raise PlanError(
        f"input {tensor.name} is {tensor.data_type.triton} {text}; "
        "UINT8 pixels of height x width x channels were expected",
        hint="build the plan from a graph that trtgen exported: its input is UINT8 pixels",
    )


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return name_problems(error)
    return getattr(error, "strerror", None) or str(error)
