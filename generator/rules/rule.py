"""One thing that can be wrong with a model repository, its server or the machine, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

Severity = Literal["error", "warning", "note"]
Evidence = Literal["files", "onnx", "plan", "python", "core", "host", "log", "server"]
FILES: tuple[Evidence, ...] = ("files", "log")
CORE: tuple[Evidence, ...] = ("files", "core", "log")
EDIT = "correct {model}/config.pbtxt"
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row of the table of rules.

    `id` never changes. `says` is a regular expression of tritonserver's words. `cause` and `fix` are templates: their
    fields are the named groups of `says` or what a check found; `model` is always there. `build` says that a model of
    trtgen's may be built again instead: from its record, or without what was edited. Releases are those of the
    container (`24.10`): `first` and `last` tell where the rule holds, both included; None is every one. `seen_in` says
    what shows it: files (folders, configurations), the header of an ONNX file, a plan's header or passport, the syntax
    of model.py, core (the part of tritonserver that reads configurations, without any backend), the machine, a log, a
    running server.
    """

    id: str
    severity: Severity = "error"
    says: str | None = None
    cause: str
    fix: str
    seen_in: tuple[Evidence, ...] = ("log",)
    build: Literal["rebuild", "rewrite"] | None = None
    first: str | None = None
    last: str | None = None

    def holds_in(self, release: str) -> bool:
        """Tell whether this release of the container has the rule."""
        at = release_key(release)
        return (self.first is None or release_key(self.first) <= at) and (
            self.last is None or at <= release_key(self.last)
        )


# A rule of Triton for config.pbtxt, which a file shows as well as a log.
config_rule = partial(Rule, fix=EDIT, build="rewrite", seen_in=CORE)


def release_key(release: str) -> tuple[int, int]:
    """Return year and month of a container's release such as 24.10.

    Raises:
        ValueError: It is no release.
    """
    if not (match := re.fullmatch(r"(\d\d)\.(0[1-9]|1[0-2])", release)):
        msg = f"{release!r} is not a release of the container, such as 24.10"
        raise ValueError(msg)
    return int(match[1]), int(match[2])
