"""The demo detector and the preprocessing it was trained with.

One map of 24x24 cells, each with one box and ten scores: small enough to be carried by the project, large enough that
precision, preprocessing and decoding mistakes show in its boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from generator.demo.draw import LABELS

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

SIDE = 192
FIT = "letterbox"
FILL = (114, 114, 114)
INTERPOLATION = "bilinear"
# ImageNet's, for pixels scaled to 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WEIGHTS_PATH = Path(__file__).with_name("detector.safetensors")

STRIDE = 8
# Channels of the 3x3 convolutions at strides 2 and 4, at 8, 16 and 32, and of the map that they are added up to
_STEM, _AT_8, _AT_16, _AT_32, _MAP = (16, 24), 48, 96, 96, 64


def make_detector() -> torch.nn.Module:
    """Build the detector with fresh weights, in training mode.

    Returns:
        A module from normalised FP32 (N, 3, 192, 192) to boxes FP32 (N, 576, 4), left, top, right, bottom in pixels of
        this input, and scores FP32 (N, 576, 10) in 0..1, in the order of `LABELS`.
    """
    import torch
    from torch import nn

    class Detector(nn.Module):
        centres: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = _make_network()
            along = torch.arange(STRIDE / 2, SIDE, STRIDE)
            centres = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).reshape(-1, 2)
            self.register_buffer("centres", centres, persistent=False)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            cells = self.network(images).flatten(2).transpose(1, 2)
            distances = nn.functional.softplus(cells[..., :4]) * STRIDE
            boxes = torch.cat([self.centres - distances[..., :2], self.centres + distances[..., 2:]], dim=-1)
            return boxes, cells[..., 4:].sigmoid()

    return Detector()


def load_detector() -> torch.nn.Module:
    """Build the detector with the weights that lie beside this file, in evaluation mode on the CPU."""
    from safetensors.torch import load_file

    detector = make_detector()
    detector.load_state_dict(load_file(WEIGHTS_PATH))
    return detector.eval()


def letterbox_image(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[float, float, int, int]]:
    """Resize the image into 192x192 (Pillow's bilinear, antialiased) and fill the rest on both sides.

    Returns:
        uint8 of shape (192, 192, 3), RGB; and scale x, scale y, left, top: x in these pixels = x * scale x + left.
    """
    import numpy as np
    from PIL import Image

    ratio = min(SIDE / image.width, SIDE / image.height)
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    canvas = Image.new("RGB", (SIDE, SIDE), FILL)
    canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas), (width / image.width, height / image.height, left, top)


def _make_network() -> torch.nn.Module:
    """Return convolutions from images to 14 channels a cell: four distances in strides before softplus, ten logits."""
    import torch
    from torch import nn

    class Sum(nn.Module):
        """What `near` and `far` make of the same map, added."""

        def __init__(self, near: nn.Module, far: nn.Module) -> None:
            super().__init__()
            self.near, self.far = near, far

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor = self.near(features) + self.far(features)
            return total

    def convolve(channels: int, wider: int, *, size: int = 3, stride: int = 1) -> nn.Module:
        convolution = nn.Conv2d(channels, wider, size, stride=stride, padding=size // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(wider), nn.ReLU(inplace=True))

    def enlarge() -> nn.Module:
        return nn.Upsample(scale_factor=2, mode="nearest")

    at_32 = [
        convolve(_AT_16, _AT_32, stride=2),
        convolve(_AT_32, _AT_32),
        convolve(_AT_32, _MAP, size=1),
        enlarge(),
    ]
    at_16 = [
        convolve(_AT_8, _AT_16, stride=2),
        convolve(_AT_16, _AT_16),
        Sum(convolve(_AT_16, _MAP, size=1), nn.Sequential(*at_32)),
        enlarge(),
    ]
    last = nn.Conv2d(_MAP, 4 + len(LABELS), 1)
    nn.init.normal_(last.weight, std=0.01)
    # boxes of 36 pixels, scores of .02: what a cell says that knows nothing
    assert last.bias is not None
    last.bias.data = torch.tensor([2.1] * 4 + [-4.0] * len(LABELS))
    return nn.Sequential(
        convolve(3, _STEM[0], stride=2),
        convolve(_STEM[0], _STEM[1], stride=2),
        convolve(_STEM[1], _STEM[1]),
        convolve(_STEM[1], _AT_8, stride=2),
        convolve(_AT_8, _AT_8),
        Sum(convolve(_AT_8, _MAP, size=1), nn.Sequential(*at_16)),
        convolve(_MAP, _MAP),
        last,
    )
