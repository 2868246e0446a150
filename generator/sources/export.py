"""A graph that `trtgen export` wrote: the source itself is elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.spec.exported import read_export
from generator.spec.recipe import Recipe

if TYPE_CHECKING:
    from generator.sources.network import Network
    from generator.spec.model import ModelSpec


def load(spec: ModelSpec) -> Network:
    """Refuse: the source itself is not here.

    Raises:
        SourceError: Always.
    """
    msg = f"{spec.name} was built from {spec.onnx}, an export: the source itself is not here"
    raise SourceError(msg, hint="leave images and labelled out, or ask the source where it was exported")


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names that export.json states."""
    assert spec.onnx is not None, "the spec's own rules see to it"
    record = read_export(spec.onnx)
    return Recipe.model_validate(record.recipe), tuple(record.labels)
