"""The images a measurement sends: real JPEGs of mixed sizes, because the time to decode grows with the size."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.images.sets import find_images, read_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_IMAGES = 64  # perf_analyzer holds all of them in memory, several times
DRAWN_IMAGES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestImages:
    """Encoded images and where they are from."""

    source: str
    images: tuple[bytes, ...]

    def describe(self) -> dict[str, object]:
        """Return count and sizes in bytes, for a report."""
        sizes = sorted(map(len, self.images))
        middle = sizes[len(sizes) // 2]
        return {
            "source": self.source,
            "count": len(sizes),
            "smallest_bytes": sizes[0],
            "median_bytes": middle,
            "largest_bytes": sizes[-1],
        }


def collect_images(folder: Path | None) -> RequestImages:
    """Return up to 64 images of `folder` (subfolders too, evenly spread), or the drawn set when there is no folder.

    Raises:
        VerificationError: No image there, or one that does not decode: every request that has it would fail.
    """
    if folder is None:
        from generator.demo.draw import draw_set

        drawn = draw_set(DRAWN_IMAGES, seed=0)
        return RequestImages(source=f"{DRAWN_IMAGES} drawn images, seed 0", images=tuple(image.jpeg for image in drawn))
    files = find_images(folder)
    count = min(len(files), MOST_IMAGES)
    spread = [files[index * len(files) // count] for index in range(count)]
    return RequestImages(source=str(folder), images=tuple(map(read_image, spread)))


def write_input(images: Sequence[bytes], tensor: str, path: Path) -> None:
    """Write perf_analyzer's input file: a request per image. Before a BYTES element comes its length."""
    data = [
        {
            tensor: {
                "content": {"b64": base64.b64encode(struct.pack("<I", len(image)) + image).decode("ascii")},
                "shape": [1],
            }
        }
        for image in images
    ]
    path.write_text(json.dumps({"data": data}), encoding="ascii")
