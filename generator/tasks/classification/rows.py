"""What a client prints for an image: its classes, best first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from generator.tasks.classification.labels import name_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
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
    orders = [_find_best(row, top) for row in -scores.astype(np.float64)]
    return [
        [
            {"label": None if labels is None else labels[index], "index": int(index), "score": float(row[index])}
            for index in order
        ]
        for row, order in zip(scores, orders, strict=True)
    ]


def _find_best(negated: NDArray[np.float64], top: int | None) -> NDArray[np.int64]:
    """Return the places of the least numbers, least first; NaN comes last."""
    import numpy as np

    places = np.arange(len(negated))
    if top is not None and top < len(negated) and not np.isnan(limit := np.partition(negated, top - 1)[top - 1]):
        places = np.flatnonzero(negated <= limit)  # a few are sorted several times as fast as all
    best: NDArray[np.int64] = places[np.argsort(negated[places], kind="stable")[:top]]
    return best


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


def find_answers(types: Mapping[str, str]) -> dict[str, bool]:
    """Return the output that holds the scores, for the server to rank and label; nothing without exactly one."""
    scores = [name for name in ("PROBABILITIES", "LOGITS") if types.get(name) == "FP32"]
    return dict.fromkeys(scores, True) if len(scores) == 1 else {}


def read_answer(outputs: Mapping[str, NDArray[Any]], negative_label: str | None) -> list[dict[str, Any]]:
    """Return the classes of one image that the server ranked, `score:index:label` each.

    Raises:
        ValueError: A score is not a number.
    """
    (cells,) = outputs.values()
    rows: list[dict[str, Any]] = []
    for cell in cells:
        score, index, *label = cell.decode(errors="replace").split(":", 2)
        rows.append({"label": label[0] if label else None, "index": int(index), "score": float(score)})
        if not math.isfinite(rows[-1]["score"]):
            raise ValueError(f"the score of {rows[-1]['label']} is {rows[-1]['score']}, a number was expected")
    if negative_label is not None and rows[0]["score"] < 0.5:
        return [{"label": negative_label, "index": None, "score": round(1 - rows[0]["score"], 6)}]
    return rows
