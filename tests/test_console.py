"""What is said while a command works: on a terminal, in a pipe, with -v and -q."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A command of three steps, which take long enough to be seen; a library's own warning comes in the middle.
STEPS = """
import logging, sys, time, warnings
from generator.cli import console
from generator.events import Doing, Done

console.set_verbosity(int(sys.argv[1]))
with console.show_progress() as progress:
    progress.draw(Doing(step="loading demo"))
    time.sleep(0.3)
    console.say("! a note")
    warnings.warn("a warning of a library " + "x" * 100)
    logging.getLogger("generator").warning("a record")
    time.sleep(0.3)
    progress.draw(Done(step="loaded", detail="the demo model", seconds=0.6))
    progress.draw(Doing(step="building demo", part="tactics", fraction=0.25))
    time.sleep(0.3)
    progress.draw(Doing(step="building demo", part="a very long name of a layer" * 9, fraction=0.5))
    time.sleep(0.3)
    progress.draw(Done(step="built", detail="12 MB"))
    progress.draw(Doing(step="verifying demo"))
    time.sleep(0.3)
    progress.hide()
    print("result", flush=True)
"""
LINES = ["! a note", "WARNING generator: a record", "* loaded    the demo model  0.6 s", "* built     12 MB"]


def run_on_terminal(**variables: str) -> str:
    """Return what a terminal of 80 columns gets."""
    main, sub = pty.openpty()
    os.set_inheritable(sub, True)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **variables}
    environment = {name: value for name, value in environment.items() if value or name == "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-c", STEPS, "0"], cwd=ROOT, env=environment, stdout=sub, stderr=sub
    ) as process:
        os.close(sub)
        data = b""
        while True:
            try:
                data += os.read(main, 4096)
            except OSError:  # the other end is closed
                break
    os.close(main)
    assert process.returncode == 0, data
    return data.decode()


def shown_in_the_end(text: str) -> list[str]:
    """The lines that stay: what a carriage return, an erased line or a cursor moved up overwrites is gone."""
    lines = [""]
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            lines.append("")
        elif token == "\x1b[1A":
            lines.pop()
        elif token == "\x1b[2K":
            lines[-1] = ""
        elif not token.startswith("\x1b") and token != "\r":
            lines[-1] += token
    return [line for line in lines if line]


def test_a_terminal_shows_the_step_at_work_and_its_seconds() -> None:
    text = run_on_terminal()
    assert re.search(r"⠋ loading demo  0 s", text)
    assert re.search(r". building demo: tactics  25%  0 s", text)
    bar = "[━╸╺]{20}"  # where it is known how far the step is
    assert re.search(rf"tactics  25%  0 s +{bar}", re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert not re.search(rf"loading demo[^\r\n]*{bar}", re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert not any(len(line) > 80 for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)))
    stays = shown_in_the_end(text)
    assert [line for line in stays if line in LINES] == LINES
    assert "result" in stays
    assert not any(words in line for line in stays for words in ("loading demo", "building demo", "verifying demo"))
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": ""}])
def test_a_terminal_that_cannot_gets_the_lines_only(variables: dict[str, str]) -> None:
    text = run_on_terminal(**variables)
    assert "loading demo" not in text
    assert [line for line in text.replace("\r", "").splitlines() if line in LINES] == LINES


def test_no_color_is_heard() -> None:
    text = run_on_terminal(NO_COLOR="1")
    assert "loading demo" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)


def test_a_terminal_of_another_encoding() -> None:
    text = run_on_terminal(PYTHONIOENCODING="ascii")
    assert re.search(r"[-\\|/] loading demo  0 s", text)


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (-1, []),
        (0, LINES),
        (1, [*LINES[:3], "  building demo: tactics", "  building demo: a very", LINES[3]]),
    ],
)
def test_a_pipe_gets_finished_steps_only(verbosity: int, expected: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS, str(verbosity)],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1"},  # CI sets it, and takes no line that changes
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "result\n"
    lines = run.stderr.splitlines()
    assert len(lines) == len(expected)
    for line, begin in zip(lines, expected, strict=True):
        assert line.startswith(begin)


def test_quiet_and_verbose_stand_before_or_behind_the_command() -> None:
    def said(*arguments: str) -> list[str]:
        run = subprocess.run(
            [sys.executable, "-m", "generator", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith("# demo: image file -> RGB -> ")
        return run.stderr.splitlines()

    assert any("target" in line for line in said("show", "demo"))
    assert said("-q", "show", "demo") == said("show", "demo", "-q") == []
