"""The demo network and the preprocessing it was trained with.

Seven convolutions with batch normalisation, half a million parameters: small enough to be carried by the project,
large enough that precision and preprocessing mistakes show in its outputs.
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

RESIZE = 112
CROP = 96
INTERPOLATION = "bilinear"
# ImageNet's, for pixels scaled to 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WEIGHTS_PATH = Path(__file__).with_name("weights.safetensors")

# Output channels and stride of each 3x3 convolution: 96 pixels become 6
_CONVOLUTIONS = ((24, 2), (48, 2), (48, 1), (96, 2), (96, 1), (160, 2), (160, 1))


def make_network() -> torch.nn.Module:
    """Build the network with fresh weights, in training mode.

    Returns:
        A module from normalised FP32 (N, 3, 96, 96) to FP32 logits (N, 10), in the order of `LABELS`.
    """
    from torch import nn

    layers: list[nn.Module] = []
    channels = 3
    for wider, stride in _CONVOLUTIONS:
        layers += [
            nn.Conv2d(channels, wider, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
        ]
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(LABELS)))


def load_network() -> torch.nn.Module:
    """Build the network with the weights that lie beside this file, in evaluation mode on the CPU."""
    from safetensors.torch import load_file

    network = make_network()
    network.load_state_dict(load_file(WEIGHTS_PATH))
    return network.eval()


def crop_image(image: Image.Image) -> NDArray[np.uint8]:
    """Resize the shorter edge to 112 (Pillow's bilinear, antialiased) and cut the centre 96x96.

    Pixel for pixel torchvision's `Resize(112)` and `CenterCrop(96)` on a Pillow image.

    Returns:
        uint8 of shape (96, 96, 3), RGB.
    """
    import numpy as np
    from PIL import Image

    shorter = min(image.size)
    width, height = (RESIZE * edge // shorter for edge in image.size)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + CROP, top + CROP)))


def normalise_pixels(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Turn uint8 (N, 96, 96, 3) into the network's input: FP32 (N, 3, 96, 96), (pixel / 255 - mean) / std."""
    import numpy as np
    import torch

    scaled = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)) / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
