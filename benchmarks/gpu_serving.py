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
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.load import Load, Question, Tally, likeness, make_bad_questions, mix
from benchmarks.machine import measure_pss
from benchmarks.preprocess import load_step, make_jpegs
from generator.errors import ServerError
from generator.gpu.memory import free_memory
from generator.pixels import prepare_without_torch
from generator.plan.engine import open_engine
from generator.recipe import IMAGENET, Recipe
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.spec import usable_cores
from generator.verify.compare import plan_limit

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from generator.plan.engine import Engine

TREE = Path(__file__).resolve().parent.parent
MODEL = "resnet50_fp16"
SIZE = (500, 375)
_MIB = 2**20
# What the gate asks of an FP16 plan: its kernels for other batch sizes round otherwise.
LEAST_COSINE = plan_limit("fp16").cosine


def decode_barely(files: list[bytes], seconds: float, ready: Barrier, results: Any) -> None:
    """Decode, resize and crop in a loop; put the images per second into `results`."""
    step = load_step()
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
    total = sum(results.get() for _ in children)
    for child in children:
        child.join()
    return float(total)


def measure_plan(engine: Engine, *, batch: int, seconds: float = 2.0) -> float:
    """Return the images per second of the plan alone, as a CUDA graph, nothing copied."""
    with engine.session(batch, cuda_graph=True) as session:
        session.input[:] = np.random.default_rng(0).integers(0, 256, session.input.shape, dtype=np.uint8)
        session.copy_in()
        count, started = 0, time.monotonic()
        while time.monotonic() - started < seconds:
            for _ in range(20):
                session.enqueue()
            session.synchronize()
            count += 20
        return count * batch / (time.monotonic() - started)


def with_instances(repository: Path, target: Path, *, preprocess: int, classifier: int) -> Path:
    """Return a copy of the model with other instance counts; the large files are links."""
    shutil.rmtree(target, ignore_errors=True)
    for name, count in ((MODEL, 0), (f"{MODEL}_preprocess", preprocess), (f"{MODEL}_classifier", classifier)):
        shutil.copytree(repository / name, target / name, copy_function=os.link)
        config = target / name / "config.pbtxt"
        text = config.read_text()
        config.unlink()
        config.write_text(re.sub(r"\bcount: \d+", f"count: {count}", text))
    return target


