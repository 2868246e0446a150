"""perf_analyzer: installed, fed, run against a real tritonserver, and its files read."""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import http.server
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from generator.cli import main
from generator.cli.options import SERVED_VARIABLES
from generator.errors import PerfError, VerificationError
from generator.measure.perf import analyzer, gpu, images, served, sweep
from generator.measure.perf.busy import Busy
from generator.measure.perf.check import Check, try_change
from generator.measure.perf.measurement import Measurement, Unsettled, read_measurement
from generator.measure.perf.output import format_table, make_files
from generator.measure.perf.verdict import Change, judge
from generator.measure.results import check_folder, write_files
from generator.server import endpoint
from generator.server.embedded import EmbeddedServer
from generator.server.ports import Ports, choose_ports
from tests.server_parts import read_settled, wait_until
from tests.tiny_repository import STARTED, build_tiny_repository, make_image, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = Path(__file__).parent / "data" / "perf_analyzer"  # perf_analyzer 2.50's files for tiny at concurrency 4
ENSEMBLE = (DATA / "ensemble.csv").read_text()
MEMBERS = {name: (DATA / f"{name}.csv").read_text() for name in ("preprocess", "classifier")}

ANY_SPREAD = ("--max-spread", "1000")  # what is asserted holds on a busy machine, too

server = pytest.mark.server


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with serve(build_tiny_repository(tmp_path_factory.mktemp("repository"))) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server whose one preprocessing process waits 30 ms for each image, which needs no core."""
    with EmbeddedServer(build_tiny_repository(tmp_path_factory.mktemp("slow") / "repository", delay_s=0.03)) as running:
        yield running


@pytest.fixture
def told(slow: EmbeddedServer, program: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedServer:
    """That server, and what `trtgen serve` tells its command."""
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    found = (slow.http_url, slow.grpc_url, slow.metrics_url, str(slow.repository))
    for name, value in zip(SERVED_VARIABLES, found, strict=True):
        monkeypatch.setenv(name, value)
    return slow


ANSWER_VERSION = "test $1 = --version && echo Perf Analyzer Version && exit 0"
COPY_RESULT = [f"cp {DATA}/ensemble.csv out.csv"] + [
    f"cp {DATA}/{member}.csv tiny_{member}_v1.out.csv" for member in ("preprocess", "classifier")
]


def make_program(folder: Path, *lines: str) -> Path:
    """Write a shell script that fails as perf_analyzer does where the real one cannot be made to."""
    path = folder / "perf_analyzer"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def answer_metrics(make_page: Callable[[], str], status: int = 200) -> Iterator[str]:
    """Answer every request with the page that is made for it; yield `host:port`."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = make_page().encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as answering:
        thread = threading.Thread(target=answering.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"127.0.0.1:{answering.server_port}"
        answering.shutdown()
        thread.join()


def write_gpu(name: str, *, utilization: float, power_w: float | None, joules: float | None, used: float) -> str:
    """What Triton's page says of one GPU."""
    values = {
        "nv_gpu_utilization": utilization,
        "nv_gpu_power_usage": power_w,
        "nv_gpu_memory_used_bytes": used,
        "nv_gpu_memory_total_bytes": 1e12,
        "nv_energy_consumption": joules,
    }
    known = {metric: value for metric, value in values.items() if value is not None}
    return "".join(f'# TYPE {metric} gauge\n{metric}{{gpu_uuid="{name}"}} {value}\n' for metric, value in known.items())


# --- its files


def test_ensemble_is_read_with_its_members() -> None:
    one = read_measurement(ENSEMBLE, model="tiny", members=MEMBERS, spread=0.1, command="perf_analyzer -m tiny")
    row = next(csv.DictReader(ENSEMBLE.splitlines()))
    assert (one.concurrency, one.infer_per_s) == (4, float(row["Inferences/Second"]))
    assert one.p99_ms == float(row["p99 latency"]) / 1000
    assert one.average_ms == pytest.approx(float(row["Avg latency"]) / 1000, rel=0.01)
    assert one.p50_ms < one.p95_ms < one.p99_ms
    # The ensemble's own row says 1 us of queue; the requests waited in front of the preprocess model.
    assert one.stages.queue_ms == pytest.approx(one.members[0].stages.queue_ms, rel=0.2)
    assert one.stages.queue_ms > 1
    assert one.stages.infer_ms == pytest.approx(float(row["Server Compute Infer"]) / 1000, abs=0.002)
    assert [part.model for part in one.members] == ["preprocess", "classifier"]
    assert one.other_ms + one.stages.total_ms == pytest.approx(one.average_ms)
    shares = [part.share for part in one.members]
    assert sum(shares) == pytest.approx(1 - one.other_ms / one.average_ms, abs=0.01)


def test_plain_model_and_columns_of_other_versions() -> None:
    lines = ENSEMBLE.splitlines()
    more = "\n".join([lines[0] + ",Avg GPU Utilization,", lines[1] + ",GPU-1:0.5;,"])
    one = read_measurement(more, model="plain", members={})
    assert one.members == ()
    assert one.stages.queue_ms < 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 rows, expected 1"),
        (ENSEMBLE.splitlines()[0], "has 0 rows, expected 1"),
        (ENSEMBLE + ENSEMBLE.splitlines()[1], "has 2 rows, expected 1"),
        (ENSEMBLE.replace("p99 latency", "p98 latency"), "no 'p99 latency' among the columns"),
        (ENSEMBLE.replace("\n4,", "\nfour,"), "'four' under 'Concurrency'"),
    ],
)
def test_file_that_says_nothing_is_an_error(text: str, message: str) -> None:
    with pytest.raises(PerfError, match=message):
        read_measurement(text, model="tiny", members={})


