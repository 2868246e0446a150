"""What a client prints for an image: its boxes, best first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from generator.tasks.detection.head import BOXES, CLASSES, SCORES
from generator.tasks.detection.postprocess import Postprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from generator.artifact import Artifact
    from generator.spec.model import ModelSpec


def make_rows(outputs: Mapping[str, Any], labels: Sequence[str] | None, top: int | None) -> list[list[dict[str, Any]]]:
    """Return `label`, `index`, `score` and `box` (left, top, right, bottom in pixels) of each image's best boxes."""
    images = zip(*(outputs[name] for name in ("NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES")), strict=True)
    return [
        [
            {
                "label": None if labels is None else labels[index],
                "index": int(index),
                "score": float(score),
                "box": [float(edge) for edge in box],
            }
            for box, score, index in zip(
                boxes[: number[0]][:top], scores[: number[0]][:top], classes[: number[0]][:top], strict=True
            )
        ]
        for number, boxes, scores, classes in images
    ]


def answer_one(
    spec: ModelSpec,
    artifact: Artifact,
    outputs: Mapping[str, NDArray[Any]],
    geometry: Sequence[float],
    top: int | None,
) -> list[dict[str, Any]]:
    """Return the best boxes of one image, as the post-processing step answers them.

    Raises:
        ValueError: A box is not numbers.
    """
    assert spec.detection is not None, "the spec fills it in"
    postprocess = Postprocess.of(spec.detection, artifact.head, artifact.labels)
    return make_detected_rows(postprocess, outputs, geometry, artifact.labels, top)


def make_detected_rows(
    postprocess: Postprocess,
    outputs: Mapping[str, NDArray[Any]],
    geometry: Sequence[float],
    labels: Sequence[str] | None,
    top: int | None,
) -> list[dict[str, Any]]:
    """Return the rows of one image from the network's own; ValueError if a box is not numbers."""
    found = postprocess.detect(outputs[BOXES], outputs[SCORES], outputs[CLASSES], geometry)
    answer: dict[str, Any] = {"NUM_DETECTIONS": [[len(found[1])]]}
    answer |= {name: [values] for name, values in zip(("BOXES", "SCORES", "CLASSES"), found, strict=True)}
    (rows,) = make_rows(answer, labels, top)
    return rows


def find_answers(types: Mapping[str, str]) -> dict[str, bool]:
    """Return the outputs that hold the boxes; nothing for a model without them."""
    wanted = ("NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES")
    return dict.fromkeys((*wanted, "LABELS"), False) if types.keys() >= {*wanted, "LABELS"} else {}


def read_answer(outputs: Mapping[str, NDArray[Any]], top: int | None) -> list[dict[str, Any]]:
    """Return the boxes of one image that the server answered.

    Raises:
        ValueError: A box is not numbers.
    """
    (rows,) = make_rows({name: values[None] for name, values in outputs.items()}, None, top)
    for row, label in zip(rows, outputs["LABELS"], strict=False):  # padding follows
        row["label"] = label.decode(errors="replace")
        if not all(map(math.isfinite, (row["score"], *row["box"]))):
            raise ValueError(f"a box of {row['label']} is {row['box']} with the score {row['score']}, not numbers")
    return rows
