"""What the first larger batches cost behind a warm-up of one image, beside a warm-up of that batch.

    python -m benchmarks.warm_up --repository gpu-run/model_repository --model resnet50_fp16

The classifier's warm-up holds one image, so that tools may lower max_batch_size. Servers with that and with a second
warm-up are started in turns; each gets requests of one size, one after another, and the first ones are compared with
what is usual later. Every instance is first asked once, hence the several first ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc

from generator.gpu import find_gpu, why_no_gpu
from generator.server.embedded import EmbeddedServer

FIRST = 8


def copy_model(repository: Path, target: Path, model: str, *, more: int | None) -> Path:
    """Return a copy of the model whose classifier warms up a batch of `more` images, too."""
    for name in (model, f"{model}_preprocess", f"{model}_classifier"):
        shutil.copytree(repository / name, target / name, copy_function=os.link)
    config = target / f"{model}_classifier/config.pbtxt"
    text = config.read_text()
    (warmup,) = re.findall(r"model_warmup \[\n(.*)\n\]", text, re.DOTALL)
    if more is not None:
        second = warmup.replace('"one image"', '"a batch"').replace("batch_size: 1", f"batch_size: {more}")
        config.unlink()
        config.write_text(text.replace(warmup, f"{warmup},\n{second}"))
    return target


def ask(url: str, model: str, batch: int, requests: int) -> tuple[list[float], float]:
    """Return the milliseconds of the first requests, and the median of the later ones."""
    with grpc.InferenceServerClient(url) as client:
        given = client.get_model_metadata(model).inputs[0]
        shape = [batch, *given.shape[1:]]
        tensor = grpc.InferInput(given.name, shape, given.datatype)
        tensor.set_data_from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        times = []
        for _ in range(requests):
            started = time.perf_counter()
            client.infer(model, [tensor])
            times.append((time.perf_counter() - started) * 1e3)
    return times[:FIRST], statistics.median(times[FIRST:])


def main() -> None:
    """Measure both in turns and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    print(why_no_gpu() or find_gpu().name)
    rows: list[dict[str, Any]] = []
    for batch in arguments.batches:
        for more in [None, batch] * arguments.repeats:
            with tempfile.TemporaryDirectory(dir=arguments.repository.resolve().parent) as place:
                tree = copy_model(arguments.repository, Path(place) / "served", arguments.model, more=more)
                started = time.monotonic()
                with EmbeddedServer(tree) as server:
                    ready_s = time.monotonic() - started
                    model = f"{arguments.model}_classifier"
                    first_ms, later_ms = ask(server.grpc_url, model, batch, arguments.requests)
            row = {"batch": batch, "warm_up": [1] if more is None else [1, more], "ready_s": round(ready_s, 2)}
            rows.append({**row, "first_ms": [round(one, 2) for one in first_ms], "later_ms": round(later_ms, 2)})
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
