"""OnnxModel: a file that the chain has looked into. Names, data types and shapes are always read back from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.files import ONNX, hash_file, name_kind
from generator.tensor import Tensor, from_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

# onnxruntime's words for an operator that it does not have.
_UNKNOWN_OPERATOR = re.compile(r"(\S*):(\w+)\(-?\d+\) is not a registered function/op")
# Their initializers are weights: an infinity elsewhere may be meant, as the mask before a Softmax or a bound of a Clip.
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization"})
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX file with one input; it and all outputs have the batch first.

    `low_precisions` are those of `find_low_precisions`.
    """

    path: Path
    input: Tensor
    outputs: tuple[Tensor, ...]
    opset: int
    node_count: int
    sha256: str
    low_precisions: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """What it holds: fp8 or int8 where it quantises, else bf16 or fp16 where its weights do, else fp32."""
        return self.low_precisions[0] if self.low_precisions else "fp32"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The input, as what has several calls them."""
        return (self.input,)

    @property
    def output(self) -> Tensor:
        """The only output; ValueError if there are several."""
        (output,) = self.outputs
        return output


def read_onnx(path: Path) -> OnnxModel:
    """Look into a file: its only input, its outputs, opset, hash. Weights are not loaded.

    Raises:
        SourceError: Not ONNX, or not one input.
    """
    return describe_graph(load_proto(path, weights=False), path)


def describe_graph(model: onnx.ModelProto, path: Path) -> OnnxModel:
    """Return what `read_onnx` does, for a graph that is of the file `path`.

    Raises:
        SourceError: Not one input.
    """
    inputs = graph_inputs(model)
    if len(inputs) != 1:
        msg = f"{path} has inputs {[tensor.name for tensor in inputs]}, one image input was expected"
        raise SourceError(msg, hint="cut the graph to one input, e.g. with onnx.utils.extract_model")
    return OnnxModel(
        path=path,
        input=_tensor(inputs[0], path),
        outputs=tuple(_tensor(output, path) for output in model.graph.output),
        opset=default_opset(model),
        node_count=len(model.graph.node),
        sha256=hash_file(path),
        low_precisions=find_low_precisions(model),
    )


def image_axes(model: OnnxModel) -> tuple[str, tuple[int, int]]:
    """Return the layout, "NCHW" or "NHWC", and (height, width) of the image input; -1 where they are not fixed.

    Raises:
        SourceError: The input is not a batch of images with three channels or one.
    """
    shape = model.input.shape
    for channels in (3, 1):
        if len(shape) == 4 and shape[1] == channels:
            return "NCHW", (shape[2], shape[3])
        if len(shape) == 4 and shape[3] == channels:
            return "NHWC", (shape[1], shape[2])
    msg = f"{model.path}: input {model.input.name} has shape {list(shape)}, [batch, 3, height, width] was expected"
    raise SourceError(msg, hint="the input must be a batch of images with three channels, or with one")


def load_proto(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Return the parsed file, with its external data unless `weights` is false.

    Raises:
        SourceError: Absent, not ONNX, or external data missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        # said outright: onnx would take the name's ending for the format, and .json for text
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise SourceError(msg, hint="give the path of an ONNX file") from error
    except DecodeError as error:
        _refuse_other_kind(path)
        msg = f"{path} is not an ONNX file: {error}"
        raise SourceError(msg, hint="export it again; it may be cut off, or of another format") from error
    if not model.graph.node or not model.graph.output:
        _refuse_other_kind(path)
        msg = f"{path} holds no graph: not an ONNX file, or an empty one"
        raise SourceError(msg, hint="export it again; it may be cut off, or of another format")
    missing = [name for name in external_data_files(model) if not (path.parent / name).is_file()]
    if missing:
        msg = f"{path} keeps weights in {', '.join(missing)}, which is not beside it"
        raise SourceError(msg, hint=f"copy {missing[0]} into {path.parent}")
    if weights:
        _load_linked_data(model, path.parent)
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _load_linked_data(model: onnx.ModelProto, folder: Path) -> None:
    """Load the weights that lie behind a symbolic link, as in Hugging Face's cache: onnx refuses these."""
    from onnx.external_data_helper import load_external_data_for_tensor

    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and "/" not in entry.value and (folder / entry.value).is_symlink():
                file = (folder / entry.value).resolve()
                entry.value = file.name
                load_external_data_for_tensor(tensor, str(file.parent))
                tensor.data_location = tensor.DEFAULT
        if tensor.data_location == tensor.DEFAULT:
            del tensor.external_data[:]


def _refuse_other_kind(path: Path) -> None:
    kind, hint = name_kind(path)
    if kind not in ("", ONNX):
        msg = f"{path} is {kind}; an ONNX file was expected"
        raise SourceError(msg, hint=hint)


def external_data_files(model: onnx.ModelProto) -> list[str]:
    """Return the names of the files beside the model that hold its weights, sorted."""
    found: set[str] = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            found.update(entry.value for entry in tensor.external_data if entry.key == "location")
    return sorted(found)


