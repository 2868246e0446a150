"""Options that several commands share, declared once, and the way from them to specs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generator.errors import SpecError

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec

__all__ = [
    "ArchitectureOption",
    "CalibrationOption",
    "ClassesOption",
    "ImageSizeOption",
    "ImagesOption",
    "LabelsOption",
    "MaxBatchOption",
    "NameOption",
    "NamesArgument",
    "PrecisionOption",
    "RecipeOption",
    "RepositoryOption",
    "SpecOption",
    "TargetOption",
    "WeightsOption",
    "parse_numbers",
    "specs_from",
]


def complete_models(incomplete: str) -> list[str]:
    """Return the names that begin so, for the shell; where there is none, it completes files.

    torchvision's are read from its text: its import takes seconds.
    """
    import importlib.util

    found = importlib.util.find_spec("torchvision")
    folders = found.submodule_search_locations if found else None
    names = ["demo"]
    for path in sorted(Path(folders[0], "models").glob("*.py")) if folders else ():
        names += re.findall(r"^@register_model\(.*\n(?:.*\n)*?def (\w+)", path.read_text("utf-8"), re.MULTILINE)
    return [name for name in names if name.startswith(incomplete)]


# The panels of --help, where a command has many options.
MODEL, TARGET, PROOF = "Model", "Target", "Proof"

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME|FILE.onnx",
        help="Names of torchvision's classification models, `demo`, or ONNX files.",
        show_default=False,
        autocompletion=complete_models,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="What clients call the model. [default: the name or file name given]",
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", metavar="FILE", help="models.yaml (see `trtgen init`) or the trtgen.json of a built model."),
]
RepositoryOption = Annotated[
    Path, typer.Option("--repository", "-r", metavar="DIR", help="The model repository.", show_default=True)
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME|FILE",
        help="`default`, `random`, a name of torchvision's weights, or a checkpoint file.",
        rich_help_panel=MODEL,
    ),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="Name in torchvision's registry, where the model's own name is another.",
        rich_help_panel=MODEL,
        autocompletion=complete_models,
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option("--classes", metavar="N", help="Classes that a checkpoint was trained on.", rich_help_panel=MODEL),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels", metavar="FILE", help="One class name a line, or `index` to use the numbers.", rich_help_panel=MODEL
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="`imagenet` for an ONNX file trained like torchvision's models.",
        rich_help_panel=MODEL,
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", metavar="PIXELS", help="Another input size in pixels.", rich_help_panel=MODEL),
]
MaxBatchOption = Annotated[
    int | None,
    typer.Option("--max-batch", metavar="N", help="Triton's max_batch_size. [default: 32]", rich_help_panel=TARGET),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="`onnxruntime`, `tensorrt-8.6`, `tensorrt-10` or `tensorrt-11`. [default: what is installed here]",
        rich_help_panel=TARGET,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="`fp32`, `fp16`, `int8`, or `bf16` for a graph that is BF16. [default: fp16 with TensorRT, else fp32]",
        rich_help_panel=TARGET,
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DIR",
        help="Images that int8 scales are taken from; means int8. [default: drawn]",
        rich_help_panel=TARGET,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Images that an export is compared on; kept in reference.npz. [default: drawn]",
        rich_help_panel=PROOF,
    ),
]


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of a text such as `1,8,32`."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers from 1, such as 1,8,32")
    return values


def specs_from(names: list[str] | None, spec_file: Path | None, **options: Any) -> list[ModelSpec]:
    """Return the specs that the command line asks for. `target` goes with a file too, and replaces what that says.

    Raises:
        SpecError: Neither names nor a file, both, or an invalid spec.
    """
    from generator.spec.file import load_spec, make_spec

    given = {key: value for key, value in options.items() if value is not None}
    if "calibration" in given:
        given.setdefault("precision", "int8")
        given["calibration"] = str(given["calibration"])
    if spec_file is not None and (names or given.keys() - {"target"}):
        msg = "--spec states everything but --target: names and options of models do not go with it"
        raise SpecError(msg, hint=f"write them into {spec_file}")
    if spec_file is not None:
        return load_spec(spec_file, target=given.get("target"))
    if not names:
        msg = "no model was named"
        raise SpecError(msg, hint="name one, such as demo or resnet50, or give --spec models.yaml")
    if "name" in given and len(names) > 1:
        msg = f"--name {given['name']} names one model, but {len(names)} are given: {', '.join(names)}"
        raise SpecError(msg, hint="build them one by one, or name them in a spec (--spec; trtgen init writes one)")
    if "max_batch" in given:
        given["batch"] = {"max": given.pop("max_batch")}
    return make_spec(names, **given)
