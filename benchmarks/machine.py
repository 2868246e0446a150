"""One line about where and with what something was measured."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("numpy", "pillow", "onnxruntime", "torch", "nvidia-pytriton")


def describe_machine() -> str:
    """Return date, processor, usable cores, Python and those of the packages that matter that are here."""
    installed = {name: find_version(name) for name in _PACKAGES}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    cores = len(os.sched_getaffinity(0))
    today = dt.datetime.now(tz=dt.timezone.utc).date()
    return f"{today}, {_name_processor()}, {cores} cores, Python {platform.python_version()}, {versions}"


def find_version(package: str) -> str:
    """Return a package's version; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def measure_pss(pid: int) -> int:
    """Return the proportional set size of a process and all its descendants, in bytes."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += sum(measure_pss(int(child)) for child in (task / "children").read_text(encoding="ascii").split())
    return total


def _name_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
