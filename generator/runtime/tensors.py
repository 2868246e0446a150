"""Inputs, outputs and profiles of TensorRT's networks and engines as values of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..tensor import Profile, ShapeRange, Tensor, from_tensorrt
from .device import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .shapes import Shape


def read_tensor(name: str, data_type: Any, dims: Any, owner: str) -> Tensor:
    """Return an input or output from its parts, as networks and engines have them; `owner` is for the message.

    Raises:
        EngineError: Its data type only lives inside an engine.
    """
    try:
        return Tensor(name=name, data_type=from_tensorrt(data_type.name), shape=edges_of(dims))
    except KeyError as error:
        raise EngineError(f"unsupported datatype {data_type.name} of tensor '{name}' for {owner}") from error


def read_tensors(trt: Any, engine: Any, owner: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return inputs and outputs of an ICudaEngine in its order.

    Raises:
        EngineError: One has a data type that only lives inside an engine.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        tensor = read_tensor(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name), owner)
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(tensor)
    return tuple(inputs), tuple(outputs)


def read_profiles(engine: Any, inputs: Sequence[Tensor]) -> tuple[Profile, ...]:
    """Return the profiles; a static engine has one, in which min, opt and max are equal."""

    def read_range(tensor: Tensor, number: int) -> ShapeRange:
        if -1 not in tensor.shape:
            return ShapeRange(min=tensor.shape, opt=tensor.shape, max=tensor.shape)
        least, best, most = map(edges_of, engine.get_tensor_profile_shape(tensor.name, number))
        return ShapeRange(min=least, opt=best, max=most)

    count = max(engine.num_optimization_profiles, 1)
    return tuple({tensor.name: read_range(tensor, number) for tensor in inputs} for number in range(count))


def edges_of(dims: Any) -> Shape:
    """Return TensorRT's dimensions as numbers."""
    return tuple(int(edge) for edge in dims)
