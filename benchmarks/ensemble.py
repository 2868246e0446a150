"""ResNet-50 served as an ensemble by the pip server, against a bare loop over the same parts.

    python -m benchmarks.ensemble --rounds 10 --round-s 10

Both take 500x375 JPEGs, four at a time, with the same code and the same usable cores. Served: gRPC, preprocessing and
network in processes of their own. Bare: one process in which four threads decode and run the graph with onnxruntime,
nothing between them; also one thread alone. Rounds take turns while the server stays up, and the ratio is the median
over the rounds. The weights are random: the arithmetic is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from benchmarks.load import Load, Question
from benchmarks.machine import describe_machine
from benchmarks.preprocess import load_step, make_jpegs
from generator.pipeline import BuildOptions, build_repository
from generator.render import template_root
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from generator.spec.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.model import ModelSpec

MODEL = "resnet50"
TARGET = 0.85


def count_served(url: str, questions: list[Question], *, concurrency: int, seconds: float) -> float:
    """Return the images per second that so many clients get from the ensemble; every answer must be right."""
    with Load("grpc", url, itertools.cycle(questions), concurrency=concurrency, model=MODEL) as load:
        started = time.monotonic()
        time.sleep(seconds)
        load.stop()
    problems = {answer.problem for answer in load.answers if answer.problem}
    assert not problems, problems
    return len(load.answers) / (max(answer.ended for answer in load.answers) - started)


class BareLoop:
    """Decode and run in threads of this process, with the step and the session options that are served."""

    def __init__(self, repository: Path, spec: ModelSpec) -> None:
        step = load_step()
        record = read_record(repository, spec.name)
        assert record is not None
        graph = repository / spec.network_name / str(record.version) / "model.onnx"
        parameters = Recipe.model_validate(record.recipe).parameters()
        recipe = step.Recipe({name: {"string_value": value} for name, value in parameters.items()})
        options = load_backend().make_session_options({}, spec.instance_counts()["classifier"], model=spec.name)
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        self.intra_op_threads = options.intra_op_num_threads
        self.classify: Callable[[bytes], NDArray[np.float32]] = lambda data: session.run(
            None, {name: step.decode(data, recipe)[None]}
        )[0][0]

    def count(self, files: list[bytes], *, threads: int, seconds: float) -> float:
        """Return the images per second that so many threads classify."""
        images = itertools.cycle(files)
        ended: list[float] = []
        started = time.monotonic()

        def work() -> None:
            while time.monotonic() < started + seconds:
                self.classify(next(images))
                ended.append(time.monotonic())

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return len(ended) / (max(ended) - started)


def load_backend() -> Any:
    """Return the module templates/backends/onnxruntime/model.py."""
    load_step()  # leaves what only Triton has empty
    path = template_root() / "backends" / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Print one table; exit 1 if the ratio misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-s", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--preprocess-instances", type=int, help="[default: as trtgen chooses]")
    parser.add_argument("--classifier-instances", type=int, help="[default: as trtgen chooses]")
    parser.add_argument("--folder", type=Path, help="where to build and keep; [default: temporary]")
    options = parser.parse_args()
    instances = {"preprocess": options.preprocess_instances, "classifier": options.classifier_instances}
    spec = make_spec([MODEL], weights="random", instances={key: value for key, value in instances.items() if value})[0]
    files = make_jpegs(500, 375)
    seconds, concurrency = options.round_s, options.concurrency
    rows: list[tuple[float, float, float]] = []
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="trtgen-ensemble-"))
        repository = Path(folder) / "model_repository"
        build_repository(spec, repository, BuildOptions(verify=False))
        server = stack.enter_context(EmbeddedServer(repository))
        bare = BareLoop(repository, spec)
        questions = [Question(name="photograph", data=data, scores=bare.classify(data)) for data in files]
        for _ in range(options.rounds):
            served = count_served(server.grpc_url, questions, concurrency=concurrency, seconds=seconds)
            threads = bare.count(files, threads=concurrency, seconds=seconds)
            alone = bare.count(files, threads=1, seconds=seconds)
            rows.append((served, threads, alone))
            print(f"{served:.1f} {threads:.1f} {alone:.1f} images/s", file=sys.stderr)
    served, threads, alone = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(row[0] / row[1] for row in rows)
    ratio_alone = statistics.median(row[0] / row[2] for row in rows)
    print(f"{describe_machine()}\n")
    counts = spec.instance_counts()
    print(f"instances: preprocessing {counts['preprocess']}, classifier {counts['classifier']}")
    print(f"intra-op threads: {bare.intra_op_threads}; concurrency {concurrency}\n")
    print("| | images/s | served / this |")
    print("|---|---|---|")
    print(f"| ensemble, gRPC | {served:.1f} | |")
    print(f"| bare loop, {concurrency} threads | {threads:.1f} | {ratio:.2f} |")
    print(f"| bare loop, 1 thread | {alone:.1f} | {ratio_alone:.2f} |")
    return 0 if min(ratio, ratio_alone) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
