"""Near spellings, for messages about names that do not exist."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["near"]


def near(word: str, valid: Iterable[str], *, most: int = 3) -> list[str]:
    """Return up to `most` of the valid words that look like `word`, best first."""
    by_lower = {name.lower(): name for name in valid}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=most, cutoff=0.6)
    return [by_lower[match] for match in matches]