def test_table_and_files(tmp_path: Path) -> None:
    ensemble = read_measurement(ENSEMBLE, model="tiny", members=MEMBERS, spread=0.25)
    plain = read_measurement(ENSEMBLE, model="plain", members={})
    table = format_table([ensemble, plain]).splitlines()
    assert table[0].split() == [
        *("model", "batch", "concurrency", "images/s", "spread", "p50", "p95", "p99"),
        *("queue", "input", "infer", "output", "other", "share"),
    ]
    assert table[1].split()[:5] == ["tiny", "1", "4", f"{ensemble.infer_per_s:.1f}", "25%"]
    assert table[2].startswith("  preprocess")
    assert table[2].endswith(f"{ensemble.members[0].share:.0%}")
    assert len(table) == 5

    written = write_files(make_files([ensemble, plain], {"date": "today"}), tmp_path / "perf")
    assert [path.name for path in written] == ["perf.csv", "perf.json"]
    rows = list(csv.DictReader(written[0].read_text().splitlines()))
    assert [(row["model"], row["ensemble"]) for row in rows] == [
        ("tiny", ""),
        ("preprocess", "tiny"),
        ("classifier", "tiny"),
        ("plain", ""),
    ]
    assert float(rows[0]["p99_ms"]) == pytest.approx(ensemble.p99_ms)
    document = json.loads(written[1].read_text())
    assert document["date"] == "today"
    assert document["measurements"][0]["members"][1]["stages"]["queue_ms"] == pytest.approx(
        ensemble.members[1].stages.queue_ms
    )
    (tmp_path / "file").touch()
    with pytest.raises(PerfError, match="cannot be written"):
        write_files(make_files([plain], {}), tmp_path / "file")


# --- perf_analyzer itself


