"""The Python-based tensorrt backend without a GPU: its rules, and its way through a real tritonserver.

The driver and TensorRT are stand-ins (tests/tensorrt_standin.py). What needs a real plan on a real GPU is in
tests/test_backend_gpu.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from generator.errors import TrtgenError
from generator.runtime import gpu_array
from generator.runtime.gpu_array import read_capsule
from generator.runtime.rows import _PIECE_BYTES
from generator.server.embedded import EmbeddedServer
from tests.server_parts import read_settled, write_config
from tests.tensorrt_standin import DTYPES, Driver, SimpleError, load_backend, make_plan, make_tensorrt, write_backend

Load = Callable[..., Any]
TYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}
ROW = [4]
ONE_PROFILE = [{"X": ([1, 4], [4, 4], [8, 4])}]
TWO_PROFILES = [{"X": ([1, 4], [1, 4], [2, 4])}, {"X": ([1, 4], [8, 4], [8, 4])}]


class Refused(Exception):  # noqa: N818 - stands for TritonModelException
    """What initialize raises."""


def make_pb_utils() -> ModuleType:
    """The part of Triton's module that the backend uses."""
    module = ModuleType("triton_python_backend_utils")
    logged: list[tuple[str, str]] = []
    module.__dict__.update(
        logged=logged,
        TritonModelException=Refused,
        Tensor=lambda name, array: SimpleNamespace(name=lambda: name, as_numpy=lambda: array),
        TritonError=type(
            "TritonError",
            (),
            {
                "INVALID_ARG": 3,
                "INTERNAL": 1,
                "__init__": lambda self, text, code: self.__dict__.update(t=text, c=code),
            },
        ),
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(tensors=output_tensors, error=error),
        Logger=SimpleNamespace(
            log_info=lambda text: logged.append(("info", text)), log_warn=lambda text: logged.append(("warn", text))
        ),
    )
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backend(tmp_path_factory.mktemp("backends") / "tensorrt").parent


@pytest.fixture(scope="module")
def backend(folder: Path) -> Any:
    return load_backend(folder / "model.py", make_pb_utils())


