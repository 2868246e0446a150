"""Artifact: what the configurations are made around: the graph, the source's answers, and the plan if there is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from generator.graph.model import OnnxModel
    from generator.plan.passport import Passport
    from generator.spec.recipe import Recipe
    from generator.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Made just now, taken from an export, or taken over from the published version.

    `labels` are the names of the classes, `head` is what the task's `finish_graph` did.
    `assumed` says by its name what was taken on trust, and why. `notes` are for the user, `keep` the names of the
    nodes that were asked to stay in FP32. `repairs` say how the graph differs from the user's file, besides what is
    put around every one.
    """

    onnx: OnnxModel
    head: Any
    recipe: Recipe
    labels: tuple[str, ...]
    description: str
    assumed: Mapping[str, str] = field(default_factory=dict)
    passport: Passport | None = None
    notes: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network takes, as the plan has it, or else the graph."""
        return self.onnx.inputs if self.passport is None else self.passport.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What the network makes, as the plan has it, or else the graph."""
        return self.onnx.outputs if self.passport is None else self.passport.outputs
