"""The preprocessing step against the one that Triton's tutorials write with Pillow, on one core.

    python -m benchmarks.preprocess --rounds 60

Both bundled photographs, brought to 500x375 and 2048x1536 and saved as JPEG of quality 90, go through every variant in
turn, round after round in one process. A time is the median over all rounds of the processor time, which is that of one
core, since nothing here has more than one thread.

- `tutorial`: Image.open, convert, resize the shorter edge to 256, crop 224, / 255, mean, std, FP32 CHW.
- `tutorial, uint8`: the same without the normalisation.
- `trtgen`: `decode` of templates/preprocess/1/model.py. It hands UINT8 HWC on, since the graph normalises.
- `normalised`: the same and then what the graph does (cast, scale, transpose), here with numpy.
- `one box`: one call of Pillow's resize with the crop as its box, in UINT8. Faster, and not exactly training's pixels.

`normalised` against `tutorial` compares equal work. `trtgen` against `tutorial` is what the two preprocessing
models of an ensemble cost; the rest of the work is then in the network, where it is part of a fused graph.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import describe_machine
from generator.images.served_pixels import load_step
from generator.images.sets import photographs
from generator.spec.recipe import IMAGENET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from PIL import Image

SIZES = ((500, 375), (2048, 1536))
TARGET = 1.25
_MEAN = np.array(IMAGENET.mean, np.float32)
_STD = np.array(IMAGENET.std, np.float32)
_SCALE = (1 / (255 * _STD))[:, None, None]
_SHIFT = (-_MEAN / _STD)[:, None, None]


def make_jpegs(width: int, height: int) -> list[bytes]:
    """Return the photographs in this size, JPEG of quality 90."""
    from PIL import Image

    files = []
    for data in photographs().files:
        stream = io.BytesIO()
        resized = Image.open(io.BytesIO(data)).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        resized.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def crop_plainly(data: bytes) -> NDArray[np.uint8]:
    """Return the pixels (224, 224, 3): the whole image resized, then cropped."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = resized(image)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def crop_in_one_call(data: bytes) -> NDArray[np.uint8]:
    """Return nearly the same pixels: the crop's part of the image resized, its corners kept in single precision."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = resized(image)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + 224) * x, (top + 224) * y)
    return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box))


def resized(image: Image.Image) -> tuple[int, int]:
    """Return width and height once the shorter edge is 256, the longer truncated."""
    width, height = image.size
    return (256, 256 * height // width) if width <= height else (256 * width // height, 256)


def preprocess_plainly(data: bytes) -> NDArray[np.float32]:
    """Return what a network takes that does not normalise: FP32 (3, 224, 224)."""
    array = crop_plainly(data).astype(np.float32) / 255.0
    array = (array - _MEAN) / _STD
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return FP32 (3, 224, 224) in two passes, the way a fused graph does."""
    array = np.multiply(pixels.transpose(2, 0, 1), _SCALE, dtype=np.float32, order="C")
    array += _SHIFT
    return array


def find_error(crop: Callable[[bytes], NDArray[np.uint8]], files: Sequence[bytes]) -> int:
    """Return by how many levels of 255 the worst pixel differs from the whole image resized, then cropped."""
    return max(int(np.abs(crop(data).astype(int) - crop_plainly(data)).max()) for data in files)


def measure(
    variants: dict[str, Callable[[bytes], NDArray[Any]]], files: Sequence[bytes], rounds: int
) -> dict[str, float]:
    """Return the median processor seconds per image of each variant."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for data in files:
            for name, variant in variants.items():
                started = time.process_time()
                variant(data)
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Print one table; exit 1 if equal work is not faster by the target or pixels are off by more than a level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    step = load_step("preprocess")
    recipe = step.Recipe({name: {"string_value": value} for name, value in IMAGENET.parameters().items()})
    pixels = np.empty((224, 224, 3), np.uint8)

    def ours(data: bytes) -> NDArray[np.uint8]:
        pixels[:] = step.decode(data, recipe)  # as the step does: into the request's batch
        return pixels

    variants: dict[str, Callable[[bytes], NDArray[Any]]] = {
        "tutorial": preprocess_plainly,
        "tutorial, uint8": crop_plainly,
        "trtgen": ours,
        "normalised": lambda data: normalise(ours(data)),
        "one box": crop_in_one_call,
    }
    print(f"{describe_machine()}\n")
    print("| JPEG | variant | ms | images/s per core | against `tutorial` | largest error, levels |")
    print("|---|---|---|---|---|---|")
    missed = False
    for width, height in SIZES:
        files = make_jpegs(width, height)
        error = find_error(ours, files)
        errors = {"trtgen": error, "normalised": error, "one box": find_error(crop_in_one_call, files)}
        seconds = measure(variants, files, options.rounds)
        for name, value in seconds.items():
            ratio = seconds["tutorial"] / value
            figures = f"{value * 1e3:.2f} | {1 / value:.0f} | {ratio:.2f} | {errors.get(name, 0)}"
            print(f"| {width}x{height} | {name} | {figures} |")
        missed |= error > 1 or seconds["tutorial"] / seconds["normalised"] < TARGET
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