@pytest.fixture
def load(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write a plan, return an instance on stand-ins; its `driver`, `runs` and `logged` show what it did."""

    def make(plan: bytes | None, *, driver: Driver | None = None, kind: str = "GPU", **config: Any) -> Any:
        gpu = driver or Driver()
        trt = make_tensorrt(gpu)
        monkeypatch.setattr(backend, "import_driver", lambda _model: gpu)
        monkeypatch.setattr(backend, "import_tensorrt", lambda: trt)
        (tmp_path / "1").mkdir(exist_ok=True)
        if plan is not None:
            (tmp_path / "1" / "model.plan").write_bytes(plan)
        backend.pb_utils.logged.clear()
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json_config(**config),
                "model_name": "m",
                "model_version": "1",
                "model_repository": str(tmp_path),
                "model_instance_name": "m_0_0",
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
            }
        )
        model.driver, model.runs, model.logged = gpu, trt.runs, backend.pb_utils.logged
        gpu.piece_bytes.clear()
        gpu.launched_graphs.clear()
        trt.runs.clear()
        return model

    return make


def json_config(
    *,
    most: int = 8,
    profile: list[str] | None = None,
    dims: list[int] | None = None,
    data_type: str = "TYPE_FP32",
    groups: list[dict[str, Any]] | None = None,
    **more: Any,
) -> str:
    import json

    shape = dims or ROW
    return json.dumps(
        {
            "max_batch_size": most,
            "input": [{"name": "X", "data_type": data_type, "dims": [str(dim) for dim in shape]}],
            "output": [{"name": "Y", "data_type": data_type, "dims": shape}],
            "instance_group": groups or [{"name": "m_0", "count": 1, "gpus": [0], "profile": profile or []}],
            **more,
        }
    )


def plan_of(batch: int = -1, **options: Any) -> bytes:
    return make_plan({"X": ("FLOAT", [batch, 4])}, **{"profiles": ONE_PROFILE, **options})


def make_request(array: np.ndarray[Any, Any], name: str = "X") -> Any:
    tensor = SimpleNamespace(name=lambda: name, is_cpu=lambda: True, as_numpy=lambda: array)
    return SimpleNamespace(inputs=lambda: [tensor])


def ask(model: Any, *arrays: np.ndarray[Any, Any]) -> list[Any]:
    """Send all in one execute; return the arrays, copied as the stub does after execute, or the errors' words."""
    responses = model.execute([make_request(array) for array in arrays])
    return [r.error.t if r.error else r.tensors[0].as_numpy().copy() for r in responses]


def rows(count: int, start: float = 0.0) -> np.ndarray[Any, Any]:
    return (np.arange(count * 4, dtype=np.float32) + start).reshape(count, 4)


def check(answers: list[Any], arrays: list[np.ndarray[Any, Any]]) -> None:
    for answer, array in zip(answers, arrays, strict=True):
        np.testing.assert_array_equal(answer, array * 2)


# --- what comes in and goes out ---------------------------------------------------------------------------------------


def test_the_requests_of_one_execute_are_one_batch_and_each_gets_its_rows(load: Load) -> None:
    model = load(plan_of())
    arrays = [rows(1), rows(3, 100), rows(2, 200)]
    check(ask(model, *arrays), arrays)
    assert model.runs == [(0, {"X": (6, 4)})]
    again = [array + 7 for array in arrays]
    check(ask(model, *again), again)  # the staging memory is used again


def test_rows_beyond_the_profile_are_split_across_requests(load: Load) -> None:
    model = load(plan_of())
    arrays = [rows(5), rows(7, 100), rows(8, 200)]
    check(ask(model, *arrays), arrays)
    assert [shapes["X"][0] for _, shapes in model.runs] == [8, 8, 4]


def test_one_request_larger_than_its_instances_profile_is_split(load: Load) -> None:
    groups = [{"name": "m_0", "profile": ["0"], "gpus": [0]}, {"name": "large", "profile": ["1"], "gpus": [0]}]
    model = load(plan_of(profiles=TWO_PROFILES), groups=groups)
    check(ask(model, rows(7)), [rows(7)])
    assert [shapes["X"][0] for _, shapes in model.runs] == [2, 2, 2, 1]


@pytest.mark.parametrize(("count", "profile"), [(1, 0), (2, 0), (3, 1), (8, 1)])
def test_the_profile_with_the_nearest_optimum_runs(load: Load, count: int, profile: int) -> None:
    model = load(plan_of(profiles=TWO_PROFILES), profile=["0", "1"])
    check(ask(model, rows(count)), [rows(count)])
    assert model.runs == [(profile, {"X": (count, 4)})]


def test_only_the_listed_profile_is_a_candidate(load: Load) -> None:
    model = load(plan_of(profiles=TWO_PROFILES), profile=["1"])
    ask(model, rows(1))
    assert model.runs == [(1, {"X": (1, 4)})]
    first = load(plan_of(profiles=TWO_PROFILES), most=2)
    ask(first, rows(2))
    assert first.runs == [(0, {"X": (2, 4)})]


def test_a_plan_for_one_image_at_a_time(load: Load) -> None:
    model = load(plan_of(1, profiles=[{"X": ([1, 4], [1, 4], [1, 4])}]), most=1)  # 8.6 fixes the batch of such a plan
    arrays = [rows(1), rows(1, 100)]
    check(ask(model, *arrays), arrays)
    assert [shapes["X"] for _, shapes in model.runs] == [(1, 4), (1, 4)]


def test_large_batches_travel_in_pieces_while_the_rest_is_staged(load: Load) -> None:
    width = _PIECE_BYTES // 2
    profiles = [{"X": ([1, width], [4, width], [8, width])}]
    model = load(
        make_plan({"X": ("UINT8", [-1, width])}, profiles=profiles), dims=[width], data_type="TYPE_UINT8", most=8
    )
    arrays = [np.full((count, width), count, np.uint8) for count in (1, 2, 1, 3)]
    check(ask(model, *arrays), arrays)
    assert [size // width for size in model.driver.piece_bytes] == [3, 4]
    assert len(model.runs) == 1


def test_a_wrong_request_fails_alone(load: Load) -> None:
    model = load(plan_of())
    wide = np.zeros((2, 5), np.float32)
    nameless = make_request(rows(1), name="Z")
    responses = model.execute([make_request(rows(1)), make_request(wide), nameless, make_request(rows(3, 9))])
    np.testing.assert_array_equal(responses[0].tensors[0].as_numpy(), rows(1) * 2)
    np.testing.assert_array_equal(responses[3].tensors[0].as_numpy(), rows(3, 9) * 2)
    assert responses[1].error.t == (
        "request specifies invalid shape for input 'X' for m_0_0. Error details: "
        "model expected the shape of dimension 1 to be between 4 and 4 but received 5"
    )
    assert responses[2].error.t == "missing input 'X' for model 'm'"
    assert [responses[index].error.c for index in (1, 2)] == [3, 3]
    assert model.runs == [(0, {"X": (4, 4)})]


def test_a_failing_run_is_told_to_all_its_requests_and_the_next_one_works(load: Load) -> None:
    model = load(plan_of(fail_rows=3))
    words = "TensorRT failed on model 'm' in a batch of 2 requests: unable to enqueue for inference m_0_0: "
    assert ask(model, rows(1), rows(2)) == [f"{words}the kernel is ill"] * 2
    check(ask(model, rows(2)), [rows(2)])


def test_words_of_an_earlier_failure_are_not_said_again(load: Load) -> None:
    model = load(plan_of(fail_rows=3, silent_rows=4))
    for count, said in ((3, "the kernel is ill"), (4, "TensorRT did not say why"), (4, "TensorRT did not say why")):
        (answer,) = model.execute([make_request(rows(count))])
        assert answer.error.t.endswith(said)
        model.engine.log.errors.append("of an earlier request")
    context = model.engine.contexts[0]
    context.set_input_shape = lambda *_: False
    (answer,) = model.execute([make_request(rows(5))])
    assert answer.error.t.endswith("of input 'X': TensorRT did not say why")
    model.engine.log.errors.append("of an earlier request")
    model.engine.engine.create_execution_context = lambda: None
    with pytest.raises(Exception, match="unable to create TensorRT context for m_0_0: TensorRT did not say why"):
        model.engine.open([0], [((1, 4),)])


def test_a_batch_below_the_profiles_least_is_refused(load: Load) -> None:
    model = load(plan_of(profiles=[{"X": ([4, 4], [4, 4], [8, 4])}]))
    (answer,) = ask(model, rows(2))
    assert "model expected the shape of dimension 0 to be between 4 and 8 but received 2" in answer
    check(ask(model, rows(2), rows(3)), [rows(2), rows(3)])


def test_a_fixed_batch_runs_only_as_it_is(load: Load) -> None:
    model = load(make_plan({"X": ("FLOAT", [8, 4])}))
    check(ask(model, rows(5), rows(3)), [rows(5), rows(3)])
    (answer,) = ask(model, rows(5))
    assert "to be between 8 and 8 but received 5" in answer


def test_no_rows_get_no_rows(load: Load) -> None:
    model = load(plan_of())
    assert [answer.shape for answer in ask(model, rows(0))] == [(0, 4)]
    check(ask(model, rows(0), rows(2), rows(0)), [rows(0), rows(2), rows(0)])


def test_without_batching_every_request_runs_by_itself(load: Load) -> None:
    profiles = [{"X": ([1, 4], [2, 4], [8, 4])}]
    model = load(plan_of(profiles=profiles), most=0, dims=[-1, 4])
    arrays = [rows(2), rows(3, 50), rows(2, 90)]
    responses = model.execute([make_request(array) for array in arrays])
    check([response.tensors[0].as_numpy() for response in responses], arrays)  # before anything is copied
    assert [shapes["X"] for _, shapes in model.runs] == [(2, 4), (3, 4), (2, 4)]


def test_rows_of_different_shapes_run_apart(load: Load) -> None:
    profiles = [{"X": ([1, 1], [4, 4], [8, 9])}]
    model = load(make_plan({"X": ("FLOAT", [-1, -1])}, profiles=profiles), dims=[-1])
    arrays = [np.full((2, width), width, np.float32) for width in (3, 5, 3)]
    responses = model.execute([make_request(array) for array in arrays])
    check([response.tensors[0].as_numpy() for response in responses], arrays)
    assert [shapes["X"] for _, shapes in model.runs] == [(4, 3), (2, 5)]


def test_finalize_leaves_nothing(load: Load) -> None:
    model = load(plan_of(), optimization={"cuda": {"graphs": True}})
    ask(model, rows(2))
    assert model.driver.memory
    assert model.driver.graphs
    model.finalize()
    assert not model.driver.memory
    assert not model.driver.graphs
    assert model.driver.open == 0
    model.finalize()


FAULTS = """
import importlib.util, resource, sys, types
import numpy as np

sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
sys.modules["generator"] = None  # what the serving Python may not have
sys.path.append(sys.argv[1])
spec = importlib.util.spec_from_file_location("backend", sys.argv[1] + "/model.py")
backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(backend)
if sys.argv[2] == "keep":
    backend.keep_freed_memory()
for round_ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(1_200_000, np.uint8) for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_memory_of_one_batch_serves_the_next_and_nothing_of_trtgen_is_imported(folder: Path) -> None:
    def count_faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, str(folder), mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    if count_faults("default") < 1000:
        pytest.skip("malloc keeps it by itself here")
    assert count_faults("keep") < 100


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


def with_graphs(*specs: dict[str, Any]) -> dict[str, Any]:
    return {"cuda": {"graphs": True, "graph_spec": list(specs)}}


def test_a_graph_runs_batches_of_its_size_only(load: Load) -> None:
    model = load(plan_of(), optimization=with_graphs({"batch_size": 4}))
    for count, launched in ((4, 1), (3, 1), (5, 1), (4, 2)):
        check(ask(model, rows(count, count)), [rows(count, count)])
        assert len(model.driver.launched_graphs) == launched
    assert [shapes["X"][0] for _, shapes in model.runs] == [3, 5]


def test_a_lower_bound_lets_a_graph_stand_in(load: Load) -> None:
    specs = ({"batch_size": 8, "graph_lower_bound": {"batch_size": 3}}, {"batch_size": 4})
    model = load(plan_of(), optimization=with_graphs(*specs))
    for count in (3, 4, 5, 8, 2):
        check(ask(model, rows(count, 50)), [rows(count, 50)])
    eight, four = (graph for graph in (1, 2))
    assert model.driver.launched_graphs == [eight, four, eight, eight]
    assert [shapes["X"][0] for _, shapes in model.runs] == [2]


def test_graphs_that_depend_on_the_latest_shape_are_dropped(load: Load) -> None:
    model = load(plan_of(stale_graphs=True), optimization=with_graphs({"batch_size": 4}, {"batch_size": 8}))
    assert [kind for kind, text in model.logged if "differs and is not used" in text] == ["warn", "warn"]
    assert not model.driver.graphs
    check(ask(model, rows(4)), [rows(4)])


def test_a_graph_that_cannot_be_recorded_is_a_warning(load: Load) -> None:
    model = load(plan_of(fail_rows=4), optimization=with_graphs({"batch_size": 4}, {"batch_size": 2}))
    (warning,) = [text for kind, text in model.logged if kind == "warn"]
    assert warning.startswith("unable to record CUDA graph for m_0_0, shapes ((4, 4),): unable to enqueue")
    assert warning.endswith("the kernel is ill")
    ask(model, rows(2))
    assert len(model.driver.launched_graphs) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_batch_size": 8}, [1, 2, 3, 4, 6, 8]),
        ({"max_batch_size": 24}, [1, 2, 3, 4, 6, 8, 12, 16, 24]),
        ({"max_batch_size": 8, "dynamic_batching": {"preferred_batch_size": [8]}}, [1, 8]),
        ({"max_batch_size": 8, "dynamic_batching": {"preferred_batch_size": [4, 6]}}, [1, 4, 6, 8]),
        ({"max_batch_size": 0}, [0]),
    ],
)
def test_without_specs_the_sizes_are_those_of_the_native_backend(
    backend: Any, config: dict[str, Any], expected: list[int]
) -> None:
    config["optimization"] = {"cuda": {"graphs": True}}
    assert [batch for batch, _, _ in backend.find_graph_batches(config)] == expected


@pytest.mark.parametrize(
    ("most", "spec", "words"),
    [
        (8, {"batch_size": 9}, "graph spec expects 'batch_size' to be >= 1 and <= 8"),
        (8, {}, "graph spec expects 'batch_size' to be >= 1 and <= 8"),
        (0, {"batch_size": 1}, "graph spec expects 'batch_size' to be 0 if 'max_batch_size' is 0"),
        (
            8,
            {"batch_size": 2, "graph_lower_bound": {"batch_size": 3}},
            "graph lower bound spec expects 'batch_size' to be <= graph spec 'batch_size'",
        ),
    ],
)
def test_wrong_specs_are_refused(load: Load, most: int, spec: dict[str, Any], words: str) -> None:
    dims = ROW if most else [-1, 4]
    with pytest.raises(Refused) as refusal:
        load(plan_of(), most=most, dims=dims, optimization=with_graphs(spec))
    assert str(refusal.value) == words


def test_a_spec_may_name_the_dims(load: Load) -> None:
    profiles = [{"X": ([1, 1], [4, 4], [8, 9])}]
    spec = {"batch_size": 2, "input": {"X": {"dim": ["3"]}}}
    model = load(make_plan({"X": ("FLOAT", [-1, -1])}, profiles=profiles), dims=[-1], optimization=with_graphs(spec))
    ask(model, np.ones((2, 4), np.float32))
    assert not model.driver.launched_graphs
    ask(model, np.ones((2, 3), np.float32))
    assert len(model.driver.launched_graphs) == 1


def test_graphs_have_the_dims_of_the_configuration(load: Load) -> None:
    """Its dims are what the buffers are made for; the profile's optimum may be larger."""
    profiles = [{"X": ([1, 1], [4, 6], [8, 9])}]
    plan = make_plan({"X": ("FLOAT", [-1, -1])}, profiles=profiles)
    model = load(plan, dims=[3], optimization=with_graphs({"batch_size": 2}))
    ask(model, np.ones((2, 3), np.float32))
    assert len(model.driver.launched_graphs) == 1
    # a spec beyond the configuration would be recorded beyond the buffers
    spec = {"batch_size": 2, "input": {"X": {"dim": ["9"]}}}
    model = load(plan, dims=[3], optimization=with_graphs(spec))
    assert model.engine.graphs == [{}]


@pytest.mark.parametrize(
    ("text", "allowed"), [('{"options": {"version_compatible": true}}', True), ("{}", False), ("", False)]
)
def test_plans_that_carry_code_say_so_in_their_passport(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, allowed: bool
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan.json").write_text(text)
    model = load(plan_of())
    assert getattr(model.engine.runtime, "engine_host_code_allowed", False) == allowed


# --- refusals at load -------------------------------------------------------------------------------------------------


def refuse(load: Load, *arguments: Any, **options: Any) -> str:
    with pytest.raises(Refused) as refusal:
        load(*arguments, **options)
    return str(refusal.value)


def test_a_cpu_instance_is_refused_as_the_native_backend_does(load: Load) -> None:
    assert refuse(load, plan_of(), kind="CPU") == "unable to load model 'm', TensorRT backend supports only GPU device"


def test_a_host_without_gpu_is_told_what_to_do(load: Load) -> None:
    words = refuse(load, plan_of(), driver=Driver(gpus=0))
    assert words == (
        "no GPU for model 'm' (cuInit failed: CUDA_ERROR_NO_DEVICE): a TensorRT plan runs on an NVIDIA GPU only; "
        "rebuild with --target onnxruntime for this host"
    )


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuStreamCreateWithPriority"])
def test_a_gpu_without_room_for_another_context_is_told(load: Load, function: str) -> None:
    driver = Driver()
    setattr(driver, function, lambda *_: (SimpleError(2, "CUDA_ERROR_OUT_OF_MEMORY"), 0))
    words = refuse(load, plan_of(), driver=driver)
    assert "out of memory on GPU 0: not even the CUDA context of another process fits" in words


def test_a_stream_that_fails_for_another_reason_is_no_lack_of_memory(load: Load) -> None:
    driver = Driver()
    driver.cuStreamCreateWithPriority = lambda *_: (SimpleError(719, "CUDA_ERROR_LAUNCH_FAILED"), 0)  # type: ignore[method-assign]
    assert refuse(load, plan_of(), driver=driver) == "cuStreamCreateWithPriority failed: CUDA_ERROR_LAUNCH_FAILED"


def test_the_real_driver_module_without_a_driver_gives_the_same_words(backend: Any) -> None:
    driver = backend.import_driver("m")
    try:
        driver.cuInit(0)
    except RuntimeError:
        with pytest.raises(backend.EngineError, match=r"no GPU for model 'm' .* rebuild with --target onnxruntime"):
            backend.open_device(driver, 0, {}, model="m")
    else:
        pytest.skip("this host has a driver")


def test_a_missing_plan_is_named(load: Load, tmp_path: Path) -> None:
    assert refuse(load, None) == f"unable to find '{tmp_path}/1/model.plan' for model instance 'm_0_0'"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (b"not a plan", "(10 bytes) is no TensorRT plan"),
        (b"", "(0 bytes) is no TensorRT plan"),
        (b"vtrt" + bytes(60), "is a plan of TensorRT-RTX, which TensorRT cannot load"),
        (plan_of()[:-40], f"is truncated: {len(plan_of()) - 40} of {len(plan_of())} bytes"),
        (
            plan_of(version=(10, 3, 0, 26)),
            "was built by TensorRT 10.3.0.26 and this is TensorRT 8.6.1.6: build the plan again with this one",
        ),
    ],
)
def test_a_bad_plan_gives_tensorrts_words_and_what_its_header_says(load: Load, plan: bytes, words: str) -> None:
    refusal = refuse(load, plan)
    assert refusal.startswith("unable to create TensorRT engine: ")
    assert "did not say why" not in refusal
    assert refusal.endswith(words)


def test_a_version_with_fewer_parts_is_compared_as_far_as_it_goes(backend: Any, tmp_path: Path) -> None:
    plan = plan_of(version=(8, 6, 0, 12))
    assert backend.explain_plan(tmp_path, plan, "8.6.0") == ""
    assert "built by TensorRT 8.6.0.12" in backend.explain_plan(tmp_path, plan, "8.6.1")


def test_a_suffix_is_no_fourth_number(backend: Any, tmp_path: Path) -> None:
    plan = plan_of(version=(8, 6, 1, 6))
    assert backend.explain_plan(tmp_path, plan, "8.6.1.post1") == ""
    assert "this is TensorRT 8.6.1.7.post6" in backend.explain_plan(tmp_path, plan, "8.6.1.7.post6")


@pytest.mark.parametrize(("made", "blamed"), [((8, 5, 3, 1), False), ((10, 3, 0, 26), True)])
def test_a_version_compatible_plan_is_only_too_new(
    backend: Any, tmp_path: Path, made: tuple[int, int, int, int], blamed: bool
) -> None:
    path = tmp_path / "model.plan"
    assert "built by TensorRT" in backend.explain_plan(path, plan_of(version=made), "8.6.1.6")
    path.with_name("model.plan.json").write_text('{"options": {"version_compatible": true}}')
    assert ("built by TensorRT" in backend.explain_plan(path, plan_of(version=made), "8.6.1.6")) == blamed


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("CUDA initialization failure with error: 35", ""),
        ("CUDA error: out of memory", "; out of memory on GPU 0: an instance needs at least"),
    ],
)
def test_a_tensorrt_that_does_not_start_is_a_refusal(load: Load, said: str, words: str) -> None:
    driver = Driver()
    driver.refusal = said
    refusal = refuse(load, plan_of(), driver=driver)
    assert refusal.startswith(f"TensorRT does not start: {said}{words}")
    assert bool(words) == ("; out of memory" in refusal)


