"""Options that several commands share, declared once; what describes a model becomes its spec here."""

from __future__ import annotations

import functools
import inspect
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generator.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from generator.spec.model import ModelSpec


def complete_models(incomplete: str) -> list[str]:
    """Return the names that begin so, for the shell; where there is none, it completes files.

    torchvision's are read from its text, and timm's from its: their import takes seconds.
    """
    registered = r"^@register_model\(.*\n(?:.*\n)*?def (\w+)"
    detectors = [name for name in _find_in_models("torchvision", registered, "detection") if "rcnn" not in name]
    names = ["demo", "demo-detector", *_find_in_models("torchvision", registered), *detectors]
    if incomplete.startswith("timm/"):
        found = _find_in_models("timm", r"""^\s+['"](\w+(?:\.\w+)?)\*?['"]:\s*_?\w*cfg\(""")
        names = [f"timm/{name}" for name in found]
    return [name for name in names if name.startswith(incomplete)]


def _find_in_models(package: str, pattern: str, kind: str = "") -> list[str]:
    import importlib.util

    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    files = sorted(Path(folders[0], "models", kind).glob("*.py")) if folders else []
    return [name for path in files for name in re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)]


# The panels of --help, where a command has many options.
MODEL, TARGET, PROOF = "Model", "Target", "Proof"

_LONGEST_WAIT_S = 10**6  # poll(2), which waits for what another program says, takes 24 days at most

RepositoryOption = Annotated[
    Path, typer.Option("--repository", "-r", metavar="DIR", help="The model repository.", show_default=True)
]
# What `trtgen serve` tells its command: host:port of each endpoint, and the model repository.
SERVED_VARIABLES = ("TRTGEN_HTTP_URL", "TRTGEN_GRPC_URL", "TRTGEN_METRICS_URL", "TRTGEN_REPOSITORY")
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def make_wait_option(text: str, panel: str | None = None) -> Any:
    """Return the option that says how many seconds another program is waited for."""
    return typer.Option(min=1, max=_LONGEST_WAIT_S, metavar="S", help=text, rich_help_panel=panel)


def _option(kind: Any, metavar: str, text: str, panel: str | None = None, **more: Any) -> Any:
    """Return the annotation of an option without a default, which is named after its parameter."""
    return Annotated[kind | None, typer.Option(metavar=metavar, help=text, rich_help_panel=panel, **more)]


LabelsOption = Annotated[  # which classify-plan and detect-plan take, too
    str | None,
    typer.Option(metavar="FILE", help="One class name a line, or `index` to use the numbers.", rich_help_panel=MODEL),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Images that an export is compared on; kept in reference.npz. [default: drawn]",
        rich_help_panel=PROOF,
    ),
]
# What describes a model: the arguments of `_read_specs`.
MODEL_PARAMETERS: dict[str, Any] = {
    "names": Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|FILE.onnx",
            help="Names of torchvision's classification models and detectors, `timm/` and a name of timm's, `demo`, "
            "`demo-detector`, ONNX or .pt2 files, folders of transformers, or hf:organisation/name.",
            show_default=False,
            autocompletion=complete_models,
        ),
    ],
    "name": _option(str, "NAME", "What clients call the model. [default: the name or file name given]", MODEL),
    "spec": _option(Path, "FILE", "models.yaml (see `trtgen init`) or the trtgen.json of a built model."),
    "onnx": _option(list[Path], "FILE", "An ONNX file, or a graph that `trtgen export` wrote; repeatable."),
    "factory": _option(
        str,
        "MODULE:FUNCTION",
        "Your function that returns a torch module; also FILE.py:FUNCTION. It runs your code.",
        MODEL,
    ),
    "task": _option(str, "NAME", "`classification` or `detection`. [default: what torchvision calls it]", MODEL),
    "weights": _option(
        str, "NAME|FILE", "`default`, `random`, a name of torchvision's weights, or a checkpoint file.", MODEL
    ),
    "architecture": _option(
        str,
        "NAME",
        "Name in torchvision's registry, or `timm/` and timm's, where the model's own name is another.",
        MODEL,
        autocompletion=complete_models,
    ),
    "output_tensor": _option(str, "NAME", "An ONNX file's output with the scores, where several look like it.", MODEL),
    "classes": _option(int, "N", "Classes that a checkpoint was trained on.", MODEL),
    "labels": LabelsOption,
    "recipe": _option(
        list[str],
        "NAME|FIELD=VALUE",
        "Preprocessing: a name, such as `imagenet`, and what differs from it, such as `channels=BGR`; repeatable.",
        MODEL,
    ),
    "detection": _option(
        list[str],
        "FIELD=VALUE",
        "What a detector's outputs mean and which boxes it answers, such as `layout=raw` or `score=0.4`; repeatable.",
        MODEL,
    ),
    "image_size": _option(int, "PIXELS", "Another input size in pixels.", MODEL),
    "max_batch": _option(int, "N", "Triton's max_batch_size. [default: 32]", TARGET),
    "target": _option(
        str,
        "NAME",
        "`onnxruntime`, `tensorrt-8.6`, `tensorrt-10` or `tensorrt-11`. [default: what is installed here]",
        TARGET,
    ),
    "precision": _option(
        str,
        "NAME",
        "`fp32`, `fp16`, `int8`, or `as-is` for an ONNX file that is quantised, FP16, BF16 or FP8 already. [default: "
        "as-is for such a file, else fp16 with TensorRT, fp32 without]",
        TARGET,
    ),
    "decode": _option(
        str,
        "NAME",
        "Where images are decoded: `cpu` or `gpu`. [default: gpu beside a plan where it makes the same pixels]",
        TARGET,
    ),
    "layout": _option(
        str,
        "NAME",
        "`ensemble`, or `fused`: one model decodes and runs the network. [default: ensemble; fused for a "
        "new model with decode gpu]",
        TARGET,
    ),
    "calibration": _option(Path, "DIR", "Images that int8 scales are taken from; means int8. [default: drawn]", TARGET),
}


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of a text such as `1,8,32`."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers from 1, such as 1,8,32")
    return values


