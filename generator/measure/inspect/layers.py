"""What TensorRT's engine inspector says about an engine, as values. No TensorRT is needed here.

In its JSON a layer is an object where the engine was built with detailed profiling verbosity, else just its name;
control characters separate parts of `Metadata`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from generator.errors import PlanError
from generator.measure.inspect.formats import WIDTHS, data_type_of, layout_of
from generator.plan.header import BUILD_PLAN

# The groups, in its order: name -> what belongs to it.
KINDS = {
    "convolution": "convolutions with what was fused into them",
    "matmul": "matrix products",
    "fused": "kernels that TensorRT generated for several nodes (Myelin)",
    "elementwise": "pointwise operations, scaling, activations",
    "pooling": "pooling",
    "reduce": "reductions and normalisations",
    "softmax": "softmax",
    "quantize": "quantization and dequantization that was fused into nothing",
    "reformat": "changes of layout or type",
    "shape": "data movement: transpose, slice, concatenation, constants",
    "no-op": "layers that launch nothing",
    "other": "everything else",
}
# The first pattern that is found in TensorRT's type of a layer decides.
_TYPES = (
    (r"noop", "no-op"),
    (r"reformat|copy|hosttodevice|devicetohost|^cast$", "reformat"),
    (r"kgen|myelin|foreignnode|^fusion$", "fused"),
    (r"quantize", "quantize"),
    (r"conv", "convolution"),
    (r"gemm|matrixmultiply|matrix_multiply|matmul|cublas|fullyconnected|fully_connected", "matmul"),
    (r"pool", "pooling"),
    (r"softmax", "softmax"),
    (r"reduce|normalization|topk", "reduce"),
    (r"pointwise|elementwise|scale|activation|unary|select|pwn", "elementwise"),
    (r"shuffle|slice|concat|gather|constant|shape|resize|padding|identity|signal|wait|split", "shape"),
)
_OPERATORS = (
    (r"^(Conv|ConvTranspose|ConvInteger|QLinearConv)$", "convolution"),
    (r"^(Gemm|MatMul|MatMulInteger|Einsum|Attention)$", "matmul"),
    (r"Pool$", "pooling"),
    (r"Softmax$", "softmax"),
    (r"^Reduce|Normalization$", "reduce"),
    (r"QuantizeLinear$", "quantize"),
    (r"^Cast", "reformat"),
    (r"^(Transpose|Reshape|Flatten|Squeeze|Unsqueeze|Concat|Slice|Gather|Split|Shape|Pad|Expand|Identity)$", "shape"),
)
# 8.6 lists the layers of all optimization profiles, those of the second and later with this behind their names.
_PROFILE = re.compile(r" ?\[profile (\d+)\]$")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]|\x1e\x1f]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensor:
    """A tensor at a layer. `shape` is empty and `data_type` is "" where TensorRT does not tell."""

    name: str
    shape: tuple[int, ...] = ()
    data_type: str = ""
    layout: str = ""

    @property
    def size_bytes(self) -> int:
        """Return its size without padding; 0 where shape or type is unknown."""
        if not self.shape or min(self.shape) < 0 or not self.data_type:
            return 0
        return WIDTHS.get(self.data_type, 0) * math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an engine or network. `metadata` holds the ONNX nodes that TensorRT itself names as its origin."""

    name: str
    type: str
    kind: str
    precision: str
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    weights_bytes: int = 0
    tactic: str = ""
    metadata: tuple[str, ...] = ()


