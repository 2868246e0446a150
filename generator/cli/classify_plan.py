"""`trtgen classify-plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from generator.cli.options import LabelsOption
from generator.cli.plan_images import BATCH, prepare_each, read_names
from generator.errors import PlanError


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
    if info is not None and info.task != "classification":
        msg = f"{plan} is the plan of a model for {info.task}, not for classification"
        raise PlanError(msg, hint="use detect-plan", command=("detect-plan", *map(str, images), "--plan", str(plan)))
    names = read_names(labels) if labels is not None else (info.labels if info else None)
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
        for start in range(0, len(images), BATCH):
            ready = list(prepare_each(chosen, images[start : start + BATCH]))
            failed += min(BATCH, len(images) - start) - len(ready)
            if not ready:
                continue
            answers = engine.run_rows(np.stack([pixels for _, pixels, _ in ready]))
            rows = make_rows({engine.output.name: answers}, names, top)
            for (path, *_), classes in zip(ready, rows, strict=True):
                _print_result(path, classes, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _print_result(path: Path, classes: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print one image's classes, best first, as clients/classify.py does."""
    if as_json:
        print(json.dumps({"file": str(path), "classes": classes}), flush=True)
        return
    print(path)
    for one in classes:
        print(f"  {one['score']:.4f}  {one['label'] or 'class ' + str(one['index'])}", flush=True)
