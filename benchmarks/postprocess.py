"""The post-processing step on one core: from a detector's rows to the boxes that are answered.

    python -m benchmarks.postprocess --rounds 200

Each image has 1000 rows, as many as leave the network by default, of 80 classes; so many of them reach the threshold
of 0.25, spread over so many objects with about equal boxes. All images go through every variant in turn, round after
round in one process. A time is the median over all rounds of the processor time.

- `trtgen`: `detect` of templates/postprocess/1/model.py: threshold, NMS per class, back to the original's pixels.
- `torchvision`: the same rows with batched_nms, one thread, without the way there and back; for comparison only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import describe_machine
from generator.images.served_pixels import load_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROWS, CLASSES = 1000, 80
IMAGES = 8
TARGET_MS, TARGET_CASE = 0.5, (300, 12)  # as many objects as a street or a room has
CASES = ((0, 12), (100, 12), (300, 12), (300, 30), (300, 100), (1000, 12), (1000, 100))  # candidates, objects
_GEOMETRY = np.array([0.5, 0.5, 0, 80, 1280, 960], np.float32)
_PARAMETERS = {"score": "0.25", "iou": "0.45", "nms": "per-class"}


def make_rows(candidates: int, objects: int, seed: int) -> tuple[NDArray[Any], ...]:
    """Return boxes [ROWS, 4], scores and classes, best first; every object has its share of the rows."""
    rng = np.random.default_rng(seed)
    of_rows = np.arange(ROWS) % objects
    centre = rng.uniform(50, 590, (objects, 2))[of_rows] + rng.normal(0, 2, (ROWS, 2))
    size = rng.uniform(30, 90, (objects, 2))[of_rows] * rng.uniform(0.9, 1.1, (ROWS, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
    scores = np.where(np.arange(ROWS) < candidates, rng.uniform(0.26, 0.99, ROWS), rng.uniform(0, 0.2, ROWS))
    order = np.argsort(-scores)
    classes = rng.integers(0, CLASSES, objects)[of_rows]
    return boxes[order], scores[order].astype(np.float32), classes[order].astype(np.int32)


def time_ms(call: Callable[[], object]) -> float:
    """Return the processor time of one call in milliseconds."""
    start = time.process_time_ns()
    call()
    return (time.process_time_ns() - start) / 1e6


def main() -> int:
    """Measure every case and print a table; exit 1 if the target is missed."""
    import torch
    from torchvision.ops import batched_nms

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    step = load_step("postprocess")
    parameters = {name: {"string_value": value} for name, value in _PARAMETERS.items()}
    options = step.Options(parameters, [str(index) for index in range(CLASSES)], 100)

    def suppress(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor) -> None:
        sure = scores >= 0.25
        batched_nms(boxes[sure], scores[sure], classes[sure], 0.45)

    print(f"{describe_machine()}\n")
    print("| candidates | objects | answered | trtgen, ms | torchvision's NMS, ms |")
    print("|---|---|---|---|---|")
    missed = False
    for candidates, objects in CASES:
        images = [make_rows(candidates, objects, seed) for seed in range(IMAGES)]
        tensors = [[torch.from_numpy(values) for values in image] for image in images]
        answered = statistics.mean(len(step.detect(*image, _GEOMETRY, options)[0]) for image in images)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            for image, rows in zip(images, tensors, strict=True):
                ours.append(time_ms(partial(step.detect, *image, _GEOMETRY, options)))
                theirs.append(time_ms(partial(suppress, *rows)))
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(f"| {candidates} | {objects} | {answered:.0f} | {mine:.2f} | {other:.2f} |")
        missed |= (candidates, objects) == TARGET_CASE and mine > TARGET_MS
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
