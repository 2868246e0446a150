"""What `classify-all --endpoint` takes from a server, against what perf_analyzer takes from it.

    python -m benchmarks.bulk_endpoint --rounds 5

One server with the demo model, 500x375 JPEGs, the same images per request and requests in flight for both, which share
the cores with the server and take turns. The engine reads files and writes Parquet; its clock runs from when its
process is ready. perf_analyzer has its images in memory, keeps no answer, and reports what its windows agree on.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe_machine
from benchmarks.preprocess import make_jpegs
from generator.bulk.endpoint import EndpointStep, find_served_model, make_endpoint_steps
from generator.bulk.results import open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import open_source
from generator.measure.perf import served, sweep
from generator.measure.perf.analyzer import find_analyzer, install_analyzer
from generator.measure.perf.images import RequestImages
from generator.measure.perf.measurement import Measurement
from generator.pipeline import BuildOptions, build_repository
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET = 0.9


class TimedStep(EndpointStep):
    """A step that says when it is ready."""

    def __init__(self, ready: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        ready.write_text(str(time.time()))


def measure_engine(url: str, photos: Path, folder: Path, *, batch: int, in_flight: int) -> float:
    """Return images/s, from the process's being ready to the last file's being on the disk."""
    endpoints = [url]
    model = find_served_model(endpoints, "demo", "classification", None)
    (made,) = make_endpoint_steps(endpoints, model, top=5, in_flight=in_flight, timeout_s=60, secrets=None, workers=1)
    assert isinstance(made, functools.partial)
    options = {**made.func.keywords, **made.keywords} if isinstance(made.func, functools.partial) else made.keywords
    step = functools.partial(TimedStep, folder / "ready", *made.args, **options)
    with open_results(folder / "results", {}, rows_per_part=20_000) as results:
        finished = run_bulk(open_source(str(photos)), results, [step], batch_size=batch)
    assert not finished.errors
    return finished.items / (time.time() - float((folder / "ready").read_text()))


def measure_perf(load: sweep.Load, images: Sequence[bytes]) -> float | None:
    """Return images/s; None where no windows agree."""
    _, models = served.read_models("grpc", load.url, "demo")
    found = next(sweep.measure(models, RequestImages(source="500x375", images=tuple(images)), load))
    return found.infer_per_s if isinstance(found, Measurement) else None


def main() -> int:
    """Print both and their ratio; exit 1 if it misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--in-flight", type=int, default=4)
    options = parser.parse_args()
    found: dict[str, list[float]] = {"perf_analyzer": [], "engine": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = make_spec(["demo"], batch={"max": options.batch}, target="onnxruntime")[0]
        build_repository(spec, folder / "models", BuildOptions(verify=False))
        jpegs = make_jpegs(500, 375)
        photos = folder / "photos"
        photos.mkdir()
        for number in range(options.images):
            (photos / f"{number:06d}.jpg").write_bytes(jpegs[number % len(jpegs)])
        with EmbeddedServer(folder / "models") as server:
            url = server.grpc_url.rpartition("://")[2]
            load = sweep.Load(
                analyzer=find_program(folder),
                protocol="grpc",
                url=url,
                concurrencies=[options.in_flight],
                requests_per_window=20,
                timeout_s=180,
                batch_size=options.batch,
                shared_memory="none",
                metrics_url=server.metrics_url,
                max_spread_percent=20,
            )
            for turn in range(options.rounds):
                (folder / str(turn)).mkdir()
                rate = measure_perf(load, jpegs)
                engine = measure_engine(
                    url, photos, folder / str(turn), batch=options.batch, in_flight=options.in_flight
                )
                print(f"turn {turn + 1}: perf_analyzer {rate or 0:,.0f}, engine {engine:,.0f} images/s", flush=True)
                if rate is not None:
                    found["perf_analyzer"].append(rate)
                    found["engine"].append(engine)
    if not found["engine"]:
        print("perf_analyzer's windows never agreed: the machine is too busy")
        return 1
    perf, engine = (statistics.median(found[name]) for name in ("perf_analyzer", "engine"))
    ratios = [engine / perf for perf, engine in zip(found["perf_analyzer"], found["engine"], strict=True)]
    ratio = statistics.median(ratios)
    print(describe_machine())
    print(f"median: perf_analyzer {perf:,.0f}, engine {engine:,.0f} images/s; ratio {ratio:.3f} (>= {TARGET})")
    return 0 if ratio >= TARGET else 1


def find_program(folder: Path) -> Path:
    """Return perf_analyzer, fetched where there is none."""
    from generator.errors import PerfError

    try:
        return find_analyzer()
    except PerfError:
        return install_analyzer(folder / "prefix")


if __name__ == "__main__":
    sys.exit(main())
