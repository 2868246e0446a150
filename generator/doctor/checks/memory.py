"""Shared memory that the instances of Python models take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.doctor.backends import find_backend
from generator.doctor.finding import Finding
from generator.doctor.repository import ConfiguredModel
from generator.rules import BY_ID
from generator.rules.rule import release_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.repository import ModelRepository

_DOCKER_MB = 64
# python_backend #291: each instance takes this much when it starts, and more where tensors are larger
_INSTANCE_MB, _OLD_INSTANCE_MB, _CHANGED_IN = 1, 64, "23.09"


def check_memory(repository: ModelRepository, release: str) -> Iterator[Finding]:
    """Check all models together."""
    count = sum(
        sum(max(group.count, 1) * max(len(group.gpus), 1) for group in model.config.instance_group) or 1
        for model in repository.models.values()
        if isinstance(model, ConfiguredModel) and model.served_versions and find_backend(model) == "python"
    )
    each = _OLD_INSTANCE_MB if release_key(release) < release_key(_CHANGED_IN) else _INSTANCE_MB
    if count * each > _DOCKER_MB:
        rule, values = BY_ID["memory-shared-small"], {"count": count, "size": count * each}
        yield Finding(rule=rule, model="", path=repository.root, values=values)
