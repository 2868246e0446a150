"""Build every classification model of torchvision's registry once, and some of timm, with random weights.

    python -m benchmarks.registry --resume      # about three hours on two cores
    python -m benchmarks.registry --timm        # twelve models of timm, of different families: about 15 minutes
    python -m benchmarks.registry --table       # what the results say so far

Each model is built, proved and thrown away by a `trtgen build-repo` of its own, the small ones first, with a limit of
time and memory. Its result is appended to a file of JSON lines as soon as it is there, so that a run that was stopped
goes on with `--resume`; the table is made from that file, in which the last line of a model counts.

Memory is the sum of PSS (proportional set size) of the builder and the gate's tritonserver.

Exit code 1: a model ended with a traceback, or was refused.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, measure_pss
from generator.demo.draw import draw_set
from generator.images.sets import photographs

_GIB, _MB = 2**30, 1_000_000
_DRAWN, _DRAWN_SEED = 6, 11  # eight images with the photographs: enough to see that a model fails
# Above this, batches of 2: what one image needs in memory and time is seen with these, too.
_LARGE_PARAMETERS = 100_000_000
# Small ones of different families; the last two for their size and because they squash.
TIMM = {
    "timm/resnet10t.c3_in1k": "ResNet",
    "timm/convnext_atto.d2_in1k": "ConvNeXt",
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": "ViT",
    "timm/swin_tiny_patch4_window7_224.ms_in1k": "Swin",
    "timm/tf_efficientnetv2_b0.in1k": "EfficientNetV2",
    "timm/mobilenetv4_conv_small.e2400_r224_in1k": "MobileNetV4",
    "timm/regnetx_002.pycls_in1k": "RegNet",
    "timm/maxvit_rmlp_pico_rw_256.sw_in1k": "MaxViT",
    "timm/deit3_small_patch16_224.fb_in1k": "DeiT III",
    "timm/eca_nfnet_l0.ra2_in1k": "NFNet, without BatchNorm",
    "timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k": "ViT of 384 pixels",
    "timm/tf_efficientnetv2_b3.in21k_ft_in1k": "EfficientNetV2, squashes",
}


def list_models() -> list[str]:
    """Return the names of the registry, those with the fewest operations first."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return sorted(names, key=lambda name: float(weights_of(name).meta["_ops"]))


def weights_of(name: str) -> Any:
    """Return the default weights of a model, whose `meta` and transforms describe it without a download."""
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT


def describe(name: str) -> tuple[int, list[int]]:
    """Return the number of parameters and the input size of a model, without a download."""
    if name in TIMM:
        import timm

        from generator.sources import describe_source
        from generator.spec.file import make_spec

        recipe, _ = describe_source(make_spec([name])[0])
        module = timm.create_model(name.removeprefix("timm/"), pretrained=False)
        return sum(tensor.numel() for tensor in module.parameters()), list(recipe.crop)
    weights = weights_of(name)
    return int(weights.meta["num_params"]), list(weights.transforms().crop_size)


def write_images(folder: Path, *, drawn: int) -> None:
    """Write the images that every model is compared on: drawn ones and two photographs."""
    folder.mkdir()
    for image in draw_set(drawn, seed=_DRAWN_SEED):
        (folder / f"{image.name}.jpg").write_bytes(image.jpeg)
    photos = photographs()
    for name, data in zip(photos.names, photos.files, strict=True):
        (folder / name).write_bytes(data)


def build(name: str, folder: Path, *, images: Path, limit_s: float, limit_bytes: int) -> dict[str, Any]:
    """Build one model below `folder` and return what came of it, one line of the results."""
    parameters, image_size = describe(name)
    max_batch = 2 if parameters > _LARGE_PARAMETERS else 8
    repository = folder / "model_repository"
    command = [sys.executable, "-m", "generator", "build-repo", name, "--weights", "random", "--target", "onnxruntime"]
    command += ["--max-batch", str(max_batch), "--images", str(images), "--require", "all", "-r", str(repository)]
    log = folder / "log"
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        started = time.monotonic()
        stopped, peak = wait(child, limit_s=limit_s, limit_bytes=limit_bytes)
    text = log.read_text(encoding="utf-8", errors="replace")
    result: dict[str, Any] = {
        "model": name,
        "parameters": parameters,
        "image_size": image_size,
        "max_batch": max_batch,
        "seconds": round(time.monotonic() - started, 1),
        "peak_bytes": peak,
    }
    if child.returncode == 0 and not stopped:
        served = name.removeprefix("timm/")
        record = json.loads((repository / served / "trtgen.json").read_text(encoding="utf-8"))
        files = (repository / f"{served}_classifier").glob("*/model.onnx*")
        proof = {"worst_cosine": min(entry["worst_cosine"] for entry in record["proof"] if entry.get("worst_cosine"))}
        size = sum(file.stat().st_size for file in files)
        return {**result, "result": "passes", "nodes": record["graph"]["nodes"], "onnx_bytes": size, **proof}
    if stopped:
        return {**result, "result": "not possible here", "why": stopped}
    found = "traceback" if "Traceback (most recent call last)" in text or child.returncode != 1 else "refused"
    lines = text.strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-1:]
    return {**result, "result": found, "why": " ".join(errors) or f"exit code {child.returncode}"}


