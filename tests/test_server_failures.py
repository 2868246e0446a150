"""What trtgen says when models do not load: on logs of a real tritonserver, and on texts from Triton's sources."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from generator.errors import ServerError
from generator.rules.words import find_rule
from generator.server import embedded
from generator.server.embedded import EmbeddedServer
from generator.server.failures import (
    Finding,
    explain_end,
    explain_timeout,
    find_failures,
    has_hung,
    is_port_conflict,
    is_silent_crash,
)
from generator.server.launch import assemble_python
from generator.server.ports import Ports, choose_ports
from generator.server.wheel import check_embedded
from tests.server_parts import (
    ECHO,
    add_doubling_model,
    add_ensemble,
    add_python_model,
    save_doubling_graph,
    write_config,
)
from tests.tensorrt_standin import load_backend, write_backend

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER_READY = ECHO + "\n    def initialize(self, args):\n        import time; time.sleep(60)\n"


def warmup(dims: int = 4, data: str = "zero_data: true") -> str:
    values = f"data_type: TYPE_FP32 dims: {dims} {data}"
    return f'model_warmup {{ name: "first" batch_size: 1 inputs {{ key: "X" value {{ {values} }} }} }}'


def initialize(statement: str) -> str:
    return f"{ECHO}\n    def initialize(self, args):\n        {statement}\n"


def with_graph(model: Path, content: bytes | None = None, **config: str) -> None:
    """Write a model whose ONNX file has these bytes; None leaves it out."""
    (write_config(model, **config) / "1").mkdir()  # type: ignore[arg-type]
    if content is not None:
        (model / "1" / "model.onnx").write_bytes(content)


def without_external_weights(model: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    with_graph(model)
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "W")
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "XY"}
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    graph = helper.make_graph([node], "graph", [info["X"]], [info["Y"]], [weights])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(model / "1" / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (model / "1" / "weights.bin").unlink()


def with_config_text(model: Path, text: str) -> None:
    add_doubling_model(model)
    (model / "config.pbtxt").write_text(text)


def rename_in_config(model: Path, name: str) -> None:
    add_doubling_model(model, more=f'name: "{name}"')


def ensemble_with_failed_member(model: Path) -> None:
    with_graph(model.with_name("lost_member"))
    add_ensemble(model, member="lost_member")


def ensemble_of_doubling(model: Path, **options: str | int) -> None:
    add_doubling_model(model.with_name(f"{model.name}_member"))
    add_ensemble(model, member=f"{model.name}_member", **options)  # type: ignore[arg-type]


def complaining_member(model: Path) -> None:
    add_python_model(model, initialize("raise pb_utils.TritonModelException('recipe: unknown key \"x\"')"))
    add_ensemble(model.with_name("complains"), member=model.name)


def read_backend() -> Any:
    """The Python-based `tensorrt` backend, for the words that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_backend(Path(folder) / "tensorrt")
        return load_backend(model, ModuleType("triton_python_backend_utils"))


