"""Steps for the processes of bulk work, without a model: an image's answer is the text in it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from generator.bulk.images import ERROR, IMAGE, Batch, as_column
from generator.errors import PlanError


class TextStep:
    """Answers one class, whose label is what the file holds; what `at` says happens where that is `word`."""

    most_bytes = 1000
    calls_at_once = 1

    def __init__(self, word: str = "", at: str = "", once: Path | None = None) -> None:
        self.word, self.at, self.once = word.encode(), at, once

    def __call__(self, batch: Batch) -> Batch:
        if self.word and self.word in batch[IMAGE] and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            if self.at == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.at == "sleep":
                time.sleep(1)
            if self.at == "raise":
                raise PlanError("the GPU is gone", hint="look for it")
        rows = [None if data is None else [{"label": data.decode(), "index": 0, "score": 1.0}] for data in batch[IMAGE]]
        return {"item": batch["item"], "path": batch["path"], "classes": as_column(rows), "error": batch[ERROR]}

    def close(self) -> None:
        pass


def refuse() -> TextStep:
    """Fail as a step does that has no model."""
    raise PlanError("no plan", hint="build one")


def die() -> TextStep:
    """End the process before there is a step."""
    os.kill(os.getpid(), signal.SIGKILL)
    return TextStep()
