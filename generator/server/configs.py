"""The configurations of a model repository, and the options that tritonserver needs for what they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import ConfigError
from generator.triton.check import parse_config

if TYPE_CHECKING:
    from pathlib import Path

# Answers are small: 1,000 scores are 4 kB. The memory is taken as the cache fills.
CACHE_BYTES = 256 * 2**20


def read_configs(root: Path) -> dict[str, Any]:
    """Return the configuration of each model below `root`, an empty one where Triton itself would refuse it."""
    from tritonclient.grpc import model_config_pb2

    configs = {}
    for path in sorted(root.glob("*/config.pbtxt")):
        try:
            configs[path.parent.name] = parse_config(path.parent.name, path.read_text(encoding="utf-8"))
        except (ConfigError, OSError, UnicodeDecodeError):
            configs[path.parent.name] = model_config_pb2.ModelConfig()
    return configs


def find_options(root: Path) -> list[str]:
    """Return the options without which a server would ignore a response cache or a rate limiter below `root`."""
    configs = read_configs(root).values()
    options = []
    if any(config.response_cache.enable for config in configs):
        options.append(f"--cache-config=local,size={CACHE_BYTES}")
    if any(group.HasField("rate_limiter") for config in configs for group in config.instance_group):
        options.append("--rate-limit=execution_count")
    return options
