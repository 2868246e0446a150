"""A signal ends every command as Ctrl-C does: nothing is left, a word is said, the exit code is 128 + N."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generator import signals
from generator.signals import EndedBySignal, ending_signals, hold_signals
from tests.server_parts import find_processes

ROOT = Path(__file__).parents[1]
OTHERS = (".ses", "torchinductor_")  # what onnxruntime and torch keep in the temporary directory, whatever happens
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command with its temporary files in `folder`."""
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "generator", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    text = ""
    for line in process.stderr:
        text += line
        if words in line:
            return
    raise AssertionError(text)


@pytest.mark.server
@pytest.mark.parametrize(
    ("number", "while_it_says", "code", "word"),
    [
        (signal.SIGTERM, "exporting demo: the graph", 143, "ended by SIGTERM"),
        (signal.SIGHUP, "verifying demo: served pixels", 129, "ended by SIGHUP"),
    ],
)
def test_a_build_leaves_nothing(
    tmp_path: Path, number: signal.Signals, while_it_says: str, code: int, word: str
) -> None:
    repository = tmp_path / "models"
    process = start(tmp_path / "temporary", "build-repo", "demo", "-r", str(repository), "-v")
    read_until(process, while_it_says)
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does, to the process and to its group
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert rest.splitlines()[-1] == f"error: {word}"
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    names = {path.name for path in (tmp_path / "temporary").iterdir()}
    assert {name for name in names if not name.startswith(OTHERS)} == set()
    assert find_processes(tmp_path) == []


@pytest.mark.parametrize("number", ENDING)
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """As `nohup` leaves SIGHUP, and a shell's `&` SIGINT."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with ending_signals():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ENDING)
def test_a_second_signal_ends_the_cleaning_up(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    monkeypatch.setattr(signals, "_TWICE_S", 0.05)
    cleaned = []

    def clean_up() -> None:
        os.kill(os.getpid(), number)  # at once: the same one
        cleaned.append("a part")
        time.sleep(0.1)
        os.kill(os.getpid(), number)
        cleaned.append("the rest")

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            clean_up()

    with pytest.raises(EndedBySignal) as caught, ending_signals():
        work()
    assert caught.value.number == number
    assert cleaned == ["a part"]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with ending_signals(), hold_signals():
        assert [signal.getsignal(number) for number in ENDING] != before
    assert [signal.getsignal(number) for number in ENDING] == before
