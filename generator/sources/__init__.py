"""Where a model comes from: one file per source, all ending in the same value, `Network`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.sources.network import Network

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

__all__ = ["Network", "describe_source", "load_network"]


def load_network(spec: ModelSpec) -> Network:
    """Load the network that `spec` names, with its recipe and labels.

    Raises:
        SourceError: Unknown name, weights or file; the message lists what there is.
    """
    if spec.source == "onnx":
        from generator.sources.onnx_file import load_onnx_file

        return load_onnx_file(spec)
    if spec.source == "export":
        msg = f"{spec.name} was built from {spec.onnx}, an export: the source itself is not here"
        raise SourceError(msg, hint="leave --images and --labelled out, or ask the source where it was exported")
    if spec.source == "demo":
        from generator.sources.demo import load_demo

        return load_demo(spec)
    from generator.sources.torchvision import load_torchvision

    return load_torchvision(spec)


def describe_source(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names of `spec`, without weights.

    Raises:
        SourceError: As `load_network`, as far as it shows without the weights.
    """
    if spec.source == "onnx":
        network = load_network(spec)
        return network.recipe, network.labels
    if spec.source == "export":
        return _describe_export(spec)
    if spec.source == "demo":
        from generator.sources.demo import describe_demo

        return describe_demo(spec)
    from generator.sources.torchvision import describe_torchvision

    return describe_torchvision(spec)


def _describe_export(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    from generator.spec.exported import read_export
    from generator.spec.recipe import Recipe

    assert spec.onnx is not None, "the spec's own rules see to it"
    record = read_export(spec.onnx)
    return Recipe.model_validate(record.recipe), tuple(record.labels)
