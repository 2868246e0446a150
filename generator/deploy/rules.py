"""What no schema says of manifests: what must fit together, or shows only when a pod starts, ends or is scaled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.deploy.needs import SERVER_BYTES
from generator.deploy.pod import GPU, LIVE, MARGIN_S, READY
from generator.deploy.source import has_version
from generator.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from generator.deploy.kustomize import Manifest

WORKLOADS = ("Deployment",)
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
_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_LEAST_LOADING_S = 60
_AGE_JITTER = 1.1  # gRPC closes a connection up to a tenth later


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One rule that an object breaks."""

    rule: str
    place: str
    message: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.place}: {self.message} [{self.rule}]"


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
        for place, one in self.of(*WORKLOADS):
            template = one["spec"]["template"]
            yield place, template["metadata"].get("labels", {}), template["spec"]
        # A runtime has the containers, the service that names it the rest; KServe labels the pods by itself.
        runtimes = {one["metadata"]["name"]: (place, one["spec"]) for place, one in self.of("ServingRuntime")}
        for _, one in self.of("InferenceService"):
            predictor = one["spec"]["predictor"]
            if (name := predictor["model"].get("runtime")) in runtimes:
                place, spec = runtimes[name]
                yield place, {}, {**predictor, **spec}


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


Finding = tuple[str, str]


def _selectors(manifests: Manifests) -> Iterator[Finding]:
    """What chooses pods by labels finds some."""
    pods = [labels for _, labels, _ in manifests.pods()]
    for kind, path in _SELECTORS.items():
        for place, one in manifests.of(kind):
            wanted = _dig(one, path) or {}
            if not wanted:
                yield place, "it has no selector, or an empty one"
            elif not any(wanted.items() <= labels.items() for labels in pods):
                yield place, f"it selects {_write_labels(wanted)}, which no pod has"
    for place, one in manifests.of(*WORKLOADS):
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
            for kind in _PROBES:
                port = _dig(container, (kind, "httpGet", "port"))
                if isinstance(port, str) and port not in own:
                    yield place, f"{kind} asks the port {port}, but the container has {_join(own)}"
    uses = [
        *((place, port["targetPort"]) for place, one in manifests.of("Service") for port in one["spec"]["ports"]),
        *((place, end["port"]) for place, one in manifests.of("PodMonitor") for end in _ends(one)),
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


_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def _volumes(manifests: Manifests) -> Iterator[Finding]:
    """Every volume that is mounted is there, every one that is there is mounted, and no two at one place."""
    for place, _, pod in manifests.pods():
        there = {volume["name"] for volume in pod.get("volumes", ())}
        used = set()
        for container in _all_containers(pod):
            mounts = container.get("volumeMounts", ())
            used |= {mount["name"] for mount in mounts}
            paths = [mount["mountPath"] for mount in mounts]
            for path in sorted({path for path in paths if paths.count(path) > 1}):
                yield place, f"the container {container['name']} mounts two volumes at {path}"
        for name in sorted(used - there):
            yield place, f"the volume {name} is mounted, but there is none"
        for name in sorted(there - used):
            yield place, f"the volume {name} is mounted nowhere"


def _grace(manifests: Manifests) -> Iterator[Finding]:
    """A pod is killed only after its server had the time to pause and to stop."""
    for place, _, pod in manifests.pods():
        for container in pod["containers"]:
            pause = _read_pause(container)
            needed = pause + _read_option(container, "exit-timeout-secs", 30) + MARGIN_S
            given = pod.get("terminationGracePeriodSeconds", 30)
            if given < needed:
                yield (
                    place,
                    f"it is killed after {given} s, but its pause, exit timeout and margin take {needed:g} s",
                )


def _pause(manifests: Manifests) -> Iterator[Finding]:
    """Before its models go, every client has left: they stay as long as their connections last."""
    for place, _, pod in manifests.pods():
        for container in pod["containers"]:
            pause = _read_pause(container)
            age = _read_option(container, "grpc-max-connection-age", 0) / 1000
            if not pause:
                yield place, "it has no preStop pause, so clients get NOT_FOUND while it ends"
            elif not age or pause < age * _AGE_JITTER:
                lasts = f"{age:g} s" if age else "for ever"
                yield place, f"gRPC connections last {lasts}, which is more than its preStop pause of {pause} s"


def _probes(manifests: Manifests) -> Iterator[Finding]:
    """Who is not ready gets no requests; only who is not alive is ended, and not while its models load."""
    wanted = dict(zip(_PROBES, (READY, READY, LIVE), strict=True))
    for place, _, pod in manifests.pods():
        for container in pod["containers"]:
            for kind, path in wanted.items():
                asked = _dig(container, (kind, "httpGet", "path"))
                if asked != path:
                    yield place, f"{kind} asks {asked or 'nothing'}, but has to ask {path}"
            startup = container.get("startupProbe", {})
            budget = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
            if budget < _LEAST_LOADING_S:
                yield (
                    place,
                    f"its models have {budget} s to load; give them {_LEAST_LOADING_S} s or more",
                )


def _resources(manifests: Manifests) -> Iterator[Finding]:
    """No request is above its limit, memory has both, and shared memory is a part of it."""
    for place, _, pod in manifests.pods():
        sizes = {one["name"]: one["emptyDir"] for one in pod.get("volumes", ()) if _dig(one, ("emptyDir", "medium"))}
        for container in _all_containers(pod):
            requests, limits = (container.get("resources", {}).get(kind, {}) for kind in ("requests", "limits"))
            name = container["name"]
            for key in requests.keys() & limits.keys():
                if read_quantity(requests[key]) > read_quantity(limits[key]):
                    yield place, f"{name} requests {requests[key]} of {key}, above its limit {limits[key]}"
            if "memory" not in requests or "memory" not in limits:
                yield place, f"{name} has no request or no limit of memory"
                continue
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in sizes:
                    continue
                size = sizes[mount["name"]].get("sizeLimit")
                if size is None:
                    yield place, f"the volume {mount['name']} is memory, but has no sizeLimit"
                elif read_quantity(size) + SERVER_BYTES > read_quantity(limits["memory"]):
                    yield place, f"{mount['name']} may take {size} of memory, and {name} has {limits['memory']} in all"


def _gpus(manifests: Manifests) -> Iterator[Finding]:
    """A GPU is whole, and stands in limits; a request may only repeat it."""
    for place, _, pod in manifests.pods():
        for container in _all_containers(pod):
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            if GPU in requests and requests[GPU] != limits.get(GPU):
                yield place, f"{container['name']} requests {requests[GPU]} of {GPU}, which has to stand in limits"
            if GPU in limits and not re.fullmatch(r"[1-9]\d*", str(limits[GPU])):
                yield place, f"{container['name']} asks for {limits[GPU]} of {GPU}; GPUs are whole"


def _targets(manifests: Manifests) -> Iterator[Finding]:
    """What scales names a workload, each has one such, and does not state its own size then."""
    workloads = {(one["kind"], one["metadata"]["name"]): one for _, one in manifests.of(*WORKLOADS)}
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


def _references(manifests: Manifests) -> Iterator[Finding]:
    """Secrets and ConfigMaps are there, or known to be in the cluster."""
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests.objects} | set(manifests.external)
    for place, _, pod in manifests.pods():
        for kind, name in _find_references(pod):
            if (kind, name) not in there:
                yield place, f"it needs the {kind} {name}, which is not there"


