"""What no schema says of a pod: that it can start, is watched rightly, and ends without an error to its clients."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from generator.deploy.manifests import PROBES, all_containers, dig
from generator.deploy.needs import SERVER_BYTES
from generator.deploy.pod import GPU, LIVE, MARGIN_S, READY
from generator.deploy.source import has_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from generator.deploy.manifests import Finding, Manifests

_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_LEAST_LOADING_S = 60
_AGE_JITTER = 1.1  # gRPC closes a connection up to a tenth later


def _volumes(manifests: Manifests) -> Iterator[Finding]:
    """Every volume that is mounted is there, every one that is there is mounted, and no two at one place."""
    for place, _, pod in manifests.pods():
        there = {volume["name"] for volume in pod.get("volumes", ())}
        used = set()
        for container in all_containers(pod):
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
    wanted = dict(zip(PROBES, (READY, READY, LIVE), strict=True))
    for place, _, pod in manifests.pods():
        for container in pod["containers"]:
            for kind, path in wanted.items():
                asked = dig(container, (kind, "httpGet", "path"))
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
        sizes = {one["name"]: one["emptyDir"] for one in pod.get("volumes", ()) if dig(one, ("emptyDir", "medium"))}
        for container in all_containers(pod):
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
        for container in all_containers(pod):
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            if GPU in requests and requests[GPU] != limits.get(GPU):
                yield place, f"{container['name']} requests {requests[GPU]} of {GPU}, which has to stand in limits"
            if GPU in limits and not re.fullmatch(r"[1-9]\d*", str(limits[GPU])):
                yield place, f"{container['name']} asks for {limits[GPU]} of {GPU}; GPUs are whole"


def _references(manifests: Manifests) -> Iterator[Finding]:
    """Secrets and ConfigMaps are there, or known to be in the cluster."""
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests.objects} | set(manifests.external)
    for place, _, pod in manifests.pods():
        for kind, name in _find_references(pod):
            if (kind, name) not in there:
                yield place, f"it needs the {kind} {name}, which is not there"


def _find_references(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for container in all_containers(pod):
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
        images = [container["image"] for container in all_containers(pod)]
        images += [volume["image"]["reference"] for volume in pod.get("volumes", ()) if "image" in volume]
        for image in images:
            if not has_version(image):
                yield place, f"the image {image} has no tag that says which it is"


def _rights(manifests: Manifests) -> Iterator[Finding]:
    """No container has rights beyond reading the repository."""
    for place, _, pod in manifests.pods():
        if not dig(pod, ("securityContext", "runAsNonRoot")):
            yield place, "its containers may run as root"
        if pod.get("automountServiceAccountToken", True):
            yield place, "it is given a token for the cluster's API"
        for container in all_containers(pod):
            security = container.get("securityContext", {})
            closed = not security.get("allowPrivilegeEscalation", True) and security.get("readOnlyRootFilesystem")
            if not closed or dig(security, ("capabilities", "drop")) != ["ALL"]:
                yield place, f"{container['name']} has rights that it does not need"


POD_RULES: dict[str, Callable[[Manifests], Iterator[Finding]]] = {
    "volumes": _volumes,
    "grace": _grace,
    "pause": _pause,
    "probes": _probes,
    "resources": _resources,
    "gpus": _gpus,
    "references": _references,
    "images": _images,
    "rights": _rights,
}


def read_quantity(quantity: object) -> float:
    """Return a quantity of Kubernetes, such as 500m or 2Gi, as a number; ValueError for anything else."""
    text = str(quantity)
    number, suffix = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * _SUFFIXES.get(suffix, 1)


def _read_pause(container: dict[str, Any]) -> int:
    return int(dig(container, ("lifecycle", "preStop", "sleep", "seconds")) or 0)


def _read_option(container: dict[str, Any], name: str, default: int) -> int:
    """Return an option of tritonserver, a number."""
    found = re.search(rf"--{name}=(\d+)", " ".join(container.get("args", ())))
    return int(found[1]) if found else default
