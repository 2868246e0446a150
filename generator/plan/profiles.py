"""Optimization profiles: the shapes that a plan takes. Values and their checks, without TensorRT.

TensorRT ignores a profile for an unknown tensor, and finds most other mistakes only minutes later, while it builds
or when the first request comes. So everything is checked here, and every problem is named at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import PlanError
from generator.spec.plan import uncovered_batches
from generator.tensor import ShapeRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from generator.graph.model import OnnxModel
    from generator.spec.plan import BatchProfile
    from generator.tensor import Profile, Tensor

_HINT = "fix plan.profiles or batch.max"


def make_profiles(onnx: OnnxModel, batches: Sequence[BatchProfile]) -> tuple[Profile, ...]:
    """Return one profile per batch range for the graph's input. Only its batch may be dynamic.

    Raises:
        PlanError: Another axis is dynamic: there is no size to choose kernels for.
    """
    axes = [axis for axis, size in enumerate(onnx.input.shape) if size < 0 and axis > 0]
    if axes:
        where = ", ".join(f"axis {axis}" for axis in axes)
        msg = (
            f"{onnx.path}: input {onnx.input.name} {_text(onnx.input.shape)} has no fixed size in {where}; "
            "only axis 0, the batch, can be left open"
        )
        raise PlanError(msg, hint="export the graph with a fixed image size")
    rest = onnx.input.shape[1:]
    return tuple(
        {onnx.input.name: ShapeRange(min=(batch.min, *rest), opt=(batch.opt, *rest), max=(batch.max, *rest))}
        for batch in batches
    )


def check_profiles(onnx: OnnxModel, profiles: Sequence[Profile], *, max_batch_size: int | None) -> None:
    """Check names, ranks, fixed axes, min <= opt <= max, and that every batch up to `max_batch_size` has a profile.

    Profiles may overlap. A graph without dynamic axes needs none. `max_batch_size` None or 0 asks for no batch.

    Raises:
        PlanError: Lists every problem with input, axis, what was found and what was expected.
    """
    problems = [
        problem for index, profile in enumerate(profiles) for problem in _profile_problems(onnx.input, index, profile)
    ]
    if not profiles and any(size < 0 for size in onnx.input.shape):
        problems.append(
            f"input {onnx.input.name} {_text(onnx.input.shape)} has dynamic axes and there is no optimization profile"
        )
    if max_batch_size and not problems:
        problems.extend(_batch_problems(onnx.input, profiles, max_batch_size))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        msg = f"{onnx.path}: the optimization profiles do not fit the graph:\n{lines}"
        raise PlanError(msg, hint=_HINT, fields={"plan.profiles": None, "batch.max": None})


def _profile_problems(tensor: Tensor, index: int, profile: Profile) -> Iterable[str]:
    for name in profile:
        if name != tensor.name:
            yield f"profile {index}: the graph has no input {name}; its input is {tensor.name}"
    found = profile.get(tensor.name)
    if found is None:
        yield f"profile {index}: input {tensor.name} is missing"
        return
    ends = {"min": found.min, "opt": found.opt, "max": found.max}
    wrong = [word for word, shape in ends.items() if len(shape) != len(tensor.shape)]
    for word in wrong:
        yield (
            f"profile {index}: input {tensor.name}: {word} {_text(ends[word])} has {len(ends[word])} axes; "
            f"the graph's {_text(tensor.shape)} has {len(tensor.shape)}"
        )
    if wrong:
        return
    for axis, size in enumerate(tensor.shape):
        sizes = (found.min[axis], found.opt[axis], found.max[axis])
        where = f"profile {index}: input {tensor.name}, axis {axis}: min {sizes[0]}, opt {sizes[1]}, max {sizes[2]}"
        if size >= 0 and any(value != size for value in sizes):
            yield f"{where}; the graph fixes this axis to {size}"
        elif size < 0 and not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            yield f"{where}; 1 <= min <= opt <= max was expected"


def _batch_problems(tensor: Tensor, profiles: Sequence[Profile], max_batch_size: int) -> Iterable[str]:
    fixed = tensor.shape[0]
    if fixed >= 0:
        yield (
            f"input {tensor.name}, axis 0, the batch: the graph fixes it to {fixed}; "
            f"a dynamic one was expected for batches of 1 to {max_batch_size}"
        )
        return
    ranges = sorted(profile[tensor.name].batches for profile in profiles)
    if gaps := uncovered_batches(ranges, max_batch_size):
        covered = ", ".join(f"{low}-{high}" for low, high in ranges)
        yield (
            f"input {tensor.name}, axis 0, the batch: no profile covers {gaps} (they cover {covered}); "
            f"every batch from 1 to {max_batch_size} was expected"
        )


def describe_profiles(profiles: Sequence[Profile]) -> str:
    """Return the profiles as one line: `profile 0: PIXELS 1..32x224x224x3`."""

    def edges(low: int, high: int) -> str:
        return str(low) if low == high else f"{low}..{high}"

    parts = []
    for index, profile in enumerate(profiles):
        shapes = (
            f"{name} {'x'.join(edges(low, high) for low, high in zip(one.min, one.max, strict=True))}"
            for name, one in profile.items()
        )
        parts.append(f"profile {index}: {', '.join(shapes)}")
    return "; ".join(parts)


def _text(shape: Sequence[int]) -> str:
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"
