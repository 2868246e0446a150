"""The proof of the batch, for the rows of a detector: rounding may order equal scores, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from generator.errors import ExportError
from generator.graph.batches import prove_dynamic_batch
from generator.graph.model import OnnxModel, read_onnx
from generator.task import find_task
from generator.tasks.detection.head import BOXES, CLASSES, SCORES

Fault = Literal["none", "first image", "swap", "extra", "order"]
ROWS = 4
BASE = [0.1, 0.3, 0.3, 0.2, 0.0]
CORNERS = [[0, 0, 8, 8], [10, 0, 20, 9], [30, 5, 50, 60], [2, 2, 4, 4], [40, 40, 60, 60]]


def write_detector(path: Path, *, step: float = 2e-6, fault: Fault = "none") -> OnnxModel:
    """Write a graph whose scores are an image's brightness and a number per anchor; of five the best four are answered.

    The second anchor's number grows by `step` with each image of the batch, so that it overtakes the third in batches
    of 2 and more, as another order of summation would have it. With a fault the answers of a batch are wrong: every
    image has the brightness of the first one, the two best boxes change places in batches, the last anchor, which
    is not among the best, leads in batches, or two rows of other scores change places in batches.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(operator: str, *inputs: str, more: Sequence[str] = (), result: str = "", **options: Any) -> str:
        name = result or f"value_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name, *more], name=name, **options))
        return name

    def constant(values: Any, kind: type = np.float32) -> str:
        weights.append(numpy_helper.from_array(np.array(values, kind), f"constant_{len(weights)}"))
        return weights[-1].name

    size = add("Slice", add("Shape", "PIXELS"), constant([0], np.int64), constant([1], np.int64))
    more = add("Sub", add("Cast", size, to=TensorProto.FLOAT), constant([1]))
    is_batch = add("Min", more, constant([1]))
    levels = add("ReduceMean", add("Cast", "PIXELS", to=TensorProto.FLOAT), axes=[1, 2, 3], keepdims=0)
    if fault == "first image":
        levels = add(
            "Add",
            add("Mul", levels, constant(0)),
            add("Slice", levels, constant([0], np.int64), constant([1], np.int64)),
        )
    bright = add("Unsqueeze", add("Mul", levels, constant(1 / 512)), constant([1], np.int64))
    growth = add("Mul", more, constant([0, step, 0, 0, 0]))
    numbers = add("Add", constant(np.array(BASE) - [0, step / 2, 0, 0, 0]), growth)
    if fault == "extra":
        numbers = add("Add", numbers, add("Mul", is_batch, constant([0, 0, 0, 0, 0.4])))
    scores = add("Add", bright, numbers)
    best = add("TopK", scores, constant([ROWS], np.int64), more=["places"], axis=1)
    moved_by = constant([0, fault == "order", -(fault == "order"), 0])
    order = add("Cast", add("Mul", is_batch, moved_by), to=TensorProto.INT64)
    order = add("Add", order, constant(range(ROWS), np.int64))
    add("Gather", best, order, result=SCORES, axis=1)
    places = add("Gather", "places", order, axis=1)
    corners = constant(CORNERS)
    if fault == "swap":
        moved = np.zeros_like(CORNERS)
        moved[2], moved[3] = np.subtract(CORNERS[3], CORNERS[2]), np.subtract(CORNERS[2], CORNERS[3])
        corners = add("Add", corners, add("Mul", is_batch, constant(moved)))
    add("Gather", corners, places, result=BOXES, axis=0)
    add("Cast", add("Mul", places, constant(0, np.int64)), result=CLASSES, to=TensorProto.INT32)
    info = helper.make_tensor_value_info
    outputs = [
        info(BOXES, TensorProto.FLOAT, ["batch", ROWS, 4]),
        info(SCORES, TensorProto.FLOAT, ["batch", ROWS]),
        info(CLASSES, TensorProto.INT32, ["batch", ROWS]),
    ]
    graph = helper.make_graph(nodes, "rows", [info("PIXELS", TensorProto.UINT8, ["batch", 4, 4, 3])], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return read_onnx(path)


def prove(model: OnnxModel, task: str = "detection") -> float:
    return prove_dynamic_batch(model, maximum=4, is_reordered=find_task(task).is_reordered)


def test_equal_scores_may_change_places(tmp_path: Path) -> None:
    model = write_detector(tmp_path / "model.onnx")
    assert prove(model) <= 1e-4
    with pytest.raises(ExportError, match="differs from the same image alone"):
        prove(model, "classification")  # there each value has its place


@pytest.mark.parametrize("fault", ["first image", "swap", "extra", "order"])
def test_a_wrong_image_of_a_batch_is_found(tmp_path: Path, fault: Fault) -> None:
    model = write_detector(tmp_path / "model.onnx", step=0, fault=fault)
    with pytest.raises(ExportError, match="differs from the same image alone or in another batch"):
        prove(model)


def test_scores_that_differ_may_not_change_places(tmp_path: Path) -> None:
    model = write_detector(tmp_path / "model.onnx", step=1e-3)
    with pytest.raises(ExportError, match="differs from the same image alone or in another batch"):
        prove(model)
