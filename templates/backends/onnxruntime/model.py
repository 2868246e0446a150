"""Triton's `onnxruntime` backend in Python, for a tritonserver that has no native one.

Triton takes `<backend-directory>/onnxruntime/model.py` for each model whose config.pbtxt says `backend: "onnxruntime"`,
so the same repository runs here and, with the native backend, in the stock container.

Read from config.pbtxt: `default_model_filename` (else model.onnx), `max_batch_size`, inputs and outputs, the number of
instances, and the native backend's parameters `intra_op_thread_count`, `inter_op_thread_count` and `execution_mode`.
Graphs run on the CPU.

The requests of one execute run as one batch, and the rows of its outputs go back to the requests they came from.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

# What a run raises when the request is at fault, and what it raises otherwise.
_REQUEST_ERRORS = (ort_errors.InvalidArgument, ValueError)
_RUN_ERRORS = (*_REQUEST_ERRORS, ort_errors.Fail, ort_errors.RuntimeException, ort_errors.NotImplemented, MemoryError)
_LOAD_ERRORS = (
    *_RUN_ERRORS,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
)

_GRAPH_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


class TritonPythonModel:
    """One instance of one model: a session of onnxruntime and the names and shapes that it expects."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Return the configuration as it is: Triton does not say here where the graph lies, so nothing can be read."""
        return auto_complete_model_config

    def initialize(self, args):
        """Load the graph and compare it with the configuration; every disagreement is named in one exception."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.batched = int(config["max_batch_size"]) > 0
        filename = config.get("default_model_filename") or "model.onnx"
        graph_path = Path(args["model_repository"], args["model_version"], filename)
        if not graph_path.is_file():
            raise pb_utils.TritonModelException(f"unable to find '{graph_path}' for model '{self.name}'")

        instances = max(1, sum(int(group.get("count", 1)) or 1 for group in config.get("instance_group", [])))
        options = make_session_options(config.get("parameters", {}), instances, model=self.name)
        try:
            self.session = onnxruntime.InferenceSession(graph_path, options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            words = f"onnxruntime {onnxruntime.__version__} cannot load '{graph_path}' for model '{self.name}': {error}"
            raise pb_utils.TritonModelException(words) from error

        self.input_shapes = {tensor.name: to_dims(tensor.shape) for tensor in self.session.get_inputs()}
        self.outputs = [tensor["name"] for tensor in config["output"]]
        problems = [
            *compare(config["input"], self.session.get_inputs(), batched=self.batched, model=self.name, kind="input"),
            *compare(
                config["output"], self.session.get_outputs(), batched=self.batched, model=self.name, kind="output"
            ),
        ]
        if problems:
            raise pb_utils.TritonModelException("; ".join(problems))
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']}: onnxruntime {onnxruntime.__version__}, "
            f"{options.intra_op_num_threads} intra-op and {options.inter_op_num_threads} inter-op threads"
        )

    def execute(self, requests):
        """Answer every request; one that does not fit the graph gets its own error and leaves the others alone."""
        responses = [None] * len(requests)
        groups = {}  # requests that may share a batch: same shape of a row
        for index, request in enumerate(requests):
            feed = {name: self._read(request, name) for name in self.input_shapes}
            problem = self._find_problem(feed)
            if problem:
                responses[index] = make_error(problem, pb_utils.TritonError.INVALID_ARG)
                continue
            key = tuple(array.shape[1:] for array in feed.values()) if self.batched else index
            groups.setdefault(key, []).append((index, feed))
        for group in groups.values():
            self._run(group, requests, responses)
        return responses

    def finalize(self):
        """Release the graph."""
        self.session = None

    def _read(self, request, name):
        """Return the input as a view of the shared memory that it came in, or None."""
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def _find_problem(self, feed):
        """Return why one request cannot run, in words, or None."""
        missing = [name for name, array in feed.items() if array is None]
        if missing:
            return f"missing input {', '.join(map(repr, missing))} for model '{self.name}'"
        for name, array in feed.items():
            expected = self.input_shapes[name]
            if not fits(expected, array.shape):
                got = list(array.shape)
                return f"unexpected shape for input '{name}' for model '{self.name}': expected {expected}, got {got}"
        if self.batched and len({array.shape[0] for array in feed.values()}) > 1:
            rows = ", ".join(f"'{name}' has {array.shape[0]}" for name, array in feed.items())
            return f"the inputs of one request differ in batch size for model '{self.name}': {rows}"
        return None

    def _run(self, group, requests, responses):
        """Run the requests of `group` as one batch and put a response for each of them into `responses`."""
        wanted = [set(requests[index].requested_output_names()) for index, _ in group]
        names = [name for name in self.outputs if any(name in one for one in wanted)]
        feeds = [feed for _, feed in group]
        try:
            results = dict(zip(names, self.session.run(names, join(feeds)), strict=True))
        except _RUN_ERRORS as error:
            fault = isinstance(error, _REQUEST_ERRORS)
            code = pb_utils.TritonError.INVALID_ARG if fault else pb_utils.TritonError.INTERNAL
            problem = f"onnxruntime failed on model '{self.name}'{among(group)}: {error}"
            for index, _ in group:
                responses[index] = make_error(problem, code)
            return
        rows = [next(iter(feed.values())).shape[0] for feed in feeds] if self.batched else []
        bad = [name for name, array in results.items() if self.batched and array.shape[:1] != (sum(rows),)]
        start = 0
        for position, (index, _) in enumerate(group):
            if bad:
                problem = f"output '{bad[0]}' of model '{self.name}' has shape {list(results[bad[0]].shape)}: "
                problem += f"expected {sum(rows)} rows, one per row of the inputs"
                responses[index] = make_error(problem, pb_utils.TritonError.INTERNAL)
                continue
            stop = start + rows[position] if self.batched else None
            tensors = [
                pb_utils.Tensor(name, array[start:stop] if len(group) > 1 else array)
                for name, array in results.items()
                if name in wanted[position]
            ]
            responses[index] = pb_utils.InferenceResponse(output_tensors=tensors)
            start = stop


def make_session_options(parameters, instances, *, model):
    """Return the session's options: the cores are shared out among the instances of the model."""
    cores = len(os.sched_getaffinity(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    intra = read_count(parameters, "intra_op_thread_count", model=model)
    options.intra_op_num_threads = intra or max(1, cores // instances)
    options.inter_op_num_threads = read_count(parameters, "inter_op_thread_count", model=model) or 1
    if read_count(parameters, "execution_mode", model=model) == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    # A thread that spins for its next piece of work takes the core of another instance, or of the preprocessing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def read_count(parameters, key, *, model):
    """Return the parameter as a number; 0 where it is absent."""
    text = parameters.get(key, {}).get("string_value", "0").strip()
    if not text.isdecimal():
        raise pb_utils.TritonModelException(
            f"parameter '{key}' of model '{model}' is '{text}': expected a whole number, 0 or more"
        )
    return int(text)


def compare(configured, tensors, *, batched, model, kind):
    """Return what is wrong with the inputs or outputs of the configuration, one sentence each."""
    graph = {tensor.name: tensor for tensor in tensors}
    problems = []
    for tensor in configured:
        name = tensor["name"]
        if name not in graph:
            allowed = ", ".join(graph)
            problems.append(
                f"unexpected inference {kind} '{name}' for model '{model}', the graph's {kind}s are: {allowed}"
            )
            continue
        actual_type = _GRAPH_TYPES.get(graph[name].type, graph[name].type)
        if actual_type != tensor["data_type"]:
            problems.append(
                f"unexpected datatype {tensor['data_type']} for inference {kind} '{name}' of model '{model}', "
                f"the graph has {actual_type}"
            )
        problems += compare_dims(tensor, to_dims(graph[name].shape), batched=batched, model=model)
    if kind == "input":
        for name in sorted(set(graph) - {tensor["name"] for tensor in configured}):
            problems.append(f"the graph's input '{name}' is missing from the configuration of model '{model}'")
    return problems


def compare_dims(tensor, expected, *, batched, model):
    """Return at most one sentence: the rank, a fixed batch axis, or a dimension that differs."""
    dims = [int(dim) for dim in tensor.get("reshape", {}).get("shape", tensor["dims"])]
    where = f"model '{model}', tensor '{tensor['name']}'"
    full = [-1, *dims] if batched else dims
    note = " (an initial batch dimension because max_batch_size > 0, then dims)" if batched else ""
    if len(expected) != len(full):
        ranks = f"the graph has {len(expected)} dimensions (shape {expected})"
        return [f"{where}: {ranks} but the configuration specifies {len(full)}: {full}{note}"]
    if batched and expected[0] != -1:
        return [
            f"{where}: for max_batch_size > 0 the graph's first dimension must be dynamic, but its shape is {expected}"
        ]
    if any(-1 not in pair and pair[0] != pair[1] for pair in zip(expected, full, strict=True)):
        return [f"{where}: the graph has shape {expected} but the configuration specifies {full}{note}"]
    return []


def to_dims(shape):
    """Return the graph's shape with -1 for every dimension that is open."""
    return [dim if isinstance(dim, int) and dim >= 0 else -1 for dim in shape]


def fits(expected, shape):
    """Tell whether a tensor of this shape may be fed to the graph."""
    return len(expected) == len(shape) and all(e in (-1, s) for e, s in zip(expected, shape, strict=True))


def join(feeds):
    """Return one feed for all requests; a single one goes through without a copy."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def among(group):
    """Return how many requests shared the run that failed."""
    return f" in a batch of {len(group)} requests" if len(group) > 1 else ""


def make_error(message, code):
    """Return a response that carries an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