def read_layers(text: str, *, profile: int = 0) -> tuple[Layer, ...]:
    """Read what `IEngineInspector.get_engine_information(JSON)` returned, of TensorRT 8.6 to 11, in execution order.

    Where it lists the layers of several optimization profiles, those of `profile` are taken.

    Raises:
        PlanError: Not the inspector's JSON.
    """
    try:
        data = json.loads(text, strict=False)  # Metadata holds raw control characters
        found = [entry for entry in data["Layers"] if _profile_of(entry) == profile] or data["Layers"]
        return tuple(_read_layer(entry) for entry in found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"TensorRT's engine inspector did not answer with its JSON of layers: {text[:80]!r}"
        hint = "build the plan again here, which keeps names and details"
        raise PlanError(msg, hint=hint, command=BUILD_PLAN) from error


def read_metadata(text: str) -> tuple[str, ...]:
    """Return the ONNX nodes that TensorRT's metadata of a layer names, each once."""
    return tuple(dict.fromkeys(_ONNX_LAYER.findall(text)))


def without_profile(name: str) -> str:
    """Return a layer's or tensor's name without `[profile 1]`."""
    return _PROFILE.sub("", name)


def traffic_bytes(layer: Layer) -> int:
    """Return the bytes that a layer reads and writes at least: its inputs, outputs and weights, once each."""
    return sum(tensor.size_bytes for tensor in (*layer.inputs, *layer.outputs)) + layer.weights_bytes


def kind_of_type(layer_type: str, name: str = "") -> str:
    """Return the group of a layer of this type; a layer without a type is judged by its name."""
    if layer_type:
        return _first_match(_TYPES, layer_type.lower()) or "other"
    if name.startswith(("Reformatting CopyNode", "Reformatted ")) or name.endswith(" copy"):
        return "reformat"
    if "{ForeignNode[" in name or name.startswith("__my"):
        return "fused"
    return "other"


def kind_of_operators(operators: tuple[str, ...]) -> str:
    """Return the group of a layer made of these ONNX operators: that of the heaviest."""
    kinds = [_first_match(_OPERATORS, operator) or "elementwise" for operator in operators]
    order = list(KINDS)
    return min(kinds, key=order.index, default="other")


def _first_match(patterns: tuple[tuple[str, str], ...], text: str) -> str:
    return next((kind for pattern, kind in patterns if re.search(pattern, text)), "")


def _profile_of(entry: Any) -> int:
    match = _PROFILE.search(entry if isinstance(entry, str) else entry["Name"])
    return int(match[1]) if match else 0


def _read_layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        entry = without_profile(entry)
        return Layer(name=entry, type="", kind=kind_of_type("", entry), precision="")
    name, layer_type = without_profile(entry["Name"]), entry.get("LayerType", "")
    inputs = tuple(_read_tensor(one) for one in entry.get("Inputs") or ())
    outputs = tuple(_read_tensor(one) for one in entry.get("Outputs") or ())
    weights = entry.get("Weights")
    weights = weights if isinstance(weights, dict) else {}
    weights_type = data_type_of(str(weights.get("Type", "")))
    tactic = str(entry.get("TacticName", ""))
    kind = kind_of_type(layer_type, name)
    if kind == "reformat" and entry.get("Origin") == "QDQ":
        kind = "quantize"
    return Layer(
        name=name,
        type=layer_type,
        kind=kind,
        precision=_precision(kind, weights_type, inputs, outputs, tactic),
        inputs=inputs,
        outputs=outputs,
        weights_bytes=int(weights.get("Count", 0)) * WIDTHS.get(weights_type, 0),
        tactic=tactic,
        metadata=read_metadata(str(entry.get("Metadata", ""))),
    )


def _read_tensor(entry: Any) -> LayerTensor:
    if isinstance(entry, str):
        return LayerTensor(name=entry)
    described = str(entry.get("Format/Datatype") or f"{entry.get('Format', '')} {entry.get('Datatype', '')}")
    return LayerTensor(
        name=without_profile(str(entry.get("Name", ""))),
        shape=tuple(int(length) for length in entry.get("Dimensions") or ()),
        data_type=data_type_of(described),
        layout=layout_of(described),
    )


def _precision(
    kind: str, weights_type: str, inputs: tuple[LayerTensor, ...], outputs: tuple[LayerTensor, ...], tactic: str
) -> str:
    """What the layer computes in: its weights' type, else that of what it writes, else of what it reads."""
    of_tensors = [tensor.data_type for tensor in (*outputs, *inputs) if tensor.data_type not in ("", "int32", "int64")]
    precision = weights_type or next(iter(of_tensors), "")
    if kind in ("convolution", "matmul") and precision == "fp32" and "tf32" in tactic.lower():
        return "tf32"
    return precision
