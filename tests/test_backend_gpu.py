"""The Python-based tensorrt backend on a real GPU: a plan of two inputs and two profiles in a real tritonserver."""

from __future__ import annotations

import importlib.util
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import np_to_triton_dtype

from generator.errors import ServerError
from generator.gpu import why_no_gpu
from generator.server.embedded import EmbeddedServer

WITHOUT = why_no_gpu() or ("" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU and TensorRT: {WITHOUT}"),
]
Pair = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
GATHER = "dynamic_batching { preferred_batch_size: [ 64 ] max_queue_delay_microseconds: 300000 }"
GRAPHS = "optimization { cuda { graphs: true graph_spec { batch_size: 1 } graph_spec { batch_size: 8 } } }"
WARMUP = """model_warmup { name: "w" batch_size: 4
  inputs { key: "X" value { data_type: TYPE_FP32 dims: [ 16 ] random_data: true } }
  inputs { key: "U" value { data_type: TYPE_UINT8 dims: [ 8, 8, 3 ] random_data: true } } }"""


def build(path: Path) -> Path:
    """A plan: Y = 2 X for FP32 [-1, 16], Z = 2 U in FP32 for UINT8 [-1, 8, 8, 3]; profiles 1 to 4 and 1 to 64."""
    import tensorrt as trt

    from generator.plan.library import open_log

    builder = trt.Builder(open_log().logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    rows = network.add_input("X", trt.float32, (-1, 16))
    pixels = network.add_input("U", trt.uint8, (-1, 8, 8, 3))
    cast = network.add_cast(pixels, trt.float32).get_output(0)
    for name, tensor in (("Y", rows), ("Z", cast)):
        made = network.add_elementwise(tensor, tensor, trt.ElementWiseOperation.SUM).get_output(0)
        made.name = name
        network.mark_output(made)
    config = builder.create_builder_config()
    for best, most in ((2, 4), (32, 64)):
        profile = builder.create_optimization_profile()
        profile.set_shape("X", (1, 16), (best, 16), (most, 16))
        profile.set_shape("U", (1, 8, 8, 3), (best, 8, 8, 3), (most, 8, 8, 3))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, open_log().last_error()
    path.write_bytes(bytes(plan))
    return path


def add_model(root: Path, name: str, plan: Path, *, group: str, more: str = "", most: int = 64) -> Path:
    """A model around the plan; under another name than model.plan nothing looks at it before the backend does."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    shutil.copy2(plan, folder / "network.plan")
    config = root / name / "config.pbtxt"
    config.write_text(
        f"""backend: "tensorrt"
default_model_filename: "network.plan"
max_batch_size: {most}
input {{ name: "X" data_type: TYPE_FP32 dims: [ 16 ] }}
input {{ name: "U" data_type: TYPE_UINT8 dims: [ 8, 8, 3 ] }}
output {{ name: "Y" data_type: TYPE_FP32 dims: [ 16 ] }}
output {{ name: "Z" data_type: TYPE_FP32 dims: [ 8, 8, 3 ] }}
instance_group {{ kind: KIND_GPU {group} }}
{more}
"""
    )
    return config


def make_pair(rows: int, seed: int) -> Pair:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, 16), np.float32), random.integers(0, 256, (rows, 8, 8, 3), np.uint8)


def make_inputs(pair: Pair) -> list[Any]:
    tensors = []
    for name, array in zip(("X", "U"), pair, strict=True):
        tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plan") / "network.plan")


@pytest.fixture(scope="module")
def root(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served") / "repository"
    add_model(root, "both", plan, group='count: 2 profile: [ "0", "1" ]', more=GATHER + GRAPHS)
    add_model(root, "first", plan, group='profile: [ "0" ]', more='instance_group { name: "o" profile: [ "1" ] }')
    add_model(root, "warm", plan, group='profile: [ "1" ]', more=WARMUP)
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[grpc.InferenceServerClient]:
    with EmbeddedServer(root) as server, grpc.InferenceServerClient(server.grpc_url) as connection:
        yield connection


@pytest.mark.parametrize("model", ["both", "first", "warm"])
def test_a_hundred_requests_in_flight_get_their_own_answers(client: grpc.InferenceServerClient, model: str) -> None:
    pairs = [make_pair(1 + index % 13, index) for index in range(100)]
    answers: dict[int, Any] = {}
    done = threading.Event()

    def keep(index: int, result: Any, error: Any) -> None:
        answers[index] = error or (result.as_numpy("Y"), result.as_numpy("Z"))
        if len(answers) == len(pairs):
            done.set()

    for index, pair in enumerate(pairs):
        client.async_infer(
            model, make_inputs(pair), callback=lambda result, error, index=index: keep(index, result, error)
        )
    assert done.wait(60), f"{len(answers)} of {len(pairs)} requests were answered"
    for index, (rows, pixels) in enumerate(pairs):
        assert isinstance(answers[index], tuple), answers[index]
        np.testing.assert_array_equal(answers[index][0], rows * 2)
        np.testing.assert_array_equal(answers[index][1], pixels.astype(np.float32) * 2)


def test_only_the_output_that_is_asked_for_comes_back(client: grpc.InferenceServerClient) -> None:
    result = client.infer("both", make_inputs(make_pair(2, 5)), outputs=[grpc.InferRequestedOutput("Z")])
    assert [output.name for output in result.get_response().outputs] == ["Z"]


def test_a_plan_that_is_removed_is_served_on(client: grpc.InferenceServerClient, root: Path) -> None:
    for path in root.glob("*/1/network.plan"):
        path.unlink()
    pair = make_pair(3, 7)
    np.testing.assert_array_equal(client.infer("warm", make_inputs(pair)).as_numpy("Y"), pair[0] * 2)


def cut(folder: Path) -> None:
    path = folder / "1" / "network.plan"
    path.write_bytes(path.read_bytes()[:-1000])


def overwrite(folder: Path) -> None:
    (folder / "1" / "network.plan").write_bytes(b"garbage" * 1000)


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = folder / "config.pbtxt"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            replace("max_batch_size: 64", "max_batch_size: 65"),
            "configuration specified max-batch 65 but TensorRT engine only supports max-batch 64",
        ),
        (
            replace("TYPE_UINT8", "TYPE_INT8"),
            "unexpected datatype TYPE_UINT8 for inference input 'U', expecting TYPE_INT8",
        ),
        (replace('profile: [ "1" ]', 'profile: [ "5" ]'), "configuration specified invalid profile 5"),
        (cut, "unable to create TensorRT engine"),
        (overwrite, "unable to create TensorRT engine"),
    ],
)
def test_what_the_native_backend_refuses_is_refused(
    plan: Path, tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    root, log = tmp_path / "repository", tmp_path / "server.log"
    add_model(root, "m", plan, group='profile: [ "1" ]')
    harm(root / "m")
    with pytest.raises(ServerError), EmbeddedServer(root, log_path=log):
        pass
    assert words in log.read_text()
