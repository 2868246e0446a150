"""FP32 graph -> FP16 graph for a strongly typed network, as TensorRT 10.12 and later build it.

Head and tail stay in FP32 (see `view`), so input and output keep their types. onnxconverter-common decides where casts
go; what it would do silently is decided here before it is called: a node with a constant beyond FP16's largest number,
or with values beyond it, stays in FP32 and is named.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError
from generator.graph.precision.types import infer_types, state_types
from generator.graph.precision.value_ranges import collect_histograms
from generator.graph.precision.view import GraphView, find_head, find_tail

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import onnx
    from numpy.typing import NDArray

FP16_MAX = 65504.0
# Half of it: other images than the ones looked at reach somewhat more.
_LARGEST_VALUE = FP16_MAX / 2
_SMALLEST_FP16 = 2.0**-24
# They make FP32 whatever their inputs are, and the converter would believe that they make FP16.
_FLOAT_MAKERS = frozenset({"Cast", "CastLike", "RandomNormal", "RandomUniform", "DequantizeLinear", "EyeLike"})


def to_fp16(model: onnx.ModelProto, kept: Iterable[str]) -> onnx.ModelProto:
    """Return the graph in FP16 but for head, tail and the nodes `kept`, with the casts between.

    Raises:
        MissingDependencyError: onnxconverter-common is not installed.
    """
    try:
        from onnxconverter_common import float16
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "onnxconverter-common", extra=None, why="it converts graphs to FP16 for TensorRT 10 and later"
        ) from error
    import onnx

    converted: onnx.ModelProto = onnx.ModelProto()
    converted.CopyFrom(model)
    blocked = _blocked(GraphView.of(converted), kept)
    _own_constants(converted, blocked)
    state_types(converted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about numbers that it truncates: larger ones are kept out by us
        converted = float16.convert_float_to_float16(
            converted,
            min_positive_val=_SMALLEST_FP16,
            max_finite_val=FP16_MAX,
            keep_io_types=True,
            disable_shape_infer=True,
            op_block_list=sorted(set(float16.DEFAULT_OP_BLOCK_LIST)),
            node_block_list=sorted(blocked),
            check_fp16_ready=False,
        )
    del converted.graph.value_info[:]
    _restore_outputs(converted)
    _drop_round_trips(converted)
    return converted


def find_overflows(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, str]:
    """Return the nodes that FP16 cannot hold, with the reason: constants beyond 65504, values beyond half of that.

    Where a tensor's values are too large, both the node that makes it and the nodes that read it are named, since a
    cast between them would already be infinite.
    """
    import numpy as np
    from onnx import numpy_helper

    view = GraphView.of(model)
    reasons: dict[str, str] = {}
    for name, tensor in view.constants.items():
        if tensor.data_type != tensor.FLOAT or not tensor.ByteSize():
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max()) if values.size else 0.0
        if not largest <= FP16_MAX:
            for node in view.readers(name):
                reasons.setdefault(node.name, f"its constant {name} reaches {largest:.4g}")
    spared = {*find_head(view), *find_tail(view)}
    for name, seen in collect_histograms(model, _float_tensors(model, view), pixels, count=False).items():
        if seen.finite and seen.largest <= _LARGEST_VALUE:
            continue
        size = f"{seen.largest:.4g}" if seen.finite else "infinity"
        reasons.setdefault(view.producers[name].name, f"its output {name} reaches {size}")
        for node in view.readers(name):
            reasons.setdefault(node.name, f"its input {name} reaches {size}")
    found = {name: reason for name, reason in reasons.items() if name not in spared}
    return dict(sorted(found.items(), key=lambda item: view.positions[item[0]]))


def _float_tensors(model: onnx.ModelProto, view: GraphView) -> list[str]:
    """Return the computed FP32 tensors, in order."""
    import onnx

    types = infer_types(model)
    return [output for node in view.graph.node for output in node.output if types.get(output) == onnx.TensorProto.FLOAT]


def _blocked(view: GraphView, kept: Iterable[str]) -> set[str]:
    makers = {node.name for node in view.graph.node if node.op_type in _FLOAT_MAKERS}
    return {*find_head(view), *find_tail(view), *makers, *kept}


def _own_constants(model: onnx.ModelProto, blocked: set[str]) -> None:
    """Give FP32 nodes constants of their own: the converter cannot have one in two types."""
    import onnx

    view = GraphView.of(model)
    for name, tensor in view.constants.items():
        readers = view.readers(name)
        inside = [node for node in readers if node.name in blocked]
        if tensor.data_type != onnx.TensorProto.FLOAT or not 0 < len(inside) < len(readers):
            continue
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"{name}_fp32"
        for node in inside:
            node.input[:] = [copy.name if given == name else given for given in node.input]


def _restore_outputs(model: onnx.ModelProto) -> None:
    """Make outputs FP32 again whose nodes stay in FP32: the converter casts them to FP16 all the same."""
    import onnx

    for output in model.graph.output:
        if output.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16:
            continue
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        view = GraphView.of(model)
        cast = view.producers[output.name]
        inner = cast.input[0]
        maker = view.producers[inner]
        maker.output[:] = [output.name if name == inner else name for name in maker.output]
        model.graph.node.remove(cast)
        for node in model.graph.node:
            node.input[:] = [output.name if name == inner else name for name in node.input]


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Take out casts from FP32 to FP16 and straight back, which only lose bits, and casts that are not read."""
    import onnx

    graph = model.graph
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    outputs = {tensor.name for tensor in graph.output}
    replaced: dict[str, str] = {}
    for name, back in casts.items():
        there = casts.get(back.input[0])
        if there is not None and _cast_to(back) == full and _cast_to(there) == half and name not in outputs:
            replaced[name] = there.input[0]
    for node in graph.node:
        node.input[:] = [replaced.get(name, name) for name in node.input]
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _cast_to(node: Any) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")
