"""Detectors on a GPU, for docs/benchmarks.md, from one command.

    python -m benchmarks.gpu_detection --work gpu-detection

Exports, builds and proves SSD300 (random weights), a YOLO-shaped network and the demo detector for the installed
TensorRT; measures the plans, SSD300 also beside PyTorch; counts the demo's AP on held-out scenes; serves and measures
JPEG requests against what the cores decode, resize and post-process barely, and pixels through shared memory against
the bare plan; and compares a long load's boxes with those of a direct run. TensorRT and torch may live in two Pythons,
as in benchmarks.gpu. Steps can be run one after another in several commands.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.gpu import TREE, Run, open_run
from benchmarks.gpu_serving import measure_plan, perf
from benchmarks.preprocess import make_jpegs
from generator.images.served_pixels import load_step, prepare_one
from generator.plan.local import open_engine
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.spec.model import usable_cores
from generator.spec.recipe import Recipe
from generator.tasks.detection.compare import find_overlaps
from generator.tasks.detection.head import BOXES, CLASSES, SCORES
from generator.tasks.detection.postprocess import Postprocess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.synchronize import Barrier

# name -> (what is exported, precisions); `{yolo}` is the file of the YOLO-shaped network
MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ssd300": (("ssd300_vgg16", "--weights", "random"), ("fp16", "int8")),
    "yolo": (("{yolo}", "--task", "detection", "--labels", "index"), ("fp16", "int8")),
    "demo": (("demo-detector",), ("fp32", "fp16", "int8")),
}
# Published as it is: rounding in FP16 turns the boxes of its random weights, and the gate says so.
UNPROVED = {"yolo"}
PROFILES = [{"min": 1, "opt": 1, "max": 8}, {"min": 1, "opt": 32, "max": 32}]
# With two profiles and the usual effort TensorRT 8.6 had not built it in ten minutes.
PLANS: dict[str, dict[str, Any]] = {"yolo": {"profiles": [{"min": 1, "opt": 8, "max": 32}], "optimization_level": 2}}
BATCHES = (1, 8, 32)
HELD_OUT, HELD_OUT_SEED = 1000, 3
SIZE = (500, 375)
# A box of a direct run and of the server are the same: plans round otherwise in batches of another size.
LEAST_IOU, SCORE_TOLERANCE = 0.99, 0.002


def export(run: Run, target: str, only: Sequence[str]) -> None:
    """Export every model in every precision, at the same time: this is work for the CPU alone."""
    yolo = run.work / "yolo_shaped.onnx"
    if not yolo.is_file() and "yolo" in only:
        command = [run.torch_python, "-m", "benchmarks.yolo_shaped", str(yolo)]
        subprocess.run(command, env=run.torch_environment, cwd=TREE, check=True)
    children = []
    for name in only:
        source, precisions = MODELS[name]
        for precision in precisions:
            folder = run.work / "exported" / f"{name}_{precision}"
            words = [word.replace("{yolo}", str(yolo)) for word in source]
            arguments = ["export", *words, "--target", target, "--precision", precision, "--max-batch", "32"]
            log = (run.work / f"export-{name}-{precision}.log").open("w")
            child = subprocess.Popen(
                [run.torch_python, "-m", "generator", *arguments, "--output", str(folder)],
                env=run.torch_environment, cwd=run.work, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            children.append((arguments, child, log))
    for arguments, child, log in children:
        code = child.wait()
        log.close()
        print(f"$ trtgen {' '.join(arguments)}\n{Path(log.name).read_text().rstrip()}\n# exit code {code}", flush=True)


def build(run: Run, repository: Path, only: Sequence[str]) -> None:
    """Build and prove each model; every failure is kept and shown, and the others go on."""
    for name in only:
        for precision in MODELS[name][1]:
            served = f"{name}_{precision}"
            model = {
                "name": served,
                "task": "detection",
                "source": "export",
                "onnx": str(run.work / "exported" / served / "model.onnx"),
                "batch": {"max": 32},
                "decode": "cpu",
                "plan": PLANS.get(name, {"profiles": PROFILES}),
            }
            spec = run.work / f"{served}.yaml"
            spec.write_text(yaml.safe_dump({"models": [model]}))
            unproved = ["--no-verify"] if name in UNPROVED else []
            run.trtgen("build-repo", "--spec", str(spec), "--repository", str(repository), *unproved, check=False)
            record = repository / served / "trtgen.json"
            if record.is_file():
                data = json.loads(record.read_text())
                passport = json.loads(plan_of(repository, served).with_suffix(".plan.json").read_text())
                run.save(f"built {served}", {"proof": data["proof"], "passport": passport})


def plan_of(repository: Path, served: str) -> Path:
    """Return the path of a model's plan."""
    return next((repository / f"{served}_detector").glob("*/model.plan"), repository / "absent")


