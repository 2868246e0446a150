"""What a source's own output is, and what is put behind it so that clients get probabilities.

The end of the graph and the source's answers say what the output is; the spec says what is wanted. Where the two
contradict each other, that is an error: two Softmaxes, or one behind a Sigmoid, still give plausible numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from generator.errors import ExportError, SourceError
from generator.graph.wrap import rename_tensors
from generator.tasks.assumed import list_assumed_of_source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from generator.sources import Network
    from generator.spec.model import ModelSpec

Output = Literal["logits", "probabilities", "log-probabilities", "independent probabilities"]
Activation = Literal["softmax", "sigmoid", "none"]

# These hand their first input on with other dims or another type: what is before them is still the last word.
_TRANSPARENT = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"})
_ACTIVATIONS = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid"})
# What may be done to probabilities: selecting, scaling, combining.
_COMBINING = frozenset({"Add", "Clip", "Concat", "Div", "Gather", "Max", "Mean", "Min", "Mul", "Slice", "Sub", "Sum"})
# A row of 1,000 probabilities in FP16 sums to 1 within 5e-4.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of a classifier.

    `output` is what the source's own output holds, `activation` what clients get: "softmax" for probabilities that sum
    to 1, "sigmoid" for one probability per class, "none" for the output as it is.
    """

    output: Output
    activation: Activation

    @property
    def operator(self) -> str:
        """The ONNX operator that makes the one from the other, Identity where nothing is to be done."""
        if self.activation == "none":
            return "Identity"
        if self.output == "logits":
            return {"softmax": "Softmax", "sigmoid": "Sigmoid"}[self.activation]
        return "Exp" if self.output == "log-probabilities" else "Identity"

    @property
    def output_name(self) -> str:
        """The name of the tensor that clients see."""
        return "LOGITS" if self.activation == "none" else "PROBABILITIES"

    def finish(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what clients must get, float64 (N, classes), for the source's own output `scores`."""
        import numpy as np

        values = scores.astype(np.float64)
        if self.operator == "Exp":
            return np.asarray(np.exp(values))
        if self.operator == "Sigmoid":
            return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))
        if self.operator == "Softmax":
            exponentials = np.exp(values - values.max(axis=1, keepdims=True))
            return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
        return values

    def contradiction(self, scores: NDArray[np.float32]) -> str:
        """Say what the source's own `scores` hold if that is not `output`; empty if it is."""
        found = _from_answers(scores) or "logits"
        # logits may all lie between 0 and 1, and two independent probabilities may sum to 1
        if self.output == found or {self.output: found} in (
            {"logits": "independent probabilities"},
            {"independent probabilities": "probabilities"},
        ):
            return ""
        return _describe(found, scores)


def read_head(data: Mapping[str, Any] | None, activation: str, reference: Path) -> Head:
    """Return the head that a record states; for an older one without, what the answers in reference.npz show.

    Raises:
        SourceError: Not a head.
        VerificationError: `reference` cannot be read.
    """
    if data is None and activation in get_args(Activation):
        from generator.images.reference import load_reference

        return guess_head(activation, load_reference(reference).answers["scores"])
    fields = {"output": get_args(Output), "activation": get_args(Activation)}
    if (
        not isinstance(data, dict)
        or set(data) != set(fields)
        or any(data[name] not in values for name, values in fields.items())
    ):
        msg = f"the record of {reference.parent} does not say what its source answers: head is {data}"
        raise SourceError(msg, hint="make it again from its source")
    return Head(**data)


def guess_head(activation: Any, scores: NDArray[np.float32]) -> Head:
    """Return the head of a source of which only the answers and what is served are known."""
    return Head(output=_from_answers(scores) or "logits", activation=activation)


def choose_head(
    asked: str, own: str | None, proto: onnx.ModelProto, output: str, scores: NDArray[np.float32], *, name: str
) -> Head:
    """Return the head of a source whose graph ends in the tensor `output` and answers `scores`, (N, classes).

    `asked` is the spec's activation, `own` the one that the source is known to be trained with, None for an unknown
    one. `name` is for errors.

    Raises:
        ExportError: The source contradicts the spec.
    """
    last = last_node(proto, output)
    end = "" if last is None else last.op_type
    found = _from_answers(scores)
    behind_activation = _is_behind_activation(proto, output)
    if found == "independent probabilities" and not behind_activation:
        found = None  # logits that all lie between 0 and 1
    if found == "probabilities" and end == "Sigmoid":  # of two outputs that are each other's complement
        found = "independent probabilities"
    classes = scores.shape[1]
    if found is None and behind_activation and asked == "auto":
        msg = f"{name}: the source ends in {end} behind an activation, but answers {_describe('logits', scores)}"
        raise ExportError(msg, hint="say what clients shall get: activation: softmax, sigmoid or none")
    if found is None:
        known: Any = own or ("sigmoid" if classes == 1 else "softmax")
        activation: Any = known if asked == "auto" else asked
        if activation == "softmax" and classes == 1:
            msg = f"{name}: activation is softmax, but there is one class, whose probability would always be 1"
            raise ExportError(msg, hint="leave activation out, or set activation: sigmoid")
        return Head(output="logits", activation=activation)
    fitting: Activation = "sigmoid" if found == "independent probabilities" else "softmax"
    if asked == "none":
        return Head(output=found, activation="none" if found == "log-probabilities" else fitting)
    if asked not in ("auto", fitting):
        ending = f"ends in {end} and " if end in ("Softmax", "LogSoftmax", "Sigmoid") else ""
        msg = f"{name}: activation is {asked}, but the source {ending}answers {_describe(found, scores)}"
        raise ExportError(msg, hint="leave activation out: the source's answers say what is missing")
    return Head(output=found, activation=fitting)


