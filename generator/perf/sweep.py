"""perf_analyzer run once per model and concurrency.

Each run takes three measurement windows of at least one second and `requests` requests each, and reports the three
together. perf_analyzer's own wait for stable windows is switched off: on a busy machine it drops the result after ten
windows and still exits with 0. The spread between the windows is reported instead. (`--request-count` would be shorter,
but version 2.50 rounds the time it divides by up to whole seconds: 200 requests of 3 ms came out as 200 infer/s.)
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import PerfError
from generator.perf.analyzer import library_environment
from generator.perf.gpu import MetricsWatch
from generator.perf.images import write_input
from generator.perf.report import read_measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.perf.images import ImageSet
    from generator.perf.report import Measurement
    from generator.perf.served import ServedModel

__all__ = ["Load", "measure"]

_WINDOWS = 3
_ANY_SPREAD_PERCENT = 1_000_000
_INPUT, _OUTPUT = "images.json", "out.csv"
_TAIL_LINES = 12
_HINT = "the lines above are perf_analyzer's own; the server's log may say more"
_SHARED_MEMORY = re.compile("shared.memory", re.IGNORECASE)
_SHARED_MEMORY_HINT = (
    "--shared-memory system needs a server on this host that sees the same /dev/shm (a container: --ipc=host), "
    "from Triton 26.04 on started with --allow-client-shm=true"
)
_OPEN_OUTPUT_BYTES = 16 * 2**20  # per image and output; pages that nobody writes to cost nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent where.

    `concurrencies` are numbers of requests in flight, `requests` the least number of them in a measurement window,
    `timeout_s` the longest time that one model at one concurrency may take. A request has `batch_size` images.
    `shared_memory` is `none` or `system`: with the latter, images and answers stay in shared memory of the server's
    host. `metrics_url` is `host:port` of the server's metrics page.
    """

    analyzer: Path
    protocol: str
    url: str
    concurrencies: Sequence[int]
    requests: int
    timeout_s: float
    batch_size: int
    shared_memory: str
    metrics_url: str


def measure(models: Sequence[ServedModel], images: ImageSet, load: Load) -> Iterator[Measurement]:
    """Yield a Measurement per model and concurrency as soon as it is there.

    A model that takes encoded images gets `images` in turn, `batch_size` of them per request. One that takes tensors
    gets random bytes: what a network costs does not depend on the values.

    Raises:
        PerfError: A run that failed, measured nothing or did not end in time; with the last lines of its output.
    """
    with library_environment() as environment, tempfile.TemporaryDirectory(prefix="trtgen-perf-") as temporary:
        folder = Path(temporary)
        for model in models:
            if model.image_input:
                write_input(images.images, model.image_input, folder / _INPUT)
            for concurrency in load.concurrencies:
                yield _measure_one(model, concurrency, load, folder, environment)


def _measure_one(
    model: ServedModel, concurrency: int, load: Load, folder: Path, environment: dict[str, str]
) -> Measurement:
    arguments = _make_arguments(model, concurrency, load)
    what = f"perf_analyzer on {model.name} at concurrency {concurrency}"
    watch = MetricsWatch(load.metrics_url, model.name)
    for old in folder.glob(f"*{_OUTPUT}"):
        old.unlink()
    try:
        with watch.run():
            run = subprocess.run(
                [load.analyzer, *arguments],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=load.timeout_s,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        raise PerfError(
            f"{what} did not end within {load.timeout_s:g} s{_tail(said.decode(errors='replace'))}",
            hint="lower --measurement-requests or raise --timeout; is the server still answering?",
        ) from error
    except OSError as error:
        raise PerfError(f"{what} does not start: {error}", hint="trtgen perf --install") from error
    result = folder / _OUTPUT
    # The exit code alone is not to be trusted: versions before 26.11 leave with 0 after some failures.
    if run.returncode or not result.is_file():
        raise PerfError(
            f"{what} measured nothing (exit code {run.returncode}){_tail(run.stdout)}",
            hint=_SHARED_MEMORY_HINT if load.shared_memory != "none" and _SHARED_MEMORY.search(run.stdout) else _HINT,
        )
    measurement = read_measurement(
        result.read_text(encoding="utf-8"),
        model=model.name,
        members={member: _read_member(folder, member, what, run.stdout) for member in model.members},
        spread=_find_spread(run.stdout),
        command=shlex.join(["perf_analyzer", *arguments]),
        batch_size=load.batch_size,
    )
    return replace(measurement, gpu=watch.summarize(measurement.infer_per_s))


def _make_arguments(model: ServedModel, concurrency: int, load: Load) -> list[str]:
    shared = []
    if load.shared_memory != "none":
        shared = ["--shared-memory", load.shared_memory]
        if model.has_open_outputs:  # perf_analyzer works out the size of the others; its default is 100 KB
            shared += ["--output-shared-memory-size", str(_OPEN_OUTPUT_BYTES)]
    return [
        *("-m", model.name),
        *("-i", load.protocol),
        *("-u", load.url),
        *("-b", str(load.batch_size)),
        *shared,
        *("--input-data", _INPUT if model.image_input else "random"),
        *("--concurrency-range", f"{concurrency}:{concurrency}:1"),
        *("--measurement-mode", "count_windows"),
        *("--measurement-request-count", str(load.requests)),
        *("--stability-percentage", str(_ANY_SPREAD_PERCENT)),
        *("--max-trials", str(_WINDOWS)),
        *("-f", _OUTPUT),
        "--verbose-csv",
        "-v",
    ]


def _read_member(folder: Path, member: str, what: str, output: str) -> str:
    """Return the CSV of an ensemble's member: `<member>_v<version>.out.csv`, `<member>.<version>.out.csv` later."""
    pattern = re.compile(rf"{re.escape(member)}[._]v?\d+\.{re.escape(_OUTPUT)}")
    found = [file for file in folder.glob(f"*{_OUTPUT}") if pattern.fullmatch(file.name)]
    if len(found) != 1:
        raise PerfError(
            f"{what} wrote no file for the member {member}{_tail(output)}",
            hint="use the version of `trtgen perf --install`",
        )
    return found[0].read_text(encoding="utf-8")


def _find_spread(output: str) -> float | None:
    windows = [float(value) for value in re.findall(r"Pass \[\d+\] throughput: ([0-9.]+) infer/sec", output)]
    return max(windows) / min(windows) - 1 if windows and min(windows) > 0 else None


def _tail(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-_TAIL_LINES:]
    return "".join(f"\n  | {line}" for line in lines)
