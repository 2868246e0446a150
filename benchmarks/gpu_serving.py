"""The plan behind the endpoint: JPEG in, label out, on a GPU, from one command.

    python -m benchmarks.gpu_serving --work gpu-run

Builds and proves the models with benchmarks.gpu, or takes the repository that it left in `--work`. Served by the pip
tritonserver and measured with perf_analyzer on the same machine: the JPEG ensemble with requests of 1 and of 8 images
of 500x375, against what as many bare processes as there are cores decode, resize and crop; the network alone with
requests of 8 uint8 images through shared memory, against the bare plan. Then a long run whose every answer is compared
with the plan run directly, with memory of host and GPU; what happens when the plan is deleted, a process of a model is
killed, or the server is stopped under load; and the user's commands for every model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu import plan_of
from benchmarks.gpu_load import MODEL, find_faults, harm, soak, with_instances
from benchmarks.gpu_targets import describe, of_serving
from benchmarks.gpu_variants import VARIANTS, measure_variants
from benchmarks.gpu_variants import summarise as summarise_variants
from benchmarks.preprocess import make_jpegs
from generator.images.served_pixels import load_step
from generator.plan.local import open_engine
from generator.server.embedded import EmbeddedServer
from generator.spec.model import usable_cores
from generator.spec.recipe import IMAGENET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Barrier

    from generator.plan.local import PlanEngine

TREE = Path(__file__).resolve().parent.parent
SIZE = (500, 375)


def decode_barely(files: list[bytes], seconds: float, ready: Barrier, results: Any) -> None:
    """Decode, resize and crop in a loop; put the images per second into `results`."""
    step = load_step("preprocess")
    recipe = step.Recipe({name: {"string_value": value} for name, value in IMAGENET.parameters().items()})
    pixels = np.empty((224, 224, 3), np.uint8)
    pixels[:] = step.decode(files[0], recipe)
    ready.wait()
    count, started = 0, time.monotonic()
    while (spent := time.monotonic() - started) < seconds:
        pixels[:] = step.decode(files[count % len(files)], recipe)
        count += 1
    results.put(count / spent)


def measure_barely(files: list[bytes], *, processes: int, seconds: float = 3.0) -> float:
    """Return the images per second of so many processes that do nothing but the preprocessing."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes), context.Queue()
    children = [context.Process(target=decode_barely, args=(files, seconds, ready, results)) for _ in range(processes)]
    for child in children:
        child.start()
    total = sum(results.get(timeout=seconds + 120) for _ in children)
    for child in children:
        child.join()
    return float(total)


def measure_plan(engine: PlanEngine, *, batch: int, seconds: float = 2.0) -> float:
    """Return the images per second of the plan alone, as a CUDA graph, nothing copied."""
    shapes, _ = engine.open_batch(batch)
    images = np.random.default_rng(0).integers(0, 256, shapes[0], dtype=np.uint8)
    engine.stage(0, images)
    engine.send(0, 0, 0, images.nbytes)
    graph = engine.record(0, shapes)
    count, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        for _ in range(20):
            engine.device.launch(graph)
        engine.wait()
        count += 20
    taken = time.monotonic() - started
    engine.device.release("cuGraphExecDestroy", graph)
    return count * batch / taken


