"""Build what users bring besides names: folders of transformers, ONNX files as found, a factory, quantised files.

    python -m benchmarks.other_sources > table.md

Each is made as in the tests (random weights, tests/test_huggingface.py and test_repair.py), then built, proved and
thrown away by a `trtgen build-repo --require all` of its own in onnxruntime. Exit code 1: one was refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.machine import describe_machine
from generator.demo.draw import draw_set
from generator.images.training_pixels import prepare
from generator.sources.huggingface import load
from generator.spec.file import make_spec
from tests.test_as_is import MODELOPT
from tests.test_as_is import RECIPE as SHAPES
from tests.test_huggingface import save_convnext, save_resnet, save_vit
from tests.test_repair import FILES

if TYPE_CHECKING:
    from collections.abc import Iterator

_FACTORY = """
import torch

def make():
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 16, 5, stride=4)
    pooled = torch.nn.Sequential(convolution, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    return {
        "module": torch.nn.Sequential(pooled, torch.nn.Linear(64, 3)),
        "recipe": {"base": "imagenet", "crop": 64, "resize": 72},
        "labels": ["ant", "bee", "cat"],
    }
"""


def make_sources(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what it is, the command that one would type, and the fields of its spec."""
    for name, save in (("vit", save_vit), ("convnext", save_convnext), ("resnet", save_resnet)):
        save(folder / name)
        spread_answers(folder / name)
        yield f"Hugging Face folder, {name}", f"build-repo ./{name}/", {"huggingface": str(folder / name)}
    (folder / "net.py").write_text(_FACTORY)
    yield "factory", "build-repo mine --factory net.py:make", {"factory": f"{folder / 'net.py'}:make"}
    for name, (make, recipe, repairs) in FILES.items():
        place = folder / f"onnx_{name}"
        place.mkdir()
        fields = {"onnx": str(make(place / f"{name}.onnx")), "recipe": recipe, "labels": "index"}
        yield f"ONNX file: {'; '.join(repairs)}", f"build-repo {name}.onnx", fields
    for path in sorted(MODELOPT.glob("*.onnx")):
        yield "ModelOpt's result", f"build-repo {path.name}", {"onnx": str(path), "recipe": SHAPES, "labels": "index"}


def spread_answers(folder: Path) -> None:
    """Fit the last layer to images, as trtgen does with its own random weights: untrained, all are answered alike."""
    import torch
    import transformers

    network = load(make_spec([str(folder)])[0])
    pixels = prepare(network.recipe, [image.jpeg for image in draw_set(16, seed=7)], network.pixels)
    (scores,) = network.run(pixels).values()
    module = transformers.AutoModelForImageClassification.from_pretrained(folder)
    *_, last = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    scale = 2 / float((scores - scores.mean(axis=0)).std())
    with torch.no_grad():
        last.bias.sub_(torch.from_numpy(scores.mean(axis=0))).mul_(scale)
        last.weight.mul_(scale)
    module.save_pretrained(folder)


def build(folder: Path, fields: dict[str, Any]) -> str:
    """Build one and return the last cells of its row."""
    spec = folder / "models.yaml"
    model = {"name": "one", "target": "onnxruntime", "batch": {"max": 5}, **fields}
    spec.write_text(yaml.safe_dump({"models": [json.loads(json.dumps(model))]}))
    command = [sys.executable, "-m", "generator", "build-repo", "--spec", str(spec), "--require", "all"]
    started = time.monotonic()
    done = subprocess.run([*command, "-r", str(folder / "repository")], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or done.stderr.splitlines()
        return f"{seconds:.0f} | refused: {errors[-1]} |"
    record = json.loads((folder / "repository/one/trtgen.json").read_text())
    proved = [entry for entry in record["proof"] if entry["status"] == "proved"]
    cosine = min(entry["worst_cosine"] for entry in proved if entry.get("worst_cosine"))
    pixels = next(entry["measured"] for entry in proved if entry["stage"] == "served pixels")
    return f"{seconds:.0f} | {len(proved)} stages proved, pixels {pixels}, worst cosine {cosine:.6f} |"


def main() -> int:
    """Print the table; exit 1 where one was refused."""
    print(f"{describe_machine()}\n\n| what | `trtgen` | seconds | gate |\n|---|---|---|---|")
    refused = 0
    with tempfile.TemporaryDirectory(prefix="trtgen-sources-") as place:
        for index, (what, command, fields) in enumerate(make_sources(Path(place))):
            folder = Path(place) / str(index)
            folder.mkdir()
            row = build(folder, fields)
            refused += "refused" in row
            print(f"| {what} | `{command}` | {row}", flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
