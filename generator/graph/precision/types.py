"""The element type of every tensor of a graph: onnx knows its own operators, onnxruntime those of other domains too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

_LARGE = 1024  # numbers; the constants that shapes are made of have fewer


def infer_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph with the types and shapes that onnx infers, and without its weights: it may have above 2 GB."""
    import onnx

    graph = model.graph
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    slim.graph.node.extend(graph.node)
    slim.graph.input.extend(graph.input)
    slim.graph.output.extend(graph.output)
    slim.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        stub = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        slim.graph.initializer.append(stub if count > _LARGE else tensor)
    return onnx.shape_inference.infer_shapes(slim).graph


def infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return onnx's number of each tensor's element type, as far as it can be told."""
    graph = infer_graph(model)
    types = {
        info.name: info.type.tensor_type.elem_type
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.elem_type
    }
    made = [output for node in graph.node for output in node.output if output]
    missing = [output for output in made if output not in types]
    return {**types, **_ask_onnxruntime(model, missing)} if missing else types


def state_types(model: onnx.ModelProto) -> None:
    """Write types and shapes of all tensors into the graph, in place: the types also where onnx does not know them."""
    import onnx

    inferred = infer_graph(model)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.value_info)
    known = {info.name for info in (*inferred.input, *inferred.value_info, *inferred.output)}
    for name, number in infer_types(model).items():
        if name not in known:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, number, None))


def _ask_onnxruntime(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, int]:
    """Load the graph with the tensors as further outputs; empty where onnxruntime cannot, which others will say."""
    import onnx
    import onnxruntime
    from google.protobuf.message import EncodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = {
        "tensor(float)": onnx.TensorProto.FLOAT,
        "tensor(float16)": onnx.TensorProto.FLOAT16,
        "tensor(double)": onnx.TensorProto.DOUBLE,
        "tensor(int64)": onnx.TensorProto.INT64,
        "tensor(int32)": onnx.TensorProto.INT32,
        "tensor(bool)": onnx.TensorProto.BOOL,
    }
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented, EncodeError, ValueError):
        return {}
    found = {output.name: names.get(output.type, 0) for output in session.get_outputs()}
    return {name: found[name] for name in tensors if found.get(name)}
