"""Where the tritonserver of the wheel nvidia-pytriton lies, and whether it can run here."""

from __future__ import annotations

import ctypes.util
import importlib.util
import platform
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from generator.errors import MissingDependencyError, ServerError

_ELSEWHERE: dict[str, Any] = {
    "hint": "serve with the stock container on such a machine (rendering and the clients work here)",
    "fields": {"container": True},
}
_MINIMUM_GLIBC = (2, 35)
_MAXIMUM_PYTHON = (3, 12)  # our dependencies end there; the wheel has a stub for 3.13 as well


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedTriton:
    """The parts of the wheel: `binary` is tritonserver, `stub` the Python backend's for the running Python.

    `libpython` is the directory of the shared libpython, None when the system's linker finds it by itself.
    """

    binary: Path
    python_backend: Path
    caches: Path
    stub: Path
    libraries: Path
    libpython: Path | None
    wheel_version: str
    python_version: str


def check_embedded() -> EmbeddedTriton:
    """Return the parts of the pip server.

    Raises:
        MissingDependencyError: nvidia-pytriton or psutil is not installed.
        ServerError: The platform, glibc, Python, libpython or numpy does not suit it; the message says which.
    """
    _check_platform()
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError("nvidia-pytriton", extra="server", why="it holds the tritonserver that runs here")
    if importlib.util.find_spec("psutil") is None:
        raise MissingDependencyError("psutil", extra="server", why="it tells whether the server's processes live")
    package = Path(next(iter(found.submodule_search_locations)))
    _check_numpy()
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    parts = EmbeddedTriton(
        binary=package / "tritonserver/bin/tritonserver",
        python_backend=package / "tritonserver/backends/python",
        caches=package / "tritonserver/caches",
        stub=package / "tritonserver/python_backend_stubs" / python_version / "triton_python_backend_stub",
        libraries=package.parent / "nvidia_pytriton.libs",
        libpython=_find_libpython(python_version),
        wheel_version=metadata.version("nvidia-pytriton"),
        python_version=python_version,
    )
    for path in (parts.binary, parts.python_backend, parts.caches, parts.stub, parts.libraries):
        if not path.exists():
            raise ServerError(
                f"nvidia-pytriton {parts.wheel_version} lacks {path}",
                hint="pip install --force-reinstall --no-deps nvidia-pytriton==0.7.0",
            )
    return parts


def _check_platform() -> None:
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        raise ServerError(f"this machine is {machine}; the pip tritonserver is for Linux on x86_64", **_ELSEWHERE)
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < _MINIMUM_GLIBC:
        found = f"{library or 'an unknown one'} {version}".strip()
        raise ServerError(f"the C library here is {found}; the pip tritonserver needs glibc 2.35", **_ELSEWHERE)
    if sys.version_info[:2] > _MAXIMUM_PYTHON:
        raise ServerError(
            f"this is Python {platform.python_version()}; the pip tritonserver with trtgen needs 3.10 to 3.12",
            hint="make a virtual environment with Python 3.12 and pip install -e '.[server]' there",
        )


def _check_numpy() -> None:
    version = metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy {version} is installed; the pip tritonserver's Python stub was built for numpy 1 "
            "and crashes with numpy 2 as soon as a model reads a tensor",
            hint="pip install 'numpy<2'",
        )


def _find_libpython(python_version: str) -> Path | None:
    """Return the directory of libpythonX.Y.so.1.0, which the stub is linked against."""
    name = f"libpython{python_version}.so.1.0"
    directories = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib"]
    for directory in directories:
        if directory and (Path(directory) / name).is_file():
            return Path(directory)
    if ctypes.util.find_library(f"python{python_version}"):
        return None
    raise ServerError(
        f"{name} was not found in {directories[1]} nor by the linker; the pip tritonserver's Python stub needs it",
        hint=f"apt-get install libpython{python_version}, or use a Python that is built with --enable-shared",
    )