def _find_references(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for container in _all_containers(pod):
        sources = [*container.get("envFrom", ()), *(one.get("valueFrom", {}) for one in container.get("env", ()))]
        for source in sources:
            for key, kind in _REFERENCES.items():
                if key in source:
                    yield kind, source[key]["name"]
    for volume in pod.get("volumes", ()):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]


_REFERENCES = {
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
}


def _images(manifests: Manifests) -> Iterator[Finding]:
    """An image has a tag or a digest, so that all pods run the same one."""
    for place, _, pod in manifests.pods():
        images = [container["image"] for container in _all_containers(pod)]
        images += [volume["image"]["reference"] for volume in pod.get("volumes", ()) if "image" in volume]
        for image in images:
            if not has_version(image):
                yield place, f"the image {image} has no tag that says which it is"


def _rights(manifests: Manifests) -> Iterator[Finding]:
    """No container has rights beyond reading the repository."""
    for place, _, pod in manifests.pods():
        if not _dig(pod, ("securityContext", "runAsNonRoot")):
            yield place, "its containers may run as root"
        if pod.get("automountServiceAccountToken", True):
            yield place, "it is given a token for the cluster's API"
        for container in _all_containers(pod):
            security = container.get("securityContext", {})
            closed = not security.get("allowPrivilegeEscalation", True) and security.get("readOnlyRootFilesystem")
            if not closed or _dig(security, ("capabilities", "drop")) != ["ALL"]:
                yield place, f"{container['name']} has rights that it does not need"


RULES: dict[str, Callable[[Manifests], Iterator[Finding]]] = {
    "selectors": _selectors,
    "ports": _ports,
    "volumes": _volumes,
    "grace": _grace,
    "pause": _pause,
    "probes": _probes,
    "resources": _resources,
    "gpus": _gpus,
    "targets": _targets,
    "scaling": _scaling,
    "references": _references,
    "images": _images,
    "rights": _rights,
}


def read_quantity(quantity: object) -> float:
    """Return a quantity of Kubernetes, such as 500m or 2Gi, as a number; ValueError for anything else."""
    text = str(quantity)
    number, suffix = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * _SUFFIXES.get(suffix, 1)


def _all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _read_pause(container: dict[str, Any]) -> int:
    return int(_dig(container, ("lifecycle", "preStop", "sleep", "seconds")) or 0)


def _read_option(container: dict[str, Any], name: str, default: int) -> int:
    """Return an option of tritonserver, a number."""
    found = re.search(rf"--{name}=(\d+)", " ".join(container.get("args", ())))
    return int(found[1]) if found else default


def _ends(monitor: Manifest) -> list[dict[str, Any]]:
    return list(monitor["spec"]["podMetricsEndpoints"])


def _dig(value: Any, path: Sequence[str]) -> Any:
    """Return what is at the end of these keys; None where one is missing."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _join(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _write_labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
