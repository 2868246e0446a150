"""Small ONNX detectors, one function per layout that exporters write, made by hand with onnx.helper.

All have the same network: 64x64 pixels, levels with strides 8, 16 and 32, so 84 cells, the classes NAMES, and weights
that tell images apart. `batch` is a number where the export is for that many images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // stride) ** 2 for stride in STRIDES)
NAMES = ("circle", "square", "star")
LICENSE = "AGPL-3.0 License"
ROWS = 20
_CHANNELS = 12


class Graph:
    """Nodes and weights of a detector that is being written.

    `free` leaves height and width open, as well as the batch: the grid is computed of the image's size then.
    """

    def __init__(self, *, batch: int | str = "batch", opset: int = 18, free: bool = False, seed: int = 0) -> None:
        self.batch, self.opset, self.free = batch, opset, free
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def add(self, operator: str, *inputs: str, result: str = "", more: Sequence[str] = (), **attributes: Any) -> str:
        output = result or f"tensor_{len(self.nodes)}"
        name = f"/model/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output, *more], name=name, **attributes))
        return output

    def highest(self, tensor: str, axis: int) -> str:
        if self.opset < 18:
            return self.add("ReduceMax", tensor, axes=[axis], keepdims=0)
        return self.add("ReduceMax", tensor, self.integers(axis), keepdims=0)

    def part(self, tensor: str, start: int, end: int, axis: int) -> str:
        return self.add("Slice", tensor, self.integers(start), self.integers(end), self.integers(axis))

    def conv(self, tensor: str, inputs: int, outputs: int, kernel: int, gain: float) -> str:
        values = self.rng.normal(0, gain / (inputs * kernel**2) ** 0.5, (outputs, inputs, kernel, kernel))
        bias = self.rng.normal(0, 0.2, outputs)
        return self.add("Conv", tensor, self.constant(values), self.constant(bias), strides=[kernel, kernel])

    def heads(self, channels: int, *, image: str = "images", level_255: bool = False) -> str:
        """Return [batch, channels, cells]: what the last convolutions say of each cell of the three levels."""
        scale = 255.0 if level_255 else 1.0
        centred = self.add("Sub", image, self.constant(np.full((1, 3, 1, 1), 0.45 * scale)))
        tensor = self.add("Mul", centred, self.constant(4 / scale))
        # so that one level of 255 in single pixels counts for little
        tensor = self.add("AveragePool", tensor, kernel_shape=[4, 4], strides=[4, 4])
        flat = []
        for level, stride in enumerate(STRIDES):
            tensor = self.conv(tensor, _CHANNELS if level else 3, _CHANNELS, 2, 2.0)
            tensor = self.add("Relu", tensor)
            own = self.conv(tensor, _CHANNELS, channels, 1, 0.6)
            # as exporters write it: the batch as a number where it is fixed
            shape = [0 if isinstance(self.batch, str) else self.batch, channels]
            flat.append(self.add("Reshape", own, self.integers(*shape, -1 if self.free else (SIZE // stride) ** 2)))
        return self.add("Concat", *flat, axis=2)

    def grid(self, image: str = "images") -> tuple[str, str]:
        """Return the centres of the cells [1, 2, cells] in pixels and their strides [1, 1, cells]."""
        if not self.free:
            centres, strides = grid(SIZE)
            return self.constant(centres.T[None]), self.constant(strides[None, None])
        shape = self.add("Shape", image)
        all_centres, all_strides = [], []
        for stride in STRIDES:
            edges = self.add("Div", self.part(shape, 2, 4, 0), self.integers(stride))
            # every cell's place: 0, 1, 2, ... along an axis of ones
            ones = self.add("ConstantOfShape", edges, value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
            planes = []
            for axis in (1, 0):
                place = self.add("CumSum", ones, self.constant(axis, np.int64))
                centre = self.add("Mul", self.add("Sub", place, self.constant(0.5)), self.constant(stride))
                planes.append(self.add("Reshape", centre, self.integers(1, 1, -1)))
            all_centres.append(self.add("Concat", *planes, axis=1))
            all_strides.append(self.add("Add", self.add("Mul", planes[0], self.constant(0)), self.constant(stride)))
        return self.add("Concat", *all_centres, axis=2), self.add("Concat", *all_strides, axis=2)

    def boxes(self, heads: str) -> tuple[str, str]:
        """Return centre and size [batch, 2, cells] in pixels, of the first four channels."""
        centres, strides = self.grid()
        shift = self.add(
            "Mul", self.add("Tanh", self.part(heads, 0, 2, 1)), self.add("Mul", strides, self.constant(0.5))
        )
        grown = self.add("Add", self.add("Sigmoid", self.part(heads, 2, 4, 1)), self.constant(0.5))
        return self.add("Add", centres, shift), self.add("Mul", grown, self.add("Mul", strides, self.constant(2)))

    def corners(self, centre: str, size: str) -> tuple[str, str]:
        half = self.add("Mul", size, self.constant(0.5))
        return self.add("Sub", centre, half), self.add("Add", centre, half)

    def rows(self, boxes: str, scores: str, count: int = ROWS) -> tuple[str, str, str]:
        """Return the best rows of [batch, 4, cells] and [batch, classes, cells]: boxes, scores, classes as INT64.

        With a batch of 1 they are gathered by pairs, the image's number, which is 0, and the cell's.
        """
        best = self.highest(scores, 1)
        kept, anchors = self.add("TopK", best, self.integers(count), axis=1, more=["anchors"]), "anchors"
        where = self.add("Expand", self.add("Unsqueeze", anchors, self.integers(2)), self.integers(1, 1, 4))
        ordered = self.add("Transpose", boxes, perm=[0, 2, 1])
        classes = self.add("ArgMax", scores, axis=1, keepdims=0)
        if self.batch == 1:
            cells = self.add("Unsqueeze", anchors, self.integers(2))
            pairs = self.add("Concat", self.constant(np.zeros((1, count, 1)), np.int64), cells, axis=2)
            gathered = self.add("GatherND", ordered, pairs)
        else:
            gathered = self.add("GatherElements", ordered, where, axis=1)
        return (
            gathered,
            kept,
            self.add("GatherElements", classes, anchors, axis=1),
        )

    def write(
        self,
        path: Path,
        outputs: Mapping[str, Sequence[Any]],
        *,
        metadata: Mapping[str, str] | None = None,
        sizes: str = "",
        types: Mapping[str, int] | None = None,
        more_opsets: Sequence[onnx.OperatorSetIdProto] = (),
    ) -> Path:
        """Write the file; `sizes` names a second input with each image's size, `outputs` are shapes by names."""
        edges = ["height", "width"] if self.free else [SIZE, SIZE]
        make = helper.make_tensor_value_info
        inputs = [make("images", TensorProto.FLOAT, [self.batch, 3, *edges])]
        inputs += [make(sizes, TensorProto.INT64, [self.batch, 2])] if sizes else []
        kinds = {name: (types or {}).get(name, TensorProto.FLOAT) for name in outputs}
        ends = [make(name, kinds[name], [self.batch, *shape]) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "detector", inputs, ends, self.weights)
        opsets = [helper.make_opsetid("", self.opset), *more_opsets]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, path)
        return path


def grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the centres (cells, 2) in pixels, x before y, and the strides of all cells, row by row."""
    centres, strides = [], []
    for stride in STRIDES:
        edge = np.arange(size // stride)
        rows, columns = np.meshgrid(edge, edge, indexing="ij")
        centres.append((np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5) * stride)
        strides.append(np.full(len(edge) ** 2, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def literals(*, head: str = "Detect", names: Sequence[str] = NAMES, **more: Any) -> dict[str, str]:
    """Return metadata as exporters of YOLO write it: each value as a Python literal."""
    known = {
        "description": "a detector written by hand",
        "license": LICENSE,
        "stride": 32,
        "task": "detect",
        "head": head,
        "imgsz": [SIZE, SIZE],
        "names": dict(enumerate(names)),
        "args": {"nms": None, "dynamic": True},
        "end2end": False,
    }
    return {key: str(value) for key, value in {**known, **more}.items() if value is not None}


def write_raw(
    path: Path,
    *,
    batch: int | str = "batch",
    opset: int = 18,
    free: bool = False,
    classes: int = len(NAMES),
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """[batch, 4 + classes, cells]: centre, size, and a probability per class; YOLOv8 and its successors."""
    graph = Graph(batch=batch, opset=opset, free=free, seed=seed)
    heads = graph.heads(4 + classes)
    centre, size = graph.boxes(heads)
    scores = graph.add("Sigmoid", graph.part(heads, 4, 4 + classes, 1))
    graph.add("Concat", centre, size, scores, result="output0", axis=1)
    return graph.write(path, {"output0": [4 + classes, "anchors" if free else CELLS]}, metadata=metadata)


def write_objectness(
    path: Path,
    *,
    batch: int | str = "batch",
    opset: int = 18,
    classes: int = len(NAMES),
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """[batch, 3 * cells, 5 + classes]: three anchors per cell, with objectness; YOLOv5 and YOLOv7."""
    graph = Graph(batch=batch, opset=opset)
    three = []
    for _ in range(3):
        heads = graph.heads(5 + classes)
        scores = graph.add("Sigmoid", graph.part(heads, 4, 5 + classes, 1))
        three.append(graph.add("Concat", *graph.boxes(heads), scores, axis=1))
    graph.add("Transpose", graph.add("Concat", *three, axis=2), result="output", perm=[0, 2, 1])
    return graph.write(path, {"output": [3 * CELLS, 5 + classes]}, metadata=metadata)


def write_yolox(
    path: Path,
    *,
    batch: int | str = "batch",
    opset: int = 18,
    decoded: bool = True,
    constant_objectness: bool = False,
    classes: int = len(NAMES),
) -> Path:
    """[batch, cells, 5 + classes]: one anchor per cell, BGR levels of 0..255; YOLOX.

    Without `decoded` the boxes are the convolutions' own. With `constant_objectness` it is 1, as YOLOv6 has it.
    """
    graph = Graph(batch=batch, opset=opset)
    heads = graph.heads(5 + classes, level_255=not constant_objectness)
    boxes = [graph.part(heads, 0, 4, 1)]
    if decoded:
        centres, strides = graph.grid()
        shift = graph.add("Mul", graph.part(heads, 0, 2, 1), strides)
        grown = graph.add("Clip", graph.part(heads, 2, 4, 1), "", graph.constant(2))
        boxes = [graph.add("Add", centres, shift), graph.add("Mul", graph.add("Exp", grown), strides)]
    scores = graph.add("Sigmoid", graph.part(heads, 4 + constant_objectness, 5 + classes, 1))
    ones = []
    if constant_objectness:
        shape = graph.add("Shape", graph.part(heads, 0, 1, 1))
        one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
        ones = [graph.add("ConstantOfShape", shape, value=one)]
    graph.add("Transpose", graph.add("Concat", *boxes, *ones, scores, axis=1), result="output", perm=[0, 2, 1])
    return graph.write(path, {"output": [CELLS, 5 + classes]})


def write_end2end(
    path: Path,
    *,
    batch: int | str = "batch",
    opset: int = 18,
    normalised: bool = False,
    classes: int = len(NAMES),
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """[batch, rows, 6]: box, score, class. Corners in pixels (YOLOv10, YOLO26) or centre and size from 0 to 1."""
    graph = Graph(batch=batch, opset=opset)
    heads = graph.heads(4 + classes)
    pair = graph.boxes(heads)
    boxes = graph.add("Concat", *(pair if normalised else graph.corners(*pair)), axis=1)
    boxes = graph.add("Mul", boxes, graph.constant(1 / SIZE)) if normalised else boxes
    scores = graph.add("Sigmoid", graph.part(heads, 4, 4 + classes, 1))
    found, kept, of_rows = graph.rows(boxes, scores)
    last = graph.integers(2)
    columns = [graph.add("Unsqueeze", one, last) for one in (kept, graph.add("Cast", of_rows, to=TensorProto.FLOAT))]
    graph.add("Concat", found, *columns, result="output0", axis=2)
    return graph.write(path, {"output0": [ROWS, 6]}, metadata=metadata)


def write_scores(
    path: Path,
    *,
    batch: int | str = "batch",
    opset: int = 18,
    background: int | None = None,
    normalised: bool = False,
    logits: bool = False,
    names: tuple[str, str] = ("boxes", "scores"),
    classes: int = len(NAMES),
) -> Path:
    """Boxes [batch, cells, 4] as corners, scores [batch, cells, classes], or with a column `background`; SSD."""
    graph = Graph(batch=batch, opset=opset)
    columns = classes + (background is not None)
    heads = graph.heads(4 + columns)
    boxes = graph.add("Concat", *graph.corners(*graph.boxes(heads)), axis=1)
    boxes = graph.add("Mul", boxes, graph.constant(1 / SIZE)) if normalised else boxes
    graph.add("Transpose", boxes, result=names[0], perm=[0, 2, 1])
    last = graph.add("Transpose", graph.part(heads, 4, 4 + columns, 1), perm=[0, 2, 1])
    if logits:
        graph.add("Identity", last, result=names[1])
    elif background is None:
        graph.add("Sigmoid", last, result=names[1])
    else:
        graph.add("Softmax", last, result=names[1], axis=2)
    return graph.write(path, {names[0]: [CELLS, 4], names[1]: [CELLS, columns]})


def write_logits(
    path: Path,
    *,
    batch: int | str = "batch",
    opset: int = 18,
    names: tuple[str, str] = ("logits", "pred_boxes"),
    columns: int = len(NAMES),
) -> Path:
    """pred_boxes [batch, cells, 4] as centre and size from 0 to 1, logits [batch, cells, columns]; DETR's family."""
    graph = Graph(batch=batch, opset=opset)
    heads = graph.heads(4 + columns)
    boxes = graph.add("Concat", *graph.boxes(heads), axis=1)
    boxes = graph.add("Mul", boxes, graph.constant(1 / SIZE))
    graph.add("Transpose", graph.part(heads, 4, 4 + columns, 1), result=names[0], perm=[0, 2, 1])
    graph.add("Transpose", boxes, result=names[1], perm=[0, 2, 1])
    return graph.write(path, {names[0]: [CELLS, columns], names[1]: [CELLS, 4]})


