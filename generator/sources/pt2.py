"""The user's .pt2 file: a program that torch.export.save wrote. Loading one can run code that is in it."""

from __future__ import annotations

import logging
import pickle
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.sources.module import describe_failure, try_module
from generator.sources.network import Network, resolve_recipe, torch_runner
from generator.task import find_task

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

# What torch.export.load raises over other and damaged files.
_SLIPS = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError,
          ValueError, pickle.UnpicklingError, zipfile.BadZipFile)  # fmt: skip


def load(spec: ModelSpec) -> Network:
    """Load the program and check that it takes any number of images.

    Raises:
        SourceError: Not a program that this torch reads, several inputs, a fixed batch, or no vector of scores.
    """
    path = spec.pt2
    assert path is not None, "the spec's own rules see to it"
    program = _read(path)
    recipe = resolve_recipe(spec, None)
    _check_inputs(path, program, recipe, maximum=spec.batch.max)
    module, classes = try_module(_as_module(program), recipe, str(path))
    return Network(
        description=f"program {path.name}",
        recipe=recipe,
        labels=find_task(spec.task).resolve_labels(spec, None, classes),
        run=torch_runner(module, recipe),
        module=module,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names; the file is loaded for it."""
    network = load(spec)
    return network.recipe, network.labels


def _read(path: Path) -> Any:
    import torch

    if not path.is_file():
        msg = f"the program {path} does not exist"
        raise SourceError(msg, hint="give the path of a .pt2 file", fields={"pt2": None})
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except _SLIPS as error:
        msg = f"{path} is not a program that torch {torch.__version__} reads: {describe_failure(error)}"
        hint = "save it again with torch.export.save and this torch, or give a checkpoint or an ONNX file as what it is"
        raise SourceError(msg, hint=hint) from error
    finally:
        logger.setLevel(level)


def _check_inputs(path: Path, program: Any, recipe: Recipe, *, maximum: int) -> None:
    """Refuse a program of several inputs, or one whose batch is not free from 1 to `maximum`."""
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        msg = f"{path} takes {len(names)} inputs, {', '.join(map(str, names))}; one, the images, was expected"
        raise SourceError(msg, hint="export a module whose forward takes the images alone")
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == names[0])
    shape = getattr(node.meta["val"], "shape", ())
    height, width, channels = recipe.shape
    example = f"torch.zeros(2, {channels}, {height}, {width})"
    again = (
        'export it again with a free batch: batch = torch.export.Dim("batch", min=1, max=1024); '
        f"torch.export.save(torch.export.export(model.eval(), ({example},), "
        f'dynamic_shapes=({{0: batch}},)), "{path.name}")'
    )
    if not shape or isinstance(shape[0], int):
        msg = f"{path}: the batch is baked in: {names[0]} has shape {list(shape)}, a free first axis was expected"
        raise SourceError(msg, hint=again)
    limits = program.range_constraints.get(shape[0].node.expr)
    # a lower limit of 2 is what Dim.AUTO notes by itself; the gate shows whether one image is answered, too
    if limits is not None and not (limits.lower <= 2 and limits.upper >= maximum):
        msg = f"{path} takes {limits.lower} to {limits.upper} images at once; 1 to {maximum} were expected"
        raise SourceError(msg, hint=again, fields={"batch.max": int(limits.upper)} if limits.lower <= 2 else {})


def _as_module(program: Any) -> torch.nn.Module:
    """Return the program as a module that can be put into another one: an exported one refuses eval()."""
    import torch

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = program.module()

        def forward(self, images: torch.Tensor) -> Any:
            return self.program(images)

        def train(self, mode: bool = True) -> Program:  # noqa: ARG002 - torch's signature
            return self

    return Program()
