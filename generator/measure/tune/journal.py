"""Every measurement on disk as soon as it is there, so that tune goes on where it was stopped.

The first line says what is measured, where and how; each further one is a `Trial`. A run of the same kind finds its
measurements there and makes only the missing ones.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from generator.errors import PerfError
from generator.measure.results import round_figures
from generator.measure.tune.trial import Trial
from generator.signals import hold_signals

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from generator.measure.tune.knobs import Settings

JOURNAL_FILE = "journal.jsonl"
_OTHER: Mapping[str, Any] = {
    "hint": "choose another folder, or remove the journal to begin anew",
    "fields": {"folder": None},
}


class Journal:
    """The measurements of one run, which may have been begun before.

    Attributes:
        trials: All of them, in their order. Failures at the end of an earlier run are tried again and not in it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Begin the journal, or go on with the one that is there.

        Raises:
            PerfError: It is of another run, damaged, or cannot be read or written.
        """
        self._path = path
        self.trials: list[Trial] = []
        first = json.dumps(about, ensure_ascii=False)
        try:
            text = path.read_bytes() if path.exists() else b""
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise PerfError(msg, **_OTHER) from error
        whole = text[: text.rfind(b"\n") + 1]  # a line that was cut off by the machine's end is measured again
        self._size = len(whole)
        if not whole:
            self._append(first)
            return
        _check_about(path, whole.splitlines()[0], json.loads(first))
        for number, line in enumerate(whole.splitlines()[1:], start=2):
            try:
                self.trials.append(Trial.model_validate_json(line))
            except ValidationError as error:
                raise PerfError(f"line {number} of {path} is not a measurement", **_OTHER) from error
        while self.trials and self.trials[-1].figure is None:
            self.trials.pop()

    def find(self, stage: str, settings: Settings, concurrency: int) -> Trial | None:
        """Return the measurement that was made already, or the failure that this candidate ended with."""
        for trial in self.trials:
            failed = trial.figure is None
            if (trial.stage, trial.settings) == (stage, settings) and (failed or trial.concurrency == concurrency):
                return trial
        return None

    def add(self, trial: Trial) -> None:
        """Keep a measurement.

        Raises:
            PerfError: The disk takes no more; what was kept before is whole.
        """
        self._append(
            json.dumps(round_figures(trial.model_dump(mode="json", exclude_defaults=True)), ensure_ascii=False)
        )
        self.trials.append(trial)

    def _append(self, line: str) -> None:
        data = f"{line}\n".encode()
        try:
            with hold_signals():  # Ctrl-C leaves whole lines
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as stream:
                    stream.truncate(self._size)  # what an earlier end, or a full disk, left of a line
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as error:
            raise PerfError(
                f"{self._path} cannot be written: {error.strerror}; its {len(self.trials)} measurements are kept",
                hint="free disk space there and run the same again, which goes on from them",
            ) from error
        self._size += len(data)


def _check_about(path: Path, line: bytes, about: dict[str, Any]) -> None:
    """Refuse a journal that says something else than `about`, naming each field."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != about["format"]:
        raise PerfError(f"{path} is not the journal of a tuning by this version", **_OTHER)
    different = [
        f"{name} is another"
        if isinstance(about.get(name), dict)
        else f"{name} was {found.get(name)} and is {about.get(name)}"
        for name in sorted({*found, *about})
        if found.get(name) != about.get(name)
    ]
    if different:
        raise PerfError(f"{path} is of another run: {'; '.join(different)}", **_OTHER)