def test_install_and_find(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert analyzer.check_analyzer(program).startswith("Perf Analyzer Version")
    monkeypatch.delenv("PERF_ANALYZER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(PerfError, match="neither on PATH nor beside") as caught:
        analyzer.find_analyzer()
    assert (caught.value.command, caught.value.fields) == (("perf",), {"install": True})
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    assert analyzer.find_analyzer() == program
    first = make_program(tmp_path, "exit 0")
    assert analyzer.find_analyzer() == first
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    assert analyzer.find_analyzer() == program
    monkeypatch.setenv("PERF_ANALYZER", str(tmp_path / "absent"))
    with pytest.raises(PerfError, match=r"PERF_ANALYZER is .*absent"):
        analyzer.find_analyzer()


def test_it_starts_by_itself(program: Path, tmp_path: Path) -> None:
    """As from a shell or Model Analyzer: an empty environment, another folder, a link to it on PATH."""
    link = tmp_path / "perf_analyzer"
    link.symlink_to(program)
    said = subprocess.run([link, "--version"], env={}, cwd="/", capture_output=True, text=True, check=True).stderr
    assert said.startswith("Perf Analyzer Version")
    binary = analyzer.find_binary(program)
    assert sorted(path.name for path in binary.parent.iterdir()) == [
        *("libb64.so.0d", "libcudart.so.12", "perf_analyzer")
    ]
    assert analyzer.find_binary(Path("/bin/sh")) == Path("/bin/sh")


def test_wheel_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(PerfError, match="expected 0000"):
        analyzer.install_analyzer(tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()


def test_install_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PerfError, match="cannot be written"):
        analyzer.install_analyzer(tmp_path / "file")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PerfError, match=r"(?s)pip does not fetch tritonclient==2\.50\.0:\n.*No matching distribution"):
        analyzer.install_analyzer(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PerfError, match="is for x86-64 Linux, this is linux on aarch64"):
        analyzer.install_analyzer(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "echo 'perf_analyzer: error while loading shared libraries: libb64.so.0d: cannot open' >&2; exit 127",
            "needs the shared library libb64.so.0d",
        ),
        ("echo hello", "is not perf_analyzer: asked for its version, it answers 'hello'"),
    ],
)
def test_program_that_does_not_start(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(PerfError, match=message):
        analyzer.check_analyzer(make_program(tmp_path, line))


# --- what it is fed with


def test_input_file_holds_the_images(tmp_path: Path) -> None:
    images.write_input([b"one", b"three"], "IMAGE", tmp_path / "input.json")
    entries = json.loads((tmp_path / "input.json").read_text())["data"]
    assert [entry["IMAGE"]["shape"] for entry in entries] == [[1], [1]]
    content = base64.b64decode(entries[1]["IMAGE"]["content"]["b64"])
    assert content == struct.pack("<I", 5) + b"three"


def test_images_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (tmp_path / f"{number:03}.jpg").write_bytes(make_image("red", size=(10 + number, 10)))
    found = images.collect_images(tmp_path)
    assert len(found.images) == images.MOST_IMAGES
    assert found.images[0] == (tmp_path / "000.jpg").read_bytes()
    assert found.images[-1] == (tmp_path / "098.jpg").read_bytes()
    assert found.describe()["count"] == images.MOST_IMAGES
    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
        with pytest.raises(VerificationError, match=r"000\.jpg does not decode: Image size"):
            images.collect_images(tmp_path)
    (tmp_path / "000.jpg").write_bytes(found.images[0][:50])
    with pytest.raises(VerificationError, match=r"000\.jpg does not decode"):
        images.collect_images(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(VerificationError, match="holds no image"):
        images.collect_images(tmp_path / "none")


def test_drawn_images_are_of_mixed_sizes() -> None:
    about = images.collect_images(None).describe()
    assert about["count"] == images.DRAWN_IMAGES
    assert int(str(about["largest_bytes"])) > 3 * int(str(about["smallest_bytes"]))


# --- the run


@server
def test_perf_measures_the_ensemble_and_its_members(
    program: Path,
    urls: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    named = urls["grpc"].replace("127.0.0.1", "localhost")
    arguments = ["--url", named, "--concurrency", "1,4", "--measurement-requests", "50", *ANY_SPREAD]
    assert main(["perf", *arguments, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr()
    document = json.loads((tmp_path / "perf.json").read_text())
    found = [(one["model"], one["concurrency"]) for one in document["measurements"]]
    assert found == [(model, n) for model in ("tiny", "tiny_preprocess", "tiny_classifier") for n in (1, 4)]
    for one in document["measurements"]:
        assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
        # Little's law: requests in flight = throughput x latency. It fails when either is measured wrongly. Among 50
        # requests, those that begin before the window or end behind it count: on a busy machine 3.5 of 4 were found.
        assert one["infer_per_s"] * one["average_ms"] / 1000 == pytest.approx(one["concurrency"], rel=0.25)
        assert one["stages"]["infer_ms"] > 0
        assert one["spread"] is not None
        assert one["settled"] is True
        assert f"-u {urls['grpc']} " in one["command"]  # the name would be looked up for every sixth request in flight
    ensemble = document["measurements"][1]
    assert [part["model"] for part in ensemble["members"]] == ["tiny_preprocess", "tiny_classifier"]
    # the rest is the client's: 0.43 were left on a busy machine
    assert 0.2 < sum(part["share"] for part in ensemble["members"]) <= 1
    assert document["versions"]["server"].endswith(" 2.51.0")
    assert document["images"]["count"] == images.DRAWN_IMAGES
    table, _, verdict = said.out.partition("\n\n")
    assert table.count("\n") == 6 + 4
    assert verdict.startswith(document["verdict"]["text"])
    assert "measuring tiny, tiny_preprocess, tiny_classifier" in said.err


@server
def test_perf_over_http_with_images_of_ones_own(
    program: Path,
    urls: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    (tmp_path / "one.jpg").write_bytes(make_image("red"))
    arguments = ["--url", urls["http"], "--protocol", "http", "--model", "tiny", "--no-members", "--concurrency", "2"]
    more = ["--measurement-requests", "20", "--images", str(tmp_path), "--output", str(tmp_path / "perf"), *ANY_SPREAD]
    assert main(["perf", *arguments, *more]) == 0
    rows = list(csv.DictReader((tmp_path / "perf" / "perf.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["tiny", "tiny_preprocess", "tiny_classifier"]
    assert [row["ensemble"] for row in rows] == ["", "tiny", "tiny"]
    assert "images/s" in capsys.readouterr().out


@server
def test_batches_in_shared_memory_beside_two_gpus(
    program: Path,
    urls: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server's own page, with lines for two GPUs of 60 and 40 W added: there is none here."""
    started = time.monotonic()

    def make_page() -> str:
        with urllib.request.urlopen(f"http://{urls['metrics']}/metrics", timeout=10) as response:
            page: str = response.read().decode()
        spent = 60 * (time.monotonic() - started)
        first = write_gpu("GPU-a", utilization=0.5, power_w=60, joules=spent, used=3e9)
        return page + first + write_gpu("GPU-b", utilization=0.25, power_w=40, joules=spent * 2 / 3, used=1e9)

    monkeypatch.setenv("PERF_ANALYZER", str(program))
    arguments = ["--url", urls["grpc"], "--concurrency", "2", "--measurement-requests", "20", "--batch-size", "4"]
    with answer_metrics(make_page) as metrics_url:
        more = ["--shared-memory", "system", "--metrics-url", metrics_url, "--output", str(tmp_path), *ANY_SPREAD]
        before = count_inferences(urls["grpc"])
        assert main(["perf", *arguments, *more]) == 0
    after = read_settled(lambda: count_inferences(urls["grpc"]), before)
    counts = {model: [new - old for new, old in zip(after[model], before[model], strict=True)] for model in after}
    for inferences, requests in counts.values():
        assert inferences == 4 * requests > 0

    document = json.loads((tmp_path / "perf.json").read_text())
    assert document["load"]["batch_size"] == 4
    assert document["load"]["shared_memory"] == "system"
    for one in document["measurements"]:
        assert "--shared-memory system" in one["command"]
        # Little's law in images: what is in flight = images per second x latency.
        assert one["infer_per_s"] * one["average_ms"] / 1000 == pytest.approx(2 * 4, rel=0.25)
        found = one["gpu"]
        assert (found["gpus"], found["utilization"], found["memory_used_bytes"]) == (2, 0.375, 4e9)
        assert found["power_w"] == 100
        assert found["energy_j"] / found["seconds"] == pytest.approx(100, rel=0.05)
        assert 2 < found["seconds"] < 30
        assert found["samples"] > 5
        assert found["images_per_joule"] == pytest.approx(one["infer_per_s"] / 100, abs=1e-5)
        assert found["unknown"] is None
    said = capsys.readouterr()
    header, first, *_ = said.out.splitlines()
    assert header.endswith("share  2 GPUs  watts  images/J")
    assert first.split()[-3:-1] == ["38%", "100.0"]
    rows = list(csv.DictReader((tmp_path / "perf.csv").read_text().splitlines()))
    assert (rows[0]["batch_size"], rows[0]["gpus"], rows[0]["gpu_power_w"]) == ("4", "2", "100.0")
    assert rows[1]["gpus"] == ""
    assert "GPU figures" not in said.err


def count_inferences(url: str) -> dict[str, list[int]]:
    """How many images and requests each model has answered, in the server's words."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(url) as client:
        models = client.get_inference_statistics(as_json=True)["model_stats"]
    return {
        model["name"]: [int(model.get("inference_count", 0)), int(model["inference_stats"]["success"].get("count", 0))]
        for model in models
    }


@server
def test_batch_larger_than_the_models_is_refused(
    program: Path,
    urls: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    for protocol in ("grpc", "http"):
        arguments = ["--protocol", protocol, "--url", urls[protocol], "--batch-size", "5", "--output", str(tmp_path)]
        assert main(["perf", *arguments]) == 1
        said = capsys.readouterr().err
        assert "error: tiny takes batches of at most 4 (max_batch_size: 4), a request was to have 5" in said
        assert "(--batch-size 4)" in said
    assert "measuring" not in said
    assert not list(tmp_path.iterdir())


def test_model_without_batches_takes_one_image() -> None:
    model = served.MeasuredModel(name="single", image_input=None, members=(), max_batch_size=0)
    served.check_batch_size([model], 1)
    with pytest.raises(PerfError, match=r"single takes batches of at most 1 \(max_batch_size: 0\)"):
        served.check_batch_size([model], 2)


@server
def test_outputs_of_open_size_get_a_size_in_shared_memory(program: Path, tmp_path: Path) -> None:
    root = build_tiny_repository(tmp_path / "repository")
    shutil.rmtree(root / "tiny")
    shutil.rmtree(root / "tiny_classifier")
    config, code = root / "tiny_preprocess" / "config.pbtxt", root / "tiny_preprocess" / "1" / "model.py"
    config.write_text(config.read_text().replace("dims: [ 8, 8, 3 ]", "dims: [ -1, -1, 3 ]"))
    code.write_text(code.read_text().replace("resize((8, 8))", "resize((256, 256))"))  # more than the default 100 KB
    with serve(root) as addresses:
        models = served.read_models("grpc", addresses["grpc"], "tiny_preprocess")[1]
        assert models == served.read_models("http", addresses["http"], "tiny_preprocess")[1]
        load = dataclasses.replace(make_load(program, addresses["grpc"]), batch_size=2, shared_memory="system")
        source = images.RequestImages(source="red", images=(make_image("red"),))
        one = next(sweep.measure(models, source, load))
    assert isinstance(one, Measurement)
    assert one.infer_per_s > 0
    assert one.gpu.gpus is None
    assert "http://localhost:1/metrics cannot be read" in str(one.gpu.unknown)


def test_shared_memory_that_the_server_does_not_see(tmp_path: Path) -> None:
    said = "failed to register shared memory region: Unable to open shared memory region: '/PIXELS'"
    model = served.MeasuredModel(name="tiny", image_input=None, members=())
    load = make_load(make_program(tmp_path, f'echo "{said}"; exit 99'))
    for shared_memory, hint in (("system", "sees the same /dev/shm"), ("none", "perf_analyzer's own")):
        with pytest.raises(PerfError, match="Unable to open") as caught:
            next(
                sweep.measure(
                    [model],
                    images.RequestImages(source="none", images=()),
                    dataclasses.replace(load, shared_memory=shared_memory),
                )
            )
        assert hint in str(caught.value.hint)


# --- what the GPUs did


def watch_pages(pages: list[str], status: int = 200) -> gpu.GpuFigures:
    """Let the watch read each page once, the last one again until the end."""
    left = list(pages)
    done = threading.Event()

    def next_page() -> str:
        if len(left) == 1:
            done.set()
            return left[0]
        return left.pop(0)

    with answer_metrics(next_page, status) as url:
        watch = gpu.MetricsWatch(url, "tiny", interval_s=0.01)
        with watch.run():
            assert done.wait(20)
    return watch.summarize(1000)


def write_page(count: int, *gpus: str, model: str = "tiny") -> str:
    other = 'nv_inference_count{model="other",version="1"} 5\n'
    return f'# HELP nv\n{other}nv_inference_count{{model="{model}",version="1"}} {count}\n{"".join(gpus)}'


def test_only_the_load_counts() -> None:
    """Idle at 50 W, then figures that are still those of before, then 300 and 500 W, then idle again."""

    def at(power_w: float, utilization: float, joules: float) -> str:
        return write_gpu("GPU-a", utilization=utilization, power_w=power_w, joules=joules, used=2e9)

    found = watch_pages(
        [
            write_page(10, at(50, 0, 1)),
            write_page(10, at(50, 0, 2)),
            write_page(20, at(50, 0, 2)),
            write_page(30, at(300, 0.6, 10)),
            write_page(30, at(300, 0.6, 10)),  # a slow model: nothing was finished meanwhile
            write_page(40, at(600, 0.9, 30)),
            write_page(40, at(60, 0, 40)),
        ]
    )
    assert (found.gpus, found.samples, found.power_w, found.energy_j) == (1, 3, 400, 20)
    assert found.utilization == pytest.approx(0.7)
    assert found.images_per_joule == 2.5
    assert found.memory_used_bytes == 2e9


def test_power_from_energy() -> None:
    started = time.monotonic()

    def at(count: int) -> str:
        joules = 200 * (time.monotonic() - started)
        return write_page(count, write_gpu("GPU-a", utilization=1, power_w=None, joules=joules, used=2e9))

    counts = iter(range(1000))
    with answer_metrics(lambda: at(next(counts))) as url:
        watch = gpu.MetricsWatch(url, "tiny", interval_s=0.05)
        with watch.run():
            while next(counts) < 40:
                time.sleep(0.01)
    found = watch.summarize(1000)
    assert found.power_w == pytest.approx(200, rel=0.2)
    assert found.images_per_joule == pytest.approx(5, rel=0.2)


@pytest.mark.parametrize(
    ("pages", "gpus", "reason"),
    [
        ([write_page(1), write_page(2)], 0, "has no GPU figures (no GPU, or no DCGM"),
        (
            [
                write_page(count, write_gpu("a", utilization=1, power_w=1, joules=1, used=1), model="more")
                for count in (1, 2, 3)
            ],
            1,
            "counts no request of tiny meanwhile: another server's?",
        ),
        (
            [write_page(count, write_gpu("a", utilization=1, power_w=None, joules=None, used=1)) for count in (1, 2)],
            1,
            "has neither power nor energy",
        ),
    ],
)
def test_why_gpu_figures_are_unknown(pages: list[str], gpus: int, reason: str) -> None:
    found = watch_pages(pages)
    assert found.gpus == gpus
    assert (found.power_w, found.energy_j, found.images_per_joule) == (None, None, None)
    assert reason in str(found.unknown)


def test_page_that_is_not_there() -> None:
    assert "/metrics cannot be read: HTTP 404" in str(watch_pages([""], status=404).unknown)
    assert watch_pages(["nv_gpu_power_usage{gpu_uuid="]).gpus == 0
    assert "cannot be read: could not convert" in str(watch_pages(['nv_inference_count{model="tiny"} x']).unknown)


# --- the choice


@server
def test_choice_of_the_model(urls: dict[str, str], tmp_path: Path) -> None:
    about, models = served.read_models("grpc", urls["grpc"], None)
    assert about.endswith(" 2.51.0")
    assert [one.image_input for one in models] == ["IMAGE", "IMAGE", None]
    assert served.read_models("http", urls["http"], "tiny") == (about, models)
    assert [one.name for one in served.read_models("grpc", urls["grpc"], "tiny_classifier")[1]] == ["tiny_classifier"]
    with pytest.raises(PerfError, match="'absent' is not ready") as caught:
        served.read_models("http", urls["http"], "absent")
    assert caught.value.hint == "ready models: tiny, tiny_classifier, tiny_preprocess"
    for protocol, url in (("grpc", urls["http"]), ("http", urls["grpc"])):
        with pytest.raises(PerfError, match=f"no Triton server answers {protocol} at {url}"):
            served.read_models(protocol, url, None)


def test_several_ensembles_or_none(tmp_path: Path) -> None:
    root = build_tiny_repository(tmp_path / "several", name="one")
    build_tiny_repository(root, name="two")
    none = build_tiny_repository(tmp_path / "none")
    shutil.rmtree(none / "tiny")
    with pytest.raises(PerfError, match=r"several holds 2 ensembles, not one \(one, two\)"):
        served.read_repository(root, None)
    with pytest.raises(PerfError, match=r"none holds 0 ensembles, not one \(tiny_cl.*, tiny_pre"):
        served.read_repository(none, None)
    with pytest.raises(PerfError, match="holds no model 'absent'"):
        served.read_repository(none, "absent")


@server
def test_requests_that_fail_are_an_error(program: Path, urls: dict[str, str]) -> None:
    models = served.read_models("grpc", urls["grpc"], None)[1]
    broken = images.RequestImages(source="broken", images=(b"not an image",))
    with pytest.raises(
        PerfError, match=r"(?s)on tiny, warming up at concurrency 1, measured nothing .*image 0 of 1 cannot be decoded"
    ):
        next(sweep.measure(models, broken, make_load(program, urls["grpc"])))


@server
def test_windows_that_differ_are_no_figure(
    program: Path, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_MOST_WINDOWS", 3)
    models = served.read_models("grpc", urls["grpc"], "tiny_classifier")[1]
    load = dataclasses.replace(make_load(program, urls["grpc"]), max_spread_percent=0.0001)
    one = next(sweep.measure(models, images.RequestImages(source="none", images=()), load))
    assert isinstance(one, Unsettled)
    assert len(one.windows_infer_per_s) == 3
    assert one.problem == "no three of 3 windows in a row are within 0.0001 %"


@server
def test_what_did_not_settle_is_said_and_fails(
    urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """perf_analyzer's own words for it, and a result for 4 requests in flight where 64 were asked for."""
    windows = [f"echo 'Pass [{number}] throughput: {value} infer/sec.'" for number, value in enumerate((9, 100, 300))]
    unstable = "echo Failed to obtain stable measurement within 3 measurement windows >&2; exit 2"
    differ = f'case "$*" in *2:2:1*stability*) {"; ".join(windows)}; {unstable}; esac'
    monkeypatch.setenv("PERF_ANALYZER", str(make_program(tmp_path, ANSWER_VERSION, differ, *COPY_RESULT)))
    arguments = ["--model", "tiny", "--no-members", "--concurrency", "2,4,64", "--output", str(tmp_path / "perf")]
    assert main(["perf", "--url", urls["grpc"], *arguments]) == 1
    said = capsys.readouterr()
    assert "tiny  concurrency 2  not settled: no three of 3 windows in a row are within 20 %" in said.err
    assert "tiny  concurrency 64  not settled: perf_analyzer kept only 4.0 of 64 requests in flight" in said.err
    assert "error: 2 of 3 measurements did not settle" in said.err
    rows = [line.split() for line in said.out.splitlines() if line.startswith("tiny ")]
    assert rows[0] == ["tiny", "1", "2", "not", "settled", "3233%"]
    assert rows[1][:4] == ["tiny", "1", "4", "490.1"]
    assert rows[2][:5] == ["tiny", "1", "64", "not", "settled"]
    found = list(csv.DictReader((tmp_path / "perf" / "perf.csv").read_text().splitlines()))
    assert [(row["concurrency"], row["settled"], row["infer_per_s"]) for row in found if not row["ensemble"]] == [
        ("2", "False", ""),
        ("4", "True", found[1]["infer_per_s"]),
        ("64", "False", ""),
    ]
    first = json.loads((tmp_path / "perf" / "perf.json").read_text())["measurements"][0]
    assert (first["settled"], first["infer_per_s"], first["windows_infer_per_s"]) == (False, None, [9, 100, 300])


def test_server_is_warm_before_it_is_measured(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    program = make_program(tmp_path, f'echo "$*" >> {seen}', f"cp {DATA}/ensemble.csv out.csv")
    model = served.MeasuredModel(name="tiny", image_input=None, members=())
    load = dataclasses.replace(make_load(program), concurrencies=[4, 2])
    assert len(list(sweep.measure([model], images.RequestImages(source="none", images=()), load))) == 2
    runs = seen.read_text().splitlines()
    assert ["--request-count" in run for run in runs] == [True, False, False]
    assert "--concurrency-range 4:4:1" in runs[0]


def test_a_name_of_this_machine_becomes_the_address_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert served.find_address(f"localhost:{port}") == f"127.0.0.1:{port}"
    assert served.find_address(f"localhost:{port}") == f"localhost:{port}"  # nobody answers
    if socket.has_ipv6:
        with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            port = listener.getsockname()[1]
            assert served.find_address(f"[::1]:{port}") == f"[::1]:{port}"

    class Elsewhere(socket.socket):
        def getpeername(self) -> tuple[str, int]:
            return "192.0.2.7", 8001

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: Elsewhere())
    assert served.find_address("triton.example:8001") == "triton.example:8001"


# --- what follows from it


def make_full(infer_per_s: float) -> Measurement:
    """A measurement of tiny whose preprocessing is busy all the time."""
    one = read_measurement(ENSEMBLE, model="tiny", members={f"tiny_{name}": text for name, text in MEMBERS.items()})
    full = Busy(instances=1, fraction=0.99, executions_per_s=30, batch=1, compute_ms=33)
    members = tuple(dataclasses.replace(member, busy=full) for member in one.members)
    return dataclasses.replace(one, infer_per_s=infer_per_s, spread=0.1, members=members)


@server
def test_the_advised_change_brings_what_was_predicted(
    told: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the command of `trtgen serve`. The page is the server's own, on a machine whose cores others leave alone."""

    def make_page() -> str:
        with urllib.request.urlopen(f"http://{told.metrics_url}/metrics", timeout=10) as response:
            page: str = response.read().decode()
        assert "\nnv_cpu_utilization " in page
        return re.sub(r"\nnv_cpu_utilization \S+", "\nnv_cpu_utilization 0.3", page)

    def read_repository() -> dict[Path, bytes]:
        files = [path for path in told.repository.rglob("*") if path.is_file() and path.name != STARTED]
        return {path: path.read_bytes() for path in files}

    before = read_repository()
    arguments = ["--no-members", "--concurrency", "4", "--measurement-requests", "20", *ANY_SPREAD]
    with answer_metrics(make_page) as metrics_url:
        assert main(["perf", *arguments, "--metrics-url", metrics_url, "--check", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr()
    document = json.loads((tmp_path / "perf.json").read_text())
    one = document["measurements"][0]
    busy = one["members"][0]["busy"]
    # The server's statistics against the client's clock: each image has a process for itself as long as it computes.
    assert busy["instances"] == 1
    assert busy["batch"] == 1
    assert busy["compute_ms"] == pytest.approx(one["members"][0]["stages"]["infer_ms"], rel=0.2)
    assert busy["fraction"] == pytest.approx(busy["compute_ms"] * one["infer_per_s"] / 1000, rel=0.15)
    assert one["cpu_utilization"] == pytest.approx(0.3)
    assert 0 <= one["client_overhead"] < 1

    verdict, check = document["verdict"], document["check"]
    assert (verdict["limit"], verdict["stage"], verdict["concurrency"]) == ("stage", "tiny_preprocess", 4)
    assert verdict["busy"] > 0.9
    assert verdict["change"]["edit"].startswith("instances: {preprocess: ")
    assert 1 < verdict["change"]["after"] <= len(os.sched_getaffinity(0))
    assert verdict["text"] in said.out
    assert "in models.yaml, then trtgen build-repo --spec models.yaml" in said.out
    assert check["predicted"] == verdict["expected"] > 1.5
    assert check["share"] >= 0.5, check
    assert check["found"] == pytest.approx(check["images_per_s_after"] / one["infer_per_s"], rel=1e-4)
    assert f"Tried: {check['text']}" in said.out
    assert check["text"] in (tmp_path / "perf.html").read_text()
    assert read_repository() == before

    # Twice as many requests in flight bring nothing to a stage that is full: so it is said.
    wrong = Change(model="tiny", field="concurrency", before=4, after=8, edit="concurrency 8")
    models = served.read_models("grpc", told.grpc_url, None)[1]
    found = judge([make_full(one["infer_per_s"])], models, cores=2)
    assert found is not None
    measured = try_change(
        dataclasses.replace(found, change=wrong, expected=2.0),
        make_full(one["infer_per_s"]),
        models,
        images.RequestImages(source="red", images=(make_image("red"),)),
        make_load(Path(os.environ["PERF_ANALYZER"]), told.grpc_url),
        told.repository,
    )
    assert isinstance(measured, Check)
    assert measured.share < 0.5
    assert measured.found == pytest.approx(1, abs=0.3)


@server
def test_a_rate_of_requests_is_kept_or_said_to_be_too_high(
    told: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process answers about 30 images per second."""
    old = read_measurement(
        ENSEMBLE.replace("Concurrency", "Request Rate").replace("\n4,", "\n10,"), model="tiny", members={}
    )
    old = dataclasses.replace(old, latency_spread=0.1)
    write_files(make_files([old], {"load": {"arrivals": "constant"}}), tmp_path)
    arguments = ["--no-members", "--request-rate", "10,80", "--arrivals", "poisson", "--compare"]
    more = ["--measurement-requests", "5", *ANY_SPREAD, "--output", str(tmp_path / "new")]
    assert main(["perf", *arguments, str(tmp_path / "perf.json"), *more]) == 1
    said = capsys.readouterr()
    document = json.loads((tmp_path / "new" / "perf.json").read_text())
    kept, missed = document["measurements"]
    assert (kept["request_rate"], kept["concurrency"]) == (10, None)
    assert 3 < kept["infer_per_s"] < 17
    assert "--request-rate-range 10:10:1 --request-distribution poisson --async" in kept["command"]
    assert missed["problem"].endswith(" of 80 requests/s were answered")
    assert "tiny  80 requests/s  not settled: only " in said.err
    header, first, *_ = said.out.splitlines()
    assert header.split()[:4] == ["model", "batch", "requests/s", "images/s"]
    assert first.split()[:3] == ["tiny", "1", "10"]
    assert "At 10 requests/s tiny_preprocess is busiest: 1 instance computed" in said.out

    [difference] = document["comparison"]["differences"]
    assert difference["p99"] == pytest.approx(kept["p99_ms"] / old.p99_ms, rel=1e-4)
    assert re.search(r"^tiny +10 requests/s +\d\.\d\dx ", said.out, re.MULTILINE)
    assert "was measured otherwise: arrivals: constant, now poisson" in said.err


@server
def test_a_server_that_is_gone_is_said(told: EmbeddedServer, tmp_path: Path) -> None:
    """The last test with this server."""
    arguments = ["--no-members", "--concurrency", "1,2", "--measurement-requests", "20", *ANY_SPREAD]
    command = [sys.executable, "-m", "generator", "perf", *arguments, "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("* tiny  concurrency 1 "):
                time.sleep(1)  # perf_analyzer is at work
                os.kill(told.pid, signal.SIGKILL)
                break
        out, rest = process.communicate(timeout=120)
    said = "".join(seen) + rest
    assert process.returncode == 1, said
    assert f"error: the server at {told.grpc_url} is gone: perf_analyzer on tiny at concurrency 2" in said
    assert "Traceback" not in said
    assert out.splitlines()[1].split()[:3] == ["tiny", "1", "1"]
    assert [one["concurrency"] for one in json.loads((tmp_path / "perf.json").read_text())["measurements"]] == [1]
    assert "verdict" in (tmp_path / "perf.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concurrency", "1", "--request-rate", "5"], "--request-rate goes in place of --concurrency"),
        (["--request-rate", "5", "--check"], "--check goes with --concurrency"),
        (["--request-rate", "5", "--export", "there"], "--export goes with --concurrency"),
        (["--arrivals", "poisson"], "--arrivals goes with --request-rate"),
        (["--request-rate", "0"], "'0' is not a list of numbers above 0, such as 50,100"),
        (["--request-rate", "5,nan"], "'5,nan' is not a list of numbers above 0"),
        (["--request-rate", "inf"], "'inf' is not a list of numbers above 0"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# --- the export


@server
def test_export_is_measured_without_us(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """perf_analyzer.sh against the exported tritonserver, both with an empty environment."""
    root, folder = build_tiny_repository(tmp_path / "repository"), tmp_path / "export"
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    ports = choose_ports(Ports(http=0, grpc=0, metrics=0), address="127.0.0.1")
    urls = ["--url", f"127.0.0.1:{ports.grpc}", "--metrics-url", f"127.0.0.1:{ports.metrics}"]
    (tmp_path / "one.jpg").write_bytes(make_image("red"))
    more = ["--concurrency", "1,2", "--measurement-requests", "20", "--images", str(tmp_path), *ANY_SPREAD]
    (folder / "checkpoints").mkdir(parents=True)
    for _ in range(2):  # the second replaces the first
        assert main(["perf", "--export", str(folder), "--repository", str(root), *urls, *more]) == 0

    assert not (folder / "checkpoints").exists(), "Model Analyzer would measure nothing again"
    config = yaml.safe_load((folder / "model_analyzer.yaml").read_text())
    [(name, profile)] = config["profile_models"].items()
    assert (name, profile["cpu_only"], config["run_config_search_mode"]) == ("tiny", True, "quick")
    assert config["cpu_only_composing_models"] == ["tiny_preprocess", "tiny_classifier"]
    assert profile["perf_analyzer_flags"]["input-data"] == str(folder / "images.json")
    assert config["triton_grpc_endpoint"] == f"127.0.0.1:{ports.grpc}"

    options = ["--model-control-mode=explicit", "--load-model=tiny", "--metrics-interval-ms=250"]
    options += [f"--{name}-port={port}" for name, port in ports.named().items()]
    with (tmp_path / "log").open("wb") as log:
        command = [config["triton_server_path"], f"--model-repository={config['model_repository']}", *options]
        running = subprocess.Popen(command, env={}, stdout=log, stderr=log)
    try:
        wanted = set(ports.named().values())
        assert wait_until(lambda: endpoint.find_listening_ports(running.pid) == wanted), (tmp_path / "log").read_text()
        assert wait_until(lambda: endpoint.is_ready(f"127.0.0.1:{ports.http}")), (tmp_path / "log").read_text()
        listening = [found for found in psutil.Process(running.pid).net_connections() if found.status == "LISTEN"]
        assert {found.laddr.ip.removeprefix("::ffff:") for found in listening} == {"127.0.0.1"}
        subprocess.run([folder / "perf_analyzer.sh"], env={"PATH": os.defpath}, cwd="/", check=True, timeout=120)
    finally:
        running.terminate()
        running.wait(timeout=30)
    for concurrency in (1, 2):
        one = read_measurement((folder / f"tiny-{concurrency}.csv").read_text(), model="tiny", members={})
        assert one.concurrency == concurrency
        assert one.infer_per_s > 0


def test_export_beside_a_gpu_and_without_the_pip_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build_tiny_repository(tmp_path / "repository")
    config = root / "tiny_classifier" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))
    monkeypatch.setenv("PERF_ANALYZER", str(make_program(tmp_path, ANSWER_VERSION)))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "one.jpg").write_bytes(make_image("red"))
    arguments = ["perf", "--repository", str(root), "--images", str(tmp_path), "--url", "localhost:1", "--export"]
    assert main([*arguments, str(tmp_path / "export")]) == 0
    assert "no tritonserver for Model Analyzer's local mode was written: this machine is" in capsys.readouterr().err
    found = yaml.safe_load((tmp_path / "export" / "model_analyzer.yaml").read_text())
    assert found["cpu_only_composing_models"] == ["tiny_preprocess"]
    assert "cpu_only" not in found["profile_models"]["tiny"]
    assert "triton_server_path" not in found
    assert not (tmp_path / "export" / "tritonserver").exists()
    assert main([*arguments, str(tmp_path / "with space")]) == 1
    assert "tritonserver does not take the path" in capsys.readouterr().err


def make_load(program: Path, url: str = "localhost:1", timeout_s: float = 60) -> sweep.Load:
    return sweep.Load(
        analyzer=program,
        protocol="grpc",
        url=url,
        concurrencies=[1],
        requests_per_window=10,
        timeout_s=timeout_s,
        batch_size=1,
        shared_memory="none",
        metrics_url="localhost:1",
        max_spread_percent=1e6,
    )


@pytest.mark.parametrize(
    ("line", "timeout_s", "message"),
    [
        ("echo no luck", 60, r"measured nothing \(exit code 0\)\n  \| no luck"),
        ("echo too bad >&2; exit 99", 60, r"measured nothing \(exit code 99\)\n  \| too bad"),
        ("echo patience; exec sleep 60", 1, r"did not end within 1 s\n  \| patience"),
        (
            f"cp {DATA}/ensemble.csv out.csv; echo cut off; exit 1",
            60,
            r"measured nothing \(exit code 1\)\n  \| cut off",
        ),
        (f"cp {DATA}/ensemble.csv out.csv; echo done", 60, r"wrote no file for the member classifier\n  \| done"),
    ],
)
def test_run_that_measures_nothing(tmp_path: Path, line: str, timeout_s: float, message: str) -> None:
    model = served.MeasuredModel(name="tiny", image_input=None, members=("classifier",))
    load = make_load(make_program(tmp_path, line), timeout_s=timeout_s)
    with pytest.raises(PerfError, match=message):
        next(sweep.measure([model], images.RequestImages(source="none", images=()), load))


def test_earlier_result_is_not_taken_for_a_later_one(tmp_path: Path) -> None:
    done = tmp_path / "done"  # a line for the warm-up and one for the first measurement
    program = make_program(
        tmp_path, f"test $(cat {done} | wc -l) -gt 1 || cp {DATA}/ensemble.csv out.csv", f"echo >> {done}"
    )
    done.touch()
    model = served.MeasuredModel(name="tiny", image_input=None, members=())
    load = dataclasses.replace(make_load(program), concurrencies=[4, 8])
    found = sweep.measure([model], images.RequestImages(source="none", images=()), load)
    assert next(found).concurrency == 4
    with pytest.raises(PerfError, match="on tiny at concurrency 8 measured nothing"):
        next(found)


@pytest.mark.parametrize("text", ["", "0", "1,,2", "1,x", "-1"])
def test_concurrency_is_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", f"--concurrency={text}"]) == 2
    assert "is not a list of numbers from 1" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["http://localhost:8000", "localhost", "localhost:99999", "localhost:0"])
def test_address_is_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "--url", text]) == 2
    assert f"{text!r} is not HOST:PORT" in capsys.readouterr().err


def test_folder_is_tried_before_the_server_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["perf", "--url", "localhost:1", "--output", str(tmp_path / "file")]) == 1
    assert "file cannot be written: Not a directory" in capsys.readouterr().err
    assert main(["perf", "--url", "localhost:1", "--output", "/proc/perf"]) == 1
    assert "/proc/perf cannot be written" in capsys.readouterr().err
    check_folder(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@server
def test_what_was_measured_before_an_error_is_kept(
    urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once = 'case "$*" in *8:8:1*stability*) echo it went away; exit 99; esac'
    monkeypatch.setenv("PERF_ANALYZER", str(make_program(tmp_path, ANSWER_VERSION, once, *COPY_RESULT)))
    assert main(["perf", "--url", urls["grpc"], "--concurrency", "4,8", "--output", str(tmp_path / "perf")]) == 1
    said = capsys.readouterr()
    assert "490.1" in said.out
    assert "it went away" in said.err
    assert json.loads((tmp_path / "perf" / "perf.json").read_text())["measurements"][0]["concurrency"] == 4


def test_no_server(program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    assert main(["perf", "--url", "localhost:1"]) == 1
    error = capsys.readouterr().err
    assert "no Triton server answers grpc at localhost:1" in error
    assert "or start one: trtgen serve\n" in error


@pytest.mark.usefixtures("program")
def test_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert main(["perf", "--install"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "bin" / "perf_analyzer"
    assert analyzer.check_analyzer(path)


def test_export_leaves_a_folder_of_others_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, folder = build_tiny_repository(tmp_path / "repository"), tmp_path / "export"
    monkeypatch.setenv("PERF_ANALYZER", str(make_program(tmp_path, ANSWER_VERSION)))
    (folder / "server").mkdir(parents=True)
    (folder / "server/mine.txt").write_text("mine")
    assert main(["perf", "--export", str(folder), "-r", str(root)]) == 1
    assert "was not exported by trtgen: nothing was changed" in capsys.readouterr().err
    assert [path.name for path in folder.rglob("*")] == ["server", "mine.txt"]
