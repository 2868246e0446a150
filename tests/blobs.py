"""A detector that finds red, green and blue rectangles, made by hand, and scenes to find them in.

It measures: the moments of each colour in a window about each of 16x16 cells give centre and size of what is there, and
the score says how full and how central that is. Cells beside the best one see the same rectangle, so it needs NMS.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

LABELS = ("red", "green", "blue")
SIZE, STRIDE, REACH = 128, 8, 17
CELLS = (SIZE // STRIDE) ** 2
RECIPE = {
    "fit": "letterbox", "resize": [SIZE, SIZE], "crop": [SIZE, SIZE], "interpolation": "bilinear",
    "fill": [114, 114, 114], "mean": 0.0, "std": 1.0,
}  # fmt: skip


def write_detector(path: Path) -> Path:
    """Write the detector: boxes [batch, anchors, 4] as corners in pixels, scores [batch, anchors, 3]."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(values: NDArray[np.float32] | float, name: str) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def integers(*values: int) -> str:
        name = "integers_" + "_".join(map(str, values)).replace("-", "minus_")
        if not any(weight.name == name for weight in weights):
            weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    # how much more of its colour a pixel has than of the others
    planes = [add("Slice", ["images", integers(at), integers(at + 1), integers(1)], f"plane_{at}") for at in range(3)]
    masks = []
    for at, plane in enumerate(planes):
        other = add("Max", [one for one in planes if one != plane], f"other_{at}")
        masks.append(add("Relu", [add("Sub", [plane, other], f"more_{at}")], f"mask_{at}"))
    mask = add("Concat", masks, "mask", axis=1)
    # sums over a window: of the mask, and of the mask times x, y, x * x and y * y, in pixels from the cell's centre
    along = np.arange(-REACH, REACH, dtype=np.float32) + 0.5
    y, x = np.meshgrid(along, along, indexing="ij")
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y])[:, None]
    kernel = constant(np.tile(moments, (3, 1, 1, 1)), "kernel")
    pad = REACH - STRIDE // 2
    sums = add(
        "Conv", [mask, kernel], "sums", group=3, strides=[STRIDE, STRIDE], pads=[pad] * 4,
        kernel_shape=[2 * REACH, 2 * REACH],
    )  # fmt: skip
    table = add("Reshape", [sums, integers(0, 3, 5, CELLS)], "table")
    mass, *others = (
        add("Slice", [table, integers(at), integers(at + 1), integers(2)], f"moment_{at}") for at in range(5)
    )
    mass = add("Add", [mass, constant(1e-3, "little")], "mass")
    means = [add("Div", [one, mass], f"mean_{at}") for at, one in enumerate(others)]
    offset = add("Concat", means[:2], "offset", axis=2)
    square = add("Concat", means[2:], "square", axis=2)
    spread = add("Relu", [add("Sub", [square, add("Mul", [offset, offset], "offset_2")], "variance")], "spread")
    half = add("Sqrt", [add("Mul", [spread, constant(3.0, "three")], "quarter")], "half")
    cells = np.arange(SIZE // STRIDE, dtype=np.float32) * STRIDE + STRIDE / 2
    rows, columns = np.meshgrid(cells, cells, indexing="ij")
    grid = constant(np.stack([columns.ravel(), rows.ravel()])[None, None], "grid")
    centre = add("Add", [offset, grid], "centre")
    corners = add("Concat", [add("Sub", [centre, half], "low"), add("Add", [centre, half], "high")], "corners", axis=2)
    flat = add("Transpose", [corners], "cells_last", perm=[0, 1, 3, 2])
    add("Reshape", [flat, integers(0, 3 * CELLS, 4)], "boxes")
    # full: the mask's mean over the box; central: near the cell's own centre
    area = add("ReduceProd", [half], "quarter_area", axes=[2], keepdims=1)
    full = add("Div", [mass, add("Add", [add("Mul", [area, constant(4.0, "four")], "area"), constant(9.0, "nine")],
                                 "larger")], "full")  # fmt: skip
    away = add("ReduceSumSquare", [offset], "away", axes=[2], keepdims=1)
    central = add("Exp", [add("Mul", [away, constant(-1 / 200, "width")], "nearness")], "central")
    score = add("Clip", [add("Mul", [full, central], "raw_score"), constant(0.0, "zero"), constant(1.0, "one")],
                "score")  # fmt: skip
    of_cells = add("Reshape", [score, integers(0, 3, CELLS, 1)], "of_cells")
    own = constant(np.eye(3, dtype=np.float32)[None, :, None], "own_class")
    add("Reshape", [add("Mul", [of_cells, own], "of_classes"), integers(0, 3 * CELLS, 3)], "scores")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "blobs",
        [info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [
            info("boxes", TensorProto.FLOAT, ["batch", 3 * CELLS, 4]),
            info("scores", TensorProto.FLOAT, ["batch", 3 * CELLS, 3]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def draw_scene(number: int) -> tuple[bytes, NDArray[np.float32], NDArray[np.int64]]:
    """Return a JPEG with some rectangles on grey, their corners in pixels and their classes.

    Every third has a second one in another colour that covers much of the first.
    """
    rng = np.random.default_rng([number, 15])
    width, height = (int(edge) for edge in rng.integers(200, 420, 2))
    canvas = np.full((height, width, 3), rng.integers(90, 150), np.uint8)
    canvas += rng.integers(0, 12, canvas.shape, dtype=np.uint8)
    longer = max(width, height)
    boxes: list[NDArray[np.float64]] = []
    classes: list[int] = []

    def paint(box: NDArray[np.float64], kind: int) -> None:
        left, top, right, bottom = box.astype(int)
        colour = np.full(3, int(rng.integers(10, 60)))
        colour[kind] = rng.integers(200, 256)
        canvas[top:bottom, left:right] = colour
        boxes.append(box.astype(int).astype(np.float64))
        classes.append(kind)

    for _ in range(8):
        size = rng.uniform(0.1, 0.19, 2) * longer
        corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - size)
        box = np.concatenate([corner, corner + size])
        apart = 0.13 * longer
        if any((box[:2] - apart < one[2:]).all() and (box[2:] + apart > one[:2]).all() for one in boxes):
            continue
        kind = int(rng.integers(3))
        paint(box, kind)
        if number % 3 == 0 and len(boxes) < 3:
            moved = box + np.tile(0.3 * size * [1, 0], 2)
            if moved[2] < width:
                paint(moved, (kind + 1) % 3)
    with io.BytesIO() as stream:
        Image.fromarray(canvas).save(stream, "jpeg", quality=92)
        return stream.getvalue(), np.array(boxes, np.float32), np.array(classes, np.int64)


def write_scenes(folder: Path, count: int) -> Path:
    """Write `count` scenes and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"scene-{number:02d}.jpg").write_bytes(draw_scene(number)[0])
    return folder
