"""Where a model comes from: one module per source, all ending in the same value, `Network`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.source import SOURCES
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
    return SOURCES.find(spec.source).load(spec)


def describe_source(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names of `spec`, without weights.

    Raises:
        SourceError: As `load_network`, as far as it shows without the weights.
    """
    return SOURCES.find(spec.source).describe(spec)
