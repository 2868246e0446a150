"""ModelSpec and Network -> OnnxModel: uint8 NHWC pixels in, FP32 scores out, any batch up to the maximum.

    PIXELS uint8 [batch, H, W, 3] -> cast -> transpose -> scale and shift -> network -> activation -> PROBABILITIES

The cast comes first because TensorRT takes UINT8 only as a network input that is cast at once. Scale and shift are
(x / 255 - mean) / std written as one multiplication and one addition.
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError, SourceError
from generator.onnx_model import OnnxModel, ends_in_softmax, load_proto, open_onnx, read_onnx
from generator.sources.onnx_file import image_axes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnx
    import torch
    from numpy.typing import NDArray

    from generator.recipe import Recipe
    from generator.sources import Network
    from generator.spec import ModelSpec

__all__ = ["MODEL_FILE", "export_onnx", "prove_dynamic_batch"]

_LOG = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
INPUT_NAME = "PIXELS"
OUTPUT_NAMES = {"softmax": "PROBABILITIES", "sigmoid": "PROBABILITIES", "none": "LOGITS"}

# protobuf refuses messages of 2 GiB; above this the weights travel in a file beside the model
_MAX_SINGLE_FILE_BYTES = 1_900_000_000
# Rows of one batch may differ from single runs by the order of summation only.
ROW_TOLERANCE = 1e-4


def export_onnx(spec: ModelSpec, network: Network, folder: Path) -> OnnxModel:
    """Write `folder`/model.onnx and return it, checked, loaded in onnxruntime, and with a proved dynamic batch.

    Raises:
        ExportError: The exporter fails, the graph is invalid, or its batch is baked in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    if network.module is not None:
        proto = _export_module(spec, network.module, network.recipe)
    elif network.onnx is not None:
        proto = _wrap_file(spec, network.onnx, network.recipe)
    else:
        msg = f"{spec.name}: the source gave neither a module nor a file"
        raise ExportError(msg)
    _strip_traces(proto)
    _save(proto, path)
    _check(path)
    model = read_onnx(path)
    prove_dynamic_batch(model, maximum=spec.batch.max)
    return model


def _export_module(spec: ModelSpec, module: torch.nn.Module, recipe: Recipe) -> onnx.ModelProto:
    proto = _run_exporter(spec, _with_pixels(module, recipe, spec.activation), recipe)
    if spec.activation != "none" and _doubled_softmax(proto):
        _LOG.info("%s already ends in a Softmax: none is added", spec.name)
        proto = _run_exporter(spec, _with_pixels(module, recipe, "none"), recipe)
        _rename_output(proto, "PROBABILITIES")
    return proto


