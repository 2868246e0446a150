"""What an engine takes and makes, and which profile and batches to take for it. Pure: no TensorRT, no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import PlanError
from generator.plan.profiles import describe_profiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.tensor import Profile, Tensor


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the profile whose opt is nearest to `shapes` among those that contain them, as Triton's backend does.

    The distance is the sum over all axes of all inputs; of equally near ones the first is taken.

    Raises:
        PlanError: No profile contains them.
    """
    fitting = [index for index, profile in enumerate(profiles) if contains(profile, shapes)]
    if not fitting:
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        msg = f"no optimization profile takes {asked}: {describe_profiles(profiles)}"
        raise PlanError(msg, hint="take a batch that a profile covers, or build the plan with a profile for it")

    def distance(index: int) -> int:
        return sum(
            abs(edge - best)
            for name, shape in shapes.items()
            for edge, best in zip(shape, profiles[index][name].opt, strict=True)
        )

    return min(fitting, key=distance)


def split_rows(rows: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (rows, batch) of each execution: full batches first; `batch` is more than `rows` where none fits.

    Args:
        rows: At least 1.
        ranges: Smallest and largest batch of each profile.
    """
    largest = max(high for _, high in ranges)
    full, rest = divmod(rows, largest)
    parts = [(largest, largest)] * full
    if rest:
        # the smallest batch that holds them all: itself within a profile, else the next profile's smallest
        parts.append((rest, min(max(low, rest) for low, high in ranges if high >= rest)))
    return parts


def check_rows(tensor: Tensor, shape: tuple[int, ...], data_type: str) -> None:
    """Refuse rows that are not what the input takes.

    Raises:
        PlanError: Another data type or shape, or no row.
    """
    wanted = "x".join(str(edge) for edge in tensor.shape[1:])
    if len(shape) != len(tensor.shape) or any(
        edge not in (-1, given) for edge, given in zip(tensor.shape[1:], shape[1:], strict=True)
    ):
        msg = f"input {tensor.name} takes rows of {wanted}, the array has the shape {list(shape)}"
        raise PlanError(msg, hint="prepare the pixels with the model's own recipe")
    if data_type != tensor.data_type.numpy:
        msg = f"input {tensor.name} takes {tensor.data_type.numpy}, the array is {data_type}"
        raise PlanError(msg, hint=f"convert it: array.astype({tensor.data_type.numpy!r})")
    if shape[0] < 1:
        msg = f"input {tensor.name} got no row"
        raise PlanError(msg, hint="give at least one image")


def contains(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether the profile takes these shapes."""
    for name, shape in shapes.items():
        one = profile[name]
        if len(shape) != len(one.min) or not all(
            low <= edge <= high for low, edge, high in zip(one.min, shape, one.max, strict=True)
        ):
            return False
    return True