def perf(work: Path, server: EmbeddedServer, *arguments: str) -> list[dict[str, Any]]:
    """Run `trtgen perf` and return its measurements."""
    output = work / "perf"
    command = [sys.executable, "-m", "generator", "perf", "--url", server.grpc_url, "--metrics-url", server.metrics_url]
    done = subprocess.run(
        [*command, "--no-members", "--output", str(output), *arguments],
        cwd=work, env={**os.environ, "PYTHONPATH": str(TREE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(f"$ trtgen perf {' '.join(arguments)}\n{done.stdout}{done.stderr if done.returncode else ''}", flush=True)
    if done.returncode:
        raise SystemExit("perf_analyzer measured nothing")
    measurements: list[dict[str, Any]] = json.loads((output / "perf.json").read_text())["measurements"]
    return measurements


def measure_served(
    work: Path, repository: Path, files: list[bytes], plan_images_per_s: float, configurations: list[str]
) -> list[dict[str, Any]]:
    """Measure each configuration, and the bare processes before and after it."""
    jpegs = work / "jpegs"
    jpegs.mkdir(exist_ok=True)
    for index, data in enumerate(files):
        (jpegs / f"{index}.jpg").write_bytes(data)
    cores = usable_cores()
    rows = []
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
        print(json.dumps({key: value for key, value in row.items() if not isinstance(value, list)}, indent=1))
        rows.append(row)
        bare = after
    return rows


def summarise(what: str, measurements: list[dict[str, Any]], against: float) -> dict[str, Any]:
    """Return the best of the measurements and its share of `against`, and all of them."""
    best = max((one["infer_per_s"] for one in measurements), default=0.0)
    return {f"{what}_images_per_s": best, f"{what}_share": best / against, what: measurements}


def soak(repository: Path, engine: Engine, work: Path, *, requests: int, concurrency: int) -> dict[str, Any]:
    """Ask the ensemble so many times; every answer is compared with the plan run directly on that image alone."""
    record = read_record(repository, MODEL)
    assert record is not None, f"{repository} holds no {MODEL}"
    from generator.demo.draw import draw_set

    recipe = Recipe.model_validate(record.recipe)
    drawn = draw_set(100, seed=4242)
    pixels = prepare_without_torch(recipe, [image.jpeg for image in drawn])
    scores = np.concatenate([engine.run(pixels[[index]]) for index in range(len(pixels))])
    nearest = max(likeness(scores[[one]], scores[[other]]) for one, other in itertools.combinations(range(100), 2))
    if nearest >= LEAST_COSINE:
        raise SystemExit(f"two images have the same answer (cosine {nearest}): a mix-up would not be noticed")
    good = [
        Question(name=image.name, data=image.jpeg, scores=row, least_cosine=LEAST_COSINE)
        for image, row in zip(drawn, scores, strict=True)
    ]
    tally, host, gpu, seconds = Tally(), [], [], 0.0
    with EmbeddedServer(repository, models=[MODEL], log_path=work / "soak.log") as server:
        for phase in range(10):
            questions = mix(good, make_bad_questions(), requests // 10, bad_share=0.01, seed=phase)
            started = time.monotonic()
            with Load("grpc", server.grpc_url, questions, concurrency=concurrency, model=MODEL) as load:
                pass
            seconds += time.monotonic() - started
            tally.count(load.answers)
            host.append(measure_pss(server.pid) / _MIB)
            free, total = free_memory()
            gpu.append((total - free) / _MIB)
    result = {
        "requests": tally.right + tally.refused + len(tally.problems), "right": tally.right, "refused": tally.refused,
        "unexpected": tally.problems[:5], "images_per_s": requests / seconds, "host_mib": host, "gpu_mib": gpu,
        "least_cosine": LEAST_COSINE, "nearest_cosine": nearest,
    }  # fmt: skip
    print(json.dumps(result))
    return result


def harm(repository: Path, engine: Engine, work: Path) -> dict[str, Any]:
    """Delete the plan while it is served, kill a process of the classifier, stop the server: each under load."""
    record = read_record(repository, MODEL)
    assert record is not None, f"{repository} holds no {MODEL}"
    from generator.demo.draw import draw_set

    recipe, (image,) = Recipe.model_validate(record.recipe), draw_set(1, seed=4242)
    scores = engine.run(prepare_without_torch(recipe, [image.jpeg]))[0]
    question = Question(name=image.name, data=image.jpeg, scores=scores, least_cosine=LEAST_COSINE)
    found: dict[str, Any] = {}
    for what in ("plan deleted", "process killed", "server stopped"):
        tree = with_instances(repository, work / "harmed", preprocess=4, classifier=2)
        server = EmbeddedServer(tree, models=[MODEL], log_path=work / "harmed.log")
        words, tally = "", Tally()
        with contextlib.ExitStack() as stack:
            stack.enter_context(server)  # a server that does not start ends the run
            stack.enter_context(contextlib.suppress(ServerError))  # that a harmed one complains is what is looked at
            load = Load("grpc", server.grpc_url, [question] * 100_000, concurrency=16, model=MODEL)
            with load:
                time.sleep(1)
                before = len(load.answers)
                if what == "plan deleted":
                    next(tree.glob("*_classifier/*/model.plan")).unlink()
                    time.sleep(1)
                elif what == "process killed":
                    kill_a_stub(server.pid, f"{MODEL}_classifier")
                    try:
                        server.wait()
                    except ServerError as error:
                        words = error.message
                else:
                    server.stop()
                load.stop()
        tally.count(load.answers)
        off = sum("scores are off" in problem for problem in tally.problems)
        found[what] = {
            "before": before, "right": tally.right, "wrong scores": off,
            "errors": sorted({one.partition(": ")[2][:160] for one in tally.problems})[:6], "words": words,
        }  # fmt: skip
        print(what, json.dumps(found[what]))
    return found


def kill_a_stub(server: int, model: str) -> None:
    """Kill one process of the model, found by its command line."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().replace("\0", " ") if entry.name.isdigit() else ""
            if "triton_python_backend_stub" in words and model in words:
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise RuntimeError(f"server {server} has no process of {model}")


def build(work: Path, torch_python: str, torch_path: str) -> None:
    """Export, build and prove ResNet-50, EfficientNet-B0 and the demo model, unless that was done."""
    if list((work / "model_repository").glob("*/trtgen.json")):
        print(f"taken as it is: {work / 'model_repository'}", flush=True)
        return
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", str(work), "--steps", "export", "build"]
    more = ["--torch-python", torch_python, "--torch-path", torch_path]
    subprocess.run([*command, *more], cwd=TREE, env={**os.environ, "PYTHONPATH": str(TREE)}, check=True)


def chain(work: Path, repository: Path) -> None:
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
    for arguments in (["verify", "--repository", str(repository)], serve):
        print(f"$ trtgen {' '.join(arguments[:3])}", flush=True)
        environment = {**os.environ, "PYTHONPATH": str(TREE)}
        subprocess.run([*trtgen, *arguments], cwd=work, env=environment, check=True)


def main() -> None:
    """Run the steps that are asked for and keep the figures in gpu_serving.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-run"))
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--torch-python", default=sys.executable, help="as for benchmarks.gpu, for the export")
    parser.add_argument("--torch-path", default="", help="as for benchmarks.gpu")
    steps = ("build", "measure", "soak", "harm", "chain")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    parser.add_argument(
        "--configurations", nargs="*",
        default=[f"{usable_cores()}:{count}" for count in (3, 4)],
        help="processes of preprocessing and of the classifier, such as 14:2; all cores and 3 or 4 by default",
    )  # fmt: skip
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    repository = work / "model_repository"
    path = work / "gpu_serving.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    files = make_jpegs(*SIZE)
    for step in arguments.steps:
        print(f"## {step}", flush=True)
        if step == "build":
            build(work, arguments.torch_python, arguments.torch_path)
            continue
        if step == "chain":
            chain(work, repository)
            continue
        plan = max((repository / f"{MODEL}_classifier").glob("*/model.plan"))
        with open_engine(plan) as engine:
            if step == "measure":
                bare = {batch: measure_plan(engine, batch=batch) for batch in (8, 64, 128)}
                print("bare plan, images/s by batch:", bare, flush=True)
                results["bare plan"] = bare
            elif step == "soak":
                results[step] = soak(repository, engine, work, requests=arguments.requests, concurrency=32)
            else:
                results[step] = harm(repository, engine, work)
        if step == "measure":
            results[step] = measure_served(work, repository, files, max(bare.values()), arguments.configurations)
        path.write_text(json.dumps(results, indent=2) + "\n")
    if results.get("soak", {}).get("unexpected") or any(
        one["wrong scores"] for one in results.get("harm", {}).values()
    ):
        raise SystemExit("answers that were not expected")


if __name__ == "__main__":
    main()
