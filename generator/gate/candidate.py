"""Candidate: the model that the gate judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from generator.artifact import Artifact
    from generator.repository import Layout
    from generator.spec.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model in a repository, staged or published, and what was said about it when it was made.

    `proof` is what its record says of each stage, empty where it has none yet.
    """

    repository: Path
    layout: Layout
    spec: ModelSpec
    artifact: Artifact
    proof: Sequence[Mapping[str, Any]] = ()

    @property
    def onnx(self) -> Path:
        """The graph's path."""
        return self.repository / self.layout.onnx

    @property
    def plan(self) -> Path | None:
        """The plan's path, None where the graph itself is served."""
        return self.repository / self.layout.plan if self.spec.is_tensorrt else None

    @property
    def precision(self) -> str:
        """What is served computes in."""
        return self.artifact.onnx.precision if self.spec.is_as_is else self.spec.precision

    @property
    def ran_as(self) -> str:
        """What to add where onnxruntime ran the graph: empty, or that it was a copy."""
        return ", as a copy in FP32" if "bf16" in self.artifact.onnx.low_precisions else ""

    @property
    def graph_precision(self) -> str:
        """What the graph holds; TensorRT 8.6 lowers the precision of an FP32 graph itself."""
        if self.plan is None or self.spec.is_as_is:
            return self.precision
        from generator.graph.precision import graph_precision

        return graph_precision(self.spec.target, self.spec.precision)
