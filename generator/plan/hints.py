"""What is known to help against what TensorRT says when it refuses a graph or does not build it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from generator.graph.as_is import NO_BIAS, SYMMETRIC

if TYPE_CHECKING:
    from collections.abc import Iterable

_NO_OPERATOR = (
    "TensorRT has no such operator: replace it where the model is made, cut it off the graph and do it after the plan, "
    "or serve this model with target: onnxruntime"
)
_MEMORY = "free GPU memory (nvidia-smi shows who has it), lower plan.workspace_mib, or build for a smaller batch.max"
_NO_KERNEL = (
    "raise plan.workspace_mib or leave it out; if it stays, this TensorRT cannot run that node: "
    "replace it, or keep it in FP32 (keep: in models.yaml)"
)
_NO_INT8_KERNEL = (
    "TensorRT 8.6 has no INT8 kernel for one of the quantised layers: make its bias a constant, quantise the "
    "output of a residual sum, or give the graph in FP32 and set precision: int8"
)
# The first pattern that is found wins: the special ones stand before the general ones.
_KNOWN = (
    (r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|Requested amount of GPU memory", _MEMORY),
    (r"insufficient memory|Failed to allocate|could not allocate", _MEMORY),
    (
        r"type Int32 but must have type|Quantized (bias|INT32)|int32.{0,40}(bias|DequantizeLinear)",
        NO_BIAS,
    ),
    (r"shiftIsAllZeros|[Zz]ero[- ]point is not supported|[Nn]on-?zero zero ?point", SYMMETRIC),
    (
        r"type UInt8 but must have type|UINT8.{0,60}(only supported|not supported|network input)",
        "TensorRT takes UINT8 only as an input that is cast at once: put the Cast directly behind the input",
    ),
    (
        r"must be of same type|have the same type|type mismatch|[Tt]ypes? .{0,40}do(es)? not match",
        "a strongly typed network mixes no types: convert the whole graph, as trtgen's precision: fp16 does",
    ),
    (
        r"build-time constant|must be an initializer|must be constant",
        "fold the constants: export with fixed sizes, or simplify the graph with onnxsim before",
    ),
    (r"[Pp]lugin not found|No importer registered|UNSUPPORTED_NODE|[Uu]nsupported operator", _NO_OPERATOR),
    (
        r"no optimization profile has been defined",
        "add a profile to plan.profiles",
    ),
    (
        r"MIN<=OPT<=MAX|static dimensions that don't match|in profile",
        "fix plan.profiles",
    ),
    (
        r"candidateRequirements\.empty",
        _NO_INT8_KERNEL,
    ),
    (
        r"no runners that implement|[Cc]ould not find any implementation|no implementation",
        _NO_KERNEL,
    ),
    (
        r"Unable to load library|[Cc]annot open shared object|builder_resource",
        "install tensorrt again: one of its libraries is missing or of another version",
    ),
    (
        r"driver version is insufficient|CUDA initialization failure",
        "update the driver: nvidia-smi must show a GPU and a CUDA version that this TensorRT knows",
    ),
    (
        r"[Hh]ardware.?[Cc]ompatib|AMPERE_PLUS",
        "leave plan.hardware_compatibility at none: this GPU or TensorRT does not have it",
    ),
    (r"No space left", "free disk space: TensorRT writes temporary files to TMPDIR"),
)
_UNKNOWN = "verbose logs (level DEBUG) have everything that TensorRT says; netron shows the node"
_FIELDS = ("batch.max", "plan.profiles", "plan.workspace_mib", "verbose")


def explain(text: str) -> str:
    """Return the next step for a message of TensorRT; for one that is not known, where to look."""
    return next((hint for pattern, hint in _KNOWN if re.search(pattern, text)), _UNKNOWN)


def advise(hints: Iterable[str]) -> dict[str, Any]:
    """Return hint and fields of an error for several messages of TensorRT."""
    hint = "; or: ".join(dict.fromkeys(hints))
    return {"hint": hint, "fields": {field: None for field in _FIELDS if field in hint}}
