"""What every result says about its run: when, with which command and versions, on which machine."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from generator import __version__


def describe_run(**versions: str) -> dict[str, Any]:
    """Return date, command, `versions` and trtgen's own, and the machine: the one that sends requests or measures."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["trtgen", *sys.argv[1:]]),
        "versions": {"trtgen": __version__, **versions},
        "machine": {
            "system": platform.platform(),
            "processor": _find_processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "gpus": _list_gpus(),
        },
    }


def _find_processor() -> str:
    """Return the processor's trade name from Linux's /proc, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _list_gpus() -> list[str]:
    """Return name and driver of each NVIDIA GPU; none when nvidia-smi is absent or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return run.stdout.strip().splitlines() if run.returncode == 0 else []
