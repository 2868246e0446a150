"""Runners measured for real on the CPU; what their processes may do wrong; the figures, the table and the page."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from generator.cli import app, main
from generator.cli.bench import bench
from generator.errors import PerfError
from generator.graph.model import read_onnx
from generator.measure.bench.contender import Contender, count_weights, make_contenders
from generator.measure.bench.measure import Schedule, count_input_sets, run_bench
from generator.measure.bench.output import describe_result, format_table, make_page
from generator.measure.bench.plot import draw_figure, draw_svg
from generator.measure.bench.process import RunnerError, RunnerProcess, runner_command, runner_environment
from generator.measure.bench.result import Agreement, BenchResult, Energy, Round, RunnerFigures
from generator.measure.bench.runners import loop
from tests.tiny_onnx import write_tiny_onnx

if "bench" not in {command.name for command in app.registered_commands}:
    app.command("bench")(bench)

QUICK = Schedule(batches=(1, 2), rounds=2, seconds=0.02, iterations=5, warm_s=0.01, energy_s=0, timeout_s=60)
SHUFFLENET_PARAMETERS = 345_892  # of shufflenet_v2_x0_5 with the 4 classes of the tiny graph
QUICK_OPTIONS = ["--device=cpu", "--rounds=2", "--seconds=0.05", "--iterations=5"]


def write_graph(path: Path, *, seed: int = 0, break_weights: bool = False, ballast: int = 0) -> Path:
    """Write a tiny classifier from uint8 pixels (batch, 32, 32, 3) to probabilities, as `trtgen` exports graphs.

    `ballast` numbers that nothing reads make it as large as another network.
    """
    model = onnx.load(write_tiny_onnx(path, layout="NHWC", tail="softmax", seed=seed))
    graph = model.graph
    graph.input[0].CopyFrom(helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 32, 32, 3]))
    scale = np.array(np.nan if break_weights else 1 / 255, np.float32)
    graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    if ballast:
        graph.initializer.append(numpy_helper.from_array(np.zeros(ballast, np.int8), "ballast"))
    head = [
        helper.make_node("Cast", ["PIXELS"], ["float_pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float_pixels", "scale"], ["image"]),
    ]
    nodes = [*head, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's threads wait for each other by spinning, which takes seconds where other tests use the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx")


def make_onnxruntime(path: Path, label: str) -> Contender:
    settings = {"onnx": str(path), "device": "cpu", "height": 32, "width": 32}
    return Contender(label=label, kind="onnxruntime", weights="graph", settings=settings)


def measure(*contenders: Contender, schedule: Schedule = QUICK) -> BenchResult:
    result = BenchResult(reference=contenders[0].label)
    run_bench(contenders, schedule, result)
    return result


# --- whole runs


def test_command_measures_torch_and_onnxruntime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = write_graph(tmp_path / "model.onnx", ballast=SHUFFLENET_PARAMETERS)
    output = tmp_path / "out"
    options = [*QUICK_OPTIONS, "--batches=2,1", "--model=shufflenet_v2_x0_5", f"--output={output}"]
    assert main(["bench", str(graph), *options]) == 0
    table = capsys.readouterr().out
    assert table.count("onnxruntime-cpu") == table.count("torch-fp32 ") - 2 == 2  # the header names the reference, too
    assert [line for line in table.splitlines() if line.startswith("batch")] == ["batch 1", "batch 2"]
    document = json.loads((output / "bench.json").read_text())
    assert document["finished"]
    assert document["reference"] == "torch-fp32"
    assert document["runners"]["torch-fp32"]["torch"]
    assert [(one["runner"], one["batch"]) for one in document["figures"]] == [
        ("torch-fp32", 1), ("onnxruntime-cpu", 1), ("torch-fp32", 2), ("onnxruntime-cpu", 2),
    ]  # fmt: skip
    for one in document["figures"]:
        assert one["failure"] is None
        assert one["clock"] == "host"
        assert len(one["rounds"]) == 2
        assert one["iterations"] == sum(each["iterations"] for each in one["rounds"]) >= 2
        assert one["median_ms"] > 0
        assert one["host_memory_bytes"] > 2**20
        assert one["gpu_memory_bytes"] is one["images_per_joule"] is None
        assert one["input_bytes"] == one["input_sets"] * one["batch"] * 32 * 32 * 3
    page = (output / "bench.html").read_text()
    assert "<svg" in page
    assert (output / "bench.svg").read_text() in page


def test_without_matplotlib_all_but_the_diagrams_is_written(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "out"
    assert main(["bench", str(graph), *QUICK_OPTIONS, "--batches=1", f"--output={output}"]) == 0
    said = capsys.readouterr()
    assert "onnxruntime-cpu" in said.out
    assert "note: no diagrams: the package matplotlib is not installed" in said.err
    assert "pip install -e '.[plot]'" in said.err
    assert sorted(path.name for path in output.iterdir()) == ["bench.html", "bench.json"]
    assert "onnxruntime-cpu" in (output / "bench.html").read_text()


def test_torch_with_the_graphs_weights_agrees(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from generator.sources import load_network
    from generator.spec.file import make_spec
    from tests.tiny_onnx import export_graph

    spec = make_spec(["squeezenet1_1"], weights="random", image_size=48, target="tensorrt-8.6")[0]  # quickly exported
    network = load_network(spec)
    assert isinstance(network.module, torch.nn.Module)
    exported = export_graph(spec, network, tmp_path)
    weights = tmp_path / "weights.safetensors"
    save_file(network.module.state_dict(), weights)
    plain, graph = make_contenders(exported, model="squeezenet1_1", state_dict=weights, device="cpu")
    channels_last = dataclasses.replace(plain, label="torch", settings={**plain.settings, "channels_last": True})
    result = measure(channels_last, graph)
    assert [(one.first, one.second) for one in result.agreements] == [("torch", "onnxruntime-cpu")] * 2
    assert all(one.worst_cosine > 0.99999 and one.top1 == 1 for one in result.agreements)


def test_another_network_does_not_agree(graph: Path, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "other.onnx", seed=1)
    found = measure(
        *(make_onnxruntime(path, path.stem + str(index)) for index, path in enumerate([graph, graph, other]))
    )
    cosines = {(one.first, one.second): one.worst_cosine for one in found.agreements if one.batch == 2}
    assert cosines["model0", "model1"] > 0.99999
    assert cosines["model0", "other2"] < 0.97


def test_runner_that_answers_nan_is_not_reported(graph: Path, tmp_path: Path) -> None:
    broken = write_graph(tmp_path / "broken.onnx", break_weights=True)
    result = measure(make_onnxruntime(broken, "broken"), make_onnxruntime(graph, "sound"))
    assert {one.label for one in result.usable()} == {"sound"}
    assert all("NaN" in one.failure for one in result.figures if one.label == "broken")
    table = format_table(result)
    assert "broken: answers NaN or infinity" in table
    assert result.ratio(result.usable()[0]) is None


def test_nothing_to_report_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_graph(tmp_path / "broken.onnx", break_weights=True)
    output = tmp_path / "out"
    assert main(["bench", str(broken), *QUICK_OPTIONS, "--batches=1", f"--output={output}"]) == 1
    error = capsys.readouterr().err
    assert "onnxruntime-cpu, batch 1: answers NaN" in error
    assert "hint:" in error
    assert not output.exists()


def test_a_runner_that_measures_nothing_is_an_error_and_the_others_are_kept(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    full = """if request['do'] == 'prepare': answer = '{"error": "OutOfMemoryError: 3 GiB"}'"""
    python = write_runner(tmp_path / "python", then=full)
    given = ["--model=resnet18", f"--torch-python={python}", "--batches=1,2", f"--output={output}"]
    assert main(["bench", str(graph), *QUICK_OPTIONS, *given]) == 1
    said = capsys.readouterr()
    assert "onnxruntime-cpu" in said.out
    assert "1 of the runners measured nothing\ntorch-fp32, batch 1: OutOfMemoryError: 3 GiB" in said.err
    assert "--skip torch-fp32" in said.err
    assert len(json.loads((output / "bench.json").read_text())["figures"]) == 4


def start_bench(graph: Path, output: Path, *options: str, until: str) -> subprocess.Popen[str]:
    """Start the command and wait until it says `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "generator", "bench", str(graph), "--device=cpu", *options, f"--output={output}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stderr is not None
    for line in process.stderr:
        if until in line:
            break
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_keeps_what_was_measured_and_no_process(
    graph: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    options = ["--batches=1,2", "--rounds=200", "--seconds=0.05"]
    process = start_bench(graph, tmp_path / "out", *options, until="round 3 of")
    runners = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    if number == signal.SIGTERM:
        process.send_signal(number)  # `timeout` sends it to the process and then to its group
    said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert runners
    assert not any(one.is_running() for one in runners)
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert not document["finished"]
    assert len(document["figures"][0]["rounds"]) >= 2
    assert "interrupted" in (tmp_path / "out" / "bench.html").read_text()


def test_each_batch_is_kept_at_once(graph: Path, tmp_path: Path) -> None:
    options = ["--batches=1,2", "--rounds=2", "--seconds=0.05"]
    process = start_bench(graph, tmp_path / "out", *options, until="batch 2: round 1")
    runners = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=30)
    psutil.wait_procs(runners, timeout=30)  # the end of their input ends them
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert not document["finished"]
    assert [one["batch"] for one in document["figures"]] == [1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]


# --- what is refused before anything is measured


def test_another_network_is_refused(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model=shufflenet_v2_x0_5", f"--output={tmp_path / 'out'}"]
    assert main(["bench", str(graph), *QUICK_OPTIONS, *given]) == 1
    said = capsys.readouterr()
    assert f"with 4 classes has {SHUFFLENET_PARAMETERS:,} parameters, model.onnx holds 1,285 numbers" in said.err
    assert "batch 1" not in said.err
    assert not (tmp_path / "out").exists()


def test_weights_are_counted_in_every_form(tmp_path: Path) -> None:
    def node(name: str, length: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.zeros((length, 2), np.int8)))

    path = write_graph(tmp_path / "model.onnx", ballast=10)
    model = onnx.load(path)
    model.graph.node.insert(0, node("more", 50))
    onnx.save(model, path)
    assert count_weights(read_onnx(path)) == 1285 + 10 + 100


@pytest.mark.parametrize(
    ("factor", "refused"), [(0.5, True), (0.82, False), (1.0, False), (1.2, False), (1.5, True), (0.0, False)]
)
def test_a_graph_may_hold_a_few_numbers_more_or_less(factor: float, refused: bool) -> None:
    import torch

    from generator.measure.bench.runners import torch_runner

    network = torch.nn.Module()
    network.body, network.aux1 = torch.nn.Linear(99, 10), torch.nn.Linear(99, 100)  # 1000 numbers, and a head to train
    settings = {"model": "x", "classes": 10, "graph": "x.onnx", "graph_weights": int(1000 * factor)}
    if refused:
        with pytest.raises(ValueError, match=r"has 1,000 parameters, x.onnx holds [15]\S*00 numbers"):
            torch_runner._check_count(network, settings)
    else:
        torch_runner._check_count(network, settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=resnet19"], "torchvision has no classification model 'resnet19'; did you mean resnet1"),
        (["--state-dict={graph}"], "holds weights for PyTorch, which is measured for a named network only"),
        (["--skip=plan"], "skip: plan matches none of onnxruntime-cpu"),
        (["--output={graph}"], "model.onnx cannot be written: Not a directory"),
        (["--output={graph}/out"], "model.onnx/out cannot be written: Not a directory"),
        (["--output=/proc/out"], "/proc/out cannot be written"),
    ],
)
def test_wrong_options_are_told_at_once(
    graph: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one.format(graph=graph) for one in options]
    assert main(["bench", str(graph), *QUICK_OPTIONS, "--batches=1", *given]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "hint: " in said
    assert "measuring" not in said


def test_runner_that_does_not_start_ends_the_run(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = write_runner(tmp_path / "python", then="sys.exit('ModuleNotFoundError: no torch')")
    given = ["--model=resnet18", f"--torch-python={python}", f"--output={tmp_path / 'out'}"]
    assert main(["bench", str(graph), *QUICK_OPTIONS, *given]) == 1
    said = capsys.readouterr().err
    assert f"the runner torch-fp32 does not start under {python}: " in said
    assert "ModuleNotFoundError: no torch" in said
    assert "--torch-python" in said.partition("hint: ")[2]
    assert "batch 1" not in said


# --- what is measured


def test_contenders(graph: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    model = read_onnx(graph)
    plans = [tmp_path / "fast.plan", tmp_path / "fast.plan"]
    found = make_contenders(model, plans=plans, model="resnet18", torch_python=python, device="cuda", skip=["onnxrun"])
    assert [one.label for one in found] == [
        "torch-fp32", "torch-fp16-graph", "plan-fast", "plan-fast-graph", "plan-fast#2", "plan-fast#2-graph",
    ]  # fmt: skip
    assert [one.python for one in found] == [python, python, None, None, None, None]
    fast = found[1].settings
    assert (fast["precision"], fast["channels_last"], fast["cuda_graph"], fast["classes"]) == ("fp16", True, True, 4)
    with pytest.raises(PerfError, match="plans do not run on the CPU"):
        make_contenders(model, plans=plans, device="cpu")
    with pytest.raises(PerfError, match="leaves nothing of onnxruntime-cpu"):
        make_contenders(model, device="cpu", skip=["onnxruntime"])
    with pytest.raises(PerfError, match="is not a Python interpreter"):
        make_contenders(model, model="resnet18", torch_python=tmp_path / "none", device="cpu")


def test_graph_without_pixels_is_refused(tmp_path: Path) -> None:
    floats = read_onnx(write_tiny_onnx(tmp_path / "floats.onnx"))
    with pytest.raises(PerfError, match=r"takes TYPE_FP32 \[-1, 3, 32, 32\]: expected uint8 pixels"):
        make_contenders(floats, device="cpu")


@pytest.mark.parametrize("text", ["", "0", "1,x", "-1"])
def test_batches_are_checked(graph: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(graph), f"--batches={text}"]) == 2
    assert "is not a list of numbers from 1" in capsys.readouterr().err


def test_pixels_are_random_and_the_same_for_all() -> None:
    first, again, other = (loop.make_pixels(3, 20, 30, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).mean() > 0.9
    assert first.shape == (3, 20, 30, 3)
    assert first.std() > 40
    assert np.abs(np.diff(first.astype(float).mean(axis=(1, 2)), axis=0)).max() > 5  # images differ at large


@pytest.mark.parametrize(("batch", "sets"), [(1, 8), (32, 8), (128, 7), (512, 2), (4096, 2)])
def test_inputs_together_outgrow_the_cache(batch: int, sets: int) -> None:
    assert count_input_sets(batch * 224 * 224 * 3) == sets


# --- processes


@contextlib.contextmanager
def start_runner(command: list[str], environment: dict[str, str], *, timeout_s: float) -> Iterator[RunnerProcess]:
    process = RunnerProcess(command, environment, timeout_s=timeout_s)
    try:
        yield process
    finally:
        process.stop(patience_s=5)


def write_runner(path: Path, *, then: str, log: Path | None = None) -> Path:
    """Write a program that stands where an interpreter would, answers rightly, and does `then` at some request.

    `then` is Python; it sees `request`, `count` (of requests so far, from 1) and `answer`, which it may replace.
    """
    path.write_text(f"""#!{sys.executable}
import base64, json, os, struct, sys, time
answers = {{
    "start": {{"about": {{}}, "clock": "device"}},
    "prepare": {{"input_bytes": 1}},
    "warm": {{"iteration_ms": 1.0}},
    "check": {{"finite": True, "shape": [1, 2], "scores": base64.b64encode(struct.pack("2f", 0.25, 0.75)).decode()}},
    "measure": {{"times_ms": [1.0, 3.0], "span_ms": 4.0}},
    "copies": {{"times_ms": [2.0]}},
    "energy": {{"joules": 2.0, "window_s": 1.0, "iterations": 8}},
    "release": {{}},
}}
for count, line in enumerate(sys.stdin, 1):
    request = json.loads(line)
    with open({str(log or os.devnull)!r}, "a") as log:
        log.write({path.name!r} + " " + request["do"] + "\\n")
    answer = json.dumps({{**answers[request["do"]], "gpu_bytes": 1000, "host_bytes": 2000}})
    {then}
    print(answer, flush=True)
""")
    path.chmod(0o755)
    return path


def make_scripted(path: Path, *, then: str = "pass", log: Path | None = None) -> Contender:
    python = write_runner(path, then=then, log=log)
    return Contender(label=path.name, kind="x", weights="graph", settings={"height": 8, "width": 8}, python=python)


def test_runners_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = measure(*(make_scripted(tmp_path / name, log=log) for name in ("a", "b", "c")))
    assert result.finished
    turns = [line.split()[0] for line in log.read_text().splitlines() if line.endswith("measure")]
    assert "".join(turns) == "abcbca" * 2  # two batches of two rounds
    assert len(result.usable()) == 6
    assert result.figures[0].gpu_bytes == 1000


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("if request['do'] == 'measure': sys.exit('out of luck')", r"ended during `measure`: exit code 1, out of luck"),
        ("if request['do'] == 'measure': os.kill(os.getpid(), 11)", r"ended during `measure`: exit code -11"),
        ("if request['do'] == 'warm': answer = 'hello there'", r"answered 'hello there' to `warm`, which is not JSON"),
        ("if request['do'] == 'warm': answer = '[1]'", r"answered '\[1\]' to `warm`, which is not a JSON object"),
        ("if request['do'] == 'check': time.sleep(60)", r"did not answer `check` within 2 s and was killed"),
        (
            """if request['do'] == 'measure': answer = '{"error": "OutOfMemoryError: 3 GiB"}'""",
            r"^OutOfMemoryError: 3 GiB$",
        ),
    ],
)
def test_failing_runner_does_not_stop_the_others(tmp_path: Path, then: str, message: str) -> None:
    schedule = Schedule(batches=(1,), rounds=2, seconds=0.02, iterations=1, warm_s=0, energy_s=0, timeout_s=2)
    result = measure(make_scripted(tmp_path / "bad", then=then), make_scripted(tmp_path / "good"), schedule=schedule)
    assert result.finished
    assert [one.label for one in result.usable()] == ["good"]
    assert re.search(message, result.figures[0].failure), result.figures[0].failure
    assert len(result.figures[1].rounds) == 2


def test_runner_that_dies_is_started_again_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    dies = make_scripted(tmp_path / "dies", log=log, then="if request['do'] == 'measure': sys.exit('gone')")
    schedule = Schedule(batches=(1, 2, 3), rounds=1, seconds=0.02, iterations=1, warm_s=0, energy_s=0, timeout_s=10)
    result = measure(dies, make_scripted(tmp_path / "good"), schedule=schedule)
    assert log.read_text().splitlines().count("dies start") == 2
    assert result.figures[4].failure == "not started again: ended during `measure`: exit code 1, gone"
    assert len([one for one in result.usable() if one.label == "good"]) == 3


def test_answer_that_changes_while_measured_is_refused(tmp_path: Path) -> None:
    other = "base64.b64encode(struct.pack('2f', 0.75, 0.25)).decode()"
    then = f"if request['do'] == 'check' and count > 5: answer = answer.replace(answers['check']['scores'], {other})"
    schedule = Schedule(batches=(1,), rounds=1, seconds=0.02, iterations=1, warm_s=0, energy_s=0, timeout_s=10)
    result = measure(make_scripted(tmp_path / "drifts", then=then), schedule=schedule)
    assert "answers differently after the measurement" in result.figures[0].failure


def test_hanging_runner_and_its_children_are_killed(tmp_path: Path) -> None:
    program = tmp_path / "hangs"
    program.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/child\nwait\n")
    program.chmod(0o755)
    with start_runner([str(program)], dict(os.environ), timeout_s=1) as process:
        with pytest.raises(RunnerError, match="within 1 s and was killed") as caught:
            process.ask("start")
        assert not caught.value.alive
        with pytest.raises(RunnerError, match="ended before `warm`"):
            process.ask("warm")
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # a killed process takes a moment on a busy machine
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child of the runner lives on")


def test_program_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"none cannot be started: No such file"):
        RunnerProcess([str(tmp_path / "none")], {}, timeout_s=1)


def test_what_a_library_prints_stays_out_of_the_conversation(tmp_path: Path) -> None:
    folder = tmp_path / "runners"
    folder.mkdir()
    shutil.copy(loop.__file__, folder / "loop.py")
    (folder / "loud_runner.py").write_text(
        "import os\nos.system('echo loud')\nprint('louder')\n"
        "def open_runner(settings):\n    raise RuntimeError('no\\n  luck')\n"
    )
    command = [sys.executable, str(folder / "loop.py"), "loud"]
    with start_runner(command, dict(os.environ), timeout_s=30) as process:
        with pytest.raises(RunnerError, match=r"^RuntimeError: no luck$") as caught:
            process.ask("start", settings={"device": "cpu"})
        assert caught.value.alive


def test_runner_refuses_a_batch_and_goes_on(graph: Path) -> None:
    settings = make_onnxruntime(graph, "x").settings
    with start_runner(runner_command("onnxruntime"), runner_environment(), timeout_s=60) as process:
        process.ask("start", settings={**settings, "height": 40})
        with pytest.raises(RunnerError, match=r"InvalidArgument: .*40") as caught:
            process.ask("prepare", batch=1, sets=2, seed=0)
        assert caught.value.alive
        process.ask("release")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_plan_runner_says_why_it_cannot_run(tmp_path: Path) -> None:
    settings = {"plan": str(tmp_path / "no.plan"), "cuda_graph": True, "device": "cuda", "height": 8, "width": 8}
    with (
        start_runner(runner_command("plan"), runner_environment(), timeout_s=60) as process,
        pytest.raises(RunnerError, match=r"^RuntimeError: .*no\.plan"),
    ):
        process.ask("start", settings=settings)


def test_environment_of_another_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "driver"
    driver.mkdir()
    (driver / "libcuda.so.1").touch()
    monkeypatch.setenv("PYTHONHOME", "/kit")
    monkeypatch.setenv("PYTHONPATH", "/kit/lib")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:{driver}")
    other = runner_environment(tmp_path / "python")
    assert "PYTHONHOME" not in other
    assert "PYTHONPATH" not in other
    assert other["LD_LIBRARY_PATH"] == str(driver)
    own = runner_environment()
    assert own["PYTHONHOME"] == "/kit"
    assert own["PYTHONPATH"].split(":") == [str(Path(__file__).parents[1]), "/kit/lib"]
    assert own["LD_LIBRARY_PATH"] == f"{tmp_path}:{driver}"


def test_torch_runner_needs_nothing_of_this_project() -> None:
    """Also not what it depends on: the interpreter that has torch may have neither pydantic nor typer."""
    refuse = "import sys; sys.modules.update(dict.fromkeys(['generator', 'pydantic', 'typer', 'onnx', 'jinja2']))"
    folder = Path(loop.__file__).parent
    load = f"sys.path.insert(0, {str(folder)!r}); import loop, torch_runner"
    subprocess.run([sys.executable, "-c", f"{refuse}; {load}"], check=True, cwd="/")


# --- energy and memory counters

_NVML = """
#include <string.h>
static unsigned long long energy = 5000000, calls = 0;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(0x1234567890ull + index);
    return index != 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)0x1234567890ull;
    return strcmp(uuid, "GPU-7");
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *value) {
    if (device != (void *)0x1234567890ull) return 2;
    if (++calls % 10 == 0) energy += 2500;
    *value = energy;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    memory[0] = 100; memory[1] = 60; memory[2] = 40;
    return device != (void *)0x1234567890ull;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(("visible", "works"), [("", True), ("0,1", True), ("GPU-7", True), ("1", False)])
def test_energy_is_read_from_step_to_step(tmp_path: Path, visible: str, works: bool) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(_NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", source], check=True)
    program = f"""
import json, sys, time
sys.path.insert(0, {str(Path(loop.__file__).parent)!r})
import loop
class Runner:
    def enqueue(self, index): time.sleep(0.001)
    def synchronize(self): pass
talk = loop.Conversation("x")
talk._runner, talk._iteration_s, talk._nvml = Runner(), 0.001, loop.Nvml(wanted=True)
print(json.dumps([talk._nvml.used_bytes(), talk.energy(0.3)]))
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": visible}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    used, energy = json.loads(run.stdout)
    if not works:
        assert used is energy["joules"] is None
        return
    assert used == 40
    assert energy["window_s"] >= 0.3
    # twenty iterations to a reading, ten readings to a step of 2.5 J
    assert energy["iterations"] == pytest.approx(energy["joules"] / 2.5 * 200, rel=0.2)


# --- figures


def make_figures(label: str, batch: int, *spans: float, joules: float | None = None) -> RunnerFigures:
    rounds = [
        Round(
            times_ms=tuple(span / 50 for _ in range(50)),
            span_ms=span,
            energy=None if joules is None else Energy(joules=joules, window_s=1.0, iterations=100),
        )
        for span in spans
    ]
    return RunnerFigures(label=label, batch=batch, clock="device", rounds=rounds, gpu_bytes=2**30)


def make_result() -> BenchResult:
    figures = [
        make_figures("slow-graph", 4, 100.0, 100.0, joules=20),
        make_figures("fast<&>", 4, 40.0, 60.0, joules=10),
        RunnerFigures(label="lost", batch=4, failure="<b>out</b> of memory"),
    ]
    about: dict[str, Any] = {
        "date": "2026-01-01", "command": "trtgen bench <x>", "method": ["<i>"], "device": "cuda",
        "versions": {"trtgen": "0"}, "machine": {"processor": "P", "cores": 1}, "gpu": {"name": "G", "driver": "1"},
        "model": {"path": "m.onnx", "torch": ""},
    }  # fmt: skip
    agreed = Agreement(first="slow-graph", second="fast<&>", batch=4, worst_cosine=0.99987, top1=1.0)
    return BenchResult(reference="slow-graph", figures=figures, agreements=[agreed], about=about, finished=True)


def test_figures() -> None:
    slow, fast, lost = (result := make_result()).figures
    assert slow.images_per_s == 4 * 100 / 0.2
    assert fast.images_per_s_of_rounds == [5000, pytest.approx(3333.33, abs=0.01)]
    assert fast.spread == pytest.approx(0.5)
    assert slow.spread == 0
    assert result.ratio(fast) == 2
    assert fast.median_ms == pytest.approx(1.0)
    assert fast.p99_ms == pytest.approx(1.2)
    assert make_figures("few", 1, 10.0).p99_ms is None
    assert fast.images_per_joule == 4 * 200 / 20
    assert not lost.usable
    document = describe_result(result)
    assert document["figures"][1]["watts"] == 10
    assert document["figures"][1]["energy_window_s"] == 2
    assert document["figures"][2]["failure"] == "<b>out</b> of memory"


def test_table_shows_what_was_found() -> None:
    lines = format_table(make_result()).splitlines()
    assert lines[0] == "batch 4"
    assert lines[1].split() == [
        "runner", "median", "ms", "p99", "ms", "with", "copies", "images/s", "spread", "x", "slow-graph",
        "memory", "MiB", "images/J", "cosine",
    ]  # fmt: skip
    assert lines[3].split() == ["fast<&>", "1.000", "1.200", "4,000.0", "50.0%", "2.00", "1,024", "40.00", "0.999870"]
    assert lines[4] == "lost: <b>out</b> of memory"


def test_page_escapes_and_stands_alone() -> None:
    result = make_result()
    text = draw_svg(result)
    page, picture = make_page(result, text), ET.fromstring(text)
    assert "<b>out" not in page
    assert "&lt;b&gt;out" in page
    assert "fast<&>" not in page
    assert not re.search(r"<script|<link|<image|url\((?!#)|@import|(?:src|href)=\"(?!#)", page)
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"images/s", "images/J", "images/s, times slow-graph", "fast<&>", "4"} <= texts
    assert draw_svg(result) == text  # the same run, the same file


def draw_panels(result: BenchResult) -> Any:
    return draw_figure(result).axes


def test_faster_is_higher_in_the_picture() -> None:
    panels = draw_panels(make_result())
    assert [one.get_title(loc="left") for one in panels] == ["images/s", "images/s, times slow-graph", "images/J"]
    slow, fast = panels[0].lines
    assert (slow.get_label(), slow.get_linestyle()) == ("slow-graph", "-")
    assert (fast.get_label(), fast.get_linestyle()) == ("fast<&>", "--")  # no CUDA graph
    assert [[*line.get_xdata(), *line.get_ydata()] for line in panels[0].lines] == [[4, 2000], [4, 4000]]
    bars = [collection.get_segments()[0][:, 1].tolist() for collection in panels[0].collections]
    assert bars == [[2000, 2000], [pytest.approx(3333.33, abs=0.01), 5000]]  # the range of its rounds
    assert [list(line.get_ydata()) for line in panels[1].lines] == [[1], [2]]
    assert [list(line.get_ydata()) for line in panels[2].lines] == [[20], [40]]


def test_runners_without_energy_get_two_panels() -> None:
    result = BenchResult(reference="a", figures=[make_figures("a", batch, 10.0 * batch) for batch in (1, 8)])
    assert [list(one.lines[0].get_ydata()) for one in draw_panels(result)] == [[5000, 5000], [1, 1]]


def test_help_does_not_load_what_measures() -> None:
    assert importlib.util.find_spec("generator.cli.bench") is not None
    program = "import sys, generator.cli.bench; sys.exit(bool({'numpy', 'onnx', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
