"""The processes that run Python models, one for each instance, which Triton calls stubs.

Tried with release 24.10: a stub that dies (a crash in native code, the system's lack of memory) is never started
again. The server stays ready, a second passes before each request to that instance fails with "Stub process ... is not
healthy", and an orderly stop waits for the dead one until its time is up. So a dead stub ends `EmbeddedServer.wait`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import ServerError
from generator.repository import name_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["explain_dead_stubs", "find_stubs", "wait_for_end"]

_CHECK_S = 0.5
_STUB = "triton_python_backend_stub"


def find_stubs(pid: int) -> dict[int, str]:
    """Return the living stubs of the tritonserver `pid`: process id to the name of the model that it runs."""
    stubs = {}
    for child in _read_children(pid):
        try:
            argv = Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if Path(argv[0]).name == _STUB:  # nothing is there of one that waits to be reaped
            # .../<model>/<version>/model.py, or the graph in its place for a Python-based backend
            stubs[child] = Path(argv[1]).parts[-3]
    return stubs


def wait_for_end(
    supervisor: subprocess.Popen[bytes], pid: int, stubs: Mapping[int, str], *, is_serving: Callable[[], bool]
) -> list[str]:
    """Block until the supervisor ends or one of the `stubs` is dead while the server goes on.

    Args:
        supervisor: The process that ends after tritonserver.
        pid: tritonserver's process id.
        stubs: What `find_stubs` gave once the server was ready.
        is_serving: Whether the server still takes requests: one that stops ends its stubs in order.

    Returns:
        The models whose stubs are dead; empty once the supervisor has ended.
    """
    while True:
        try:
            supervisor.wait(timeout=_CHECK_S)
        except subprocess.TimeoutExpired:
            dead = stubs.keys() - find_stubs(pid).keys()
            if dead and is_serving():
                return sorted({stubs[stub] for stub in dead})
        else:
            return []


def explain_dead_stubs(
    models: Sequence[str], *, repository: Path, log_path: Path, log_tail: Sequence[str]
) -> ServerError:
    """Return the error for models that have lost a process."""
    return ServerError(
        f"a Python process of {', '.join(models)} has ended (a crash, or the system's lack of memory: dmesg | tail); "
        "tritonserver does not start it again and would fail requests",
        hint=f"read its log: {log_path}, then start again: trtgen serve{name_option(repository)}",
        log_tail=log_tail,
    )


def _read_children(pid: int) -> list[int]:
    """Return the children of every thread of the process; empty once it is gone."""
    children: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    for task in tasks:
        try:
            children += map(int, (task / "children").read_text(encoding="ascii").split())
        except OSError:  # a thread that has just ended; its children go to another one
            continue
    return children
