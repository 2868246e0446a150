"""Why `trtgen perf` against `localhost:8001` did not settle: the name, the port, or the server's options.

    python -m benchmarks.perf_address --repository model_repository --model resnet50_classifier --output DIR

Two servers of the same binary on the same repository: one started by hand with default addresses (0.0.0.0, port 8001),
and `trtgen serve`'s (127.0.0.1, another port). perf_analyzer asks each of them in turns, by the name `localhost` and by
127.0.0.1, with 128 requests in flight, then as `trtgen perf` does now with `localhost` given. For every run: the
windows, their spread, p99, the requests really in flight, and the look-ups that perf_analyzer made. Under 4 minutes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.measure.perf import served, sweep
from generator.measure.perf.analyzer import find_analyzer
from generator.measure.perf.images import collect_images, write_input
from generator.measure.perf.measurement import Measurement, find_spread
from generator.server import endpoint
from generator.server.embedded import EmbeddedServer
from generator.server.launch import assemble_backends, assemble_python, make_environment
from generator.server.wheel import check_embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

CONCURRENCY = 128
ROUNDS = 3
BUDGET_S = 200.0  # no run starts later
RUN_S = 60
ANY_SPREAD_PERCENT = 1e6


def start_by_hand(repository: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start the wheel's tritonserver as a user does: a repository, our backends, everything else by default."""
    triton = check_embedded()
    backends = assemble_backends(triton, folder)
    command = [str(triton.binary), f"--model-repository={repository}", f"--backend-directory={backends}"]
    with (folder / "by-hand.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=make_environment(triton, python=assemble_python(triton, folder)), stdout=log, stderr=log
        )
    deadline = time.monotonic() + 90
    while not endpoint.is_ready("127.0.0.1:8000"):
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise SystemExit((folder / "by-hand.log").read_text(errors="replace")[-3000:])
        time.sleep(0.2)
    return server


def measure_raw(load: sweep.Load, model: served.MeasuredModel, folder: Path) -> dict[str, Any]:
    """Return what perf_analyzer says of three windows at `load.url` as it is given, the first of them included."""
    windows = ["--measurement-mode", "count_windows", "--measurement-request-count", str(load.requests_per_window)]
    windows += ["--stability-percentage", f"{ANY_SPREAD_PERCENT:.0f}", "--max-trials", "3"]
    command = [str(load.analyzer), *sweep.make_arguments(model, CONCURRENCY, load, output="raw.csv"), *windows]
    (folder / "raw.csv").unlink(missing_ok=True)
    started = time.monotonic()
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=RUN_S, check=False)
        said, code = run.stdout + run.stderr, run.returncode
    except subprocess.TimeoutExpired as error:
        said, code = (error.stdout or b"").decode(errors="replace"), None
    found = [float(value) for value in re.findall(r"Pass \[\d+\] throughput: ([0-9.]+)", said)]
    result: dict[str, Any] = {
        "windows_infer_per_s": found,
        "spread": find_spread(found),
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": code,
    }
    if not (folder / "raw.csv").is_file():
        return {**result, "said": said.strip().splitlines()[-6:]}
    row = next(csv.DictReader((folder / "raw.csv").read_text().splitlines()))
    throughput, average_ms = float(row["Inferences/Second"]), float(row["Avg latency"]) / 1000
    in_flight = throughput / load.batch_size * average_ms / 1000
    return {**result, "p99_ms": float(row["p99 latency"]) / 1000, "in_flight": round(in_flight, 1)}


def measure_fixed(load: sweep.Load, model: served.MeasuredModel) -> dict[str, Any]:
    """Return what `trtgen perf --url localhost:PORT` finds now."""
    fixed = dataclasses.replace(load, url=served.find_address(load.url), max_spread_percent=20)
    one = next(sweep.measure([model], collect_images(None), fixed))
    if not isinstance(one, Measurement):
        return {"url": fixed.url, "settled": False, "problem": one.problem, "windows": one.windows_infer_per_s}
    in_flight = one.infer_per_s / one.batch_size * one.average_ms / 1000
    figures = {"infer_per_s": one.infer_per_s, "p99_ms": one.p99_ms, "in_flight": round(in_flight, 1)}
    return {"url": fixed.url, "settled": True, "spread": one.spread, **figures}


