"""A fixed batch made free: what counts on its number is rewritten, as far as shapes show what that is.

The shapes are inferred twice, for the batch that the graph has and for a multiple of it: the axis that grows with it is
the batch's. Reshape with a number for that axis does not let it grow. Its output keeps the order of the values in
memory, so the batch goes to the axis that has as many values outside of it as before. Resize with a number for it gets
what the batch is, and a Squeeze leaves it. What is missed or wrong here is found by the proof of the batch and by the
comparison with the user's own file.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from generator.graph.shapes import Shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

_GROWTH = 7919  # a prime that no other axis has


def free_batch(model: onnx.ModelProto, image: Sequence[int]) -> list[str]:
    """Rewrite `model` in place and return the names of the nodes that were changed.

    `image` is the whole shape of the input, with the batch that the graph was made for.
    """
    return _Walk(model, image).rewrite()


class _Walk:
    """Where the batch is in each tensor of a graph, learned node by node."""

    def __init__(self, model: onnx.ModelProto, image: Sequence[int]) -> None:
        self.graph = model.graph
        self.batch = image[0]
        self.fixed = Shapes(model, image)
        self.grown = Shapes(model, (image[0] * _GROWTH, *image[1:]))
        # how many values of the batch's axis lie outside of the batch: 49 where [49, batch, 8] became [49 * batch, 8]
        self.outside: dict[str, int] = {}

    def rewrite(self) -> list[str]:
        """Rewrite the nodes that stop the batch; return their names."""
        changed = []
        for node in list(self.graph.node):
            self.fixed.follow(node)
            self.grown.follow(node)
            carriers = [name for name in node.input if self._axis(name) is not None]
            if not carriers:
                continue
            if node.op_type in ("Reshape", "Flatten"):
                rewritten = self._follow_reshape(node)
            elif node.op_type == "Concat":
                rewritten = self._follow_concat(node, carriers[0])
            else:
                rewritten = self._rewrite_resize(node) or self._rewrite_squeeze(node) or self._rewrite_gather(node)
                self._follow(node, carriers[0])
            if rewritten:
                changed.append(node.name or node.output[0])
        return changed

    def _axis(self, name: str) -> int | None:
        """Return the axis that grows with the batch, None where there is no such one, or several."""
        fixed, grown = self.fixed.get(name) or (), self.grown.get(name) or ()
        if len(fixed) != len(grown):
            return None
        axes = [axis for axis, (one, other) in enumerate(zip(fixed, grown, strict=True)) if one != other]
        return axes[0] if len(axes) == 1 and grown[axes[0]] == fixed[axes[0]] * _GROWTH else None

    def _follow(self, node: Any, carrier: str) -> None:
        """Take over what is outside of the batch, as long as its axis is as long as before."""
        before, axis = self.fixed.get(carrier), self._axis(carrier)
        for name in node.output:
            shape, after = self.fixed.get(name), self._axis(name)
            if before and shape and axis is not None and after is not None and shape[after] == before[axis]:
                self.outside[name] = self.outside.get(carrier, 1)

    def _follow_reshape(self, node: Any) -> bool:
        given, made = node.input[0], node.output[0]
        axis, shape, target = self._axis(given), self.fixed.get(given), self.fixed.get(made)
        if axis is None or shape is None or target is None:
            return False
        outside = prod(shape[:axis]) * self.outside.get(given, 1)
        new = place_batch(target, batch=self.batch, outside=outside, before=axis)
        if new is None:
            return False
        self.outside[made] = outside // prod(target[:new])
        if self._axis(made) == new or node.op_type == "Flatten" or not self.grown.knows_value(node.input[1]):
            return False
        node.input[1] = self._add_constant(
            f"{made}_shape", [-1 if axis == new else size for axis, size in enumerate(target)]
        )
        self.grown.follow(node)
        return True

    def _follow_concat(self, node: Any, carrier: str) -> bool:
        """Repeat constants beside a batch, as the class token of a transformer, for each of its images."""
        axis, shape = self._axis(carrier), self.fixed.get(carrier)
        if axis is None or shape is None:
            return False
        along = next(attribute.i for attribute in node.attribute if attribute.name == "axis") % len(shape)
        alone = [
            index
            for index, name in enumerate(node.input)
            if self._axis(name) is None and (self.fixed.get(name) or ())[axis : axis + 1] == (1,)
        ]
        if along == axis or self.batch != 1 or not alone:
            self._follow(node, carrier)
            return False
        for index in alone:
            node.input[index] = self._repeat(node, index, carrier, axis)
        self.grown.follow(node)
        self._follow(node, carrier)
        return True

    def _rewrite_resize(self, node: Any) -> bool:
        """Let the sizes of a Resize hold the batch that its input has."""
        given = node.input[0]
        axis, shape = self._axis(given), self.fixed.get(node.output[0])
        if node.op_type != "Resize" or axis is None or shape is None or self._axis(node.output[0]) is not None:
            return False
        if len(node.input) < 4 or any(attribute.name == "axes" for attribute in node.attribute):
            return False
        node.input[3] = self._add_shape(node, given, axis, shape)
        self.grown.follow(node)
        return True

    def _rewrite_squeeze(self, node: Any) -> bool:
        """Keep a Squeeze from taking a batch of 1 out: it gets the other axes that it took."""
        given = node.input[0]
        axis, shape = self._axis(given), self.fixed.get(given)
        if node.op_type != "Squeeze" or axis is None or shape is None:
            return False
        asked = self.fixed.read_value(node.input[1]) if len(node.input) > 1 else range(len(shape))
        if asked is None or axis not in (taken := {one % len(shape) for one in asked}):
            return False
        left = [one for one in sorted(taken - {axis}) if shape[one] == 1]
        node.input[:] = [given, self._add_constant(f"{node.output[0]}_axes", left)]
        self.fixed.follow(node)
        self.grown.follow(node)
        return True

    def _rewrite_gather(self, node: Any) -> bool:
        """Let the pairs of a GatherND do without the number of the image, which is 0 with a batch of 1."""
        from onnx import helper

        if node.op_type != "GatherND" or self.batch != 1 or any(attribute.i for attribute in node.attribute):
            return False
        data, indices = node.input
        shape = self.fixed.get(indices)
        if shape is None or shape[-1] < 2 or self._axis(data) != 0 or self._axis(indices) != 0:
            return False
        new = self._free_name(f"{indices}_within")
        bounds = {"from": [1], "to": [shape[-1]], "axis": [len(shape) - 1]}
        parts = [self._add_constant(f"{new}_{key}", values) for key, values in bounds.items()]
        cut = helper.make_node("Slice", [indices, *parts], [new], name=new)
        self.graph.node.insert(list(self.graph.node).index(node), cut)
        node.input[1] = new
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("batch_dims", 1))
        for one in (cut, node):
            self.fixed.follow(one)
            self.grown.follow(one)
        return True

    def _repeat(self, node: Any, index: int, carrier: str, axis: int) -> str:
        """Put nodes before `node` that repeat its input `index` as often as `carrier` has images."""
        from onnx import helper

        name = node.input[index]
        new = self._free_name(f"{name}_each")
        shape = self._add_shape(node, carrier, axis, [1] * len(self.fixed.get(name) or ()))
        self._insert(node, [helper.make_node("Expand", [name, shape], [new], name=new)])
        return new

    def _add_shape(self, node: Any, carrier: str, axis: int, sizes: Sequence[int]) -> str:
        """Put nodes before `node` that make the shape `sizes`, with what `carrier` has on its `axis` in that place."""
        from onnx import helper

        new = self._free_name(f"{node.output[0]}_shape")
        parts = [
            *([self._add_constant(f"{new}_before", list(sizes[:axis]))] if axis else []),
            f"{new}_count",
            *([self._add_constant(f"{new}_behind", list(sizes[axis + 1 :]))] if sizes[axis + 1 :] else []),
        ]
        which = self._add_constant(f"{new}_axis", [axis])
        nodes = [
            helper.make_node("Shape", [carrier], [f"{new}_sizes"], name=f"{new}_sizes"),
            helper.make_node("Gather", [f"{new}_sizes", which], [f"{new}_count"], name=f"{new}_count"),
            helper.make_node("Concat", parts, [new], name=new, axis=0),
        ]
        self._insert(node, nodes)
        return new

    def _insert(self, before: Any, nodes: Sequence[Any]) -> None:
        position = list(self.graph.node).index(before)
        for offset, node in enumerate(nodes):
            self.graph.node.insert(position + offset, node)
            self.fixed.follow(node)
            self.grown.follow(node)

    def _add_constant(self, wanted: str, values: list[int]) -> str:
        import numpy as np
        from onnx import numpy_helper

        name = self._free_name(wanted)
        tensor = numpy_helper.from_array(np.array(values, np.int64), name)
        self.graph.initializer.append(tensor)
        self.fixed.learn_value(tensor)
        self.grown.learn_value(tensor)
        return name

    def _free_name(self, wanted: str) -> str:
        taken = {tensor.name for tensor in self.graph.initializer}
        taken |= {name for node in self.graph.node for name in (*node.input, *node.output)}
        while wanted in taken:
            wanted += "_"
        return wanted


def place_batch(target: Sequence[int], *, batch: int, outside: int, before: int) -> int | None:
    """Return the axis of `target`, the shape that a Reshape makes, which holds the batch; None if none can.

    `outside` is how many values lie outside of the batch in memory: 49 in [49, batch, 8]. Between two axes it may be
    the inner end of the first or the outer end of the second. An axis as long as the batch alone comes first, the one
    it had `before` if that is one; then any but the last, which layers have their weights for; then the second.
    """
    fitting = []
    for axis, size in enumerate(target):
        start = prod(target[:axis])
        if size and size % batch == 0 and outside % start == 0 and (start * size // batch) % outside == 0:
            fitting.append(axis)
    alone = [axis for axis in fitting if target[axis] == batch]
    if alone:
        return before if before in alone else alone[0]
    inner = [axis for axis in fitting if axis < len(target) - 1] or fitting
    return inner[-1] if inner else None
