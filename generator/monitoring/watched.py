"""What there is to watch in a repository: its models, the ensembles among them, how long requests may wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import RepositoryError
from generator.server.configs import read_configs, refuse_unreadable

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedModel:
    """A model as Triton serves it.

    Requests wait in front of each model but ensembles: `delay_s` for others to make a batch with, and for at most
    `timeout_s`, after which the server refuses them; None for as long as it takes.
    """

    name: str
    is_ensemble: bool = False
    delay_s: float = 0.0
    timeout_s: float | None = None


def find_watched(root: Path) -> list[WatchedModel]:
    """Return the models below `root` that have a config.pbtxt, by name.

    Raises:
        RepositoryError: There are none, or ensembles only, one's configuration cannot be read, or its name is no text.
    """
    if not root.is_dir():
        msg = f"there is no model repository at {root}"
        raise RepositoryError(msg, hint="give its folder", fields={"repository": None})
    configs = read_configs(root)
    if all(config.platform == "ensemble" for config in configs.values()):
        msg = f"{root} holds no model: no folder in it has a config.pbtxt, but for ensembles"
        raise RepositoryError(msg, hint="give the folder that has the models", fields={"repository": None})
    for name in configs:
        if not name.isprintable():  # neither are the bytes of a name that is not UTF-8
            msg = f"{root} has the model {name!r}, and Prometheus takes printable text only"
            raise RepositoryError(msg, hint="give it another name")
    refuse_unreadable(root, configs)
    return [_watch(name, config) for name, config in configs.items()]


def _watch(name: str, config: Any) -> WatchedModel:
    batching = config.dynamic_batching
    timeout_us = batching.default_queue_policy.default_timeout_microseconds
    return WatchedModel(
        name=name,
        is_ensemble=config.platform == "ensemble",
        delay_s=batching.max_queue_delay_microseconds / 1e6,
        timeout_s=timeout_us / 1e6 if timeout_us else None,
    )