def describe_names() -> dict[str, Any]:
    """Return what this machine makes of `localhost`, and how long its DNS server takes to say that it knows none."""
    known = sorted({str(entry[4][0]) for entry in socket.getaddrinfo("localhost", 8001)})
    lines = Path("/etc/resolv.conf").read_text().splitlines() if Path("/etc/resolv.conf").is_file() else []
    servers = [line.split()[1] for line in lines if line.startswith("nameserver")]
    facts: dict[str, Any] = {
        "localhost": known,
        "hosts": [line for line in Path("/etc/hosts").read_text().splitlines() if "localhost" in line],
        "ipv6_loopback": "00000000000000000000000000000001" in Path("/proc/net/if_inet6").read_text()
        if Path("/proc/net/if_inet6").is_file()
        else False,
        "nameservers": servers,
        "resolv_options": [line for line in lines if line.startswith(("options", "search"))],
    }
    question = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + b"\x09localhost\0" + struct.pack(">HH", 28, 1)  # AAAA
    for server in servers[:1]:
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(8)
            started = time.monotonic()
            try:
                asking.connect((server, 53))
                asking.send(question)
                facts["dns_answer"] = f"code {asking.recv(512)[3] & 15}"
            except OSError as error:
                facts["dns_answer"] = f"{type(error).__name__}: {error}"
            facts["dns_seconds"] = round(time.monotonic() - started, 3)
    return facts


def trace_lookups(load: sweep.Load, model: served.MeasuredModel, folder: Path) -> dict[str, int] | None:
    """Return how often perf_analyzer asked a DNS server and connected in one run; None without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    trace = folder / "trace.txt"
    script = folder / "traced"
    script.write_text(f'#!/bin/sh\nexec {strace} -f -qq -e trace=connect -o {trace} {load.analyzer} "$@"\n')
    script.chmod(0o755)
    measure_raw(dataclasses.replace(load, analyzer=script), model, folder)
    text = trace.read_text(errors="replace") if trace.is_file() else ""
    port = load.url.rpartition(":")[2]
    return {"dns": text.count("htons(53)"), "connections": text.count(f"htons({port})")}


def measure_all(loads: dict[str, sweep.Load], model: served.MeasuredModel, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every run, the cases in turns, until the time is over."""
    started = time.monotonic()
    for number in range(ROUNDS):
        for case, load in loads.items():
            if time.monotonic() - started > BUDGET_S:
                return
            yield {"round": number, "case": case, **measure_raw(load, model, folder)}


def main() -> None:
    """Start both servers, measure, write perf_address.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000, help="least number in a window")
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    with tempfile.TemporaryDirectory(prefix="trtgen-perf-address-") as temporary:
        folder = Path(temporary)
        by_hand = start_by_hand(repository, folder)
        try:
            with EmbeddedServer(repository) as ours:
                results = compare(arguments, folder, ours)
        finally:
            by_hand.terminate()
            by_hand.wait(timeout=60)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "perf_address.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def compare(arguments: argparse.Namespace, folder: Path, ours: EmbeddedServer) -> dict[str, Any]:
    """Measure every case and return what was found, with a line per case first."""
    model = served.read_models("grpc", ours.grpc_url, arguments.model)[1][0]
    plain = sweep.Load(
        analyzer=find_analyzer(), protocol="grpc", url=ours.grpc_url, concurrencies=[CONCURRENCY],
        requests_per_window=arguments.requests, timeout_s=RUN_S, batch_size=arguments.batch_size, shared_memory="none",
        metrics_url=ours.metrics_url, max_spread_percent=20,
    )  # fmt: skip
    if model.image_input:
        write_input(collect_images(None).images, model.image_input, folder / sweep.INPUT_FILE)
    port = ours.grpc_url.rpartition(":")[2]
    urls = {
        "by hand, localhost:8001": "localhost:8001",
        "by hand, 127.0.0.1:8001": "127.0.0.1:8001",
        "trtgen serve, localhost": f"localhost:{port}",
        "trtgen serve, 127.0.0.1": ours.grpc_url,
    }
    loads = {case: dataclasses.replace(plain, url=url) for case, url in urls.items()}
    names = describe_names()
    for url in ("127.0.0.1:8001", ours.grpc_url):  # neither is measured cold
        measure_raw(dataclasses.replace(plain, url=url), model, folder)
    runs = []
    for run in measure_all(loads, model, folder):
        print(json.dumps(run), flush=True)
        runs.append(run)
    fixed = measure_fixed(dataclasses.replace(plain, url="localhost:8001"), model)
    lookups = {case: trace_lookups(loads[case], model, folder) for case in list(loads)[:2]}
    cases = {case: summarise([run for run in runs if run["case"] == case]) for case in loads}
    return {"cases": cases, "fixed": fixed, "lookups": lookups, "names": names, "runs": runs}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of one case, and how many of its runs measured nothing."""
    keys = ("spread", "p99_ms", "in_flight", "seconds")
    values = {key: [run[key] for run in runs if run.get(key) is not None] for key in keys}
    medians = {key: statistics.median(found) if found else None for key, found in values.items()}
    return {**medians, "spreads": values["spread"], "failed": sum("said" in run for run in runs), "runs": len(runs)}


if __name__ == "__main__":
    main()
