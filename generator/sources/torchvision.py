"""torchvision's registry of models: pretrained, random, or from the user's checkpoint.

Detectors are built and read in torchvision_detectors.py.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError, near
from generator.sources.network import Network, check_channels, find_last_layer, resolve_recipe, torch_runner
from generator.spec.recipe import Recipe
from generator.task import find_task

if TYPE_CHECKING:
    import torch

    from generator.spec.model import ModelSpec

_LOG = logging.getLogger(__name__)
# Their pretrained networks turn ImageNet's normalisation into that of their first weights (`transform_input`).
_TRANSFORMING = ("googlenet", "inception_v3")
_AUXILIARY = {"AuxLogits", "aux1", "aux2"}


def load(spec: ModelSpec) -> Network:
    """Load `spec.architecture` with the weights the spec asks for, in evaluation mode.

    Raises:
        SourceError: Unknown architecture or weights, no download, a checkpoint that does not fit, or an image size
            that the architecture does not take.
    """
    if spec.task == "detection":
        from generator.sources import torchvision_detectors

        return torchvision_detectors.load(spec)
    _check_architecture(spec.registry_name)
    weights = choose_weights(spec)
    recipe = resolve_recipe(spec, from_transforms(weights.transforms()))
    check_channels(spec, recipe)
    categories = list(weights.meta["categories"])
    classes = spec.classes or len(categories)
    state = None
    if spec.source == "checkpoint":
        state, found = _read_checkpoint(spec, weights, recipe)
        classes = spec.classes or found
    labels = find_task(spec.task).resolve_labels(spec, categories, classes)
    if state is not None:
        module = _load_checkpoint(spec, weights, recipe, classes, state)
        origin = f"checkpoint {Path(spec.weights).name}"
    elif spec.weights == "random":
        from generator.sources.random_weights import calibrate

        module = _build(spec, recipe, classes)
        _check_size(spec, weights, recipe, module)
        calibrate(module, recipe, seed=spec.seed)
        origin = f"random weights, seed {spec.seed}"
    else:
        if classes != len(categories):
            msg = f"{spec.name}: classes is {classes}, but {weights} has {len(categories)}"
            raise SourceError(msg, hint="leave classes out, or give your own checkpoint as weights")
        module = download(spec, weights)
        _check_size(spec, weights, recipe, module)
        origin = str(weights)
    module.eval()
    return Network(
        description=f"torchvision {spec.registry_name}, {origin}",
        recipe=recipe,
        labels=labels,
        run=torch_runner(module, recipe),
        activation=None if spec.source == "checkpoint" else "softmax",
        module=module,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names without building or downloading anything.

    Where nothing else tells the number of classes, a checkpoint's last layer does.

    Raises:
        SourceError: Unknown architecture or weights, or labels that do not fit.
    """
    if spec.task == "detection":
        from generator.sources import torchvision_detectors

        return torchvision_detectors.describe(spec)
    _check_architecture(spec.registry_name)
    weights = choose_weights(spec)
    recipe = resolve_recipe(spec, from_transforms(weights.transforms()))
    categories = list(weights.meta["categories"])
    classes = spec.classes or len(categories)
    if spec.source == "checkpoint" and spec.classes is None and not is_own_file(spec, weights):
        _, classes = _read_checkpoint(spec, weights, recipe)
    return recipe, find_task(spec.task).resolve_labels(spec, categories, classes)


def _read_checkpoint(spec: ModelSpec, weights: Any, recipe: Recipe) -> tuple[dict[str, torch.Tensor], int]:
    """Return the checkpoint's weights under the architecture's names, and how many classes its last layer has."""
    from generator.sources.checkpoint import align_state_dict, read_state_dict

    path = Path(spec.weights)
    outline = _outline(spec, weights, recipe)
    layer = find_last_layer(outline)
    # auxiliary heads are for training only: a checkpoint may have none, or those of another data set
    state = {name: tensor for name, tensor in read_state_dict(path).items() if not _AUXILIARY & {*name.split(".")}}
    state = align_state_dict(state, outline.state_dict(), path, layer=layer)
    weight = f"{layer}.weight"
    return state, len(state.get(weight, outline.state_dict()[weight]))


def _outline(spec: ModelSpec, weights: Any, recipe: Recipe) -> torch.nn.Module:
    """The architecture's names and shapes, without memory for its weights."""
    import torch

    classes = spec.classes or len(weights.meta["categories"])
    try:
        with torch.device("meta"):
            return _build(spec, recipe, classes)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return _build(spec, recipe, classes)