def write_sized(path: Path, *, batch: int | str = "batch", opset: int = 18, classes: int = len(NAMES)) -> Path:
    """labels, boxes and scores of the best rows, corners in pixels of what `orig_target_sizes` says; D-FINE."""
    graph = Graph(batch=batch, opset=opset)
    heads = graph.heads(4 + classes)
    boxes = graph.add("Concat", *graph.corners(*graph.boxes(heads)), axis=1)
    scores = graph.add("Sigmoid", graph.part(heads, 4, 4 + classes, 1))
    found, kept, of_rows = graph.rows(graph.add("Mul", boxes, graph.constant(1 / SIZE)), scores)
    sizes = graph.add("Cast", "orig_target_sizes", to=TensorProto.FLOAT)
    twice = graph.add("Unsqueeze", graph.add("Concat", sizes, sizes, axis=1), graph.integers(1))
    graph.add("Identity", of_rows, result="labels")
    graph.add("Mul", found, twice, result="boxes")
    graph.add("Identity", kept, result="scores")
    outputs = {"labels": [ROWS], "boxes": [ROWS, 4], "scores": [ROWS]}
    return graph.write(path, outputs, sizes="orig_target_sizes", types={"labels": TensorProto.INT64})


def write_nms(path: Path, *, opset: int = 18, metadata: Mapping[str, str] | None = None) -> Path:
    """[1, 20, 6] behind NonMaxSuppression and NonZero: an export with NMS in it."""
    graph = Graph(batch=1, opset=opset)
    heads = graph.heads(4 + len(NAMES))
    boxes = graph.add("Concat", *graph.corners(*graph.boxes(heads)), axis=1)
    boxes = graph.add("Transpose", boxes, perm=[0, 2, 1])
    scores = graph.add("Sigmoid", graph.part(heads, 4, 4 + len(NAMES), 1))
    chosen = graph.add("NonMaxSuppression", boxes, scores, graph.integers(ROWS), graph.constant([0.45]))
    anchors = graph.add("Reshape", graph.part(chosen, 2, 3, 1), graph.integers(-1))
    rows = graph.add("Gather", boxes, anchors, axis=1)
    padding = graph.add("Sub", graph.integers(ROWS), graph.part(graph.add("Shape", rows), 1, 2, 0))
    pads = graph.add("Concat", graph.integers(0, 0, 0, 0), padding, graph.integers(2), axis=0)
    padded = graph.add("Pad", rows, graph.add("Max", pads, graph.integers(0)))
    graph.add("Reshape", graph.part(padded, 0, ROWS, 1), graph.integers(1, ROWS, 6), result="output0")
    return graph.write(path, {"output0": [ROWS, 6]}, metadata=metadata)


