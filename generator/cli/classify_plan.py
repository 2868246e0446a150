"""`trtgen classify-plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generator.cli import console
from generator.cli.options import LabelsOption
from generator.errors import PlanError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.recipe import Recipe

_BATCH = 64  # images that are held in memory at once


def classify_plan(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)],
    *,
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="The plan, such as model.plan.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="`imagenet`, or a JSON file with a recipe. [default: the plan's own, from trtgen.json or export.json]",
        ),
    ] = None,
    labels: LabelsOption = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Classes per image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image and line.")] = False,
) -> None:
    """Classify images with a plan directly, without a server: what a wrong answer of the server is compared with.

    Example: trtgen classify-plan cat.jpg --plan model_repository/resnet50_classifier/1/model.plan
    """
    import numpy as np

    from generator.plan.header import read_header
    from generator.plan.local import open_engine
    from generator.repository.model_info import check_model_info, find_model_info, read_recipe
    from generator.tasks.classification.rows import make_rows

    read_header(plan)
    info = find_model_info(plan)
    if recipe is None and info is None:
        msg = f"nothing says how images become the input of {plan}: it is in no repository, and without export.json"
        raise PlanError(msg, hint="--recipe imagenet, or a JSON file with resize, crop, interpolation, mean, std")
    names = _read_labels(labels) if labels is not None else (info.labels if info else None)
    failed = 0
    with open_engine(plan) as engine:
        if recipe is not None:
            chosen = read_recipe(recipe, engine.input)
        else:
            assert info is not None, "refused above"
            chosen = info.recipe
        if labels == "index":
            names = tuple(str(index) for index in range(engine.output.shape[-1]))
        elif names and engine.output.shape[-1] == 1:  # of two classes, the one whose probability it is
            names = names[-1:]
        check_model_info(chosen, names, engine.input, engine.output)
        for start in range(0, len(images), _BATCH):
            ready = list(_prepare(chosen, images[start : start + _BATCH]))
            failed += min(_BATCH, len(images) - start) - len(ready)
            if not ready:
                continue
            answers = engine.run_rows(np.stack([pixels for _, pixels in ready]))
            rows = make_rows({engine.output.name: answers}, names, top)
            for (path, _), classes in zip(ready, rows, strict=True):
                _print_result(path, classes, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _prepare(recipe: Recipe, paths: list[Path]) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Yield the pixels of each file that is an image; say what is wrong with the others."""
    from generator.images.served_pixels import prepare_without_torch

    for path in paths:
        try:
            yield path, prepare_without_torch(recipe, [path.read_bytes()], [str(path)])[0]
        except SourceError as error:
            console.report(error)
        except OSError as error:
            hint = "check the path and its permissions"
            console.report(SourceError(f"{path}: {error.strerror or error}", hint=hint))


def _read_labels(text: str) -> tuple[str, ...] | None:
    if text == "index":
        return None
    from generator.tasks.labels import read_labels as read_file

    return read_file(Path(text))


def _print_result(path: Path, classes: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print one image's classes, best first, as clients/classify.py does."""
    if as_json:
        print(json.dumps({"file": str(path), "classes": classes}), flush=True)
        return
    print(path)
    for one in classes:
        print(f"  {one['score']:.4f}  {one['label'] or 'class ' + str(one['index'])}", flush=True)
