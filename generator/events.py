"""What library code tells about its progress. It prints nothing: `generator.cli` draws these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """A step is at work, such as `verifying demo`; `part` is what of it, `fraction` (0 to 1, nan: unknown) how far."""

    step: str
    part: str = ""
    fraction: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A step is finished, such as `verified`."""

    step: str
    detail: str
    seconds: float | None = None


OnEvent: TypeAlias = Callable[[Doing | Done], None]


def ignore(_event: Doing | Done) -> None:
    """Do nothing with an event."""
