"""Inputs, outputs and profiles of TensorRT's networks and engines as values of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.plan.header import BUILD_PLAN
from generator.tensor import Profile, ShapeRange, Tensor, from_tensorrt

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_tensor(where: object, name: str, data_type: Any, dims: Any) -> Tensor:
    """Return a tensor from its parts; `where` is what an error says first, such as the plan's path.

    Raises:
        PlanError: Its data type only lives inside an engine.
    """
    try:
        return Tensor(name=name, data_type=from_tensorrt(data_type.name), shape=_edges(dims))
    except KeyError as error:
        msg = f"{where}: tensor {name} is {data_type.name}, which Triton cannot carry"
        raise PlanError(msg, hint="build the plan from a graph with UINT8 or FP32 input and FP32 output") from error


def read_tensors(where: object, trt: Any, engine: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return inputs and outputs of an ICudaEngine in its order.

    Raises:
        PlanError: One has a data type that only lives inside an engine.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        tensor = read_tensor(where, name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(tensor)
    return tuple(inputs), tuple(outputs)


def read_profiles(where: object, engine: Any, inputs: Sequence[Tensor]) -> tuple[Profile, ...]:
    """Return the profiles; a static engine has one, in which min, opt and max are equal.

    Raises:
        PlanError: A profile lacks a dynamic input.
    """
    profiles = []
    for index in range(max(engine.num_optimization_profiles, 1)):
        shapes = {}
        for tensor in inputs:
            if -1 not in tensor.shape:
                shapes[tensor.name] = ShapeRange(min=tensor.shape, opt=tensor.shape, max=tensor.shape)
                continue
            ranges = [_edges(one) for one in engine.get_tensor_profile_shape(tensor.name, index)]
            if len(ranges) != 3:
                msg = f"{where}: profile {index} has no shapes for input {tensor.name}"
                raise PlanError(msg, hint="build the plan again", command=BUILD_PLAN)
            shapes[tensor.name] = ShapeRange(min=ranges[0], opt=ranges[1], max=ranges[2])
        profiles.append(shapes)
    return tuple(profiles)


def _edges(dims: Any) -> tuple[int, ...]:
    return tuple(int(edge) for edge in dims)