def wait(child: subprocess.Popen[bytes], *, limit_s: float, limit_bytes: int) -> tuple[str, int]:
    """Wait for the builder; return why it was stopped, if it was, and the most memory that was seen."""
    peak, started = 0, time.monotonic()
    while child.poll() is None:
        try:
            peak = max(peak, measure_pss(child.pid))
        except (OSError, ValueError):
            time.sleep(0.1)  # a process ended while it was looked at
            continue
        stopped = f"more than {limit_s / 60:.0f} minutes" if time.monotonic() - started > limit_s else ""
        stopped = f"more than {limit_bytes / _GIB:.0f} GiB of memory" if peak > limit_bytes else stopped
        if stopped:
            os.killpg(child.pid, signal.SIGKILL)  # its tritonserver is ended by the supervisor
            child.wait()
            return stopped, peak
        time.sleep(1)
    return "", peak


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of each model."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["model"]: entry for entry in map(json.loads, lines)}


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as the table that docs/registry.md keeps, with a row for each model of the registry."""
    lines = [
        "| model | million parameters | input | result | nodes | ONNX file (MB) | most memory (GiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(list_models()):
        if name not in results:
            lines.append(f"| {name} | {weights_of(name).meta['num_params'] / 1e6:.1f} | | not tried | | | |")
            continue
        entry = results[name]
        result = entry["result"] if "why" not in entry else f"{entry['result']}: {entry['why']}"
        size = f"{entry['onnx_bytes'] / _MB:.0f}" if "onnx_bytes" in entry else ""
        lines.append(
            f"| {name} | {entry['parameters'] / 1e6:.1f} | {entry['image_size'][0]} | {result} | "
            f"{entry.get('nodes', '')} | {size} | {entry['peak_bytes'] / _GIB:.1f} |"
        )
    return "\n".join(lines)


def format_timm_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results of timm's models as the second table of docs/registry.md."""
    lines = [
        "| model | family | million parameters | input | result | worst cosine | seconds | nodes | ONNX file (MB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, family in TIMM.items():
        entry = results.get(name)
        if entry is None:
            lines.append(f"| {name} | {family} | | | not tried | | | | |")
            continue
        result = entry["result"] if "why" not in entry else f"{entry['result']}: {entry['why']}"
        size = f"{entry['onnx_bytes'] / _MB:.0f}" if "onnx_bytes" in entry else ""
        cosine = f"{entry['worst_cosine']:.6f}" if "worst_cosine" in entry else ""
        lines.append(
            f"| {name} | {family} | {entry['parameters'] / 1e6:.1f} | {entry['image_size'][0]} | {result} | "
            f"{cosine} | {entry['seconds']:.0f} | {entry.get('nodes', '')} | {size} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Build what is asked for and print the table; exit 1 where a model was refused or met a bug."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".jsonl"), metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models, default: the whole registry")
    parser.add_argument("--timm", action="store_true", help="the models of timm, default: torchvision's registry")
    parser.add_argument("--resume", action="store_true", help="leave out the models that FILE has results of")
    parser.add_argument("--table", action="store_true", help="print the table of FILE and build nothing")
    parser.add_argument("--limit-minutes", type=float, default=20, help="per model")
    parser.add_argument("--limit-gib", type=float, default=16, help="per model")
    options = parser.parse_args()
    done = read_results(options.results) if options.resume else {}
    names = [
        name
        for name in (TIMM if options.timm else list_models())
        if name in (options.only or [name]) and name not in done
    ]
    for name in [] if options.table else names:
        with tempfile.TemporaryDirectory(prefix="trtgen-registry-") as folder:
            images = Path(folder) / "images"
            write_images(images, drawn=_DRAWN)
            limits = {"limit_s": options.limit_minutes * 60, "limit_bytes": int(options.limit_gib * _GIB)}
            entry = build(name, Path(folder), images=images, **limits)
        with options.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(f"{name}: {entry['result']} {entry.get('why', '')} {entry['seconds']} s", file=sys.stderr, flush=True)
    results = read_results(options.results)
    print(f"{describe_machine()}\n\n{format_table(results)}\n\n{format_timm_table(results)}")
    return 1 if any(entry["result"] in ("refused", "traceback") for entry in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
