"""The likely cause of a failed stage, found by trying the usual mistakes on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from generator.spec.recipe import Interpolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference
    from generator.spec.recipe import Recipe

NAN = "an overflow, a division by zero, or broken weights"


def of_pixels(candidate: Candidate, reference: Reference, pixels: NDArray[np.uint8]) -> str:
    """Say why pixels differ: channel order, place, padding, interpolation, EXIF rotation, fit."""
    recipe = candidate.artifact.recipe
    if moved := _find_shift(reference.pixels, pixels):
        return moved
    if recipe.fit.startswith("letterbox") and (fill := _other_fill(recipe, reference, pixels)):
        return f"the padding is {fill}, the recipe says {recipe.fill}"
    for mistake, made in _make_mistakes(recipe, reference):
        if _levels(made, pixels) <= 1:
            return mistake
    return "resize, crop, antialiasing or the decoder differ from the source's transforms"


def _levels(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    import numpy as np

    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def _make_mistakes(recipe: Recipe, reference: Reference) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield what the usual mistakes are, each with the pixels that it makes."""
    from generator.images.served_pixels import prepare_without_torch

    def with_recipe(**changes: Any) -> NDArray[np.uint8]:
        return prepare_without_torch(recipe.model_copy(update=changes), reference.files)

    yield "the channels are in BGR order, the source takes RGB", reference.pixels[..., ::-1]
    for other in get_args(Interpolation):
        if other != recipe.interpolation:
            mistake = f"interpolation is {other}, the source was trained with {recipe.interpolation}"
            yield mistake, with_recipe(interpolation=other)
    exif = "apply" if recipe.exif == "ignore" else "ignore"
    yield f"EXIF orientation is handled as {exif!r}, the recipe says {recipe.exif!r}", with_recipe(exif=exif)
    for fit in ("stretch", "letterbox", "letterbox-corner"):
        if fit != recipe.fit and not isinstance(recipe.resize, int):
            yield f"the image is fitted as by fit: {fit}, the recipe says {recipe.fit}", with_recipe(fit=fit)


def _find_shift(own: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> str:
    """Say where the image is placed if that is one pixel off; empty where something else differs."""
    import numpy as np

    inner = slice(2, -2)
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1)):
        moved = np.roll(own, (down, right), (1, 2))
        if _levels(moved[:, inner, inner], pixels[:, inner, inner]) <= 1:
            return f"the image is placed off by one pixel ({right:+d} to the right, {down:+d} down)"
    return ""


def _other_fill(recipe: Recipe, reference: Reference, pixels: NDArray[np.uint8]) -> tuple[int, ...] | None:
    """Return the colour of the padding if nothing else differs, and there is one."""
    import numpy as np

    from generator.images.geometry import measure_geometry

    colours: set[tuple[int, ...]] = set()
    for (scale_x, scale_y, left, top, width, height), own, served in zip(
        measure_geometry(recipe, reference.files), reference.pixels, pixels, strict=True
    ):
        outside = np.ones(own.shape[:2], np.bool_)
        bottom, right = round(top + scale_y * height), round(left + scale_x * width)
        outside[int(top) : bottom, int(left) : right] = False
        if np.abs(own.astype(np.int16) - served)[~outside].max(initial=0) > 1:
            return None
        colours.update(map(tuple, served[outside].tolist()))
    return colours.pop() if len(colours) == 1 else None


def of_geometry(geometry: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    """Say which part of GEOMETRY differs from what it should be: the original's size, the scale, or the offset."""
    import numpy as np

    def alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
        return bool(np.allclose(one, other, rtol=1e-6, atol=1e-6))

    (scale, offset, size), (own_scale, own_offset, own_size) = (
        np.split(one, 3, axis=1) for one in (geometry, expected)
    )
    if not alike(size, own_size):
        turned = alike(size, own_size[:, ::-1])
        return "width and height are swapped" if turned else "the size is not that of the upright image"
    if not alike(scale, own_scale):
        mistakes = {
            "the scale of x and that of y are swapped": own_scale[:, ::-1],
            "the scale is from the network's pixels to the original's, the other way round was expected": 1 / own_scale,
        }
        other = "the scale is not that of the resized image: each axis is rounded for itself"
        return next((mistake for mistake, made in mistakes.items() if alike(scale, made)), other)
    mistakes = {
        "the offset of the image in its padding is missing": np.zeros_like(own_offset),
        "the offsets left and top are swapped": own_offset[:, ::-1],
    }
    other = f"the offset of the image is off by up to {np.abs(offset - own_offset).max():g} pixels"
    return next((mistake for mistake, made in mistakes.items() if alike(offset, made)), other)


def of_normalisation(candidate: Candidate, proto: object) -> str:
    """Compare the constants of the graph's first multiplication and addition with the recipe; empty if they fit."""
    import numpy as np
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in proto.graph.initializer}  # type: ignore[attr-defined]
    found: dict[str, NDArray[np.float32]] = {}
    for node in proto.graph.node[:8]:  # type: ignore[attr-defined]
        constants = [numpy_helper.to_array(weights[name]) for name in node.input if name in weights]
        if node.op_type in ("Mul", "Add") and constants and constants[0].size == 3:
            found.setdefault(node.op_type, constants[0].reshape(3))
    if set(found) != {"Mul", "Add"}:
        return ""
    recipe = candidate.artifact.recipe
    scale, shift = recipe.as_scale_and_shift()
    std, mean = recipe.scale / found["Mul"], -found["Add"] * recipe.scale / found["Mul"]
    times = found["Mul"] / scale
    if not np.allclose(times, 1, rtol=1e-3) and np.ptp(times) < 1e-3:
        return f"wrong scale: the graph multiplies pixels by {times[0]:.3g} times what scale and std of the recipe say"
    for name, inside, wanted, given in (("std", found["Mul"], scale, std), ("mean", found["Add"], shift, mean)):
        if not np.allclose(inside, wanted, rtol=1e-3, atol=1e-3):
            numbers = ", ".join(f"{value:.3f}" for value in given)
            return f"wrong {name}: the graph normalises with [{numbers}], the recipe says {list(getattr(recipe, name))}"
    return ""


def of_precision(candidate: Candidate) -> str:
    """Say why a plan answers otherwise than its graph, which passed: only TensorRT's arithmetic is left."""
    precision = candidate.precision
    if candidate.spec.is_as_is and precision != "fp32":
        return f"TensorRT rounds this {precision.upper()} graph otherwise than onnxruntime: give the FP32 graph instead"
    if precision == "fp32":
        return "TF32 rounds to 10 bits: try plan.tf32: false"
    if precision == "int8":
        return (
            "scales that do not fit these images: give calibration images of your own, or keep the first layers or the "
            "heads in FP32 (keep)"
        )
    return f"{precision} overflows or rounds too much: name the nodes to keep in FP32 (keep), or take fp32"
