"""A network with the shapes and about the arithmetic of a small YOLO, with random weights, as an ONNX file.

    python -m benchmarks.yolo_shaped yolo_shaped.onnx

Three strides, a feature pyramid in both directions, box distances as distributions over 16 bins: 640x640 pixels become
[batch, 84, 8400], centre and size in pixels and 80 class scores. Nothing of it is from the YOLO projects, so it can
stand in for them where only time counts. BatchNorm gets the statistics of drawn scenes, and the class scores are
shifted so that about 50 anchors of an image reach 0.35.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from generator.demo.scenes import draw_scenes
from generator.images.training_pixels import prepare
from generator.spec.recipe import RECIPES

SIZE, CLASSES, BINS = 640, 80, 16
STRIDES = (8, 16, 32)
_ABOVE_035 = 50


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution with BatchNorm and SiLU."""
    layer = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.SiLU())


class Stage(nn.Module):
    """Splits its channels, lets half of them pass `depth` residual pairs, and joins all that arose."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        half = after // 2
        self.split = convolution(before, after, 1)
        self.pairs = nn.ModuleList(
            nn.Sequential(convolution(half, half), convolution(half, half)) for _ in range(depth)
        )
        self.join = convolution((2 + depth) * half, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the joined features."""
        parts = list(self.split(x).chunk(2, 1))
        for pair in self.pairs:
            parts.append(parts[-1] + pair(parts[-1]))
        joined: torch.Tensor = self.join(torch.cat(parts, 1))
        return joined


class YoloShaped(nn.Module):
    """Normalised pixels (N, 3, 640, 640) to (N, 84, 8400)."""

    anchors: torch.Tensor
    strides: torch.Tensor
    bins: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 16, stride=2), convolution(16, 32, stride=2), Stage(32, 32, 1))
        self.down = nn.ModuleList(
            nn.Sequential(convolution(before, after, stride=2), Stage(after, after, depth))
            for before, after, depth in ((32, 64, 2), (64, 128, 2), (128, 256, 1))
        )
        self.up = nn.ModuleList([Stage(384, 128, 1), Stage(192, 64, 1)])
        self.shrink = nn.ModuleList([convolution(64, 64, stride=2), convolution(128, 128, stride=2)])
        self.again = nn.ModuleList([Stage(192, 128, 1), Stage(384, 256, 1)])
        self.boxes = nn.ModuleList(self._head(width, 64, 4 * BINS) for width in (64, 128, 256))
        self.scores = nn.ModuleList(self._head(width, 80, CLASSES) for width in (64, 128, 256))
        centres, strides = [], []
        for stride in STRIDES:
            edge = SIZE // stride
            y, x = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
            centres.append((torch.stack([x, y]).reshape(2, -1) + 0.5) * stride)
            strides.append(torch.full((1, edge * edge), float(stride)))
        self.register_buffer("anchors", torch.cat(centres, 1))
        self.register_buffer("strides", torch.cat(strides, 1))
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).reshape(1, 1, BINS, 1))

    @staticmethod
    def _head(width: int, inner: int, outputs: int) -> nn.Module:
        return nn.Sequential(convolution(width, inner), convolution(inner, inner), nn.Conv2d(inner, outputs, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return centre, size and class scores of every anchor."""
        fine = self.down[0](self.stem(images))
        middle = self.down[1](fine)
        coarse = self.down[2](middle)
        middle = self.up[0](torch.cat([functional.interpolate(coarse, scale_factor=2.0), middle], 1))
        fine = self.up[1](torch.cat([functional.interpolate(middle, scale_factor=2.0), fine], 1))
        middle = self.again[0](torch.cat([self.shrink[0](fine), middle], 1))
        coarse = self.again[1](torch.cat([self.shrink[1](middle), coarse], 1))
        levels = (fine, middle, coarse)
        distances = torch.cat([head(level).flatten(2) for head, level in zip(self.boxes, levels, strict=True)], 2)
        scores = torch.cat([head(level).flatten(2) for head, level in zip(self.scores, levels, strict=True)], 2)
        shares = distances.reshape(-1, 4, BINS, distances.shape[2]).softmax(2)
        left_top, right_bottom = ((shares * self.bins).sum(2) * self.strides).chunk(2, 1)
        centre = self.anchors + (right_bottom - left_top) / 2
        return torch.cat([centre, left_top + right_bottom, scores.sigmoid()], 1)


def make_network(seed: int = 0) -> YoloShaped:
    """Return the network in evaluation mode; it answers differently for different images."""
    torch.manual_seed(seed)
    network = YoloShaped()
    scenes = [scene.jpeg for scene in draw_scenes(8, seed=7)]
    images = torch.from_numpy(RECIPES["yolo"].normalise(prepare(RECIPES["yolo"], scenes)))
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None
        network.train()(images)
        network.eval()
        found = network(images)[:, 4:].clamp(1e-6, 1 - 1e-6).logit()
        best = found.amax(1).flatten()
        wanted = torch.quantile(best, 1 - _ABOVE_035 / 8400)
        factor = 0.5 / float(best.std())  # photographs reach 20 of these; two scores of 1.0 would tie
        shift = float(np.log(0.35 / 0.65)) - float(wanted) * factor
        for head in network.scores:
            *_, last = head.children()
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.weight.mul_(factor)
            last.bias.mul_(factor).add_(shift)
    return network


def main() -> int:
    """Export it with a free batch, as YOLO's own exporters name and shape it."""
    (path,) = map(Path, sys.argv[1:])
    torch.onnx.export(
        make_network(), (torch.zeros(1, 3, SIZE, SIZE),), str(path), dynamo=False, opset_version=17,
        input_names=["images"], output_names=["output0"],
        dynamic_axes={"images": {0: "batch"}, "output0": {0: "batch"}},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
