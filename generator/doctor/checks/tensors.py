"""Inputs and outputs of one configuration, by the rules of core's ValidateModelIOConfig."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from generator.doctor.finding import Finding, in_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.doctor.repository import ConfiguredModel

# Backends that fill in what a configuration leaves out, unless --disable-auto-complete-config is given.
COMPLETED = {"onnxruntime", "tensorrt", "openvino", "python", "pytorch", "tensorflow"}


def check_tensors(model: ConfiguredModel, backend: str) -> Iterator[Finding]:
    """Check every input and output for itself."""
    config = model.config
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for index, tensor in enumerate(tensors):
            yield from _check_tensor(model, kind, index, tensor, backend)


def _check_tensor(model: ConfiguredModel, kind: str, index: int, tensor: Any, backend: str) -> Iterator[Finding]:
    def found(rule: str, *field: str) -> Finding:
        return in_config(model, rule, kind, index, *field, kind=kind, tensor=tensor.name)

    if not tensor.name:
        yield found("tensor-name-missing")
    if not tensor.data_type and backend not in COMPLETED:
        yield found("tensor-data-type-missing")
    if not tensor.dims and backend not in COMPLETED:
        yield found("tensor-dims-missing")
    if _has_invalid(tensor.dims):
        yield found("tensor-dim-invalid", "dims")
    if tensor.HasField("reshape") and (rule := _find_reshape_fault(tensor, batched=model.config.max_batch_size > 0)):
        yield found(rule, "reshape")
    if kind == "input" and tensor.format and len(tensor.dims) != 3:
        yield found("tensor-format-dims", "format")
    if (tensor.is_shape_tensor or tensor.is_non_linear_format_io) and backend != "tensorrt":
        yield found("tensor-only-tensorrt")
    elif tensor.is_non_linear_format_io and len(tensor.dims) != 3:
        yield found("tensor-non-linear-dims", "dims")


def _has_invalid(dims: Sequence[int]) -> bool:
    return any(size == 0 or size < -1 for size in dims)


def _find_reshape_fault(tensor: Any, *, batched: bool) -> str | None:
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    if not shape and not batched:
        return "reshape-empty"
    if _has_invalid(shape):
        return "reshape-dim-invalid"
    if shape and dims.count(-1) != shape.count(-1):
        # a size that is whole on one side and open on the other differs, too; core says so first
        return "reshape-variable-dims" if -1 in dims and -1 in shape else "reshape-size"
    return None if _sizes_between_variables(dims) == _sizes_between_variables(shape) else "reshape-size"


def _sizes_between_variables(dims: Sequence[int]) -> list[int]:
    """Return the numbers of elements before, between and behind the variable dimensions."""
    parts: list[list[int]] = [[]]
    for size in dims:
        if size == -1:
            parts.append([])
        else:
            parts[-1].append(size)
    return [math.prod(part) for part in parts]
