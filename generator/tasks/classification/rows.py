"""What a client prints for an image: its classes, best first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from generator.tasks.classification.labels import name_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from generator.artifact import Artifact


def make_rows(
    outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int | None
) -> list[list[dict[str, Any]]]:
    """Return `label`, `index` and `score` of each image's best classes.

    Of equal ones the lower index comes first, as the server does it.
    """
    import numpy as np

    (scores,) = outputs.values()
    orders = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :top]
    return [
        [
            {"label": None if labels is None else labels[index], "index": int(index), "score": float(row[index])}
            for index in order
        ]
        for row, order in zip(scores, orders, strict=True)
    ]


def answer_one(artifact: Artifact, outputs: Mapping[str, NDArray[Any]], top: int | None) -> list[dict[str, Any]]:
    """Return the best classes of one image, as clients print what the server answers.

    Raises:
        ValueError: A score is not a number.
    """
    batch = {name: row[None] for name, row in outputs.items()}
    (scores,) = outputs.values()
    (rows,) = make_rows(batch, name_outputs(artifact.labels, len(scores)), top)
    for row in rows:
        if not math.isfinite(row["score"]):
            raise ValueError(f"the score of {row['label']} is {row['score']}, a number was expected")
    if len(scores) == 1 and artifact.head.activation == "sigmoid" and scores[0] < 0.5:
        return [{"label": artifact.labels[0], "index": None, "score": 1 - float(scores[0])}]
    return rows
