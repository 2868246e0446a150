"""What a plan needs to be asked directly: the recipe and the class names, from what was written when it was made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from pydantic import ValidationError

    from generator.spec.recipe import Recipe
    from generator.tensor import Tensor

__all__ = ["Meaning", "Score", "check_meaning", "find_meaning", "rank", "read_recipe"]

_SUFFIX = "_classifier"
_EXPORT_FILE = "export.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """How images become rows, and what the scores stand for; None where nothing says so. `source` is the file."""

    recipe: Recipe | None
    labels: tuple[str, ...] | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One class of an image: `index` is its place in the output, `score` the value there."""

    label: str | None
    index: int
    score: float


def find_meaning(plan: Path) -> Meaning:
    """Return what the record of its repository says, else the export.json beside the plan, else nothing.

    Raises:
        PlanError: The export.json cannot be read, or it or the record does not say recipe and labels.
        RepositoryError: The record cannot be read.
    """
    from generator.repository import read_record
    from generator.spec.recipe import Recipe

    plan = plan.absolute()
    export = plan.with_name(_EXPORT_FILE)
    if export.is_file():
        data = _read_json(export)
        try:
            return Meaning(
                recipe=Recipe.model_validate(data["recipe"]), labels=_labels(data["labels"]), source=str(export)
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{export} does not say recipe and labels"
            raise PlanError(msg, hint="export again, or give --recipe and --labels") from error
    model = plan.parent.parent
    root, name = model.parent, model.name.removesuffix(_SUFFIX)
    if model.name.endswith(_SUFFIX) and name and (root / name / "trtgen.json").is_file():
        record = read_record(root, name)
        if record is not None:
            path = root / name / "trtgen.json"
            try:
                return Meaning(
                    recipe=Recipe.model_validate(record.recipe),
                    labels=_labels(record.contract["labels"]),
                    source=str(path),
                )
            except (KeyError, TypeError, ValueError) as error:
                msg = f"{path} does not say recipe and labels"
                raise PlanError(msg, hint="build the model again, or copy its trtgen.json again") from error
    return Meaning(recipe=None, labels=None, source="")


def read_recipe(text: str, tensor: Tensor) -> Recipe:
    """Return the recipe that `--recipe` asks for: `imagenet`, at the plan's own image size, or a JSON file.

    Raises:
        PlanError: Neither, or not a recipe.
    """
    from pathlib import Path

    from pydantic import ValidationError

    from generator.spec.recipe import IMAGENET, Recipe

    if text == "imagenet":
        if len(tensor.shape) != 4 or tensor.shape[3] != 3:
            raise _no_pixels(tensor)
        return IMAGENET.with_image_size((tensor.shape[1], tensor.shape[2]))
    path = Path(text)
    data = _read_json(path)
    try:
        return Recipe.model_validate(data.get("recipe", data) if isinstance(data, dict) else data)
    except ValidationError as error:
        msg = f"{path} holds no recipe: {_first_problem(error)}"
        raise PlanError(
            msg, hint="--recipe imagenet, or a JSON file with resize, crop, interpolation, mean, std"
        ) from error


def _first_problem(error: ValidationError) -> str:
    detail = error.errors()[0]
    return ": ".join([*(str(part) for part in detail["loc"]), str(detail["msg"])])


def check_meaning(recipe: Recipe, labels: Sequence[str] | None, given: Tensor, made: Tensor) -> None:
    """Compare recipe and labels with the plan's input and output.

    Raises:
        PlanError: The plan takes other pixels than the recipe makes, or has another number of classes.
    """
    if given.data_type.numpy != "uint8" or len(given.shape) != 4 or given.shape[3] != 3:
        raise _no_pixels(given)
    if given.shape[1:3] != recipe.crop:
        size, crop = (f"{height}x{width}" for height, width in (given.shape[1:3], recipe.crop))
        msg = f"the plan takes images of {size}, the recipe makes {crop}"
        raise PlanError(msg, hint="give the recipe the plan was built for (--recipe), or build the plan again")
    if labels is not None and len(labels) != made.shape[-1]:
        msg = f"there are {len(labels)} labels, the plan has {made.shape[-1]} classes"
        raise PlanError(msg, hint="give --labels FILE with one name a line, in the order of the network's outputs")


def rank(scores: NDArray[np.float32], labels: Sequence[str] | None, top: int) -> list[Score]:
    """Return the classes of one image, best first; of equal ones the lower index, as the server does it."""
    import numpy as np

    order = np.argsort(-scores.astype(np.float64), kind="stable")[:top]
    return [
        Score(label=None if labels is None else labels[index], index=int(index), score=float(scores[index]))
        for index in order
    ]


def _no_pixels(tensor: Tensor) -> PlanError:
    text = "x".join(str(edge) for edge in tensor.shape[1:])
    return PlanError(
        f"input {tensor.name} is {tensor.data_type.triton} {text}; UINT8 pixels of height x width x 3 were expected",
        hint="build the plan from a graph that trtgen exported: its input is UINT8 pixels",
    )


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ValueError("labels is no list of names")
    return tuple(value)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise PlanError(
            msg, hint="--recipe imagenet, or a JSON file with resize, crop, interpolation, mean, std"
        ) from error
