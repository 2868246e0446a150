"""Subject: what the gate judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from generator.repository import Layout
    from generator.spec.recipe import Recipe
    from generator.tasks.head import Head

__all__ = ["Subject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is judged: a repository (staged or published) with one model in it, and what the spec promised.

    `assumed` says what was taken on trust, and why, by its name: the activation, the recipe.
    """

    repository: Path
    layout: Layout
    recipe: Recipe
    labels: tuple[str, ...]
    head: Head
    target: str
    precision: str
    max_batch_size: int
    assumed: Mapping[str, str] = field(default_factory=dict)

    @property
    def onnx(self) -> Path:
        """The graph's path."""
        return self.repository / self.layout.onnx

    @property
    def plan(self) -> Path | None:
        """The plan's path, None where the graph itself is served."""
        return self.repository / self.layout.plan if self.target.startswith("tensorrt") else None

    @property
    def graph_precision(self) -> str:
        """What the graph holds; TensorRT 8.6 lowers the precision of an FP32 graph itself."""
        if self.plan is None:
            return self.precision
        from generator.graph.precision import graph_precision

        return graph_precision(self.target, self.precision)
