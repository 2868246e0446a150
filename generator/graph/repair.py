"""A user's ONNX file as it was found -> the graph of it that can be served.

Each repair is said in words, and proved: the source's own answers are those of the untouched file, image by image, and
the gate compares everything that follows with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.graph.free_batch import free_batch
from generator.graph.model import default_opset, graph_inputs, image_axes, load_proto
from generator.graph.opset import raise_old_opset
from generator.graph.shapes import learn_shapes
from generator.graph.size_input import make_size, take_size_input
from generator.graph.wrap import rename_tensors
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    from numpy.typing import NDArray

    from generator.graph.model import OnnxModel
    from generator.graph.shapes import Shapes
    from generator.spec.model import ModelSpec
    from generator.tensor import Tensor

_NAMED_NODES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """`graph` can be served; `outputs` are what the task takes of it; `repairs` say how it differs from the file."""

    graph: onnx.ModelProto
    outputs: tuple[Tensor, ...]
    repairs: tuple[str, ...]


def repair_graph(
    spec: ModelSpec, found: OnnxModel, image: Sequence[int], session: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
) -> Repaired:
    """Return what is served of the file `found`; `session` runs it.

    `image` is the whole shape of its input: the file's own batch, or 1 where that is free, and the recipe's size.

    Raises:
        SourceError: It cannot be repaired: an operator's old version cannot be converted, or no output is the task's.
    """
    model = load_proto(found.path)
    repairs: list[str] = []
    if listed := _unlist_weights(model):
        repairs.append(f"{listed} weights that the file lists as inputs are constants")
    repairs += _fix_size_input(model, found, image)
    shapes = learn_shapes(model, image)
    chosen = find_task(spec.task).choose_outputs(
        found.path, [shapes.complete(tensor) for tensor in found.outputs], spec
    )
    outputs = chosen.outputs
    if len(outputs) < len(model.graph.output):
        names = [tensor.name for tensor in outputs]
        _keep_outputs(model.graph, names)
        why = "as asked" if spec.output_tensor else chosen.why
        left_out = [tensor.name for tensor in found.outputs if tensor.name not in names]
        repairs.append(f"output {', '.join(names)} is served ({why}), {', '.join(left_out)} left out")
    opset = default_opset(model)
    model = raise_old_opset(model, found.path, shapes)
    if default_opset(model) != opset:
        repairs.append(f"opset {opset} is raised to {default_opset(model)}")
    repairs += _fix_size(model, image) if not spec.raw else []
    repairs += _free_batch(model, found, image, session)
    for tensor in outputs:
        repairs += _finish_output(model.graph, tensor, shapes)
    repairs += [
        f"{kind} {tensor.name} is {tensor.data_type.numpy}: cast {way} float32"
        for kind, way, tensors in (("input", "from", found.inputs), ("output", "to", outputs))
        for tensor in tensors
        if tensor.data_type.numpy in ("float16", "bfloat16", "float64")
    ]
    repairs += [chosen.reading] if chosen.reading else []
    return Repaired(graph=model, outputs=tuple(outputs), repairs=tuple(repairs))


def _unlist_weights(model: onnx.ModelProto) -> int:
    """Take weights out of the list of inputs, where IR versions before 4 want them; return how many there were."""
    inputs = graph_inputs(model)
    listed = len(model.graph.input) - len(inputs)
    if listed:
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 4)
    return listed


def _fix_size_input(model: onnx.ModelProto, found: OnnxModel, image: Sequence[int]) -> list[str]:
    from onnx import numpy_helper

    given = take_size_input(model)
    if given is None:
        return []
    height, width = image[2:] if image_axes(found)[0] == "NCHW" else image[1:3]
    constant = make_size(given, (height, width))
    model.graph.initializer.append(numpy_helper.from_array(constant[None], given.name))
    return [f"input {given.name} is a constant, {constant.tolist()}: the network's own width and height"]


def _keep_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Leave these outputs, and of nodes and weights what they need."""
    kept = [output for output in graph.output if output.name in names]
    del graph.output[:]
    graph.output.extend(kept)
    read = set(names)
    nodes = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            nodes.append(node)
            read.update(_read_by(node))
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, and the graphs inside it."""
    read = set(node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, attribute.g):
            read.update(output.name for output in graph.output)
            for inner in graph.node:
                read |= _read_by(inner)
    return read


def _fix_size(model: onnx.ModelProto, image: Sequence[int]) -> list[str]:
    dims = graph_inputs(model)[0].type.tensor_type.shape.dim
    free = [axis for axis in range(1, len(image)) if not dims[axis].HasField("dim_value")]
    for axis in free:
        dims[axis].dim_value = image[axis]
    return [f"the size of images is free: fixed to {list(image[1:])}"] if free else []


def _free_batch(
    model: onnx.ModelProto,
    found: OnnxModel,
    image: Sequence[int],
    session: Callable[[NDArray[Any]], dict[str, NDArray[Any]]],
) -> list[str]:
    """Make the batch free where it is fixed, or where two images at once are not answered with two rows."""
    fixed = found.input.shape[0] != -1
    if not fixed and _takes_two(found, image, session):
        return []
    changed = free_batch(model, image)
    for tensor in (graph_inputs(model)[0], *model.graph.output):
        if tensor.type.tensor_type.shape.dim:
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    if not fixed and not changed:
        return []  # the proof of the batch names the node
    del model.graph.value_info[:]
    shown = ", ".join(changed[:_NAMED_NODES]) + (
        f" and {len(changed) - _NAMED_NODES} more" if len(changed) > _NAMED_NODES else ""
    )
    return [f"the batch of {image[0]} is made free" + (f": rewritten are {shown}" if changed else "")]


def _takes_two(
    found: OnnxModel, image: Sequence[int], session: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
) -> bool:
    import numpy as np

    try:
        answers = session(np.zeros((2, *image[1:]), input_type(found)))
    except SourceError:
        return False
    return all(len(values) == 2 for values in answers.values() if values.ndim)


def input_type(found: OnnxModel) -> str:
    """Return the type of array that onnxruntime is given."""
    name = found.input.data_type.numpy
    return "float32" if name == "bfloat16" else name


def _finish_output(graph: onnx.GraphProto, wanted: Tensor, shapes: Shapes) -> list[str]:
    """Let the output have the shape that the task takes it in."""
    from onnx import helper

    (output,) = (one for one in graph.output if one.name == wanted.name)
    given = shapes.get(wanted.name) or tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim)
    kind = output.type.tensor_type.elem_type
    shape = ["batch", *(size if size > 0 else None for size in wanted.shape[1:])]
    if len(given) == len(wanted.shape):
        dims = output.type.tensor_type.shape.dim
        if len(dims) != len(given) or not all(dim.HasField("dim_value") for dim in dims[1:]):
            output.CopyFrom(helper.make_tensor_value_info(wanted.name, kind, shape))
        return []
    rename_tensors(graph, frozenset({wanted.name}))
    inner = output.name
    graph.node.append(helper.make_node("Flatten", [inner], [wanted.name], name=f"{wanted.name}_flat", axis=1))
    output.CopyFrom(helper.make_tensor_value_info(wanted.name, kind, shape))
    return [f"output {wanted.name} {['batch', *given[1:]]} is flattened to {['batch', *wanted.shape[1:]]}"]
