"""Train the demo detector: `python -m generator.demo.train_detector --output detector.safetensors`.

Draws its scenes in two processes, trains on one CPU thread, prints the average precision on scenes of a seed that
training never saw, and writes the weights; about 15 minutes on two cores. Every choice comes from a seed; the
weights still depend on the versions of torch and Pillow and on the kind of processor.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from generator.demo.detector import SIDE, STRIDE, letterbox_image, make_detector
from generator.demo.draw import LABELS
from generator.demo.network import normalise_pixels
from generator.demo.scenes import MOST_SHAPES, draw_scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

TRAINING_SEED = 1
HELD_OUT_SEED = 2
TRAINING_SCENES = 8_000
# A full scene costs no more time than one with a single shape and teaches more; those judged have one to six.
FEWEST_SHAPES = 4
HELD_OUT_SCENES = 1_000
EPOCHS = 8
BATCH = 16
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.02
DRAWING_PROCESSES = 2
# A cell answers for a shape whose centre is at most this far away, in strides, on both axes.
REACH = 1.25
CALIBRATION_SEED = 3
CALIBRATION_SCENES = 200
NMS_IOU = 0.45


class Shapes(NamedTuple):
    """The shapes of one scene, with scores of 1, or those found in it: N boxes in the network's pixels each."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


