"""Measured kernel times that builds hand on to each other: one file per GPU, driver, CUDA and TensorRT.

The file is one line of JSON (whose times these are, and the hash of the rest) and TensorRT's own bytes. So a damaged
file, or one that was copied from another machine, never reaches TensorRT. Nothing about it is ever fatal: without it
a build takes longer.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from generator.files import find_cache, hash_bytes, write_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from generator.gpu import Gpu

_LOG = logging.getLogger(__name__)
CacheState = Literal["cold", "warm", "off"]


def cache_folder() -> Path:
    """Return where timing caches are kept: `trtgen/timing-cache` in $XDG_CACHE_HOME or ~/.cache."""
    return find_cache() / "timing-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """On what kernel times depend."""

    gpu: str
    compute_capability: str
    driver: str
    cuda: str
    tensorrt: str

    @classmethod
    def of(cls, gpu: Gpu, tensorrt: str) -> CacheKey:
        """Return the key of a GPU and a version of TensorRT."""
        return cls(
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            driver=gpu.driver,
            cuda=gpu.cuda,
            tensorrt=tensorrt,
        )

    @property
    def file_name(self) -> str:
        """`nvidia-h200_cc9.0_driver580.159.04_cuda13.0_tensorrt8.6.0.timing`."""
        parts = (
            self.gpu.lower(),
            f"cc{self.compute_capability}",
            f"driver{self.driver}",
            f"cuda{self.cuda}",
            f"tensorrt{self.tensorrt}",
        )
        return "_".join(re.sub(r"[^a-z0-9.]+", "-", part).strip("-.") for part in parts) + ".timing"


class TimingCache:
    """The file of one key."""

    def __init__(self, key: CacheKey, folder: Path | None = None) -> None:
        self.key = key
        self.path = (cache_folder() if folder is None else folder) / key.file_name

    def load(self) -> bytes | None:
        """Return TensorRT's bytes; None, with a warning, for what is damaged or of another device or version."""
        try:
            head, separator, data = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOG.warning(
                "the timing cache %s cannot be read (%s); starting with an empty one", self.path, error.strerror
            )
            return None
        try:
            facts = json.loads(head) if separator else {}
        except (ValueError, RecursionError):
            facts = {}
        if not isinstance(facts, dict) or facts.get("sha256") != hash_bytes(data):
            _LOG.warning("the timing cache %s is damaged; starting with an empty one", self.path)
            return None
        if (found := facts.get("key")) != asdict(self.key):
            _LOG.warning("the timing cache %s is of %s; starting with an empty one", self.path, found)
            return None
        return data

    def save(self, data: bytes, *, loaded: bytes | None, merge: Callable[[bytes], bytes]) -> bool:
        """Write TensorRT's bytes in one go; False, with a warning, where that fails.

        If another build wrote since `loaded` was read, `merge` gets its bytes and returns both together.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(self.path.with_suffix(".lock")):
                current = self.load()
                if current is not None and current != loaded:
                    data = merge(current)
                self._write(data)
        except OSError as error:
            _LOG.warning("the timing cache %s cannot be written (%s)", self.path, error.strerror)
            return False
        return True

    def _write(self, data: bytes) -> None:
        head = json.dumps({"key": asdict(self.key), "sha256": hash_bytes(data)}).encode()
        write_temporary(self.path, head + b"\n" + data).replace(self.path)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
