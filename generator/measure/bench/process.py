"""A runner's process seen from here: started under its own interpreter, asked, timed out, ended.

The protocol is described in `runners/loop.py`. A runner that ends, hangs or answers something else is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOP = Path(__file__).parent / "runners" / "loop.py"
_KEPT_LINE = 400
_READ_BYTES = 1 << 16
# What is set for one interpreter breaks another one.
_OWN_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")
_DRIVER_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")


class RunnerError(PerfError):
    """A runner cannot do what it was asked; `alive` says whether it can be asked again."""

    def __init__(self, message: str, *, alive: bool) -> None:
        super().__init__(message, hint="the other runners are not affected; run its process alone to see more")
        self.alive = alive


def runner_command(kind: str, python: Path | None = None) -> list[str]:
    """Return the command that starts a runner of `kind` under `python`, default this interpreter."""
    return [str(python or sys.executable), str(LOOP), kind]


def runner_environment(python: Path | None = None) -> dict[str, str]:
    """Return the environment for a runner: this one's for this interpreter, a cleaned one for another.

    For this interpreter the folder of this package is added, so that it is found from any working directory. For
    another one, what points at this one's modules and libraries goes, except folders that hold the GPU's driver.
    """
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # the order in which NVML counts, too
    if python is None or python.absolute() == Path(sys.executable).absolute():
        root = str(Path(__file__).resolve().parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        return environment
    folders = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    drivers = [one for one in folders if one and any((Path(one) / name).exists() for name in _DRIVER_LIBRARIES)]
    for name in _OWN_VARIABLES:
        environment.pop(name, None)
    if drivers:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(drivers)
    return environment


class RunnerProcess:
    """A process that answers requests, until `stop`.

    Args:
        command: What to start, see `runner_command`.
        environment: Its whole environment.
        timeout_s: How long one answer may take before the process is killed.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._buffer = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            # A session of its own: Ctrl-C is for us, and we end it with whatever it has started.
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._log.close()
            raise RunnerError(f"{command[0]} cannot be started: {error.strerror}", alive=False) from error

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            RunnerError: The runner said no (`alive`), or it ended, hung or answered nonsense (killed).
        """
        assert self._process.stdin is not None
        request = json.dumps({"do": do, **arguments}).encode() + b"\n"
        try:
            self._process.stdin.write(request)
        except (BrokenPipeError, ValueError) as error:
            raise self._dead(f"ended before `{do}`") from error
        line = self._read_line(do)
        try:
            answer = json.loads(line)
        except ValueError as error:  # JSONDecodeError, or not even text
            raise self._dead(f"answered {_shorten(line)} to `{do}`, which is not JSON") from error
        if not isinstance(answer, dict):
            raise self._dead(f"answered {_shorten(line)} to `{do}`, which is not a JSON object")
        if "error" in answer:
            raise RunnerError(str(answer["error"]), alive=True)
        return answer

    def stop(self, *, patience_s: float = 0) -> None:
        """End it: by the end of its input, after `patience_s` by force. Safe to call twice."""
        if self._log.closed:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self._kill()
        self._process.stdout.close()
        self._log.close()

    def _kill(self) -> None:
        """Kill the whole group: also what the runner started and left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read_line(self, do: str) -> bytes:
        assert self._process.stdout is not None
        stream, deadline = self._process.stdout.fileno(), time.monotonic() + self._timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                self._kill()
                raise self._dead(f"did not answer `{do}` within {self._timeout_s:g} s and was killed")
            part = os.read(stream, _READ_BYTES)
            if not part:
                raise self._dead(f"ended during `{do}`")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _dead(self, what: str) -> RunnerError:
        """Make sure it is dead, and say what it did and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # an end of its own has an exit code worth telling
        code = self._process.poll()
        self._kill()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        details = [] if code is None or code == -signal.SIGKILL else [f"exit code {code}"]
        details += [lines[-1].strip()[:_KEPT_LINE]] if lines else []
        return RunnerError(f"{what}{': ' if details else ''}{', '.join(details)}", alive=False)


def _shorten(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 80 else text[:77] + "...")
