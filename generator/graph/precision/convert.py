"""convert_graph: read, convert, check, write; nothing half-written."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError, SourceError
from generator.graph.model import OnnxModel, external_data_files, load_proto, open_onnx, read_onnx
from generator.graph.precision.calibration import FEW_IMAGES, FEWEST_IMAGES
from generator.graph.precision.view import GraphView, find_head, find_kept, find_tail, normalise_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

# protobuf refuses messages of 2 GiB
_MAX_SINGLE_FILE_BYTES = 1_900_000_000
_PROBED_IMAGES = 4
_CALIBRATION_HINT = "set calibration to a folder with 100 or more images as they will be served"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedGraph:
    """The written file. `kept_nodes` has a reason for each node in higher precision than the rest."""

    path: Path
    kept_nodes: Mapping[str, str] = field(default_factory=dict)
    quantized_nodes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def graph_precision(target: str, precision: str) -> str:
    """Return what the ONNX file itself holds: TensorRT 8.6 gets FP32 for fp16 too, its builder's flag does the rest.

    Raises:
        ExportError: The target has no such precision.
    """
    if precision == "fp32":
        return "fp32"
    if target == "onnxruntime":
        msg = f"precision {precision} is not available for target {target}"
        raise ExportError(msg, hint="take fp32, or a TensorRT target")
    return "fp32" if target == "tensorrt-8.6" and precision == "fp16" else precision


def convert_graph(
    source: Path,
    destination: Path,
    *,
    precision: str,
    target: str,
    keep: Sequence[str] = (),
    calibration: NDArray[np.uint8] | None = None,
) -> ConvertedGraph:
    """Write `source`, our exported FP32 graph with UINT8 pixels, to `destination` in the precision of the target.

    Input and output keep names, types and shapes. A converted graph has passed onnx.checker and loads in onnxruntime.
    The same input gives the same bytes.

    Args:
        source: An ONNX file with one input and one output.
        destination: The ONNX file to write; replaced if it exists.
        precision: fp32, fp16 or int8.
        target: tensorrt-8.6, tensorrt-10, tensorrt-11, or onnxruntime (fp32 only).
        keep: Nodes that stay in FP32: names, operator types, or patterns of either.
        calibration: Pixels (N, H, W, 3), uint8, that int8 needs; with fp16 they are used to look for overflows.

    Raises:
        ExportError: The precision does not suit target or graph, `keep` fits nothing, or scales collapse.
        MissingDependencyError: onnxconverter-common is not installed (fp16, and int8 for TensorRT 10 and later).
        SourceError: `source` is not such an ONNX file.
    """
    in_graph = graph_precision(target, precision)
    before = read_onnx(source)
    model = load_proto(source)
    normalise_names(model)
    view = GraphView.of(model)
    kept = dict.fromkeys(find_kept(view, keep), "keep")
    if in_graph == "fp32":
        _copy(source, destination)
        return ConvertedGraph(path=destination, kept_nodes=kept)
    if in_graph == "int8":
        return _convert_to_int8(model, before, destination, kept, calibration, half=target != "tensorrt-8.6")
    return _convert_to_fp16(model, before, destination, kept, calibration)


def _convert_to_fp16(
    model: onnx.ModelProto,
    before: OnnxModel,
    destination: Path,
    kept: dict[str, str],
    calibration: NDArray[np.uint8] | None,
) -> ConvertedGraph:
    from generator.graph.precision.half import find_overflows, to_fp16

    overflows = find_overflows(model, _probe(before, calibration))
    notes = tuple(f"node {name} stays in FP32: {reason}" for name, reason in overflows.items() if name not in kept)
    kept = {**overflows, **kept}
    _write(to_fp16(model, kept), destination, before)
    return ConvertedGraph(path=destination, kept_nodes={**_ends(GraphView.of(model)), **kept}, warnings=notes)


def _convert_to_int8(
    model: onnx.ModelProto,
    before: OnnxModel,
    destination: Path,
    kept: dict[str, str],
    calibration: NDArray[np.uint8] | None,
    *,
    half: bool,
) -> ConvertedGraph:
    from generator.graph.precision.half import find_overflows
    from generator.graph.precision.quantize import size_global_pools, to_int8

    pixels = _check_calibration(before, calibration)
    overflows = find_overflows(model, pixels[:_PROBED_IMAGES]) if half else {}
    notes = [f"node {name} stays in FP32: {reason}" for name, reason in overflows.items() if name not in kept]
    if len(pixels) < FEW_IMAGES:
        notes.append(f"INT8 scales come from {len(pixels)} images only: take 100 or more")
    kept = {**overflows, **kept}
    quantized = to_int8(model, pixels, kept=kept, fp32=kept, half=half)
    if not half:
        size_global_pools(quantized.model)
    _write(quantized.model, destination, before)
    return ConvertedGraph(
        path=destination,
        kept_nodes={**_ends(GraphView.of(model)), **quantized.placement.kept, **kept},
        quantized_nodes=quantized.placement.nodes,
        warnings=tuple(notes),
    )


def _ends(view: GraphView) -> dict[str, str]:
    return {
        **dict.fromkeys(find_head(view), "normalises the image"),
        **dict.fromkeys(find_tail(view), "makes the scores"),
    }


def _pixel_shape(before: OnnxModel) -> tuple[int, ...] | None:
    """Return (H, W, 3) of a graph that takes pixels, None for others."""
    if before.input.data_type.numpy != "uint8":
        return None
    return tuple(size if size > 0 else 64 for size in before.input.shape[1:])


def _probe(before: OnnxModel, calibration: NDArray[np.uint8] | None) -> NDArray[Any]:
    """Return a few inputs to look for overflows with: real images, else noise, black and white."""
    import numpy as np

    if calibration is not None and len(calibration):
        return _check_shape(before, calibration)[:_PROBED_IMAGES]
    rng = np.random.default_rng(0)
    if (shape := _pixel_shape(before)) is None:
        sizes = [size if size > 0 else 64 for size in before.input.shape[1:]]
        return rng.normal(size=(2, *sizes)).astype(before.input.data_type.numpy)
    noise = rng.integers(0, 256, (2, *shape), np.uint8)
    return np.concatenate([noise, np.zeros((1, *shape), np.uint8), np.full((1, *shape), 255, np.uint8)])


def _check_calibration(before: OnnxModel, calibration: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if calibration is None:
        msg = "int8 needs calibration images, none were given"
        raise ExportError(msg, hint=_CALIBRATION_HINT, fields={"calibration": None})
    pixels = _check_shape(before, calibration)
    if len(pixels) < FEWEST_IMAGES:
        msg = f"int8 needs {FEWEST_IMAGES} calibration images at least, {len(pixels)} were given"
        raise ExportError(msg, hint=_CALIBRATION_HINT, fields={"calibration": None})
    return pixels


def _check_shape(before: OnnxModel, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    expected = _pixel_shape(before)
    if expected is None or pixels.dtype != "uint8" or pixels.shape[1:] != expected:
        has = f"{before.input.data_type.triton} {list(before.input.shape)}"
        msg = f"calibration images are {pixels.dtype} {list(pixels.shape)}, but the graph's input is {has}"
        raise ExportError(msg, hint="calibrate with pixels of the model's own recipe: UINT8, (N, H, W, 3)")
    return pixels


def _copy(source: Path, destination: Path) -> None:
    if source.resolve() == destination.resolve():
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    for name in external_data_files(load_proto(source, weights=False)):
        shutil.copyfile(source.parent / name, destination.parent / name)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".precision-") as folder:
        copy = Path(folder) / destination.name
        shutil.copyfile(source, copy)
        copy.replace(destination)


def _write(model: onnx.ModelProto, destination: Path, before: OnnxModel) -> None:
    """Write the graph beside its place, check it there, then move it."""
    import onnx

    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".precision-") as folder:
        path = Path(folder) / destination.name
        external = model.ByteSize() > _MAX_SINGLE_FILE_BYTES
        onnx.save(model, path, save_as_external_data=external, location=f"{destination.name}.data")
        try:
            onnx.checker.check_model(str(path), full_check=True)
            open_onnx(path)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, SourceError) as error:
            msg = f"the converted graph is not valid: {' '.join(str(error).split())}"
            raise ExportError(msg, hint="name the node in keep, or take another precision") from error
        after = read_onnx(path)
        if (after.input, after.outputs) != (before.input, before.outputs):
            msg = f"the conversion changed {before.input} to {after.input}, or {before.outputs} to {after.outputs}"
            raise ExportError(msg, hint="take another precision, and report this graph")
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == destination.name):
            file.chmod(0o644)  # onnx's 600 for external data would keep the container's user out
            file.replace(destination.parent / file.name)
