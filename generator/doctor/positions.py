"""On which line of a config.pbtxt a field stands, and between which characters."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*) | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*') | (?P<mark>[{}<>\[\]:,;])
    | (?P<word>[^\s{}<>\[\]:,;\#"']+)""",
    re.VERBOSE,
)
_CLOSES = {"{": "}", "<": ">"}

# A field's name and which of its repetitions, from the outermost message to the innermost: ("input", 1, "dims", 0).
Path = tuple[str | int, ...]


class _Token(NamedTuple):
    text: str
    line: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Where one value stands: its line, from 1, its characters, and those of the whole field, a list as a whole."""

    line: int
    value: str
    span: tuple[int, int]
    whole: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Positions:
    """The fields of one text."""

    fields: dict[Path, Field]

    def line(self, *path: str | int) -> int:
        """Return the line of a field, or of the innermost message around it that is there; 1 where none is."""
        for length in range(len(path), 0, -1):
            start = path[:length]
            if found := self.fields.get(start) or self.fields.get((*start, 0)):
                return found.line
        return 1

    def index(self, path: Path, field: str, value: str) -> int:
        """Return which repetition of the message `path` has this value in this field; 0 where none has."""
        position = 0
        while (*path, position) in self.fields:
            inner = self.fields.get((*path, position, field, 0))
            if inner is not None and inner.value == value:
                return position
            position += 1
        return 0


def find_positions(text: str) -> Positions:
    """Return where the fields of a text in protobuf's text format stand; of a broken text, as far as it is whole."""
    positions = Positions({})
    _read_message(_read_tokens(text), (), "", positions)
    return positions


def _read_tokens(text: str) -> Iterator[_Token]:
    line, at = 1, 0
    while at < len(text) and (match := _TOKEN.match(text, at)):
        if match["space"] is None:
            yield _Token(match[0], line, at, match.end())
        line += match[0].count("\n")
        at = match.end()


def _read_message(tokens: Iterator[_Token], prefix: Path, close: str, positions: Positions) -> int:
    """Read fields up to `close`, or to the end of the text; return where that is."""
    seen: Counter[str] = Counter()
    end = 0
    for name in tokens:
        end = name.end
        if name.text == close:
            return end
        if name.text in ",;":
            continue
        value = next(tokens, name)
        if value.text == ":":
            value = next(tokens, name)
        values: list[tuple[_Token, int]] = []
        if value.text == "[":
            end = value.end
            for item in tokens:
                end = item.end
                if item.text == "]":
                    break
                if item.text != ",":
                    path = (*prefix, name.text, seen[name.text] + len(values))
                    values.append((item, _read_value(tokens, item, path, positions)))
        else:
            end = _read_value(tokens, value, (*prefix, name.text, seen[name.text]), positions)
            values = [(value._replace(line=name.line), end)]
        for item, item_end in values:
            path = (*prefix, name.text, seen[name.text])
            positions.fields[path] = Field(
                line=item.line,
                value=item.text[1:-1] if item.text[:1] in ("'", '"') else item.text,
                span=(item.start, item_end),
                whole=(name.start, end),
            )
            seen[name.text] += 1
    return end


def _read_value(tokens: Iterator[_Token], value: _Token, path: Path, positions: Positions) -> int:
    """Read what is in a message; return where the value ends."""
    if value.text in _CLOSES:
        return _read_message(tokens, path, _CLOSES[value.text], positions)
    return value.end
