"""The user's ONNX file: repaired by `generator.graph.repair`, wrapped by `generator.graph.export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.graph.model import (
    OnnxModel,
    broken_weights,
    describe_graph,
    image_axes,
    load_proto,
    open_onnx,
    stated_license,
)
from generator.graph.repair import input_type, repair_graph
from generator.graph.size_input import make_size, take_size_input
from generator.sources.network import Network, describe_license, resolve_recipe
from generator.spec.recipe import IMAGENET
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.tensor import Tensor

_RAW_HINT = "where it takes uint8 [batch, height, width, 3] pixels as they are, set raw: true"


def load(spec: ModelSpec) -> Network:
    """Repair the file of `spec` as far as it needs it, and return it as a network.

    Raises:
        SourceError: Corrupt, several inputs, no image input, no vector of scores, an operator too old to be converted,
            weights that are no numbers.
    """
    path = spec.onnx
    assert path is not None, "the spec's own rules see to it"
    proto = load_proto(path, weights=False)
    sizes = take_size_input(proto)
    model = describe_graph(proto, path)
    recipe = _recipe(spec, model)
    session = open_onnx(path, more_inputs={sizes.name: make_size(sizes, recipe.crop)} if sizes else {})
    batch, *rest = model.input.shape
    image = (max(batch, 1), *rest) if spec.raw else (max(batch, 1), *_image_shape(model, recipe))
    repaired = repair_graph(spec, model, image, session)
    labels = find_task(spec.task).name_classes(spec, path, repaired.outputs)
    _check_weights(path, repaired.graph)
    return Network(
        description=f"ONNX file {path.name}{describe_license(stated_license(proto))}",
        recipe=recipe,
        labels=labels,
        run=_runner(session, model, recipe, repaired.outputs, raw=spec.raw),
        onnx=path,
        graph=repaired.graph,
        repairs=repaired.repairs,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names; the file is read for it."""
    network = load(spec)
    return network.recipe, network.labels


def _image_shape(model: OnnxModel, recipe: Recipe) -> tuple[int, ...]:
    """Return the shape of one image as the file takes it."""
    height, width, channels = recipe.shape
    return (channels, height, width) if image_axes(model)[0] == "NCHW" else (height, width, channels)


def _check_weights(path: Path, graph: onnx.ModelProto) -> None:
    if broken := broken_weights(graph):
        msg = f"{path} holds NaN or infinity in {', '.join(broken[:3])}"
        raise SourceError(msg, hint="export it again from an earlier checkpoint: the training diverged")


def _recipe(spec: ModelSpec, model: OnnxModel) -> Recipe:
    from generator.graph.names import INPUT_NAME
    from generator.spec.exported import is_export

    layout, size = image_axes(model)
    if spec.raw:
        if layout != "NHWC" or model.input.data_type.numpy != "uint8":
            found = f"{model.input.data_type.numpy} {list(model.input.shape)}"
            msg = f"{model.path}: raw is set, but input {model.input.name} is {found}, not uint8 [batch, H, W, 3]"
            raise SourceError(msg, hint="leave raw out, so that cast and normalisation are put before the graph")
        # mean and std are the graph's own business then; resize and crop still have to be told
        own = find_task(spec.task).guess_recipe(spec, model.path)
        recipe = resolve_recipe(spec, own or (IMAGENET if size == IMAGENET.crop else None))
        if recipe.channels == "BGR":
            msg = f"{spec.name}: channels is BGR, but with raw nothing is put before the graph, and PIXELS are RGB"
            raise SourceError(msg, hint="put the change of order into the graph, or take cast and normalisation out")
    else:
        if model.input.data_type.numpy not in ("float32", "float16", "bfloat16", "float64"):
            found = model.input.data_type.numpy
            if found == "uint8" and model.input.name == INPUT_NAME:
                if is_export(model.path):
                    msg = f"{model.path} is the graph of an export, the spec calls it a user's own"
                    raise SourceError(msg, hint="set source: export")
                msg = f"{model.path} is the graph of an export, but export.json is missing beside it"
                hint = "copy the whole folder; where the graph is your own, set raw: true"
                raise SourceError(msg, hint=hint, fields={"raw": True})
            msg = f"{model.path}: input {model.input.name} is {found}, float32 was expected"
            raise SourceError(msg, hint=_RAW_HINT, fields={"raw": True})
        recipe = resolve_recipe(spec, find_task(spec.task).guess_recipe(spec, model.path))
    if (channels := model.input.shape[1 if layout == "NCHW" else 3]) != recipe.shape[2]:
        fitting = "grey" if channels == 1 else "RGB or BGR"
        msg = (
            f"{model.path}: input {model.input.name} has {channels} channel{'s' if channels > 1 else ''}, but the "
            f"recipe's channels are {recipe.channels}"
        )
        raise SourceError(msg, hint=f"recipe: channels: {fitting}", fields={"recipe": None})
    for axis, fixed, wanted in zip(("height", "width"), size, recipe.crop, strict=True):
        if fixed not in (-1, wanted):
            msg = f"{model.path}: {model.input.name} has {axis} {fixed}, but the recipe crops to {list(recipe.crop)}"
            fields = {"image_size": size[0] if size[0] == size[1] else None}
            raise SourceError(msg, hint=f"set image_size: [{size[0]}, {size[1]}], or another crop", fields=fields)
    return recipe


def _runner(
    session: Callable[[NDArray[Any]], dict[str, NDArray[Any]]],
    model: OnnxModel,
    recipe: Recipe,
    outputs: Sequence[Tensor],
    *,
    raw: bool,
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """Return what asks the untouched file for `outputs`, in the shapes that the task takes them in."""
    layout, _ = image_axes(model)
    dtype = input_type(model)
    # one by one, or as many as the file takes: whether other batches agree is what the export has to prove
    size = max(model.input.shape[0], 1)

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        import numpy as np

        images: NDArray[Any] = pixels if raw else recipe.normalise(pixels).astype(dtype)
        if not raw and layout == "NHWC":
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        answers = [
            session(np.resize(images[i : i + size], (size, *images.shape[1:]))) for i in range(0, len(images), size)
        ]
        return {
            tensor.name: np.concatenate([one[tensor.name] for one in answers])[: len(images)]
            .reshape(len(images), *tensor.shape[1:])
            .astype(np.float32)
            for tensor in outputs
        }

    return run
