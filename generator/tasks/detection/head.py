"""Nodes behind a detector: its outputs become corners in pixels, scores and classes, the best rows first.

    boxes [B, A, 4], scores [B, A, C] -> DET_BOXES [B, K, 4], DET_SCORES [B, K], DET_CLASSES [B, K]

All of it is FP32. The number of rows is fixed, so that Triton can batch and split them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.graph.model import default_opset

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from generator.tasks.detection.reading import Reading

BOXES, SCORES, CLASSES = "DET_BOXES", "DET_SCORES", "DET_CLASSES"


class _Nodes:
    """Appends nodes to a graph, each named like its only or first output."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = default_opset(model)

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Return the name of a constant of INT64."""
        import numpy as np
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, *more: str, **attributes: Any) -> str:
        """Append a node and return the name of its first output."""
        from onnx import helper

        self.graph.node.append(helper.make_node(operator, inputs, [output, *more], name=output, **attributes))
        return output

    def maximum(self, values: str, axis: int, output: str) -> str:
        """Return the maximum along an axis, whose axes became an input with opset 18."""
        if self.opset < 18:
            return self.add("ReduceMax", [values], output, axes=[axis], keepdims=0)
        return self.add("ReduceMax", [values, self.constant(f"{output}_axes", [axis])], output, keepdims=0)

    def gather_rows(self, values: str, rows: str, width: int, output: str) -> str:
        """Return the rows [B, K] of values [B, A, width]: [B, K, width]."""
        last = self.constant(f"{output}_last", [2])
        width_of_rows = self.constant(f"{output}_width", [1, 1, width])
        column = self.add("Unsqueeze", [rows, last], f"{output}_column")
        indices = self.add("Expand", [column, width_of_rows], f"{output}_indices")
        return self.add("GatherElements", [values, indices], output, axis=1)


def add_head(model: onnx.ModelProto, reading: Reading, size: tuple[int, int]) -> None:
    """Put the head behind the graph in place; `size` is the network's height and width."""
    from onnx import TensorProto, helper

    graph = model.graph
    anchors = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    nodes = _Nodes(model)
    boxes, scores = (nodes.add("Cast", [name], f"trtgen_{name}", to=TensorProto.FLOAT) for name in reading.tensors)
    rows = _select(nodes, boxes, scores, anchors, reading)
    del graph.output[:]
    info = helper.make_tensor_value_info
    graph.output.extend(
        [
            info(BOXES, TensorProto.FLOAT, ["batch", rows, 4]),
            info(SCORES, TensorProto.FLOAT, ["batch", rows]),
            info(CLASSES, TensorProto.INT32, ["batch", rows]),
        ]
    )


def _select(nodes: _Nodes, boxes: str, scores: str, anchors: int, reading: Reading) -> int:
    """Append what takes the best rows; return how many.

    With several labels for an anchor, the best scores are all among those of the best anchors.
    """
    from onnx import TensorProto

    kept = min(anchors, reading.candidates)
    rows = min(kept * reading.classes, reading.candidates) if reading.is_multi_label else kept
    best = nodes.maximum(scores, 2, "trtgen_best")
    count = nodes.constant("trtgen_kept", [kept])
    if not reading.is_multi_label:
        nodes.add("TopK", [best, count], SCORES, "trtgen_anchors", axis=1)
        nodes.gather_rows(boxes, "trtgen_anchors", 4, BOXES)
        classes = nodes.add("ArgMax", [scores], "trtgen_classes", axis=2, keepdims=0)
        chosen = nodes.add("GatherElements", [classes, "trtgen_anchors"], "trtgen_chosen", axis=1)
        nodes.add("Cast", [chosen], CLASSES, to=TensorProto.INT32)
        return rows
    nodes.add("TopK", [best, count], "trtgen_best_kept", "trtgen_anchors", axis=1)
    of_anchors = nodes.gather_rows(scores, "trtgen_anchors", reading.classes, "trtgen_kept_scores")
    flat = nodes.add("Flatten", [of_anchors], "trtgen_flat", axis=1)
    nodes.add("TopK", [flat, nodes.constant("trtgen_rows", [rows])], SCORES, "trtgen_places", axis=1)
    width = nodes.constant("trtgen_width", [reading.classes])
    order = nodes.add("Div", ["trtgen_places", width], "trtgen_order_of_rows")
    before = nodes.add("Mul", [order, width], "trtgen_before")
    classes = nodes.add("Sub", ["trtgen_places", before], "trtgen_classes")
    nodes.add("Cast", [classes], CLASSES, to=TensorProto.INT32)
    anchors_of_rows = nodes.add("GatherElements", ["trtgen_anchors", order], "trtgen_anchors_of_rows", axis=1)
    nodes.gather_rows(boxes, anchors_of_rows, 4, BOXES)
    return rows
