"""What a log of tritonserver says, whoever's server it was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.doctor.finding import Finding
from generator.errors import SourceError
from generator.rules import BY_ID
from generator.rules.words import find_rule
from generator.server.failures import read_failures

if TYPE_CHECKING:
    from pathlib import Path

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# How a line of tritonserver begins, in both of its formats; what runs it may write something before that.
_BEGINS = r"(?:\d{4}-\d\d-\d\dT[\d:.]+Z [IWEF] \d+ |[IWEF]\d{4} \d\d:\d\d:\d\d)"
_ALSO = r"\[libprotobuf ERROR |error: creating server|\S*triton_python_backend_stub: error while"
_BEFORE = re.compile(rf"^(?!{_BEGINS}|{_ALSO})\S.*?[ |](?={_BEGINS}|{_ALSO})")
# Programs in Go, such as those of Kubernetes, begin their lines as the older format does.
_SERVER = re.compile(rf"^{_BEGINS}(?![^\]\n]*\.go:\d+\])|^error: creating server", re.MULTILINE)
_ENDED = "failed to load all models"


def explain_log(text: str, path: Path) -> list[Finding]:
    """Return a finding for every model that failed; words that no rule knows are given as they are.

    Raises:
        SourceError: It is not a log of tritonserver.
    """
    plain = "\n".join(_BEFORE.sub("", _COLOURS.sub("", line)) for line in text.splitlines())
    if not _SERVER.search(plain):
        msg = f"{path} is not a log of tritonserver: no line begins as those do"
        raise SourceError(msg, hint="give what tritonserver writes to standard error, such as docker logs shows")
    findings = {}
    for model, words, line in read_failures(plain):
        if model in findings:
            continue
        known = find_rule(words, model=model)
        rule, values = known or (BY_ID["unknown-words"], {"words": words})
        findings[model] = Finding(rule=rule, model=model or "the server", path=path, line=line, values=values)
    if not findings and _ENDED in plain:  # and why was said in lines that are not here
        line = next(number for number, one in enumerate(plain.splitlines(), 1) if _ENDED in one)
        values = {"words": f"{_ENDED}, and the log does not say which: its beginning is missing"}
        return [Finding(rule=BY_ID["unknown-words"], model="the server", path=path, line=line, values=values)]
    return list(findings.values())