def test_the_bindings_alone_will_do(backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(backend.EngineError, match=r"no working tensorrt \(import of tensorrt halted"):
        backend.import_tensorrt()
    (tmp_path / "tensorrt_bindings.py").touch()
    importlib.invalidate_caches()
    try:
        assert backend.import_tensorrt().__file__ == str(tmp_path / "tensorrt_bindings.py")
    finally:
        sys.modules.pop("tensorrt_bindings", None)


def test_plugins_are_registered_when_a_plan_needs_them(load: Load) -> None:
    check(ask(load(plan_of(plugin=True)), rows(2)), [rows(2)])


def test_too_little_memory_says_what_is_needed_and_what_is_free(load: Load) -> None:
    width = 1 << 20
    plan = make_plan({"X": ("FLOAT", [-1, width])}, profiles=[{"X": ([1, width], [4, width], [8, width])}])
    words = refuse(load, plan, dims=[width], driver=Driver(memory_bytes=50 << 20))
    assert words == (
        "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY; out of memory on GPU 0: an instance needs at least 67 MiB, "
        "18 MiB of 50 MiB are free; at most 0 of them fit on this GPU even when it is empty: "
        "lower `count` in the model's instance_group"
    )
    assert "could not be allocated.; out of memory on GPU 0" in refuse(load, plan_of(too_large=True))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"most": 9},
            (
                "autofill failed for model 'm': configuration specified max-batch 9 but TensorRT engine only supports "
                "max-batch 8"
            ),
        ),
        (
            {"profile": ["2"]},
            (
                "unable to autofill for 'm', configuration specified invalid profile 2 . Number of profiles "
                "supported by TensorRT engine: 1"
            ),
        ),
        (
            {"data_type": "TYPE_FP16"},
            (
                "unexpected datatype TYPE_FP32 for inference input 'X', expecting TYPE_FP16 for m_0_0; "
                "unexpected datatype TYPE_FP32 for inference output 'Y', expecting TYPE_FP16 for m_0_0"
            ),
        ),
        (
            {"input": [{"name": "Z", "data_type": "TYPE_FP32", "dims": [4]}]},
            "unexpected inference input 'Z', allowed inputs are: X; expected configuration for input 'X' for m_0_0",
        ),
        (
            {"output": [{"name": "Z", "data_type": "TYPE_FP32", "dims": [4]}]},
            "unexpected inference output 'Z', allowed outputs are: Y; expected configuration for output 'Y' for m_0_0",
        ),
        (
            {"output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [5]}]},
            (
                "model instance 'm_0_0', tensor 'Y': the model expects 2 dimensions (shape [-1, 4]) but the model "
                "configuration specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed "
                "by the explicit tensor shape, making complete shape [-1, 5])"
            ),
        ),
        (
            {"most": 0},
            (
                "model instance 'm_0_0', tensor 'X': the model expects 2 dimensions (shape [-1, 4]) but the model "
                "configuration specifies 1 dimensions (shape [4]); model instance 'm_0_0', tensor 'Y': the model "
                "expects 2 dimensions (shape [-1, 4]) but the model configuration specifies 1 dimensions (shape [4])"
            ),
        ),
        (
            {"most": 0, "dims": [9, 4]},
            (
                "model configuration specified invalid shape for input 'X' for m_0_0. Error details: model expected "
                "the shape of dimension 0 to be between 1 and 8 but received 9"
            ),
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(load: Load, config: dict[str, Any], words: str) -> None:
    assert refuse(load, plan_of(), **config) == words


def test_the_largest_profile_of_any_group_decides_on_max_batch_size(load: Load) -> None:
    groups = [{"name": "m_0", "profile": ["0"], "gpus": [0]}, {"name": "large", "profile": ["1"], "gpus": [0]}]
    load(plan_of(profiles=TWO_PROFILES), groups=groups)
    assert refuse(load, plan_of(profiles=TWO_PROFILES)).endswith("only supports max-batch 2")


@pytest.mark.parametrize(
    ("instance", "gpu", "expected"),
    [
        ("m_0_0", 0, (0,)),
        ("m_0_1_7", 0, (2, 1)),
        ("big_one_0", 0, (1,)),
        ("big_one_0", 1, (0,)),
        ("big_one_3", 1, (0,)),
    ],
)
def test_an_instance_has_the_profiles_of_its_group(
    backend: Any, instance: str, gpu: int, expected: tuple[int, ...]
) -> None:
    groups = [
        {"name": "m_0", "gpus": [0]},
        {"name": "m_0_1", "gpus": [0], "profile": ["2", "1", "2"]},
        {"name": "big_one", "gpus": [0], "profile": ["1"]},
        {"name": "big_one", "gpus": [1], "profile": ["0"]},
    ]
    assert backend.find_profiles({"instance_group": groups}, instance, gpu) == expected


def test_two_groups_of_one_name_with_other_profiles_are_refused(load: Load) -> None:
    groups = [{"name": "m_0", "profile": ["0"], "gpus": [0]}, {"name": "m_0", "profile": ["1"], "gpus": [0]}]
    assert "list different profiles" in refuse(load, plan_of(profiles=TWO_PROFILES), groups=groups)


def test_priority_waiting_and_capability_files_follow_the_configuration(load: Load, tmp_path: Path) -> None:
    model = load(plan_of(), optimization={"priority": "PRIORITY_MAX", "cuda": {"busy_wait_events": True}})
    assert (model.driver.priority, model.driver.event_flags) == (-5, 2)
    (tmp_path / "1" / "h200.plan").write_bytes(plan_of())
    (tmp_path / "1" / "model.plan").unlink()
    model = load(None, cc_model_filenames={"9.0": "h200.plan"})
    assert (model.driver.priority, model.driver.event_flags) == (0, 3)
    words = refuse(load, None, default_model_filename="net.plan")
    assert words == f"unable to find '{tmp_path}/1/net.plan' for model instance 'm_0_0'"


# --- through a real tritonserver --------------------------------------------------------------------------------------

WRAPPER = """\
import importlib.util
import json
import pathlib
import sys

sys.path[:0] = [ROOT, str(pathlib.Path(BACKEND).parent)]
from tests.tensorrt_standin import Driver, make_tensorrt

spec = importlib.util.spec_from_file_location("tensorrt_backend", BACKEND)
backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(backend)
DRIVER = Driver()
TENSORRT = make_tensorrt(DRIVER)
backend.import_driver = lambda model: DRIVER
backend.import_tensorrt = lambda: TENSORRT


class TritonPythonModel(backend.TritonPythonModel):
    def initialize(self, args):
        # Triton calls this file the model's file, and without a GPU the instance one of the CPU.
        config = json.loads(args["model_config"]) | {"default_model_filename": "standin.plan"}
        super().initialize({**args, "model_config": json.dumps(config), "model_instance_kind": "GPU"})
"""
GATHER = "dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 1500000 }"
WARMUP = """
model_warmup {{ name: "w" batch_size: {count}
  inputs {{ key: "X" value {{ data_type: TYPE_FP32 dims: [ 4 ] random_data: true }} }} }}
"""


def add_model(root: Path, folder: Path, name: str, plan: bytes, **config: Any) -> Path:
    model = write_config(root / name, backend="python", **config)
    (model / "1").mkdir()
    code = WRAPPER.replace("ROOT", repr(str(Path(__file__).parents[1]))).replace(
        "BACKEND", repr(str(folder / "model.py"))
    )
    (model / "1" / "model.py").write_text(code)
    (model / "1" / "standin.plan").write_bytes(plan)  # under this name `serve` does not look for a GPU first
    return model


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    root = tmp_path_factory.mktemp("tensorrt") / "repository"
    add_model(root, folder, "together", plan_of(), more=GATHER)
    add_model(root, folder, "alone", plan_of(), more=WARMUP.format(count=8), instances="count: 2 kind: KIND_CPU")
    inputs = {f"X_{name}": (name, [-1, 2]) for name in TYPES}
    profile = {name: ([1, 2], [4, 2], [4, 2]) for name in inputs}
    dtypes = add_model(root, folder, "dtypes", make_plan(inputs, profiles=[profile]))
    blocks = [
        f'{kind} {{ name: "{letter}_{name}" data_type: TYPE_{triton} dims: [ 2 ] }}'
        for kind, letter in (("input", "X"), ("output", "Y"))
        for name, triton in TYPES.items()
    ]
    (dtypes / "config.pbtxt").write_text(
        "\n".join(['backend: "python"', "max_batch_size: 4", "instance_group { kind: KIND_CPU }", *blocks])
    )
    with EmbeddedServer(root) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connection:
        yield connection


def make_input(array: np.ndarray[Any, Any], name: str = "X") -> Any:
    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def infer_together(
    client: grpc.InferenceServerClient, model: str, arrays: list[np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any] | InferenceServerException]:
    answers: dict[int, Any] = {}
    done = threading.Event()

    def keep(index: int, result: Any, error: Any) -> None:
        answers[index] = error if error is not None else result.as_numpy("Y")
        if len(answers) == len(arrays):
            done.set()

    for index, array in enumerate(arrays):
        client.async_infer(
            model, [make_input(array)], callback=lambda result, error, index=index: keep(index, result, error)
        )
    assert done.wait(30), f"{len(answers)} of {len(arrays)} requests were answered"
    return [answers[index] for index in range(len(arrays))]


@pytest.mark.server
def test_served_requests_in_flight_share_a_batch(client: grpc.InferenceServerClient) -> None:
    arrays = [rows(count, 10 * count) for count in (1, 3, 2, 2)]
    check(infer_together(client, "together", arrays), arrays)

    def count() -> tuple[int, int]:
        statistics = client.get_inference_statistics("together").model_stats[0]
        return statistics.inference_count, statistics.execution_count

    assert read_settled(count, (0, 0)) == (8, 1)


@pytest.mark.server
def test_served_answers_stay_right_while_the_staging_memory_is_reused(client: grpc.InferenceServerClient) -> None:
    for round_ in range(20):
        arrays = [rows(1 + index % 8, 1000 * round_ + 10 * index) for index in range(32)]
        check(infer_together(client, "alone", arrays), arrays)


# --- inputs on the GPU ------------------------------------------------------------------------------------------------


def place(driver: Driver, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy in the GPU's memory."""
    _, address = driver.cuMemAlloc(array.nbytes)
    placed = np.frombuffer(driver.memory[address], array.dtype).reshape(array.shape)
    placed[:] = array
    return placed


def make_gpu_tensor(driver: Driver, array: np.ndarray[Any, Any], name: str = "X") -> Any:
    """As the stub has one that a client put into CUDA shared memory."""
    return SimpleNamespace(name=lambda: name, is_cpu=lambda: False, to_dlpack=place(driver, array).__dlpack__)


def make_gpu_request(driver: Driver, array: np.ndarray[Any, Any]) -> Any:
    tensor = make_gpu_tensor(driver, array)
    return SimpleNamespace(inputs=lambda: [tensor])


def test_inputs_on_the_gpu_stay_there(load: Load) -> None:
    model = load(plan_of())
    arrays = [rows(5), rows(7, 100), rows(8, 200)]
    for staging in model.engine.host_inputs:
        staging.array[:] = 99  # what would be sent from there
    for _ in range(2):
        responses = model.execute([make_gpu_request(model.driver, array) for array in arrays])
        check([response.tensors[0].as_numpy().copy() for response in responses], arrays)
    assert [shapes["X"][0] for _, shapes in model.runs] == [8, 8, 4] * 2
    assert not model.driver.piece_bytes
    assert (model.engine.host_inputs[0].array == 99).all()


def test_inputs_on_the_gpu_beside_others(load: Load) -> None:
    model = load(plan_of())
    arrays = [rows(2), rows(3, 50), rows(1, 90)]
    requests = [make_gpu_request(model.driver, arrays[0]), make_request(arrays[1])]
    responses = model.execute([*requests, make_gpu_request(model.driver, arrays[2])])
    check([response.tensors[0].as_numpy() for response in responses], arrays)
    assert [shapes["X"][0] for _, shapes in model.runs] == [3, 3]


def test_one_input_on_the_gpu_and_one_that_is_not(load: Load) -> None:
    both = {name: ("FLOAT", [-1, 4]) for name in ("X_A", "X_B")}
    plan = make_plan(both, profiles=[{name: ([1, 4], [4, 4], [8, 4]) for name in both}])
    inputs, outputs = (
        [{"name": name, "data_type": "TYPE_FP32", "dims": ROW} for name in names] for names in (both, ("Y_A", "Y_B"))
    )
    model = load(plan, input=inputs, output=outputs)
    there, here = make_gpu_tensor(model.driver, rows(3), "X_A"), make_request(rows(3, 50), name="X_B").inputs()[0]
    (response,) = model.execute([SimpleNamespace(inputs=lambda: [there, here])])
    check([tensor.as_numpy() for tensor in response.tensors], [rows(3), rows(3, 50)])


def test_inputs_on_the_gpu_without_a_batch_axis(load: Load) -> None:
    dims = {"dims": ["-1", "4"], "data_type": "TYPE_FP32"}
    model = load(plan_of(), max_batch_size=0, input=[{"name": "X", **dims}], output=[{"name": "Y", **dims}])
    arrays = [rows(2), rows(3, 50)]
    responses = model.execute([make_gpu_request(model.driver, array) for array in arrays])
    check([response.tensors[0].as_numpy() for response in responses], arrays)


def test_inputs_on_the_gpu_of_no_rows(load: Load) -> None:
    model = load(plan_of())
    arrays = [rows(2), rows(0), rows(9, 50)]
    responses = model.execute([make_gpu_request(model.driver, array) for array in arrays])
    check([response.tensors[0].as_numpy() for response in responses], arrays)
    (response,) = model.execute([make_gpu_request(model.driver, rows(0))])
    check([response.tensors[0].as_numpy()], [rows(0)])


def test_several_inputs_on_the_gpu(load: Load) -> None:
    both = {"X_A": ("FLOAT", [-1, 4]), "X_B": ("FLOAT", [-1, 2])}
    profile = {name: ([1, width], [4, width], [8, width]) for name, (_, (_, width)) in both.items()}
    inputs, outputs = (
        [{"name": name, "data_type": "TYPE_FP32", "dims": [width]} for name, width in zip(names, (4, 2), strict=True)]
        for names in (both, ("Y_A", "Y_B"))
    )
    model = load(make_plan(both, profiles=[profile]), input=inputs, output=outputs)
    fed = [[rows(5, 10 * number), rows(5, 10 * number + 100)[:, :2].copy()] for number in range(3)]
    requests = []
    for arrays in fed:
        tensors = [make_gpu_tensor(model.driver, array, name) for array, name in zip(arrays, both, strict=True)]
        requests.append(SimpleNamespace(inputs=lambda tensors=tensors: tensors))
    for response, arrays in zip(model.execute(requests), fed, strict=True):
        check([tensor.as_numpy() for tensor in response.tensors], arrays)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((), np.int8), ((3,), np.int64), ((2, 5, 4), np.float16), ((2, 0, 4), np.uint8)]
)
def test_a_capsule_says_what_lies_there(shape: tuple[int, ...], dtype: type) -> None:
    array: np.ndarray[Any, Any] = np.zeros(shape, dtype)
    assert read_capsule(array.__dlpack__()) == (array.ctypes.data, shape, np.dtype(dtype), None)


def test_a_capsule_may_begin_behind_its_address() -> None:
    array = np.zeros((2, 4), np.float32)
    capsule = array.__dlpack__()
    tensor = gpu_array._DLTensor.from_address(gpu_array._get_pointer(capsule, b"dltensor"))
    tensor.data, tensor.byte_offset = array.ctypes.data - 64, 64
    assert read_capsule(capsule).address == array.ctypes.data


def test_booleans_on_the_gpu() -> None:
    """The Python backend's own words for them have changed."""
    array = np.array([[True, False]])
    found = read_capsule(array.__dlpack__())
    assert found == (array.ctypes.data, (1, 2), np.dtype(bool), None)
    capsule = array.__dlpack__()
    tensor = gpu_array._DLTensor.from_address(gpu_array._get_pointer(capsule, b"dltensor"))
    tensor.code, tensor.bits = 0, 1
    assert read_capsule(capsule) == found


@pytest.mark.parametrize("dtype", [np.float16, np.bool_, np.complex64])
def test_an_input_on_the_gpu_of_another_type(load: Load, dtype: type) -> None:
    model = load(plan_of())
    requests = [make_gpu_request(model.driver, rows(2).astype(dtype)), make_request(rows(3))]
    refused, answered = model.execute(requests)
    assert "on the GPU" in refused.error.t
    check([answered.tensors[0].as_numpy()], [rows(3)])


@pytest.mark.server
def test_served_types_go_through_unchanged(client: grpc.InferenceServerClient) -> None:
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 60, (4, 2)).astype(DTYPES[name]) for name in TYPES}
    result = client.infer("dtypes", [make_input(array, f"X_{name}") for name, array in arrays.items()])
    for name, array in arrays.items():
        answer = result.as_numpy(f"Y_{name}")
        assert answer.dtype == array.dtype
        np.testing.assert_array_equal(answer, array + array)


