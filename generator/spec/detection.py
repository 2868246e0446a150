"""What a detector's outputs mean, and which of its boxes are answered: the spec's section `detection`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Layout = Literal["raw", "objectness", "end2end", "scores", "logits"]
Boxes = Literal["xyxy", "cxcywh"]
Units = Literal["pixels", "normalised"]
Nms = Literal["per-class", "agnostic", "none"]
Threshold = Annotated[float, Field(gt=0, lt=1)]

# TensorRT's TopK returns no more.
MOST_CANDIDATES = 3840


class DetectionOptions(BaseModel):
    """How the network's outputs are read, which is guessed where it is left out, and what is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout | None = Field(
        default=None,
        description="What an ONNX file answers: `raw` [batch, 4 + classes, anchors], `objectness` [batch, anchors, 5 + "
        "classes], `end2end` [batch, rows, 6] with box, score and class, or boxes and `scores` or `logits` as two "
        "outputs. Default: what its metadata and shapes say.",
    )
    boxes: Boxes | None = Field(
        default=None, description="Corners (`xyxy`), or centre and size (`cxcywh`); default: what the layout has."
    )
    units: Units | None = Field(
        default=None, description="`pixels` of the network's input, or `normalised` to 0..1; default: the layout's."
    )
    background: Annotated[int, Field(ge=0)] | Literal["none"] | None = Field(
        default=None, description="Index of the scores' column that is background, or `none`, the default."
    )
    candidates: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] = Field(
        default=1000, description="Most boxes that leave the network for each image, those with the best scores."
    )
    score: Threshold = Field(default=0.25, description="Boxes with a lower score are not answered.")
    class_scores: dict[str, Threshold] = Field(
        default_factory=dict, description="Another threshold for single classes, by their labels."
    )
    iou: Threshold = Field(default=0.45, description="NMS drops a box that overlaps a better one by more than this.")
    nms: Nms | None = Field(
        default=None,
        description="Whether boxes are only compared within a class (`per-class`), across all (`agnostic`), or not "
        "at all; default: per-class, none for `end2end` and for `logits` other than of an SSD (`background: 0`).",
    )
    max_detections: Annotated[int, Field(ge=1, le=MOST_CANDIDATES)] = Field(
        default=100, description="Rows of the answer, those with the best scores; unused ones are padding."
    )
