"""Where models come from: the `Source` protocol and who is registered.

A source from outside registers itself with `register_source`, or with an entry point of the group `trtgen.sources`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from generator.registry import Registry

if TYPE_CHECKING:
    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe


class Source(Protocol):
    """One place that models come from."""

    def load(self, spec: ModelSpec) -> Network:
        """Return the network that `spec` names, with its recipe and labels; SourceError if there is none."""

    def describe(self, spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
        """Return the recipe and the class names, without weights as far as possible."""


SOURCES: Registry[Source] = Registry(
    "source",
    group="trtgen.sources",
    built_in={
        "torchvision": "generator.sources.torchvision",
        "checkpoint": "generator.sources.torchvision",
        "onnx": "generator.sources.onnx_file",
        "export": "generator.sources.export",
        "demo": "generator.sources.demo",
        "timm": "generator.sources.timm",
        "factory": "generator.sources.factory",
        "pt2": "generator.sources.pt2",
        "huggingface": "generator.sources.huggingface",
    },
)


def register_source(name: str, source: Source) -> None:
    """Make `source` known by `name`, which the spec's field `source` gives."""
    SOURCES.register(name, source)
