"""Plans are built by the real builder of TensorRT-RTX, which needs no GPU; what a plan leaves behind, or does not."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper

from generator import __main__, cli
from generator.cli.build_plan import read_profiles
from generator.errors import DeviceError, MissingDependencyError, PlanError
from generator.files import hash_bytes
from generator.gpu import Gpu, find_gpu, why_no_gpu
from generator.graph.model import read_onnx
from generator.plan import build
from generator.plan.hints import explain
from generator.plan.library import TensorRTVersion, installed_version, open_log
from generator.plan.passport import read_passport
from generator.plan.profiles import make_profiles
from generator.plan.progress import Progress, run_watched
from generator.plan.timing_cache import CacheKey, TimingCache, cache_folder
from generator.plan.versions import Adapter, open_adapter
from generator.signals import ending_signals
from generator.spec.plan import BatchProfile, PlanOptions
from tests.tiny_onnx import write_tiny_onnx

GPU = Gpu(
    index=0,
    name="NVIDIA Test GPU",
    compute_capability="9.0",
    multiprocessors=132,
    memory_bytes=1 << 37,
    driver="580.1",
    cuda="13.0",
)


@pytest.fixture
def rtx() -> Adapter:
    return open_adapter("tensorrt_rtx")


def as_version(rtx: Adapter, text: str) -> Adapter:
    """The real library under another version's number, for the decisions that follow from the number alone."""
    return Adapter(rtx.trt, rtx.log, TensorRTVersion.parse(text), rtx=False)


def make_request(
    path: Path, *, precision: str = "fp32", command: str = "trtgen build-plan", **options: Any
) -> build.BuildRequest:
    model = read_onnx(path)
    batches = [BatchProfile(min=1, opt=4, max=8)]
    return build.BuildRequest(
        onnx=model,
        precision=precision,
        profiles=make_profiles(model, batches),
        max_batch_size=8,
        options=PlanOptions(**options),
        command=command,
    )  # fmt: skip


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("batches", "made", "fits"),
    [
        ([(1, 1, 1)], 1, True),
        ([(1, 1, 1)], -1, True),
        ([(8, 8, 8)], 8, True),
        ([(1, 1, 1)], 2, False),
        ([(1, 1, 8)], 1, False),
        ([(1, 8, 8)], 8, False),
        ([(1, 1, 1), (2, 2, 2)], 1, False),
        ([(1, 1, 1), (2, 2, 2)], 2, False),
    ],
)
def test_a_plan_for_one_batch_size_may_have_it_in_its_shapes(
    rtx: Adapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[tuple[int, int, int]],
    made: int,
    fits: bool,
) -> None:
    given = make_request(write_tiny_onnx(tmp_path / "tiny.onnx"), timing_cache=False)
    profiles = make_profiles(given.onnx, [BatchProfile(min=low, opt=opt, max=high) for low, opt, high in batches])
    request = replace(given, profiles=profiles, max_batch_size=None)
    inputs, outputs = ([replace(one, shape=(made, *one.shape[1:]))] for one in (given.onnx.input, given.onnx.output))
    monkeypatch.setattr(rtx, "rtx", False)  # its engines load on a GPU only: what was loaded is given
    monkeypatch.setattr(rtx, "plan_tensors", lambda _plan: (inputs, outputs, len(profiles)))
    if fits:
        build.build_plan(request, tmp_path / "model.plan", adapter=rtx, gpu=GPU)
        return
    words = f"input image is [{made}, 3, 32, 32]; the graph has [-1, 3, 32, 32]"
    with pytest.raises(PlanError, match=re.escape(words)):
        build.build_plan(request, tmp_path / "model.plan", adapter=rtx, gpu=GPU)


