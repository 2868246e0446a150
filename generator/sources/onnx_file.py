"""The user's ONNX file: checked here, wrapped by `generator.graph.export`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.graph.model import OnnxModel, broken_weights, default_opset, image_axes, load_proto, open_onnx, read_onnx
from generator.sources.network import Network, resolve_recipe
from generator.spec.recipe import IMAGENET
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.task import Task

# Softmax over one axis only, and what onnxruntime and every TensorRT since 8.6 read.
_OLDEST_OPSET = 13
# What every target reads.
_NEW_OPSET = 17
_RAW_HINT = "where it takes uint8 [batch, height, width, 3] pixels as they are, set raw: true"


def load(spec: ModelSpec) -> Network:
    """Check the file of `spec` and return it as a network.

    Raises:
        SourceError: Corrupt, several inputs, a fixed batch, no image input, no vector of scores, an opset too old,
            weights that are no numbers.
    """
    path = spec.onnx
    assert path is not None, "the spec's own rules see to it"
    model = read_onnx(path)
    task = find_task(spec.task)
    check_file(model, task)
    recipe = _recipe(spec, model)
    labels = task.resolve_labels(spec, None, model.outputs[0].shape[-1])
    run = _runner(path, model, recipe, raw=spec.raw)
    _check_weights(path)
    return Network(
        description=f"ONNX file {path.name}",
        recipe=recipe,
        labels=labels,
        run=run,
        onnx=path,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names; the file is read for it."""
    network = load(spec)
    return network.recipe, network.labels


def check_file(model: OnnxModel, task: Task) -> None:
    """Refuse a graph that cannot be served: its opset, its batch or its outputs are not right.

    Raises:
        SourceError: The opset is too old, the batch is fixed, or the outputs are not those of the task.
    """
    _check_opset(model)
    _check_batch(model)
    task.check_outputs(model.path, model.outputs)


def _check_opset(model: OnnxModel) -> None:
    opset = default_opset(load_proto(model.path, weights=False))
    if opset < _OLDEST_OPSET:
        msg = f"{model.path} has opset {opset}, at least {_OLDEST_OPSET} was expected"
        convert = f"onnx.version_converter.convert_version(onnx.load({str(model.path)!r}), {_NEW_OPSET})"
        code = f"import onnx, onnx.version_converter; onnx.save({convert}, 'converted.onnx')"
        raise SourceError(msg, hint=f"{shlex.join(['python', '-c', code])}, or export it again")


def _check_batch(model: OnnxModel) -> None:
    if model.input.shape and model.input.shape[0] != -1:
        msg = (
            f"{model.path}: the batch is baked in: input {model.input.name} has shape {list(model.input.shape)}, "
            "a free first axis was expected"
        )
        raise SourceError(msg, hint="export it again with a dynamic batch axis (dynamic_shapes or dynamic_axes)")


def _check_weights(path: Path) -> None:
    if broken := broken_weights(load_proto(path)):
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
        recipe = resolve_recipe(spec, IMAGENET if size == IMAGENET.crop else None)
        if recipe.channels == "BGR":
            msg = f"{spec.name}: channels is BGR, but with raw nothing is put before the graph, and PIXELS are RGB"
            raise SourceError(msg, hint="put the change of order into the graph, or take cast and normalisation out")
    else:
        if model.input.data_type.numpy not in ("float32", "float16"):
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
        recipe = resolve_recipe(spec, None)
    for axis, fixed, wanted in zip(("height", "width"), size, recipe.crop, strict=True):
        if fixed not in (-1, wanted):
            msg = f"{model.path}: {model.input.name} has {axis} {fixed}, but the recipe crops to {list(recipe.crop)}"
            fields = {"image_size": size[0] if size[0] == size[1] else None}
            raise SourceError(msg, hint=f"set image_size: [{size[0]}, {size[1]}], or another crop", fields=fields)
    return recipe


def _runner(
    path: Path, model: OnnxModel, recipe: Recipe, *, raw: bool
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    session = open_onnx(path)
    layout, _ = image_axes(model)
    dtype = model.input.data_type.numpy

    def run(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        import numpy as np

        batch: NDArray[Any] = pixels if raw else recipe.normalise(pixels).astype(dtype)
        if not raw and layout == "NHWC":
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        # one by one: whether larger batches agree with this is what the export has to prove
        answers = [session(batch[i : i + 1]) for i in range(len(batch))]
        return {name: np.concatenate([one[name] for one in answers]).astype(np.float32) for name in answers[0]}

    return run
