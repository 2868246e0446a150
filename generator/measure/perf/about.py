"""What a measurement has to say about itself to be worth keeping: when, where, with which versions and load."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator import __version__
from generator.measure.perf.analyzer import find_binary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.measure.perf.images import ImageSet
    from generator.measure.perf.served import Server
    from generator.measure.perf.sweep import Load

__all__ = ["describe_run"]


def describe_run(
    *, server: Server, analyzer_version: str, load: Load, images: ImageSet, arguments: Sequence[str]
) -> dict[str, Any]:
    """Return date, command, versions, machine, load and images of a run. The machine is the one that sends requests."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["trtgen", *arguments]),
        "versions": {
            "trtgen": __version__,
            "tritonclient": metadata.version("tritonclient"),
            "perf_analyzer": analyzer_version,
            "perf_analyzer_sha256": hashlib.sha256(find_binary(load.analyzer).read_bytes()).hexdigest(),
            "server": f"{server.name} {server.version}",
        },
        "machine": describe_machine(),
        "load": {
            "protocol": load.protocol,
            "url": load.url,
            "concurrencies": list(load.concurrencies),
            "requests_per_window": load.requests,
            "max_spread_percent": load.max_spread_percent,
            "batch_size": load.batch_size,
            "shared_memory": load.shared_memory,
            "metrics_url": load.metrics_url,
        },
        "units": {
            "infer_per_s": "images (rows of a batch) per second, whatever the batch size",
            "concurrency": "requests of batch_size images each, in flight",
            "*_ms": "milliseconds per request",
        },
        "images": images.describe(),
    }


def describe_machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _find_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": _list_gpus(),
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
