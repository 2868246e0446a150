"""Fields that the release does not know: its parser refuses the whole configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.doctor.finding import Finding, in_config
from generator.rules.releases import FIELDS
from generator.rules.rule import release_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.repository import ConfiguredModel


def check_fields(model: ConfiguredModel, release: str) -> Iterator[Finding]:
    """Check one configuration."""
    newer = {name for name, first in FIELDS.items() if release_key(release) < release_key(first)}
    for place in _find_fields(model.config, newer, ()):
        yield in_config(model, "config-field-newer", *place, field=place[-1])


def _find_fields(message: Any, names: set[str], prefix: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield where fields of these names are set; not in maps and lists, which hold none of them."""
    for field, value in message.ListFields():
        if field.name in names:
            yield (*prefix, field.name)
        elif field.message_type is not None and not hasattr(value, "__len__"):
            yield from _find_fields(value, names, (*prefix, field.name, 0))
