"""The names of a classifier's classes: one output tells two of them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.tasks.labels import check_count, read_labels
from generator.tasks.labels import resolve_labels as resolve_several

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.spec.model import ModelSpec

_ONE_OUTPUT_HINT = "give the class's name alone, or two lines: the name below the threshold, then the one above it"


def resolve_labels(spec: ModelSpec, own: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return one name per class of a network with `classes` outputs; with one output two names.

    That of the class's absence is the first then, which is "not NAME" where the file has one line.

    Raises:
        SourceError: Unreadable file, wrong count, or no names at all.
    """
    if classes != 1:
        return resolve_several(spec, own, classes)
    check_count(spec, classes)
    if spec.labels == "index":
        return "0", "1"
    names = read_labels(spec.labels) if isinstance(spec.labels, Path) else tuple(own or ())
    if len(names) == 1:
        return f"not {names[0]}", names[0]
    if len(names) == 2:
        return names
    if isinstance(spec.labels, Path):
        msg = f"{spec.labels} has {len(names)} lines, but {spec.name} has one output"
        raise SourceError(msg, hint=_ONE_OUTPUT_HINT)
    return resolve_several(spec, None, classes)


def name_outputs(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """Return one name per output; a single one answers the probability of the second of two classes."""
    return tuple(labels[-1:]) if count == 1 else tuple(labels)