def _with_pixels(module: torch.nn.Module, recipe: Recipe, activation: str) -> torch.nn.Module:
    """Return `module` with pixels as its input and `activation` behind it."""
    import torch

    class PixelsToScores(torch.nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = module
            mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
            self.register_buffer("scale", (1 / (255 * std)).reshape(1, 3, 1, 1))
            self.register_buffer("shift", (-mean / std).reshape(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.network(pixels.float().permute(0, 3, 1, 2) * self.scale + self.shift)
            if activation == "softmax":
                return scores.softmax(dim=1)
            return scores.sigmoid() if activation == "sigmoid" else scores

    return PixelsToScores().eval()


def _run_exporter(spec: ModelSpec, wrapped: torch.nn.Module, recipe: Recipe) -> onnx.ModelProto:
    import torch
    from torch.onnx import OnnxExporterError

    batch = torch.export.Dim("batch", min=1, max=max(spec.batch.max, 2))
    # two rows: with one, the exporter would take the batch for a constant
    example = torch.zeros(2, *recipe.crop, 3, dtype=torch.uint8)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                wrapped,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAMES[spec.activation]],
                dynamic_shapes={"pixels": {0: batch}},
                opset_version=18,  # what every supported onnxruntime and TensorRT 10 read
                verbose=False,
            )
    except OnnxExporterError as error:
        raise _translate(spec, error) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    if program is None:
        msg = f"{spec.name}: the exporter returned nothing"
        raise ExportError(msg)
    return program.model_proto


def _translate(spec: ModelSpec, error: Exception) -> ExportError:
    """Say in plain words why the exporter stopped; a batch taken for a constant is the usual reason."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(str(cause) for cause in causes)
    if re.search(r"specialized|Constraints violated|batch.*constant|has been specialised", text):
        place = re.search(r'File "([^"]+)", line (\d+), in (\w+)', text)
        where = f" at {place[1]}:{place[2]} in {place[3]}" if place else ""
        msg = f"{spec.name}: the batch is baked in: the model's code takes the first axis for a constant{where}"
        return ExportError(msg, hint="use x.shape[0] or -1 instead of a number in that line")
    first_line = next((line.strip() for line in str(causes[-1]).splitlines() if line.strip()), type(error).__name__)
    msg = f"{spec.name}: torch.onnx.export stopped: {first_line}"
    return ExportError(msg, hint="check that the model takes this image size (trtgen show); -vv shows the details")


def _doubled_softmax(proto: onnx.ModelProto) -> bool:
    producers = {output: node for node in proto.graph.node for output in node.output}
    last = producers.get(proto.graph.output[0].name)
    return last is not None and last.op_type in ("Softmax", "Sigmoid") and ends_in_softmax(proto, last.input[0])


def _rename_output(proto: onnx.ModelProto, name: str) -> None:
    old = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = [name if output == old else output for output in node.output]
        node.input[:] = [name if given == old else given for given in node.input]
    proto.graph.output[0].name = name


def _wrap_file(spec: ModelSpec, path: Path, recipe: Recipe) -> onnx.ModelProto:
    """Return the user's graph with cast, transpose and normalisation before it and the activation behind it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    proto = load_proto(path)
    source = read_onnx(path)
    graph = proto.graph
    if not spec.raw:
        layout, _ = image_axes(source)
        shape = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
        std, mean = np.asarray(recipe.std, np.float32), np.asarray(recipe.mean, np.float32)
        graph.initializer.append(numpy_helper.from_array((1 / (255 * std)).reshape(shape), "trtgen_scale"))
        graph.initializer.append(numpy_helper.from_array((-mean / std).reshape(shape), "trtgen_shift"))
        nodes = [helper.make_node("Cast", [INPUT_NAME], ["trtgen_cast"], name="trtgen_cast", to=TensorProto.FLOAT)]
        if layout == "NCHW":
            nodes.append(
                helper.make_node("Transpose", ["trtgen_cast"], ["trtgen_nchw"], name="trtgen_nchw", perm=[0, 3, 1, 2])
            )
        scaled_from = nodes[-1].output[0]
        nodes.append(helper.make_node("Mul", [scaled_from, "trtgen_scale"], ["trtgen_scaled"], name="trtgen_scaled"))
        nodes.append(
            helper.make_node("Add", ["trtgen_scaled", "trtgen_shift"], [source.input.name], name="trtgen_normalised")
        )
        for index, node in enumerate(nodes):
            graph.node.insert(index, node)
        kept = [tensor for tensor in graph.input if tensor.name != source.input.name]
        pixels = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", *recipe.crop, 3])
        del graph.input[:]
        graph.input.extend([pixels, *kept])
    _add_activation(spec, proto, source)
    return proto


def _add_activation(spec: ModelSpec, proto: onnx.ModelProto, source: OnnxModel) -> None:
    from onnx import TensorProto, helper

    graph = proto.graph
    inside = ends_in_softmax(proto, source.output.name)
    if inside and spec.activation == "sigmoid":
        msg = f"{source.path} ends in a Softmax, but activation is sigmoid"
        raise ExportError(msg, hint="leave activation out: the probabilities are served as they are")
    if inside:
        _LOG.info("%s already ends in a Softmax: none is added", source.path.name)
    operator = None if inside else {"softmax": "Softmax", "sigmoid": "Sigmoid", "none": "Identity"}[spec.activation]
    name = OUTPUT_NAMES["softmax" if inside else spec.activation]
    last = helper.make_node(operator or "Identity", [source.output.name], [name], name="trtgen_activation")
    if operator == "Softmax":
        last.attribute.append(helper.make_attribute("axis", 1))
    if source.output.name != name:
        graph.node.append(last)
        graph.output[0].CopyFrom(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *source.output.shape[1:]])
        )
    elif operator != "Identity" and not inside:
        msg = f"{source.path}: its output is called {name} already, though it ends in no {operator}"
        raise ExportError(msg, hint="set activation: none if these are probabilities")


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Take out what the exporter notes about its own run: paths of this machine, and different bytes each time."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    proto.graph.doc_string = ""
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    tensors: list[Any] = [*proto.graph.initializer, *proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    for tensor in tensors:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _save(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    if proto.ByteSize() > _MAX_SINGLE_FILE_BYTES:
        onnx.save(proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")
    else:
        onnx.save(proto, path)


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        msg = f"{path.name} is not a valid ONNX graph: {' '.join(str(error).split())}"
        raise ExportError(msg, hint="this source cannot be served as it is; export it with another opset") from error


def prove_dynamic_batch(model: OnnxModel, *, maximum: int) -> float:
    """Run batches of 1, 3 and `maximum` and compare each row with its single run; return the largest difference.

    Raises:
        ExportError: A batch does not run, has another number of rows, or its rows differ by more than 1e-4.
    """
    import numpy as np

    height_width = [size if size > 0 else 64 for size in model.input.shape[1:]]
    sizes = sorted({1, min(3, maximum), maximum})
    images = np.random.default_rng(0).integers(0, 256, (maximum, *height_width), dtype=np.uint8)
    run = open_onnx(model.path)
    probes = sorted({0, 1, 2, maximum // 2, maximum - 1} & set(range(maximum)))
    single = {row: run(images[row : row + 1])[0] for row in probes}
    worst = 0.0
    for size in sizes:
        try:
            batch = _run_batch(run, images[:size])
        except SourceError as error:
            raise _baked_in(model, size, str(error)) from error
        if batch.shape != (size, model.output.shape[1]):
            raise _baked_in(model, size, f"output {model.output.name} came out as {list(batch.shape)}")
        for row in (row for row in probes if row < size):
            difference = float(np.abs(batch[row] - single[row]).max())
            if not difference <= ROW_TOLERANCE:
                raise _baked_in(model, size, f"row {row} differs from the same image alone by {difference:.2g}")
            worst = max(worst, difference)
    return worst


def _run_batch(run: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        result: NDArray[np.float32] = run(images)
    except (state.Fail, state.InvalidArgument, state.RuntimeException) as error:
        raise SourceError(" ".join(str(error).split())) from error
    return result


def _baked_in(model: OnnxModel, size: int, what: str) -> ExportError:
    node = re.search(r"running (\w+) node\. Name:'([^']*)'", what)
    place = f"node {node[2]} ({node[1]})" if node else _first_node_without_batch(model)
    msg = f"{model.path.name}: the batch is baked in by {place}: with a batch of {size}, {what}"
    return ExportError(msg, hint="export the source again with a dynamic batch; write -1 or x.shape[0] for that axis")


def _first_node_without_batch(model: OnnxModel) -> str:
    """Name the first node that takes a tensor with the batch axis first and gives one without it."""
    import onnx

    probe = 7919  # a prime that no other axis has
    proto = load_proto(model.path, weights=False)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = probe
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    first_axis = {
        info.name: info.type.tensor_type.shape.dim[0].dim_value
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if info.type.tensor_type.shape.dim
    }
    for node in inferred.node:
        if first_axis.get(node.input[0] if node.input else "") == probe and first_axis.get(node.output[0]) != probe:
            return f"node {node.name or node.output[0]} ({node.op_type})"
    return "a node that mixes the rows of a batch"
