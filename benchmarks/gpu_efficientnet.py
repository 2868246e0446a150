"""EfficientNet-B0 in FP16: what makes its plan faster than PyTorch's, one change at a time and in one run.

    python -m benchmarks.gpu_efficientnet --work gpu-efficientnet

Exports the network, writes its graph otherwise and compares the answers (these two steps need no GPU), builds a plan of
each variant, and measures all of them beside PyTorch (FP16, channels-last, a CUDA graph) in turns with `trtgen bench`.
A variant is one change or several: `scaled-first+one-size+level-5`. A build takes some 7 minutes at level 3 and more
above it, less with the timing cache that all share; plans that are there are not built again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.efficientnet_graphs import GRAPHS, find_depthwise
from benchmarks.gpu import Run, open_run
from benchmarks.gpu_targets import PLAN, TORCH
from generator.graph.model import open_onnx, read_onnx
from generator.graph.precision import convert_graph
from generator.images.reference import load_reference
from generator.spec.plan import BatchProfile, PlanOptions

NAME, BATCH = "efficientnet_b0", 64
PROFILE = BatchProfile(min=1, opt=BATCH, max=128)
ONE_SIZE = BatchProfile(min=BATCH, opt=BATCH, max=BATCH)
AS_IT_IS = "as-it-is"
# What is said to the builder; the others are graphs.
BUILDER = ("level-2", "level-4", "level-5", "one-size", "depthwise-fp32")
VARIANTS = (AS_IT_IS, *GRAPHS, *BUILDER, "scaled-first+one-size")
_LEAST_COSINE = 0.99999  # of a graph that is written otherwise, in FP32


def folder_of(run: Run, variant: str) -> Path:
    """Return where a variant's graph and plan are."""
    return run.work / "variants" / variant


def export(run: Run, target: str) -> None:
    """Export the network in FP32, with random weights."""
    folder = run.work / "exported"
    if not (folder / "model.onnx").is_file():
        run.trtgen(
            "export", NAME, "--weights", "random", "--target", target, "--precision", "fp32",
            "--max-batch", str(PROFILE.max), "--output", str(folder), torch=True,
        )  # fmt: skip


