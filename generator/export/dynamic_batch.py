"""The dynamism proof: every batch size gives each image what it gets alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError, SourceError
from generator.export.names import DYNAMIC_HINT
from generator.onnx_model import OnnxModel, load_proto, open_onnx

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

__all__ = ["ROW_TOLERANCE", "prove_dynamic_batch"]

# Rows of one batch may differ from single runs by the order of summation only.
ROW_TOLERANCE = 1e-4


def prove_dynamic_batch(
    model: OnnxModel, *, maximum: int, pixels: NDArray[np.uint8] | None = None, tolerance: float = ROW_TOLERANCE
) -> float:
    """Run batches of 1, 3 and `maximum` and compare each row with its single run; return the largest difference.

    The images are `pixels` (N, H, W, 3), repeated as often as needed, or noise where there are none yet.

    Raises:
        ExportError: A batch does not run, has another number of rows, its rows differ by more than `tolerance`, or the
            answer is NaN or infinite.
    """
    import numpy as np

    if pixels is None:
        shape = [size if size > 0 else 64 for size in model.input.shape[1:]]
        pixels = np.random.default_rng(0).integers(0, 256, (maximum, *shape), dtype=np.uint8)
    images = pixels[np.arange(maximum) % len(pixels)]
    session = open_onnx(model.path)

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        result = _run_batch(session, batch, model)
        if result.shape != (len(batch), model.output.shape[1]):
            raise _baked_in(model, len(batch), f"output {model.output.name} came out as {list(result.shape)}")
        return result

    probes = sorted({0, 1, 2, maximum // 2, maximum - 1} & set(range(maximum)))
    single = {row: run(images[row : row + 1])[0] for row in probes}
    if broken := [row for row, scores in single.items() if not np.isfinite(scores).all()]:
        msg = f"{model.path.name}: output {model.output.name} is NaN or infinite for single images (image {broken[0]})"
        raise ExportError(msg, hint="look for NaN, infinity or huge values in the source's weights")
    worst = 0.0
    for size in sorted({1, min(3, maximum), maximum}):
        batch = run(images[:size])
        for row in (row for row in probes if row < size):
            difference = float(np.abs(batch[row] - single[row]).max())
            if not difference <= tolerance:
                by = f"differs from the same image alone by {difference:.2g}"
                if not np.isfinite(batch[row]).all():
                    by = "is NaN or infinite, which the same image alone is not"
                raise _baked_in(model, size, f"row {row} {by}")
            worst = max(worst, difference)
    return worst


def _run_batch(session: Any, batch: NDArray[np.uint8], model: OnnxModel) -> NDArray[np.float32]:
    try:
        result: NDArray[np.float32] = session(batch)
    except SourceError as error:
        raise _baked_in(model, len(batch), error.message) from error
    return result


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
    """Return the first node that takes a tensor with the batch axis first and gives one without it, or None."""
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
        if first_axis.get(node.input[0] if node.input else "") == probe and first_axis.get(node.output[0]) != probe:
            return node
    return None
