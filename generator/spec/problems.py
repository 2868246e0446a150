"""pydantic's findings in the words of models.yaml: the field as the user wrote it, what is wrong, what was found."""

from __future__ import annotations

import datetime as dt
import reprlib
from typing import TYPE_CHECKING, Any

from generator.errors import near

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def describe_problems(where: str, details: Iterable[Any], fields: Collection[str]) -> list[str]:
    """One line a field, since pydantic reports each member of a union for itself."""
    by_place: dict[str, list[str]] = {}
    for detail in details:
        place, problem = _describe(detail, fields)
        if problem not in by_place.setdefault(place, []):
            by_place[place].append(problem)
    return [f"{where}: {place}: {', or '.join(problems)}" for place, problems in by_place.items()]


def _describe(detail: Any, fields: Collection[str]) -> tuple[str, str]:
    """The field as the user wrote it; what is wrong with it and what was found."""
    place = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in fields or detail["type"] == "extra_forbidden":
            # pydantic also names the member of a union it tried, which the user never wrote
            place += f".{part}" if place else str(part)
    if detail["type"] == "extra_forbidden":
        word = str(detail["loc"][-1])
        suggestion = near(word, {*fields} - {word}, most=1)  # the word may be right in another place
        return place, "unknown field" + (f"; did you mean {suggestion[0]}?" if suggestion else "")
    message = str(detail["msg"]).removeprefix("Value error, ")
    if isinstance(detail.get("input"), dict) or detail["type"] in ("missing", "value_error"):
        return place, message
    found = _shown(detail["input"])
    if detail["type"] in ("string_type", "path_type") and isinstance(detail["input"], _UNQUOTED):
        found += ": without quotes YAML reads on, yes, no, null, dates and numbers as values; put it in quotes"
    return place, f"{message} (found {found})"


# What YAML makes of a word that was meant as text.
_UNQUOTED = (bool, int, float, dt.date, type(None))


def _shown(value: object) -> str:
    """Return the value as Python writes it, cut short: an alias in YAML can make it as long as it likes."""
    shortened = reprlib.Repr()
    shortened.maxlevel = 2
    shortened.maxstring = shortened.maxother = shortened.maxlong = 200
    try:
        return shortened.repr(value)
    except ValueError:  # Python refuses to print so many digits
        return "a number of thousands of digits"