def find_low_precisions(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return what a graph holds below FP32, of fp8, int8, bf16 and fp16 in this order; the weights are not needed."""
    from onnx import TensorProto

    types = {tensor.data_type for tensor in model.graph.initializer}
    quantizes = False
    for node in model.graph.node:
        quantizes = quantizes or node.op_type in (QUANTIZE, DEQUANTIZE)
        for attribute in node.attribute:
            if node.op_type == "Constant":
                types.add(attribute.t.data_type)
            elif (node.op_type, attribute.name) in ((QUANTIZE, "output_dtype"), ("Cast", "to")):
                types.add(attribute.i if attribute.i != TensorProto.FLOAT16 else 0)  # a Cast alone makes no FP16 graph
    fp8 = quantizes and TensorProto.FLOAT8E4M3FN in types
    found = {
        "fp8": fp8,
        "int8": quantizes and not fp8,
        "bf16": TensorProto.BFLOAT16 in types,
        "fp16": TensorProto.FLOAT16 in types,
    }
    return tuple(name for name, holds in found.items() if holds)


def broken_weights(model: onnx.ModelProto) -> list[str]:
    """Return the initializers that hold NaN, or infinity as the weights of a layer; the weights must be loaded."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    weights = {name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input}
    broken = []
    for tensor in model.graph.initializer:
        if tensor.data_type in floats:
            values = numpy_helper.to_array(tensor)
            if np.isnan(values).any() or (tensor.name in weights and not np.isfinite(values).all()):
                broken.append(tensor.name)
    return broken


def graph_inputs(model: onnx.ModelProto) -> list[Any]:
    """Return the real inputs: old files list their weights as inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [tensor for tensor in model.graph.input if tensor.name not in weights]


def stated_license(model: onnx.ModelProto) -> str:
    """Return the license that the file's metadata state; empty where they state none."""
    return next((entry.value for entry in model.metadata_props if entry.key == "license"), "")


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def open_onnx(
    path: Path,
    *,
    as_served: bool = False,
    more_inputs: Mapping[str, NDArray[Any]] | None = None,
    tensors: Sequence[str] = (),
    threads: int = 0,
) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return a function that runs the only input through the graph on the CPU and returns the outputs by name.

    `more_inputs` are what further inputs get for each image. With `tensors` a copy in memory is run that answers these
    inner ones, too. It runs in so many `threads`, which sleep between two runs; by default in one for each core.

    Q/DQ are computed as they stand, which TensorRT comes nearest to; `as_served` computes in integers as a server does.
    Of a BF16 graph a copy cast to FP32 is run: onnxruntime has no BF16 convolutions on the CPU.

    Raises:
        SourceError: onnxruntime cannot load the file, or (from the returned function) cannot run it; in its own words.
    """
    import numpy as np
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.InvalidArgument, state.NotImplemented,
                state.NoSuchFile, state.RuntimeException)  # fmt: skip
    silent = 4  # what goes wrong is raised, and need not be on stderr as well
    options, run_options = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = run_options.log_severity_level = silent
    if threads:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not as_served:  # else onnxruntime quantizes the biases of convolutions too, which TensorRT leaves in float
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(_runnable(path, tensors), options, providers=["CPUExecutionProvider"])
    except failures as error:
        if unknown := _UNKNOWN_OPERATOR.search(str(error)):
            domain, operator = unknown.groups()
            node = _find_node(load_proto(path, weights=False), domain, operator)
            msg = (
                f"{path} has the operator {operator} of the domain {domain or 'ai.onnx'}{node}, which onnxruntime lacks"
            )
            raise SourceError(msg, hint="export it again with ONNX's standard operators only") from error
        msg = f"onnxruntime cannot load {path}: {' '.join(str(error).split())}"
        raise SourceError(msg, hint="check it with onnx.checker.check_model(path, full_check=True)") from error
    more = dict(more_inputs or {})
    name = next(given.name for given in session.get_inputs() if given.name not in more)
    outputs = [output.name for output in session.get_outputs()]

    def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        try:
            further = {key: np.repeat(row[None], len(batch), axis=0) for key, row in more.items()}
            values = session.run(None, {name: batch, **further}, run_options)
        except failures as error:
            msg = f"onnxruntime cannot run {path.name}: {' '.join(str(error).split())}"
            raise SourceError(msg, hint="look at the node it names; netron shows the graph") from error
        return dict(zip(outputs, values, strict=True))

    return run


def _runnable(path: Path, tensors: Sequence[str]) -> str | bytes:
    """Return what onnxruntime is given: the file, or a copy, in FP32 where it has no kernels, or with more outputs."""
    from onnx import ValueInfoProto

    has_bf16 = "bf16" in find_low_precisions(load_proto(path, weights=False))
    if not has_bf16 and not tensors:
        return str(path)
    proto = load_proto(path)
    if has_bf16:
        from generator.graph.as_is import cast_to_fp32

        proto = cast_to_fp32(proto)
    proto.graph.output.extend(ValueInfoProto(name=name) for name in tensors)
    return proto.SerializeToString()


def _find_node(model: onnx.ModelProto, domain: str, operator: str) -> str:
    """Say which is the first node of an operator, in brackets; empty where it is inside another node's graph."""
    standard = ("", "ai.onnx")
    for node in model.graph.node:
        if node.op_type == operator and (node.domain == domain or {node.domain, domain} <= set(standard)):
            return f" (node {node.name or node.output[0]})"
    return ""


def run_graph(
    model: OnnxModel, pixels: NDArray[np.uint8], *, batch: int = 8, as_served: bool = False
) -> dict[str, NDArray[Any]]:
    """Run the graph on the CPU in batches of `batch` and return each output for all pixels, N rows."""
    import numpy as np

    run = open_onnx(model.path, as_served=as_served)
    parts = [run(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tensor(info: Any, path: Path) -> Tensor:
    kind = info.type.tensor_type
    try:
        data_type = from_onnx(kind.elem_type)
    except KeyError as error:
        msg = f"{path}: tensor {info.name} has element type {kind.elem_type}, which Triton cannot carry"
        raise SourceError(msg, hint="make it FP32, or UINT8 for raw pixels") from error
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return Tensor(name=info.name, data_type=data_type, shape=shape)
