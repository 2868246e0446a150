"""The processes that run Python models, one for each instance, which Triton calls stubs.

Tried with release 24.10: a stub that dies (a crash in native code, the system's lack of memory) is never started
again. The server stays ready, a second passes before each request to that instance fails with "Stub process ... is not
healthy", and an orderly stop waits for the dead one until its time is up. So a dead stub ends `EmbeddedServer.wait`.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import psutil

_CHECK_S = 0.5
_STUB = "triton_python_backend_stub"


def find_stubs(pid: int) -> dict[psutil.Process, str]:
    """Return the stubs of the tritonserver `pid`, each with the name of the model that it runs."""
    import psutil

    stubs = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                argv = child.cmdline()
                if argv and Path(argv[0]).name == _STUB:
                    # .../<model>/<version>/model.py, or the graph in its place for a Python-based backend
                    stubs[child] = Path(argv[1]).parts[-3]
    return stubs


def wait_for_end(
    supervisor: subprocess.Popen[bytes], stubs: Mapping[psutil.Process, str], *, is_serving: Callable[[], bool]
) -> list[str]:
    """Block until the supervisor ends or one of the `stubs` is dead while the server goes on.

    Args:
        supervisor: The process that ends after tritonserver.
        stubs: What `find_stubs` gave once the server was ready.
        is_serving: Whether the server still takes requests: one that stops ends its stubs in order.

    Returns:
        The models whose stubs are dead; empty once the supervisor has ended.
    """
    while True:
        try:
            supervisor.wait(timeout=_CHECK_S)
        except subprocess.TimeoutExpired:
            dead = {model for stub, model in stubs.items() if not _is_alive(stub)}
            if dead and is_serving():
                return sorted(dead)
        else:
            return []


def _is_alive(process: psutil.Process) -> bool:
    """Say whether the process runs; one that waits for its parent to read its exit code does not."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
