"""What an ONNX detector says of itself besides its outputs: metadata, the size of its images, its operators."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError
from generator.graph.model import describe_graph, image_axes, load_proto
from generator.graph.shapes import learn_shapes
from generator.graph.size_input import make_size, take_size_input

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import onnx

    from generator.spec.model import ModelSpec
    from generator.tensor import Tensor

_USUAL_SIZE = 640
_SIZES = range(32, 8193)
_NMS_HINT = (
    "export it without NMS, which the post-processing step does: leave out nms=True of Ultralytics and --end2end of "
    "YOLOv7; torchvision's SSD, RetinaNet and FCOS are built by their names"
)
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset({"Sigmoid", "Softmax", "HardSigmoid"})
# They take values from their first input, and from the others where these go.
_MOVERS = frozenset(
    {"Expand", "Gather", "GatherElements", "GatherND", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile", "TopK",
     "Unsqueeze"}
)  # fmt: skip
_SHAPES = frozenset({"Shape", "ConstantOfShape"})
_OTHER_TASKS = ("segment", "pose", "obb", "classify")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorFile:
    """`model` is without its weights, `size` the height and width that it fixes, `metadata` by key, literals as values.

    `knows_size` says that a second input tells it how large the images are.
    """

    path: Path
    model: onnx.ModelProto
    size: tuple[int, int] | None
    knows_size: bool
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> DetectorFile:
        """Look into a file.

        Raises:
            SourceError: It answers something else than boxes, or has NMS or a second stage in it.
        """
        from onnx import numpy_helper

        model = load_proto(path, weights=False)
        if (sizes := take_size_input(model)) is not None:  # what it says is not known yet, its shape is
            model.graph.initializer.append(numpy_helper.from_array(make_size(sizes, (1, 1))[None], sizes.name))
        _, (height, width) = image_axes(describe_graph(model, path))
        metadata = {entry.key: _read_literal(entry.value) for entry in model.metadata_props}
        if (task := metadata.get("task")) in _OTHER_TASKS:
            msg = f"{path}: its metadata says task: {task}, and detect was expected"
            raise SourceError(msg, hint="only boxes are served: export a model that was trained to detect")
        _refuse_nodes(path, model.graph)
        size = None if -1 in (height, width) else (height, width)
        return cls(path=path, model=model, size=size, knows_size=sizes is not None, metadata=metadata)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes that the metadata gives, None where it gives none."""
        names = self.metadata.get("names")
        if isinstance(names, dict):
            names = [names[index] for index in range(len(names))] if set(names) == set(range(len(names))) else None
        if not isinstance(names, (list, tuple)) or not names:
            return None
        return tuple(" ".join(str(name).split()) for name in names)

    @property
    def head(self) -> str:
        """The decoder that Ultralytics names, empty where the metadata has none."""
        return str(self.metadata.get("head", ""))

    def choose_size(self, spec: ModelSpec) -> tuple[int, int]:
        """Return the network's height and width: as fixed, as the spec says, as the metadata does, or the usual one."""
        edges: Any = self.size or spec.image_size or spec.recipe.crop or self.metadata.get("imgsz")
        edges = [edges, edges] if isinstance(edges, int) else edges
        if isinstance(edges, (list, tuple)) and len(edges) == 2 and all(edge in _SIZES for edge in edges):
            return edges[0], edges[1]
        return _USUAL_SIZE, _USUAL_SIZE

    def find_outputs(self, size: Sequence[int]) -> list[Tensor]:
        """Return the outputs with the shapes that they have for one image of this height and width."""
        found = describe_graph(self.model, self.path)
        if all(-1 not in tensor.shape[1:] for tensor in found.outputs):
            return list(found.outputs)
        edges = (3, *size) if image_axes(found)[0] == "NCHW" else (*size, 3)
        shapes = learn_shapes(self.model, (max(found.input.shape[0], 1), *edges))
        return [shapes.complete(tensor) for tensor in found.outputs]

    def find_makers(self, tensor: str, *, until: AbstractSet[str] = _LAYERS) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that the values of `tensor` come from, from it on back to those of the types `until`."""
        producers = {output: node for node in self.model.graph.node for output in node.output}
        waiting, seen = [tensor], set()
        while waiting:
            node = producers.get(waiting.pop(0))
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            yield node
            if node.op_type not in until | _SHAPES:
                waiting += node.input[:1] if node.op_type in _MOVERS else node.input

    def find_activation(self, tensor: str) -> str:
        """Return the Sigmoid or Softmax between the last layer and `tensor`, empty if there is none."""
        makers = self.find_makers(tensor, until=_LAYERS | _ACTIVATIONS)
        return next((node.op_type for node in makers if node.op_type in _ACTIVATIONS), "")

    def follows_from_layer(self, tensor: str) -> bool:
        """Say whether `tensor` depends on the image, and is no constant."""
        return any(node.op_type in _LAYERS for node in self.find_makers(tensor))


def _read_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _refuse_nodes(path: Path, graph: onnx.GraphProto) -> None:
    nodes = list(_all_nodes(graph))

    def find(*words: str) -> onnx.NodeProto | None:
        return next((node for node in nodes if any(word in node.op_type.lower() for word in words)), None)

    if node := find("roialign", "croppedresize"):
        msg = f"{path}: {_where(node)} cuts regions out of the image: a detector with two stages, such as Faster R-CNN"
        hint = "take one with one stage: SSD, RetinaNet, FCOS, YOLO, or one of DETR's family"
        raise SourceError(msg, hint=hint)
    if node := find("nonmaxsuppression"):
        msg = f"{path}: {_where(node)} is NMS in the graph, whose answer has no axis for the batch"
        raise SourceError(msg, hint=_NMS_HINT)
    if node := find("nms"):
        msg = f"{path}: {_where(node)} is a plugin of TensorRT's, which neither onnxruntime nor every TensorRT has"
        raise SourceError(msg, hint=_NMS_HINT)


def _where(node: onnx.NodeProto) -> str:
    return f"node {node.name or node.output[0]} ({node.op_type})"


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                yield from _all_nodes(inner)
