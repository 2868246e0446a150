"""What the first bytes of a plan tell, without TensorRT and without a GPU.

TensorRT's own `trtexec --getPlanVersionOnly` reads the same: b"ftrt", 0 as the version of the serialization, and
major, minor, patch and build in bytes 24 to 27 (plans of 8.6 and later). Bytes 16 to 23 are the file's size in every
plan of TensorRT-RTX, whose header differs in the first four bytes; TensorRT compares such a field as well.
"""

from __future__ import annotations

import os
import shlex
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import PlanError
from generator.files import ONNX, PLAN_MAGIC, RTX_MAGIC, find_wrapped_plan, name_kind
from generator.plan.library import TensorRTVersion

if TYPE_CHECKING:
    from pathlib import Path

_HEADER_BYTES = 28
_READ_BYTES = 4096
_MAJORS = range(8, 31)
_LARGEST = 2**42  # a larger number is not a file's size
_REBUILD = "build it again from its ONNX file"
BUILD_PLAN = ("build-plan", "model.onnx")  # the command of such a hint


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHeader:
    """What made the plan; `version` is None where the header is laid out in a way that is not known."""

    version: TensorRTVersion | None
    size_bytes: int


def read_header(path: Path) -> PlanHeader:
    """Return what the header says.

    Raises:
        PlanError: Unreadable, no plan of TensorRT, or cut off, with the way out of it.
    """
    start, size = _read_start(path)
    if start[:4] == RTX_MAGIC:
        msg = f"{path} was built by TensorRT-RTX; TensorRT does not load it, nor the other way round"
        raise PlanError(msg, hint="build it with TensorRT", command=BUILD_PLAN)
    if start[:4] != PLAN_MAGIC:
        offset = find_wrapped_plan(path, start)
        raise _not_a_plan(path, start) if offset is None else _wrapped(path, offset)
    if size < _HEADER_BYTES:
        msg = f"{path} is cut off: {size} bytes, its header alone has {_HEADER_BYTES}"
        raise PlanError(msg, hint=f"copy it again, or {_REBUILD}", command=BUILD_PLAN)
    if start[4:8] != bytes(4) or start[24] not in _MAJORS:
        return PlanHeader(version=None, size_bytes=size)
    stated: int = struct.unpack_from("<Q", start, 16)[0]
    if size < stated < _LARGEST:
        msg = f"{path} is cut off: it has {size} bytes, and its header says {stated}"
        raise PlanError(msg, hint=f"copy it again, or {_REBUILD}", command=BUILD_PLAN)
    return PlanHeader(version=TensorRTVersion(*start[24:28]), size_bytes=size)


def _read_start(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES), os.fstat(file.fileno()).st_size
    except IsADirectoryError as error:
        msg = f"{path} is a folder, a TensorRT plan was expected"
        raise PlanError(msg, hint=f"give the file in it: {_guess(path)}") from error
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise PlanError(msg, hint="give the path of a plan, such as model.plan") from error


def _guess(path: Path) -> str:
    # not deeper than from a model repository down to its versions: the folder may be a whole disk
    patterns = ("*.plan", "*/*.plan", "*/*/*.plan")
    plans = next((found for pattern in patterns if (found := sorted(path.glob(pattern)))), [])
    return str(plans[0] if plans else path / "model.plan")


def _wrapped(path: Path, offset: int) -> PlanError:
    bare = shlex.quote(str(path.with_suffix(".plan")))
    return PlanError(
        f"{path} is an .engine file of Ultralytics: a plan behind {offset} bytes of metadata, which TensorRT refuses",
        hint=f"take the plan out of it: tail -c +{offset + 1} {shlex.quote(str(path))} > {bare}",
    )


def _not_a_plan(path: Path, start: bytes) -> PlanError:
    if not start:
        msg = f"{path} is empty, a TensorRT plan was expected"
        return PlanError(msg, hint=f"copy it again, or {_REBUILD}", command=BUILD_PLAN)
    kind, hint = name_kind(path)
    if kind == ONNX or path.suffix == ".onnx":
        msg = f"{path} is an ONNX file, not a plan"
        return PlanError(msg, hint="build its plan", command=("build-plan", str(path)))
    if kind:
        return PlanError(f"{path} is {kind}, not a TensorRT plan", hint=hint)
    begins = f"it begins with {start[:8]!r}, a plan with {PLAN_MAGIC!r}"
    return PlanError(f"{path} is not a TensorRT plan: {begins}", hint=_REBUILD, command=BUILD_PLAN)
