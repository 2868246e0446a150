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
    precision: str
    max_batch_size: int

    @property
    def onnx(self) -> Path:
        """The graph's path."""
        return self.repository / self.layout.onnx