def test_plan_and_passport_lie_side_by_side(rtx: Adapter, tmp_path: Path) -> None:
    source = write_tiny_onnx(tmp_path / "tiny.onnx")
    seen: list[tuple[str, float]] = []
    request = make_request(source, tf32=False, command="trtgen build-plan tiny.onnx")
    plan = build.build_plan(
        request, tmp_path / "model.plan", on_progress=lambda *now: seen.append(now), adapter=rtx, gpu=GPU
    )
    assert files_in(tmp_path) == {"tiny.onnx", "model.plan", "model.plan.json"}
    passport = read_passport(plan.path, check_hash=True)
    assert passport == plan.passport
    assert passport.tensorrt == str(rtx.version)
    assert passport.gpu["name"] == GPU.name
    written = json.loads((tmp_path / "model.plan.json").read_text())
    assert written["profiles"] == [{"image": {"min": [1, 3, 32, 32], "opt": [4, 3, 32, 32], "max": [8, 3, 32, 32]}}]
    assert written["inputs"] == [{"name": "image", "data_type": "TYPE_FP32", "shape": [-1, 3, 32, 32]}]
    assert written["flags"] == ["STRONGLY_TYPED"]
    assert passport.options["tf32"] is False
    assert passport.onnx_sha256 == hash_bytes(source.read_bytes())
    assert passport.plan_bytes == plan.path.stat().st_size
    assert passport.timing_cache == "off"
    assert passport.command == "trtgen build-plan tiny.onnx"
    assert plan.path.stat().st_mode & 0o777 == 0o644
    assert seen[-1][1] == 1.0
    assert [part for _, part in seen if not math.isnan(part)] == sorted(
        part for _, part in seen if not math.isnan(part)
    )


def test_tf32_is_a_flag_by_name(rtx: Adapter, tmp_path: Path) -> None:
    compiled = build.compile_graph(rtx, make_request(write_tiny_onnx(tmp_path / "tiny.onnx")))
    assert compiled.flags == ("STRONGLY_TYPED", "TF32")
    assert sum(compiled.layer_types.values()) == compiled.layers


def test_every_option_reaches_the_builder(rtx: Adapter) -> None:
    builder = rtx.create_builder()
    options = PlanOptions(workspace_mib=64, optimization_level=1, tf32=False)
    config = rtx.configure(builder, precision="fp32", options=options)
    trt = rtx.trt
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert rtx.flags_of(config) == []
    config = rtx.configure(builder, precision="fp32", options=PlanOptions(version_compatible=True))
    assert rtx.flags_of(config) == ["TF32", "VERSION_COMPATIBLE"]
    with pytest.raises(PlanError, match="does not take hardware_compatibility ampere-plus"):  # RTX drops it silently
        rtx.configure(builder, precision="fp32", options=PlanOptions(hardware_compatibility="ampere-plus"))


def test_weights_beside_the_graph_are_found(rtx: Adapter, tmp_path: Path) -> None:
    model = onnx.load(write_tiny_onnx(tmp_path / "whole.onnx"))
    folder = tmp_path / "parts"
    folder.mkdir()
    onnx.save(model, folder / "tiny.onnx", save_as_external_data=True, location="tiny.data", size_threshold=0)
    assert (folder / "tiny.data").exists()
    assert build.compile_graph(rtx, make_request(folder / "tiny.onnx")).data


