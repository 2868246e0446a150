"""The likely cause of a graph that answers unlike its source, found by trying the usual mistakes on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.gate.causes import of_normalisation
from generator.graph.model import OnnxModel, load_proto, run_graph
from generator.tasks.classification.activation import last_node
from generator.tasks.classification.compare import Comparison, comparable, compare

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference

LABELS = "labels.txt has its lines in another order than the network's outputs"
UPSTREAM = "see the stages above: the ensemble only joins them"
_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")


def of_graph(candidate: Candidate, model: OnnxModel, reference: Reference) -> str:
    """Say why a graph answers unlike the source: activation, channel order, normalisation."""
    proto = load_proto(model.path)
    if twice := _two_activations(proto, model.output.name):
        return twice

    def with_pixels(pixels: NDArray[np.uint8]) -> Comparison:
        activation = candidate.artifact.head.activation
        expected = comparable(candidate.artifact.head.finish(reference.answers["scores"]), activation)
        return compare(expected, comparable(next(iter(run_graph(model, pixels).values())), activation))

    as_they_are = with_pixels(reference.pixels)
    if with_pixels(reference.pixels[..., ::-1]).worst_cosine > max(0.999, as_they_are.worst_cosine):
        return "the channels are in BGR order, the source takes RGB"
    if wrong := of_normalisation(candidate, proto):
        return wrong
    return "the weights or the graph differ from the source"


def _two_activations(proto: onnx.ModelProto, output: str) -> str:
    """Say whether the graph ends in one activation behind another."""
    last = last_node(proto, output)
    before = last_node(proto, last.input[0]) if last is not None and last.op_type in _ACTIVATIONS else None
    if last is None or before is None or before.op_type not in _ACTIVATIONS:
        return ""
    if last.op_type == before.op_type:
        return f"{last.op_type} twice: the network ends in one and another was put behind it"
    return f"a {last.op_type} behind a {before.op_type}: the network ends in an activation already"
