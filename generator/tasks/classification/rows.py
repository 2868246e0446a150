"""What a client prints for an image: its classes, best first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def make_rows(
    outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int
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