def parse_rates(text: str) -> list[float]:
    """Return the numbers of a text such as `50,100,0.5`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0, such as 50,100")
    return values


def _parse_recipe(words: list[str]) -> dict[str, object]:
    """Return what `--recipe NAME --recipe FIELD=VALUE` states, as models.yaml would; several numbers have commas."""
    recipe: dict[str, object] = {}
    for word in words:
        field, equals, text = word.partition("=")
        values = [_number_or_text(part) for part in text.split(",")]
        recipe |= {field: values if len(values) > 1 else values[0]} if equals else {"base": word}
    return recipe


def _parse_detection(words: list[str]) -> dict[str, object]:
    """Return what `--detection FIELD=VALUE` states; `class_scores` take LABEL:SCORE, one option each.

    Raises:
        SpecError: No field, or no score.
    """
    options: dict[str, Any] = {}
    for word in words:
        field, equals, text = word.partition("=")
        label, colon, score = text.rpartition(":")
        if not equals or (field == "class_scores" and not colon):
            msg = f"--detection takes FIELD=VALUE, and it is {word!r}"
            raise SpecError(msg, hint="such as --detection score=0.4, or --detection class_scores=person:0.6")
        if field == "class_scores":
            options.setdefault(field, {})[label] = _number_or_text(score)
        else:
            options[field] = _number_or_text(text)
    return options


def _number_or_text(text: str) -> float | str:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def takes_models(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with what describes a model as its parameters; its first argument is the list of specs."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        specs = _read_specs(**{name: given.pop(name) for name in MODEL_PARAMETERS})
        command(specs, **given)

    unknown = {"ModelSpec": Any}  # not imported, since --help is to be fast
    _, *own = inspect.signature(command, locals=unknown, eval_str=True).parameters.values()
    parameters = [
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in MODEL_PARAMETERS.items()
        ),
        *own,
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _read_specs(
    *, names: list[str] | None, spec: Path | None, onnx: list[Path] | None, **options: Any
) -> list[ModelSpec]:
    """Return the specs that the command line asks for. `target` goes with a file too, and replaces what that says.

    Raises:
        SpecError: Neither names nor a file, both, or an invalid spec.
    """
    from generator.spec.file import load_spec, make_spec

    if wrong := [path for path in onnx or () if path.suffix != ".onnx"]:
        what = "is a folder" if wrong[0].is_dir() else "does not end in .onnx"
        msg = f"--onnx takes the path of an ONNX file, and {wrong[0]} {what}"
        raise SpecError(msg, hint="give it as --onnx exported/NAME/model.onnx")
    models = [*(names or ()), *map(str, onnx or ())]
    given = {key: value for key, value in options.items() if value not in (None, [])}
    if given.get("recipe"):
        given["recipe"] = _parse_recipe(given["recipe"])
    if given.get("detection"):
        given["detection"] = _parse_detection(given["detection"])
    if "calibration" in given:
        given.setdefault("precision", "int8")
        given["calibration"] = str(given["calibration"])
    if spec is not None and (models or given.keys() - {"target"}):
        msg = "--spec states everything but --target: names and options of models do not go with it"
        raise SpecError(msg, hint=f"write them into {spec}")
    if spec is not None:
        return load_spec(spec, target=given.get("target"))
    if not models:
        msg = "no model was named"
        hint = "name one, such as demo or resnet50 (with --factory any name), or give --spec models.yaml"
        raise SpecError(msg, hint=hint)
    if "name" in given and len(models) > 1:
        msg = f"--name {given['name']} names one model, but {len(models)} are given: {', '.join(models)}"
        raise SpecError(msg, hint="build them one by one, or name them in a spec (--spec; trtgen init writes one)")
    if "max_batch" in given:
        given["batch"] = {"max": given.pop("max_batch")}
    return make_spec(models, **given)
