"""What the outputs of a detector mean: guessed from metadata and shapes, or as the spec says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from generator.errors import SourceError
from generator.spec.detection import Boxes, DetectionOptions, Layout, Nms, Units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.tensor import Tensor

# What torch modules are wrapped to return: corners in pixels of the network's input, and a score per class.
MODULE_OUTPUTS = ("boxes", "scores")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How boxes, scores and classes follow from the source's outputs `tensors`, boxes before scores if there are two.

    `classes` does not count the column `background`. At most `candidates` rows leave the network for an image.
    """

    layout: Layout
    boxes: Boxes
    units: Units
    background: int | None
    tensors: tuple[str, ...]
    classes: int
    candidates: int

    @property
    def is_multi_label(self) -> bool:
        """Say whether an anchor may have several classes, each with a row of its own."""
        return self.layout in ("scores", "logits")

    def choose_nms(self, options: DetectionOptions) -> Nms:
        """Return the spec's NMS, else the layout's: the end-to-end ones and DETR's need none."""
        return options.nms or ("none" if self.layout in ("end2end", "logits") else "per-class")


def find_reading(spec: ModelSpec, network: Network) -> Reading:
    """Return what the outputs of `network` mean.

    Raises:
        SourceError: Nothing says it, or two readings fit.
    """
    assert spec.detection is not None, "the spec fills it in"
    if network.module is not None:
        return Reading(
            layout="scores",
            boxes="xyxy",
            units="pixels",
            background=None,
            tensors=MODULE_OUTPUTS,
            classes=len(network.labels),
            candidates=spec.detection.candidates,
        )
    raise NotImplementedError


def choose_outputs(path: Path, outputs: Sequence[Tensor], spec: ModelSpec | None) -> Sequence[Tensor]:
    """Return the outputs of an ONNX file that hold boxes, scores and classes."""
    raise NotImplementedError


def name_classes(spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names of the classes of an ONNX file: the spec's, else those of its metadata."""
    raise NotImplementedError


def guess_recipe(spec: ModelSpec, path: Path) -> Recipe | None:
    """Return the recipe of the family that an ONNX file belongs to, where its metadata or its shapes say which."""
    raise NotImplementedError


def list_assumed(spec: ModelSpec, network: Network, reading: Reading) -> dict[str, str]:
    """Say what nobody can prove here: the reading of an ONNX file, and a recipe that did not come with the weights."""
    raise NotImplementedError


def restore_reading(head: Mapping[str, Any] | None, reference: Path) -> Reading:
    """Return the reading that a record states.

    Raises:
        SourceError: Not a reading.
    """
    known = {"layout": get_args(Layout), "boxes": get_args(Boxes), "units": get_args(Units)}
    fields = set(Reading.__dataclass_fields__)
    if head is None or set(head) != fields or any(head[name] not in values for name, values in known.items()):
        msg = f"the record of {reference.parent} does not say what its source answers: head is {head}"
        raise SourceError(msg, hint="make it again from its source")
    return Reading(**{**head, "tensors": tuple(head["tensors"])})
