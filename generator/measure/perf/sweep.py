"""perf_analyzer run once per model and load, until its measurement windows agree.

A window takes at least a second and `requests_per_window` requests. Three windows in a row that agree within
`max_spread_percent`, in throughput and in latency, are reported together; what came before them does not count. Where
ten windows bring no such three, or far fewer requests were in flight or answered than asked for, the result is
Unsettled: no figure. A run that is not measured warms each model up first. (`--request-count` would be shorter for the
rest, too, but version 2.50 rounds the time it divides by up to whole seconds: 200 requests of 3 ms came out as 200
infer/s.)
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import socket
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import PerfError
from generator.measure.perf.analyzer import INSTALL
from generator.measure.perf.busy import StatisticsWatch
from generator.measure.perf.gpu import MetricsWatch
from generator.measure.perf.images import write_input
from generator.measure.perf.measurement import Unsettled, find_spread, read_measurement
from generator.measure.perf.poll import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.measurement import Measurement
    from generator.measure.perf.served import MeasuredModel

_MOST_WINDOWS = 10
_LEAST_IN_FLIGHT = 0.5  # of the concurrency; the rest is perf_analyzer's own time between two requests
_LEAST_ANSWERED = 0.9  # of the requests per second; below that their queue grows for as long as it is measured
_WARM_CONCURRENCY = 8  # where the load is a rate
_UNSTABLE = "Failed to obtain stable measurement"
INPUT_FILE, _OUTPUT = "images.json", "out.csv"
_PASS = re.compile(r"Pass \[\d+\] throughput: ([0-9.]+) infer/sec(?:\. Avg latency: ([0-9.]+) usec)?")
_COUNT = re.compile(r"Request count: ([1-9]\d*)")
_OVERHEAD = re.compile(r"Avg client overhead: ([0-9.]+)%")
_TAIL_LINES = 12
_HINT = "the lines above are perf_analyzer's own; the server's log may say more"
_SHARED_MEMORY = re.compile("shared.memory", re.IGNORECASE)
_SHARED_MEMORY_HINT = (
    "system shared memory needs a server on this host that sees the same /dev/shm (a container: --ipc=host), "
    "cuda one that has this host's GPU, and both, "
    "from Triton 26.04 on started with --allow-client-shm=true"
)
_OPEN_OUTPUT_BYTES = 16 * 2**20  # per image and output; pages that nobody writes to cost nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The load of one measurement: requests in flight, or requests sent per second, however many are answered."""

    concurrency: int | None = None
    request_rate: float | None = None

    def __str__(self) -> str:
        """Return it as messages say it."""
        if self.request_rate is None:
            return f"concurrency {self.concurrency}"
        return f"{self.request_rate:g} requests/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent where.

    `url` is `host:port`, the host as an address: perf_analyzer opens a connection for every sixth request in flight,
    and looks a name up for each of them while it already measures.
    `concurrencies` are numbers of requests in flight, `request_rates` how many are sent per second, at equal distances
    or, with `arrivals` of `poisson`, at random ones; `requests_per_window` is the least number of requests in a
    window, `timeout_s` the longest time that one model at one concurrency may take. A request has `batch_size` images.
    `shared_memory` is `none`, or `system` or `cuda`: images and answers stay in memory of the server's host, or of its
    GPU. `metrics_url` is `host:port` of the server's metrics page. `max_spread_percent` is how far three windows in a
    row may differ to be a result.
    """

    analyzer: Path
    protocol: str
    url: str
    concurrencies: Sequence[int]
    requests_per_window: int
    timeout_s: float
    batch_size: int
    shared_memory: str
    metrics_url: str
    max_spread_percent: float
    request_rates: Sequence[float] = ()
    arrivals: str = "constant"

    @property
    def levels(self) -> list[Level]:
        """What each model is measured at, in this order."""
        closed = [Level(concurrency=value) for value in self.concurrencies]
        return closed + [Level(request_rate=value) for value in self.request_rates]


def measure(
    models: Sequence[MeasuredModel], images: RequestImages, load: Load, *, parts: Sequence[MeasuredModel] = ()
) -> Iterator[Measurement | Unsettled]:
    """Yield a Measurement per model and level of the load as soon as it is there, or what did not settle.

    A model that takes encoded images gets `images` in turn, `batch_size` of them per request. One that takes tensors
    gets random bytes: what a network costs does not depend on the values. How busy members were is known of those that
    are among `models` or `parts`.

    Raises:
        PerfError: A run that failed, measured nothing or did not end in time; with the last lines of its output.
    """
    with tempfile.TemporaryDirectory(prefix="trtgen-perf-") as temporary:
        folder = Path(temporary)
        for model in models:
            if model.image_input:
                write_input(images.images, model.image_input, folder / INPUT_FILE)
            _warm_up(model, load, folder)
            for level in load.levels:
                yield _measure_one(model, level, load, folder, parts=[*models, *parts])


def _warm_up(model: MeasuredModel, load: Load, folder: Path) -> None:
    """Send enough requests for every instance and the largest batch that the load makes."""
    concurrency = max(load.concurrencies, default=_WARM_CONCURRENCY)
    count = ["--request-count", str(max(load.requests_per_window, 2 * concurrency))]
    arguments = [*make_arguments(model, concurrency, load), *count]
    what = f"perf_analyzer on {model.name}, warming up at concurrency {concurrency},"
    _run(arguments, what, load, folder)


def _measure_one(
    model: MeasuredModel, level: Level, load: Load, folder: Path, *, parts: Sequence[MeasuredModel]
) -> Measurement | Unsettled:
    rate = level.request_rate
    arguments = make_arguments(model, level.concurrency, load, request_rate=rate) + make_window_arguments(load)
    what = f"perf_analyzer on {model.name} at {level}"
    command = shlex.join(["perf_analyzer", *arguments])
    metrics = MetricsWatch(load.metrics_url, model.name)
    statistics = StatisticsWatch(load.protocol, load.url, model.name)
    with metrics.run(), statistics.run():
        output = _run(arguments, what, load, folder)
    windows = tuple(float(throughput) for throughput, _ in _PASS.findall(output))

    refused = Unsettled(
        model=model.name,
        concurrency=level.concurrency,
        request_rate=rate,
        batch_size=load.batch_size,
        windows_infer_per_s=windows,
        problem=f"no three of {len(windows)} windows in a row are within {load.max_spread_percent:g} %",
        command=command,
    )
    if _UNSTABLE in output:
        return refused
    measurement = read_measurement(
        (folder / _OUTPUT).read_text(encoding="utf-8"),
        model=model.name,
        members={member: _read_member(folder, member, what, output) for member in model.members},
        spread=find_spread(windows),
        command=command,
        batch_size=load.batch_size,
    )
    if problem := _find_problem(measurement, level, load, output):
        return replace(refused, problem=problem)
    overhead = _OVERHEAD.search(output)
    busy = {one.name: statistics.find_busy(one) for one in parts}
    return replace(
        measurement,
        gpu=metrics.summarize(measurement.infer_per_s),
        latency_spread=find_spread([float(latency) for _, latency in _PASS.findall(output) if latency]),
        client_overhead=float(overhead[1]) / 100 if overhead else None,
        cpu_utilization=metrics.find_cpu_utilization(),
        busy=busy.get(model.name),
        members=tuple(replace(member, busy=busy.get(member.model)) for member in measurement.members),
    )


def _find_problem(measurement: Measurement, level: Level, load: Load, output: str) -> str:
    """Return why the load was not the one that was asked for; empty where it was."""
    requests_per_s = measurement.infer_per_s / load.batch_size
    if level.concurrency is not None:
        # Little's law: requests in flight = throughput x latency.
        in_flight = requests_per_s * measurement.average_ms / 1000
        if in_flight < _LEAST_IN_FLIGHT * level.concurrency:
            return f"perf_analyzer kept only {in_flight:.1f} of {level.concurrency} requests in flight"
        return ""
    rate, count = level.request_rate or 0.0, _COUNT.search(output)
    # Of random arrivals there may be fewer, by three standard deviations of their number.
    chance = 3 / math.sqrt(int(count[1])) if count and load.arrivals == "poisson" else 0.0
    if requests_per_s < (_LEAST_ANSWERED - chance) * rate:
        return f"only {requests_per_s:.1f} of {rate:g} requests/s were answered"
    return ""


def _run(arguments: Sequence[str], what: str, load: Load, folder: Path) -> str:
    """Run perf_analyzer and return its output once it has written its file or says that nothing settled."""
    for old in folder.glob(f"*{_OUTPUT}"):
        old.unlink()
    try:
        run = subprocess.run(
            [load.analyzer, *arguments],
            cwd=folder,
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
            hint="send fewer requests, or wait longer; is the server still answering?",
            fields={"requests_per_window": None, "timeout_s": None},
        ) from error
    except OSError as error:
        raise PerfError(f"{what} does not start: {error}", hint="install it", **INSTALL) from error
    # The exit code alone is not to be trusted: versions before 26.11 leave with 0 after some failures.
    if _UNSTABLE not in run.stdout and (run.returncode or not (folder / _OUTPUT).is_file()):
        gone = "" if _is_listening(load.url) else f"the server at {load.url} is gone: "
        raise PerfError(
            f"{gone}{what} measured nothing (exit code {run.returncode}){_tail(run.stdout)}",
            hint=_SHARED_MEMORY_HINT if load.shared_memory != "none" and _SHARED_MEMORY.search(run.stdout) else _HINT,
        )
    return run.stdout


def _is_listening(url: str) -> bool:
    host, _, port = url.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S):
        return True
    return False


def make_arguments(
    model: MeasuredModel,
    concurrency: int | None,
    load: Load,
    *,
    request_rate: float | None = None,
    output: str = _OUTPUT,
) -> list[str]:
    """Return the arguments that say what is sent where; the images are in INPUT_FILE of the current folder.

    With `request_rate` the requests are sent without waiting for answers, and `concurrency` is None.
    """
    level = ["--concurrency-range", f"{concurrency}:{concurrency}:1"]
    if request_rate is not None:  # --async, since a thread that waits for an answer sends nothing
        rate = f"{request_rate:g}"
        level = ["--request-rate-range", f"{rate}:{rate}:1", "--request-distribution", load.arrivals, "--async"]
    return [
        *("-m", model.name),
        *("-i", load.protocol),
        *("-u", load.url),
        *("-b", str(load.batch_size)),
        *make_memory_arguments(model, load),
        *("--input-data", INPUT_FILE if model.image_input else "random"),
        *level,
        *("-f", output),
        "--verbose-csv",
        "-v",
    ]


def make_memory_arguments(model: MeasuredModel, load: Load) -> list[str]:
    """Return the arguments that put images and answers into shared memory; none where they are in the requests."""
    if load.shared_memory == "none":
        return []
    # perf_analyzer works out the size of outputs whose shape is known; for the others it takes 100 KB.
    size = ["--output-shared-memory-size", str(_OPEN_OUTPUT_BYTES)] if model.has_open_outputs else []
    return ["--shared-memory", load.shared_memory, *size]


def make_window_arguments(load: Load) -> list[str]:
    """Return the arguments that say when a measurement is a result."""
    return [
        *("--measurement-mode", "count_windows"),
        *("--measurement-request-count", str(load.requests_per_window)),
        *("--stability-percentage", f"{load.max_spread_percent:g}"),
        *("--max-trials", str(_MOST_WINDOWS)),
    ]


def _read_member(folder: Path, member: str, what: str, output: str) -> str:
    """Return the CSV of an ensemble's member: `<member>_v<version>.out.csv`, `<member>.<version>.out.csv` later."""
    pattern = re.compile(rf"{re.escape(member)}[._]v?\d+\.{re.escape(_OUTPUT)}")
    found = [file for file in folder.glob(f"*{_OUTPUT}") if pattern.fullmatch(file.name)]
    if len(found) != 1:
        raise PerfError(
            f"{what} wrote no file for the member {member}{_tail(output)}",
            hint="install the version that is known",
            **INSTALL,
        )
    return found[0].read_text(encoding="utf-8")


def _tail(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-_TAIL_LINES:]
    return "".join(f"\n  | {line}" for line in lines)
