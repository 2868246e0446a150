"""Graphs that are taken as they are: quantised already, or in FP16, BF16 or FP8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import ExportError
from generator.graph.model import DEQUANTIZE, QUANTIZE, default_opset
from generator.graph.names import NEWEST_OPSET_OF_8

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

# Layers whose inputs TensorRT computes in INT8 or FP8 where all of them are quantised.
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What TensorRT moves Q/DQ past.
_MOVES_ALONG = frozenset({"Cast", "Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
SYMMETRIC = (
    "quantise with zero points of 0 and INT8, for onnxruntime: ActivationSymmetric, WeightSymmetric, QInt8; "
    "trtgen's precision: int8 does"
)
NO_BIAS = (
    "TensorRT takes no quantised biases: quantise again without them, for onnxruntime: "
    "extra_options={'QuantizeBias': False}; trtgen's precision: int8 does"
)
# Attributes that name an element type.
_TYPED = frozenset({"dtype", "output_dtype", "to"})


def cast_to_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which FP32 stands for BF16, with the same values; the weights must be loaded."""
    import onnx
    from onnx import TensorProto, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPED and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def check_quantization(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what no TensorRT reads of quantised graphs: biases in INT32, zero points other than 0.

    These are onnxruntime's defaults, and the GPU host would be late to say so.

    Raises:
        ExportError: Names the first node.
    """
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        data, zero = (constants.get(name) for name in (node.input[0], [*node.input, ""][2]))
        where = f"{path}: node {node.name or node.output[0]} ({node.op_type})"
        if data is not None and data.data_type == TensorProto.INT32:
            raise ExportError(f"{where} makes a bias of INT32, which TensorRT does not read", hint=NO_BIAS)
        if zero is not None and numpy_helper.to_array(zero).astype("float32").any():
            raise ExportError(f"{where} has a zero point other than 0, which TensorRT does not read", hint=SYMMETRIC)


def fit_to_8(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model as TensorRT 8.6 reads it, and what was changed for that; `path` is for errors.

    Raises:
        ExportError: As `lower_opset`.
    """
    from generator.graph.precision.quantize import size_global_pools

    changes = []
    if (opset := default_opset(model)) > NEWEST_OPSET_OF_8:
        model = lower_opset(model, path)
        changes.append(f"opset {opset} is lowered to {NEWEST_OPSET_OF_8}")
    if pools := size_global_pools(model):
        changes.append(f"global pooling of INT8 is one of its input's size: {', '.join(pools)}")
    return model, changes


def lower_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model in the newest opset that TensorRT 8.6 reads, which most of what quantises exceeds.

    That it answers alike is for the gate to prove, which compares with the file as it was. `path` is for errors.

    Raises:
        ExportError: An operator is not the same in that opset, or the scales of Q/DQ are not FP32.
    """
    import onnx
    from onnx import TensorProto, version_converter

    has = f"{path} has opset {default_opset(model)}, TensorRT 8.6 reads {NEWEST_OPSET_OF_8} at most"
    scales = {node.input[1]: node for node in model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)}
    for tensor in model.graph.initializer:
        if tensor.name in scales and tensor.data_type != TensorProto.FLOAT:
            node = scales[tensor.name]
            msg = f"{has}, and there the scales of Q/DQ are FP32: node {node.name or node.output[0]} has others"
            raise ExportError(
                msg, hint="quantise it again with FP32 beside INT8 (ModelOpt: --high_precision_dtype fp32)"
            )
    try:
        lowered: onnx.ModelProto = version_converter.convert_version(model, NEWEST_OPSET_OF_8)
        lowered.ir_version = min(lowered.ir_version, onnx.helper.OP_SET_ID_VERSION_MAP[("ai.onnx", NEWEST_OPSET_OF_8)])
        _drop_defaults(lowered, default_opset(model))
        onnx.checker.check_model(lowered, full_check=True)
    except (RuntimeError, version_converter.ConvertError, onnx.checker.ValidationError) as error:
        msg = f"{has}, and it cannot be lowered: {' '.join(str(error).split())}"
        hint = f"export it with opset {NEWEST_OPSET_OF_8}, or take a newer TensorRT as the target"
        raise ExportError(msg, hint=hint) from error
    return lowered


def _drop_defaults(model: onnx.ModelProto, before: int) -> None:
    """Take out attributes that came after the model's opset and say what was always done, in place."""
    from onnx import defs, helper

    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and defs.has(node.op_type, default_opset(model)):
            known = defs.get_schema(node.op_type, default_opset(model)).attributes
            later = defs.get_schema(node.op_type, before).attributes
            for attribute in [one for one in node.attribute if one.name not in known and one.name in later]:
                usual = helper.get_attribute_value(later[attribute.name].default_value)
                if helper.get_attribute_value(attribute) == usual:
                    node.attribute.remove(attribute)


def find_float_layers(model: onnx.ModelProto) -> tuple[list[str], int]:
    """Return the layers of a quantised graph that stay in float, since not all they take is quantised; and of how many.

    TensorRT fuses Q/DQ into a layer only where both its data and its weights are dequantised right before it.
    """
    makers = {output: node for node in model.graph.node for output in node.output}

    def is_quantized(tensor: str) -> bool:
        node: Any = makers.get(tensor)
        while node is not None and node.op_type in _MOVES_ALONG:
            node = makers.get(node.input[0])
        return node is not None and node.op_type == DEQUANTIZE

    layers = [node for node in model.graph.node if node.op_type in _LAYERS]
    in_float = [node for node in layers if not all(is_quantized(name) for name in node.input[:2])]
    return [node.name or node.output[0] for node in in_float], len(layers)
