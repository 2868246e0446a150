"""Objects that are applied together, and how rules look into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from generator.deploy.kustomize import Manifest

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
Finding = tuple[str, str]  # the place, and what is wrong with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """Objects that are applied together, and what is known beside them.

    `external` are Secrets and ConfigMaps that the cluster has. `members` are the models that do work, without the
    ensembles, whose queues are always empty.
    """

    objects: Sequence[Manifest]
    external: Collection[tuple[str, str]] = ()
    members: Collection[str] = ()

    def of(self, *kinds: str) -> Iterator[tuple[str, Manifest]]:
        """Yield place and object of each of these kinds."""
        for one in self.objects:
            if one["kind"] in kinds:
                yield f"{one['kind']} {one['metadata']['name']}", one

    def pods(self) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
        """Yield place, labels and description of each pod that is described here."""
        for place, one in self.of("Deployment"):
            template = one["spec"]["template"]
            yield place, template["metadata"].get("labels", {}), template["spec"]
        # A runtime has the containers, the service that names it the rest; KServe labels the pods by itself.
        runtimes = {one["metadata"]["name"]: (place, one["spec"]) for place, one in self.of("ServingRuntime")}
        for _, one in self.of("InferenceService"):
            predictor = one["spec"]["predictor"]
            if (name := predictor["model"].get("runtime")) in runtimes:
                place, spec = runtimes[name]
                yield place, {}, {**predictor, **spec}


def all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return those that start before the others, too."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def dig(value: Any, path: Sequence[str]) -> Any:
    """Return what is at the end of these keys; None where one is missing."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
