"""Which profile takes which rows, and as which batches they run. No TensorRT, no GPU.

Shapes are one per input, in the order of the engine's inputs, which is that of the entries of a profile, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..tensor import Profile, Tensor

    Shape = tuple[int, ...]
    Shapes = tuple[Shape, ...]


def is_between(shape: Shape, least: Shape, most: Shape) -> bool:
    """Tell whether each dimension lies in its range."""
    return len(shape) == len(least) and all(a <= dim <= b for a, dim, b in zip(least, shape, most, strict=True))


def contains(profile: Profile, shapes: Shapes) -> bool:
    """Tell whether the profile takes these shapes."""
    return all(is_between(shape, one.min, one.max) for one, shape in zip(profile.values(), shapes, strict=True))


def choose_profile(profiles: Sequence[Profile], shapes: Shapes) -> int | None:
    """Return the place of the profile whose optimum is nearest to the shapes among those that take them, if any does.

    The distance is the sum over all axes of all inputs, as in Triton's backend; of equally near ones the first is
    taken.
    """

    def distance(place: int) -> int:
        pairs = zip(profiles[place].values(), shapes, strict=True)
        return sum(abs(best - dim) for one, shape in pairs for best, dim in zip(one.opt, shape, strict=True))

    places = [place for place, profile in enumerate(profiles) if contains(profile, shapes)]
    return min(places, key=distance, default=None)


def find_row_ranges(profiles: Sequence[Profile], rows: Shapes, most: int) -> list[tuple[int, int]]:
    """Return (least, most) rows of each profile that takes rows of these shapes.

    `most` is the largest batch that is wanted; 0 says that there is no batch axis, and gives (1, 1).
    """
    found = []
    for profile in profiles:
        ranges = profile.values()
        whole = slice(1 if most else 0, None)
        if not all(is_between(row, one.min[whole], one.max[whole]) for row, one in zip(rows, ranges, strict=True)):
            continue
        if not most:
            found.append((1, 1))
            continue
        least = max(one.min[0] for one in ranges)
        largest = min(most, *(one.max[0] for one in ranges))
        if least <= largest:
            found.append((least, largest))
    return found


def split_rows(rows: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """Return (start, stop) of as few batches as the ranges allow; None where some rows are too few for any."""
    chunks, start = [], 0
    while start < rows:
        sizes = [min(rows - start, most) for least, most in ranges if least <= rows - start]
        if not sizes:
            return None
        chunks.append((start, start + max(sizes)))
        start += max(sizes)
    return chunks


def find_misfit(inputs: Sequence[Tensor], profile: Profile, shapes: Sequence[Shape], name: str) -> str:
    """Return why a profile does not take these shapes, in the words of Triton's backend; empty where it does."""
    for tensor, one, shape in zip(inputs, profile.values(), shapes, strict=True):
        words = f"request specifies invalid shape for input '{tensor.name}' for {name}. Error details: "
        if len(shape) != len(one.min):
            return f"{words}model expected {len(one.min)} dimensions but received {len(shape)}"
        for place, (least, dim, most) in enumerate(zip(one.min, shape, one.max, strict=True)):
            if not least <= dim <= most:
                between = f"to be between {least} and {most} but received {dim}"
                return f"{words}model expected the shape of dimension {place} {between}"
    return ""
