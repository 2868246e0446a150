"""NVIDIA's Multi-Process Service (MPS): the kernels of several processes on one GPU run at the same time.

Without it the processes take turns on the GPU, and each leaves most of it idle with the small kernels of decoding.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import ServerError
from generator.server.configs import read_configs

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTROL = "nvidia-cuda-mps-control"  # comes with the driver
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
_USUAL_PIPES = Path("/tmp/nvidia-mps")  # noqa: S108 - where CUDA looks for a service by itself


def find_mps(repository: Path, models: Sequence[str], *, wanted: bool | None) -> str | None:
    """Return the program that starts the service for this server, None where there is to be none.

    Args:
        repository: The model repository's root.
        models: Which of its models are served; none for all.
        wanted: None where the models decide: it pays where several processes decode images on the GPU.

    Raises:
        ServerError: It is wanted, and not installed.
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
    return program


def make_mps_environment(directory: Path) -> dict[str, str]:
    """Return the variables by which the service and its clients find each other, in a new folder inside `directory`."""
    folder = directory / "mps"
    folder.mkdir()
    return {PIPES: str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}


def is_running() -> bool:
    """Say whether CUDA would find a service that somebody else has started."""
    return Path(os.environ.get(PIPES, _USUAL_PIPES)).joinpath("control").exists()


def _is_worthwhile(repository: Path, models: Sequence[str]) -> bool:
    """Say whether one of the models is several Python processes on a GPU, as where images are decoded there."""
    from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

    groups = [
        group
        for name, config in read_configs(repository).items()
        if config.backend == "python" and (not models or name in models)
        for group in config.instance_group
    ]
    return any(group.kind == ModelInstanceGroup.KIND_GPU and group.count > 1 for group in groups)
