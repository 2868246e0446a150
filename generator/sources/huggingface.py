"""Image classifiers that transformers saved: a folder, or a model of the Hugging Face hub. Nothing in it is executed.

What is read is config.json, preprocessor_config.json and safetensors; the network's code is that of the library.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError, SourceError
from generator.sources.module import describe_failure, describe_value, try_module
from generator.sources.network import Network, describe_license, resolve_recipe, torch_runner
from generator.spec.recipe import Recipe
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from generator.spec.model import ModelSpec

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_CARD = "README.md"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TASK = "ForImageClassification"
_EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
# What the library raises over files that it cannot use, besides those of safetensors.
_SLIPS = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_ACTIVATIONS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}
_FACTORY = "write a function that returns the module and its recipe, and give that as factory"


def load(spec: ModelSpec) -> Network:
    """Load the model of `spec` with the library's own class for it.

    Raises:
        MissingDependencyError: transformers is not installed.
        SourceError: Not such a folder, of another task, with code of its own, without safetensors, damaged, or with a
            processor that does something which no recipe says.
    """
    folder, origin = _find_folder(spec)
    stated = describe_license(read_license(folder))
    with _quiet():
        config, processor = _open(folder)
        own = _read_recipe(processor)
        pixels = _make_pixels(processor)
        _check_recipe(processor, own, pixels)
        recipe = resolve_recipe(spec, own)
        module = _load_module(folder)
    module, classes = try_module(module, recipe, origin)
    labels = find_task(spec.task).resolve_labels(spec, _labels(config), classes)
    return Network(
        description=f"{origin}, {config.architectures[0]}{stated}",
        recipe=recipe,
        labels=labels,
        run=torch_runner(module, recipe),
        # the processor is the measure of its own recipe only
        pixels=pixels if recipe.pixel_fields() == own.pixel_fields() else None,
        activation=_ACTIVATIONS.get(config.problem_type),
        module=module,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names; the weights are not read.

    Raises:
        MissingDependencyError: As `load`.
        SourceError: As `load`, as far as it shows without the weights.
    """
    folder, _ = _find_folder(spec)
    with _quiet():
        config, processor = _open(folder)
        recipe = resolve_recipe(spec, _read_recipe(processor))
    labels = _labels(config)
    return recipe, find_task(spec.task).resolve_labels(spec, labels, len(labels))


def read_files(folder: Path) -> list[Path]:
    """Return the files that a model in this folder follows from."""
    return sorted(path for path in folder.glob("*") if path.name in (CONFIG, PROCESSOR) or "safetensors" in path.name)


def read_license(folder: Path) -> str:
    """Return the license that the model card states; empty where there is no card, or none that says it."""
    import yaml

    try:
        card = (folder / _CARD).read_text(encoding="utf-8")
        head = yaml.safe_load(card.split("---", 2)[1]) if card.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return ""
    if not isinstance(head, dict):
        return ""
    # `other` is what the hub calls those that it has no name for
    stated = head.get("license_name") if head.get("license") == "other" else head.get("license")
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")


def _find_folder(spec: ModelSpec) -> tuple[Path, str]:
    """Return the folder of the files, and what the model is called in words."""
    name = spec.huggingface
    assert name is not None, "the spec's own rules see to it"
    _require()
    if spec.is_on_hub:
        return _fetch(name.removeprefix("hf:"))
    folder = Path(name)
    if not folder.is_dir():
        msg = f"the folder {folder} does not exist"
        hint = "give the folder that save_pretrained wrote, or hf:organisation/name for a model of the hub"
        raise SourceError(msg, hint=hint)
    return folder, f"Hugging Face folder {folder.name}"


def _require() -> None:
    if importlib.util.find_spec("transformers") is None:
        why = "it has the networks and the image processors of Hugging Face's folders"
        raise MissingDependencyError("transformers", extra="huggingface", why=why)