def write_plugin(path: Path, *, opset: int = 18) -> Path:
    """num_dets, det_boxes, det_scores and det_classes of TensorRT's plugin, which onnxruntime lacks."""
    graph = Graph(opset=opset)
    heads = graph.heads(4 + len(NAMES))
    boxes = graph.add("Transpose", graph.add("Concat", *graph.corners(*graph.boxes(heads)), axis=1), perm=[0, 2, 1])
    scores = graph.add("Transpose", graph.add("Sigmoid", graph.part(heads, 4, 7, 1)), perm=[0, 2, 1])
    names = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    options = {"max_output_boxes": ROWS, "score_threshold": 0.25, "iou_threshold": 0.45, "background_class": -1}
    graph.add("EfficientNMS_TRT", boxes, scores, result=names[0], more=names[1:], domain="TRT", **options)
    outputs = dict(zip(names, ([1], [ROWS, 4], [ROWS], [ROWS]), strict=True))
    integers = dict.fromkeys(("num_dets", "det_classes"), TensorProto.INT32)
    return graph.write(path, outputs, types=integers, more_opsets=[helper.make_opsetid("TRT", 1)])


def write_two_stages(path: Path, *, opset: int = 18) -> Path:
    """boxes, labels and scores of an unknown number of rows, with RoiAlign in the middle: Faster R-CNN."""
    graph = Graph(batch=1, opset=opset)
    heads = graph.heads(4 + len(NAMES))
    boxes = graph.add("Concat", *graph.corners(*graph.boxes(heads)), axis=1)
    flat = graph.add("Squeeze", graph.add("Transpose", boxes, perm=[0, 2, 1]), graph.integers(0))
    scores = graph.add("Sigmoid", graph.part(heads, 4, 7, 1))
    kept = graph.add("NonMaxSuppression", graph.add("Unsqueeze", flat, graph.integers(0)), scores, graph.integers(5))
    rows = graph.add("Reshape", graph.part(kept, 2, 3, 1), graph.integers(-1))
    found = graph.add("Gather", flat, rows, result="boxes", axis=0)
    images = graph.add("Mul", rows, graph.constant(0, np.int64))
    graph.add("RoiAlign", "images", found, images, result="crops", output_height=2, output_width=2)
    graph.add("Reshape", graph.highest(graph.add("Flatten", "crops", axis=1), 1), graph.integers(-1), result="scores")
    graph.add("Cast", graph.add("Mul", "scores", graph.constant(2)), result="labels", to=TensorProto.INT64)
    make = helper.make_tensor_value_info
    inputs = [make("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])]
    ends = [make("boxes", TensorProto.FLOAT, ["found", 4]), make("labels", TensorProto.INT64, ["found"]),
            make("scores", TensorProto.FLOAT, ["found"])]  # fmt: skip
    proto = helper.make_graph(graph.nodes, "detector", inputs, ends, graph.weights)
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path
