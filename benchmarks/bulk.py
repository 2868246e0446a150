"""What the local engine of classify-all takes from a bare loop, and a million images that survive three kills.

    python -m benchmarks.bulk --rounds 5
    python -m benchmarks.bulk --million
    python -m benchmarks.bulk --repository gpu-run/model_repository --model resnet50_gpu --images 60000 --batch 32 128

The bare loop is as many processes that read their share of the files, decode them and run the network in batches of the
same size, and keep nothing. Both take turns; the clock runs from when the last process is ready. By default that is the
demo model on the cores; with `--repository` a model with a plan, on JPEGs of 500x375, with the GPU's energy.

`--million` lists a few thousand pictures of 32x32 pixels again and again, one of a hundred broken, kills the command
with SIGKILL at a quarter, half and three quarters, and lets it finish. Memory is the proportional set size of the
command and its processes, twice a second; a run's base is what it had when it had done a tenth of its own part.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from pyarrow import dataset

from benchmarks.crash import tiny
from benchmarks.gpu_images import make_files
from benchmarks.machine import describe_machine, measure_pss
from generator.bulk.local import make_local_steps
from generator.bulk.results import open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import open_source
from generator.bulk.step import LocalStep
from generator.demo.draw import draw_set
from generator.measure.bench.runners.loop import Nvml
from generator.pipeline import BuildOptions, build_repository
from generator.server.mps import share_gpus
from generator.spec.file import make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCH = 32
TARGET, GPU_TARGET, MEMORY_TARGET = 0.95, 0.8, 1.05
BAD_EVERY = 100
PICTURES = 4000


class TimedStep(LocalStep):
    """A step that says when it is ready."""

    def __init__(self, ready: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        ready.mkdir(exist_ok=True)
        (ready / str(time.time_ns())).write_text(json.dumps(Nvml(wanted=True).joules()))


class Figure(NamedTuple):
    """What was reached; without a GPU no energy is known."""

    images_per_s: float
    images_per_joule: float | None

    def __str__(self) -> str:
        return f"{self.images_per_s:,.0f}" + (
            f" ({self.images_per_joule:.1f} a joule)" if self.images_per_joule else ""
        )


def count_per_joule(images: int, before: float | None, after: float | None) -> float | None:
    """Return the images for each joule between two readings."""
    return None if before is None or after is None else images / (after - before)


def measure_engine(steps: Sequence[Any], source: Path, folder: Path, *, batch: int) -> Figure:
    """Measure the engine from its last process's being ready to the last file's being on the disk."""
    timed = [functools.partial(TimedStep, folder / "ready", *one.args, **one.keywords) for one in steps]
    with open_results(folder / "results", {}, rows_per_part=20_000) as results:
        finished = run_bulk(open_source(str(source)), results, timed, batch_size=batch)
    ended_s, joules = time.time(), Nvml(wanted=True).joules()
    last = max((folder / "ready").iterdir(), key=lambda path: int(path.name))
    per_joule = count_per_joule(finished.items, json.loads(last.read_text()), joules)
    assert not finished.errors
    return Figure(finished.items / (ended_s - int(last.name) / 1e9), per_joule)


def run_barely(make_step: Callable[[], Any], paths: Sequence[str], batch: int, barrier: Any) -> None:
    """Decode and run what these files hold; the barrier is passed when ready, and at the end."""
    step = make_step()
    barrier.wait()
    for start in range(0, len(paths), batch):
        step.run_network(step.decode([Path(path).read_bytes() for path in paths[start : start + batch]]))
    barrier.wait()


def measure_bare(steps: Sequence[Any], paths: Sequence[str], *, batch: int) -> Figure:
    """Measure a loop in as many processes."""
    context, count = multiprocessing.get_context("spawn"), len(steps)
    barrier = context.Barrier(count + 1)
    processes = [
        context.Process(target=run_barely, args=(one, paths[n::count], batch, barrier)) for n, one in enumerate(steps)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    began_s, joules = time.perf_counter(), Nvml(wanted=True).joules()
    barrier.wait()
    seconds = time.perf_counter() - began_s
    per_joule = count_per_joule(len(paths), joules, Nvml(wanted=True).joules())
    for process in processes:
        process.join()
    return Figure(len(paths) / seconds, per_joule)


def compare(
    steps: Sequence[Any], source: Path, paths: Sequence[str], folder: Path, *, batch: int, rounds: int
) -> float:
    """Print images/s of both, and return their ratio."""
    found: dict[str, list[float]] = {"bare": [], "engine": []}
    for turn in range(rounds):
        bare = measure_bare(steps, paths, batch=batch)
        (folder / f"{batch}-{turn}").mkdir()
        engine = measure_engine(steps, source, folder / f"{batch}-{turn}", batch=batch)
        found["bare"].append(bare.images_per_s)
        found["engine"].append(engine.images_per_s)
        print(f"turn {turn + 1}, batches of {batch}: bare {bare}, engine {engine} images/s", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratio = medians["engine"] / medians["bare"]
    print(
        f"median: bare {medians['bare']:,.0f}, engine {medians['engine']:,.0f} images/s; ratio {ratio:.3f}", flush=True
    )
    return ratio


def compare_on_cores(folder: Path, *, images: int, rounds: int) -> bool:
    """Compare both with the demo model; say whether it is as wanted."""
    root, photos = folder / "models", folder / "photos"
    build_repository(make_spec(["demo"], target="onnxruntime")[0], root, BuildOptions(verify=False))
    photos.mkdir()
    drawn = [image.jpeg for image in draw_set(min(images, 500), seed=1)]
    for number in range(images):
        (photos / f"{number:06d}.jpg").write_bytes(drawn[number % len(drawn)])
    steps = make_local_steps(root, "demo", top=5, workers=None)
    paths = sorted(str(path) for path in photos.iterdir())
    return compare(steps, photos, paths, folder, batch=BATCH, rounds=rounds) >= TARGET


def compare_on_gpu(folder: Path, options: argparse.Namespace) -> bool:
    """Compare both with a model that has a plan, by batch; say whether the best is as wanted."""
    files = make_files("500x375", 64)
    for number, data in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(data)
    paths = [str(folder / f"{number % len(files)}.jpg") for number in range(options.images)]
    source = folder / "list.csv"
    source.write_text("\n".join(["path", *paths, ""]))
    steps = make_local_steps(options.repository, options.model, top=5, workers=options.workers)
    print(f"{len(steps)} processes", flush=True)
    with share_gpus():
        ratios = [
            compare(steps, source, paths, folder, batch=one, rounds=options.rounds) for one in options.batch or [BATCH]
        ]
    return max(ratios) >= GPU_TARGET


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
    parser.add_argument("--repository", type=Path, help="compare with a model of this one, which has a plan")
    parser.add_argument("--model", help="of --repository")
    parser.add_argument("--workers", type=int, help="of --repository: processes")
    parser.add_argument("--batch", type=int, nargs="*", help="of --repository: images in a batch, one after another")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of --million")
    parser.add_argument("--rows-per-part", type=int, default=20_000, help="of --million")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        if options.million:
            is_right = survive(Path(name), images=options.rows, rows_per_part=options.rows_per_part)
        elif options.repository:
            is_right = compare_on_gpu(Path(name), options)
        else:
            is_right = compare_on_cores(Path(name), images=options.images, rounds=options.rounds)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