def write_graphs(run: Run, target: str, variants: list[str]) -> None:
    """Write each variant's graph, and compare its answers with those of the network as it was exported."""
    source = run.work / "exported" / "model.onnx"
    pixels = load_reference(source.with_name("reference.npz")).pixels[:4]
    expected = answer(source, pixels)
    for variant in variants:
        model = onnx.load(source)
        del model.graph.value_info[:]  # shapes as they were
        for part in variant.split("+"):
            model = GRAPHS[part](model) if part in GRAPHS else model
        folder = folder_of(run, variant)
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / "fp32.onnx"
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, own)
        found = answer(own, pixels)
        cosine = float(min((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
                           for one, other in zip(expected, found, strict=True)))  # fmt: skip
        print(f"{variant}: {len(model.graph.node)} nodes, worst cosine {cosine:.7f}", flush=True)
        if cosine < _LEAST_COSINE:
            raise SystemExit(f"the graph of {variant} answers otherwise")
        keep = find_keep(model, variant)
        convert_graph(own, folder / "model.onnx", precision="fp16", target=target, keep=keep, calibration=pixels)


def answer(path: Path, pixels: Any) -> Any:
    """Return the centred log-probabilities of a graph."""
    logits = np.log(next(iter(open_onnx(path)(pixels).values())))
    return logits - logits.mean(axis=1, keepdims=True)


def find_keep(model: onnx.ModelProto, variant: str) -> tuple[str, ...]:
    """Return the names of the nodes that a variant holds in FP32."""
    return tuple(node.name for node in find_depthwise(model)) if "depthwise-fp32" in variant.split("+") else ()


def build(run: Run, variants: list[str]) -> None:
    """Build a plan of each variant, unless it is there; one that fails is said, and the others go on."""
    from generator.errors import TrtgenError
    from generator.plan.build import BuildRequest, build_plan
    from generator.plan.profiles import make_profiles

    for variant in variants:
        folder, parts = folder_of(run, variant), variant.split("+")
        if (folder / "model.plan").is_file():
            continue
        graph = read_onnx(folder / "model.onnx")
        profile = ONE_SIZE if "one-size" in parts else PROFILE
        level = next((int(part[-1]) for part in parts if part.startswith("level-")), None)
        request = BuildRequest(
            onnx=graph, precision="fp16", profiles=make_profiles(graph, [profile]), max_batch_size=None,
            options=PlanOptions(optimization_level=level), command=f"benchmarks.gpu_efficientnet --variants {variant}",
            keep=find_keep(onnx.load(folder / "fp32.onnx", load_external_data=False), variant),
        )  # fmt: skip
        started = time.monotonic()
        try:
            build_plan(request, folder / "model.plan")
        except TrtgenError as error:
            run.failures.append(f"{variant}: {error}")
        print(f"{variant}: built in {time.monotonic() - started:.0f} s", flush=True)


def bench(run: Run, variants: list[str]) -> None:
    """Measure all plans and PyTorch in turns, and print a table."""
    built = [variant for variant in variants if (folder_of(run, variant) / "model.plan").is_file()]
    if not built:
        raise SystemExit("no variant has a plan: run with --steps build, on a host with a GPU")
    output = run.work / "bench"
    run.trtgen(
        "bench", str(run.work / "exported" / "model.onnx"), "--model", NAME, "--torch-python", run.torch_python,
        *(text for one in built for text in ("--plan", str(folder_of(run, one) / "model.plan"))),
        "--batches", str(BATCH), "--rounds", "5", "--seconds", "0.3", "--skip", "torch-fp32", "--output", str(output),
        check=False,
    )  # fmt: skip
    path = output / "bench.json"
    if not path.is_file():
        return
    figures = {one["runner"]: one for one in json.loads(path.read_text())["figures"] if not one["failure"]}
    print(make_table(figures, built))
    run.save("efficientnet", {"variants": built, "figures": figures})


def make_table(figures: dict[str, dict[str, Any]], built: list[str]) -> str:
    """Return a line for each variant: its CUDA graph against PyTorch's and against the plan as it is."""
    torch = figures.get(TORCH, {}).get("images_per_s")
    first = figures.get(PLAN, {}).get("images_per_s") if built[0] == AS_IT_IS else None
    lines = [f"{'':40}{'images/s':>12}{'/ PyTorch':>12}{'/ as it is':>12}{'images/J':>12}"]
    for number, variant in enumerate(built, 1):
        # as `trtgen bench` calls plans of one precision
        name = PLAN if number == 1 else f"{PLAN.removesuffix('-graph')}#{number}-graph"
        own = figures.get(name)
        if own is None:
            lines.append(f"{variant:40}{'failed':>12}")
            continue
        rate, joules = own["images_per_s"], own.get("images_per_joule")
        cells = [f"{rate:,.0f}", *(f"{rate / one:.3f}" if one else "-" for one in (torch, first))]
        cells.append(f"{joules:.1f}" if joules else "-")
        lines.append(f"{variant:40}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join([*lines, f"{'PyTorch':40}{torch:>12,.0f}" if torch else "PyTorch was not measured"])


def main() -> None:
    """Run the steps that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-efficientnet"))
    parser.add_argument("--torch-python", default=sys.executable, help="as for benchmarks.gpu")
    parser.add_argument("--torch-path", default="", help="as for benchmarks.gpu")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help=f"of {', '.join((*GRAPHS, *BUILDER))}")
    parser.add_argument("--target", default="", help="of export and graphs, on a host without TensorRT")
    steps = ("export", "graphs", "build", "bench")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    arguments = parser.parse_args()
    known = {AS_IT_IS, *GRAPHS, *BUILDER}
    if unknown := sorted({part for variant in arguments.variants for part in variant.split("+")} - known):
        parser.error(f"{', '.join(unknown)}: known are {', '.join(sorted(known))}")
    if arguments.target:
        run, target = Run(arguments.work.resolve(), arguments.torch_python, arguments.torch_path), arguments.target
        run.work.mkdir(parents=True, exist_ok=True)
    else:
        run, target = open_run(arguments)
    for step in arguments.steps:
        print(f"## {step}", flush=True)
        if step == "export":
            export(run, target)
        elif step == "graphs":
            write_graphs(run, target, arguments.variants)
        elif step == "build":
            build(run, arguments.variants)
        else:
            bench(run, arguments.variants)
    if run.failures:
        raise SystemExit("\n".join(f"failed: {failure}" for failure in run.failures))


if __name__ == "__main__":
    main()