def draw_letterboxed(
    count: int, *, seed: int, fewest: int = 1, processes: int = 1
) -> tuple[NDArray[np.uint8], list[Shapes]]:
    """Draw `count` scenes of `fewest` to six shapes, decode their JPEG and letterbox them as the recipe says.

    Returns:
        uint8 pixels of shape (count, 192, 192, 3), and the shapes of each scene.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import numpy as np

    draw = partial(_draw_letterboxed, seed, fewest)
    if processes == 1:
        scenes = [draw(number) for number in range(count)]
    else:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            scenes = list(pool.map(draw, range(count), chunksize=100))
    return np.stack([pixels for pixels, _ in scenes]), [shapes for _, shapes in scenes]


def train_detector(pixels: NDArray[np.uint8], truth: Sequence[Shapes], *, epochs: int = EPOCHS) -> torch.nn.Module:
    """Train a fresh detector and return it in evaluation mode.

    Args:
        pixels: uint8 (N, 192, 192, 3).
        truth: The shapes of each of them.
        epochs: Passes over the scenes.
    """
    import torch

    torch.manual_seed(TRAINING_SEED)
    detector = make_detector().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(pixels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps, pct_start=0.1
    )
    all_boxes, all_classes = _pad(truth)
    for epoch in range(epochs):
        began, total = time.perf_counter(), 0.0
        order = torch.randperm(len(pixels))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            images, boxes = _turn_and_mirror(normalise_pixels(pixels[chosen.numpy()]), all_boxes[chosen])
            found, scores = detector(images)
            loss = _compute_loss(found, scores, boxes, all_classes[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1:2} of {epochs}: loss {total / steps:.4f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    return detector.eval().to(memory_format=torch.contiguous_format)


def calibrate_scores(detector: torch.nn.Module, pixels: NDArray[np.uint8], truth: Sequence[Shapes]) -> None:
    """Scale and shift the logits of the detector's scores, so that they tell how likely a box is right (Platt scaling).

    Varifocal loss leaves wrong classes at scores of .3. The order of the boxes stays as it is.
    """
    import numpy as np
    import torch

    found = detect(detector, pixels, lowest_score=0.05)
    right = np.concatenate([_match(*pair, iou=0.5) for pair in zip(found, truth, strict=True)])
    logits = torch.from_numpy(np.concatenate([answer.scores for answer in found])).double().logit()
    wanted = torch.from_numpy(right).double()
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def measure_loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits * line[0] + line[1], wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(measure_loss)  # type: ignore[no-untyped-call]
    *_, last = (layer for layer in detector.modules() if isinstance(layer, torch.nn.Conv2d))
    assert last.bias is not None
    factor, summand = line.tolist()
    with torch.no_grad():
        last.weight[4:] *= factor
        last.bias[4:] = last.bias[4:] * factor + summand


def detect(detector: torch.nn.Module, pixels: NDArray[np.uint8], *, lowest_score: float = 0.001) -> list[Shapes]:
    """Return what the detector finds in each letterboxed image, by falling score, after NMS per class."""
    import torch
    from torchvision.ops import batched_nms

    found = []
    for first in range(0, len(pixels), 100):
        with torch.inference_mode():
            answers = detector(normalise_pixels(pixels[first : first + 100]))
        for boxes, scores in zip(*answers, strict=True):
            cells, classes = (scores > lowest_score).nonzero(as_tuple=True)
            kept = batched_nms(boxes[cells], scores[cells, classes], classes, NMS_IOU)
            cells, classes = cells[kept], classes[kept]
            found.append(Shapes(boxes[cells].numpy(), classes.numpy(), scores[cells, classes].numpy()))
    return found


def measure_ap(found: Sequence[Shapes], truth: Sequence[Shapes], *, iou: float) -> NDArray[np.float64]:
    """Return the average precision of each class, NaN without a shape: the area under falling precision over recall."""
    import numpy as np

    right = np.concatenate([_match(*pair, iou=iou) for pair in zip(found, truth, strict=True)])
    classes = np.concatenate([answer.classes for answer in found])
    scores = np.concatenate([answer.scores for answer in found])
    real = np.concatenate([shapes.classes for shapes in truth])
    precisions = np.full(len(LABELS), np.nan)
    for label in np.unique(real):
        order = np.argsort(-scores[classes == label], kind="stable")
        hits = right[classes == label][order].cumsum()
        falling = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        precisions[label] = np.sum(np.diff(hits / (real == label).sum(), prepend=0) * falling)
    return precisions


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, train, write the weights and judge them; prints one line per step."""
    parser = argparse.ArgumentParser(
        prog="python -m generator.demo.train_detector", description="Train the demo detector."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="weights to write (.safetensors)")
    output: Path = parser.parse_args(arguments).output

    import torch
    from safetensors.torch import save_file

    # More threads wait for each other by spinning: on a busy machine a step takes many times as long.
    torch.set_num_threads(1)
    began = time.perf_counter()
    pixels, truth = draw_letterboxed(
        TRAINING_SCENES, seed=TRAINING_SEED, fewest=FEWEST_SHAPES, processes=DRAWING_PROCESSES
    )
    print(f"drew {len(pixels)} scenes in {time.perf_counter() - began:.0f} s", flush=True)
    detector = train_detector(pixels, truth)
    calibrate_scores(detector, *draw_letterboxed(CALIBRATION_SCENES, seed=CALIBRATION_SEED))
    save_file({name: tensor.contiguous() for name, tensor in detector.state_dict().items()}, output)
    print(
        f"wrote {output}, {output.stat().st_size / 1e6:.2f} MB, after {time.perf_counter() - began:.0f} s, "
        f"{time.process_time():.0f} s of it on the CPU without drawing",
        flush=True,
    )

    held_out, truth = draw_letterboxed(HELD_OUT_SCENES, seed=HELD_OUT_SEED, processes=DRAWING_PROCESSES)
    found = detect(detector, held_out)
    print(f"held-out average precision, {len(truth)} scenes of seed {HELD_OUT_SEED}:")
    for iou in (0.5, 0.75, 0.9):
        each = measure_ap(found, truth, iou=iou)
        classes = ", ".join(f"{name} {value:.3f}" for name, value in zip(LABELS, each, strict=True))
        print(f"  at IoU {iou}: {each.mean():.4f} ({classes})")


def _match(found: Shapes, shapes: Shapes, *, iou: float) -> NDArray[np.bool_]:
    """Return which detections are right: each takes the shape of its class that it overlaps most of those left.

    It is right if it overlaps that by `iou` or more. Detections come by falling score.
    """
    import numpy as np
    import torch
    from torchvision.ops import box_iou

    overlaps = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(shapes.boxes)).numpy()
    overlaps[found.classes[:, None] != shapes.classes] = -1
    right = np.zeros(len(overlaps), bool)
    for row, overlap in enumerate(overlaps):
        best = overlap.argmax()
        right[row] = overlap[best] >= iou
        if right[row]:
            overlaps[:, best] = -1
    return right


