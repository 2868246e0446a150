"""On which line of a config.pbtxt a field stands."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, slots=True)
class Positions:
    """The lines, from 1, and the values as they are written, of the fields of one text."""

    lines: dict[Path, int]
    values: dict[Path, str]

    def line(self, *path: str | int) -> int:
        """Return the line of a field, or of the innermost message around it that is there; 1 where none is."""
        for length in range(len(path), 0, -1):
            if found := self.lines.get(path[:length]):
                return found
        return 1

    def index(self, path: Path, field: str, value: str) -> int:
        """Return which repetition of the message `path` has this value in this field; 0 where none has."""
        position = 0
        while (*path, position) in self.lines:
            if self.values.get((*path, position, field, 0)) == value:
                return position
            position += 1
        return 0


def find_positions(text: str) -> Positions:
    """Return where the fields of a text in protobuf's text format stand; of a broken text, as far as it is whole."""
    positions = Positions({}, {})
    _read_message(_read_tokens(text), (), "", positions)
    return positions


def _read_tokens(text: str) -> Iterator[tuple[str, int]]:
    line, at = 1, 0
    while at < len(text) and (match := _TOKEN.match(text, at)):
        if match["space"] is None:
            yield match[0], line
        line += match[0].count("\n")
        at = match.end()


def _read_message(tokens: Iterator[tuple[str, int]], prefix: Path, end: str, positions: Positions) -> None:
    """Read fields up to `end`, or to the end of the text."""
    seen: Counter[str] = Counter()

    def add(name: str, line: int) -> Path:
        path = (*prefix, name, seen[name])
        seen[name] += 1
        positions.lines[path] = line
        positions.lines.setdefault((*prefix, name), line)
        return path

    for name, line in tokens:
        if name == end:
            return
        if name in ",;":
            continue
        value = next(tokens, ("", line))
        if value[0] == ":":
            value = next(tokens, ("", line))
        if value[0] == "[":
            for item, item_line in tokens:
                if item == "]":
                    break
                if item != ",":
                    _read_value(tokens, (item, item_line), add(name, item_line), positions)
        else:
            _read_value(tokens, value, add(name, line), positions)


def _read_value(tokens: Iterator[tuple[str, int]], value: tuple[str, int], path: Path, positions: Positions) -> None:
    text, _ = value
    if text in _CLOSES:
        _read_message(tokens, path, _CLOSES[text], positions)
    else:
        positions.values[path] = text[1:-1] if text[:1] in ("'", '"') else text
