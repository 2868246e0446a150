"""Quantise a model with NVIDIA's ModelOpt, in an environment of its own: it pins another onnxruntime and onnx.

    python -m benchmarks.modelopt --mode int8 --dtype fp32 --dq-only      # the environment takes 6.5 GB
    trtgen build-repo --spec modelopt-run/shapes-int8-fp32.yaml

Writes MODEL.onnx in FP32, the calibration images as the network takes them, MODEL-MODE-DTYPE.onnx, which ModelOpt
makes of both, and a spec of it. `shapes` are the first five convolutions of the demo model with a linear layer that is
fitted to them by least squares: small enough to be kept in tests/data. Other models are those of torchvision's
registry, with random weights, and `demo`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from generator.demo.draw import LABELS, draw_set
from generator.images.training_pixels import prepare
from generator.sources import load_network
from generator.spec.file import make_spec

if TYPE_CHECKING:
    import torch

    from generator.spec.recipe import Recipe

PACKAGE = "nvidia-modelopt[onnx]==0.47.0"
_BLOCKS, _FITTED_ON, _FIT_SEED = 5, 2000, 41
_CALIBRATED_ON, _CALIBRATION_SEED = 256, 43


def make_environment(folder: Path) -> Path:
    """Return the Python of the environment that has ModelOpt; make it where it is not there."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    return python


def load_model(name: str) -> tuple[torch.nn.Module, Recipe]:
    """Return the module, which takes normalised FP32 NCHW, and its recipe."""
    model = "demo" if name == "shapes" else name
    network = load_network(make_spec([model], **({} if model == "demo" else {"weights": "random"}))[0])
    assert network.module is not None, "only ONNX files have none"
    return (_shrink(network.module, network.recipe) if name == "shapes" else network.module), network.recipe


def _shrink(demo: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    import torch
    from torch import nn

    images = draw_set(_FITTED_ON, seed=_FIT_SEED)
    inputs = recipe.normalise(prepare(recipe, [image.jpeg for image in images]))
    features = nn.Sequential(*list(demo.children())[: 3 * _BLOCKS], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.inference_mode():
        found = torch.cat([features(part) for part in torch.split(torch.from_numpy(inputs), 100)])
        wanted = torch.full((len(images), len(LABELS)), -4.0)
        wanted[range(len(images)), [image.label for image in images]] = 4.0
        fitted = torch.linalg.lstsq(torch.cat([found, torch.ones(len(images), 1)], 1), wanted).solution
        last = nn.Linear(found.shape[1], len(LABELS))
        last.weight.copy_(fitted[:-1].T)
        last.bias.copy_(fitted[-1])
        right = (last(found).argmax(1) == wanted.argmax(1)).float().mean()
    print(f"shapes: {right:.1%} right on the {len(images)} drawn images that it was fitted to")
    return nn.Sequential(*features, last).eval()


def export(name: str, work: Path) -> tuple[Path, Path, Recipe]:
    """Write the FP32 graph and the calibration images; return their paths and the recipe."""
    import numpy as np
    import torch

    module, recipe = load_model(name)
    graph, images = work / f"{name}.onnx", work / f"{name}-calibration.npz"
    torch.onnx.export(
        module,
        (torch.zeros(2, 3, *recipe.crop),),
        graph,
        dynamo=True,
        external_data=False,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        opset_version=18,
        verbose=False,
    )
    drawn = [image.jpeg for image in draw_set(_CALIBRATED_ON, seed=_CALIBRATION_SEED)]
    np.savez(images, image=recipe.normalise(prepare(recipe, drawn)))
    return graph, images, recipe


def quantize(python: Path, graph: Path, images: Path, *, mode: str, dtype: str, dq_only: bool) -> Path:
    """Let ModelOpt quantise the graph: `mode` int8 or fp8, the rest in `dtype`; `dq_only` stores weights so."""
    made = graph.with_name(f"{graph.stem}-{mode}-{dtype}.onnx")
    command = [
        *(str(python), "-m", "modelopt.onnx.quantization", "--onnx_path", str(graph), "--output_path", str(made)),
        *("--quantize_mode", mode, "--high_precision_dtype", dtype, *(["--dq_only"] if dq_only else [])),
        *("--calibration_data_path", str(images), "--calibration_method", "max", "--calibration_eps", "cpu"),
    ]
    print("$", *command, flush=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    print(f"{made}: {made.stat().st_size / 1e3:.0f} kB in {time.monotonic() - start:.0f} s")
    return made


def write_spec(made: Path, recipe: Recipe) -> None:
    """Write the spec of the quantised graph beside it."""
    model = {"name": made.stem, "onnx": made.name, "labels": "index", "recipe": recipe.model_dump(mode="json")}
    made.with_suffix(".yaml").write_text(yaml.safe_dump({"models": [model]}))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("modelopt-run"))
    parser.add_argument("--environment", type=Path, help="where ModelOpt is, or goes to; default: WORK/environment")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--mode", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16")
    parser.add_argument("--dq-only", action="store_true", help="store weights quantised: a quarter of the file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    python = make_environment(given.environment or given.work / "environment")
    graph, images, recipe = export(given.model, given.work)
    made = quantize(python, graph, images, mode=given.mode, dtype=given.dtype, dq_only=given.dq_only)
    write_spec(made, recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