def measure(run: Run, repository: Path, only: Sequence[str]) -> None:
    """Measure each plan alone, as a CUDA graph, and SSD300 in PyTorch before and after."""

    def in_torch() -> dict[str, Any]:
        batches = ",".join(map(str, BATCHES))
        command = [run.torch_python, "-m", "benchmarks.torch_detector", "ssd300_vgg16", "--batches", batches]
        done = subprocess.run(command, env=run.torch_environment, cwd=TREE, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr[-2000:] if done.returncode else "", flush=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        return found

    first = in_torch() if "ssd300" in only else {}
    for name in only:
        for precision in MODELS[name][1]:
            plan = plan_of(repository, f"{name}_{precision}")
            if plan.is_file():
                with open_engine(plan) as engine:
                    rates = {batch: measure_plan(engine, batch=batch) for batch in BATCHES}
                print(f"{name}_{precision}", {batch: round(rate) for batch, rate in rates.items()}, flush=True)
                run.save(f"plan {name}_{precision}", rates)
    if first:
        run.save("torch ssd300", [first, in_torch()])


def count_right(run: Run, repository: Path) -> None:
    """Give the demo's AP on scenes that training never saw."""
    from generator.demo.scenes import draw_scenes

    folder = run.work / "held-out"
    if not folder.exists():
        folder.mkdir()
        for scene in draw_scenes(HELD_OUT, seed=HELD_OUT_SEED):
            (folder / f"{scene.name}.jpg").write_bytes(scene.jpeg)
            with Image.open(io.BytesIO(scene.jpeg)) as image:
                width, height = image.size
            lines = []
            for index, (left, top, right, bottom) in zip(scene.classes, scene.boxes, strict=True):
                middle = ((left + right) / 2 / width, (top + bottom) / 2 / height)
                size = ((right - left) / width, (bottom - top) / height)
                lines.append(" ".join([str(index), *(f"{value:.6f}" for value in (*middle, *size))]))
            (folder / f"{scene.name}.txt").write_text("\n".join(lines) + "\n")
    for precision in MODELS["demo"][1]:
        name = f"demo_{precision}"
        if (repository / name).is_dir():
            arguments = ["verify", name, "--repository", str(repository), "--labelled", str(folder), "--json"]
            text = run.trtgen(*arguments, check=False)
            if text.strip():
                run.save(f"held-out {name}", json.loads(text)[0])


def work_barely(
    files: list[bytes], recipe: dict[str, Any], rows: Any, options: dict[str, Any], ready: Barrier, results: Any
) -> None:
    """Decode, resize and post-process in a loop; put the images per second into `results`."""
    step, last = load_step("preprocess"), load_step("postprocess")
    settings = step.Recipe({name: {"string_value": value} for name, value in recipe.items()})
    thresholds = last.Options(**options)
    geometry = np.array([1, 1, 0, 0, 300, 300], np.float32)
    ready.wait()
    count, started = 0, time.monotonic()
    while (spent := time.monotonic() - started) < 3:
        step.decode(files[count % len(files)], settings)
        last.detect(*rows, geometry, thresholds)
        count += 1
    results.put(count / spent)


def measure_barely(files: list[bytes], recipe: Recipe, rows: Any, postprocess: Postprocess) -> float:
    """Return the images per second of a process for each core that do only what is before and behind the network."""
    context = multiprocessing.get_context("spawn")
    cores = usable_cores()
    ready, results = context.Barrier(cores), context.Queue()
    parameters = {name: {"string_value": value} for name, value in postprocess.parameters.items()}
    options = {"parameters": parameters, "labels": list(postprocess.labels), "most": postprocess.most}
    arguments = (files, recipe.parameters(), rows, options, ready, results)
    children = [context.Process(target=work_barely, args=arguments) for _ in range(cores)]
    for child in children:
        child.start()
    total = sum(results.get(timeout=120) for _ in children)
    for child in children:
        child.join()
    return float(total)


def serve(run: Run, repository: Path, served: str) -> None:
    """Measure the endpoint: JPEG requests of 1 and of 8 images, and pixels through shared memory."""
    record = read_record(repository, served)
    assert record is not None, f"{repository} holds no {served}"
    recipe = Recipe.model_validate(record.recipe)
    postprocess = Postprocess.of_record(record.spec, record.head, record.contract["labels"], score=None)
    files = make_jpegs(*SIZE)
    jpegs = run.work / "jpegs"
    jpegs.mkdir(exist_ok=True)
    for index, data in enumerate(files):
        (jpegs / f"{index}.jpg").write_bytes(data)
    with open_engine(plan_of(repository, served)) as engine:
        pixels, _ = prepare_one(recipe, files[0], "jpeg")
        outputs = engine.run_outputs(pixels[None])
        bare_plan = max(measure_plan(engine, batch=batch) for batch in BATCHES)
    rows = [outputs[name][0] for name in (BOXES, SCORES, CLASSES)]
    before = measure_barely(files, recipe, rows, postprocess)
    with EmbeddedServer(repository, models=[served], log_path=run.work / "serving.log") as server:
        images = ["--model", served, "--images", str(jpegs)]
        singles = perf(run.work, server, *images, "--concurrency", "64,128", "--measurement-requests", "3000")
        eights = perf(run.work, server, *images, "--batch-size", "8", "--concurrency", "16,32",
                      "--measurement-requests", "400")  # fmt: skip
        raw = perf(run.work, server, "--model", f"{served}_detector", "--shared-memory", "system", "--batch-size", "8",
                   "--measurement-requests", "3000", "--concurrency", "64")  # fmt: skip
    bare = statistics.mean((before, measure_barely(files, recipe, rows, postprocess)))

    def best(measurements: list[dict[str, Any]]) -> float:
        return max((float(one["infer_per_s"]) for one in measurements), default=0.0)

    found = {
        "bare_images_per_s": bare, "bare_plan_images_per_s": bare_plan, "candidates": int((rows[1] >= 0.25).sum()),
        "singles": best(singles), "singles_share": best(singles) / bare,
        "eights": best(eights), "eights_share": best(eights) / bare,
        "raw": best(raw), "raw_share": best(raw) / bare_plan,
    }  # fmt: skip
    print(json.dumps(found, indent=1), flush=True)
    run.save(f"served {served}", found)


def soak(run: Run, repository: Path, served: str, *, requests: int) -> None:
    """Ask the ensemble so many times; every answer is compared with the plan run directly on that image alone."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    from generator.demo.scenes import draw_scenes

    record = read_record(repository, served)
    assert record is not None, f"{repository} holds no {served}"
    recipe = Recipe.model_validate(record.recipe)
    postprocess = Postprocess.of_record(record.spec, record.head, record.contract["labels"], score=None)
    files = [scene.jpeg for scene in draw_scenes(100, seed=4242)]
    expected = []
    with open_engine(plan_of(repository, served)) as engine:
        for data in files:
            pixels, geometry = prepare_one(recipe, data, "scene")
            outputs = engine.run_outputs(pixels[None])
            boxes, scores, classes = (outputs[name][0] for name in (BOXES, SCORES, CLASSES))
            expected.append(postprocess.detect(boxes, scores, classes, geometry))
    counts = {"answers": 0, "equal to the bit": 0, "differ": 0, "at the threshold": 0, "boxes": 0}
    threshold = float(postprocess.parameters["score"])
    with EmbeddedServer(repository, models=[served], log_path=run.work / "soak.log") as server:

        def ask(number: int) -> tuple[int, Any]:
            data = np.array([[files[number % len(files)]]], np.object_)
            tensor = InferInput("IMAGE", [1, 1], "BYTES")
            tensor.set_data_from_numpy(data)
            answer = client.infer(served, [tensor])
            count = int(answer.as_numpy("NUM_DETECTIONS")[0, 0])
            return number, tuple(answer.as_numpy(name)[0][:count] for name in ("BOXES", "SCORES", "CLASSES"))

        client = InferenceServerClient(server.grpc_url)
        started = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            for number, found in pool.map(ask, range(requests)):
                compare(expected[number % len(files)], found, threshold, counts)
        counts["images_per_s"] = round(requests / (time.monotonic() - started))
        client.close()
    print(json.dumps(counts), flush=True)
    run.save(f"soak {served}", counts)


def compare(expected: Any, found: Any, threshold: float, counts: dict[str, int]) -> None:
    """Count one answer: equal, or with boxes that have no partner in the other one, in `counts`."""
    counts["answers"] += 1
    counts["boxes"] += len(expected[0])
    if all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True)):
        counts["equal to the bit"] += 1
        return
    for one, other in ((expected, found), (found, expected)):
        for box, score, index in zip(*one, strict=True):
            same = (other[2] == index) & (np.abs(other[1] - score) <= SCORE_TOLERANCE)
            if not (same & (find_overlaps(box[None], other[0])[0] >= LEAST_IOU)).any():
                counts["at the threshold" if abs(score - threshold) <= SCORE_TOLERANCE else "differ"] += 1


def main() -> None:
    """Run the steps that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-detection"))
    parser.add_argument("--torch-python", default=sys.executable, help="as for benchmarks.gpu")
    parser.add_argument("--torch-path", default="", help="as for benchmarks.gpu")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--serve", default="demo_fp16", metavar="NAME", help="what the steps serve and soak take")
    steps = ("export", "build", "measure", "held-out", "serve", "soak")
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
            measure(run, repository, arguments.only)
        elif step == "held-out":
            count_right(run, repository)
        elif step == "serve":
            serve(run, repository, arguments.serve)
        else:
            soak(run, repository, arguments.serve, requests=arguments.requests)
    if run.failures:
        raise SystemExit("\n".join(f"failed: {failure}" for failure in run.failures))


if __name__ == "__main__":
    main()
