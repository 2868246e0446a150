"""timm's models: pretrained from the hub at a revision that is recorded, random, or the user's checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError, SourceError, near
from generator.sources.network import Network, find_last_layer, resolve_recipe, torch_runner
from generator.sources.timm_images import own_transform, resolve_own
from generator.task import find_task

if TYPE_CHECKING:
    import torch

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

PREFIX = "timm/"


def load(spec: ModelSpec) -> Network:
    """Load the model with the weights the spec asks for, in evaluation mode.

    Raises:
        SourceError: Unknown name or tag, no download, no classifier, a checkpoint that does not fit, or an image size
            that the model does not take.
        MissingDependencyError: timm is not installed.
    """
    config = _find_config(spec)
    state, arguments = _read_checkpoint(spec)
    data, own = resolve_own(spec, config, arguments)
    recipe = resolve_recipe(spec, own)
    if state is not None:
        module, classes = _load_checkpoint(spec, config, recipe, state)
        origin = f"checkpoint {Path(spec.weights).name}"
        labels = _resolve_labels(spec, config, classes)
    else:
        classes = _count_classes(spec, config)
        labels = _resolve_labels(spec, config, classes)
        if spec.weights == "random":
            module, origin = _build(spec, config, recipe, classes), f"random weights, seed {spec.seed}"
        else:
            module, origin = _download(spec, config, recipe)
    _check_answer(spec, config, recipe, module, classes)
    if spec.weights == "random":
        from generator.sources.random_weights import calibrate

        calibrate(module, recipe, seed=spec.seed, head=_find_head(module))
    # where the spec changes what timm's transform does, the recipe is the measure
    neutral = {name: getattr(own, name) for name in ("exif", "max_pixels", "max_bytes")}
    unchanged = recipe.model_copy(update=neutral) == own
    pixels, normalise = own_transform(data) if unchanged else (None, None)
    return Network(
        description=f"timm {_registry_name(spec)}, {origin}",
        recipe=recipe,
        labels=labels,
        run=torch_runner(module, recipe, normalise=normalise),
        pixels=pixels,
        activation=None if state is not None else "softmax",
        module=module,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names; nothing is downloaded, and only for a checkpoint a model is built.

    Raises:
        SourceError: Unknown name, tag or weights, or labels that do not fit.
        MissingDependencyError: timm is not installed.
    """
    config = _find_config(spec)
    state, arguments = _read_checkpoint(spec)
    recipe = resolve_recipe(spec, resolve_own(spec, config, arguments)[1])
    if state is None or spec.classes is not None:
        return recipe, _resolve_labels(spec, config, _count_classes(spec, config))
    module, _ = _align(spec, config, recipe, state)
    return recipe, _resolve_labels(spec, config, _width(module))


def _registry_name(spec: ModelSpec) -> str:
    """Return timm's own name, with the tag of the weights and without the revision."""
    return spec.registry_name.removeprefix(PREFIX).partition("@")[0]


def _find_config(spec: ModelSpec) -> Any:
    """Return timm's `PretrainedCfg` of the name."""
    try:
        import timm.models
    except ImportError as error:
        raise MissingDependencyError("timm", extra="timm", why="it makes the models timm/NAME") from error
    name = _registry_name(spec)
    architecture, _, tag = name.partition(".")
    if current := timm.models.get_deprecated_models().get(name):
        msg = f"timm calls {name} {current} now"
        raise SourceError(msg, hint=f"use {PREFIX}{current}")
    known = timm.models.list_models()
    if architecture not in known:
        similar = near(architecture, known)
        listed = f"; did you mean {', '.join(PREFIX + one for one in similar)}?" if similar else ""
        msg = f"timm has no model {architecture!r}{listed}"
        raise SourceError(msg, hint="use a name of timm.list_models(), or an ONNX file")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        msg = f"timm's {architecture} has no weights {tag!r}{_list_tags(architecture)}"
        raise SourceError(msg, hint="use a name with one of these tags") from error
    if spec.weights not in ("default", "random") and spec.weights_file is None:
        msg = f"{spec.name}: weights is {spec.weights!r}; those of timm are part of the name{_list_tags(architecture)}"
        hint = "set weights to default, random or a checkpoint file (.pth.tar, .pt, .pth, .ckpt, .bin, .safetensors)"
        raise SourceError(msg, hint=hint, fields={"weights": None})
    return config or timm.models.PretrainedCfg(architecture=architecture)


