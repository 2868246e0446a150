"""The JSON files that trtgen writes beside what it made and reads again: what they have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self


class JsonRecord(BaseModel):
    """A record; subclasses say its fields, the last of which is `format`, raised when the meaning of one changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> str:
        """Return the file's text; the same record always gives the same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ValueError: It cannot be read, or as `parse`.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from error
        return cls.parse(data)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the file's content.

        Raises:
            ValueError: It is of another format, or a field is not what it should be; in words.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            for detail in error.errors():
                if detail["loc"] == ("format",):
                    reads = cls.model_fields["format"].default
                    message = f"it has format {detail['input']!r}, this version of trtgen reads {reads}"
                    raise ValueError(message) from error
            raise ValueError(name_problems(error)) from error


def name_problems(error: ValidationError) -> str:
    """Return each field with what is wrong with it: `gpu.name: Field required; flags.0: ...`."""
    problems = (
        ": ".join([*([".".join(map(str, one["loc"]))] if one["loc"] else []), one["msg"].removeprefix("Value error, ")])
        for one in error.errors()
    )
    return "; ".join(problems)