def is_distribution(scores: NDArray[Any]) -> bool:
    """Say whether every row is a probability distribution: what a Softmax makes."""
    import numpy as np

    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) < _SUM_TOLERANCE).all())


def last_node(proto: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    """Return the node that makes `tensor`, looking through nodes that only change shape or type."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    while (node := producers.get(tensor)) is not None and node.op_type in _TRANSPARENT:
        tensor = node.input[0]
    return node


def _describe(output: Output, scores: NDArray[Any]) -> str:
    """Say what the scores are and what shows it."""
    low, high = float(scores.min()), float(scores.max())
    if output == "probabilities":
        return "probabilities that sum to 1"
    if output == "log-probabilities":
        return "log-probabilities: their exponentials sum to 1"
    if output == "independent probabilities":
        sums = scores.sum(axis=1)
        return f"values from {low:.3g} to {high:.3g} in rows that sum to {sums.min():.3g} to {sums.max():.3g}"
    return f"logits from {low:.3g} to {high:.3g}"


def _is_behind_activation(proto: onnx.ModelProto, output: str) -> bool:
    """Say whether an activation makes `output`, looking through what selects, scales and combines its values."""
    waiting, seen = [output], set()
    while waiting:
        tensor = waiting.pop()
        node = last_node(proto, tensor)
        if node is None or tensor in seen:
            continue
        seen.add(tensor)
        if node.op_type in _ACTIVATIONS:
            return True
        if node.op_type in _COMBINING:
            waiting += node.input
    return False


def _from_answers(scores: NDArray[np.float32]) -> Output | None:
    """Return what the values themselves show, None for logits."""
    import numpy as np

    if scores.shape[1] > 1 and is_distribution(scores):
        return "probabilities"
    if scores.shape[1] > 1 and (scores <= 0).all() and is_distribution(np.exp(scores.astype(np.float64))):
        return "log-probabilities"
    if scores.min() >= 0 and scores.max() <= 1:
        return "independent probabilities"
    return None


def add_activation(proto: onnx.ModelProto, head: Head) -> None:
    """Put the activation of `head` behind the graph's only output, in FP32, under the name that clients see."""
    from onnx import TensorProto, helper

    graph = proto.graph
    (output,) = graph.output
    kind = output.type.tensor_type
    if output.name == head.output_name and head.operator == "Identity" and kind.elem_type == TensorProto.FLOAT:
        return
    if output.name == head.output_name:  # of the exporter, or of a file that takes pixels
        rename_tensors(graph, frozenset({output.name}))
    scores, dims = output.name, [dim.dim_value for dim in kind.shape.dim][1:]
    if kind.elem_type != TensorProto.FLOAT:
        graph.node.append(
            helper.make_node("Cast", [scores], ["trtgen_scores"], name="trtgen_scores", to=TensorProto.FLOAT)
        )
        scores = "trtgen_scores"
    last = helper.make_node(head.operator, [scores], [head.output_name], name="trtgen_activation")
    if head.operator == "Softmax":
        last.attribute.append(helper.make_attribute("axis", 1))
    graph.node.append(last)
    output.CopyFrom(helper.make_tensor_value_info(head.output_name, TensorProto.FLOAT, ["batch", *dims]))


def list_assumed(spec: ModelSpec, network: Network, head: Head) -> dict[str, str]:
    """Say what nobody can prove here: the activation behind logits, and what is taken on trust of any source."""
    assumed = {}
    if spec.activation == "auto" and head.output == "logits" and network.activation is None:
        several = "a model with several labels per image" if head.activation == "softmax" else "a regression"
        named = "" if network.graph is None else _named_otherwise(network.graph)
        assumed["activation"] = f"{head.activation}: the source answers logits{named}; {several} would look the same"
    return {**assumed, **list_assumed_of_source(spec, network)}


def _named_otherwise(graph: onnx.ModelProto) -> str:
    name = graph.graph.output[0].name
    return f", though its output is called {name}" if "prob" in name.lower() else ""
