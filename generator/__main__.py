"""`python -m generator` and the command `trtgen`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback


def run() -> None:
    """Run the command line and leave with its exit code."""
    from generator.cli import main

    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python ends would show where it was
        _leave_a_build_behind(code)
    sys.exit(code)


def _leave_a_build_behind(code: int) -> None:
    """End the process here if a builder is still at work, whatever became of its output."""
    progress = sys.modules.get("generator.plan.progress")  # nobody builds without it, and --help need not import it
    if progress is not None and progress.left_behind():
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    run()
