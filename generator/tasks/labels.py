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


def resolve_labels(spec: ModelSpec, own: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return one name per class: the spec's file, the source's own categories, or indices if the spec says so.

    Raises:
        SourceError: Unreadable file, wrong count, or no names at all.
    """
    check_count(spec, classes)
    if spec.labels == "index":
        return tuple(str(index) for index in range(classes))
    if isinstance(spec.labels, Path):
        labels = read_labels(spec.labels)
        if len(labels) != classes:
            msg = f"{spec.labels} has {len(labels)} lines, but {spec.name} has {classes} classes"
            raise SourceError(msg, hint="one class name a line, in the order of the network's outputs")
        return labels
    if own is not None and len(own) == classes:
        return tuple(own)
    msg = f"{spec.name} has {classes} classes and no names for them"
    raise SourceError(msg, hint="set labels to a file with one name a line, or to index", fields={"labels": None})


def check_count(spec: ModelSpec, classes: int) -> None:
    """Refuse a spec that says another number of classes than the network has.

    Raises:
        SourceError: It does.
    """
    if spec.classes not in (None, classes):
        msg = f"{spec.name}: classes is {spec.classes}, but the model has {classes}"
        raise SourceError(msg, hint=f"set classes: {classes}, or leave it out", fields={"classes": classes})


def read_labels(path: Path, *, quiet: bool = False) -> tuple[str, ...]:
    """Return the lines of a label file, without empty ones at its end; not `quiet` warns of a name that stands twice.

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
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice and not quiet:
        lines = [number for number, label in enumerate(labels, 1) if label == twice[0]]
        more = f", and {len(twice) - 1} more names stand more than once" if len(twice) > 1 else ""
        _LOG.warning(
            "the label file %s has %r in lines %s%s: answers tell these classes apart by their index only",
            path, twice[0], " and ".join(map(str, lines)), more,
        )  # fmt: skip
    return tuple(labels)
