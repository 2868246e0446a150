"""`trtgen inspect`: what became of a graph, and where the time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from generator.cli.console import say, show_progress
from generator.cli.options import JsonOption
from generator.errors import SpecError
from generator.events import Doing


def inspect(
    file: Annotated[Path, typer.Argument(metavar="PLAN|ONNX", help="A plan or an ONNX file.", show_default=False)],
    *,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The graph of the plan.  [default: model.onnx beside it, if it is that one]"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once.  [default: what the first profile is optimised for]")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Runs that the layers' times are taken from.  [default: 50]")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show the N heaviest layers.  [default: all in order]")] = None,
    as_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with bars.")] = None,
) -> None:
    """Show layers, fusions, precisions and times of a plan, or the network of an ONNX file.

    Example: trtgen inspect model.plan --top 10 --html model.html
    """
    from generator.measure.inspect import inspect_onnx, inspect_plan, is_plan, to_json
    from generator.measure.inspect.page import write_page
    from generator.measure.inspect.text import format_inspection

    if is_plan(file):
        with show_progress() as progress:
            progress.draw(Doing(step=f"inspecting {file.name}"))
            inspection = inspect_plan(file, onnx=onnx, batch=batch, iterations=iterations or 50)
    else:
        given = {"--onnx": onnx, "--batch": batch, "--iterations": iterations}
        if wrong := [name for name, value in given.items() if value is not None]:
            msg = f"{', '.join(wrong)}: only a plan runs, and {file} is taken for an ONNX file"
            raise SpecError(msg, hint=f"trtgen inspect {file}, or give a plan such as model.plan")
        inspection = inspect_onnx(file)
    print(json.dumps(to_json(inspection), indent=2) if as_json else format_inspection(inspection, top=top))
    if html is not None:
        write_page(inspection, html)
        say(f"wrote {html}")
