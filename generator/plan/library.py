"""Which TensorRT is installed, and its log as ours.

The module is imported inside functions only: it loads hundreds of megabytes of libraries.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from generator.errors import MissingDependencyError, PlanError
from generator.runtime import bindings
from generator.runtime.bindings import TensorRTLog

# One of these holds the version: NVIDIA splits the package by the CUDA it is built for.
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings")
_EXTRAS = {"tensorrt_rtx": ("preflight", "its parser and builder check graphs without a GPU")}


@dataclass(frozen=True, slots=True, order=True)
class TensorRTVersion:
    """major.minor.patch.build; a plan runs on exactly the version that built it. `build` is -1 where it is unknown."""

    major: int
    minor: int
    patch: int
    build: int = -1

    @classmethod
    def parse(cls, text: str) -> TensorRTVersion:
        """Read `10.16.1.11`, `8.6.0` or `10.16.1.11.post1`; ValueError for anything else."""
        match = re.match(r"(\d+)\.(\d+)\.(\d+)(?:\.(\d+))?(?:[.+-]?[A-Za-z].*)?$", text)
        if match is None:
            raise ValueError(f"{text!r} is not a TensorRT version such as 10.16.1.11")
        return cls(int(match[1]), int(match[2]), int(match[3]), -1 if match[4] is None else int(match[4]))

    def __str__(self) -> str:
        """Return the dotted form."""
        return ".".join(str(part) for part in (self.major, self.minor, self.patch, self.build) if part >= 0)

    @property
    def target(self) -> str:
        """The spec's word for graphs and plans of this version: `tensorrt-8.6`, `tensorrt-10`, `tensorrt-11`."""
        return f"tensorrt-{self.major}.{self.minor}" if self.major < 10 else f"tensorrt-{self.major}"

    def same_plans(self, other: TensorRTVersion) -> bool:
        """Say whether one loads the other's plans: all parts equal, as far as both are known."""
        known = -1 not in (self.build, other.build)
        return self[:4] == other[:4] if known else self[:3] == other[:3]

    def __getitem__(self, parts: slice) -> tuple[int, ...]:
        """Return some of the four parts."""
        every: tuple[int, ...] = (self.major, self.minor, self.patch, self.build)
        return every[parts]


def installed_version() -> TensorRTVersion | None:
    """Return the version of the installed TensorRT without importing it, None where there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return TensorRTVersion.parse(version(name))
        except (PackageNotFoundError, ValueError):
            continue
    return None


def how_to_install(target: str) -> str:
    """Return what to do for the TensorRT of `target`: the extra alone installs the newest."""
    if target == "tensorrt-8.6":
        return "install NVIDIA's libraries and Python package of TensorRT 8.6; the extra installs a newer one"
    older = " 'tensorrt<11'" if target == "tensorrt-10" else ""
    return f"in trtgen's checkout: pip install -e '.[tensorrt]'{older}"


def import_tensorrt(name: str = "tensorrt") -> Any:
    """Return the module `tensorrt`, or `tensorrt_rtx`, which builds without a GPU.

    Raises:
        MissingDependencyError: Not installed.
        PlanError: Installed, but its libraries do not load.
    """
    try:
        return bindings.import_tensorrt(name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            extra, why = _EXTRAS.get(name, ("tensorrt", "it builds and runs plans"))
            raise MissingDependencyError(name.replace("_", "-"), extra=extra, why=why) from error
        msg = f"the package {name} is installed, but does not load: {error}"
        raise PlanError(msg, hint="install it again; its libraries must fit the driver (nvidia-smi)") from error


@functools.cache
def open_log(name: str = "tensorrt") -> TensorRTLog:
    """Return the process's one log of this module: TensorRT uses the first logger it is given for everything."""
    return TensorRTLog(import_tensorrt(name))
