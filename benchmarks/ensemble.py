"""A model served as an ensemble by the pip server, against a bare loop over the same parts.

    python -m benchmarks.ensemble --rounds 10 --round-s 10
    python -m benchmarks.ensemble --model ssdlite320_mobilenet_v3_large
    python -m benchmarks.ensemble --model demo-detector --layout fused

Both take 500x375 JPEGs, four at a time, with the same code and the same usable cores. Served: gRPC, the steps in
processes of their own. Bare: one process in which four threads decode, run the graph with onnxruntime and, for a
detector, post-process, nothing between them; also one thread alone. Rounds take turns while the server stays up, and
the ratio is the median over the rounds. The weights are random: the arithmetic is the same.
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
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from benchmarks.load import Load, Question
from benchmarks.machine import describe_machine
from benchmarks.preprocess import make_jpegs
from generator.bulk.step import find_candidate
from generator.images.served_pixels import load_step
from generator.pipeline import BuildOptions, build_repository
from generator.render import template_root
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from generator.spec.recipe import Recipe
from generator.tasks.detection.postprocess import Postprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from generator.spec.model import ModelSpec

TARGET = 0.85


def count_served(url: str, bare: BareLoop, questions: list[Question], *, concurrency: int, seconds: float) -> float:
    """Return the images per second that so many clients get from the ensemble; every answer must be right."""
    asked = itertools.cycle(questions)
    with Load("grpc", url, asked, concurrency=concurrency, model=bare.model, output=bare.output) as load:
        started = time.monotonic()
        time.sleep(seconds)
        load.stop()
    problems = {answer.problem for answer in load.answers if answer.problem}
    assert not problems, problems
    return len(load.answers) / (max(answer.ended for answer in load.answers) - started)


class BareLoop:
    """Decode and run in threads of this process, with the step and the session options that are served."""

    def __init__(self, repository: Path, spec: ModelSpec) -> None:
        self.model = spec.name
        self._step = load_step("preprocess")
        record = read_record(repository, spec.name)
        assert record is not None
        graph = find_candidate(repository, spec.name).onnx
        parameters = Recipe.model_validate(record.recipe).parameters()
        self._recipe = self._step.Recipe({name: {"string_value": value} for name, value in parameters.items()})
        options = load_backend().make_session_options({}, spec.instance_counts()[network_key(spec)], model=spec.name)
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.intra_op_threads = options.intra_op_num_threads
        self.output = "PROBABILITIES"
        if spec.task == "detection":
            self.output = "SCORES"
            self._last = load_step("postprocess")
            served = Postprocess.of_record(record.spec, record.head, record.contract["labels"], score=None)
            texts = {name: {"string_value": value} for name, value in served.parameters.items()}
            self._thresholds = self._last.Options(texts, list(served.labels), served.most)

    def answer(self, data: bytes) -> NDArray[np.float32]:
        """Return the scores of one image: of the classes, or of its boxes with padding."""
        image = self._step.open_image(data, self._recipe)
        pixels = self._recipe.cropped(image)[None]
        outputs = self._session.run(None, {self._session.get_inputs()[0].name: pixels})
        if self.output == "PROBABILITIES":
            scores: NDArray[np.float32] = outputs[0][0]
            return scores
        geometry = np.array(self._recipe.geometry(*image.size), np.float32)
        found = self._last.detect(*(rows[0] for rows in outputs), geometry, self._thresholds)[1]
        return np.pad(found, (0, self._thresholds.most - len(found)))

    def count(self, files: list[bytes], *, threads: int, seconds: float) -> float:
        """Return the images per second that so many threads answer."""
        images = itertools.cycle(files)
        ended: list[float] = []
        started = time.monotonic()

        def work() -> None:
            while time.monotonic() < started + seconds:
                self.answer(next(images))
                ended.append(time.monotonic())

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return len(ended) / (max(ended) - started)


def network_key(spec: ModelSpec) -> str:
    """Return what `instances` calls the member that runs the network."""
    return next(role.key for role in spec.roles if role.holds_network)


def load_backend() -> Any:
    """Return the module templates/backends/onnxruntime/model.py."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
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
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-s", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--preprocess-instances", type=int, help="[default: as trtgen chooses]")
    parser.add_argument("--network-instances", type=int, help="[default: as trtgen chooses]")
    parser.add_argument("--layout", choices=["ensemble", "fused"], default="ensemble")
    parser.add_argument("--folder", type=Path, help="where to build and keep; [default: temporary]")
    options = parser.parse_args()
    weights = None if options.model.startswith("demo") else "random"
    spec = make_spec([options.model], weights=weights, layout=options.layout)[0]
    instances = {network_key(spec): options.network_instances}
    if options.layout == "ensemble":
        instances["preprocess"] = options.preprocess_instances
    spec = spec.model_copy(update={"instances": spec.instances.model_copy(update=instances)})
    files = make_jpegs(500, 375)
    seconds, concurrency = options.round_s, options.concurrency
    rows: list[tuple[float, float, float]] = []
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="trtgen-ensemble-"))
        repository = Path(folder) / "model_repository"
        build_repository(spec, repository, BuildOptions(verify=False))
        server = stack.enter_context(EmbeddedServer(repository))
        bare = BareLoop(repository, spec)
        questions = [Question(name="photograph", data=data, scores=bare.answer(data)) for data in files]
        for _ in range(options.rounds):
            served = count_served(server.grpc_url, bare, questions, concurrency=concurrency, seconds=seconds)
            threads = bare.count(files, threads=concurrency, seconds=seconds)
            alone = bare.count(files, threads=1, seconds=seconds)
            rows.append((served, threads, alone))
            print(f"{served:.1f} {threads:.1f} {alone:.1f} images/s", file=sys.stderr)
    served, threads, alone = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(row[0] / row[1] for row in rows)
    ratio_alone = statistics.median(row[0] / row[2] for row in rows)
    print(f"{describe_machine()}\n")
    counts = spec.instance_counts()
    print(f"{options.model}; instances: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    print(f"intra-op threads: {bare.intra_op_threads}; concurrency {concurrency}\n")
    print("| | images/s | served / this |")
    print("|---|---|---|")
    print(f"| {options.layout}, gRPC | {served:.1f} | |")
    print(f"| bare loop, {concurrency} threads | {threads:.1f} | {ratio:.2f} |")
    print(f"| bare loop, 1 thread | {alone:.1f} | {ratio_alone:.2f} |")
    return 0 if min(ratio, ratio_alone) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
