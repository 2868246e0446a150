"""Inputs, outputs and profiles of TensorRT's ICudaEngine as values of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.plan.profiles import OptimizationProfile, ShapeRange
from generator.runtime.shapes import EngineTensor
from generator.tensor import from_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.tensor import DataType

__all__ = ["data_type_of", "read_profiles", "read_tensors"]

# TensorRT's name of a data type -> ONNX's number. FP8, INT4 and FP4 exist inside an engine only.
_ONNX_BY_TENSORRT = {
    "FLOAT": 1, "UINT8": 2, "INT8": 3, "INT32": 6, "INT64": 7, "BOOL": 9, "HALF": 10, "BF16": 16,
}  # fmt: skip


def data_type_of(name: str) -> DataType | None:
    """Return our row for TensorRT's name of a data type; None for one that only lives inside an engine."""
    number = _ONNX_BY_TENSORRT.get(name)
    return None if number is None else from_onnx(number)


def read_tensors(path: Path, trt: Any, engine: Any) -> tuple[tuple[EngineTensor, ...], tuple[EngineTensor, ...]]:
    """Return inputs and outputs in the engine's order.

    Raises:
        PlanError: One has a data type that only lives inside an engine.
    """
    inputs: list[EngineTensor] = []
    outputs: list[EngineTensor] = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        kind = engine.get_tensor_dtype(name).name
        data_type = data_type_of(kind)
        if data_type is None:
            msg = f"{path}: tensor {name} is {kind}, which Triton cannot carry"
            raise PlanError(msg, hint="build the plan from a graph with UINT8 or FP32 input and FP32 output")
        tensor = EngineTensor(name=name, data_type=data_type, shape=_edges(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(tensor)
    return tuple(inputs), tuple(outputs)


def read_profiles(path: Path, engine: Any, inputs: Sequence[EngineTensor]) -> tuple[OptimizationProfile, ...]:
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
                msg = f"{path}: profile {index} has no shapes for input {tensor.name}"
                raise PlanError(msg, hint="build the plan again: trtgen build-plan model.onnx")
            shapes[tensor.name] = ShapeRange(min=ranges[0], opt=ranges[1], max=ranges[2])
        profiles.append(OptimizationProfile(shapes=shapes))
    return tuple(profiles)


def _edges(dims: Any) -> tuple[int, ...]:
    return tuple(int(edge) for edge in dims)
