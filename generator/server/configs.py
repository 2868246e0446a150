"""The configurations of a model repository, and the options that tritonserver needs for what they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import ConfigError, RepositoryError
from generator.triton.check import parse_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Answers are small: 1,000 scores are 4 kB. The memory is taken as the cache fills.
CACHE_BYTES = 256 * 2**20
_LARGEST_CONFIG_BYTES = 16 << 20  # a configuration has thousands of bytes


def read_configs(root: Path) -> dict[str, Any]:
    """Return the configuration of each model below `root`, an empty one where Triton itself would refuse it."""
    from tritonclient.grpc import model_config_pb2

    configs = {}
    for path in sorted(root.glob("*/config.pbtxt")):
        try:
            text = path.read_text(encoding="utf-8") if _is_readable(path) else ""
            configs[path.parent.name] = parse_config(path.parent.name, text)
        except (ConfigError, OSError, UnicodeDecodeError, RecursionError):
            configs[path.parent.name] = model_config_pb2.ModelConfig()
    return configs


def choose_loaded(configs: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Return what a server told to load `models` loads: these and ensembles' members; all where none is named."""
    loaded = set(models).union(*(find_members(configs[name]) for name in models if name in configs))
    return {name: config for name, config in configs.items() if not models or name in loaded}


def find_members(ensemble: Any) -> set[str]:
    """Return the names of an ensemble's members; none of another model."""
    return {step.model_name for step in ensemble.ensemble_scheduling.step}


def refuse_unreadable(root: Path, configs: Mapping[str, Any]) -> None:
    """Refuse configurations that `read_configs` could not read.

    Raises:
        RepositoryError: Names the first.
    """
    for name, config in configs.items():
        if not config.ByteSize():
            msg = f"{root / name / 'config.pbtxt'} is empty or no model configuration"
            raise RepositoryError(msg, hint="see what is wrong with it", command=("doctor", str(root)))


def _is_readable(path: Path) -> bool:
    """Tell whether it is a file, no pipe that nobody writes to, and not gigabytes, which take minutes."""
    return path.is_file() and path.stat().st_size <= _LARGEST_CONFIG_BYTES


def find_options(root: Path) -> list[str]:
    """Return the options without which a server would ignore a response cache or a rate limiter below `root`."""
    configs = read_configs(root).values()
    options = []
    if any(config.response_cache.enable for config in configs):
        options.append(f"--cache-config=local,size={CACHE_BYTES}")
    if any(group.HasField("rate_limiter") for config in configs for group in config.instance_group):
        options.append("--rate-limit=execution_count")
    return options