@pytest.mark.server
def test_served_outputs_are_those_asked_for(client: grpc.InferenceServerClient) -> None:
    inputs = [make_input(np.zeros((3, 2), DTYPES[name]), f"X_{name}") for name in TYPES]
    wanted = ["Y_INT64", "Y_BOOL"]
    result = client.infer("dtypes", inputs, outputs=[grpc.InferRequestedOutput(name) for name in wanted])
    assert sorted(output.name for output in result.get_response().outputs) == sorted(wanted)


@pytest.mark.server
def test_a_served_request_of_no_rows_is_refused_by_triton(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="input byte size mismatch for input 'X' for model 'alone'"):
        client.infer("alone", [make_input(rows(0))])
    check([client.infer("alone", [make_input(rows(2))]).as_numpy("Y")], [rows(2)])


@pytest.mark.server
@pytest.mark.parametrize(
    ("instances", "said", "logged"),
    [
        ("count: 1 kind: KIND_CPU", "GPU", "unable to load model 'plan', TensorRT backend supports only GPU device"),
        ("count: 1 kind: KIND_GPU", "GPU", "instance group plan_0 of model plan has kind KIND_GPU but no GPUs"),
        ("count: 1 kind: KIND_GPU gpus: [ 0 ]", "names GPU 0", "specifies invalid or unsupported gpu id 0"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_plan_on_a_host_without_gpu_does_not_start(tmp_path: Path, instances: str, said: str, logged: str) -> None:
    if "GPU" in instances and Path("/dev/nvidiactl").exists():
        pytest.skip("this host has a GPU")
    name = 'default_model_filename: "net.plan"'
    model = write_config(tmp_path / "repository" / "plan", backend="tensorrt", instances=instances, more=name)
    (model / "1").mkdir()
    (model / "1" / "net.plan").write_bytes(plan_of())
    log = tmp_path / "log"
    with pytest.raises(TrtgenError, match=said), EmbeddedServer(tmp_path / "repository", log_path=log):
        pass
    assert logged in log.read_text()