BACKEND = read_backend()
# model -> (how it is broken, what the cause must say, what the hint must say). One server start reports all of them.
# Not among them: a model without model.py (tritonserver hangs), a warmup that fails (it may crash when others load).
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing_module": (
        lambda m: add_python_model(m, "import surely_absent\n" + ECHO),
        "imports surely_absent, which is not installed",
        "^pip install surely_absent$",
    ),
    "missing_pillow": (
        lambda m: add_python_model(m, "from PIL.absent import Image\n" + ECHO),
        "imports PIL.absent",
        "^pip install pillow$",
    ),
    "no_version": (
        write_config,
        "no version directory that its version_policy takes",
        "build it again: build-repo no_version",
    ),
    "named_version": (
        lambda m: save_doubling_graph(write_config(m) / "v1" / "model.onnx"),
        "no version directory",
        "build-repo",
    ),
    "absent_version": (
        lambda m: add_doubling_model(m, more="version_policy { specific { versions: [ 7 ] } }"),
        "no version directory that its version_policy takes: version 7 is specified",
        "change version_policy in absent_version/config.pbtxt",
    ),
    "wrong_dims": (
        lambda m: add_doubling_model(m, dims="5"),
        r"'X' has the shape \[-1, 4\] in the model and \[-1, 5\] in config.pbtxt",
        "write its dims, .* in wrong_dims/config.pbtxt",
    ),
    "wrong_rank": (
        lambda m: add_doubling_model(m, dims="4, 1"),
        r"\[-1, 4\] in the model and \[-1, 4, 1\] in config",
        "config.pbtxt",
    ),
    "wrong_dtype": (
        lambda m: add_doubling_model(m, data_type="TYPE_FP16"),
        "input 'X' is TYPE_FP16 in config.pbtxt and TYPE_FP32 in the model",
        "config.pbtxt",
    ),
    "wrong_name": (
        lambda m: add_doubling_model(m, input_name="Z"),
        "unexpected inference input 'Z' .* are: X; the graph's input 'X' is missing",
        "config.pbtxt",
    ),
    "fixed_batch": (
        lambda m: save_doubling_graph(write_config(m) / "1" / "model.onnx", batch=1),
        "batch of its graph is fixed",
        "dynamic batch",
    ),
    "other_backend": (
        lambda m: add_doubling_model(m, backend="openvino"),
        "needs the backend openvino",
        "stock container",
    ),
    "corrupt_graph": (
        lambda m: with_graph(m, b"not an ONNX file" * 9),
        "ONNX file is damaged: .*/corrupt_graph/1/model.onnx$",
        "^copy it again, or build it again: build-repo corrupt_graph$",
    ),
    "empty_graph": (lambda m: with_graph(m, b""), "ONNX file is damaged", "build-repo"),
    "missing_graph": (with_graph, "its file is missing: .*/missing_graph/1/model.onnx$", "build-repo"),
    "missing_weights": (without_external_weights, "weights .* are missing: .*/1/weights.bin$", "build-repo"),
    "new_opset": (
        lambda m: save_doubling_graph(write_config(m) / "1" / "model.onnx", opset=99),
        r"newer ONNX version than onnxruntime [\d.]+ reads",
        "pip install --upgrade onnxruntime",
    ),
    "new_format": (
        lambda m: save_doubling_graph(write_config(m) / "1" / "model.onnx", ir_version=99),
        "newer ONNX version",
        "onnxruntime",
    ),
    "bad_threads": (
        lambda m: add_doubling_model(
            m, more='parameters { key: "intra_op_thread_count" value { string_value: "all" } }'
        ),
        "intra_op_thread_count' .* is 'all': expected a whole number",
        "correct that",
    ),
    "missing_labels": (
        lambda m: add_doubling_model(m, of_output='label_filename: "labels.txt"'),
        "a file that config.pbtxt names is missing: .*/missing_labels/labels.txt$",
        "build-repo",
    ),
    ".leftover": (lambda m: m.mkdir(), "the folder .leftover .* has no config.pbtxt", "remove it .*/.leftover$"),
    "left_files": (
        lambda m: save_doubling_graph(m / "1" / "model.onnx"),
        "the folder left_files .* has no config.pbtxt",
        "remove it",
    ),
    "misnamed": (lambda m: rename_in_config(m, "else"), "called misnamed, but .* is else", "rename .* to else"),
    "bad_syntax": (
        lambda m: with_config_text(m, 'backend: "onnxruntime"\nmax_batch_size 8\n'),
        r'cannot be read: line 2, column \d+: Expected ":", found "8"',
        "correct bad_syntax/config.pbtxt",
    ),
    "unknown_field": (
        lambda m: add_doubling_model(m, more="max_batchsize: 3"),
        'has no field named "max_batchsize"',
        "correct unknown_field/config.pbtxt",
    ),
    "preferred_too_large": (
        lambda m: add_doubling_model(m, more="dynamic_batching { preferred_batch_size: [ 16 ] }"),
        "preferred_batch_size of dynamic batching is above max_batch_size",
        "config.pbtxt",
    ),
    "syntax_error": (
        lambda m: add_python_model(m, "class TritonPythonModel\n"),
        r"raised SyntaxError: expected ':' \(model.py, line 1\)",
        "correct model.py",
    ),
    "no_class": (lambda m: add_python_model(m, "x = 1\n"), "model.py has no class TritonPythonModel", "model.py"),
    "raises": (
        lambda m: add_python_model(m, initialize("raise ValueError('no parameter recipe')")),
        r"raised ValueError: no parameter recipe \(model.py line \d+\)",
        "correct model.py",
    ),
    "complains_first": (
        complaining_member,
        '^recipe: unknown key "x"$',
        "^correct that, or build it again: build-repo complains$",
    ),
    "dies": (
        lambda m: add_python_model(m, initialize("import os; os._exit(3)")),
        "Python process of the model ended while it loaded",
        "dmesg",
    ),
    "warmup_without_file": (
        lambda m: add_python_model(m, more=warmup(data='input_data_file: "image.bin"')),
        "a file that config.pbtxt names is missing: .*/warmup/image.bin$",
        "build-repo",
    ),
    "warmup_misfit": (
        lambda m: add_doubling_model(m, more=warmup(dims=5)),
        r"warmup does not fit the input X: Expected \[-1,4\], got \[1,5\]",
        "config.pbtxt",
    ),
    "ensemble_batch": (
        lambda m: ensemble_of_doubling(m, max_batch_size=16),
        "max_batch_size is 16, but its member ensemble_batch_member takes at most 8",
        "write max_batch_size: 8 in ensemble_batch/config.pbtxt",
    ),
    "ensemble_dtype": (
        lambda m: ensemble_of_doubling(m, data_type="TYPE_FP16"),
        "'IN' is TYPE_FP16 in ensemble_dtype and TYPE_FP32 in ensemble_dtype_member",
        "config.pbtxt",
    ),
    "ensemble_shape": (
        lambda m: ensemble_of_doubling(m, dims="5"),
        r"shape \[-1,5\] in ensemble_shape and \[-1,4\]",
        "config.pbtxt",
    ),
    "ensemble_mapping": (
        lambda m: ensemble_of_doubling(m, tensor="Q"),
        "names the input 'Q', which ensemble_mapping_member does not have",
        "config.pbtxt",
    ),
    "ensemble_alone": (
        lambda m: add_ensemble(m, member="nowhere"),
        "members are not in the repository: nowhere$",
        "or build it again: build-repo ensemble_alone$",
    ),
    "ensemble_of_lost": (ensemble_with_failed_member, "its member lost_member did not load", "repair lost_member"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Finding], ServerError]:
    """Start the server once on every broken model; return the findings by model, and the error."""
    root = tmp_path_factory.mktemp("failures")
    for name, (build, _, _) in BROKEN.items():
        build(root / "repository" / name)
    log = root / "server.log"
    with pytest.raises(ServerError) as caught, EmbeddedServer(root / "repository", log_path=log):
        pass
    return {finding.model: finding for finding in find_failures(log.read_text(), root / "repository")}, caught.value


