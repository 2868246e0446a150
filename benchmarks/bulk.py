"""What the local engine of classify-all takes from a bare loop, and a million images that survive three kills.

    python -m benchmarks.bulk --rounds 5
    python -m benchmarks.bulk --million

The bare loop is one process for each core that reads its share of the files, decodes them as the served step does and
runs the same graph in batches of the same size, and keeps nothing. Both take turns; the clock runs from when the last
process is ready.

`--million` lists a few thousand pictures of 32x32 pixels again and again, one of a hundred broken, kills the command
with SIGKILL at a quarter, half and three quarters, and lets it finish. Memory is the proportional set size of the
command and its processes, twice a second; a run's base is what it had when it had done a tenth of its own part.
"""

from __future__ import annotations

import argparse
import functools
import io
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pyarrow import dataset

from benchmarks.crash import tiny
from benchmarks.machine import describe_machine, measure_pss
from generator.bulk.local import make_local_steps
from generator.bulk.results import open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import open_source
from generator.bulk.step import LocalStep, find_candidate
from generator.demo.draw import draw_set
from generator.graph.model import open_onnx
from generator.images.served_pixels import load_step
from generator.pipeline import BuildOptions, build_repository
from generator.runtime.cpu_images import CpuImages
from generator.spec.file import make_spec
from generator.spec.model import usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 32
TARGET, MEMORY_TARGET = 0.95, 1.05
BAD_EVERY = 100
PICTURES = 4000