def _load_checkpoint(
    spec: ModelSpec, weights: Any, recipe: Recipe, classes: int, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    from generator.sources.checkpoint import load_state_dict

    path = Path(spec.weights)
    module = _build(spec, recipe, classes)
    if spec.registry_name in _TRANSFORMING and not is_own_file(spec, weights):
        _LOG.warning(
            "%s is taken for one that was fine-tuned from torchvision's weights (transform_input=True); one that was "
            "trained from scratch would answer wrongly: export the module to ONNX",
            path,
        )
    load_state_dict(
        module, state, path, architecture=f"{spec.registry_name} with {classes} classes", layer=find_last_layer(module)
    )
    _check_size(spec, weights, recipe, module)
    return module


def _check_architecture(name: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        similar = near(name, known)
        listed = f"did you mean {', '.join(similar)}?" if similar else f"known are {', '.join(known)}"
        msg = f"torchvision has no classification model {name!r}; {listed}"
        raise SourceError(msg, hint="use a name of that list, a checkpoint with `architecture`, or an ONNX file")


def choose_weights(spec: ModelSpec) -> Any:
    """Return the weights enumeration's member whose recipe and categories hold: the one asked for, else the default.

    Raises:
        SourceError: There are no weights of that name.
    """
    import torchvision

    known = torchvision.models.get_model_weights(spec.registry_name)
    if spec.source == "checkpoint":
        # a file of torchvision's own, copied from elsewhere, keeps its name and with it its recipe
        same = [weights for weights in known if is_own_file(spec, weights)]
        return same[0] if same else known.DEFAULT
    if spec.weights in ("default", "random"):
        return known.DEFAULT
    try:
        return known[spec.weights]
    except KeyError as error:
        names = [weights.name for weights in known]
        msg = f"{spec.registry_name} has no weights {spec.weights!r}; it has {', '.join(names)}, default and random"
        hint = "a checkpoint file must end in .pt, .pth, .pth.tar, .ckpt, .bin or .safetensors"
        raise SourceError(msg, hint=hint) from error


def is_own_file(spec: ModelSpec, weights: Any) -> bool:
    """Say whether the checkpoint is named like the file that torchvision downloads for `weights`."""
    return _file_name(weights) == Path(spec.weights).name


def _file_name(weights: Any) -> str:
    return str(weights.url).rsplit("/", 1)[-1]


def _build(spec: ModelSpec, recipe: Recipe, classes: int) -> torch.nn.Module:
    """An untrained module; the initial weights follow from the seed alone.

    Raises:
        SourceError: The architecture cannot be built for the recipe's image size.
    """
    import torch
    import torchvision

    builder = torchvision.models.get_model_builder(spec.registry_name)
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    signature = inspect.signature(inspect.unwrap(builder))
    if "init_weights" in signature.parameters:  # inception_v3 and googlenet: minutes for the exact truncated normal
        options["init_weights"] = False
    if spec.source == "checkpoint" and spec.registry_name in _TRANSFORMING:
        options |= {"transform_input": True, "aux_logits": False}
    if spec.registry_name.startswith("vit_"):
        options["image_size"] = recipe.crop[0]
    if spec.registry_name.startswith("maxvit_"):
        options["input_size"] = recipe.crop
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(spec.seed)
            module: torch.nn.Module = builder(**options)
    except (AssertionError, ValueError) as error:
        raise _wrong_size(spec, choose_weights(spec), recipe, error) from error
    return module.eval()


def _check_size(spec: ModelSpec, weights: Any, recipe: Recipe, module: torch.nn.Module) -> None:
    """Try one image of another size than the weights' own.

    Raises:
        SourceError: The network does not take it.
    """
    import torch

    if recipe.crop == from_transforms(weights.transforms()).crop:
        return
    try:
        with torch.inference_mode():
            module.eval()(torch.zeros(1, 3, *recipe.crop))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_size(spec, weights, recipe, error) from error


def _wrong_size(spec: ModelSpec, weights: Any, recipe: Recipe, error: Exception) -> SourceError:
    own = from_transforms(weights.transforms()).crop
    reason = " ".join(str(error).split())
    msg = f"{spec.registry_name} does not take images of {recipe.crop[0]} x {recipe.crop[1]} pixels: {reason}"
    least = min(weights.meta["min_size"][0], own[0])
    hint = f"leave image_size and crop out for {own[0]} x {own[1]}, or set at least {least} x {least}"
    return SourceError(msg, hint=hint, fields={"image_size": None})


def download(spec: ModelSpec, weights: Any) -> torch.nn.Module:
    """Return the pretrained module; torch keeps the file in its own cache.

    Raises:
        SourceError: There is no way to it, or the file in the cache is damaged.
    """
    from urllib.error import URLError

    import torchvision

    try:
        module: torch.nn.Module = torchvision.models.get_model(spec.registry_name, weights=weights, progress=False)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        msg = f"the weights {weights} cannot be downloaded: {reason}"
        name = _file_name(weights)
        hint = f"copy {name} here and set weights: {name}, or try weights: random"
        raise SourceError(msg, hint=hint, fields={"weights": name}) from error
    except RuntimeError as error:  # torch.hub: the hash of the cached file is wrong
        msg = f"the weights {weights} are damaged: {error}"
        raise SourceError(msg, hint="delete the file in torch's cache (torch.hub.get_dir()) and run again") from error
    return module


def from_transforms(transforms: Any) -> Recipe:
    """Read the recipe of torchvision's `weights.transforms()` (an `ImageClassification` preset).

    Raises:
        ValueError: The transforms are of another kind.
    """
    needed = ("resize_size", "crop_size", "interpolation", "mean", "std")
    if missing := [name for name in needed if not hasattr(transforms, name)]:
        msg = f"{type(transforms).__name__} has no {', '.join(missing)}: not a classification preset"
        raise ValueError(msg)

    def edges(value: list[int]) -> int | tuple[int, int]:
        return value[0] if len(value) == 1 else (value[0], value[1])

    return Recipe.model_validate(
        {
            "resize": edges(list(transforms.resize_size)),
            "crop": edges(list(transforms.crop_size)),
            "interpolation": transforms.interpolation.value,
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
        }
    )
