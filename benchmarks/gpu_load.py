"""What a served plan is put through on a GPU: a long load whose every answer is compared, and harm under load.

For benchmarks.gpu_serving; its models are those of benchmarks.gpu.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.load import Load, Question, Tally, likeness, make_bad_questions, mix
from benchmarks.machine import measure_pss
from generator.demo.draw import draw_set
from generator.errors import ServerError
from generator.images.served_pixels import prepare_without_torch
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.server.stubs import find_stubs
from generator.spec.recipe import Recipe
from generator.tasks.classification.compare import plan_limit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from generator.plan.local import PlanEngine

MODEL = "resnet50_fp16"
# What the gate asks of an FP16 plan: its kernels for other batch sizes round otherwise.
LEAST_COSINE = plan_limit("fp16").cosine
MOST_GROWTH = 1.05  # of memory in the soak, as in benchmarks.soak
_MIB = 2**20


def with_instances(repository: Path, target: Path, *, preprocess: int, classifier: int, model: str = MODEL) -> Path:
    """Return a copy of the model with other instance counts; the large files are links."""
    return copy_with_counts(
        repository, target, {model: 0, f"{model}_preprocess": preprocess, f"{model}_classifier": classifier}
    )


def copy_with_counts(repository: Path, target: Path, counts: dict[str, int]) -> Path:
    """Return a copy of these models, each with so many instances; the large files are links."""
    shutil.rmtree(target, ignore_errors=True)
    for name, count in counts.items():
        shutil.copytree(repository / name, target / name, copy_function=os.link)
        config = target / name / "config.pbtxt"
        text = config.read_text()
        config.unlink()
        config.write_text(re.sub(r"\bcount: \d+", f"count: {count}", text))
    return target


def soak(
    repository: Path, engine: PlanEngine, work: Path, *, requests: int, concurrency: int, model: str = MODEL
) -> dict[str, Any]:
    """Ask the model so many times; every answer is compared with the plan run directly on that image alone."""
    record = read_record(repository, model)
    assert record is not None, f"{repository} holds no {model}"
    recipe = Recipe.model_validate(record.recipe)
    drawn = draw_set(100, seed=4242)
    pixels = prepare_without_torch(recipe, [image.jpeg for image in drawn])
    scores = np.concatenate([engine.run_rows(pixels[[index]]) for index in range(len(pixels))])
    nearest = max(likeness(scores[[one]], scores[[other]]) for one, other in itertools.combinations(range(100), 2))
    if nearest >= LEAST_COSINE:
        raise SystemExit(f"two images have the same answer (cosine {nearest}): a mix-up would not be noticed")
    good = [
        Question(name=image.name, data=image.jpeg, scores=row, least_cosine=LEAST_COSINE)
        for image, row in zip(drawn, scores, strict=True)
    ]
    tally, host, gpu, seconds = Tally(), [], [], 0.0
    with EmbeddedServer(repository, models=[model], log_path=work / "soak.log") as server:
        for phase in range(10):
            questions = mix(good, make_bad_questions(), requests // 10, bad_share=0.01, seed=phase)
            started = time.monotonic()
            with Load("grpc", server.grpc_url, questions, concurrency=concurrency, model=model) as load:
                pass
            seconds += time.monotonic() - started
            tally.count(load.answers)
            host.append(measure_pss(server.pid) / _MIB)
            free, total = engine.device.free_memory()
            gpu.append((total - free) / _MIB)
    result = {
        "asked": requests,
        "answered": tally.right + tally.refused + len(tally.problems),
        "right": tally.right,
        "refused": tally.refused,
        "unexpected": len(tally.problems),
        "first_unexpected": tally.problems[:5],
        "images_per_s": requests / seconds,
        "host_mib": host,
        "gpu_mib": gpu,
        "least_cosine": LEAST_COSINE,
        "nearest_cosine": nearest,
    }
    print(json.dumps(result))
    return result


def harm(repository: Path, engine: PlanEngine, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Delete or truncate the plan while it is served, kill a process of the classifier, stop the server, under load."""
    record = read_record(repository, MODEL)
    assert record is not None, f"{repository} holds no {MODEL}"
    recipe, (image,) = Recipe.model_validate(record.recipe), draw_set(1, seed=4242)
    scores = engine.run_rows(prepare_without_torch(recipe, [image.jpeg]))[0]
    question = Question(name=image.name, data=image.jpeg, scores=scores, least_cosine=LEAST_COSINE)
    for what in ("plan deleted", "plan truncated", "process killed", "server stopped"):
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
                plan = next(tree.glob("*_classifier/*/model.plan"), None)
                if what.startswith("plan") and plan is not None:
                    beginning = plan.read_bytes()[:1000]
                    plan.unlink()  # it is a link to the real one
                    if what == "plan truncated":
                        plan.write_bytes(beginning)
                    time.sleep(1)
                elif what == "process killed":
                    stubs = find_stubs(server.pid)
                    next(one for one in stubs if stubs[one] == f"{MODEL}_classifier").kill()
                    try:
                        server.wait()
                    except ServerError as error:
                        words = error.message
                else:
                    server.stop()
                load.stop()
        tally.count(load.answers)
        off = sum("scores are off" in problem for problem in tally.problems)
        errors = Counter(one.partition(": ")[2][:160] for one in tally.problems)
        found = {"before": before, "right": tally.right, "wrong scores": off, "errors": dict(errors.most_common(6)),
                 "words": words}  # fmt: skip
        print(what, json.dumps(found), flush=True)
        yield what, found


def find_faults(results: dict[str, Any]) -> Iterator[str]:
    """Yield what is not as it must be in the results of soak and harm."""
    if "soak" in results:
        yield from _find_soak_faults(results["soak"])
    for what, found in results.get("harm", {}).items():
        yield from _find_harm_faults(what, found)


def _find_soak_faults(soaked: dict[str, Any]) -> Iterator[str]:
    if soaked["unexpected"]:
        yield f"soak: {soaked['unexpected']} answers were not expected"
    if soaked["right"] + soaked["refused"] != soaked["asked"]:
        yield f"soak: {soaked['asked']} requests, {soaked['right']} right answers and {soaked['refused']} refusals"
    for what in ("host_mib", "gpu_mib"):
        first, last = soaked[what][0], soaked[what][-1]
        if last > first * MOST_GROWTH:
            yield f"soak: {what} grew from {first:.0f} to {last:.0f}"


def _find_harm_faults(what: str, found: dict[str, Any]) -> Iterator[str]:
    if found["wrong scores"]:
        yield f"{what}: {found['wrong scores']} answers with wrong scores"
    if found["right"] <= found["before"] / 2:
        yield f"{what}: hardly any right answers"
    if what.startswith("plan") and (found["errors"] or found["right"] <= found["before"]):
        yield f"{what}: a plan that is served is in memory, and yet requests failed: {found['errors']}"
    if what == "process killed" and not found["words"]:
        yield f"{what}: the server did not say so"
