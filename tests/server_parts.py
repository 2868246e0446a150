"""Small graphs, configurations and Python models for tests that start a real tritonserver."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")

ECHO = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "X")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", tensor.as_numpy())]))
        return answers
"""

ENSEMBLE = """\
platform: "ensemble"
max_batch_size: {max_batch_size}
input {{ name: "IN" data_type: {data_type} dims: [ {dims} ] }}
output {{ name: "OUT" data_type: {data_type} dims: [ {dims} ] }}
ensemble_scheduling {{
  step {{
    model_name: "{member}" model_version: -1
    input_map {{ key: "{tensor}" value: "IN" }}
    output_map {{ key: "Y" value: "OUT" }}
  }}
}}
"""


def read_settled(read: Callable[[], _T], before: _T) -> _T:
    """Return what `read` gives once it is not `before` any more and stays: tritonserver answers first, then counts."""
    deadline, last, now = time.monotonic() + 20, before, read()
    while time.monotonic() < deadline and (now == before or now != last):
        time.sleep(0.1)
        last, now = now, read()
    return now


def save_graph(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, tuple[str, list[int | str]]],
    outputs: dict[str, tuple[str, list[int | str]]],
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> Path:
    """Write an ONNX file; inputs and outputs are name -> (numpy dtype, shape)."""
    import numpy as np
    from onnx import helper

    def info(tensors: dict[str, tuple[str, list[int | str]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in tensors.items()
        ]

    graph = helper.make_graph(list(nodes), "graph", info(inputs), info(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def save_doubling_graph(
    path: Path, *, batch: int | str = "batch", width: int | str = 4, opset: int = 17, ir_version: int = 8
) -> Path:
    """Write the graph Y = X + X for FP32 of shape [batch, width]."""
    from onnx import helper

    shape: dict[str, tuple[str, list[int | str]]] = {"X": ("float32", [batch, width])}
    nodes = [helper.make_node("Add", ["X", "X"], ["Y"])]
    return save_graph(path, nodes, shape, {"Y": shape["X"]}, opset=opset, ir_version=ir_version)


def write_config(
    model: Path,
    *,
    backend: str = "onnxruntime",
    max_batch_size: int = 8,
    data_type: str = "TYPE_FP32",
    dims: str = "4",
    input_name: str = "X",
    of_output: str = "",
    instances: str = "count: 1 kind: KIND_CPU",
    more: str = "",
) -> Path:
    """Write the config.pbtxt of a model with the input X and the output Y, and return the model's directory."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.pbtxt").write_text(
        f"""backend: "{backend}"
max_batch_size: {max_batch_size}
input {{ name: "{input_name}" data_type: {data_type} dims: [ {dims} ] }}
output {{ name: "Y" data_type: {data_type} dims: [ {dims} ] {of_output} }}
instance_group {{ {instances} }}
{more}
"""
    )
    return model


def add_doubling_model(model: Path, **config: Any) -> Path:
    """Write a working model: Y = X + X by the onnxruntime backend."""
    save_doubling_graph(write_config(model, **config) / "1" / "model.onnx")
    return model


def add_python_model(model: Path, code: str = ECHO, **config: Any) -> Path:
    """Write a model of the Python backend; by default it answers with its input."""
    write_config(model, backend="python", **config)
    (model / "1").mkdir()
    (model / "1" / "model.py").write_text(code)
    return model


def add_ensemble(
    model: Path,
    *,
    member: str,
    max_batch_size: int = 8,
    data_type: str = "TYPE_FP32",
    dims: str = "4",
    tensor: str = "X",
) -> Path:
    """Write an ensemble of one member."""
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(
        ENSEMBLE.format(member=member, max_batch_size=max_batch_size, data_type=data_type, dims=dims, tensor=tensor)
    )
    return model


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 20) -> bool:
    """Return whether the condition became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def find_processes(repository: Path) -> list[psutil.Process]:
    """Return every process that serves this repository: supervisor, tritonserver and stubs."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        line = " ".join(process.info["cmdline"] or [])
        serves = "tritonserver" in line or "triton_python_backend_stub" in line
        if serves and str(repository) in line and process.pid != os.getpid():
            found.append(process)
    return found


def find_leftovers(identifier: str) -> list[Path]:
    """Return the shared memory and the temporary directories of one server."""
    import tempfile

    return [
        *Path("/dev/shm").glob(f"{identifier}*"),
        *Path(tempfile.gettempdir()).glob(f"{identifier}*"),
    ]
