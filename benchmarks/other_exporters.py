"""Make the small ONNX files of tests/data/exporters: a Keras and a Paddle classifier as their own exporters write them.

    python -m benchmarks.other_exporters tests/data/exporters     # installs 2.5 GB of packages below --environments

Each exporter gets a virtual environment of its own, since its packages go together with none of ours, and this file is
run again in there with the exporter's name. Weights are random and seeded.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

PACKAGES = {
    "tf2onnx": ("tf2onnx==1.17.0", "tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy==2.4.6"),
    "paddle2onnx": (
        "paddle2onnx==2.1.0",
        "paddlepaddle==3.3.1",
        "numpy==2.4.6",
        "packaging==26.4",
        "onnxruntime==1.32.0",
        "onnx-graphsurgeon==0.6.1",
        "sympy==1.14.0",
    ),
}
_CLASSES = 4
# The second: what paddle2onnx folds constants with would install packages by itself.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}


def export_keras(path: Path) -> None:
    """Export a Keras classifier: NHWC pixels, a free batch, height and width, softmax at the end."""
    keras = importlib.import_module("keras")

    keras.utils.set_random_seed(3)
    layers = keras.layers
    spread = keras.initializers.RandomNormal(stddev=0.5)
    model = keras.Sequential(
        [
            keras.Input((None, None, 3), name="pixels"),
            layers.Conv2D(8, 5, strides=2, padding="same", kernel_initializer=spread),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, padding="same", activation="relu", depthwise_initializer=spread),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Conv2D(_CLASSES, 1, kernel_initializer=spread),
            layers.Flatten(),
            layers.Softmax(),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", folder, "--output", str(path)]
        subprocess.run(command, check=True)


def export_paddle(path: Path) -> None:
    """Export a Paddle classifier: a batch of 1 and a size that are fixed, logits at the end."""
    paddle = importlib.import_module("paddle")

    paddle.seed(3)
    nn: Any = paddle.nn

    class Small(nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2D(3, 8, 5, stride=2, padding=2), nn.BatchNorm2D(8), nn.Hardswish(), nn.AdaptiveAvgPool2D(1)
            )
            self.last = nn.Linear(8, _CLASSES, weight_attr=nn.initializer.Normal(std=3.0))

        def forward(self, image: Any) -> Any:
            return self.last(self.features(image).reshape([image.shape[0], -1]))

    model = Small()
    model.eval()
    spec = paddle.static.InputSpec([1, 3, 48, 48], "float32", "image")
    paddle.onnx.export(model, str(path.with_suffix("")), input_spec=[spec], opset_version=11)


EXPORTERS = {"tf2onnx": ("keras.onnx", export_keras), "paddle2onnx": ("paddle.onnx", export_paddle)}


def make_environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Return the Python of an environment with these packages, which is made where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def main() -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the ONNX files go")
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "trtgen-exporters")
    parser.add_argument("--here", choices=EXPORTERS, help="run this exporter in this environment")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.here:
        name, export = EXPORTERS[given.here]
        export(given.folder / name)
        return
    for exporter, packages in PACKAGES.items():
        python = make_environment(given.environments / exporter, packages)
        command = [python, Path(__file__), given.folder.absolute(), "--here", exporter]
        subprocess.run(command, check=True, env={**os.environ, **_ENVIRONMENT})
        print(given.folder / EXPORTERS[exporter][0])


if __name__ == "__main__":
    main()
