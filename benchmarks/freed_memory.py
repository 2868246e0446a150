"""What it brings that the preprocessing keeps freed memory for the next image instead of giving it back to the system.

    python -m benchmarks.freed_memory --rounds 5

On one core, JPEGs of four sizes in processes with and without `keep_freed_memory` of templates/preprocess/1/model.py,
which take turns: processor time and page faults for each image, and the process's memory at the end. Then in one
tritonserver two models that differ in that call alone, as many processes each as there are cores, asked in turns with
perf_analyzer on the same cores, beside as many bare processes without it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_serving import measure_barely, perf
from benchmarks.machine import describe_machine
from benchmarks.preprocess import make_jpegs
from generator.images.served_pixels import load_step
from generator.pipeline import BuildOptions, build_repository
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from generator.spec.model import usable_cores
from generator.spec.recipe import IMAGENET

SIZES = ((500, 375), (1280, 960), (2048, 1536), (4000, 3000))
SERVED = (500, 375)
CALL = "        keep_freed_memory()\n"
TARGET = 1.1


def measure_alone(folder: str, *, keep: bool, seconds: float = 2.0) -> dict[str, float]:
    """Return ms of one core and page faults per image, and the memory of this process afterwards in MiB."""
    step = load_step("preprocess")
    if keep:
        step.keep_freed_memory()
    recipe = step.Recipe({name: {"string_value": value} for name, value in IMAGENET.parameters().items()})
    files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    for data in files * 3:
        step.decode(data, recipe)
    faults, started, count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), 0
    while time.process_time() < started + seconds:
        for data in files:
            step.decode(data, recipe)
        count += len(files)
    spent = time.process_time() - started
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"ms": 1000 * spent / count, "faults": faults / count, "mib": pages * resource.getpagesize() / 2**20}


def in_a_process(folder: Path, *, keep: bool) -> dict[str, float]:
    """Measure in a process of its own, as a served one is: what malloc did before decides how it goes on."""
    code = "import sys, json; from benchmarks.freed_memory import measure_alone; "
    code += f"print(json.dumps(measure_alone(sys.argv[1], keep={keep})))"
    done = subprocess.run([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def write_jpegs(folder: Path, width: int, height: int) -> Path:
    """Write the photographs in this size; return their folder."""
    jpegs = folder / f"{width}x{height}"
    jpegs.mkdir()
    for index, data in enumerate(make_jpegs(width, height)):
        (jpegs / f"{index}.jpg").write_bytes(data)
    return jpegs


def make_models(folder: Path, instances: int) -> Path:
    """Return a repository with the models `kept` and `given_back`, which take JPEGs and answer pixels."""
    spec = make_spec(["resnet18"], weights="random", instances={"preprocess": instances})[0]
    build_repository(spec, folder / "built", BuildOptions(verify=False))
    tree = folder / "served"
    for name in ("kept", "given_back"):
        shutil.copytree(folder / "built" / f"{spec.name}_preprocess", tree / name)
        config = tree / name / "config.pbtxt"
        config.write_text(config.read_text().replace(f'"{f"{spec.name}_preprocess"}"', f'"{name}"'))
    model = tree / "given_back" / "1" / "model.py"
    text = model.read_text()
    assert text.count(CALL) == 1
    model.write_text(text.replace(CALL, ""))
    return tree


def measure_served(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return images/s of every round: bare, and of each model the best of 8 and 32 requests in flight."""
    cores, jpegs = usable_cores(), folder / "{}x{}".format(*SERVED)
    files = [path.read_bytes() for path in sorted(jpegs.iterdir())]
    rows: dict[str, list[float]] = {"bare": [], "given_back": [], "kept": []}
    load: list[Any] = ["--images", str(jpegs), "--concurrency", "8,32", "--measurement-requests", "1500"]
    with EmbeddedServer(make_models(folder, cores), log_path=folder / "server.log") as server:
        for _ in range(rounds):
            rows["bare"].append(measure_barely(files, processes=cores))
            for name in ("given_back", "kept"):
                found = perf(folder, server, "--model", name, *load)
                rows[name].append(max(one["infer_per_s"] for one in found))
    return rows


def describe_pairs(pairs: list[list[dict[str, float]]]) -> str:
    """Return a row's cells: medians over the rounds, without and with; the ratio is that of each round."""
    ratio = statistics.median(back["ms"] / kept["ms"] for back, kept in pairs)
    ms, faults, mib = (
        [statistics.median(pair[side][what] for pair in pairs) for side in (0, 1)] for what in ("ms", "faults", "mib")
    )
    times, counts = f"{ms[0]:.2f}, {ms[1]:.2f}", f"{faults[0]:,.0f}, {faults[1]:,.0f}"
    return f"{times} | {ratio:.2f} | {counts} | {mib[0]:.0f}, {mib[1]:.0f}"


def main() -> int:
    """Print two tables; exit 1 if what is served gains too little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{describe_machine()}\n")
    print("| JPEG | ms of a core: given back, kept | ratio | page faults | MiB of the process |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="trtgen-freed-") as folder:
        for width, height in SIZES:
            jpegs = write_jpegs(Path(folder), width, height)
            pairs = [[in_a_process(jpegs, keep=keep) for keep in (False, True)] for _ in range(rounds)]
            print(f"| {width}x{height} | {describe_pairs(pairs)} |", flush=True)
        rows = measure_served(Path(folder), rounds)
    ratio = statistics.median(kept / back for kept, back in zip(rows["kept"], rows["given_back"], strict=True))
    bare, back, kept = (statistics.median(rows[name]) for name in ("bare", "given_back", "kept"))
    print("\n| images/s | given back | kept | ratio | of bare processes |\n|---|---|---|---|---|")
    print(f"| bare {bare:.0f} | {back:.0f} | {kept:.0f} | {ratio:.2f} | {back / bare:.0%}, {kept / bare:.0%} |")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
