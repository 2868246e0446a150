"""The dynamism proof: every batch size gives each image what it gets alone."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError, SourceError
from generator.graph.model import OnnxModel, load_proto, open_onnx
from generator.graph.names import DYNAMIC_HINT, NAN_HINT
from generator.images.reference import RANDOM_HINT
from generator.images.sets import extreme_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

# Rows of one batch may differ from single runs by the order of summation only.
ROW_TOLERANCE = 1e-4
# By what the graph holds: half of the steps between numbers, since another order of summation may round to another
# neighbour. A BF16 graph is run as a copy in FP32.
ROW_TOLERANCES = {"fp32": ROW_TOLERANCE, "bf16": ROW_TOLERANCE, "fp16": 5e-3, "int8": 5e-2, "fp8": 5e-2}


def batch_sizes(maximum: int) -> list[int]:
    """Return the batches that are tried: 1, 2, 3, a middle size and the maximum."""
    return sorted({1, 2, 3, (maximum + 1) // 2, maximum} & set(range(1, maximum + 1)))


def prove_dynamic_batch(
    model: OnnxModel,
    *,
    maximum: int,
    pixels: NDArray[np.uint8] | None = None,
    tolerance: float = ROW_TOLERANCE,
    is_reordered: Callable[[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]], float], bool] | None = None,
) -> float:
    """Run the batches of `batch_sizes` and compare rows with the same image alone; return the largest difference.

    The images are black, white, noise and `pixels` (N, H, W, 3) or more noise, repeated as often as needed.
    `is_reordered` is the task's, for answers in an order that rounding chooses.

    Raises:
        ExportError: A batch does not run, has another number of rows, or its rows differ from the same image alone, or
            in another order, by more than `tolerance` times the largest score (or 1); the same image is answered
            differently twice; an answer is NaN or infinite.
    """
    import numpy as np

    images = _make_images(model, maximum, pixels)
    session = open_onnx(model.path)

    def run(rows: Sequence[int]) -> NDArray[np.float32]:
        return _run_batch(session, images[np.array(rows) % len(images)], model)

    middle = (maximum + 1) // 2
    known = {row: run([row])[0] for row in sorted({0, 1, 2, middle, maximum - 1})}
    _check_finite(model, known)
    largest = np.maximum(1.0, np.abs(np.stack(list(known.values()))).max(axis=0))
    widths = np.cumsum([int(np.prod(tensor.shape[1:])) for tensor in model.outputs])[:-1]
    # what counts is the largest value of the whole output
    limits = tolerance * np.concatenate([np.full(part.shape, part.max()) for part in np.split(largest, widths)])

    def excess(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[float, bool]:
        differences = np.abs(one - other)
        alike = bool((differences <= limits).all())
        if not alike and is_reordered and is_reordered(_split(one, model), _split(other, model), tolerance):
            return tolerance, True
        return float(differences.max()), alike

    for row, values in known.items():
        difference, alike = excess(run([row])[0], values)
        if not alike:
            raise _not_repeatable(model, difference)

    # the two middle ones cover all rows of the maximum, each among others than there
    halves = [range(maximum - 1, maximum - 1 - middle, -1), range(middle)]
    orders = [[1, 0], [2, 0, 1], *halves, range(maximum)]
    worst = 0.0
    for rows in (list(order) for order in orders if len(order) <= maximum):
        for position, (row, values) in enumerate(zip(rows, run(rows), strict=True)):
            # rows that were not seen alone are compared with the same row among others
            difference, alike = excess(values, known.setdefault(row, values))
            if not alike:
                by = f"differs from the same image alone or in another batch by {difference:.2g}"
                if not np.isfinite(values).all():
                    by = "is NaN or infinite, which the same image alone is not"
                raise _baked_in(model, len(rows), f"row {position} {by}")
            worst = max(worst, difference)
    return worst


def _make_images(model: OnnxModel, maximum: int, pixels: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    import numpy as np

    shape = [size if size > 0 else 64 for size in model.input.shape[1:]]
    if pixels is None:
        pixels = np.random.default_rng(1).integers(0, 256, (maximum, *shape), dtype=np.uint8)
    return np.concatenate([extreme_pixels(shape), pixels])


def _check_finite(model: OnnxModel, known: Mapping[int, NDArray[np.float32]]) -> None:
    import numpy as np

    if broken := [row for row, values in known.items() if not np.isfinite(values).all()]:
        which = ("black", "white", "noise")[broken[0]] if broken[0] < 3 else f"number {broken[0]}"
        names = " and ".join(tensor.name for tensor in model.outputs)
        msg = f"{model.path.name}: output {names} is NaN or infinite for single images (image {which})"
        raise ExportError(msg, hint=NAN_HINT)


def _run_batch(session: Any, batch: NDArray[np.uint8], model: OnnxModel) -> NDArray[np.float32]:
    """Return one row per image: all outputs behind each other."""
    import numpy as np

    try:
        outputs = session(batch)
    except SourceError as error:
        raise _baked_in(model, len(batch), error.message) from error
    for tensor in model.outputs:
        shape, wanted = outputs[tensor.name].shape, (len(batch), *tensor.shape[1:])
        if len(shape) != len(wanted) or any(edge not in (-1, one) for edge, one in zip(wanted, shape, strict=True)):
            raise _baked_in(model, len(batch), f"output {tensor.name} came out as {list(shape)}")
    return np.concatenate([outputs[tensor.name].reshape(len(batch), -1) for tensor in model.outputs], axis=1)


def _split(values: NDArray[np.float32], model: OnnxModel) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of one image, as a batch of 1."""
    tensors: dict[str, NDArray[np.float32]] = {}
    start = 0
    for tensor in model.outputs:
        end = start + math.prod(tensor.shape[1:])
        tensors[tensor.name] = values[start:end].reshape(1, *tensor.shape[1:])
        start = end
    return tensors


