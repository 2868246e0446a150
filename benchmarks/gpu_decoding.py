"""JPEG in, answer out, decoded on the GPU: fused models behind tritonserver, from one command.

    python -m benchmarks.gpu_decoding --work gpu-run

Exports ResNet-50, the demo model and the demo detector, builds and proves each with `decode: gpu`, ResNet-50 with
`decode: cpu`, too. Measures ResNet-50 with requests of 8 images of 500x375 and of one, by the number of processes, of
images in a piece and of decoders in a process, against the bare chain of decode, resize and crop (benchmarks.gpu_images
has it) before and after; then the latency at half of the top load against that of a single request, other sizes of
images, and the ensemble that decodes on the CPU. A long load's every answer is compared, with memory of host and GPU.
Steps can be run one after another, as in benchmarks.gpu.
The processes share the GPU through NVIDIA's Multi-Process Service, as `trtgen serve` has it; with `--no-mps` they take
turns on it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks import gpu_load
from benchmarks.gpu import Run, open_run
from benchmarks.gpu_images import SIZES, make_files, measure_fastest
from benchmarks.gpu_serving import perf
from benchmarks.gpu_targets import Target, describe
from generator.plan.local import open_engine
from generator.server.embedded import EmbeddedServer
from generator.spec.model import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

FUSED, ENSEMBLE = "resnet50_gpu", gpu_load.MODEL
DEFAULT = "resnet50"  # as `trtgen build-repo resnet50 --decode gpu` builds it
# name -> (what is exported, its batch profiles, further fields of the spec); without profiles all is the default
_RESNET = ("resnet50", "--weights", "random")
_PROFILES = ((1, 1, 8), (1, 64, 128))
MODELS: dict[str, tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], dict[str, Any]]] = {
    DEFAULT: (_RESNET, (), {"decode": "gpu"}),
    FUSED: (_RESNET, _PROFILES, {"decode": "gpu"}),
    ENSEMBLE: (_RESNET, _PROFILES, {"decode": "cpu"}),
    "demo_gpu": (("demo",), ((1, 8, 32),), {"decode": "gpu"}),
    "detector_gpu": (("demo-detector",), ((1, 1, 8), (1, 32, 32)), {"decode": "gpu", "task": "detection"}),
}
PROCESSES = "processes"  # where the measurements of the ways are kept
_IN_FLIGHT = 64
EIGHTS = ("--batch-size", "8", "--concurrency", str(_IN_FLIGHT), "--measurement-requests", "1500")
SINGLES = ("--concurrency", "128", "--measurement-requests", "6000")


def find_export(run: Run, name: str) -> Path:
    """Return where a model's export is; an export has its sizes of batches."""
    (source, profiles, _) = MODELS[name]
    return run.work / "exported" / (source[0] if profiles else f"{source[0]}-default")


def export(run: Run, target: str, only: list[str]) -> None:
    """Export in FP16, one after another, what is not there."""
    for name in only:
        (source, profiles, _), folder = MODELS[name], find_export(run, name)
        if not (folder / "model.onnx").is_file():
            run.trtgen(
                "export", *source, "--target", target, "--precision", "fp16",
                *(("--max-batch", str(max(one[2] for one in profiles))) if profiles else ()), "--output", str(folder),
                torch=True,
            )  # fmt: skip


def build(run: Run, repository: Path, only: list[str]) -> None:
    """Build and prove; every failure is kept and shown, and the others go on."""
    for name in only:
        (_, profiles, more) = MODELS[name]
        model = {
            "name": name,
            "source": "export",
            "onnx": str(find_export(run, name) / "model.onnx"),
            **more,
        }
        if profiles:
            model["batch"] = {"max": max(profile[2] for profile in profiles)}
            model["plan"] = {"profiles": [{"min": low, "opt": opt, "max": high} for low, opt, high in profiles]}
        spec = run.work / f"{name}.yaml"
        spec.write_text(yaml.safe_dump({"models": [model]}))
        run.trtgen("build-repo", "--spec", str(spec), "--repository", str(repository), check=False)
        record = repository / name / "trtgen.json"
        if record.is_file():
            run.save(f"built {name}", {"proof": json.loads(record.read_text())["proof"]})