def perf(work: Path, server: EmbeddedServer, *arguments: str) -> list[dict[str, Any]]:
    """Run `trtgen perf` and return its measurements that settled."""
    output = work / "perf"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "generator", "perf", "--url", server.grpc_url, "--metrics-url", server.metrics_url]
    done = subprocess.run(
        [*command, "--no-members", "--output", str(output), *arguments],
        cwd=work, env={**os.environ, "PYTHONPATH": str(TREE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(f"$ trtgen perf {' '.join(arguments)}\n{done.stdout}{done.stderr if done.returncode else ''}", flush=True)
    if not (output / "perf.json").is_file():
        raise SystemExit("perf_analyzer measured nothing")
    measurements: list[dict[str, Any]] = json.loads((output / "perf.json").read_text())["measurements"]
    return [one for one in measurements if one["settled"]]


def measure_served(
    work: Path, repository: Path, files: list[bytes], plan_images_per_s: float, configurations: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield each configuration's figures, with those of the bare processes before and after it."""
    jpegs = work / "jpegs"
    jpegs.mkdir(exist_ok=True)
    for index, data in enumerate(files):
        (jpegs / f"{index}.jpg").write_bytes(data)
    cores = usable_cores()
    bare = measure_barely(files, processes=cores)
    for configuration in configurations:
        preprocess, classifier = map(int, configuration.split(":"))
        tree = with_instances(repository, work / "served", preprocess=preprocess, classifier=classifier)
        images = ["--images", str(jpegs)]
        raw = ["--shared-memory", "system", "--batch-size", "8", "--measurement-requests", "3000"]
        with EmbeddedServer(tree, log_path=work / "serving.log") as server:
            singles = perf(work, server, "--model", MODEL, *images, "--concurrency", "64,128",
                           "--measurement-requests", "3000")  # fmt: skip
            eights = perf(work, server, "--model", MODEL, *images, "--batch-size", "8", "--concurrency", "16,32",
                          "--measurement-requests", "400")  # fmt: skip
            pixels = perf(work, server, "--model", f"{MODEL}_classifier", *raw, "--concurrency", "64")
        after = measure_barely(files, processes=cores)
        around = statistics.mean((bare, after))
        row = {
            "preprocess": preprocess, "classifier": classifier, "bare_images_per_s": around,
            "bare_plan_images_per_s": plan_images_per_s,
            **summarise("singles", singles, around), **summarise("eights", eights, around),
            **summarise("raw", pixels, plan_images_per_s),
        }  # fmt: skip
        print(
            json.dumps({key: value for key, value in row.items() if not isinstance(value, list)}, indent=1), flush=True
        )
        yield row
        bare = after


def summarise(what: str, measurements: list[dict[str, Any]], against: float) -> dict[str, Any]:
    """Return the best of the measurements and its share of `against`, and all of them."""
    best = max((one["infer_per_s"] for one in measurements), default=0.0)
    return {f"{what}_images_per_s": best, f"{what}_share": best / against, what: measurements}


def build(work: Path, torch_python: str, torch_path: str) -> None:
    """Export, build and prove ResNet-50, EfficientNet-B0 and the demo model, unless that was done."""
    if list((work / "model_repository").glob("*/trtgen.json")):
        print(f"taken as it is: {work / 'model_repository'}", flush=True)
        return
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", str(work), "--steps", "export", "build"]
    more = ["--torch-python", torch_python, "--torch-path", torch_path]
    done = subprocess.run([*command, *more], cwd=TREE, env={**os.environ, "PYTHONPATH": str(TREE)}, check=False)
    if done.returncode:
        print("not every model was built; the others go on", flush=True)


def chain(work: Path, repository: Path) -> dict[str, Any]:
    """The user's way once, for every model that was built: verify, serve, the client over both protocols, perf."""
    trtgen = [sys.executable, "-m", "generator"]
    names = sorted(path.parent.name for path in repository.glob("*/trtgen.json"))
    commands = []
    for name in names:
        for protocol, port in (("grpc", 8001), ("http", 8000)):
            commands.append(
                [sys.executable, str(TREE / "clients/classify.py"), "--protocol", protocol, "--model", name,
                 "--url", f"localhost:{port}", str(TREE / "clients/samples/star.jpg")]
            )  # fmt: skip
        commands.append(
            [*trtgen, "perf", "--model", name, "--no-members", "--concurrency", "32", "--measurement-requests", "2000",
             "--output", str(work / f"perf-{name}")]
        )  # fmt: skip
    lines = [f"echo {shlex.quote('$ ' + shlex.join(command))} && {shlex.join(command)}" for command in commands]
    serve = ["serve", "--repository", str(repository), "--", "sh", "-e", "-c", "\n".join(lines)]
    codes = []
    for arguments in (["verify", "--repository", str(repository)], serve):
        print(f"$ trtgen {' '.join(arguments[:3])}", flush=True)
        environment = {**os.environ, "PYTHONPATH": str(TREE)}
        codes.append(subprocess.run([*trtgen, *arguments], cwd=work, env=environment, check=False).returncode)
    figures = {name: json.loads(path.read_text())["measurements"] for name in names
               if (path := work / f"perf-{name}" / "perf.json").is_file()}  # fmt: skip
    return {"exit codes of verify and serve": codes, "perf": figures}


def find_chain_faults(results: dict[str, Any]) -> Iterator[str]:
    """Yield what failed of the user's commands."""
    if any(results.get("chain", {}).get("exit codes of verify and serve", [])):
        yield "chain: verify or a command beside the server failed"


class Results:
    """What was measured, in a file that is complete after every `save`; `new` is what this run measured."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self.new: dict[str, Any] = {}

    def save(self, key: str, value: Any) -> None:
        """Keep a result."""
        self.new[key] = self._all[key] = value
        self._path.write_text(json.dumps(self._all, indent=2) + "\n")


def main() -> None:
    """Run the steps that are asked for and keep the figures in gpu_serving.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-run"))
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--torch-python", default=sys.executable, help="as for benchmarks.gpu, for the export")
    parser.add_argument("--torch-path", default="", help="as for benchmarks.gpu")
    steps = ("build", "measure", "soak", "harm", "chain")
    parser.add_argument("--steps", nargs="*", choices=(*steps, "variants"), default=list(steps))
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="those of --steps variants"
    )
    parser.add_argument("--turns", type=int, default=3, help="of --steps variants")
    parser.add_argument(
        "--configurations", nargs="*",
        default=[f"{usable_cores()}:{count}" for count in (3, 4)],
        help="processes of preprocessing and of the classifier, such as 14:2; all cores and 3 or 4 by default",
    )  # fmt: skip
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    repository = work / "model_repository"
    results = Results(work / "gpu_serving.json")
    for step in arguments.steps:
        print(f"## {step}", flush=True)
        if step == "build":
            build(work, arguments.torch_python, arguments.torch_path)
        elif step == "chain":
            results.save(step, chain(work, repository))
        else:
            run_step(step, work, repository, results, arguments)
    targets = [*of_serving(results.new)]
    print("\n".join(describe(targets)))
    faults = [f"missed: {one.what}" for one in targets if not one.reaches(one.must)]
    if faults := [*faults, *find_faults(results.new), *find_chain_faults(results.new)]:
        raise SystemExit("\n".join(faults))


def run_step(step: str, work: Path, repository: Path, results: Results, arguments: argparse.Namespace) -> None:
    """Run a step that needs the plan beside the server; every result is kept as soon as it is there."""
    plan = plan_of(repository, MODEL)
    if not plan.is_file():
        raise SystemExit(f"{repository} holds no plan of {MODEL}: run with --steps build")
    with open_engine(plan) as engine:
        if step == "soak":
            results.save(step, soak(repository, engine, work, requests=arguments.requests, concurrency=32))
            return
        if step == "harm":
            for what, found in harm(repository, engine, work):
                results.save(step, {**results.new.get(step, {}), what: found})
            return
        if step == "variants":
            rows = measure_variants(
                work, repository, names=arguments.variants, turns=arguments.turns,
                instances=int(arguments.configurations[0].partition(":")[2]),
                measure_plan=lambda: measure_plan(engine, batch=128), perf=perf,
            )  # fmt: skip
            for row in rows:
                results.save(step, [*results.new.get(step, []), row])
            print("\n".join(summarise_variants(results.new[step])), flush=True)
            return
        bare = {batch: measure_plan(engine, batch=batch) for batch in (8, 64, 128)}
    print("bare plan, images/s by batch:", bare, flush=True)
    results.save("bare plan", bare)
    rows = measure_served(work, repository, make_jpegs(*SIZE), max(bare.values()), arguments.configurations)
    for row in rows:
        results.save(step, [*results.new.get(step, []), row])


if __name__ == "__main__":
    main()