def _not_repeatable(model: OnnxModel, difference: float) -> ExportError:
    """It would look like a batch that is baked in."""
    nodes = sorted(load_proto(model.path, weights=False).graph.node, key=lambda node: node.op_type == "Dropout")
    named = next((f" by node {node.name or node.output[0]} ({node.op_type})" for node in nodes if _is_random(node)), "")
    answers = f"the same image is answered differently twice{named}: the values differ by {difference:.2g}"
    return ExportError(f"{model.path.name}: {answers}", hint=RANDOM_HINT)


def _is_random(node: Any) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial", "Dropout")


def _baked_in(model: OnnxModel, size: int, what: str) -> ExportError:
    named = re.search(r"running (\w+) node\. Name:'([^']*)'", what)
    proto = load_proto(model.path, weights=False)
    node = _first_node_without_batch(proto)
    if named:
        place = f"node {named[2]} ({named[1]})" if named[2] else _nameless(proto, named[1])
    elif node:
        place = f"node {node.name or node.output[0]} ({node.op_type})"
    else:
        place = "a node that mixes the rows of a batch"
    msg = f"{model.path.name}: the batch is baked in by {place}: with a batch of {size}, {what}"
    return ExportError(msg, hint=DYNAMIC_HINT)


def _nameless(model: onnx.ModelProto, operator: str) -> str:
    """Say which node without a name ran: by its output where it is the only one of its operator."""
    outputs = [node.output[0] for node in model.graph.node if node.op_type == operator and not node.name]
    return f"the node of output {outputs[0]} ({operator})" if len(outputs) == 1 else f"a node {operator} without a name"


def _first_node_without_batch(model: onnx.ModelProto) -> Any:
    """Return the first node that takes a tensor with the batch axis first and gives one without it, or None.

    A Shape is not meant: it tells the batch to others.
    """
    import onnx

    probe = 7919  # a prime that no other axis has
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = probe
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    first_axis = {
        info.name: info.type.tensor_type.shape.dim[0].dim_value
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if info.type.tensor_type.shape.dim
    }
    for node in model.graph.node:
        if node.op_type == "Shape":
            continue
        if first_axis.get(node.input[0] if node.input else "") == probe and first_axis.get(node.output[0]) != probe:
            return node
    return None
