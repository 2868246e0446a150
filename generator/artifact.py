"""Artifact: what the configurations are made around: the graph, the source's answers, and the plan if there is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from generator.graph.model import OnnxModel
    from generator.plan.passport import Passport
    from generator.spec.recipe import Recipe
    from generator.tasks.head import Head

__all__ = ["Artifact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Made just now, taken from an export, or taken over from the published version.

    `labels` are the names of the classes; a network with one output has two, and answers the second one's probability.
    `assumed` says by its name what was taken on trust, and why. `notes` are for the user, `keep` the names of the
    nodes that were asked to stay in FP32.
    """

    onnx: OnnxModel
    head: Head
    recipe: Recipe
    labels: tuple[str, ...]
    description: str
    assumed: Mapping[str, str] = field(default_factory=dict)
    passport: Passport | None = None
    notes: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def output_labels(self) -> tuple[str, ...]:
        """One name per output of the network."""
        return self.labels[-1:] if self.onnx.output.shape[-1] == 1 else self.labels
