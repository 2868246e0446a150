"""`trtgen detect-plan`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from generator.cli.options import LabelsOption
from generator.cli.plan_images import BATCH, prepare_each, read_names
from generator.errors import PlanError


def detect_plan(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)],
    *,
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="The plan, such as model.plan.")],
    labels: LabelsOption = None,
    score: Annotated[
        float | None,
        typer.Option("--score", metavar="S", help="Another threshold for all classes. [default: the model's own]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image and line.")] = False,
) -> None:
    """Detect objects with a plan directly, without a server: what a wrong answer of the server is compared with.

    Example: trtgen detect-plan street.jpg --plan model_repository/yolo11n_detector/1/model.plan
    """
    import numpy as np

    from generator.plan.header import read_header
    from generator.plan.local import open_engine
    from generator.repository.model_info import find_model_info
    from generator.tasks.detection.postprocess import Postprocess
    from generator.tasks.detection.rows import make_detected_rows

    read_header(plan)
    info = find_model_info(plan)
    if info is None:
        msg = f"nothing says what {plan} detects: it is in no repository, and without export.json"
        raise PlanError(msg, hint="give the plan in its repository, or beside the export.json of its graph")
    if info.task != "detection":
        msg = f"{plan} is the plan of a model for {info.task}, not for detection"
        raise PlanError(
            msg, hint="use classify-plan", command=("classify-plan", *map(str, images), "--plan", str(plan))
        )
    names = read_names(labels) if labels is not None else info.labels
    if names is not None and len(names) != len(info.labels):
        msg = f"there are {len(names)} labels, the plan has {len(info.labels)} classes"
        hint = "set labels to a file with one name a line, in the order of the network's classes"
        raise PlanError(msg, hint=hint, fields={"labels": None})
    postprocess = Postprocess.of_record(info.spec, info.head, info.labels, score=score)
    failed = 0
    with open_engine(plan) as engine:
        for start in range(0, len(images), BATCH):
            ready = list(prepare_each(info.recipe, images[start : start + BATCH]))
            failed += min(BATCH, len(images) - start) - len(ready)
            if not ready:
                continue
            outputs = engine.run_outputs(np.stack([pixels for _, pixels, _ in ready]))
            for number, (path, _, geometry) in enumerate(ready):
                row = {name: values[number] for name, values in outputs.items()}
                rows = make_detected_rows(postprocess, row, geometry, names, None)
                _print_result(path, rows, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _print_result(path: Path, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print one image's boxes, best first, as clients/detect.py does."""
    if as_json:
        rounded = [
            {**row, "score": round(row["score"], 6), "box": [round(edge, 2) for edge in row["box"]]} for row in rows
        ]
        print(json.dumps({"file": str(path), "detections": rounded}), flush=True)
        return
    print(path)
    for row in rows:
        edges = " ".join(f"{edge:.0f}" for edge in row["box"])
        print(f"  {row['score']:.4f}  {row['label'] or 'class ' + str(row['index'])}  {edges}")
    if not rows:
        print("  no object")
    sys.stdout.flush()
