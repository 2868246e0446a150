"""NVIDIA's Multi-Process Service (MPS): the kernels of several processes on one GPU run at the same time.

Without it the processes take turns on the GPU, and each leaves most of it idle with the small kernels of decoding.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import ServerError
from generator.server.configs import choose_loaded, read_configs
from generator.server.supervisor import end_keeper, start_keeper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

logger = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"  # comes with the driver
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
_USUAL_PIPES = Path("/tmp/nvidia-mps")  # noqa: S108 - where CUDA looks for a service by itself
_LONGEST_SOCKET = 107  # bytes in the path of a Unix socket
_SOCKET = "control_privileged"  # the longest name that the service gives one


def find_mps(repository: Path, models: Sequence[str], folder: Path, *, wanted: bool | None) -> str | None:
    """Return the program that starts the service for this server, None where there is to be none.

    Args:
        repository: The model repository's root.
        models: Which of its models are served; none for all.
        folder: What would be its folder.
        wanted: None where the models decide: it pays where one has several Python processes on a GPU.

    Raises:
        ServerError: It is wanted, and not installed, or its folder would lie too deep.
    """
    if wanted is False or is_running() or not (wanted or _is_worthwhile(repository, models)):
        return None
    program = shutil.which(CONTROL)
    if program is None and wanted:
        raise ServerError(
            f"{CONTROL} is not on PATH: it comes with NVIDIA's driver, in a container with the capability compute",
            hint="serve without it",
            command=("serve",),
            fields={"repository": repository},
        )
    if program and (msg := _why_too_deep(folder)):
        if wanted:
            raise ServerError(
                msg,
                hint="name a shorter folder in TMPDIR, or serve without it",
                command=("serve",),
                fields={"repository": repository},
            )
        logger.warning("%s: processes take turns on the GPU", msg)
        return None
    return None if program is None else str(Path(program).absolute())  # PATH may name a folder of this one


def _why_too_deep(folder: Path) -> str:
    """Return why the service's sockets cannot lie in a folder, nothing where they can."""
    if len(os.fsencode(folder / _SOCKET)) <= _LONGEST_SOCKET:
        return ""
    return f"{folder} is too long a path for the sockets of NVIDIA's Multi-Process Service, as TMPDIR is"


def make_mps_environment(folder: Path) -> dict[str, str]:
    """Return the variables by which the service and its clients find each other."""
    return {PIPES: str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}


@contextlib.contextmanager
def share_gpus() -> Iterator[None]:
    """Have the service, where it can be had, for the processes that the block starts, and ends."""
    program = shutil.which(CONTROL)
    if program is None or is_running():
        yield
        return
    # The keeper removes the folder, too, where this process is killed.
    with tempfile.TemporaryDirectory(prefix="trtgen-mps-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _in_environment(make_mps_environment(folder)):
            log = folder / "log"
            with log.open("wb") as stream:
                keeper = start_keeper(program, stream)
            try:
                if not has_started(folder):
                    why = f"{log.read_text(errors='replace').strip()} {_why_too_deep(folder)}".strip()
                    logger.warning("%s did not start: processes take turns on the GPU. %s", CONTROL, why)
                yield
            finally:
                end_keeper(keeper)


@contextlib.contextmanager
def _in_environment(ours: Mapping[str, str]) -> Iterator[None]:
    """Set these variables for the block."""
    before = {name: os.environ[name] for name in ours if name in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


def is_running() -> bool:
    """Say whether CUDA would find a service that somebody else has started."""
    return has_started(Path(os.environ.get(PIPES) or _USUAL_PIPES))


def has_started(folder: Path) -> bool:
    """Say whether a service runs whose folder this is."""
    return os.access(folder / "control", os.F_OK)  # Path.exists raises where a folder may not be searched


def _is_worthwhile(repository: Path, models: Sequence[str]) -> bool:
    """Say whether one of the models is several Python processes on a GPU, as where images are decoded there."""
    configs = choose_loaded(read_configs(repository), models).values()
    return any(config.backend == "python" and _count_on_one_gpu(config) > 1 for config in configs)


def _count_on_one_gpu(config: Any) -> int:
    """Return the most processes that a model has on one GPU: each group has its count on each GPU that it names."""
    from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

    groups = [group for group in config.instance_group if group.kind == ModelInstanceGroup.KIND_GPU]
    gpus = {gpu for group in groups for gpu in group.gpus} or {0}
    most = 0
    for gpu in gpus:
        most = max(most, sum(max(group.count, 1) for group in groups if not group.gpus or gpu in group.gpus))
    return most
