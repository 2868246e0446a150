"""Every command in the README's `console` blocks runs in order in a fresh copy, and prints what the README shows.

Blocks marked `sh` are for a person: installing, two terminals, Docker.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from generator.cli import _COMMANDS as COMMANDS
from generator.cli import _GROUPS as GROUPS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def console_commands() -> list[tuple[str, list[str]]]:
    """Each command with the lines that the README shows below it."""
    commands: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
    return commands


def without_measurements(text: str) -> str:
    """Take out what differs from run to run: seconds, and the width of columns."""
    without_seconds = re.sub(r"\d+\.\d s\b", "# s", re.sub(r"of the \d+ images", "of the # images", text))
    return re.sub(
        r"\s+", " ", re.sub(r"identical,|within \S+,|rows (identical|within \S+)", "#", without_seconds)
    ).strip()


@pytest.mark.server
@pytest.mark.slow
def test_every_command_prints_what_the_readme_shows(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    # the environment that runs this test stands for the one that make would install
    environment = Path(sys.prefix)
    (environment / ".trtgen-installed").touch()
    os.utime(environment / ".trtgen-installed")
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "VENV": sys.prefix, "MAKEFLAGS": "", "PYTHONPATH": str(tmp_path)}
    commands = console_commands()
    assert len(commands) >= 8
    unsettled = False
    for command, shown in commands:
        run = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        output = run.stdout + run.stderr
        if unsettled and "none of the models and loads that are to be measured" in output:
            continue  # there is nothing to compare with
        unsettled |= "trtgen perf" in command and "did not settle" in output  # a matter of the machine
        assert run.returncode == 0 or ("trtgen perf" in command and unsettled), f"{command}\n{output}"
        printed = {without_measurements(line) for line in output.splitlines()}
        missing = [line for line in shown if without_measurements(line) not in printed]
        assert not missing, f"{command} did not print {missing}\n{output}"


def test_doctor_prints_what_the_readme_shows() -> None:
    shown = re.search(r"```text\n\$ trtgen (doctor \S+)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    command = [sys.executable, "-m", "generator", *shown[1].split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (1, shown[2], "")


def test_the_test_command_is_what_ci_runs() -> None:
    assert "`make test`" in README
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()


def test_every_command_and_option_named_exists() -> None:
    for words in re.findall(r"trtgen ([a-z-]+)", README):
        assert words in (*COMMANDS, *GROUPS), words
    run = subprocess.run(
        [sys.executable, "-m", "generator", "build-repo", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--weights", "--replace", "--dry-run", "--max-batch"):
        assert option in README
        assert option in run.stdout
