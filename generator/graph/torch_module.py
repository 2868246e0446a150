"""A PyTorch module -> an ONNX graph with pixels in front."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError
from generator.graph.names import DYNAMIC_HINT, INPUT_NAME, NEWEST_OPSET_OF_8

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx
    import torch

    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe


def export_module(spec: ModelSpec, module: torch.nn.Module, recipe: Recipe, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the graph of `module`, which takes normalised FP32 NCHW and returns `outputs`, behind pixels.

    Raises:
        ExportError: The exporter stops, or the batch is baked in; with the line of code where it can be found.
    """
    import torch
    from torch._dynamo.exc import UserError
    from torch.onnx import OnnxExporterError

    wrapped = _with_pixels(module, recipe)
    batch = torch.export.Dim("batch", min=1, max=max(spec.batch.max, 2))
    # two rows: with one, the exporter would take the batch for a constant
    example = torch.zeros(2, *recipe.shape, dtype=torch.uint8)
    try:
        with _quiet():
            if spec.target == "tensorrt-8.6":
                return _run_old_exporter(wrapped, example, outputs)
            program = torch.export.export(wrapped, (example,), dynamic_shapes={"pixels": {0: batch}}, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=list(outputs),
                opset_version=18,  # what every supported onnxruntime and TensorRT 10 read
                verbose=False,
            )
    except (OnnxExporterError, UserError, RuntimeError, ValueError, TypeError) as error:
        if "specialized it to be a constant" in str(error):
            msg = f"{spec.name}: the batch is baked in{_find_baked_line(wrapped, recipe)}"
            raise ExportError(msg, hint=DYNAMIC_HINT) from error
        # the exporter's own words are about reports to PyTorch; what stopped it is the cause
        reason = error.__cause__ if isinstance(error, OnnxExporterError) and error.__cause__ else error
        first_line = next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
        msg = f"{spec.name}: torch.onnx.export stopped: {first_line}"
        raise ExportError(msg, hint="check that the model takes this image size") from error
    if exported is None:
        msg = f"{spec.name}: torch.onnx.export returned nothing"
        raise ExportError(msg, hint="install the versions of constraints.txt")
    return exported.model_proto


def _with_pixels(module: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """Return `module` with pixels as its input."""
    import torch

    class FromPixels(torch.nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = module
            for name, values in zip(("scale", "shift"), recipe.as_scale_and_shift(), strict=True):
                self.register_buffer(name, torch.from_numpy(values).reshape(1, -1, 1, 1))

        def forward(self, pixels: torch.Tensor) -> Any:
            planes = pixels.float().permute(0, 3, 1, 2)
            if recipe.channels == "BGR":
                planes = planes[:, [2, 1, 0]]
            return self.network(planes * self.scale + self.shift)

    return FromPixels().eval()


def _run_old_exporter(wrapped: torch.nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> onnx.ModelProto:
    """Export with opset 17, the newest that TensorRT 8.6 reads and older than what the present exporter can write."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory(prefix="trtgen-export-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            wrapped,
            (example,),
            path,
            dynamo=False,
            opset_version=NEWEST_OPSET_OF_8,
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in (INPUT_NAME, *outputs)},
        )
        graph = onnx.load(path)
    with torch.inference_mode():
        answers = wrapped(example)
    tensors = [answers] if isinstance(answers, torch.Tensor) else answers
    # behind sizes that are computed, the exporter does not know the outputs' own
    for info, tensor in zip(graph.graph.output, tensors, strict=True):
        for axis, length in enumerate(tensor.shape[1:], start=1):
            info.type.tensor_type.shape.dim[axis].dim_value = length
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and notes from the user, who can do nothing about them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _find_baked_line(wrapped: torch.nn.Module, recipe: Recipe) -> str:
    """Run three images through the module: the code that counts on another number usually fails, and says where."""
    import torch

    try:
        with torch.inference_mode():
            wrapped(torch.zeros(3, *recipe.shape, dtype=torch.uint8))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        own = {__file__, *(str(path) for path in Path(torch.__file__).parent.rglob("nn/modules/*.py"))}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in own]
        if frames:
            return f" by {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"
    return ": the model's code takes the first axis for a constant"
