"""Network: what every source ends in, and what sources share."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.spec.recipe import IMAGENET, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from generator.spec.model import ModelSpec
    from generator.tasks.head import Activation

__all__ = ["Network", "find_last_layer", "read_labels", "resolve_labels", "resolve_recipe", "torch_runner"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A loaded source.

    `run` is the source's own answer and the measure for everything that follows: pixels (N, H, W, 3) uint8 in, scores
    (N, classes) FP32 out, in the source's own framework and before anything is put behind it. `activation` is the one
    that it is trained with, None where nobody says.
    Exactly one of `module` (takes normalised FP32 NCHW) and `onnx` (the user's file) is set.
    """

    description: str
    recipe: Recipe
    labels: tuple[str, ...]
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    activation: Activation | None = None
    module: torch.nn.Module | None = None
    onnx: Path | None = None


_ONE_OUTPUT_HINT = "give the class's name alone, or two lines: the name below the threshold, then the one above it"


def resolve_recipe(spec: ModelSpec, own: Recipe | None) -> Recipe:
    """Return the recipe: the source's own, then what the spec changes.

    Raises:
        SourceError: The source has none and the spec does not say enough.
    """
    try:
        if spec.recipe == "imagenet":
            recipe = IMAGENET
        elif own is not None:
            recipe = spec.recipe.apply_to(own)
        else:
            given = spec.recipe.model_dump(exclude_none=True)
            needed = ("resize", "crop", "interpolation", "mean", "std")
            if missing := [name for name in needed if name not in given]:
                msg = f"{spec.name}: nothing tells how its images were prepared; recipe lacks {', '.join(missing)}"
                hint = "say `recipe: imagenet` (--recipe imagenet) if it was trained like torchvision's models"
                if spec.labels is None:
                    msg += "; and nothing tells what its classes are called: labels is missing"
                    hint += "; give labels: FILE with one name a line (--labels FILE), or labels: index"
                raise SourceError(msg, hint=hint)
            recipe = Recipe.model_validate(given)
    except ValueError as error:  # pydantic's ValidationError is one
        reasons = "; ".join(part["msg"].removeprefix("Value error, ") for part in getattr(error, "errors", list)())
        msg = f"{spec.name}: the recipe does not hold: {reasons or error}"
        raise SourceError(msg, hint="change recipe in the spec; trtgen show prints the resolved one") from error
    if spec.image_size is None:
        return recipe
    size = (spec.image_size, spec.image_size) if isinstance(spec.image_size, int) else spec.image_size
    return recipe.with_image_size(size)


def resolve_labels(spec: ModelSpec, own: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return one name per class: the spec's file, the source's own categories, or indices if the spec says so.

    `classes` is how many outputs the network has. One output tells two classes apart, so there are two names then: that
    of its absence first, which is "not NAME" where the file has one line.

    Raises:
        SourceError: Unreadable file, wrong count, or no names at all.
    """
    if spec.classes not in (None, classes):
        msg = f"{spec.name}: classes is {spec.classes}, but the model has {classes}"
        raise SourceError(msg, hint=f"set classes: {classes} (--classes {classes}), or leave it out")
    if spec.labels == "index":
        return tuple(str(index) for index in range(max(classes, 2)))
    if isinstance(spec.labels, Path):
        labels = read_labels(spec.labels)
        if classes == 1 and len(labels) == 1:
            return f"not {labels[0]}", labels[0]
        if len(labels) != max(classes, 2):
            msg = f"{spec.labels} has {len(labels)} lines, but {spec.name} has {classes} classes"
            hint = "one class name a line, in the order of the network's outputs"
            if classes == 1:
                msg, hint = f"{spec.labels} has {len(labels)} lines, but {spec.name} has one output", _ONE_OUTPUT_HINT
            raise SourceError(msg, hint=hint)
        return labels
    if own is not None and len(own) == classes:
        return tuple(own)
    msg = f"{spec.name} has {classes} classes and no names for them"
    raise SourceError(msg, hint="give labels: FILE with one name a line (--labels FILE), or labels: index")


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the lines of a label file, without empty ones at its end; a name that stands twice is warned of.

    Raises:
        SourceError: Unreadable, not UTF-8, or with an empty line before the last name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the label file {path} cannot be read: {error}"
        raise SourceError(msg, hint="give a UTF-8 text file with one class name a line") from error
    # split at \n only: splitlines() would also cut a name at a form feed or U+2028, which Triton does not
    labels = [line.removesuffix("\r") for line in text.split("\n")]
    while len(labels) > 1 and not labels[-1].strip():
        labels.pop()
    if blank := [number for number, label in enumerate(labels, 1) if not label.strip()]:
        msg = f"the label file {path} has no name in line {blank[0]}"
        raise SourceError(msg, hint="one class name a line, in the order of the network's outputs")
    if twice := [name for name, count in Counter(labels).items() if count > 1]:
        lines = [number for number, label in enumerate(labels, 1) if label == twice[0]]
        more = f", and {len(twice) - 1} more names stand more than once" if len(twice) > 1 else ""
        _LOG.warning(
            "the label file %s has %r in lines %s%s: answers tell these classes apart by their index only",
            path, twice[0], " and ".join(map(str, lines)), more,
        )  # fmt: skip
    return tuple(labels)


def find_last_layer(module: torch.nn.Module) -> str:
    """Return the name of the last linear layer, or of the 1x1 convolution that SqueezeNet ends in."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    *_, last = (name for name, layer in module.named_modules() if isinstance(layer, kinds))
    return str(last)


def torch_runner(
    module: torch.nn.Module, recipe: Recipe, *, batch: int = 8
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return `Network.run` for a PyTorch module that takes normalised FP32 NCHW."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        import numpy as np
        import torch

        with torch.inference_mode():
            parts = [
                module(torch.from_numpy(recipe.normalise(pixels[start : start + batch]))).numpy()
                for start in range(0, len(pixels), batch)
            ]
        result: NDArray[np.float32] = np.concatenate(parts).astype(np.float32, copy=False)
        return result

    return run
