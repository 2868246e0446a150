"""The network: what TensorRT's parser makes of an ONNX file, before fusion. Needs no GPU with TensorRT-RTX."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError, PlanError
from generator.measure.inspect.formats import data_type_of
from generator.measure.inspect.layers import Tensor
from generator.plan.adapter import open_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from generator.plan.adapter import Adapter

__all__ = ["Network", "NetworkLayer", "parse_network"]

_LOG = logging.getLogger(__name__)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]|\x1e\x1f]+)")
# In this order: the first parses without a GPU, the second needs one.
_LIBRARIES = ("tensorrt_rtx", "tensorrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLayer:
    """One layer of the network; `node` is the ONNX node that the parser says it comes from, empty where it does not."""

    name: str
    type: str
    node: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The parsed network and what parsed it, such as `TensorRT-RTX 1.7.1.116`."""

    parser: str
    layers: tuple[NetworkLayer, ...]


def parse_network(path: Path) -> Network | None:
    """Return the network of the installed parser; None where neither TensorRT-RTX nor TensorRT is usable here.

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


def _parse(adapter: Adapter, builder: Any, path: Path) -> Network:
    network, _ = adapter.create_network(builder)
    if faults := adapter.parse(network, path):
        listed = "\n".join(f"  {fault}" for fault in faults)
        msg = f"the parser of {adapter.name} refuses {path}:\n{listed}"
        raise PlanError(msg, hint=faults[0].hint or "trtgen check says more; export the model with another opset")
    layers = tuple(_read(network.get_layer(index)) for index in range(network.num_layers))
    return Network(parser=adapter.name, layers=layers)


def _read(layer: Any) -> NetworkLayer:
    metadata = _ONNX_LAYER.search(getattr(layer, "metadata", "") or "")
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    return NetworkLayer(
        name=layer.name,
        type=layer.type.name,
        node=metadata[1] if metadata else "",
        inputs=tuple(_tensor(tensor) for tensor in inputs if tensor is not None),
        outputs=tuple(_tensor(layer.get_output(index)) for index in range(layer.num_outputs)),
    )


def _tensor(tensor: Any) -> Tensor:
    try:
        shape = tuple(int(length) for length in tensor.shape)
    except ValueError:  # the number of dimensions is not known before run time
        shape = ()
    return Tensor(name=tensor.name, shape=shape, data_type=data_type_of(tensor.dtype.name), layout="")