def _list_tags(architecture: str) -> str:
    import timm.models

    names = timm.models.list_pretrained(f"{architecture}.*")
    return f"; there are {', '.join(PREFIX + name for name in names)}" if names else "; it has none"


def _count_classes(spec: ModelSpec, config: Any) -> int:
    """Return how many classes a model with pretrained or random weights has.

    Raises:
        SourceError: It has none, or pretrained weights have another number than the spec.
    """
    if not config.num_classes and (spec.weights == "default" or spec.classes is None):
        msg = f"timm's {_registry_name(spec)} has no classifier: it answers features, and classes were expected"
        hint = "take a model that was trained to classify, or your own checkpoint of this one as weights"
        raise SourceError(msg, hint=hint, fields={"weights": None})
    if spec.weights == "default" and not config.has_weights:
        architecture = _registry_name(spec).partition(".")[0]
        msg = f"timm has no weights for {_registry_name(spec)}{_list_tags(architecture)}"
        raise SourceError(msg, hint="set weights to random or a checkpoint file", fields={"weights": "random"})
    if spec.weights == "default" and spec.classes not in (None, config.num_classes):
        msg = f"{spec.name}: classes is {spec.classes}, but {_registry_name(spec)} has {config.num_classes}"
        raise SourceError(msg, hint="leave classes out, or give your own checkpoint as weights")
    return spec.classes or int(config.num_classes)


def _resolve_labels(spec: ModelSpec, config: Any, classes: int) -> tuple[str, ...]:
    """Return the class names; timm knows those of ImageNet in its sizes, and what lies in a configuration.

    Raises:
        SourceError: Nobody knows them, as of the towers of CLIP, whose outputs are no classes.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    own = None
    if config.label_names:
        descriptions = config.label_descriptions or {}
        own = [descriptions.get(name, name) for name in config.label_names]
    elif subset := infer_imagenet_subset({"num_classes": classes}):
        own = ImageNetInfo(subset).label_descriptions()
    if own is None and spec.labels is None and spec.weights in ("default", "random") and spec.classes is None:
        msg = f"timm has no names for the {classes} outputs of {_registry_name(spec)}; those of CLIP are no classes"
        hint = "take a model that was trained to classify; if this one was, set labels to a file with names, or index"
        raise SourceError(msg, hint=hint, fields={"labels": None})
    return find_task(spec.task).resolve_labels(spec, own, classes)


def _read_checkpoint(spec: ModelSpec) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any]]:
    """Return the weights in the user's file, None where there is none, and the arguments of train.py that lie in it.

    Raises:
        SourceError: It cannot be read, or was trained as another architecture.
    """
    from generator.sources.checkpoint import read_arguments, read_state_dict

    path = spec.weights_file
    if path is None:
        return None, {}
    state, arguments = read_state_dict(path), read_arguments(path)
    trained = str(arguments.get("model") or "").removeprefix(PREFIX)
    if trained and trained.partition(".")[0] != _registry_name(spec).partition(".")[0]:
        msg = f"{path} was trained as {trained}, but {PREFIX}{_registry_name(spec)} is asked for"
        raise SourceError(msg, hint=f"use {PREFIX}{trained}")
    return state, arguments


def _align(
    spec: ModelSpec, config: Any, recipe: Recipe, state: dict[str, torch.Tensor]
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return the module with as many classes as the checkpoint's classifier, and the weights under timm's names."""
    from generator.sources.checkpoint import align_state_dict

    classes = spec.classes or config.num_classes or 2
    module = _build(spec, config, recipe, classes)
    layer = _find_head(module)
    state = align_state_dict(state, module.state_dict(), Path(spec.weights), layer=layer)
    found = len(state.get(f"{layer}.weight", range(classes)))
    return (module if spec.classes or found == classes else _build(spec, config, recipe, found)), state


def _load_checkpoint(
    spec: ModelSpec, config: Any, recipe: Recipe, state: dict[str, torch.Tensor]
) -> tuple[torch.nn.Module, int]:
    from generator.sources.checkpoint import load_state_dict

    module, state = _align(spec, config, recipe, state)
    name = f"{PREFIX}{_registry_name(spec)} with {_width(module)} classes"
    load_state_dict(module, state, Path(spec.weights), architecture=name, layer=_find_head(module))
    return module, _width(module)


def _width(module: torch.nn.Module) -> int:
    """Return how many classes the module's classifier has."""
    return len(module.state_dict()[f"{_find_head(module)}.weight"])


