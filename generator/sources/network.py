"""Network: what every source ends in, and what sources share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from onnx import ModelProto
    from PIL.Image import Image

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

_SHOWN_LICENSE = 80


@dataclass(frozen=True, kw_only=True)
class Network:
    """A loaded source.

    `run` is the source's own answer and the measure for everything that follows: pixels (N, H, W, C) uint8 in, its
    outputs by name out, FP32 with N rows each, in the source's own framework and before anything is put behind it.
    `pixels` is the transform of the source's own library, an RGB image to pixels (H, W, C) before normalisation;
    None where torchvision's transforms with `recipe` are the measure.
    `activation` is the one that it is trained with, None where nobody says.
    `outputs` are the names of what a module returns: a tensor, or a tuple of several.
    Exactly one of `module` (takes normalised FP32 NCHW) and `onnx` (the user's file, which `run` runs) is set. `graph`
    is what is served of that file where it cannot be served as it is, and `repairs` say how it differs.
    """

    description: str
    recipe: Recipe
    labels: tuple[str, ...]
    run: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
    pixels: Callable[[Image], NDArray[np.uint8]] | None = None
    activation: str | None = None
    outputs: tuple[str, ...] = ("LOGITS",)
    module: torch.nn.Module | None = None
    onnx: Path | None = None
    graph: ModelProto | None = None
    repairs: tuple[str, ...] = ()


def resolve_recipe(spec: ModelSpec, own: Recipe | None) -> Recipe:
    """Return the recipe: the source's own, then what the spec changes.

    Raises:
        SourceError: The source has none and the spec does not say enough.
    """
    try:
        recipe = spec.recipe.apply_to(own)
    except LookupError as error:
        msg = f"{spec.name}: nothing tells how its images were prepared; recipe lacks {', '.join(error.args)}"
        fields: dict[str, object] = {"recipe": "imagenet"}
        hint = "set recipe: imagenet if it was trained like torchvision's models"
        if spec.labels is None:
            msg += "; and nothing tells what its classes are called: labels is missing"
            hint += "; set labels to a file with one name a line, or to index"
            fields["labels"] = None
        raise SourceError(msg, hint=hint, fields=fields) from error
    except ValueError as error:  # pydantic's ValidationError is one
        reasons = "; ".join(part["msg"].removeprefix("Value error, ") for part in getattr(error, "errors", list)())
        msg = f"{spec.name}: the recipe is not valid: {reasons or error}"
        raise SourceError(msg, hint="change recipe in the spec") from error
    if spec.image_size is None:
        return recipe
    size = (spec.image_size, spec.image_size) if isinstance(spec.image_size, int) else spec.image_size
    return recipe.with_image_size(size)


def describe_license(stated: str) -> str:
    """Return the license that a source states as words behind its name: in brackets, empty where it states none."""
    words = " ".join(stated.split())
    return f" ({words[:_SHOWN_LICENSE]})" if words else ""


def check_channels(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse one grey channel for a network that takes three.

    Raises:
        SourceError: The recipe asks for it.
    """
    if recipe.channels == "grey":
        msg = f"{spec.name}: the recipe makes one grey channel, the network takes three"
        raise SourceError(msg, hint="leave channels out: grey images get three equal channels")


def find_last_layer(module: torch.nn.Module) -> str:
    """Return the name of the last linear layer, or of the 1x1 convolution that SqueezeNet ends in."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    *_, last = (name for name, layer in module.named_modules() if isinstance(layer, kinds))
    return str(last)


def torch_runner(
    module: torch.nn.Module,
    recipe: Recipe,
    *,
    batch: int = 8,
    normalise: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None,
    outputs: tuple[str, ...] = ("LOGITS",),
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """Return `Network.run` for a PyTorch module that takes normalised FP32 NCHW and returns `outputs`.

    `normalise` is the source's own; None is the recipe's.
    """
    to_input = normalise or recipe.normalise

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        import numpy as np
        import torch

        with torch.inference_mode():
            parts = []
            for start in range(0, len(pixels), batch):
                answer = module(torch.from_numpy(to_input(pixels[start : start + batch])))
                parts.append([answer] if isinstance(answer, torch.Tensor) else answer)
        return {
            name: np.concatenate([tensor.numpy() for tensor in tensors]).astype(np.float32, copy=False)
            for name, tensors in zip(outputs, zip(*parts, strict=True), strict=True)
        }

    return run
