"""On a real GPU: its memory taken by others, Ctrl-C while TensorRT builds, what 8.6 makes of plans, several GPUs."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient import grpc

from generator.errors import ServerError
from generator.gpu import load_driver, why_no_gpu
from generator.graph.model import read_onnx
from generator.measure.inspect import inspect_plan
from generator.plan import build
from generator.plan.library import installed_version
from generator.plan.local import open_engine
from generator.plan.profiles import make_profiles
from generator.runtime.device import call
from generator.server.embedded import EmbeddedServer
from generator.spec.plan import BatchProfile, PlanOptions
from tests import test_backend_gpu as backend

WITHOUT = why_no_gpu() or ("" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed")
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU and TensorRT: {WITHOUT}")
GPUS = 0 if WITHOUT else int(call(load_driver(), "cuDeviceGetCount"))
VERSION = installed_version()
ROOT = Path(__file__).parents[1]
OPSET = 17  # the newest that 8.6 reads
HOG = """
import sys
from generator.gpu import load_driver
from generator.runtime.device import Device
device = Device(load_driver())
held = device.allocate(device.free_memory()[0] - int(sys.argv[1]) * 2**20)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def others_leave(mebibytes: int) -> Iterator[None]:
    """Let another process hold all of the GPU's memory but so much."""
    command = [sys.executable, "-c", HOG, str(mebibytes)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.stdin.close()
            process.wait(30)


def start_build(graph: Path, plan: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "generator", "-v", "build-plan", graph, "--output", plan, "--no-timing-cache"]
    return subprocess.Popen(
        [*map(str, command), *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def write_deep(path: Path, *, layers: int, channels: int, size: int, more: int = 0) -> Path:
    """A graph that takes long to build where no layer is like another (`more` channels each), and memory if wide."""
    rng = np.random.default_rng(0)
    nodes, weights, last, width = [], [], "image", 3
    for index in range(layers):
        made = channels + more * index
        values = rng.normal(0, 0.05, (made, width, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"weight{index}"))
        nodes += [
            helper.make_node("Conv", [last, f"weight{index}"], [f"conv{index}"], name=f"conv{index}", pads=[1] * 4),
            helper.make_node("Sigmoid", [f"conv{index}"], [f"out{index}"], name=f"sigmoid{index}"),
        ]
        last, width = f"out{index}", made
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["scores"], name="flatten"))
    graph = helper.make_graph(
        nodes, "deep",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", width])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.save(model, path)
    return path


def test_ctrl_c_ends_a_build_at_once(tmp_path: Path) -> None:
    source = write_deep(tmp_path / "deep.onnx", layers=40, channels=32, size=112, more=4)
    with start_build(source, tmp_path / "model.plan", "--precision", "fp16", "--profile", "1,32,64") as process:
        assert process.stderr is not None
        assert any(line.endswith(": building\n") for line in process.stderr)  # after ": parsing"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert time.monotonic() - started < 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.onnx"]


def test_memory_exhausted_while_building(tmp_path: Path) -> None:
    source = write_deep(tmp_path / "wide.onnx", layers=3, channels=64, size=224)
    with others_leave(900), start_build(source, tmp_path / "model.plan", "--profile", "1,256,256") as process:
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    assert "memory" in errors
    assert "hint: " in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.onnx"]


def make_request(
    source: Path, batch: BatchProfile, options: PlanOptions, *, precision: str = "fp32", keep: tuple[str, ...] = ()
) -> build.BuildRequest:
    model = read_onnx(source)
    return build.BuildRequest(
        onnx=model,
        precision=precision,
        profiles=make_profiles(model, [batch]),
        max_batch_size=batch.max,
        options=options,
        command="",
        keep=keep,
    )


@pytest.mark.skipif(VERSION is None or VERSION.major >= 10, reason="from 10 on the graph says it")
def test_nodes_to_keep_are_fp32_in_the_plan(tmp_path: Path) -> None:
    source = write_deep(tmp_path / "deep.onnx", layers=3, channels=128, size=28)
    # with TF32 a graph as small as this is as fast as with FP16; fewer kernels to try take less time
    options = PlanOptions(timing_cache=False, tf32=False, optimization_level=2)
    request = make_request(source, BatchProfile(min=1, opt=32, max=32), options, precision="fp16", keep=("conv1",))
    plan = build.build_plan(request, tmp_path / "model.plan")
    report = inspect_plan(plan.path, onnx=source, batch=32, iterations=1)
    precision = {node: row.precision for row in report.rows for node in row.nodes}
    assert (precision["conv1"], precision["conv2"]) == ("fp32", "fp16")


def test_a_plan_for_one_image_at_a_time(tmp_path: Path) -> None:
    source = write_deep(tmp_path / "deep.onnx", layers=1, channels=8, size=28)
    request = make_request(source, BatchProfile(min=1, opt=1, max=1), PlanOptions(timing_cache=False))
    plan = build.build_plan(request, tmp_path / "model.plan")
    rows = np.random.default_rng(0).random((3, 3, 28, 28), np.float32)
    with open_engine(plan.path) as engine:
        assert engine.run_rows(rows).shape == (3, 8)


@pytest.mark.server
def test_more_instances_than_memory(tmp_path: Path) -> None:
    plan = backend.build(tmp_path / "p.plan")
    backend.add_model(tmp_path / "repository", "m", plan, group='count: 8 profile: [ "1" ]')
    with others_leave(2000), pytest.raises(ServerError) as caught, EmbeddedServer(tmp_path / "repository"):
        pass
    words = r"the memory of GPU 0 is exhausted.* \((\d+) of its instances were loaded\)"
    found = re.search(words, str(caught.value))
    assert found, caught.value
    assert 1 <= int(found[1]) < 8, caught.value
    assert "give it fewer instances" in (caught.value.hint or "")


@pytest.mark.server
def test_no_memory_at_all(tmp_path: Path) -> None:
    backend.add_model(tmp_path / "repository", "m", backend.build(tmp_path / "p.plan"), group='profile: [ "1" ]')
    log = tmp_path / "server.log"
    with (
        others_leave(50),
        pytest.raises(ServerError) as caught,
        EmbeddedServer(tmp_path / "repository", log_path=log),
    ):
        pass
    words = "the memory of GPU 0 is exhausted: not even the CUDA context of "
    assert words in str(caught.value), f"{caught.value}\n{log.read_text()}"


@pytest.mark.server
@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_every_gpu_serves(tmp_path: Path) -> None:
    backend.add_model(tmp_path / "repository", "m", backend.build(tmp_path / "p.plan"), group='profile: [ "1" ]')
    log = tmp_path / "server.log"
    with (
        EmbeddedServer(tmp_path / "repository", log_path=log) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        for index in range(100):
            rows, pixels = backend.make_pair(1 + index % 13, index)
            result = client.infer("m", backend.make_inputs((rows, pixels)))
            np.testing.assert_array_equal(result.as_numpy("Y"), rows * 2)
            np.testing.assert_array_equal(result.as_numpy("Z"), pixels.astype(np.float32) * 2)
    said = set(re.findall(r"TensorRT \S+ on GPU (\d+)", log.read_text()))
    assert said == {str(number) for number in range(GPUS)}