def write_images(work: Path, size: str) -> Path:
    """Return a folder with files of this size."""
    folder = work / f"jpegs-{size}"
    folder.mkdir(exist_ok=True)
    for index, data in enumerate(make_files(size, len(SIZES[size]) * 4)):
        (folder / f"{index}.jpg").write_bytes(data)
    return folder


def measure_bare(size: str) -> float:
    """Return the images per second of the bare chain, the best of its numbers of processes and batches."""
    rows = list(measure_fastest(size, seconds=1.5))
    print("\n".join(map(json.dumps, rows)), flush=True)
    return float(max(row["images_per_second"] for row in rows))


def top(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what matters of the fastest measurement; nothing where none settled."""
    if not rows:
        return {"images_per_s": 0.0}
    one = max(rows, key=lambda row: float(row["infer_per_s"]))
    return {
        "images_per_s": one["infer_per_s"], "p50_ms": one["p50_ms"], "p99_ms": one["p99_ms"],
        "images_per_joule": one["gpu"]["images_per_joule"], "power_w": one["gpu"]["power_w"],
        "gpu": one["gpu"]["utilization"], "cpu": one["cpu_utilization"],
    }  # fmt: skip


def serve_fused(run: Run, repository: Path, how: str) -> tuple[Path, str]:
    """Return a repository and its fused model that is served as `how` says; see `--ways`."""
    if how == DEFAULT:
        return repository, DEFAULT
    processes, piece, decoders = how.split("x")
    tree = gpu_load.copy_with_counts(repository, run.work / "served", {FUSED: int(processes)})
    for path in tree.glob(f"{FUSED}/*/trtgen_runtime/runtime/gpu_images.py"):
        text = path.read_text()
        path.unlink()  # a link
        path.write_text(re.sub(r"^(_PIECE, _CHAINS) = .*", rf"\1 = {piece}, {decoders}", text, flags=re.MULTILINE))
    return tree, FUSED


def measure(run: Run, repository: Path, ways: list[str], *, mps: bool, key: str) -> None:
    """Measure the fused model in these ways, and the bare chain before and after; keep it under this key."""
    images = ("--images", str(write_images(run.work, "500x375")))
    bare = [measure_bare("500x375")]
    rows = {}
    for how in ways:
        (tree, name), log = serve_fused(run, repository, how), run.work / f"fused-{how}.log"
        with EmbeddedServer(tree, models=[name], log_path=log, mps=mps) as server:
            asked = [perf(run.work, server, "--model", name, *images, *more) for more in (EIGHTS, SINGLES)]
        rows[how] = {"eights": top(asked[0]), "singles": top(asked[1])}
        print(how, json.dumps(rows[how]), flush=True)
        run.save(key, rows)
    bare.append(measure_bare("500x375"))
    run.save(f"bare {key}", bare)


def measure_more(run: Run, repository: Path) -> None:
    """Measure latencies, other sizes, and the ensemble that decodes on the CPU, with the best way that was measured."""
    rows = run.kept()[PROCESSES]
    how = max(rows, key=lambda one: float(rows[one]["eights"]["images_per_s"]))
    found: dict[str, Any] = {"how": how}
    images = ("--images", str(write_images(run.work, "500x375")))
    half = str(int(rows[how]["eights"]["images_per_s"] / 8 / 2))
    tree, name = serve_fused(run, repository, how)
    with EmbeddedServer(tree, models=[name], log_path=run.work / "fused-more.log") as server:
        ask = ("--model", name, "--batch-size", "8")
        found["unloaded"] = top(
            perf(run.work, server, *ask, *images, "--concurrency", "1", "--measurement-requests", "200")
        )
        found["half"] = top(
            perf(run.work, server, *ask, *images, "--request-rate", half, "--measurement-requests", "1500")
        )
        for size in ("1920x1080", "mixed"):
            more = ("--concurrency", str(_IN_FLIGHT), "--measurement-requests", "500")
            found[size] = top(perf(run.work, server, *ask, "--images", str(write_images(run.work, size)), *more))
        run.save("more", found)
    cores = usable_cores()
    tree = gpu_load.with_instances(repository, run.work / "served", preprocess=cores, classifier=3)
    with EmbeddedServer(tree, log_path=run.work / "ensemble.log") as server:
        for what, load in (("eights", EIGHTS), ("singles", SINGLES)):
            found[f"cpu {what}"] = top(perf(run.work, server, "--model", ENSEMBLE, *images, *load))
    found["bare other sizes"] = {size: measure_bare(size) for size in ("1920x1080", "mixed")}
    run.save("more", found)
    print(json.dumps(found, indent=1), flush=True)


def soak(run: Run, repository: Path, requests: int) -> None:
    """Ask the fused model so many times; every answer is compared with the plan run on the CPU's pixels."""
    plan = max(repository.glob(f"{DEFAULT}/*/model.plan"), key=lambda path: int(path.parent.name))
    with open_engine(plan) as engine:
        run.save("soak", gpu_load.soak(repository, engine, run.work, requests=requests, concurrency=32, model=DEFAULT))


def find_targets(results: dict[str, Any]) -> Iterator[Target]:
    """Yield what must be reached, and what should."""
    if f"bare {PROCESSES}" in results:
        rows, bare = results[PROCESSES].values(), statistics.mean(results[f"bare {PROCESSES}"])
        eights = max(row["eights"]["images_per_s"] for row in rows)
        singles = max(row["singles"]["images_per_s"] for row in rows)
        yield Target(what="JPEG, requests of 8, images/s", measured=eights, must=10_000, aim=20_000)
        yield Target(what="JPEG, requests of 8, of the bare chain", measured=eights / bare, must=0.65, aim=0.85)
        yield Target(what="JPEG, one per request, images/s", measured=singles, must=6_000, aim=12_000)
    if "p99_ms" in (more := results.get("more", {})).get("half", {}):
        ratio = more["half"]["p99_ms"] / more["unloaded"]["p50_ms"]
        yield Target(
            what="p99 at half of the top load against an unloaded request", measured=ratio, must=3, at_most=True
        )


def main() -> None:
    """Run the steps that are asked for and keep the figures in gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-run"))
    parser.add_argument("--torch-python", default=sys.executable, help="as for benchmarks.gpu")
    parser.add_argument("--torch-path", default="", help="as for benchmarks.gpu")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS), help="export and build only these")
    parser.add_argument(
        "--ways", nargs="*", default=[DEFAULT, "4x32x2", "6x32x2", "8x32x2", "6x1000x1"],
        help=f"{DEFAULT} as it is built by default; or processes x images of a piece x decoders of a process",
    )  # fmt: skip
    parser.add_argument("--requests", type=int, default=100_000, help="of the soak")
    parser.add_argument("--no-mps", action="store_true", help="measure without the Multi-Process Service")
    steps = ("export", "build", "measure", "more", "soak")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    arguments = parser.parse_args()
    run, target = open_run(arguments)
    repository = run.work / "model_repository"
    for step in arguments.steps:
        print(f"## {step}", flush=True)
        if step == "export":
            export(run, target, arguments.only)
        elif step == "build":
            build(run, repository, arguments.only)
        elif step == "measure":
            key = "processes in turns" if arguments.no_mps else PROCESSES
            measure(run, repository, arguments.ways, mps=not arguments.no_mps, key=key)
        elif step == "more":
            measure_more(run, repository)
        else:
            soak(run, repository, arguments.requests)
    targets = [*find_targets(run.kept())]
    print("\n".join(describe(targets)))
    faults = [
        *run.failures,
        *gpu_load.find_faults(run.new),
        *(one.what for one in targets if not one.reaches(one.must)),
    ]
    if faults:
        raise SystemExit("\n".join(f"failed: {fault}" for fault in faults))


if __name__ == "__main__":
    main()
