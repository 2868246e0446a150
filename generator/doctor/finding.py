"""One thing that is wrong, with its place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.doctor.redact import redact
from generator.rules import BY_ID

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from generator.doctor.repository import ConfiguredModel, ModelFolder
    from generator.rules.rule import Rule, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that does not hold at a place.

    `line` is None where the place is a file or folder as a whole; `field` is that of the configuration.
    """

    rule: Rule
    model: str
    path: Path
    line: int | None = None
    field: tuple[str | int, ...] = ()
    values: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.rule.severity

    @property
    def cause(self) -> str:
        """What is there and what was expected."""
        return redact(self.rule.cause.format_map({**self.values, "model": self.model}))

    @property
    def fix(self) -> str:
        """What to do."""
        return redact(self.rule.fix.format_map({**self.values, "model": self.model}))


def in_config(model: ConfiguredModel, rule: str, /, *place: str | int, **values: object) -> Finding:
    """Return a finding on the line of a field of the model's configuration; on its folder where it has none."""
    if model.text is None:
        return at_path(model, rule, model.path, **values)
    line = model.positions.line(*place)
    return Finding(rule=BY_ID[rule], model=model.name, path=model.config_path, line=line, field=place, values=values)


def at_path(model: ModelFolder, rule: str, place: Path, /, **values: object) -> Finding:
    """Return a finding about a file or folder."""
    return Finding(rule=BY_ID[rule], model=model.name, path=place, values=values)