def _build(
    spec: ModelSpec, config: Any, recipe: Recipe, classes: int, overlay: dict[str, Any] | None = None
) -> torch.nn.Module:
    """Return the module: with pretrained weights from where `overlay` says, without one seeded random weights.

    Raises:
        SourceError: The architecture cannot be built for the recipe's image size.
    """
    import timm
    import torch

    *size, channels = recipe.shape
    # exportable: attention as plain products, since torch's exporter stops at the fused one of MaxViT
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "exportable": True}
    options |= {"pretrained": overlay is not None, "pretrained_cfg_overlay": overlay}
    if tuple(size) != tuple(config.input_size[1:]) and config.fixed_input_size:
        options["img_size"] = tuple(size)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(spec.seed)
            module: torch.nn.Module = timm.create_model(_registry_name(spec), **options)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        if tuple(size) == tuple(config.input_size[1:]):
            raise
        raise _wrong_size(spec, config, recipe, error) from error
    return module.eval()


def _check_answer(spec: ModelSpec, config: Any, recipe: Recipe, module: torch.nn.Module, classes: int) -> None:
    """Try one image.

    Raises:
        SourceError: The network does not take it, or answers something else than one row of scores.
    """
    import torch

    *size, channels = recipe.shape
    try:
        with torch.inference_mode():
            answer = module(torch.zeros(1, channels, *size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_size(spec, config, recipe, error) from error
    shape = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    if shape != [1, classes]:
        msg = f"timm's {_registry_name(spec)} answers {shape} for one image, and [1, {classes}] was expected"
        raise SourceError(msg, hint="export the output that you need to ONNX and give that file", fields={"onnx": None})


def _wrong_size(spec: ModelSpec, config: Any, recipe: Recipe, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())
    height, width = recipe.crop
    msg = f"timm's {_registry_name(spec)} does not take images of {height} x {width} pixels: {reason}"
    own = " x ".join(map(str, config.input_size[1:]))
    return SourceError(msg, hint=f"leave image_size and crop out, or set {own}", fields={"image_size": None})


def _find_head(module: Any) -> str:
    """Return the name of the layer that answers the classes; of several, whose answers are averaged, the first."""
    found = module.get_classifier()
    head = found[0] if isinstance(found, tuple) else found
    outer = next(name for name, layer in module.named_modules() if layer is head)
    inner = find_last_layer(head)
    return ".".join(part for part in (outer, inner) if part)


def _download(spec: ModelSpec, config: Any, recipe: Recipe) -> tuple[torch.nn.Module, str]:
    """Return the pretrained module and where its weights are from, with the commit; the hub's client keeps the files.

    Raises:
        SourceError: They cannot be downloaded, are gated, or are damaged.
    """
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
    from safetensors import SafetensorError

    revision = spec.registry_name.partition("@")[2] or None
    where, file = config.hf_hub_id, "model.safetensors"
    if not where:
        url = config.url if isinstance(config.url, str) else config.url[0]
        where, file = url, url.rpartition("/")[2]
    hint = f"copy {file} of {where} here and set weights: {file}, or try weights: random"
    advice: dict[str, Any] = {"hint": hint, "fields": {"weights": file}}
    try:
        if not config.hf_hub_id:
            return _build(spec, config, recipe, config.num_classes, {}), file
        commit = _find_commit(config.hf_hub_id, revision)
        pinned = f"{config.hf_hub_id}@{commit}"
        return _build(spec, config, recipe, config.num_classes, {"hf_hub_id": pinned}), pinned
    except GatedRepoError as error:
        msg = f"the weights {where} are gated: the hub gives them to those who accepted their terms"
        hint = f"accept them on the model's page and run hf auth login, or copy {file} here and set weights: {file}"
        raise SourceError(msg, hint=hint, fields={"weights": file}) from error
    except RevisionNotFoundError as error:
        msg = f"{where} has no revision {revision!r}"
        raise SourceError(msg, hint="use a commit of it after the @, or leave it out") from error
    except SafetensorError as error:
        msg = f"the weights {where} are damaged: {error}"
        raise SourceError(msg, hint="delete them in the hub's cache (hf cache) and run again") from error
    except OSError as error:  # of the hub's client, and of urllib
        reason = str(getattr(error, "reason", error)).strip().partition("\n")[0].partition(". ")[0]
        msg = f"the weights {where} cannot be downloaded: {reason}"
        raise SourceError(msg, **advice) from error


def _find_commit(repository: str, revision: str | None) -> str:
    """Return the commit that `revision` of the hub's repository is now, or was when the cache was filled."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=["config.json"])).name
