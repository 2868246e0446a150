"""What a log of tritonserver says, whoever's server it was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.doctor.finding import Finding
from generator.rules import BY_ID
from generator.rules.words import find_rule
from generator.server.failures import read_failures

if TYPE_CHECKING:
    from pathlib import Path

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def explain_log(text: str, path: Path) -> list[Finding]:
    """Return a finding for every model that failed; words that no rule knows are given as they are."""
    findings = {}
    for model, words, line in read_failures(_COLOURS.sub("", text)):
        if model in findings:
            continue
        known = find_rule(words, model=model)
        rule, values = known or (BY_ID["unknown-words"], {"words": words})
        findings[model] = Finding(rule=rule, model=model or "the server", path=path, line=line, values=values)
    return list(findings.values())
