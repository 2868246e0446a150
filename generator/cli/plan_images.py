"""Images for a plan that is run directly: what classify-plan and detect-plan share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from generator.cli import console
from generator.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.spec.recipe import Recipe

BATCH = 64  # images that are held in memory at once


def prepare_each(recipe: Recipe, paths: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.uint8], tuple[float, ...]]]:
    """Yield path, pixels and geometry of each file that is an image; say what is wrong with the others."""
    from generator.images.served_pixels import prepare_one

    for path in paths:
        try:
            yield path, *prepare_one(recipe, path.read_bytes(), str(path))
        except SourceError as error:
            console.report(error)
        except OSError as error:
            hint = "check the path and its permissions"
            console.report(SourceError(f"{path}: {error.strerror or error}", hint=hint))


def read_names(text: str) -> tuple[str, ...] | None:
    """Return the lines of the label file that `--labels` names, None for `index`.

    Raises:
        SourceError: The file cannot be read.
    """
    if text == "index":
        return None
    from generator.tasks.labels import read_labels

    return read_labels(Path(text))
