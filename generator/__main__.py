"""`python -m generator` and the command `trtgen`."""

from __future__ import annotations

import os
import sys


def run() -> None:
    """Run the command line and leave with its exit code."""
    from generator.cli import main

    code = main(sys.argv[1:])
    progress = sys.modules.get("generator.plan.progress")  # nobody builds without it, and --help need not import it
    if progress is not None and progress.left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
