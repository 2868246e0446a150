"""The likely cause of a failed stage, found by trying the usual mistakes on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from generator.spec.recipe import Interpolation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference
    from generator.spec.recipe import Recipe

NAN = "an overflow, a division by zero, or broken weights"


def of_pixels(candidate: Candidate, reference: Reference, pixels: NDArray[np.uint8]) -> str:
    """Say why pixels differ: channel order, place, padding, interpolation, EXIF rotation."""
    import numpy as np

    from generator.images.training_pixels import prepare

    recipe = candidate.artifact.recipe

    def levels(one: NDArray[np.uint8], other: NDArray[np.uint8] = pixels) -> int:
        return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())

    if levels(reference.pixels[..., ::-1]) <= 1:
        return "the channels are in BGR order, the source takes RGB"
    inner = slice(2, -2)
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1)):
        moved = np.roll(reference.pixels, (down, right), (1, 2))
        if levels(moved[:, inner, inner], pixels[:, inner, inner]) <= 1:
            return f"the image is placed off by one pixel ({right:+d} to the right, {down:+d} down)"
    if recipe.fit.startswith("letterbox") and (fill := _other_fill(recipe, reference, pixels)):
        return f"the padding is {fill}, the recipe says {recipe.fill}"
    for other in get_args(Interpolation):
        if other != recipe.interpolation:
            changed = recipe.model_copy(update={"interpolation": other})
            if levels(prepare(changed, reference.files)) <= 1:
                return f"interpolation is {other}, the source was trained with {recipe.interpolation}"
    exif = "apply" if recipe.exif == "ignore" else "ignore"
    if levels(prepare(recipe.model_copy(update={"exif": exif}), reference.files)) <= 1:
        return f"EXIF orientation is handled as {exif!r}, the recipe says {recipe.exif!r}"
    for fit in ("stretch", "letterbox", "letterbox-corner"):
        if fit != recipe.fit and not isinstance(recipe.resize, int):
            changed = recipe.model_copy(update={"fit": fit})
            if levels(prepare(changed, reference.files)) <= 1:
                return f"the image is fitted as by fit: {fit}, the recipe says {recipe.fit}"
    return "resize, crop, antialiasing or the decoder differ from the source's transforms"


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

    if not alike(geometry[:, 4:], expected[:, 4:]):
        turned = alike(geometry[:, 4:], expected[:, [5, 4]])
        return "width and height are swapped" if turned else "the size is not that of the upright image"
    if not alike(geometry[:, :2], expected[:, :2]):
        if alike(geometry[:, :2], expected[:, [1, 0]]):
            return "the scale of x and that of y are swapped"
        if alike(geometry[:, :2], 1 / expected[:, :2]):
            return "the scale is from the network's pixels to the original's, it must be the other way round"
        return "the scale is not that of the resized image: each axis is rounded for itself"
    off = geometry[:, 2:4] - expected[:, 2:4]
    if alike(geometry[:, 2:4], expected[:, [3, 2]]):
        return "the offsets left and top are swapped"
    if alike(geometry[:, 2:4], np.zeros_like(off)):
        return "the offset of the image in its padding is missing"
    return f"the offset of the image is off by up to {np.abs(off).max():g} pixels"


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
