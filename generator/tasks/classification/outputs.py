"""Which output of an ONNX file holds the scores."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from generator.errors import SourceError, near
from generator.graph.model import describe_graph, load_proto
from generator.graph.size_input import take_size_input
from generator.task import Chosen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.tensor import Tensor

_FLOATS = ("float32", "float16", "float64", "bfloat16")


def choose_outputs(path: Path, outputs: Sequence[Tensor], asked: str | None) -> Chosen:
    """Choose the one with a score per class, as [batch, classes]: that of the name `asked`, or the only such one.

    Raises:
        SourceError: There is none, or there are several.
    """
    names = [tensor.name for tensor in outputs]
    if asked is not None and asked not in names:
        alike = f"; did you mean {', '.join(found)}" if (found := near(asked, names)) else ""
        msg = f"{path} has no output {asked!r}; it has {', '.join(names)}{alike}"
        raise SourceError(msg, hint="set output_tensor to one of them", fields={"output_tensor": None})
    offered = [tensor for tensor in outputs if asked in (None, tensor.name)]
    fitting = [tensor for tensor in offered if _holds_scores(tensor)]
    if len(fitting) == 1:
        scores = replace(fitting[0], shape=(-1, prod(fitting[0].shape[1:])))
        return Chosen(outputs=[scores], why="no other has the shape of scores")
    described = [f"{tensor.name} {tensor.data_type.numpy} {list(tensor.shape)}" for tensor in fitting or offered]
    if fitting:
        msg = f"{path} has several outputs with the shape of scores: {', '.join(described)}"
        hint = "say which one holds a score per class: set output_tensor"
        raise SourceError(msg, hint=hint, fields={"output_tensor": None})
    several = "" if len(offered) == 1 else "s"
    msg = f"{path} has output{several} {', '.join(described)}: floating-point [batch, classes] was expected"
    raise SourceError(msg, hint="a classifier ends in one score per class; other heads are not served by trtgen")


def refuse_detector(path: Path, asked: str | None) -> None:
    """Refuse a file that answers boxes, before anything else is asked of the user.

    Raises:
        SourceError: It does.
    """
    model = load_proto(path, weights=False)
    take_size_input(model)
    outputs = describe_graph(model, path).outputs
    boxes = any("box" in tensor.name.lower() or tensor.shape[2:] == (4,) for tensor in outputs)
    rows = any(len(tensor.shape) == 3 and 1 not in tensor.shape[1:] for tensor in outputs)
    if asked is None and (boxes or (rows and not any(map(_holds_scores, outputs)))):
        described = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in outputs)
        msg = f"{path} looks like a detector: it has output{'' if len(outputs) == 1 else 's'} {described}"
        raise SourceError(msg, hint="set task: detection", fields={"task": "detection"})


def _holds_scores(tensor: Tensor) -> bool:
    """Say whether a row is a vector, whatever axes of length 1 are around it."""
    row = tensor.shape[1:]
    return tensor.data_type.numpy in _FLOATS and min(row, default=0) > 0 and sum(size > 1 for size in row) <= 1
