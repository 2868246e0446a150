"""The Python-based onnxruntime backend, served by a real tritonserver and asked by the real clients."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from generator.server.embedded import EmbeddedServer
from tests.server_parts import read_settled, save_doubling_graph, save_graph, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.server

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
# Long enough that requests sent together surely meet in one execute.
GATHER = "dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 1500000 }"


def write_repository(root: Path) -> Path:
    """One model per behaviour."""
    for name, more in (
        ("alone", ""),
        ("together", GATHER),
        ("threads", 'parameters { key: "intra_op_thread_count" value { string_value: "3" } }'),
    ):
        save_doubling_graph(write_config(root / name, more=more) / "1" / "model.onnx")
    save_doubling_graph(write_config(root / "named", more='default_model_filename: "net.onnx"') / "1" / "net.onnx")
    save_doubling_graph(
        write_config(root / "unbatched", max_batch_size=0, dims="2, 4") / "1" / "model.onnx", batch="rows"
    )
    save_doubling_graph(write_config(root / "many", instances=f"count: {cores() * 2} kind: KIND_CPU") / "1/model.onnx")
    # Requests of different widths meet in one execute only with ragged batches.
    ragged = write_config(root / "ragged", dims="-1", more=GATHER)
    text = (ragged / "config.pbtxt").read_text()
    (ragged / "config.pbtxt").write_text(text.replace("dims: [ -1 ]", "dims: [ -1 ] allow_ragged_batch: true", 1))
    save_doubling_graph(ragged / "1" / "model.onnx", width="width")
    strict = write_config(root / "strict", dims="-1", more=GATHER)
    (strict / "config.pbtxt").write_text(
        (strict / "config.pbtxt").read_text().replace("dims: [ -1 ]", "dims: [ -1 ] allow_ragged_batch: true", 1)
    )
    save_doubling_graph(strict / "1" / "model.onnx", width=4)
    add_dtypes_model(root / "dtypes")
    add_lookup_model(root / "lookup")
    add_cutting_model(root / "cutting")
    add_reshaping_model(root / "reshaping")
    return root


def cores() -> int:
    return len(os.sched_getaffinity(0))


def add_dtypes_model(model: Path) -> None:
    """Each data type in and out; max_batch_size 4."""
    inputs: dict[str, tuple[str, list[int | str]]] = {f"X_{name}": (dtype, ["n", 2]) for name, dtype in DTYPES.items()}
    outputs = {name.replace("X_", "Y_"): value for name, value in inputs.items()}
    nodes = [helper.make_node("Identity", [name], [name.replace("X_", "Y_")]) for name in inputs]
    save_graph(model / "1" / "model.onnx", nodes, inputs, outputs)
    blocks = [
        f'{kind} {{ name: "{letter}_{name}" data_type: TYPE_{name} dims: [ 2 ] }}'
        for kind, letter in (("input", "X"), ("output", "Y"))
        for name in DTYPES
    ]
    (model / "config.pbtxt").write_text("\n".join(['backend: "onnxruntime"', "max_batch_size: 4", *blocks]))


def add_lookup_model(model: Path) -> None:
    """A graph that fails while it runs, for an index above 2."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 11.0, 12.0])
    nodes = [
        helper.make_node("Constant", [], ["table"], value=table),
        helper.make_node("Gather", ["table", "X"], ["Y"]),
    ]
    save_graph(model / "1" / "model.onnx", nodes, {"X": ("int64", ["n", 1])}, {"Y": ("float32", ["n", 1])})
    write_config(model, data_type="TYPE_INT64", dims="1", more=GATHER)
    text = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(text.replace('"Y" data_type: TYPE_INT64', '"Y" data_type: TYPE_FP32'))


def add_cutting_model(model: Path) -> None:
    """A graph that answers with the first row only, whatever the batch."""
    nodes = [
        helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, [1], [value]))
        for name, value in (("start", 0), ("stop", 1))
    ]
    nodes.append(helper.make_node("Slice", ["X", "start", "stop", "start"], ["Y"]))
    save_graph(model / "1" / "model.onnx", nodes, {"X": ("float32", ["n", 4])}, {"Y": ("float32", ["m", 4])})
    write_config(model, more=GATHER)


