"""The network: what TensorRT's parser makes of an ONNX file, before fusion. Needs no GPU with TensorRT-RTX."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError, PlanError
from generator.measure.inspect.formats import data_type_of
from generator.measure.inspect.layers import Layer, LayerTensor, kind_of_type, read_metadata
from generator.plan.hints import advise
from generator.plan.versions import open_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from generator.plan.versions import Adapter

_LOG = logging.getLogger(__name__)
# In this order: the first parses without a GPU, the second needs one.
_LIBRARIES = ("tensorrt_rtx", "tensorrt")


def parse_network(path: Path) -> tuple[str, tuple[Layer, ...]] | None:
    """Return the parser, such as `TensorRT-RTX 1.7.1.116`, and its network's layers.

    None where neither TensorRT-RTX nor TensorRT is usable here.

    Raises:
        PlanError: The parser refuses the graph; every one of its errors with node and operator.
    """
    for name in _LIBRARIES:
        try:
            adapter = open_adapter(name)
            adapter.log.clear()
            builder = adapter.create_builder()
        except (MissingDependencyError, PlanError) as error:  # TensorRT proper has no builder without a GPU
            _LOG.info("%s", error.message)
            continue
        return _parse(adapter, builder, path)
    return None


def _parse(adapter: Adapter, builder: Any, path: Path) -> tuple[str, tuple[Layer, ...]]:
    network, _ = adapter.create_network(builder)
    if faults := adapter.parse(network, path):
        listed = "\n".join(f"  {fault}" for fault in faults)
        msg = f"the parser of {adapter.name} refuses {path}:\n{listed}"
        raise PlanError(msg, **advise([faults[0].hint]))
    return adapter.name, tuple(_read(network.get_layer(index)) for index in range(network.num_layers))


def _read(layer: Any) -> Layer:
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = tuple(_tensor(layer.get_output(index)) for index in range(layer.num_outputs))
    return Layer(
        name=layer.name,
        type=layer.type.name,
        kind=kind_of_type(layer.type.name),
        precision=outputs[0].data_type if outputs else "",
        inputs=tuple(_tensor(tensor) for tensor in inputs if tensor is not None),
        outputs=outputs,
        metadata=read_metadata(getattr(layer, "metadata", "") or ""),
    )


def _tensor(tensor: Any) -> LayerTensor:
    try:
        shape = tuple(int(length) for length in tensor.shape)
    except ValueError:  # the number of dimensions is not known before run time
        shape = ()
    return LayerTensor(name=tensor.name, shape=shape, data_type=data_type_of(tensor.dtype.name))
