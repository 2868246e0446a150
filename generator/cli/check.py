"""`trtgen check`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.build_plan import GraphArgument, PlanBatchOption, ProfileOption, read_profiles
from generator.cli.console import say, show_progress
from generator.cli.options import JsonOption
from generator.events import Doing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.plan.preflight import PreflightReport


def check(
    model: GraphArgument,
    *,
    profile: ProfileOption = None,
    max_batch: PlanBatchOption = None,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Also build, not only parse.")] = True,
    task: Annotated[
        str, typer.Option(metavar="NAME", help="What kind of model build-repo would take it for.")
    ] = "classification",
    as_json: JsonOption = False,
) -> None:
    """Show an ONNX file to a real TensorRT parser and builder; needs no GPU.

    Example: trtgen check exported/resnet50/model.onnx --max-batch 16
    """
    from generator.errors import SourceError
    from generator.graph.model import read_onnx
    from generator.plan.preflight import check_graph
    from generator.spec.exported import is_export, read_export
    from generator.task import find_task

    try:
        kind = find_task(task)
    except LookupError as error:
        raise typer.BadParameter(str(error)) from error
    onnx = read_onnx(model)
    repairs: list[str] = []
    try:
        if is_export(model):
            repairs = read_export(model).repairs
        else:
            kind.choose_outputs(onnx.path, onnx.outputs, None)
    except SourceError as error:  # TensorRT may take it all the same, which is what is asked here
        say(f"! build-repo does not take this graph: {error.message}")
    profiles, largest = read_profiles(onnx, profile or [], max_batch)
    with show_progress() as progress:
        doing = partial(Doing, step=f"checking {model.name}")
        report = check_graph(
            onnx,
            profiles,
            build=build,
            max_batch_size=largest,
            on_progress=lambda phase, done: progress.draw(doing(part=phase, fraction=done)),
        )
    if as_json:
        print(json.dumps({**report.as_json(), "repairs": repairs}, indent=2))
    else:
        _print_report(report, repairs)
    report.raise_for_status()


def _print_report(report: PreflightReport, repairs: Sequence[str]) -> None:
    def count(values: object) -> str:
        assert isinstance(values, dict)
        return ", ".join(f"{name} {number}" for name, number in values.items()) or "none"

    print(f"model      {report.model}  opset {report.opset}, {report.precision}")
    for repair in repairs:
        print(f"repaired   {repair}")
    print(f"operators  {count(report.operators)}")
    print(f"layers     {report.layers}  {count(report.layer_types)}")
    for text in report.profiles:
        print(f"profile    {text}")
    if report.built:
        print(f"built      in {report.build_seconds:.1f} s, {report.plan_bytes / 1e6:.1f} MB")
    for text in report.warnings:
        print(f"warning    {text}")
    for fault in report.faults:
        print(f"refused    {fault}")
    say(f"proves: {report.proves}")
    say(f"does not prove: {report.does_not_prove}")
