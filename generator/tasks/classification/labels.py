"""The names of the classes."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.spec.model import ModelSpec

_LOG = logging.getLogger(__name__)
_ONE_OUTPUT_HINT = "give the class's name alone, or two lines: the name below the threshold, then the one above it"


def resolve_labels(spec: ModelSpec, own: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return one name per class: the spec's file, the source's own categories, or indices if the spec says so.

    `classes` is how many outputs the network has. One output tells two classes apart, so there are two names then: that
    of its absence first, which is "not NAME" where the file has one line.

    Raises:
        SourceError: Unreadable file, wrong count, or no names at all.
    """
    if spec.classes not in (None, classes):
        msg = f"{spec.name}: classes is {spec.classes}, but the model has {classes}"
        raise SourceError(msg, hint=f"set classes: {classes}, or leave it out", fields={"classes": classes})
    if spec.labels == "index":
        return tuple(str(index) for index in range(max(classes, 2)))
    if isinstance(spec.labels, Path):
        labels = read_labels(spec.labels)
        if classes == 1 and len(labels) == 1:
            return f"not {labels[0]}", labels[0]
        if len(labels) != max(classes, 2):
            msg = f"{spec.labels} has {len(labels)} lines, but {spec.name} has {classes} classes"
            hint = "one class name a line, in the order of the network's outputs"
            if classes == 1:
                msg, hint = f"{spec.labels} has {len(labels)} lines, but {spec.name} has one output", _ONE_OUTPUT_HINT
            raise SourceError(msg, hint=hint)
        return labels
    if own is not None and classes == 1 and len(own) == 1:
        return f"not {own[0]}", own[0]
    if own is not None and len(own) == max(classes, 2):
        return tuple(own)
    msg = f"{spec.name} has {classes} classes and no names for them"
    raise SourceError(msg, hint="set labels to a file with one name a line, or to index", fields={"labels": None})


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the lines of a label file, without empty ones at its end; a name that stands twice is warned of.

    Raises:
        SourceError: Unreadable, not UTF-8, or with an empty line before the last name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the label file {path} cannot be read: {error}"
        raise SourceError(msg, hint="give a UTF-8 text file with one class name a line") from error
    # split at \n only: splitlines() would also cut a name at a form feed or U+2028, which Triton does not
    labels = [line.removesuffix("\r") for line in text.split("\n")]
    while len(labels) > 1 and not labels[-1].strip():
        labels.pop()
    if blank := [number for number, label in enumerate(labels, 1) if not label.strip()]:
        msg = f"the label file {path} has no name in line {blank[0]}"
        raise SourceError(msg, hint="one class name a line, in the order of the network's outputs")
    if twice := [name for name, count in Counter(labels).items() if count > 1]:
        lines = [number for number, label in enumerate(labels, 1) if label == twice[0]]
        more = f", and {len(twice) - 1} more names stand more than once" if len(twice) > 1 else ""
        _LOG.warning(
            "the label file %s has %r in lines %s%s: answers tell these classes apart by their index only",
            path, twice[0], " and ".join(map(str, lines)), more,
        )  # fmt: skip
    return tuple(labels)


def name_outputs(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """Return one name per output; a single one answers the probability of the second of two classes."""
    return tuple(labels[-1:]) if count == 1 else tuple(labels)
