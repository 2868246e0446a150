"""A PyTorch module that the user, or a library, wrote: tried with two images before anything is exported."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError

if TYPE_CHECKING:
    import torch

    from generator.spec.recipe import Recipe

_OWN_CODE = Path(__file__).parents[1]


def try_module(module: torch.nn.Module, recipe: Recipe, what: str) -> tuple[torch.nn.Module, int]:
    """Return the module, made to answer one tensor [N, classes], and how many classes these are.

    An answer with scores in `.logits`, as transformers' models give, is taken, too; `what` names the module in errors.

    Raises:
        SourceError: It does not take the recipe's images, or answers something else.
    """
    import numpy as np
    import torch

    images = torch.from_numpy(recipe.normalise(np.zeros((2, *recipe.shape), np.uint8)))
    try:
        with torch.inference_mode():
            output: Any = module(images)
    except Exception as error:
        msg = f"{what} does not take images {list(images.shape)}: {describe_failure(error)}"
        hint = "set image_size, or crop and channels of recipe, to what the module takes"
        raise SourceError(msg, hint=hint, fields={"image_size": None}) from error
    if isinstance(logits := getattr(output, "logits", None), torch.Tensor):
        module, output = _take_logits(module), logits
    if not isinstance(output, torch.Tensor):
        msg = f"{what} answers {describe_value(output)}; one tensor [N, classes] was expected"
        raise SourceError(msg, hint="let its forward return the scores alone")
    if output.dim() != 2 or len(output) != 2 or not output.is_floating_point():
        found = f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)}"
        msg = f"{what} answers two images with {found}; floating-point scores [2, classes] were expected"
        raise SourceError(msg, hint="let its forward return one row of scores per image")
    return module, output.shape[1]


def _take_logits(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images).logits
            return logits

    return Logits().eval()


def describe_failure(error: BaseException) -> str:
    """Return the first line of an error of somebody else's code, and where in it that was raised."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    if isinstance(error, SyntaxError):  # it names its place itself
        return text
    import torch

    hidden = (_OWN_CODE, Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and not any(Path(frame.filename).is_relative_to(folder) for folder in hidden)
    ]
    user = [frame for frame in frames if "importlib" not in Path(frame.filename).parts]
    return f"{text} ({user[-1].filename}:{user[-1].lineno})" if user else text


def describe_value(value: object) -> str:
    """Say what was returned in place of what was expected."""
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    return "nothing" if value is None else f"an object of the type {type(value).__name__}"
