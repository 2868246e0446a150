"""ONNX files: whole, readable by the release's onnxruntime; and config.pbtxt against the tensors of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.doctor.finding import Finding, at_path, in_config
from generator.doctor.onnx_header import NetworkTensor, read_onnx_header
from generator.doctor.repository import is_missing
from generator.errors import SourceError
from generator.rules.releases import RELEASES, find_release

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from generator.doctor.repository import ConfiguredModel


def check_onnx(model: ConfiguredModel, path: Path, release: str) -> Iterator[Finding]:
    """Check one version's file, and the configuration against it."""
    try:
        header = read_onnx_header(path)
    except SourceError as error:
        detail = error.message.removeprefix(str(path)).strip()
        yield at_path(model, "onnx-damaged", path, path=f"{path} {detail}")
        return
    for name in header.external:
        if is_missing(path.parent / name):
            yield at_path(model, "onnx-external-data", path, path=path.parent / name)
    if known := find_release(release):
        newest = known is RELEASES[-1] and known.name != release
        note = f" (onnxruntime {known.onnxruntime}, release {known.name}{', the last one known' if newest else ''})"
        opset = header.opsets.get("ai.onnx", 0)
        if header.ir_version > known.ir_version:
            yield at_path(model, "onnx-ir-newer", path, made=header.ir_version, known=f"{known.ir_version}{note}")
        if opset > known.opset:
            yield at_path(model, "onnx-opset-newer", path, made=opset, known=f"{known.opset}{note}")
    yield from check_tensors_of(model, header.inputs, header.outputs, optional=header.optional)


def check_tensors_of(
    model: ConfiguredModel,
    inputs: Sequence[NetworkTensor],
    outputs: Sequence[NetworkTensor],
    *,
    optional: AbstractSet[str] = frozenset(),
) -> Iterator[Finding]:
    """Check the configuration against the tensors of a network; inputs that are `optional` may be left out."""
    if model.config.max_batch_size > 0:
        shapes = [tensor.shape for tensor in (*inputs, *outputs) if tensor.name not in optional]
        if any(shape is not None and shape[:1] != (-1,) for shape in shapes):
            yield in_config(model, "network-batch-fixed", "max_batch_size")
            return
    yield from _check_tensors(model, "input", inputs, optional)
    yield from _check_tensors(model, "output", outputs, {tensor.name for tensor in outputs})


def _check_tensors(
    model: ConfiguredModel, kind: str, made: Sequence[NetworkTensor], optional: AbstractSet[str]
) -> Iterator[Finding]:
    stated = getattr(model.config, kind)
    by_name = {tensor.name: tensor for tensor in made}
    needed = len(by_name.keys() - optional)
    if stated and not needed <= len(stated) <= len(made):
        yield in_config(model, "network-tensor-count", kind, kind=kind, stated=len(stated), made=len(made))
        return
    for index, tensor in enumerate(stated):
        values = {"kind": kind, "tensor": tensor.name}
        if (own := by_name.get(tensor.name)) is None:
            names = ", ".join(by_name)
            yield in_config(model, "network-tensor-unknown", kind, index, "name", names=names, **values)
            continue
        data_type = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
        if tensor.data_type and data_type != own.data_type:
            place = (kind, index, "data_type")
            yield in_config(model, "network-data-type", *place, stated=data_type, made=own.data_type, **values)
        # what is reshaped on the way has the shape of reshape in the model
        dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
        whole = [-1, *dims] if model.config.max_batch_size > 0 else dims
        if tensor.dims and own.shape is not None and not _fits(whole, own.shape):
            yield in_config(model, "network-dims", kind, index, "dims", stated=whole, made=list(own.shape), **values)


def _fits(stated: list[int], made: tuple[int, ...]) -> bool:
    return len(stated) == len(made) and all(own in (-1, size) for size, own in zip(stated, made, strict=True))