class TimedStep(LocalStep):
    """A step that says when it is ready."""

    def __init__(self, ready: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        ready.mkdir(exist_ok=True)
        (ready / str(time.time_ns())).touch()


def measure_engine(root: Path, photos: Path, folder: Path) -> float:
    """Return images/s of the engine, from its last process's being ready to the last file's being on the disk."""
    steps = [
        functools.partial(TimedStep, folder / "ready", *one.args, **one.keywords)
        for one in make_local_steps(root, "demo", top=5, workers=None)
        if isinstance(one, functools.partial)
    ]
    with open_results(folder / "results", {}, rows_per_part=20_000) as results:
        finished = run_bulk(open_source(str(photos)), results, steps, batch_size=BATCH)
    ended_s = time.time()
    ready_s = max(int(path.name) for path in (folder / "ready").iterdir()) / 1e9
    return finished.items / (ended_s - ready_s)


def run_barely(root: Path, paths: Sequence[str], barrier: Any) -> None:
    """Decode and run what these files hold; the barrier is passed when ready, and at the end."""
    candidate = find_candidate(root, "demo")
    assert candidate.plan is None
    step = load_step("preprocess")
    step.keep_freed_memory()
    parameters = candidate.artifact.recipe.parameters()
    images = CpuImages(
        step, step.Recipe({name: {"string_value": text} for name, text in parameters.items()}), threads=1
    )
    run = open_onnx(candidate.onnx, as_served=True, threads=1)
    barrier.wait()
    for start in range(0, len(paths), BATCH):
        run(images.decode([Path(path).read_bytes() for path in paths[start : start + BATCH]]).pixels)
    barrier.wait()


def measure_bare(root: Path, photos: Path) -> float:
    """Return images/s of a loop in one process for each core."""
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    context, count = multiprocessing.get_context("spawn"), usable_cores()
    barrier = context.Barrier(count + 1)
    processes = [context.Process(target=run_barely, args=(root, paths[n::count], barrier)) for n in range(count)]
    for process in processes:
        process.start()
    barrier.wait()
    began_s = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - began_s
    for process in processes:
        process.join()
    return len(paths) / seconds


def compare(folder: Path, *, images: int, rounds: int) -> bool:
    """Print images/s of both and their ratio; say whether it is as wanted."""
    root, photos = folder / "models", folder / "photos"
    build_repository(make_spec(["demo"], target="onnxruntime")[0], root, BuildOptions(verify=False))
    photos.mkdir()
    drawn = [image.jpeg for image in draw_set(min(images, 500), seed=1)]
    for number in range(images):
        (photos / f"{number:06d}.jpg").write_bytes(drawn[number % len(drawn)])
    found: dict[str, list[float]] = {"bare": [], "engine": []}
    for turn in range(rounds):
        found["bare"].append(measure_bare(root, photos))
        (folder / str(turn)).mkdir()
        found["engine"].append(measure_engine(root, photos, folder / str(turn)))
        print(f"turn {turn + 1}: bare {found['bare'][-1]:,.0f}, engine {found['engine'][-1]:,.0f} images/s", flush=True)
    bare, engine = (statistics.median(found[name]) for name in ("bare", "engine"))
    print(f"median: bare {bare:,.0f}, engine {engine:,.0f} images/s; ratio {engine / bare:.3f} (>= {TARGET})")
    return engine / bare >= TARGET


@dataclass(slots=True)
class Run:
    """One run of the command: which images it was to do, and its memory when it had done a share of them."""

    first: int
    stop: int
    memory: list[tuple[float, int]]

    @property
    def base(self) -> float:
        """MiB at a tenth of its images."""
        return next(size for share, size in self.memory if share >= 0.1) / 2**20

    @property
    def peak(self) -> float:
        """MiB at most behind that."""
        return max(size for share, size in self.memory if share >= 0.1) / 2**20


def count_done(out: Path) -> int:
    """Return how many images are in finished parts."""
    return max((int(path.name[18:30]) for path in out.glob("part-*.parquet")), default=0)


def run_until(command: list[str], out: Path, stop: int, last: int) -> Run:
    """Run the command, kill it when `stop` images are done unless these are all, and return what was seen."""
    first = count_done(out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    run = Run(first, stop, [])
    while process.poll() is None:
        done = count_done(out)
        if done > first:
            try:
                run.memory.append(((done - first) / (stop - first), measure_pss(process.pid)))
            except OSError:  # one of its processes ended just now
                continue
        if done >= stop < last:
            process.kill()
        time.sleep(0.5)
    if stop == last and process.returncode != 0:
        raise SystemExit(f"the command ended with {process.returncode}")
    return run


def survive(folder: Path, *, images: int, rows_per_part: int) -> bool:
    """Answer so many images with three kills; print what was seen and say whether all is as wanted."""
    spec = tiny(folder)
    build_repository(spec, folder / "models", BuildOptions(verify=False))
    random = np.random.default_rng(0)
    photos, source, out = folder / "photos", folder / "list.csv", folder / "results"
    photos.mkdir()
    for number in range(PICTURES):
        with io.BytesIO() as stream:
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
            data = stream.getvalue()
        (photos / f"{number:04d}.jpg").write_bytes(data[:100] if number % BAD_EVERY == 0 else data)
    with source.open("w") as stream_of_text:
        print("path", file=stream_of_text)
        for number in range(images):
            print(f"photos/{number % PICTURES:04d}.jpg", file=stream_of_text)
    command = [sys.executable, "-m", "generator", "classify-all", str(source), "--out", str(out)]
    command += ["-r", str(folder / "models"), "--rows-per-part", str(rows_per_part)]
    started_s = time.perf_counter()
    runs = [run_until(command, out, images * quarter // 4, images) for quarter in (1, 2, 3, 4)]
    seconds = time.perf_counter() - started_s
    table = dataset.dataset(out).to_table(columns=["item", "error"])
    times = np.bincount(table["item"].to_numpy(), minlength=images)
    errors = table.num_rows - table["error"].null_count
    print("| run | images | MiB at its 10 % | MiB at most | ratio |\n|---|---|---|---|---|")
    for number, run in enumerate(runs, 1):
        span = f"{run.first:,} to {'the end' if number == 4 else f'{run.stop:,}, killed'}"
        print(f"| {number} | {span} | {run.base:,.1f} | {run.peak:,.1f} | {run.peak / run.base:.3f} |")
    print(
        f"\n{table.num_rows:,} rows, {(times == 0).sum()} images without one, {(times > 1).sum()} with several, "
        f"{errors:,} errors, {images / seconds:,.0f} images/s with all starts"
    )
    is_whole = table.num_rows == images and bool((times == 1).all()) and errors == -(-images // BAD_EVERY)
    return is_whole and all(run.peak / run.base <= MEMORY_TARGET for run in runs)


def main() -> int:
    """Measure and print; 1 if a figure misses its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--million", action="store_true", help="the three kills, in place of the comparison")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of --million")
    parser.add_argument("--rows-per-part", type=int, default=20_000, help="of --million")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        if options.million:
            is_right = survive(Path(name), images=options.rows, rows_per_part=options.rows_per_part)
        else:
            is_right = compare(Path(name), images=options.images, rounds=options.rounds)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
