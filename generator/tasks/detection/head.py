"""Nodes behind a detector: its outputs become corners in pixels, scores and classes, the best rows first.

    boxes [B, A, 4], scores [B, A, C] -> DET_BOXES [B, K, 4], DET_SCORES [B, K], DET_CLASSES [B, K]

All of it is FP32. The number of rows is fixed, so that Triton can batch and split them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.graph.model import default_opset
from generator.graph.wrap import rename_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from generator.tasks.detection.reading import Reading

BOXES, SCORES, CLASSES = "DET_BOXES", "DET_SCORES", "DET_CLASSES"
BEST = "trtgen_best"  # the best score of each anchor
BELOW = "trtgen_below_best"  # logits less the best one of each anchor, where a Softmax makes the scores
# With TensorRT 8.6 on an H100, what is behind SSD300's layers takes 0.94 ms with one TopK of the 1,000 best of 90,000,
# by 10 groups 0.63 ms, by 20 0.67, by 50 0.85; by 8 the plan answers 0.7 % more images than by 10. Fewer scores were
# not measured.
_GROUPS, _LEAST_WIDTH = 8, 4000


class _Nodes:
    """Appends nodes to a graph, each named like its only or first output."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.opset = default_opset(model)

    def constant(self, name: str, values: Sequence[Any], kind: str = "int64") -> str:
        """Return the name of a constant."""
        import numpy as np
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, *more: str, **attributes: Any) -> str:
        """Append a node and return the name of its first output."""
        from onnx import helper

        self.graph.node.append(helper.make_node(operator, inputs, [output, *more], name=output, **attributes))
        return output

    def cut(self, values: str, start: int, end: int, output: str) -> str:
        """Return the columns from `start` to `end` of [B, A, columns]."""
        bounds = {"start": start, "end": end, "axis": 2}
        return self.add(
            "Slice", [values, *(self.constant(f"{output}_{key}", [at]) for key, at in bounds.items())], output
        )

    def column(self, values: str, place: int, output: str) -> str:
        """Return one column of [B, A, columns]: [B, A]."""
        one = self.cut(values, place, place + 1, f"{output}_column")
        return self.add("Squeeze", [one, self.constant(f"{output}_squeezed", [2])], output)

    def maximum(self, values: str, axis: int, output: str, *, keepdims: int = 0) -> str:
        """Return the maximum along an axis, whose axes became an input with opset 18."""
        if self.opset < 18:
            return self.add("ReduceMax", [values], output, axes=[axis], keepdims=keepdims)
        return self.add("ReduceMax", [values, self.constant(f"{output}_axes", [axis])], output, keepdims=keepdims)

    def gather_rows(self, values: str, rows: str, output: str) -> str:
        """Return the rows [B, K] of values [B, A, columns]: [B, K, columns]."""
        places = self.add("Unsqueeze", [rows, self.constant(f"{output}_last", [2])], f"{output}_places")
        return self.add("GatherND", [values, places], output, batch_dims=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dense:
    """The tensors of all `anchors`: corners in pixels [B, A, 4], scores [B, A, C], or [B, A] with `classes` [B, A].

    Where a Softmax makes the scores they are logits still, with the background's: it is for the anchors that are kept.
    """

    anchors: int
    boxes: str
    scores: str
    classes: str = ""


def add_head(model: onnx.ModelProto, reading: Reading, size: tuple[int, int]) -> None:
    """Put the head behind the graph in place; `size` is the network's height and width."""
    from onnx import TensorProto, helper

    graph = model.graph
    places = [[output.name for output in graph.output].index(name) for name in reading.tensors]
    _free_names(graph)
    nodes = _Nodes(model)
    outputs = [graph.output[place] for place in places]
    dense = _decode(nodes, outputs, reading, size)
    rows = _select(nodes, dense, reading)
    del graph.output[:]
    info = helper.make_tensor_value_info
    graph.output.extend(
        [
            info(BOXES, TensorProto.FLOAT, ["batch", rows, 4]),
            info(SCORES, TensorProto.FLOAT, ["batch", rows]),
            info(CLASSES, TensorProto.INT32, ["batch", rows]),
        ]
    )


def _free_names(graph: onnx.GraphProto) -> None:
    """Rename what has the names of the head, as in a graph that was made by trtgen before."""
    taken = {tensor.name for tensor in graph.initializer}.union(*(node.output for node in graph.node))
    if not taken.isdisjoint({BOXES, SCORES, CLASSES}):
        rename_tensors(graph, {name for name in taken if name.startswith(("trtgen_", "DET_"))})
        for node in graph.node:
            node.name = f"{node.name}_source" if node.name else ""


def _decode(nodes: _Nodes, outputs: Sequence[Any], reading: Reading, size: tuple[int, int]) -> _Dense:
    """Append what makes corners in pixels and scores of the outputs, which are boxes first where there are several."""
    from onnx import TensorProto

    first, *more = [
        nodes.add("Cast", [output.name], f"trtgen_output_{place}", to=TensorProto.FLOAT)
        for place, output in enumerate(outputs)
    ]
    _, anchors, columns = (dim.dim_value for dim in outputs[0].type.tensor_type.shape.dim)
    if reading.layout == "raw":
        anchors, columns = columns, anchors
        first = nodes.add("Transpose", [first], "trtgen_anchors_first", perm=[0, 2, 1])
    classes = ""
    if more:
        boxes, scores = first, more[0]
    else:
        boxes, scores = nodes.cut(first, 0, 4, "trtgen_read_boxes"), nodes.cut(first, 4, columns, "trtgen_read_scores")
    if reading.layout == "objectness":
        objectness = nodes.cut(scores, 0, 1, "trtgen_objectness")
        of_classes = nodes.cut(scores, 1, columns - 4, "trtgen_of_classes")
        scores = nodes.add("Mul", [objectness, of_classes], "trtgen_scores")
    elif reading.layout == "end2end":
        labels = more[1] if more else nodes.column(scores, 1, "trtgen_labels")
        scores = scores if more else nodes.column(scores, 0, "trtgen_scores")
        classes = nodes.add("Cast", [labels], "trtgen_classes", to=TensorProto.INT32)
    elif reading.layout == "logits" and reading.background is None:
        scores = nodes.add("Sigmoid", [scores], "trtgen_scores")
    elif reading.background is not None and not reading.has_softmax:
        scores = _drop_background(nodes, scores, reading, "trtgen_scores")
    return _Dense(anchors=anchors, boxes=_find_corners(nodes, boxes, reading, size), scores=scores, classes=classes)


def _drop_background(nodes: _Nodes, scores: str, reading: Reading, output: str) -> str:
    """Append what leaves out the column of the background."""
    assert reading.background is not None, "the caller looks"
    before, behind = (0, reading.background), (reading.background + 1, reading.classes + 1)
    parts = [nodes.cut(scores, start, end, f"{output}_from_{start}") for start, end in (before, behind) if start < end]
    return parts[0] if len(parts) == 1 else nodes.add("Concat", parts, output, axis=2)


def _find_corners(nodes: _Nodes, boxes: str, reading: Reading, size: tuple[int, int]) -> str:
    """Append what makes left, top, right and bottom in pixels."""
    if reading.boxes == "cxcywh":
        centre, extent = nodes.cut(boxes, 0, 2, "trtgen_centre"), nodes.cut(boxes, 2, 4, "trtgen_extent")
        half = nodes.add("Mul", [extent, nodes.constant("trtgen_half", [0.5], "float32")], "trtgen_half_extent")
        corners = [nodes.add(operator, [centre, half], f"trtgen_{operator.lower()}") for operator in ("Sub", "Add")]
        boxes = nodes.add("Concat", corners, "trtgen_corners", axis=2)
    if reading.units == "normalised":
        height, width = size
        edges = nodes.constant("trtgen_edges", [width, height, width, height], "float32")
        boxes = nodes.add("Mul", [boxes, edges], "trtgen_boxes")
    return boxes


def _select(nodes: _Nodes, dense: _Dense, reading: Reading) -> int:
    """Append what takes the best rows; return how many.

    With several labels for an anchor, the best scores are all among those of the best anchors.
    """
    from onnx import TensorProto

    kept = min(dense.anchors, reading.candidates)
    rows = min(kept * reading.classes, reading.candidates) if reading.is_multi_label else kept
    best = dense.scores if dense.classes else _find_best(nodes, dense, reading)
    count = nodes.constant("trtgen_kept", [kept])
    if not reading.is_multi_label:
        nodes.add("TopK", [best, count], SCORES, "trtgen_anchors", axis=1)
        nodes.gather_rows(dense.boxes, "trtgen_anchors", BOXES)
        classes = dense.classes or nodes.add("ArgMax", [dense.scores], "trtgen_classes", axis=2, keepdims=0)
        chosen = nodes.add("GatherElements", [classes, "trtgen_anchors"], "trtgen_chosen", axis=1)
        nodes.add("Cast", [chosen], CLASSES, to=TensorProto.INT32)
        return rows
    nodes.add("TopK", [best, count], "trtgen_best_kept", "trtgen_anchors", axis=1)
    of_anchors = nodes.gather_rows(dense.scores, "trtgen_anchors", "trtgen_kept_scores")
    if reading.has_softmax:
        softmax = nodes.add("Softmax", [of_anchors], "trtgen_softmax", axis=2)
        of_anchors = _drop_background(nodes, softmax, reading, "trtgen_scores")
    flat = nodes.add("Flatten", [of_anchors], "trtgen_flat", axis=1)
    _take_best(nodes, flat, kept * reading.classes, rows)
    width = nodes.constant("trtgen_width", [reading.classes])
    order = nodes.add("Div", ["trtgen_places", width], "trtgen_order_of_rows")
    before = nodes.add("Mul", [order, width], "trtgen_before")
    classes = nodes.add("Sub", ["trtgen_places", before], "trtgen_classes")
    nodes.add("Cast", [classes], CLASSES, to=TensorProto.INT32)
    anchors_of_rows = nodes.add("GatherElements", ["trtgen_anchors", order], "trtgen_anchors_of_rows", axis=1)
    nodes.gather_rows(dense.boxes, anchors_of_rows, BOXES)
    return rows


def _find_best(nodes: _Nodes, dense: _Dense, reading: Reading) -> str:
    """Append the best score of each anchor.

    Of a Softmax it is 1 / sum(exp(logits - the best class's)), where nothing overflows for a likely class.
    """
    if not reading.has_softmax:
        return nodes.maximum(dense.scores, 2, BEST)
    of_classes = _drop_background(nodes, dense.scores, reading, "trtgen_logits")
    highest = nodes.maximum(of_classes, 2, "trtgen_highest", keepdims=1)
    shares = nodes.add("Exp", [nodes.add("Sub", [dense.scores, highest], BELOW)], "trtgen_shares")
    total = nodes.add("ReduceSum", [shares, nodes.constant("trtgen_total_axes", [2])], "trtgen_total", keepdims=0)
    return nodes.add("Reciprocal", [total], BEST)


def _take_best(nodes: _Nodes, flat: str, columns: int, rows: int) -> None:
    """Append the best scores of [B, columns] and their places; of many, what is best in groups of them is enough."""
    count = nodes.constant("trtgen_rows", [rows])
    width = columns // _GROUPS
    if columns % _GROUPS or width < max(_LEAST_WIDTH, 4 * rows):
        nodes.add("TopK", [flat, count], SCORES, "trtgen_places", axis=1)
        return
    groups = nodes.add("Reshape", [flat, nodes.constant("trtgen_groups_shape", [0, _GROUPS, width])], "trtgen_groups")
    nodes.add("TopK", [groups, count], "trtgen_group_best", "trtgen_group_places", axis=2)
    starts = nodes.constant("trtgen_group_starts", [[[group * width] for group in range(_GROUPS)]])
    places = nodes.add("Add", ["trtgen_group_places", starts], "trtgen_places_of_groups")
    best, places = (nodes.add("Flatten", [name], f"{name}_flat", axis=1) for name in ("trtgen_group_best", places))
    nodes.add("TopK", [best, count], SCORES, "trtgen_chosen_places", axis=1)
    nodes.add("GatherElements", [places, "trtgen_chosen_places"], "trtgen_places", axis=1)
