"""Findings for people, for programs, for code scanning (SARIF 2.1.0) and for the log of a GitHub workflow."""

from __future__ import annotations

import json
import os
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from generator.rules import BY_ID
from generator.rules.rule import SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.doctor.finding import Finding

_JSON_VERSION = 1
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def format_text(findings: Sequence[Finding], *, models: int, release: str) -> str:
    """Return a paragraph for each finding and a last line with their numbers."""
    lines = []
    for finding in findings:
        place = f"{finding.path}:{finding.line}" if finding.line else f"{finding.path}"
        lines += [f"{place}: {finding.severity} {finding.rule.id}", f"    {finding.cause}", f"    fix: {finding.fix}"]
    lines = [make_printable(line) for line in lines]
    counts = Counter(finding.severity for finding in findings)
    found = ", ".join(f"{counts[one]} {one}{'s' * (counts[one] != 1)}" for one in SEVERITIES if counts[one])
    where = f" in {models} model{'s' * (models != 1)}, for release {release}" if models else ""
    lines.append(f"{found or 'nothing found'}{where}")
    return "\n".join(lines)


def make_printable(text: str) -> str:
    """Return the text without what would control a terminal: names and words in it are somebody else's."""
    return "".join(one if one.isprintable() or one == "\t" else one.encode("unicode_escape").decode() for one in text)


def format_json(findings: Sequence[Finding], *, models: int, release: str) -> str:
    """Return one JSON document; `version` rises when a field changes its meaning."""
    document = {
        "version": _JSON_VERSION,
        "release": release,
        "models": models,
        "findings": [
            {
                "rule": finding.rule.id,
                "severity": finding.severity,
                "model": finding.model,
                "file": str(finding.path),
                "line": finding.line,
                "cause": finding.cause,
                "fix": finding.fix,
            }
            for finding in findings
        ],
    }
    return json.dumps(document, indent=2)


def format_sarif(findings: Sequence[Finding], *, models: int, release: str) -> str:
    """Return a SARIF log with one run; files are as they were given, so give a path relative to the checkout."""
    ids = list(dict.fromkeys(finding.rule.id for finding in findings))
    run = {
        "tool": {
            "driver": {
                "name": "trtgen-doctor",
                "version": version("trtgen"),
                "rules": [
                    {
                        "id": rule,
                        "shortDescription": {"text": BY_ID[rule].cause},
                        "help": {"text": BY_ID[rule].fix},
                        "defaultConfiguration": {"level": BY_ID[rule].severity},
                    }
                    for rule in ids
                ],
            }
        },
        "properties": {"models": models, "release": release},
        "results": [
            {
                "ruleId": finding.rule.id,
                "ruleIndex": ids.index(finding.rule.id),
                "level": finding.severity,
                "message": {"text": f"{finding.cause}. Fix: {finding.fix}"},
                "locations": [{"physicalLocation": _locate(finding)}],
            }
            for finding in findings
        ],
    }
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _locate(finding: Finding) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": quote_from_bytes(os.fsencode(finding.path))}}
    if finding.line:
        location["region"] = {"startLine": finding.line}
    return location


def format_github(findings: Sequence[Finding], *, models: int, release: str) -> str:
    """Return workflow commands, which GitHub shows beside the lines of a pull request."""
    del models, release
    levels = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for finding in findings:
        line = f",line={finding.line}" if finding.line else ""
        path = _escape(str(finding.path), "%\r\n:,")  # the latter two would end a property
        text = _escape(f"{finding.cause}. Fix: {finding.fix}", "%\r\n")
        lines.append(f"::{levels[finding.severity]} file={path}{line},title={finding.rule.id}::{text}")
    return "\n".join(lines)


def _escape(text: str, characters: str) -> str:
    """Return the text as a workflow command takes it, where a line of its own would be a command of its own."""
    coded = {ord(one): f"%{ord(one):02X}" for one in characters}
    return "".join(one.translate(coded) if one in characters else make_printable(one) for one in text)


FORMATS = {"text": format_text, "json": format_json, "sarif": format_sarif, "github": format_github}
