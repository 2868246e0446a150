"""The shapes of a graph's tensors, inferred by onnx without the weights' values."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from generator.graph.model import graph_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from generator.tensor import Tensor

# Shapes, axes and factors are smaller, weights are larger.
_LARGEST_VALUES = 64
# What exporters compute shapes with.
_ARITHMETIC = frozenset(
    {"Add", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather", "Greater",
     "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Range", "ReduceProd", "Reshape", "Shape", "Slice",
     "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which initializers of more than 64 values are inputs: small, and with the same shapes."""
    import onnx

    light = onnx.ModelProto(ir_version=max(model.ir_version, 8), opset_import=model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    graph.input.extend(tensor for tensor in model.graph.input if tensor.name not in weights)
    for name in large_weights(model):
        tensor = weights[name]
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        del weights[name]
    graph.initializer.extend(weights.values())
    return light


def large_weights(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of the initializers that `without_weights` makes inputs of."""
    for tensor in model.graph.initializer:
        if prod(tensor.dims) > _LARGEST_VALUES:
            yield tensor.name


class Shapes:
    """The shapes of a graph whose first input has the shape `image`, learned node by node in the graph's order.

    Where a shape is computed from shapes, as old exporters write it, the numbers are computed, too.
    """

    def __init__(self, model: onnx.ModelProto, image: Sequence[int]) -> None:
        from onnx import helper

        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, onnx.TensorProto] = {}
        for given in model.graph.input:
            self._types[given.name] = given.type
        for tensor in model.graph.initializer:
            self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            self.learn_value(tensor)
        first = graph_inputs(model)[0]
        self._types[first.name] = helper.make_tensor_type_proto(first.type.tensor_type.elem_type, image)

    def learn_value(self, tensor: onnx.TensorProto) -> None:
        """Keep a constant, as far as it is small enough to be a shape, and its shape."""
        from onnx import helper

        self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        if prod(tensor.dims) <= _LARGEST_VALUES and tensor.data_location != tensor.EXTERNAL:
            self._values[tensor.name] = tensor

    def knows_value(self, name: str) -> bool:
        """Say whether this tensor is a constant, or follows from shapes."""
        return name in self._values

    def read_value(self, name: str) -> list[int] | None:
        """Return the numbers of a constant, or of what follows from shapes; None where they are not known."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._values[name]).ravel().tolist() if name in self._values else None

    def get(self, name: str) -> tuple[int, ...] | None:
        """Return the whole shape of a tensor, None where it is not known."""
        kind = self._types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dims = kind.tensor_type.shape.dim
        return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None

    def complete(self, tensor: Tensor) -> Tensor:
        """Return an output with the shape that was inferred, where the file does not say all of it."""
        learned = self.get(tensor.name)
        if learned is None or (len(tensor.shape) == len(learned) and -1 not in tensor.shape[1:]):
            return tensor
        return replace(tensor, shape=(-1, *learned[1:]))

    def follow(self, node: onnx.NodeProto) -> None:
        """Learn what the outputs of a node are, whose inputs were learned before."""
        import onnx

        inputs = [name for name in node.input if name]
        if any(name not in self._types for name in inputs):
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(domain, 1), domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in inputs},
                {name: self._values[name] for name in inputs if name in self._values},
                opset_imports=[onnx.helper.make_opsetid(*entry) for entry in self._opsets.items()],
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError):
            return
        self._types.update(found)
        shapes = [self.get(name) for name in found]
        if any(shape is None or prod(shape) > _LARGEST_VALUES for shape in shapes):
            return
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            (name,) = node.output
            self._values[name] = node.attribute[0].t
        elif node.op_type in _ARITHMETIC:
            self._compute(node, inputs)

    def _compute(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        import numpy as np
        from onnx import numpy_helper
        from onnx.reference import ReferenceEvaluator

        if node.op_type == "Shape":
            if (shape := self.get(node.input[0])) is None:
                return
            given = {node.input[0]: np.empty(shape, np.bool_)}
        elif all(name in self._values for name in inputs):
            given = {name: numpy_helper.to_array(self._values[name]) for name in inputs}
        else:
            return
        values = ReferenceEvaluator(node, opsets=self._opsets).run(None, given)
        for name, value in zip(node.output, values, strict=True):
            self._values[name] = numpy_helper.from_array(np.asarray(value), name)


def learn_shapes(model: onnx.ModelProto, image: Sequence[int]) -> Shapes:
    """Return the shapes of the whole graph, where the first input has the shape `image`."""
    shapes = Shapes(model, image)
    for node in model.graph.node:
        shapes.follow(node)
    return shapes
