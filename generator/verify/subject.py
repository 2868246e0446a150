"""Subject: what the gate judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from generator.recipe import Recipe
    from generator.repository import Layout

__all__ = ["Subject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is judged: a repository (staged or published) with one model in it, and what the spec promised."""

    repository: Path
    layout: Layout
    recipe: Recipe
    labels: tuple[str, ...]
    activation: str
    target: str
    precision: str
    max_batch_size: int

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
        from generator.precision import graph_precision

        return graph_precision(self.target, self.precision)
