"""The process between trtgen and tritonserver: whatever happens to trtgen, nothing of the server is left behind.

Run as a script by `generator.server.embedded`, with `python -I -S`, so it uses the standard library only. What keeps
NVIDIA's Multi-Process Service is used by `generator.server.mps`, too.

The one argument is JSON: `argv`, `log` (path), `remove` (a directory), `shm_prefix`, `stop_timeout_s`, and `mps`, the
program that starts NVIDIA's Multi-Process Service, or null; its variables are in the environment. The service leaves
its parent, so another process of this script, whose arguments are `mps` and the program, starts it, becomes its parent
again, and ends it when standard input ends, as it also does when the supervisor is killed.

- Standard output: one line with tritonserver's process id.
- Standard input: `stop SECONDS` ends the server: SIGTERM, and SIGKILL to its process group after that time. It may
  be sent again with a shorter time. End of file means the owner is gone, which stops the server as well.
- Exit code: tritonserver's, 128 + N when signal N ended it.

A signal that follows the death of a parent (PR_SET_PDEATHSIG) would not do in trtgen itself: it fires when the *thread*
that started the child ends, and it cannot remove shared memory or directories.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend puts its regions
_CHECK_OWNER_S = 1.0
_REAP_S = 10.0
_MPS_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


def main(argument: str) -> int:
    """Run tritonserver until it ends or has to; return its exit code after everything of it is gone."""
    spec = json.loads(argument)
    # Stubs that tritonserver leaves behind become children of this process, which ends them.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake = _install_signals()
    environments = _find_environments()
    try:
        with Path(spec["log"]).open("ab") as log:
            keeper = start_keeper(spec["mps"], log) if spec["mps"] else None
            child = subprocess.Popen(
                spec["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_supervisor,  # noqa: PLW1509 - this process has one thread
            )
        print(child.pid, flush=True)  # noqa: T201 - the protocol of this script
        code = _supervise(child, wake, stop_timeout_s=float(spec["stop_timeout_s"]))
        _kill_group(child.pid)  # of its clients, too: the service waits for those that are left
        if keeper:
            end_keeper(keeper)
        _end_descendants()
        _remove_environment(environments)
    finally:
        for region in _SHARED_MEMORY.glob(f"{spec['shm_prefix']}*"):
            region.unlink(missing_ok=True)
        shutil.rmtree(spec["remove"], ignore_errors=True)
    return code if code >= 0 else 128 - code


def start_keeper(program: str, log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start the process that keeps the service, and return when processes can find the service.

    Ctrl-C in a terminal does not reach it: those that use the service are to end first.
    """
    argv = [sys.executable, "-I", "-S", __file__, "mps", program]
    keeper = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    assert keeper.stdout is not None
    with contextlib.ExitStack() as stack:
        stack.callback(end_keeper, keeper)
        keeper.stdout.readline()
        stack.pop_all()  # no Ctrl-C came meanwhile
    return keeper


def end_keeper(keeper: subprocess.Popen[bytes]) -> None:
    """Have it end the service, and wait for that."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.close()
    keeper.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(2 * _MPS_S)


def keep_mps(program: str) -> int:
    """Start the service, say so on standard output, and end it, and remove its folder, when standard input ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _start_mps(program)
    with contextlib.suppress(BrokenPipeError):  # who started this is gone already
        os.write(sys.stdout.fileno(), b"\n")
    sys.stdin.read()
    _run_mps(program, request=b"quit\n")
    _end_descendants()
    shutil.rmtree(os.environ["CUDA_MPS_PIPE_DIRECTORY"], ignore_errors=True)
    return 0


def _start_mps(program: str) -> None:
    """Start the service, and return when its clients can find it; without it they run all the same, in turns."""
    control, until = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]) / "control", time.monotonic() + _MPS_S
    if _run_mps(program, "-d"):
        while not control.exists() and time.monotonic() < until:
            time.sleep(0.01)


def _run_mps(program: str, *arguments: str, request: bytes = b"") -> bool:
    """Run the service's program, and say whether it succeeded; the log says what else it did.

    Numbers in CUDA_VISIBLE_DEVICES are kept from it: its clients would apply theirs to what those leave.
    """
    environment = dict(os.environ)
    if environment.get("CUDA_VISIBLE_DEVICES", "")[:1].isdigit():
        del environment["CUDA_VISIBLE_DEVICES"]
    try:
        code = subprocess.run(
            [program, *arguments],
            input=request,
            stdout=sys.stderr,
            stderr=sys.stderr,
            timeout=_MPS_S,
            check=False,
            env=environment,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return False
    return code == 0


def _install_signals() -> int:
    """Return a descriptor that becomes readable with the number of each signal that arrives."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return readable


def _die_with_supervisor() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _supervise(child: subprocess.Popen[bytes], wake: int, *, stop_timeout_s: float) -> int:
    """Wait for the server's end; pass on requests to stop. Returns the code as subprocess gives it."""
    owner = os.getppid()
    sources = [wake, sys.stdin.fileno()]
    pending = b""
    deadline = float("inf")

    def stop(timeout_s: float) -> None:
        nonlocal deadline
        if deadline == float("inf"):
            child.terminate()
        deadline = min(deadline, time.monotonic() + timeout_s)

    while (code := child.poll()) is None:
        if time.monotonic() >= deadline:
            _kill_group(child.pid)
            return child.wait()
        if os.getppid() != owner:
            stop(stop_timeout_s)
        timeout_s = max(0.0, min(_CHECK_OWNER_S, deadline - time.monotonic()))
        ready, _, _ = select.select(sources, [], [], timeout_s)
        if wake in ready and set(os.read(wake, 4096)) - {signal.SIGCHLD}:
            stop(stop_timeout_s)
        if sys.stdin.fileno() in ready:
            data = os.read(sys.stdin.fileno(), 4096)
            if not data:
                sources.remove(sys.stdin.fileno())
                stop(stop_timeout_s)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                stop(float(line.removeprefix(b"stop ")))
    return code


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _end_descendants() -> None:
    """Kill and reap every process that is left behind."""
    until = time.monotonic() + _REAP_S
    while time.monotonic() < until:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return


def _find_environments() -> set[Path]:
    """Return the directories that Python backends made for packed environments, at a place that is built in."""
    return set(Path("/tmp").glob("python_env_??????"))  # noqa: S108


def _remove_environment(before: set[Path]) -> None:
    """Remove the empty directory that a Python backend leaves unless it ends in order.

    Nothing tells whose it is, so none is removed when several servers have started meanwhile.
    """
    new = _find_environments() - before
    if len(new) == 1:
        directory = new.pop()
        with contextlib.suppress(OSError):  # in use, hence not empty
            if directory.stat().st_uid == os.geteuid():
                directory.rmdir()


def _children() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]
    return []


if __name__ == "__main__":
    sys.exit(keep_mps(sys.argv[2]) if sys.argv[1] == "mps" else main(sys.argv[1]))
