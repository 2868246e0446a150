"""`trtgen export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.console import say, show_progress
from generator.cli.each import end_with, run_each
from generator.cli.options import (
    ArchitectureOption,
    CalibrationOption,
    ClassesOption,
    ImageSizeOption,
    ImagesOption,
    LabelsOption,
    MaxBatchOption,
    NameOption,
    NamesArgument,
    PrecisionOption,
    RecipeOption,
    SpecOption,
    TargetOption,
    WeightsOption,
    specs_from,
)

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec


def export(
    names: NamesArgument = None,
    *,
    name: NameOption = None,
    spec: SpecOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder. [default: exported/NAME]")
    ] = None,
    weights: WeightsOption = None,
    architecture: ArchitectureOption = None,
    classes: ClassesOption = None,
    labels: LabelsOption = None,
    recipe: RecipeOption = None,
    image_size: ImageSizeOption = None,
    max_batch: MaxBatchOption = None,
    target: TargetOption = None,
    precision: PrecisionOption = None,
    calibration: CalibrationOption = None,
    images: ImagesOption = None,
) -> None:
    """Export for another host: the graph in the target's opset and precision, with the source's own answers.

    Example: trtgen export resnet50 --target tensorrt-10
    """
    specs = specs_from(
        names,
        spec,
        name=name,
        weights=weights,
        architecture=architecture,
        classes=classes,
        labels=labels,
        recipe=recipe,
        image_size=image_size,
        max_batch=max_batch,
        target=target,
        precision=precision,
        calibration=calibration,
    )
    if output is not None and len(specs) > 1:
        msg = "--output names one folder, but several models are exported"
        raise typer.BadParameter(msg)
    from generator.exporting import export_folder

    def run(model: ModelSpec) -> Path:
        folder = output or Path("exported") / model.name
        with show_progress() as progress:
            notes = export_folder(model, folder, images=images, spec_file=spec, on_event=progress.draw)
        for note in notes:
            say(f"! {model.name}: {note}")
        print(folder / "model.onnx")
        return folder

    end_with(run_each(specs, run))