def add_reshaping_model(model: Path) -> None:
    """Triton's dims have one dimension more than the graph's."""
    nodes = [helper.make_node("Add", ["X", "X"], ["Y"])]
    save_graph(model / "1" / "model.onnx", nodes, {"X": ("float32", ["n"])}, {"Y": ("float32", ["n"])})
    write_config(model, dims="1", of_output="reshape { shape: [ ] }")
    text = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(text.replace("dims: [ 1 ]", "dims: [ 1 ] reshape { shape: [ ] }", 1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = write_repository(tmp_path_factory.mktemp("onnxruntime") / "repository")
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connection:
        yield connection


def make_input(array: np.ndarray[Any, Any], *, name: str = "X", kind: Any = grpc) -> Any:
    tensor = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def infer_together(
    client: grpc.InferenceServerClient, model: str, arrays: list[np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any] | InferenceServerException]:
    """Send all requests at once; return each answer or error in the order of the requests."""
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


def count_runs(client: grpc.InferenceServerClient, model: str) -> tuple[int, int]:
    """Return (rows answered, executions) since the server started."""
    statistics = client.get_inference_statistics(model).model_stats[0]
    return statistics.inference_count, statistics.execution_count


def runs_since(client: grpc.InferenceServerClient, model: str, before: tuple[int, int]) -> list[int]:
    """Return what came on top of `before`."""
    rows, runs = read_settled(lambda: count_runs(client, model), before)
    return [rows - before[0], runs - before[1]]


def test_both_protocols_give_the_graphs_answer(server: EmbeddedServer) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    for kind, url in ((grpc, server.grpc_url), (http, server.http_url)):
        with kind.InferenceServerClient(url) as connection:
            result = connection.infer("alone", [make_input(array, kind=kind)])
            np.testing.assert_array_equal(result.as_numpy("Y"), array * 2)


def test_requests_in_flight_run_as_one_batch_and_get_their_own_rows(client: grpc.InferenceServerClient) -> None:
    before = count_runs(client, "together")
    arrays = [np.full((rows, 4), 10 * rows, np.float32) + np.arange(4, dtype=np.float32) for rows in (1, 3, 2, 2)]
    answers = infer_together(client, "together", arrays)
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer, array * 2)
    assert runs_since(client, "together", before) == [8, 1]


def test_requests_of_different_shapes_in_one_execute_are_all_answered(client: grpc.InferenceServerClient) -> None:
    before = count_runs(client, "ragged")
    arrays = [np.full((2, width), width, np.float32) for width in (3, 5, 3, 7)]
    for array, answer in zip(arrays, infer_together(client, "ragged", arrays), strict=True):
        np.testing.assert_array_equal(answer, array * 2)
    assert runs_since(client, "ragged", before) == [8, 1]


def test_a_wrong_shape_in_one_execute_fails_alone(client: grpc.InferenceServerClient) -> None:
    arrays = [np.full((rows, width), rows, np.float32) for rows, width in ((2, 4), (2, 5), (4, 4))]
    before = count_runs(client, "strict")
    first, wrong, last = infer_together(client, "strict", arrays)
    np.testing.assert_array_equal(first, arrays[0] * 2)
    np.testing.assert_array_equal(last, arrays[2] * 2)
    assert isinstance(wrong, InferenceServerException)
    assert "unexpected shape for input 'X' for model 'strict': expected [-1, 4], got [2, 5]" in str(wrong)
    assert wrong.status() == "StatusCode.INVALID_ARGUMENT"
    assert runs_since(client, "strict", before)[1] == 1


def test_a_failing_run_gives_every_request_the_cause(client: grpc.InferenceServerClient) -> None:
    answers = infer_together(client, "lookup", [np.array([[index]], np.int64) for index in (1, 99, *[0] * 6)])
    assert all("in a batch of 8 requests" in str(answer) and "out of data bounds" in str(answer) for answer in answers)
    # The instance goes on.
    assert client.infer("lookup", [make_input(np.array([[2]], np.int64))]).as_numpy("Y").tolist() == [[12.0]]


def test_an_output_without_a_row_per_input_row_is_an_error(client: grpc.InferenceServerClient) -> None:
    single = np.ones((1, 4), np.float32)
    assert client.infer("cutting", [make_input(single)]).as_numpy("Y").shape == (1, 4)
    answers = infer_together(client, "cutting", [single] * 8)
    assert all("has shape [1, 4]: expected 8 rows" in str(answer) for answer in answers)


def test_only_requested_outputs_are_returned(client: grpc.InferenceServerClient) -> None:
    inputs = [make_input(np.zeros((3, 2), dtype), name=f"X_{name}") for name, dtype in DTYPES.items()]
    wanted = ["Y_INT64", "Y_BOOL"]
    result = client.infer("dtypes", inputs, outputs=[grpc.InferRequestedOutput(name) for name in wanted])
    assert sorted(output.name for output in result.get_response().outputs) == sorted(wanted)


def test_every_data_type_goes_through_unchanged(client: grpc.InferenceServerClient) -> None:
    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, 100, (4, 2)).astype(dtype) for name, dtype in DTYPES.items()}
    result = client.infer("dtypes", [make_input(array, name=f"X_{name}") for name, array in arrays.items()])
    for name, array in arrays.items():
        answer = result.as_numpy(f"Y_{name}")
        assert answer.dtype == array.dtype
        np.testing.assert_array_equal(answer, array)


def test_without_batching_the_shape_is_the_graphs(client: grpc.InferenceServerClient) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    answers = infer_together(client, "unbatched", [array, array + 1, array + 2])
    for offset, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, (array + offset) * 2)


def test_the_configured_file_name_and_reshape_are_followed(client: grpc.InferenceServerClient) -> None:
    array = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(client.infer("named", [make_input(array)]).as_numpy("Y"), array * 2)
    column = np.array([[1.0], [2.0]], np.float32)
    np.testing.assert_array_equal(client.infer("reshaping", [make_input(column)]).as_numpy("Y"), column * 2)


def test_instances_share_the_cores(server: EmbeddedServer) -> None:
    log = server.log_path.read_text()
    threads = {
        name: int(count)
        for name, count in re.findall(rf"(\w+): onnxruntime {re.escape(onnxruntime_version())}, (\d+) intra-op", log)
    }
    assert threads["alone_0_0"] == cores()
    assert [threads[f"many_0_{index}"] for index in range(cores() * 2)] == [1] * cores() * 2
    assert threads["threads_0_0"] == 3


def onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def test_the_repository_stays_as_it_was(server: EmbeddedServer) -> None:
    assert not list(server.repository.rglob("__pycache__"))