@pytest.mark.server
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_explained(name: str, report: tuple[dict[str, Finding], ServerError]) -> None:
    findings, _ = report
    _, cause, hint = BROKEN[name]
    assert name in findings, f"nothing was said about it; the others: {sorted(findings)}"
    assert re.search(cause, findings[name].cause or ""), findings[name]
    said = f"{findings[name].hint}: {' '.join(findings[name].build.get('command', ()))}".removesuffix(": ")
    assert re.search(hint, said), findings[name]


@pytest.mark.server
def test_the_error_names_every_broken_model_and_no_other(report: tuple[dict[str, Finding], ServerError]) -> None:
    findings, error = report
    assert set(findings) == {*BROKEN, "lost_member", "complains"}
    for name, finding in findings.items():
        assert f"  {name}: {finding.cause}" in error.message
    assert error.hint
    first = next(iter(findings.values()))
    assert error.advice == {"hint": first.hint, "fields": {}, "command": (), **first.build}
    assert any("(log: " in line for line in error.log_tail)


@pytest.mark.server
def test_a_warmup_that_is_refused(tmp_path: Path) -> None:
    code = ECHO.replace("answers = []", "raise ValueError('bad image')")
    add_python_model(tmp_path / "repository" / "model", code, more=warmup())
    error = start_and_fail(tmp_path)
    assert re.search(
        r"model: a request of its warmup was answered with an error: ValueError: bad image \(model.py line \d+\)",
        error.message,
    )


