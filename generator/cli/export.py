"""`trtgen export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.console import say, show_progress
from generator.cli.hints import write_command
from generator.cli.options import ImagesOption, takes_models
from generator.cli.several_models import end_with, run_each

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec


@takes_models
def export(
    specs: list[ModelSpec],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder. [default: exported/NAME]")
    ] = None,
    images: ImagesOption = None,
) -> None:
    """Export for another host: the graph in the target's opset and precision, with the source's own answers.

    Example: trtgen export resnet50 --target tensorrt-10
    """
    if output is not None and len(specs) > 1:
        msg = "--output names one folder, but several models are exported"
        raise typer.BadParameter(msg)
    from generator.exporting import export_folder

    def run(model: ModelSpec) -> Path:
        folder = output or Path("exported") / model.name
        with show_progress() as progress:
            notes = export_folder(model, folder, images=images, on_event=progress.draw)
        for note in notes:
            say(f"! {model.name}: {note}")
        print(folder / "model.onnx")
        say(
            f"* next      on the host that serves it: {write_command(('build-repo',), {'onnx': folder / 'model.onnx'})}"
        )
        return folder

    end_with(run_each(specs, run))
