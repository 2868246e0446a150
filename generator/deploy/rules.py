"""What no schema says of manifests: what must fit together, or shows only when a pod starts, ends or is scaled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.deploy.manifests import PROBES, dig
from generator.deploy.pod_rules import POD_RULES
from generator.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from generator.deploy.manifests import Finding, Manifests

_KINDS = {
    "Deployment": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "InferenceService": "serving.kserve.io/v1beta1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "Service": "v1",
    "ServingRuntime": "serving.kserve.io/v1alpha1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One rule that an object breaks."""

    rule: str
    place: str
    message: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.place}: {self.message} [{self.rule}]"


def check(manifests: Manifests) -> list[Problem]:
    """Return every rule that is broken."""
    unknown = list(_find_unknown_kinds(manifests))
    if unknown:  # nothing is known of how such objects look
        return unknown
    return [
        Problem(rule=rule, place=place, message=message)
        for rule, find in RULES.items()
        for place, message in find(manifests)
    ]


def refuse_problems(manifests: Manifests) -> None:
    """Refuse objects that break a rule.

    Raises:
        DeployError: Names every one.
    """
    if problems := check(manifests):
        msg = "\n".join(["the manifests break rules:", *map(str, problems)])
        raise DeployError(msg, hint="change what they are made of; if that is right, it is a bug of trtgen")


def _find_unknown_kinds(manifests: Manifests) -> Iterator[Problem]:
    for one in manifests.objects:
        kind, api = one["kind"], one["apiVersion"]
        if _KINDS.get(kind) != api:
            known = f"{kind} is known as {_KINDS[kind]}" if kind in _KINDS else f"known are {', '.join(_KINDS)}"
            message = f"{api} {kind} is not known; {known}"
            yield Problem(rule="kinds", place=f"{kind} {one['metadata']['name']}", message=message)


def _selectors(manifests: Manifests) -> Iterator[Finding]:
    """What chooses pods by labels finds some."""
    pods = [labels for _, labels, _ in manifests.pods()]
    for kind, path in _SELECTORS.items():
        for place, one in manifests.of(kind):
            wanted = dig(one, path) or {}
            if not wanted:
                yield place, "it has no selector, or an empty one"
            elif not any(wanted.items() <= labels.items() for labels in pods):
                yield place, f"it selects {_write_labels(wanted)}, which no pod has"
    for place, one in manifests.of("Deployment"):
        wanted, labels = one["spec"]["selector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"]
        if not wanted.items() <= labels.items():
            yield place, f"it selects {_write_labels(wanted)}, but its pods have {_write_labels(labels)}"


_SELECTORS = {
    "Service": ("spec", "selector"),
    "PodDisruptionBudget": ("spec", "selector", "matchLabels"),
    "NetworkPolicy": ("spec", "podSelector", "matchLabels"),
    "PodMonitor": ("spec", "selector", "matchLabels"),
}


def _ports(manifests: Manifests) -> Iterator[Finding]:
    """Every port that is named is one of a container."""
    named = {port["name"] for _, _, pod in manifests.pods() for one in pod["containers"] for port in one["ports"]}
    for place, _, pod in manifests.pods():
        for container in pod["containers"]:
            own = {port["name"] for port in container["ports"]}
            for kind in PROBES:
                port = dig(container, (kind, "httpGet", "port"))
                if isinstance(port, str) and port not in own:
                    yield place, f"{kind} asks the port {port}, but the container has {_join(own)}"
    uses = [
        *((place, port["targetPort"]) for place, one in manifests.of("Service") for port in one["spec"]["ports"]),
        *(
            (place, end["port"])
            for place, one in manifests.of("PodMonitor")
            for end in one["spec"]["podMetricsEndpoints"]
        ),
        *(
            (place, port["port"])
            for place, one in manifests.of("NetworkPolicy")
            for rule in one["spec"]["ingress"]
            for port in rule["ports"]
        ),
    ]
    for place, port in uses:
        if isinstance(port, str) and port not in named:
            yield place, f"it names the port {port}, but the pods have {_join(named)}"


def _targets(manifests: Manifests) -> Iterator[Finding]:
    """What scales names a workload, each has one such, and does not state its own size then."""
    workloads = {(one["kind"], one["metadata"]["name"]): one for _, one in manifests.of("Deployment")}
    scaled: dict[tuple[str, str], str] = {}
    for place, one in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        key = (target.get("kind", "Deployment"), target["name"])
        if key not in workloads:
            yield place, f"it scales {key[0]} {key[1]}, which is not there"
        elif key in scaled:
            yield place, f"it scales {key[0]} {key[1]}, and so does {scaled[key]}"
        elif "replicas" in workloads[key]["spec"]:
            yield place, f"it scales {key[0]} {key[1]}, which sets its replicas back whenever it is applied"
        scaled[key] = place
    runtimes = {one["metadata"]["name"]: one for _, one in manifests.of("ServingRuntime")}
    for place, one in manifests.of("InferenceService"):
        model = one["spec"]["predictor"]["model"]
        runtime = runtimes.get(model.get("runtime", ""))
        if runtime is None:
            yield place, f"its runtime {model.get('runtime')} is not there"
        elif model["modelFormat"]["name"] not in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}:
            yield place, f"its runtime does not take the format {model['modelFormat']['name']}"


def _scaling(manifests: Manifests) -> Iterator[Finding]:
    """Pods are scaled by what waits in front of the models that work: an ensemble never has anything waiting."""
    for place, one in manifests.of("ScaledObject"):
        for trigger in one["spec"]["triggers"]:
            query = trigger["metadata"].get("query", "")
            if "nv_inference_pending_request_count" not in query:
                continue
            found = re.search(r'model=~?"([^"]*)"', query)
            asked = set(found[1].replace(r"\\", "").split("|")) if found else set()
            if not asked:
                yield place, "it counts what waits for every model, other repositories' too: name the models"
            for name in sorted(asked - set(manifests.members)):
                yield place, f"it counts what waits for {name}, which is an ensemble or not there: that is always 0"


RULES: dict[str, Callable[[Manifests], Iterator[Finding]]] = {
    "selectors": _selectors,
    "ports": _ports,
    "targets": _targets,
    "scaling": _scaling,
    **POD_RULES,
}


def _write_labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _join(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
