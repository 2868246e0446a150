"""ModelSpec and Network -> OnnxModel: uint8 NHWC pixels in, FP32 scores out, any batch up to the maximum.

    PIXELS uint8 [batch, H, W, 3] -> cast -> transpose -> scale and shift -> network -> activation -> PROBABILITIES

The cast comes first because TensorRT takes UINT8 only as a network input that is cast at once. Scale and shift are
(x / 255 - mean) / std written as one multiplication and one addition.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError
from generator.graph.batches import ROW_TOLERANCES, prove_dynamic_batch
from generator.graph.model import OnnxModel, load_proto, read_onnx
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from generator.sources import Network
    from generator.spec.model import ModelSpec

MODEL_FILE = "model.onnx"
# protobuf refuses messages of 2 GiB; above this the weights travel in a file beside the model
_MAX_SINGLE_FILE_BYTES = 1_900_000_000


def make_graph(spec: ModelSpec, network: Network) -> tuple[onnx.ModelProto, list[str]]:
    """Return the network's graph with pixels in front and nothing behind it, and what the target changed in the user's.

    Raises:
        ExportError: The exporter fails, or the opset is too new for the target.
    """
    if network.module is not None:
        from generator.graph.torch_module import export_module

        return export_module(spec, network.module, network.recipe, network.outputs), []
    from generator.graph.wrap import wrap_file

    assert network.onnx is not None, "a network has a module or a file"
    graph = load_proto(network.onnx) if network.graph is None else copy.deepcopy(network.graph)
    return wrap_file(spec, graph, network.recipe, path=network.onnx)


def export_onnx(
    spec: ModelSpec, network: Network, proto: onnx.ModelProto, answers: Mapping[str, NDArray[Any]], folder: Path
) -> tuple[OnnxModel, Any]:
    """Let the task finish the graph `proto` and write it as `folder`/model.onnx; return it and what the task did.

    It is checked, loaded in onnxruntime, and its batch is proved to be dynamic. `answers` are the source's own.

    Raises:
        ExportError: The graph is invalid, its batch is baked in, or the source contradicts the spec.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    task = find_task(spec.task)
    head = task.finish_graph(spec, network, proto, answers)
    _drop_weight_copies(proto.graph)
    _strip_traces(proto)
    _save(proto, path)
    _check(path)
    model = read_onnx(path)
    prove_dynamic_batch(
        model,
        maximum=spec.batch.max,
        tolerance=ROW_TOLERANCES[model.precision],
        is_reordered=task.is_reordered,
    )
    return model, head


def _drop_weight_copies(graph: onnx.GraphProto) -> None:
    """Let layers read a weight instead of its copies, which PyTorch's older exporter writes for weights that are equal.

    TensorRT 8.6 takes a copied bias for a computed one, with which it has no INT8 convolution.
    """
    from onnx import compose

    weights = {tensor.name for tensor in graph.initializer}
    outputs = {tensor.name for tensor in graph.output}
    copied: dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type != "Identity" or node.output[0] in outputs:
            continue
        weight = copied.get(node.input[0], node.input[0])
        if weight in weights:
            copied[node.output[0]] = weight
            graph.node.remove(node)
    known = [info for info in graph.value_info if info.name not in copied]
    del graph.value_info[:]
    graph.value_info.extend(known)
    # an empty prefix changes no name; only the map does, in the graphs inside nodes, too
    compose.add_prefix_graph(graph, "", inplace=True, name_map=copied)


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Take out what the exporter notes about its own run: paths of this machine, and different bytes each time."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    tensors: list[Any] = [*proto.graph.initializer, *proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    for tensor in tensors:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _save(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    weight_bytes = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weight_bytes > _MAX_SINGLE_FILE_BYTES:
        onnx.save(proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")
        path.with_name(f"{path.name}.data").chmod(0o644)  # onnx's 600 would keep the container's user out
    else:
        onnx.save(proto, path)


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        msg = f"{path.name} is not a valid ONNX graph: {' '.join(str(error).split())}"
        raise ExportError(msg, hint="this source cannot be served as it is; export it with another opset") from error
