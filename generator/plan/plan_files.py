"""A plan and its passport get into their folder together, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import PlanError
from generator.signals import hold_signals

if TYPE_CHECKING:
    from generator.plan.passport import Passport

__all__ = ["write_plan"]


def write_plan(data: bytes, passport: Passport, path: Path) -> None:
    """Write plan and passport under temporary names in the same folder, then give both their names.

    A failure leaves neither of the new files, and those of an earlier build as they were.

    Raises:
        PlanError: The folder cannot be written to, or is full.
    """
    from generator.plan.passport import passport_path, write_passport

    temporary: list[Path] = []
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp.plan")
        temporary.append(Path(name))
        with os.fdopen(number, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary[0].chmod(0o644)  # mkstemp's 600 would keep the container's user out
        temporary.append(passport_path(temporary[0]))
        write_passport(passport, temporary[0])
        with hold_signals():  # between the two names an interrupt would leave one without the other
            temporary[1].replace(passport_path(path))
            temporary[0].replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise PlanError(msg, hint="free disk space, or give --output another folder") from error
    finally:
        for one in temporary:
            one.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
