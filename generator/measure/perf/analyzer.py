"""perf_analyzer, Triton's load generator: where it is, how to get it, and the shared libraries it needs.

No package of its own has it for Debian 12 and its like: `perf-analyzer` 0.1.0 is an empty placeholder. The wheel
tritonclient 2.50.0 (by NVIDIA, BSD 3-clause licence; source: the repository triton-inference-server/perf_analyzer)
carries a binary that runs from glibc 2.35 on. Only that binary is taken out of it; the package is never installed.
What is installed is a script that gives it its libraries, so that a shell and Model Analyzer can start it as well.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from generator.errors import PerfError

WHEEL = "tritonclient==2.50.0"
WHEEL_SHA256 = "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889"
# manylinux1 is the tag this wheel carries, whatever its binary needs; any Python will do for a file that is not Python.
_DOWNLOAD = (
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--platform",
    "manylinux1_x86_64",
    "--python-version",
    "3.10",
)
_MEMBER = "tritonclient-2.50.0.data/data/bin/perf_analyzer"

# What a plain Debian or Ubuntu lacks, and the wheel nvidia-pytriton (our extra `server`) has under hashed names.
_LIBRARIES = {
    "libb64.so.0d": re.compile(r"libb64-[0-9a-f]+\.so\.0d"),
    "libcudart.so.12": re.compile(r"libcudart-[0-9a-f]+\.so\.12[.0-9]*"),
}
_SCRIPT = """\
#!/bin/sh
# Made by `trtgen perf --install`: perf_analyzer with the libraries that it needs.
home=$(dirname "$(readlink -f "$0")")/../lib/perf_analyzer
export LD_LIBRARY_PATH="$home${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$home/perf_analyzer" "$@"
"""
INSTALL: dict[str, Any] = {"command": ("perf",), "fields": {"install": True}}  # of a hint
_HOW_TO_GET = {"hint": "set PERF_ANALYZER to that of Triton's SDK container, or on x86-64 Linux install it", **INSTALL}
_TIMEOUT_S = 600


def find_analyzer() -> Path:
    """Return perf_analyzer: $PERF_ANALYZER, then PATH, then beside the running Python.

    Raises:
        PerfError: There is none; the hint says how to get it.
    """
    chosen = os.environ.get("PERF_ANALYZER")
    if chosen:
        path = shutil.which(chosen)
        if path is None:
            raise PerfError(f"PERF_ANALYZER is {chosen!r}, which is not an executable file", **_HOW_TO_GET)
        return Path(path).absolute()
    found = shutil.which("perf_analyzer") or shutil.which("perf_analyzer", path=str(Path(sys.executable).parent))
    if found is None:
        raise PerfError("perf_analyzer is neither on PATH nor beside the running Python", **_HOW_TO_GET)
    return Path(found).absolute()


def install_analyzer(prefix: Path) -> Path:
    """Put perf_analyzer into `prefix` and return the script that starts it: the wheel is fetched with pip and checked.

    The script is `bin/perf_analyzer`; the binary and copies of the libraries that the wheel nvidia-pytriton has are in
    `lib/perf_analyzer`, under their plain names and without the rest of that wheel: its OpenSSL would shadow the
    system's.

    Raises:
        PerfError: Not x86-64 Linux, no pip, no network, an unexpected wheel, or a folder that cannot be written.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise PerfError(
            f"perf_analyzer's binary is for x86-64 Linux, this is {sys.platform} on {platform.machine()}",
            hint="run it in Triton's SDK container: docker compose run sdk",
        )
    script, home = prefix / "bin" / "perf_analyzer", prefix / "lib" / "perf_analyzer"
    with tempfile.TemporaryDirectory(prefix="trtgen-perf-") as temporary:
        wheel = _download_wheel(Path(temporary))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            raise PerfError(
                f"{wheel.name} has the sha256 {found}, expected {WHEEL_SHA256}",
                hint="do not run it; ask whoever runs your package index",
            )
        try:
            with zipfile.ZipFile(wheel) as archive:
                _write(home / "perf_analyzer", archive.read(_MEMBER))
            for soname, file in _find_libraries().items():
                _write(home / soname, file.read_bytes())
            _write(script, _SCRIPT.encode())
        except OSError as error:
            raise PerfError(
                f"{prefix} cannot be written: {error.strerror}", hint="install into a virtual environment of your own"
            ) from error
    check_analyzer(script)
    return script


def find_binary(program: Path) -> Path:
    """Return the binary behind `program`, which may be the script that `install_analyzer` writes."""
    binary = program.resolve().parent.parent / "lib" / "perf_analyzer" / "perf_analyzer"
    return binary if binary.is_file() else program


def _write(path: Path, content: bytes) -> None:
    """Write an executable file that is there either whole or not at all: an older one may be running."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(path)


def check_analyzer(path: Path) -> str:
    """Start perf_analyzer once and return the line with its version.

    Raises:
        PerfError: It does not start, mostly because of a missing shared library, which is named.
    """
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PerfError(f"{path} does not start: {error}", **_HOW_TO_GET) from error
    missing = re.search(r"error while loading shared libraries: ([^:]+)", run.stderr)
    if missing:
        raise PerfError(
            f"{path} needs the shared library {missing[1]}, which is not here",
            hint="install Debian's libssl3 and zlib1g, or pip install -e '.[server]' and perf_analyzer again",
            **INSTALL,
        )
    version = (run.stdout + run.stderr).strip()
    if not version.startswith("Perf Analyzer"):
        raise PerfError(
            f"{path} is not perf_analyzer: asked for its version, it answers {version[:200]!r}", **_HOW_TO_GET
        )
    return " ".join(version.split())


def _find_libraries() -> dict[str, Path]:
    try:
        files = importlib.metadata.files("nvidia-pytriton") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {
        soname: Path(str(file.locate())).resolve()
        for file in files
        for soname, pattern in _LIBRARIES.items()
        if pattern.fullmatch(file.name)
    }


def _download_wheel(folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise PerfError(f"{sys.executable} has no pip, which fetches perf_analyzer", hint="python -m ensurepip")
    command = [sys.executable, "-m", "pip", *_DOWNLOAD, "--quiet", "--dest", str(folder), WHEEL]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise PerfError(f"pip did not fetch {WHEEL} within {_TIMEOUT_S} s", hint="check the network") from error
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        said = (run.stderr or run.stdout).strip()
        raise PerfError(f"pip does not fetch {WHEEL}:\n{said}", hint="check the network and pip's package index")
    return wheels[0]