def _draw_letterboxed(seed: int, fewest: int, number: int) -> tuple[NDArray[np.uint8], Shapes]:
    import io

    import numpy as np
    from PIL import Image

    scene = draw_scene(seed, number, fewest=fewest)
    pixels, (scale_x, scale_y, left, top) = letterbox_image(Image.open(io.BytesIO(scene.jpeg)))
    boxes = scene.boxes * np.array([scale_x, scale_y] * 2) + np.array([left, top] * 2)
    return pixels, Shapes(boxes.astype(np.float32), scene.classes, np.ones(len(boxes), np.float32))


def _pad(truth: Sequence[Shapes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes FP32 (N, 6, 4) and classes int64 (N, 6); what is padded is an empty box, which no cell lies in."""
    import torch

    boxes = torch.zeros(len(truth), MOST_SHAPES, 4)
    classes = torch.zeros(len(truth), MOST_SHAPES, dtype=torch.int64)
    for row, shapes in enumerate(truth):
        boxes[row, : len(shapes.boxes)] = torch.from_numpy(shapes.boxes)
        classes[row, : len(shapes.boxes)] = torch.from_numpy(shapes.classes)
    return boxes, classes


def _turn_and_mirror(images: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn the batch by a random quarter and mirror half of the time: every class survives both."""
    import torch

    quarters = int(torch.randint(4, ()))
    images = torch.rot90(images, quarters, dims=(2, 3))
    left, top, right, bottom = boxes.unbind(-1)
    for _ in range(quarters):
        left, top, right, bottom = top, SIDE - right, bottom, SIDE - left
    if torch.rand(()) < 0.5:
        images = images.flip(3)
        left, right = SIDE - right, SIDE - left
    return images.contiguous(memory_format=torch.channels_last), torch.stack([left, top, right, bottom], dim=-1)


def _assign_cells(boxes: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the box (N, A, 4) and the class (N, A) that each cell answers for, class -1 for none.

    A cell answers for a shape whose box it lies in and whose centre is near, for the smallest of several.
    """
    import torch

    along = torch.arange(STRIDE / 2, SIDE, STRIDE)
    cells = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).reshape(1, -1, 1, 2)
    corners, sizes = boxes[:, None], (boxes[..., 2:] - boxes[..., :2]).amax(-1)[:, None]
    inside = ((cells > corners[..., :2]) & (cells < corners[..., 2:])).all(-1)
    near = (cells - (corners[..., :2] + corners[..., 2:]) / 2).abs().amax(-1) < REACH * STRIDE
    smallest, which = sizes.masked_fill(~(inside & near), torch.inf).min(-1)
    mine = torch.where(smallest < torch.inf, classes.gather(1, which), -1)
    return boxes.gather(1, which[..., None].expand(-1, -1, 4)), mine


def _compute_loss(
    found: torch.Tensor, scores: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Return varifocal loss of the scores, which shall tell how well the boxes fit, plus GIoU loss of the boxes."""
    import torch
    from torch.nn.functional import binary_cross_entropy
    from torchvision.ops import generalized_box_iou_loss

    target, mine = _assign_cells(boxes, classes)
    positive = mine >= 0
    misfit = generalized_box_iou_loss(found[positive], target[positive])
    wanted = torch.zeros_like(scores)
    wanted[positive, mine[positive]] = (1 - misfit.detach()).clamp(min=0.1)
    weight = torch.where(wanted > 0, wanted, 0.75 * scores.detach() ** 2)
    score_loss = binary_cross_entropy(scores, wanted, weight=weight, reduction="sum")
    total: torch.Tensor = (score_loss + 2 * misfit.sum()) / positive.sum().clamp(min=1)
    return total


if __name__ == "__main__":
    main()
