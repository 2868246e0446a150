"""The second input that exports of DETR's family have: each image's size, in whose pixels the boxes are then given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.graph.model import graph_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray


def take_size_input(model: onnx.ModelProto) -> onnx.ValueInfoProto | None:
    """Take an input of integers [batch, 2] beside the image off the list of inputs and return it, None if none is.

    RT-DETR's and D-FINE's exporters call it `orig_target_sizes`.
    """
    import onnx
    from onnx import TensorProto

    inputs = graph_inputs(model)
    for given in inputs if len(inputs) == 2 else ():
        kind = given.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type in (TensorProto.INT64, TensorProto.INT32) and len(sizes) == 2 and sizes[1] == 2:
            taken = onnx.ValueInfoProto()
            taken.CopyFrom(given)
            model.graph.input.remove(given)
            return taken
    return None


def make_size(given: onnx.ValueInfoProto, size: Sequence[int]) -> NDArray[np.int64]:
    """Return what that input takes for one image of this height and width: width and height, in its own type."""
    import numpy as np
    from onnx import helper

    height, width = size
    return np.array([width, height], helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type))
