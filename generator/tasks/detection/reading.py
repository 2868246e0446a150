"""What the outputs of a detector mean: guessed from metadata and shapes, or as the spec says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from generator.errors import SourceError, near
from generator.spec.detection import Boxes, DetectionOptions, Layout, Nms, Units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.task import Chosen
    from generator.tensor import Tensor


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

    @property
    def has_softmax(self) -> bool:
        """Say whether the scores are yet to be made of logits, by a softmax over the classes and the background."""
        return self.layout == "logits" and self.background is not None

    def describe(self, shape: Sequence[int]) -> str:
        """Say what it is; `shape` is that of the first of `tensors`."""
        count = f"{self.classes} class{'es' if self.classes > 1 else ''}"
        first, second = (str(size) for size in shape[1:])
        background = "" if self.background is None else f", background {self.background}"
        axes = {
            "raw": f"4 + {count}, {second} anchors",
            "objectness": f"{first} anchors, 5 + {count}",
            "end2end": f"{first} rows, " + ("6" if len(self.tensors) == 1 else f"{count}"),
        }.get(self.layout, f"{first} anchors, {count}{background}")
        return f"{self.layout} [batch, {axes}], {self.boxes} {'in pixels' if self.units == 'pixels' else 'from 0 to 1'}"

    def choose_nms(self, options: DetectionOptions) -> Nms:
        """Return the spec's NMS, else the layout's: the end-to-end ones and DETR's need none.

        A background in front is SSD's, DETR's is the last column.
        """
        needs_none = self.layout in ("end2end", "logits") and self.background != 0
        return options.nms or ("none" if needs_none else "per-class")


def find_reading(spec: ModelSpec, network: Network) -> Reading:
    """Return what the outputs of `network` mean.

    Raises:
        SourceError: Nothing says it, or two readings fit, or its answers contradict the one that does.
    """
    assert spec.detection is not None, "the spec fills it in"
    if network.onnx is None:
        # torch modules are wrapped to return corners in pixels of the network's input, and scores, or SSD's logits
        is_softmax = "logits" in network.outputs
        return Reading(
            layout="logits" if is_softmax else "scores",
            boxes="xyxy",
            units="pixels",
            background=0 if is_softmax else None,
            tensors=network.outputs,
            classes=len(network.labels),
            candidates=spec.detection.candidates,
        )
    from generator.graph.model import describe_graph
    from generator.tasks.detection.evidence import check_answers

    assert network.graph is not None, "every file has one"
    reading = _read(spec, network.onnx, describe_graph(network.graph, network.onnx).outputs)
    check_answers(reading, network)
    return reading


def choose_outputs(path: Path, outputs: Sequence[Tensor], spec: ModelSpec | None) -> Chosen:
    """Choose the outputs of an ONNX file that hold boxes, scores and classes.

    Raises:
        SourceError: There are none, or nothing says what they mean.
    """
    from generator.task import Chosen
    from generator.tasks.detection.file import DetectorFile
    from generator.tasks.detection.guess import find_some_layout

    why = "boxes, scores and classes are there"
    if spec is None:
        return Chosen(outputs=find_some_layout(DetectorFile.read(path), outputs).tensors, why=why)
    reading = _read(spec, path, outputs)
    shapes = {tensor.name: tensor for tensor in outputs}
    chosen = [shapes[name] for name in reading.tensors]
    verb = "is" if len(chosen) == 1 else "are"
    said = f"{', '.join(reading.tensors)} {verb} read as {reading.describe(chosen[0].shape)}"
    return Chosen(outputs=chosen, why=why, reading=said)


def name_classes(spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names of the classes of an ONNX file: the spec's, else those of its metadata."""
    from generator.tasks.detection.file import DetectorFile

    return resolve_labels(spec, DetectorFile.read(path).names, _read(spec, path, outputs).classes)


def resolve_labels(spec: ModelSpec, own: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return one name per class; the thresholds of single classes must be for some of them.

    Raises:
        SourceError: No names, or `class_scores` has one that is none of them.
    """
    from generator.tasks import labels

    assert spec.detection is not None, "the spec fills it in"
    names = labels.resolve_labels(spec, own, classes)
    if unknown := [name for name in spec.detection.class_scores if name not in names]:
        similar = near(unknown[0], names)
        listed = f"did you mean {', '.join(similar)}?" if similar else f"they begin with {', '.join(names[:5])}"
        msg = f"{spec.name}: detection.class_scores has {unknown[0]!r}, which is none of the labels; {listed}"
        raise SourceError(msg, hint="give thresholds by the labels as they are written", fields={"detection": None})
    return names


def _read(spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> Reading:
    from generator.tasks.detection.file import DetectorFile
    from generator.tasks.detection.guess import read_outputs

    return read_outputs(spec, DetectorFile.read(path), outputs)


def list_assumed(spec: ModelSpec, network: Network, reading: Reading) -> dict[str, str]:
    """Say what nobody can prove here: the reading of an ONNX file, and a recipe that did not come with the weights."""
    from generator.tasks.assumed import list_assumed_of_source

    if network.onnx is None or network.graph is None:
        return list_assumed_of_source(spec, network)
    from generator.graph.model import describe_graph
    from generator.tasks.detection.families import guess_recipe

    found = guess_recipe(spec, network.onnx)
    guessed = "" if found is None else f"that of {found[1]}, as its outputs look"
    shapes = {tensor.name: tensor.shape for tensor in describe_graph(network.graph, network.onnx).outputs}
    given = spec.detection is not None and None not in (
        spec.detection.layout,
        spec.detection.boxes,
        spec.detection.units,
    )
    how = "as given" if given else "as its metadata and shapes look"
    reading_said = f"{reading.describe(shapes[reading.tensors[0]])}: {how}, not proved; --labelled DIR measures it"
    return {"reading": reading_said, **list_assumed_of_source(spec, network, guessed=guessed)}


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
