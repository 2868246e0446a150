"""What decoding makes of encoded images, on the CPU or on the GPU: the value between decoder and network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The images of one call, in its order.

    Attributes:
        pixels: UINT8 (n, height, width, channels): a numpy array, or an array on the GPU that has
            `__cuda_array_interface__`. The pixels of an image that could not be decoded are zeros.
        geometry: n rows of six numbers, how each original became its pixels: scale x, scale y, left, top, and the
            original's width and height. Zeros for an image that could not be decoded.
        errors: For each image None, or why it could not be decoded.
        begun: How many images, from the first on, the network has been started on already.
    """

    pixels: Any
    geometry: Sequence[Sequence[float]]
    errors: Sequence[str | None]
    begun: int = 0