def _fetch(asked: str) -> tuple[Path, str]:
    """Return the hub's model in the local cache; what is there already is not downloaded again."""
    from huggingface_hub import errors, snapshot_download

    name, _, revision = asked.partition("@")
    reached = "where the hub can be reached, or copy the model's folder here and give that"
    try:
        path = snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors", _CARD])
    except errors.GatedRepoError as error:
        msg = f"{name} of the hub is gated: its owner lets only those have it who agreed to conditions"
        raise SourceError(msg, hint="agree to them on the model's page, then log in: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        msg = f"the hub has no model {name}, or it is private"
        raise SourceError(msg, hint="check the name; for a private one log in: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        msg = f"{name} of the hub has no revision {revision}"
        raise SourceError(msg, hint="give a branch, a tag or a commit behind the @, or leave it out") from error
    except errors.LocalEntryNotFoundError as error:
        msg = f"{asked} is not, or not whole, in the local cache, and the hub cannot be reached"
        raise SourceError(msg, hint=f"run once {reached}") from error
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        msg = f"{asked} cannot be fetched from the hub: {' '.join(str(error).split())[:200]}"
        raise SourceError(msg, hint=f"give hf:organisation/name, {reached}") from error
    return Path(path), f"{name} of the Hugging Face hub at {Path(path).name}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own words and bars from the user: what matters in them is raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _open(folder: Path) -> tuple[Any, Any]:
    """Return the library's configuration and image processor, after the files have been looked at."""
    from transformers import AutoConfig, AutoImageProcessor

    config = _read_json(folder, CONFIG)
    _refuse_timm(folder, config)
    processor = _read_json(folder, PROCESSOR)
    for name, content in ((CONFIG, config), (PROCESSOR, processor)):
        if content.get("auto_map"):
            msg = f"{folder / name} asks for Python code that came with the model (auto_map); it was not executed"
            raise SourceError(msg, hint=f"where you trust that code: {_FACTORY}", fields={"factory": None})
    _check_task(folder, config)
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        return (
            AutoConfig.from_pretrained(folder, **options),
            AutoImageProcessor.from_pretrained(folder, backend="pil", **options),
        )
    except _SLIPS as error:
        msg = f"{folder} is not a model that this transformers reads: {describe_failure(error)}"
        hint = f"install the transformers that it was saved with ({config.get('transformers_version', 'not said')})"
        raise SourceError(msg, hint=hint) from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    hint = "save the model and its image processor there with save_pretrained"
    if not path.is_file():
        found = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
        shown = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
        msg = f"{folder} has no {name}; it holds {shown or 'nothing'}"
        below = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
        raise SourceError(msg, hint=f"give a folder in it: {', '.join(below)}" if below else hint)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SourceError(msg, hint=hint) from error
    if not isinstance(content, dict):
        msg = f"{path} holds {describe_value(content)}; an object was expected"
        raise SourceError(msg, hint=hint)
    return content


def _refuse_timm(folder: Path, config: dict[str, Any]) -> None:
    """Say how a model is taken that timm's save_for_hf wrote, which has a config.json, too."""
    if not {"architecture", "pretrained_cfg"} <= config.keys():
        return
    own = config["pretrained_cfg"]
    tag = own.get("tag") if isinstance(own, dict) else None
    name = f"timm/{config['architecture']}{f'.{tag}' if tag else ''}"
    files = [folder / _WEIGHTS[0], folder / "pytorch_model.bin"]
    weights = str(next((path for path in files if path.is_file()), files[0]))
    msg = f"the model in {folder} was saved by timm, not by transformers"
    hint = f"take {name} with {weights} as weights, and with labels and recipe where they are not that name's own"
    raise SourceError(msg, hint=hint, command=("build-repo", name), fields={"weights": weights})


def _check_task(folder: Path, config: dict[str, Any]) -> None:
    saved = config.get("architectures") or []
    if not any(_TASK in str(name) for name in saved):
        found = f"a {saved[0]}" if saved else "of no stated architecture"
        msg = f"the model in {folder} is {found}; one of image classification (...{_TASK}) was expected"
        raise SourceError(msg, hint="give the folder of a model that was trained to classify images")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        pickled = [path.name for path in sorted(folder.glob("pytorch_model*.bin"))]
        found = f"pickled weights only ({pickled[0]}), whose loading could run code" if pickled else "no weights"
        msg = f"{folder} holds {found}; {_WEIGHTS[0]} was expected"
        code = f"from transformers import {saved[0]} as M; M.from_pretrained({str(folder)!r}).save_pretrained('new')"
        hint = "save the model there with save_pretrained"
        if pickled:
            hint = f'where you trust the file: python -c "{code}", and copy {PROCESSOR} there'
        raise SourceError(msg, hint=hint)


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def _read_recipe(processor: Any) -> Recipe:
    """Return what the processor's fields say."""
    import PIL.Image

    kind = type(processor).__name__.removesuffix("Pil")

    def field(name: str) -> Any:
        return getattr(processor, name, None)

    def edges(name: str) -> dict[str, int]:
        return {edge: value for edge in _EDGES if (value := getattr(field(name), edge, None))}

    size, crop = edges("size"), edges("crop_size") if field("do_center_crop") else {}
    cropped = (crop["height"], crop["width"]) if {*crop} == {"height", "width"} else None
    fields: dict[str, Any]
    if not field("do_resize"):
        fields = {}
    elif {*size} == {"height", "width"}:
        resized = (size["height"], size["width"])
        fields = {"fit": "stretch", "resize": resized, "crop": cropped or resized}
    elif {*size} == {"shortest_edge"} and field("crop_pct") is not None:  # ConvNeXT's own rule
        edge = size["shortest_edge"]
        small = {"resize": int(edge / processor.crop_pct), "crop": edge}
        fields = small if edge < 384 else {"fit": "stretch", "resize": edge, "crop": edge}
    elif {*size} == {"shortest_edge"} and cropped:
        fields = {"resize": size["shortest_edge"], "crop": cropped}
    else:
        fields = {}
    if not fields:
        stated = {"do_resize": field("do_resize"), "size": size, "do_center_crop": field("do_center_crop")}
        msg = f"its {kind} makes no images of one size: {json.dumps(stated)}"
        raise SourceError(msg, hint=f"give the folder of a model that classifies images, or {_FACTORY}")
    normalises = field("do_normalize")
    try:
        return Recipe.model_validate(
            {
                **fields,
                "rounding": "floor",
                "interpolation": PIL.Image.Resampling(field("resample")).name.lower(),
                "channels": "BGR" if field("do_flip_channel_order") else "RGB",
                "scale": processor.rescale_factor if field("do_rescale") else 1.0,
                "mean": processor.image_mean if normalises else 0.0,
                "std": processor.image_std if normalises else 1.0,
            }
        )
    except (ValueError, TypeError) as error:  # pydantic's ValidationError is one
        reasons = "; ".join(part["msg"].removeprefix("Value error, ") for part in getattr(error, "errors", list)())
        msg = f"the fields of its {kind} make no recipe: {reasons or error}"
        raise SourceError(msg, hint=_FACTORY, fields={"factory": None}) from error


def _make_pixels(processor: Any) -> Callable[[Image], NDArray[np.uint8]]:
    """Return the processor itself up to and without rescaling and normalisation."""
    import numpy as np

    options: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    if hasattr(processor, "do_flip_channel_order"):  # which the graph does
        options["do_flip_channel_order"] = False

    def pixels(image: Image) -> NDArray[np.uint8]:
        (made,) = processor(images=image, **options)["pixel_values"]
        return np.ascontiguousarray(np.moveaxis(made, 0, -1)).astype(np.uint8)

    return pixels


def _check_recipe(processor: Any, recipe: Recipe, pixels: Callable[[Image], NDArray[np.uint8]]) -> None:
    """Refuse a processor that does more with a photograph than the recipe says, in its pixels or behind them.

    The gate compares the served pixels with the processor's; that scale, mean and std are all that comes behind them
    is seen here only.

    Raises:
        SourceError: It does.
    """
    import numpy as np
    import PIL.Image

    from generator.images.training_pixels import make_pixels

    asset = Path(__file__).parents[1] / "assets" / "china.jpg"
    with PIL.Image.open(asset) as photograph:
        image = photograph.convert("RGB").crop((0, 0, 501, 402))
    own = pixels(image)
    (whole,) = processor(images=image, return_tensors="np")["pixel_values"]
    differs = ""
    if own.shape != recipe.shape:
        differs = f"its pixels are {list(own.shape)}, by its fields {list(recipe.shape)}"
    elif (levels := int(np.abs(make_pixels(recipe)(image).astype(int) - own).max())) > 1:
        differs = f"its pixels are up to {levels} levels from what its fields say"
    elif (by := float(np.abs(recipe.normalise(own[None])[0] - whole).max())) > 1e-4 * max(1.0, np.abs(whole).max()):
        differs = f"its values are up to {by:.2g} from what rescale_factor, image_mean and image_std say"
    if differs:
        kind = type(processor).__name__.removesuffix("Pil")
        msg = f"its {kind} does more than resize, crop, rescale and normalise: {differs}"
        raise SourceError(msg, hint=_FACTORY, fields={"factory": None})


def _load_module(folder: Path) -> torch.nn.Module:
    """Return the network with all of its weights, FP32: the library itself fills in random ones for those missing."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    try:
        module, report = AutoModelForImageClassification.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (*_SLIPS, SafetensorError) as error:
        msg = f"the weights in {folder} cannot be loaded: {describe_failure(error)}"
        raise SourceError(msg, hint="copy the folder again, or save it again with save_pretrained") from error
    absent = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        msg = f"the weights in {folder} lack {', '.join(sorted(absent)[:3])}{more}, which would be random"
        raise SourceError(msg, hint="give the folder of a model that was trained to classify images")
    broken = [name for name, tensor in module.state_dict().items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        msg = f"the weights in {folder} hold NaN or infinity in {', '.join(broken[:3])}"
        raise SourceError(msg, hint="take an earlier checkpoint: the training diverged")
    network: torch.nn.Module = module.eval()
    return network
