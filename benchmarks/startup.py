"""How long the commands take that everybody waits for, and what the largest of them needs.

    python -m benchmarks.startup --repeats 5

Each is a process of its own, as a user starts it; the table has the median of the repeats (the build runs once).
Peak memory is the resident set of the largest process of the command.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parents[1]
TRTGEN = (sys.executable, "-m", "generator")
READY = b"Ctrl-C stops it"
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; a peak of 0 is not shown."""

    what: str
    seconds: float
    target_s: float
    peak_bytes: int = 0
    target_bytes: int = 0

    def missed(self) -> bool:
        """Say whether it took longer or more memory than it may."""
        return self.seconds > self.target_s or self.peak_bytes > self.target_bytes

    def __str__(self) -> str:
        """Return the line as Markdown."""
        memory = f"{self.peak_bytes / _GIB:.2f} | {self.target_bytes / _GIB:.0f}" if self.peak_bytes else " | "
        return f"| {self.what} | {self.seconds:.2f} | {self.target_s:g} | {memory} |"


def run_command(*arguments: str) -> tuple[float, int]:
    """Run `trtgen` to its end; return the seconds it took and its peak memory in bytes."""
    started = time.monotonic()
    process = subprocess.Popen([*TRTGEN, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"trtgen {' '.join(arguments)} failed:\n{words.decode(errors='replace')}")
    return seconds, usage.ru_maxrss * 1024


def time_to_ready(repository: Path) -> float:
    """Return the seconds from the start of `trtgen serve` until it says that every model is ready."""
    started = time.monotonic()
    arguments = ("serve", "--repository", str(repository), *FREE_PORTS)
    process = subprocess.Popen([*TRTGEN, *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    assert process.stderr is not None
    words = b""
    for line in process.stderr:
        words += line
        if READY in line:
            break
    seconds = time.monotonic() - started
    process.send_signal(signal.SIGTERM)
    process.communicate()
    if READY not in words:
        raise SystemExit(f"trtgen serve failed:\n{words.decode(errors='replace')}")
    return seconds


def main() -> int:
    """Print the table; exit 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-resnet50", action="store_true", help="leave out the build of about a minute")
    options = parser.parse_args()
    repeats = range(options.repeats)
    with tempfile.TemporaryDirectory(prefix="trtgen-startup-") as folder:
        demo = Path(folder) / "demo"
        build = ("build-repo", "demo", "--repository", str(demo))
        run_command(*build)
        helped = statistics.median(run_command("--help")[0] for _ in repeats)
        rebuilt = statistics.median(run_command(*build)[0] for _ in repeats)
        ready = statistics.median(time_to_ready(demo) for _ in repeats)
        rows = [
            Row(what="`trtgen --help`", seconds=helped, target_s=0.3),
            Row(what="`trtgen build-repo demo`, unchanged", seconds=rebuilt, target_s=1),
            Row(what="`trtgen serve`, demo model, until ready", seconds=ready, target_s=10),
        ]
        if not options.no_resnet50:
            resnet50 = Path(folder) / "resnet50"
            seconds, peak = run_command("build-repo", "resnet50", "--weights", "random", "--repository", str(resnet50))
            what = "`trtgen build-repo resnet50 --weights random`, with the gate"
            rows.append(Row(what=what, seconds=seconds, target_s=90, peak_bytes=peak, target_bytes=3 * _GIB))
    print(f"{describe_machine()}\n")
    print("| command | s | at most | peak GiB | at most |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(row)
    return 1 if any(row.missed() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
