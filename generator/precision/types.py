"""The element type of every tensor of a graph: onnx knows its own operators, onnxruntime those of other domains too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

__all__ = ["infer_types", "state_types"]


def infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return onnx's number of each tensor's element type, as far as it can be told."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {
        info.name: info.type.tensor_type.elem_type
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.elem_type
    }
    made = [output for node in graph.node for output in node.output if output]
    missing = [output for output in made if output not in types]
    return {**types, **_ask_onnxruntime(model, missing)} if missing else types


def state_types(model: onnx.ModelProto) -> None:
    """Write into the graph the types of tensors that onnx itself does not know, in place."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {info.name for info in (*graph.input, *graph.value_info, *graph.output)}
    for name, number in infer_types(model).items():
        if name not in known:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, number, None))


def _ask_onnxruntime(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, int]:
    """Load the graph with the tensors as further outputs; empty where onnxruntime cannot, which others will say."""
    import onnx
    import onnxruntime
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
    except (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented):
        return {}
    found = {output.name: names.get(output.type, 0) for output in session.get_outputs()}
    return {name: found[name] for name in tensors if found.get(name)}