@pytest.mark.server
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="a GPU is here")
def test_a_gpu_instance_without_a_gpu(tmp_path: Path) -> None:
    add_doubling_model(tmp_path / "repository" / "model", instances="count: 1 kind: KIND_GPU")
    error = start_and_fail(tmp_path)
    assert error.message == (
        "tritonserver did not start: model: its instance_group asks for a GPU (KIND_GPU), and none is available here"
    )
    assert error.hint is not None
    assert "kind: KIND_CPU in model/config.pbtxt" in error.hint


@pytest.mark.server
def test_missing_code_is_reported_at_once_though_tritonserver_hangs(tmp_path: Path) -> None:
    (write_config(tmp_path / "repository" / "model", backend="python") / "1").mkdir()
    error = start_and_fail(tmp_path, ready_timeout_s=120)
    assert re.search("its file is missing: .*/model/1/model.py$", error.message)
    repository = {"repository": tmp_path / "repository"}
    assert error.command == ("build-repo", "model")
    assert error.fields == repository
    assert (error.hint or "").startswith("put it there")


@pytest.mark.server
def test_a_model_with_a_record_is_built_again_from_it(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    with_graph(root / "net_classifier")
    (root / "net").mkdir()
    (root / "net" / "trtgen.json").write_text("{}")
    add_ensemble(root / "net", member="net_classifier")
    error = start_and_fail(tmp_path)
    assert "net_classifier: its file is missing" in error.message
    assert error.command == ("build-repo",)
    assert error.fields == {"spec": root / "net/trtgen.json", "repository": root}


@pytest.mark.server
def test_a_stub_that_cannot_start_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's library is really missing: the stub of another Python version is started."""
    add_doubling_model(tmp_path / "repository" / "model")
    parts = check_embedded()
    foreign = parts.stub.parent.parent / "3.8" / parts.stub.name
    monkeypatch.setattr(embedded, "check_embedded", lambda: replace(parts, stub=foreign))
    error = start_and_fail(tmp_path, ready_timeout_s=120)
    assert "the library libpython3.8.so.1.0 was not found" in error.message
    assert error.hint == "apt-get install libpython3.8"


@pytest.mark.server
def test_a_model_that_never_gets_ready_is_named(tmp_path: Path) -> None:
    add_doubling_model(tmp_path / "repository" / "quick")
    add_python_model(tmp_path / "repository" / "slow", NEVER_READY)
    error = start_and_fail(tmp_path, ready_timeout_s=3)
    assert error.message == "tritonserver was not ready after 3 s: still loading slow"
    assert error.hint is not None
    assert "more time to load" in error.hint


@pytest.mark.server
@pytest.mark.parametrize("taken", ["http", "grpc", "metrics"])
def test_a_port_lost_after_it_was_chosen_is_named(taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program takes the port between our check and tritonserver's bind."""
    add_doubling_model(tmp_path / "repository" / "model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def lose(wish: Ports, *, address: str) -> Ports:
            chosen = {**choose_ports(Ports(http=0, grpc=0, metrics=0), address=address).named(), taken: port}
            return Ports(**chosen)

        monkeypatch.setattr(embedded, "choose_ports", lose)
        with (
            pytest.raises(ServerError) as caught,
            EmbeddedServer(
                tmp_path / "repository", http_port=1, grpc_port=2, metrics_port=3, log_path=tmp_path / "server.log"
            ),
        ):
            pass
    assert re.search(f"the {taken} port 127.0.0.1:{port} is in use", caught.value.message, re.IGNORECASE)


def start_and_fail(root: Path, *, ready_timeout_s: float = 60) -> ServerError:
    with (
        pytest.raises(ServerError) as caught,
        EmbeddedServer(root / "repository", log_path=root / "server.log", ready_timeout_s=ready_timeout_s),
    ):
        pass
    return caught.value


# Texts of parts that do not run here: the TensorRT backend (tensorrt_backend, backend), later releases (core).
@pytest.mark.parametrize(
    ("words", "cause", "hint"),
    [
        (
            "unable to load model 'm', TensorRT backend supports only GPU device",
            "breaks a rule of Triton: .*TensorRT backend supports only GPU device",
            "m/config.pbtxt",
        ),
        (
            "unable to find '/models/m/1/model.plan' for model instance 'm_0_0'",
            "its file is missing: /models/m/1/model.plan",
            "^put it there",
        ),
        (
            "unable to load plan file to auto complete config: /models/m/1/model.plan",
            r"its plan cannot be loaded: .* \(/models/m/1/model.plan\)",
            "TensorRT of the serving image",
        ),
        (
            "unable to create TensorRT engine: Version tag does not match",
            r"another TensorRT version or GPU \(Version tag does not match\)",
            "^build the plan where it is served, with the TensorRT of the serving image$",
        ),
        (
            (
                "autofill failed for model 'm': configuration specified max-batch 64 but TensorRT engine only "
                "supports max-batch 32"
            ),
            "max_batch_size is 64, and the optimization profiles of its plan end at 32",
            "m/config.pbtxt",
        ),
        (
            (
                "autofill failed for model 'm': model tensor shape configuration hints for dynamic batching but the "
                "underlying engine doesn't support batching."
            ),
            "batch of its graph is fixed",
            "dynamic batch",
        ),
        (
            (
                "unable to autofill for 'm', configuration specified invalid profile 3 . "
                "Number of profiles supported by TensorRT engine: 1"
            ),
            "config.pbtxt and the model disagree: .*invalid profile 3",
            "config.pbtxt",
        ),
        (
            "unexpected datatype TYPE_FP16 for inference input 'x', expecting TYPE_FP32 for m_0_0",
            "input 'x' is TYPE_FP16 in config.pbtxt and TYPE_FP32 in the model",
            "config.pbtxt",
        ),
        (
            "unexpected inference input 'x', allowed inputs are: PIXELS",
            "input 'x' is not in the model, which has PIXELS",
            "config.pbtxt",
        ),
        (
            "unable to load model 'm', configuration expects 2 inputs, model provides at most 1",
            "config.pbtxt has 2 inputs, the model 1",
            "config.pbtxt",
        ),
        ("expected configuration for input 'x' for m_0_0", "config.pbtxt and the model disagree: ", "config.pbtxt"),
        (
            (
                "model 'm', tensor 'x': the model expects 4 dimensions (shape [-1,3,224,224]) but the model "
                "configuration specifies 3 dimensions"
            ),
            "config.pbtxt and the model disagree: ",
            "config.pbtxt",
        ),
        (
            (
                "model configuration specified invalid shape for input 'x' for model m. Error details: model expected "
                "the shape of dimension 2 to be between 224 and 224 but received 256"
            ),
            "config.pbtxt and the model disagree: ",
            "config.pbtxt",
        ),
        (
            "label file path '../labels.txt' for output 'o' in model 'm' is outside model directory",
            "label_filename leads out of the model's folder: ../labels.txt",
            "m/config.pbtxt",
        ),
        (
            "instance group should not be specified for ensemble 'm'",
            "cannot have instance group",
            "m/config",
        ),
        ("ensemble tensor 't' is unused in ensemble 'm'", "no step reads the tensor 't'", "m/config.pbtxt"),
        ("must specify 'step' for ensemble 'm'", "has no step, or there is no step", "m/config.pbtxt"),
        (
            (
                "Unable to initialize shared memory key 'triton' to requested size (1048576 bytes). If you are running "
                "Triton inside docker, use '--shm-size' flag to control the shared memory region size. Error: No space "
                "left on device"
            ),
            "too little shared memory",
            "--shm-size=1g",
        ),
        ("unable to find backend library for backend 'tensorrt', try", "needs the backend tensorrt", "stock container"),
        (
            "unable to create TensorRT context for m_0_3: could not be allocated"
            + BACKEND.explain_memory(3 << 30, 1 << 30, 8 << 30, gpu=1),
            "GPU 1 is exhausted: an instance needs at least 3072 MiB, 1024 .* are free; at most 2 of them fit .*empty$",
            "give the models fewer instances",
        ),
        (
            BACKEND.no_gpu("m", "there is no driver"),
            "needs a GPU, and there is none: there is no driver",
            "onnxruntime",
        ),
        (
            BACKEND.no_gpu("m", "cuInit failed: CUDA_ERROR_NO_DEVICE"),
            "needs a GPU, and there is none: cuInit failed: CUDA_ERROR_NO_DEVICE",
            "onnxruntime",
        ),
        *(
            (f"TritonModelException: {words}", cause, hint)
            for words, cause, hint in (
                (
                    (
                        "the Python that serves plans has no working tensorrt (No module named 'tensorrt'): install "
                        "trtgen's extra 'tensorrt' there, or rebuild the model with --target onnxruntime"
                    ),
                    "no working tensorrt .No module named 'tensorrt'.$",
                    r"^install trtgen's extra tensorrt for that Python: .*'\.\[tensorrt\]'",
                ),
                (
                    "the Python that serves 'm' lacks cuda-python: pip install cuda-python",
                    "^the Python that serves 'm' lacks cuda-python$",
                    "^install trtgen's extra tensorrt",
                ),
                (
                    "unable to read '/models/m/1/model.plan': Permission denied",
                    r"^its file cannot be read \(Permission denied\): /models/m/1/model.plan$",
                    "^let the user that runs the server read /models/m/1/model.plan$",
                ),
                *(
                    (text, f"^{text[:20]}", "^correct that$")
                    for text in (
                        (
                            "tensor 'x' uses a non-linear IO format, which is not supported, for m_0_0: build the plan "
                            "with linear inputs and outputs"
                        ),
                        "tensor 'x' is a shape tensor, which is not supported, for m_0_0",
                        "unsupported datatype BF16 of tensor 'x' for m_0_0",
                        "the shape of output 'y' depends on data, which is not supported",
                    )
                ),
                (
                    "cuStreamCreateWithPriority failed: CUDA_ERROR_UNKNOWN",
                    "^the GPU or its driver fails: cuStreamCreateWithPriority failed: CUDA_ERROR_UNKNOWN$",
                    "^nvidia-smi",
                ),
                (
                    "TensorRT does not start: CUDA initialization failure with error: 35",
                    "^the GPU or its driver fails: TensorRT does not start: CUDA init",
                    "^nvidia-smi",
                ),
                ("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY", "too little memory to load it", "lower `count`"),
                (
                    "TensorRT does not start: could not be allocated"
                    + BACKEND.explain_memory(3 << 30, 1 << 30, 8 << 30, gpu=1),
                    "memory of GPU 1 is exhausted",
                    "give the models fewer instances",
                ),
            )
        ),
    ],
)
def test_words_of_other_servers_are_explained(words: str, cause: str, hint: str) -> None:
    found = find_rule(words, model="m")
    assert found is not None
    rule, values = found
    assert re.search(cause, rule.cause.format_map(values)), found
    assert re.search(hint, rule.fix.format_map(values)), found


def test_packages_that_pip_installed_elsewhere_are_found_by_the_stub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    for folder, name in ((target, "of_target"), (other, "of_other")):
        folder.mkdir()
        (folder / f"{name}.py").touch()
    (target / "of_target-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(target), str(other), str(tmp_path / "absent"), *sys.path])
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = assemble_python(cast(Any, SimpleNamespace(python_version=version)), tmp_path)
    code = "import importlib.util as u, numpy; print(*(bool(u.find_spec(n)) for n in ('of_target', 'of_other')))"
    run = subprocess.run([python / "python3", "-I", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_a_full_gpu_is_told_with_the_instances_that_were_loaded(tmp_path: Path) -> None:
    loaded = [
        f'2026-11-22T18:39:49Z I 1 model.py:127] "m_0_{index}: TensorRT 8.6.0 on GPU {gpu} with stream priority 0"'
        for index, gpu in ((0, 0), (2, 0), (0, 1), (1, 1), (2, 1))  # the names are the same on each GPU
    ]
    words = (
        "TritonModelException: cuDevicePrimaryCtxRetain failed: CUDA_ERROR_OUT_OF_MEMORY; out of memory on GPU 0: not "
        "even the CUDA context of another process fits: lower `count` in the model's instance_group"
    )
    log = [*loaded, f"2026-11-22T18:39:50Z E 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: {words}\""]
    error = explain_end(1, "\n".join(log), log_path=tmp_path / "server.log", repository=tmp_path, ready=False)
    assert error.message == (
        "tritonserver did not start: m: the memory of GPU 0 is exhausted: not even the CUDA context of another process "
        "fits (2 of its instances were loaded)"
    )
    assert "give the models fewer instances" in (error.hint or "")


@pytest.mark.parametrize(
    ("started", "loaded", "message"),
    [
        ([0, 1], [1], "the memory of GPU 0 is exhausted: {} (0 of its instances were loaded)"),
        ([0, 1], [], "the memory of a GPU is exhausted: {}"),  # of either
        ([1], [], "the memory of GPU 1 is exhausted: {}"),  # a backend that does not say when an instance is loaded
        ([], [], "the memory of a GPU is exhausted: {}"),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        "unable to create stream: ",
        "unable to get CUDA device properties for GPU ID0: ",
        "unable to get CUDA device properties for m: ",
    ],
)
def test_a_gpu_without_room_for_tritonserver_itself_is_told(
    tmp_path: Path, started: list[int], loaded: list[int], message: str, words: str
) -> None:
    log = [
        *(
            f'2026-11-22T18:39:49Z I 1 python_be.cc:2249] "TRITONBACKEND_ModelInstanceInitialize: m_0_0 (GPU device '
            f'{gpu})"'
            for gpu in started
        ),
        *(f'2026-11-22T18:39:49Z I 1 model.py:127] "m_0_0: TensorRT 8.6.0 on GPU {gpu} with s"' for gpu in loaded),
        '2026-11-22T18:39:49Z I 1 model.py:127] "xm_0_0: TensorRT 8.6.0 on GPU 0 with s"',
        (
            f"2026-11-22T18:39:50Z E 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: {words}"
            'out of memory"'
        ),
    ]
    error = explain_end(1, "\n".join(log), log_path=tmp_path / "server.log", repository=tmp_path, ready=False)
    said = message.format("not even the CUDA context of tritonserver itself fits, or one stream more")
    assert error.message == f"tritonserver did not start: m: {said}"
    assert "give the models fewer instances" in (error.hint or "")


def test_a_stream_that_fails_for_another_reason_is_no_lack_of_memory(tmp_path: Path) -> None:
    log = (
        "2026-11-22T18:39:50Z E 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: unable to create "
        'stream: invalid device ordinal"'
    )
    error = explain_end(1, log, log_path=tmp_path / "server.log", repository=tmp_path, ready=False)
    assert "memory" not in error.message
    assert "invalid device ordinal" in error.message


def test_unknown_words_are_shown_as_they_are_with_the_logs_path(tmp_path: Path) -> None:
    log = (
        "2026-11-22T12:31:28Z E 1 model_lifecycle.cc:642] "
        "\"failed to load 'm' version 1: Internal: the moon is full\"\n"
        "error: creating server: Internal - failed to load all models\n"
    )
    error = explain_end(1, log, log_path=tmp_path / "server.log", repository=tmp_path, ready=False)
    assert error.message == "tritonserver did not start: m: Internal: the moon is full"
    assert error.hint == f"read its log: {tmp_path / 'server.log'}"


def test_a_log_without_a_reason_shows_its_end_without_tables_and_words_about_the_gpu(tmp_path: Path) -> None:
    log = "\n".join(
        [
            '2026-11-22T12:12:04Z W 1 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"',
            '2026-11-22T12:12:04Z E 1 server.cc:241] "CudaDriverHelper has not been initialized."',
            "| Model | Version |",
            "+-------+---------+",
            "Error: Failed to initialize NVML",
            "Segmentation fault",
            "",
        ]
    )
    error = explain_end(139, log, log_path=tmp_path / "server.log", repository=tmp_path, ready=True)
    assert error.message == "tritonserver stopped: it was ended by SIGSEGV"
    assert error.log_tail == ["Segmentation fault"]


def test_a_crash_after_failures_is_mentioned(tmp_path: Path) -> None:
    log = "E1122 12:31:28.507750 1 model_lifecycle.cc:642] failed to load 'm' version 1: Internal: No module named 'x'"
    error = explain_end(139, log, log_path=tmp_path / "log", repository=tmp_path, ready=False)
    assert "m: its Python code imports x" in error.message
    assert error.message.endswith("(tritonserver then crashed: it was ended by SIGSEGV)")


def test_a_crash_without_a_word_names_what_was_loading(tmp_path: Path) -> None:
    log = '2026-11-22T12:12:04Z I 1 model_lifecycle.cc:472] "loading: m:1"\n'
    assert is_silent_crash(139, log)
    assert not is_silent_crash(1, log)
    assert not is_silent_crash(134, log)
    assert is_silent_crash(134, log + "terminate called after throwing 'boost::interprocess::lock_exception'\n")
    error = explain_end(139, log, log_path=tmp_path / "log", repository=tmp_path, ready=False)
    assert error.message == "tritonserver did not start: it was ended by SIGSEGV while it loaded m"


def test_an_option_that_tritonserver_does_not_know_is_shown(tmp_path: Path) -> None:
    error = explain_end(1, "error: unrecognized option\n", log_path=tmp_path / "log", repository=tmp_path, ready=False)
    assert error.message == "tritonserver did not start: unrecognized option"


def test_the_older_log_format_is_read() -> None:
    log = "E1122 12:31:28.507750 1 model_lifecycle.cc:642] failed to load 'm' version 1: Internal: No module named 'x'"
    [finding] = find_failures(log, Path("model_repository"))
    assert (finding.model, finding.hint) == ("m", "pip install x")


def test_a_healthy_log_has_no_findings(tmp_path: Path) -> None:
    log = (
        '2026-11-22T12:12:04Z E 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        '2026-11-22T12:12:04Z I 1 model_lifecycle.cc:472] "loading: m:1"\n'
        "2026-11-22T12:12:04Z I 1 model_lifecycle.cc:839] \"successfully loaded 'm'\"\n"
    )
    assert find_failures(log, tmp_path) == []
    assert not has_hung(log)
    assert not is_port_conflict(log)
    error = explain_timeout(log, log_path=tmp_path / "log", repository=tmp_path, timeout_s=1)
    assert "no model was loading" in error.message
