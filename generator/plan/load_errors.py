"""What TensorRT says when it does not load or run a plan, in plain words, and what to do.

It returns None and writes to its log. The patterns are its texts of 8.6 to 11; numbers change place between versions,
words hardly do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError, PlanError
from generator.plan.header import BUILD_PLAN

if TYPE_CHECKING:
    from collections.abc import Iterable

_REBUILD = "build it again here"
_COPY = f"copy the plan again, or {_REBUILD}"
_NUMBER = r"[0-9.]*[0-9]|\.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A text of TensorRT's; `{0}` and `{1}` in `words` are what its groups found."""

    pattern: str
    words: str
    hint: str
    error: type[DeviceError | PlanError] = PlanError


_RULES = (
    _Rule(
        pattern=rf"this version of TensorRT, expecting library version ({_NUMBER}) got ({_NUMBER}),",
        words="it was built with TensorRT {1}, this is {0}",
        hint=f"install the TensorRT that built it, or {_REBUILD}",
    ),
    _Rule(
        pattern=rf"generated on an incompatible device, expecting compute ({_NUMBER}) got compute ({_NUMBER}),",
        words="it was built on a GPU of compute capability {1}, this one has {0}",
        hint=f"set plan.hardware_compatibility where it is built, or {_REBUILD}",
    ),
    _Rule(
        pattern=rf"not compatible with this hardware-compatible engine\. Expected compute capability >= ({_NUMBER})\D+"
        rf"({_NUMBER})",
        words="it runs on compute capability {0} and later, this GPU has {1}",
        hint=_REBUILD,
    ),
    _Rule(
        pattern=r"current device only supports (\d+) multiprocessors but the engine file requires (\d+)",
        words="it needs {1} multiprocessors, this GPU has {0}",
        hint=f"a part of a GPU (MIG) needs a plan that was built on such a part; {_REBUILD}",
    ),
    _Rule(
        pattern=r"Platform specific tag mismatch",
        words="it was built for another operating system or processor",
        hint=_REBUILD,
    ),
    _Rule(
        pattern=r"getEngineHostCodeAllowed\(\) is false",
        words="it carries code of its own (version compatible), which only a passport that says so lets run",
        hint="put its passport, model.plan.json, beside it, if you trust the plan",
    ),
    _Rule(
        pattern=r"header\.size == blobSize|stream is not complete|unexpected end",
        words="its size is not what its header says: it is cut off, or something was added",
        hint=_COPY,
    ),
    _Rule(
        pattern=r"incompatible serialization version|Version tag does not match|stdVersionRead == serializationVersion",
        words="it was written by another version of TensorRT",
        hint=f"install the TensorRT that built it, or {_REBUILD}",
    ),
    _Rule(
        pattern=r"magicTag|Magic tag|MAGIC_TAG",
        words="it is not a TensorRT plan, or it is damaged",
        hint=_COPY,
    ),
    _Rule(
        pattern=r"IPluginCreator not found|could not find plugin:?\s*(\S*)|Plugin not found",
        words="it needs a plugin that is not here {0}",
        hint="build it from a graph without plugins; trtgen loads none",
    ),
    _Rule(
        pattern=r"(?i)out[ _]?of[ _]?memory|could not be allocated|MemoryAllocation|bad_alloc|memory allocation",
        words="the GPU's memory is exhausted",
        hint="end what else uses the GPU (nvidia-smi), or build the plan for smaller batches",
        error=DeviceError,
    ),
    _Rule(
        pattern=r"CUDA driver version is insufficient|cudaError 35\b|initialization failure with error: 35",
        words="the driver is older than the CUDA that TensorRT was built for",
        hint="update NVIDIA's driver, or install the tensorrt package for the driver's CUDA",
        error=DeviceError,
    ),
    _Rule(
        pattern=r"no CUDA-capable device|cudaErrorNoDevice|initialization failure with error: 100",
        words="TensorRT sees no GPU",
        hint="nvidia-smi must list one; check CUDA_VISIBLE_DEVICES",
        error=DeviceError,
    ),
    _Rule(
        pattern=r"CUDA_ERROR_\w*(?:ILLEGAL|LAUNCH_FAILED|ASSERT|MISALIGNED|ECC|HARDWARE_STACK|INVALID_PC|NVLINK)",
        words="the GPU stopped with a fault",
        hint="start the process again: after such a fault nothing more runs on the GPU in this one",
        error=DeviceError,
    ),
    _Rule(
        pattern=r"has been chosen by another IExecutionContext",
        words="its optimization profile is in use by another execution context",
        hint="close the other one first",
    ),
)


def explain_failure(
    what: str, messages: Iterable[str], *, otherwise: type[DeviceError | PlanError] = PlanError, hint: str = _REBUILD
) -> DeviceError | PlanError:
    """Return the error for what TensorRT refused.

    Args:
        what: What failed, such as "/models/1/model.plan cannot be loaded".
        messages: TensorRT's errors, oldest first: the first that is known names the cause, later ones follow from it.
        otherwise: The class of the error where none is known.
        hint: The way out where none is known.
    """
    said = list(messages)
    for rule in _RULES:
        for text in said:
            if match := re.search(rule.pattern, text):
                groups = [part or "an unknown one" for part in match.groups()]
                words = rule.words.format(*groups, *[""] * 2).strip()
                return rule.error(f"{what}: {words} (TensorRT: {text})", **_advise(rule.hint))
    words = f"TensorRT says: {'; '.join(said[-3:])}" if said else "TensorRT does not say why"
    return otherwise(f"{what}: {words}", **_advise(hint))


def _advise(hint: str) -> dict[str, Any]:
    return {"hint": hint, "command": BUILD_PLAN if _REBUILD in hint else ()}
