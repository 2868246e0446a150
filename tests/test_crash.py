"""Builders that are killed while publishing; a sample of what `python -m benchmarks.crash` does for every step."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crash import SITUATIONS, Tally, crash


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("situation", list(SITUATIONS))
def test_no_kill_loses_anything_or_gives_a_wrong_answer(tmp_path: Path, situation: str) -> None:
    tally = Tally()
    for _, seen in crash(tmp_path, [situation], limit=1000):
        tally = seen
    assert tally.killed >= 20
    assert (tally.wrong, tally.dead) == ([], [])
    assert tally.recovered == tally.killed
    assert tally.silent + tally.served > 0