def save_graph(path: Path, nodes: list[Any], weights: dict[str, Any], *, uint8: bool = False, domain: str = "") -> Path:
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("image", kind, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def quantized(path: Path, *, zero_point: int = 0, bias: bool = False) -> Path:
    """A convolution behind Q/DQ, as onnxruntime writes it: asymmetric, or with an INT32 bias."""
    node = helper.make_node
    weights = {
        "scale": np.array(0.1, np.float32),
        "zero": np.array(zero_point, np.int8),
        "weight": np.ones((4, 3, 3, 3), np.float32),
        "bias_q": np.ones(4, np.int32),
        "zero32": np.array(0, np.int32),
    }
    nodes = [
        node("QuantizeLinear", ["image", "scale", "zero"], ["q"], name="quantize"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dequantize"),
    ]
    if bias:
        nodes.append(node("DequantizeLinear", ["bias_q", "scale", "zero32"], ["bias"], name="dequantize_bias"))
    nodes += [
        node("Conv", ["dq", "weight", *(["bias"] if bias else [])], ["conv"], name="conv"),
        node("GlobalAveragePool", ["conv"], ["scores"], name="pool"),
    ]
    return save_graph(path, nodes, weights)


def unsupported(path: Path) -> Path:
    return save_graph(path, [helper.make_node("Det", ["image"], ["scores"], name="determinant")], {})


def custom_domain(path: Path) -> Path:
    node = helper.make_node("Frobnicate", ["image"], ["scores"], name="frob", domain="com.acme")
    return save_graph(path, [node], {}, domain="com.acme")


def late_cast(path: Path) -> Path:
    nodes = [
        helper.make_node("Transpose", ["image"], ["nhwc"], name="transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["nhwc"], ["scores"], name="cast", to=TensorProto.FLOAT),
    ]
    return save_graph(path, nodes, {}, uint8=True)


def int32_bias(path: Path) -> Path:
    return quantized(path, bias=True)


def asymmetric(path: Path) -> Path:
    return quantized(path, zero_point=7)


def no_kernel(path: Path) -> Path:
    """NonMaxSuppression, which RTX reads and has no kernel for."""
    node = helper.make_node
    weights = {
        "box_shape": np.array([0, 48, 4], np.int64),
        "last": np.array([2], np.int64),
        "most": np.array(10, np.int64),
        "threshold": np.array(0.5, np.float32),
    }
    nodes = [
        node("Reshape", ["image", "box_shape"], ["boxes"], name="boxes"),
        node("ReduceMax", ["boxes", "last"], ["best"], name="best", keepdims=1),
        node("Transpose", ["best"], ["classes"], name="classes", perm=[0, 2, 1]),
        node("NonMaxSuppression", ["boxes", "classes", "most", "threshold", "threshold"], ["kept"], name="nms"),
        node("Cast", ["kept"], ["scores"], name="cast", to=TensorProto.FLOAT),
    ]
    return save_graph(path, nodes, weights)


@pytest.mark.parametrize(
    ("plant", "precision", "found", "fix"),
    [
        (unsupported, "fp32", r"node determinant \(Det\): UNSUPPORTED_NODE", "no such operator"),
        (custom_domain, "fp32", r"node frob \(Frobnicate\): .*Plugin not found", "no such operator"),
        (late_cast, "fp32", r"node transpose \(Transpose\): .*type UInt8 but must have type", "Cast directly behind"),
        (int32_bias, "int8", r"\(DequantizeLinear\): .*Int32", "QuantizeBias"),
        (no_kernel, "fp32", r"nms.* has no runners that implement it", "workspace_mib"),
        (asymmetric, "int8", r"node quantize \(QuantizeLinear\): .*zero point is not supported", "zero points of 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refused_graphs_name_the_node_and_the_fix(
    rtx: Adapter, tmp_path: Path, plant: Any, precision: str, found: str, fix: str
) -> None:
    source = plant(tmp_path / "planted.onnx")
    with pytest.raises(PlanError, match=found) as caught:
        build.build_plan(make_request(source, precision=precision), tmp_path / "model.plan", adapter=rtx, gpu=GPU)
    assert "opset 18" in caught.value.message
    assert fix in (caught.value.hint or "")
    assert files_in(tmp_path) == {"planted.onnx"}


def test_a_plan_of_another_shape_than_the_graph_says(rtx: Adapter, tmp_path: Path) -> None:
    model = onnx.load(write_tiny_onnx(tmp_path / "tiny.onnx"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    onnx.save(model, tmp_path / "tiny.onnx")
    with pytest.raises(PlanError, match=r"output scores is \[-1, 4\]; the graph has \[-1, 5\]"):
        build.compile_graph(rtx, make_request(tmp_path / "tiny.onnx"))


def test_a_plan_may_order_its_outputs_anew(tmp_path: Path) -> None:
    """As TensorRT 8.6 does with those of a detector."""
    found = read_onnx(write_tiny_onnx(tmp_path / "tiny.onnx"))
    more = replace(found.output, name="more")
    several = replace(found, outputs=(found.output, more))
    build._check_tensors(several, found.inputs, (more, found.output))
    with pytest.raises(PlanError, match=r"outputs \['more'\]; the graph has scores, more"):
        build._check_tensors(several, found.inputs, (more,))


@pytest.mark.parametrize(
    ("version", "graph", "precision", "options", "opset", "message", "hint"),
    [
        ("8.6.0", "fp32", "bf16", {}, 17, "bf16 was asked for; TensorRT 8.6.0 has none", "fp16"),
        ("8.6.0", "fp8", "fp8", {}, 17, "fp8 was asked for; TensorRT 8.6.0 has none", "10.12 or later"),
        ("8.6.0", "fp32", "int8", {}, 17, "of a graph that holds fp32, TensorRT 8.6.0 makes fp32 or fp16", "export"),
        ("8.6.0", "int8", "fp16", {}, 17, "of a graph that holds int8, TensorRT 8.6.0 makes int8", "precision: int8"),
        ("8.6.0", "fp32", "fp32", {}, 18, "the graph has opset 18; TensorRT 8.6.0 reads 17 at most", "opset 17"),
        ("10.16.1.11", "fp32", "fp16", {}, 18, "the graph holds fp32, which TensorRT 10.16.1.11 builds", "export"),
        ("11.4.0.106", "int8", "fp16", {}, 19, "the graph holds int8", "precision: int8"),
    ],
)
def test_requests_are_refused_by_version(
    rtx: Adapter, version: str, graph: str, precision: str, options: dict[str, Any], opset: int, message: str, hint: str
) -> None:
    adapter = as_version(rtx, version)
    with pytest.raises(PlanError) as caught:
        adapter.check_request(graph=graph, precision=precision, options=PlanOptions(**options), opset=opset)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_several_refusals_come_together(rtx: Adapter) -> None:
    options = PlanOptions(hardware_compatibility="ampere-plus", version_compatible=True)
    with pytest.raises(PlanError) as caught:
        rtx.check_request(graph="fp32", precision="fp16", options=options, opset=18)
    assert caught.value.message.count("was asked for") == 3


@pytest.mark.parametrize(
    ("version", "graph", "precision", "opset"),
    [("8.6.0", "fp32", "fp16", 17), ("8.6.1", "int8", "int8", 17), ("10.12.0.36", "bf16", "bf16", 22)],
)
def test_requests_that_fit(rtx: Adapter, version: str, graph: str, precision: str, opset: int) -> None:
    as_version(rtx, version).check_request(graph=graph, precision=precision, options=PlanOptions(), opset=opset)


@pytest.mark.parametrize("version", ["8.5.3", "9.2.0", "10.11.0.33"])
def test_versions_out_of_range(rtx: Adapter, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx.trt, "__version__", version)
    monkeypatch.setitem(sys.modules, "tensorrt", rtx.trt)
    with pytest.raises(PlanError, match=f"TensorRT {version} is installed; 8.6, 10.12 and later"):
        open_adapter()


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("[defaultAllocator.cpp::allocate::20] Error Code 1: Cuda Runtime (out of memory)", "free GPU memory"),
        ("Error Code 2: OutOfMemory (no further information)", "free GPU memory"),
        ("Error Code 10: Could not find any implementation for node {ForeignNode[a...b]}.", "workspace_mib"),
        ("Assertion !n->candidateRequirements.empty() failed. All of the candidates", "precision: int8"),
        ("nms0_0 has no runners that implement it", "workspace_mib"),
        ("Unable to load library: libnvinfer_builder_resource.so.8.6.0", "install tensorrt again"),
        ("something never heard of", "verbose logs"),
    ],
)
def test_known_words_of_tensorrt(said: str, fix: str) -> None:
    assert fix in explain(said)


def half(path: Path, kind: type) -> Path:
    model = onnx.load(write_tiny_onnx(path))
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(kind), weight.name))
    onnx.save(model, path)
    return path


def test_precision_is_what_the_graph_holds(tmp_path: Path) -> None:
    assert read_onnx(write_tiny_onnx(tmp_path / "a.onnx")).precision == "fp32"
    assert read_onnx(half(tmp_path / "b.onnx", np.float16)).precision == "fp16"
    assert read_onnx(quantized(tmp_path / "c.onnx")).precision == "int8"


# Refused before anything starts


@pytest.mark.skipif(installed_version() is not None, reason="tensorrt is installed here")
def test_no_tensorrt(tmp_path: Path) -> None:
    request = make_request(write_tiny_onnx(tmp_path / "tiny.onnx"))
    with pytest.raises(MissingDependencyError, match="tensorrt is not installed"):
        build.build_plan(request, tmp_path / "model.plan")
    assert files_in(tmp_path) == {"tiny.onnx"}


@pytest.mark.skipif(not why_no_gpu(), reason="there is a GPU here")
def test_no_gpu(rtx: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", rtx.trt)
    monkeypatch.setattr(rtx.trt, "__version__", "11.4.0.106")
    request = make_request(write_tiny_onnx(tmp_path / "tiny.onnx"))
    with pytest.raises(DeviceError):
        build.build_plan(request, tmp_path / "model.plan")
    with pytest.raises(DeviceError):
        find_gpu()
    assert files_in(tmp_path) == {"tiny.onnx"}


@pytest.mark.parametrize("name", ["absent/model.plan", "folder", "tiny.onnx"])
def test_a_destination_that_cannot_be(rtx: Adapter, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    request = make_request(write_tiny_onnx(tmp_path / "tiny.onnx"))
    before = (tmp_path / "tiny.onnx").read_bytes()
    with pytest.raises(PlanError):
        build.build_plan(request, tmp_path / name, adapter=rtx, gpu=GPU)
    assert (tmp_path / "tiny.onnx").read_bytes() == before


def test_a_failed_write_leaves_the_earlier_pair(rtx: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(write_tiny_onnx(tmp_path / "tiny.onnx"))
    path = tmp_path / "model.plan"
    build.build_plan(request, path, adapter=rtx, gpu=GPU)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}

    def fail(_folder: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("generator.plan.passport.os.fsync", fail)
    with pytest.raises(PlanError, match="No space left on device"):
        build.build_plan(request, path, adapter=rtx, gpu=GPU)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_between_the_two_names_waits(
    rtx: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    rename = Path.replace

    def renamed(path: Path, target: Path) -> Path:
        if target.name == "model.plan.json":
            os.kill(os.getpid(), number)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", renamed)
    request = make_request(write_tiny_onnx(tmp_path / "tiny.onnx"))
    with pytest.raises(KeyboardInterrupt), ending_signals():
        build.build_plan(request, tmp_path / "model.plan", adapter=rtx, gpu=GPU)
    assert files_in(tmp_path) == {"tiny.onnx", "model.plan", "model.plan.json"}
    read_passport(tmp_path / "model.plan", check_hash=True)


# Ctrl-C and progress


def run_until_interrupted(source: Path, plan: Path) -> None:
    """Told by a line on stdout when TensorRT is at work."""

    def tell(_phase: str, fraction: float) -> None:
        if fraction > 0:
            print("building", flush=True)

    try:
        build.build_plan(make_request(source), plan, adapter=open_adapter("tensorrt_rtx"), gpu=GPU, on_progress=tell)
    except KeyboardInterrupt:
        sys.exit(130)


def start(program: str, source: Path, plan: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a function of this file in a process of its own."""
    code = f"import sys; from tests.test_build_plan import Path, {program}; {program}(*map(Path, sys.argv[1:]))"
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(source), str(plan)]
    return subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True, **options)


def deep_graph(path: Path, layers: int = 600) -> Path:
    """Enough layers for a build of several seconds."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], {}, "image"
    for index in range(layers):
        weights[f"weight{index}"] = rng.normal(0, 0.1, (3, 3, 1 + 2 * (index % 3), 1)).astype(np.float32)
        pads = [index % 3, 0, index % 3, 0]
        nodes += [
            helper.make_node("Conv", [last, f"weight{index}"], [f"conv{index}"], name=f"conv{index}", pads=pads),
            helper.make_node("Sigmoid", [f"conv{index}"], [f"out{index}"], name=f"sigmoid{index}"),
        ]
        last = f"out{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["scores"], name="pool"))
    return save_graph(path, nodes, weights)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source = deep_graph(tmp_path / "deep.onnx")
    with start("run_until_interrupted", source, tmp_path / "model.plan") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert files_in(tmp_path) == {"deep.onnx"}


def test_progress_asks_the_builder_to_stop(rtx: Adapter, tmp_path: Path) -> None:
    def interrupt(_phase: str, fraction: float) -> None:
        if fraction > 0:
            raise KeyboardInterrupt

    request = make_request(deep_graph(tmp_path / "deep.onnx"))
    with pytest.raises(KeyboardInterrupt):
        build.build_plan(request, tmp_path / "model.plan", on_progress=interrupt, adapter=rtx, gpu=GPU)
    assert files_in(tmp_path) == {"deep.onnx"}
    assert not any("trtgen-build" in one.name for one in threading.enumerate())


def test_a_cancelled_builder_gives_no_plan(rtx: Adapter, tmp_path: Path) -> None:
    builder = rtx.create_builder()
    network, _ = rtx.create_network(builder)
    assert not rtx.parse(network, write_tiny_onnx(tmp_path / "static.onnx", batch=2))
    for cancelled in (True, False):
        progress = Progress()
        config = rtx.configure(builder, precision="fp32", options=PlanOptions())
        assert rtx.watch(config, progress)
        if cancelled:
            progress.cancelled.set()
        assert isinstance(rtx.build(builder, network, config), bytes) is not cancelled


def test_an_error_while_telling_cancels_the_work() -> None:
    progress = Progress()

    def fail(_phase: str, _fraction: float) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_watched(lambda: progress.cancelled.wait(30), progress, fail)
    assert progress.cancelled.is_set()


def run_without_monitor(source: Path, plan: Path, told: TextIO = sys.stdout) -> None:
    """As TensorRT 8.6, which has no monitor; and so much slower to build that it would be noticed."""

    def tell(phase: str, _fraction: float) -> None:
        if phase.startswith("building"):
            print("building", file=told, flush=True)
            print("x")

    def main(_arguments: list[str]) -> int:
        adapter = open_adapter("tensorrt_rtx")
        try:
            build.build_plan(make_request(source), plan, on_progress=tell, adapter=adapter, gpu=GPU)
        except KeyboardInterrupt:
            return 130
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapter, "watch", lambda *_: False)
        patch.setattr(cli, "main", main)
        __main__.run()


def run_without_reader(source: Path, plan: Path) -> None:
    run_without_monitor(source, plan, told=sys.stderr)


def test_a_builder_that_cannot_be_asked_does_not_hold_ctrl_c_up(tmp_path: Path) -> None:
    source = deep_graph(tmp_path / "deep.onnx", layers=2000)
    with start("run_without_monitor", source, tmp_path / "model.plan") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "TensorRT cannot be asked to stop now: it is left behind, and nothing is written" in errors
    assert time.monotonic() - started < 10
    assert files_in(tmp_path) == {"deep.onnx"}


def test_a_build_is_left_behind_even_if_nobody_reads_any_more(tmp_path: Path) -> None:
    """As with `trtgen build-repo a b | tee log`, of which Ctrl-C ends both."""
    source = deep_graph(tmp_path / "deep.onnx", layers=2000)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with start("run_without_reader", source, tmp_path / "model.plan", env=buffered) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "building\n"
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_part_that_is_done_counts_nested_phases() -> None:
    progress = Progress()
    progress.phase_start("outer", None, 2)
    assert progress.now() == ("outer", 0.0)
    progress.phase_start("inner", "outer", 4)
    assert progress.step_complete("inner", 0)
    assert progress.now() == ("inner", 0.125)
    progress.phase_finish("inner")
    progress.step_complete("outer", 0)
    assert progress.now() == ("outer", 0.5)
    progress.phase_finish("outer")
    assert progress.now() == ("outer", 1.0)
    progress.cancelled.set()
    assert not progress.step_complete("outer", 1)


def test_without_a_monitor_the_stage_is_told_once() -> None:
    progress = Progress()
    progress.stage = "building"
    seen: list[tuple[str, float]] = []

    def tell(phase: str, fraction: float) -> None:
        seen.append((phase, fraction))

    assert not run_watched(lambda: threading.Event().wait(0.5), progress, tell)
    ((phase, fraction),) = seen
    assert phase == "building"
    assert math.isnan(fraction)


# Timing cache

KEY = CacheKey(gpu="NVIDIA H200", compute_capability="9.0", driver="580.1", cuda="13.0", tensorrt="8.6.0")


def test_name_of_a_timing_cache() -> None:
    assert KEY.file_name == "nvidia-h200_cc9.0_driver580.1_cuda13.0_tensorrt8.6.0.timing"
    assert CacheKey.of(GPU, "8.6.0").gpu == GPU.name


def test_folder_of_timing_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trtgen" / "timing-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "trtgen" / "timing-cache"


def keep(other: bytes) -> bytes:
    raise AssertionError(other)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    cache = TimingCache(KEY, tmp_path / "new")
    assert cache.load() is None
    assert cache.save(b"times", loaded=None, merge=keep)
    assert cache.load() == b"times"
    assert cache.save(b"more times", loaded=b"times", merge=keep)
    assert cache.load() == b"more times"
    assert not [path for path in cache.path.parent.iterdir() if path.name.startswith(".")]


def test_times_of_another_build_are_merged(tmp_path: Path) -> None:
    ours, theirs = TimingCache(KEY, tmp_path), TimingCache(KEY, tmp_path)
    theirs.save(b"theirs", loaded=None, merge=keep)
    assert ours.save(b"ours", loaded=None, merge=lambda other: b"ours+" + other)
    assert ours.load() == b"ours+theirs"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda _: b"", lambda _: b"noise\nnoise", lambda _: b"[]\n"]
)
def test_damaged_cache_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    cache = TimingCache(KEY, tmp_path)
    cache.save(b"times", loaded=None, merge=keep)
    cache.path.write_bytes(damage(cache.path.read_bytes()))
    with caplog.at_level("WARNING"):
        assert cache.load() is None
    assert "is damaged; starting with an empty one" in caplog.text


def test_cache_of_another_gpu_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TimingCache(KEY, tmp_path)
    other = TimingCache(CacheKey.of(GPU, "8.6.0"), tmp_path)
    other.save(b"times", loaded=None, merge=keep)
    other.path.rename(cache.path)
    with caplog.at_level("WARNING"):
        assert cache.load() is None
    assert GPU.name in caplog.text


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level("WARNING"):
        assert not TimingCache(KEY, tmp_path / "file").save(b"times", loaded=None, merge=keep)
    assert "cannot be written" in caplog.text


def test_timing_cache_with_the_librarys_own_bytes(rtx: Adapter, tmp_path: Path) -> None:
    """RTX keeps no times, but reads, writes and combines caches without a GPU: the calls are the ones of TensorRT."""
    adapter = as_version(rtx, "11.4.0.106")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config = adapter.create_builder().create_builder_config()
        assert adapter.load_cache(config, None) == "cold"
        data = adapter.cache_bytes(config)
        assert data
        assert adapter.cache_bytes(config, data)
        again = adapter.create_builder().create_builder_config()
        assert adapter.load_cache(again, b"noise" * 50) == "cold"
        assert adapter.cache_bytes(again)
    assert rtx.load_cache(config, data) == "off"


# Command line


def test_profiles_of_the_command_line(tmp_path: Path) -> None:
    model = read_onnx(write_tiny_onnx(tmp_path / "tiny.onnx"))
    assert read_profiles(model, [], None) == (make_profiles(model, [BatchProfile(min=1, opt=8, max=32)]), 32)
    assert read_profiles(model, [], 4) == (make_profiles(model, [BatchProfile(min=1, opt=4, max=4)]), 4)
    profiles, largest = read_profiles(model, ["1,1,1", "2,8,16"], None)
    assert (len(profiles), largest) == (2, 16)
    static = read_onnx(write_tiny_onnx(tmp_path / "static.onnx", batch=2))
    assert read_profiles(static, [], None) == ((), None)
    for text in ("1,2", "a,b,c", "3,2,1", "0,1,2"):
        with pytest.raises(typer.BadParameter):
            read_profiles(model, [text], None)


def test_log_keeps_what_the_parser_says(tmp_path: Path, rtx: Adapter) -> None:
    request = make_request(unsupported(tmp_path / "planted.onnx"))
    compiled = build.compile_graph(rtx, request)
    assert compiled.faults
    assert any("Det" in text for text in open_log("tensorrt_rtx").errors)
    assert json.dumps([str(fault) for fault in compiled.faults])


def test_parser_without_names_is_helped_by_the_graph(tmp_path: Path, rtx: Adapter) -> None:
    """TensorRT 8.6 tells the place of a node only."""
    path = unsupported(tmp_path / "planted.onnx")

    class Error:
        def __init__(self, real: Any) -> None:
            self.code, self.node, self.desc = real.code, real.node, real.desc

    network, _ = rtx.create_network(rtx.create_builder())
    parser = rtx.trt.OnnxParser(network, rtx.log.logger)
    assert not parser.parse_from_file(str(path))
    fault = rtx._fault(Error(parser.get_error(0)), path)
    assert (fault.node, fault.operator) == ("determinant", "Det")


def test_building_takes_no_time_to_import() -> None:
    start = time.monotonic()
    code = (
        "import generator.cli.build_plan, generator.cli.check, sys; print({'onnx', 'torch', 'numpy'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    assert time.monotonic() - start < 20


class OldLayer:
    """What hold_fp32 touches of a layer of TensorRT 8.6, which does not run here; test_tensorrt_names has the names."""

    def __init__(self, name: str, kind: str, *data_types: str, is_shape: bool = False) -> None:
        self.name, self.type = name, kind
        self.precision = ""
        self.outputs = [SimpleNamespace(dtype=one, is_shape_tensor=is_shape) for one in data_types or ("FLOAT",)]
        self.num_outputs = len(self.outputs)
        self.set_types: list[tuple[int, str]] = []

    def get_output(self, index: int) -> SimpleNamespace:
        return self.outputs[index]

    def set_output_type(self, index: int, data_type: str) -> None:
        self.set_types.append((index, data_type))


@pytest.mark.parametrize(
    ("version", "precision", "keep", "held"),
    [
        ("8.6.0", "fp16", (), {"soft"}),
        ("8.6.0", "int8", ("conv*",), {"soft", "conv1", "conv1_split", "conv1_top_k"}),
        ("8.6.0", "fp32", ("conv1",), set()),
        ("10.16.1.11", "fp16", ("conv1",), set()),
    ],
)
def test_tensorrt_8_is_told_what_stays_in_fp32(
    rtx: Adapter, version: str, precision: str, keep: tuple[str, ...], held: set[str]
) -> None:
    adapter = as_version(rtx, version)
    adapter.trt = SimpleNamespace(
        LayerType=SimpleNamespace(SOFTMAX="softmax"),
        DataType=SimpleNamespace(FLOAT="FLOAT", HALF="HALF"),
        BuilderFlag=SimpleNamespace(OBEY_PRECISION_CONSTRAINTS="obey"),
    )
    layers = [
        OldLayer("conv1", "conv"),
        OldLayer("conv1_split", "plugin", "FLOAT", "HALF"),
        OldLayer("conv1_QuantizeLinear", "quantize", "INT8"),
        OldLayer("conv1_top_k", "top-k", "FLOAT", "INT32"),
        OldLayer("conv1_indices", "arg-max", "INT32"),
        OldLayer("conv1_shape", "constant", is_shape=True),
        OldLayer("soft", "softmax"),
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])
    flags: list[str] = []
    adapter.hold_fp32(network, SimpleNamespace(set_flag=flags.append), precision=precision, keep=keep)
    assert {layer.name for layer in layers if layer.precision == "FLOAT"} == held
    assert flags == (["obey"] if held else [])
    # every output that is a floating-point value
    for layer in layers:
        floats = [number for number, output in enumerate(layer.outputs) if output.dtype in ("FLOAT", "HALF")]
        wanted = [(number, "FLOAT") for number in floats] if layer.name in held else []
        assert layer.set_types == wanted, layer.name
