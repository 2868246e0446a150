"""Train the demo network: `python -m generator.demo.train --output weights.safetensors`.

Draws its images, trains on two CPU threads in about 15 minutes, prints the accuracy on images of a seed that
training never saw, and writes the weights. Every choice comes from a seed; the weights still depend on the versions of
torch and Pillow and on the kind of processor.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from generator.demo.draw import LABELS, draw_numbered
from generator.demo.network import crop_image, make_network, normalise_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

TRAINING_SEED = 1
HELD_OUT_SEED = 2
TRAINING_IMAGES = 20_000
HELD_OUT_IMAGES = 4_000
EPOCHS = 16
BATCH = 64
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02
THREADS = 2


def draw_crops(count: int, *, seed: int, processes: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `count` images, decode their JPEG and crop them as the recipe says.

    Returns:
        uint8 pixels of shape (count, 96, 96, 3) and int64 labels of shape (count,).
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import numpy as np

    draw = partial(_draw_crop, seed)
    if processes == 1:
        crops = [draw(number) for number in range(count)]
    else:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            crops = list(pool.map(draw, range(count), chunksize=100))
    return np.stack(crops), np.arange(count) % len(LABELS)


def train_network(pixels: NDArray[np.uint8], labels: NDArray[np.int64], *, epochs: int = EPOCHS) -> torch.nn.Module:
    """Train a fresh network and return it in evaluation mode.

    Args:
        pixels: uint8 (N, 96, 96, 3).
        labels: int64 (N,), indices in `LABELS`.
        epochs: Passes over the images.
    """
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(TRAINING_SEED)
    network = make_network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(pixels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2
    )
    targets = torch.from_numpy(labels)
    for epoch in range(epochs):
        began, total = time.perf_counter(), 0.0
        order = torch.randperm(len(pixels))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            images = _turn_and_mirror(normalise_pixels(pixels[chosen.numpy()]))
            loss = cross_entropy(network(images), targets[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1:2} of {epochs}: loss {total / steps:.4f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    return network.eval().to(memory_format=torch.contiguous_format)


def predict(network: torch.nn.Module, pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return the probabilities, FP32 (N, 10), for uint8 crops (N, 96, 96, 3)."""
    import torch

    with torch.inference_mode():
        logits = [network(normalise_pixels(pixels[first : first + 200])) for first in range(0, len(pixels), 200)]
        return torch.cat(logits).softmax(dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, train, judge and write the weights; prints one line per step."""
    parser = argparse.ArgumentParser(prog="python -m generator.demo.train", description="Train the demo network.")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="weights to write (.safetensors)")
    output: Path = parser.parse_args(arguments).output

    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(THREADS)
    began = time.perf_counter()
    pixels, labels = draw_crops(TRAINING_IMAGES, seed=TRAINING_SEED, processes=THREADS)
    print(f"drew {len(pixels)} images in {time.perf_counter() - began:.0f} s", flush=True)
    network = train_network(pixels, labels)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, output)
    print(
        f"wrote {output}, {output.stat().st_size / 1e6:.2f} MB, after {time.perf_counter() - began:.0f} s", flush=True
    )

    held_out, truth = draw_crops(HELD_OUT_IMAGES, seed=HELD_OUT_SEED, processes=THREADS)
    _print_accuracy(predict(network, held_out), torch.from_numpy(truth))


def _draw_crop(seed: int, number: int) -> NDArray[np.uint8]:
    import io

    from PIL import Image

    return crop_image(Image.open(io.BytesIO(draw_numbered(seed, number).jpeg)))


def _turn_and_mirror(images: torch.Tensor) -> torch.Tensor:
    """Turn the batch by a random quarter and mirror half of the time: every class survives both."""
    import torch

    turned = torch.rot90(images, int(torch.randint(4, ())), dims=(2, 3))
    mirrored = turned.flip(3) if torch.rand(()) < 0.5 else turned
    return mirrored.contiguous(memory_format=torch.channels_last)


def _print_accuracy(probabilities: torch.Tensor, truth: torch.Tensor) -> None:
    confidence, answers = probabilities.max(dim=1)
    right = answers == truth
    print(f"held-out accuracy: {right.float().mean().item():.2%} of {len(truth)} images, seed {HELD_OUT_SEED}")
    print(f"mean confidence: {confidence.mean().item():.2%}, above 0.9: {(confidence > 0.9).float().mean().item():.2%}")
    for label, name in enumerate(LABELS):
        print(f"  {name:9} {right[truth == label].float().mean().item():.2%}")


if __name__ == "__main__":
    main()
