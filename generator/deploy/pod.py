"""The pod: tritonserver with the options of a hardened launch, and what it needs to start, to be watched and to end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.deploy.needs import GIB, MIB, read_needs
from generator.deploy.source import check_image, make_credentials, make_init_containers, make_mounts
from generator.errors import DeployError
from generator.files import expand_home
from generator.server.container import DEFAULT_IMAGE, FUSED_IMAGE, USER, find_model_options
from generator.server.harden import find_input_limit
from generator.server.hardening import KEY, STOP_TIMEOUT_S, Values, find_image_release, write_options
from generator.server.launch import find_fused
from generator.server.ports import ANY_ADDRESS

if TYPE_CHECKING:
    from pathlib import Path

    from generator.deploy.needs import Needs
    from generator.deploy.source import Source

# A connection lasts 30 s, give or take a tenth, before the server asks its client for a new one. The client then asks
# for the service's name again, whose old answer the cluster's DNS may have cached. A pod that is to end waits for both,
# so that every client has left for another pod before its models are unloaded (benchmarks/pod_end.py).
CONNECTION_AGE_S = 30
DNS_CACHE_S = 30
PAUSE_S = 65
MARGIN_S = 10  # beyond what the server takes to stop
LIVE, READY = "/v2/health/live", "/v2/health/ready"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
NAME_LABEL = "app.kubernetes.io/name"
GPU = "nvidia.com/gpu"
_LOADING_S = 600  # what models may take to load and to warm up
_TEMPORARY_BYTES = GIB
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_LONGEST_NAME = 50  # what is made of it, such as NAME-grpc, has 63 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is to be served, how it is called in the cluster, and how it gets there.

    `options` are those of tritonserver, from the table of `generator.server.hardening`; `locks` are those with a key,
    which a shell puts in.
    """

    name: str
    namespace: str
    image: str
    source: Source
    needs: Needs
    options: tuple[str, ...]
    locks: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """What finds its pods."""
        return {NAME_LABEL: self.name}


def describe_served(
    repository: Path, source: Source, *, name: str = "", namespace: str = "default", image: str = ""
) -> Served:
    """Return what is to be served.

    Args:
        repository: The model repository's root.
        source: How it reaches the pods.
        name: What everything is called; by default like the model, or `triton` where there are several.
        namespace: Where it is put.
        image: That of tritonserver; by default the one of compose.yaml that has what the models need.

    Raises:
        RepositoryError: A configuration cannot be read.
        ServerError: There is no repository, or the image's tag does not say its release.
        DeployError: A name that Kubernetes does not take, an image without a tag, plans that no GPU has in common.
        PlanError: A passport cannot be read.
    """
    needs = read_needs(repository)
    if not name:
        (name,) = needs.models if len(needs.models) == 1 else ("triton",)
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].rstrip("-")
    check_name(name, "name", longest=_LONGEST_NAME)
    check_name(namespace, "namespace")
    root = expand_home(repository).resolve()
    image = image or (FUSED_IMAGE if find_fused(root) else DEFAULT_IMAGE)
    check_image(image, "image")
    values = Values(
        address=ANY_ADDRESS,
        key=KEY,
        max_input_bytes=find_input_limit(root),
        max_connection_age_ms=CONNECTION_AGE_S * 1000,
    )
    written = [text for _, text in write_options(values, "hardened", release=find_image_release(image))]
    return Served(
        name=name,
        namespace=namespace,
        image=image,
        source=source,
        needs=needs,
        options=(*(text for text in written if KEY not in text), *find_model_options(root)),
        locks=tuple(text for text in written if KEY in text),
    )


def check_name(name: str, field: str, *, longest: int = 63) -> None:
    """Refuse a name that not every kind of object takes.

    Raises:
        DeployError: Says what it may consist of.
    """
    if not _NAME.fullmatch(name) or len(name) > longest:
        msg = f"{name!r} is not a valid name in Kubernetes"
        hint = f"take small letters, digits and hyphens, {longest} at most, a letter first and no hyphen last"
        raise DeployError(msg, hint=hint, fields={field: None})


def make_pod(served: Served) -> dict[str, Any]:
    """Return the pod's description, without a GPU."""
    security = make_security()
    temporary = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - in the container
    pulls = make_init_containers(served.source, security=security, mounts=temporary)
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": PAUSE_S + STOP_TIMEOUT_S + MARGIN_S,
        "securityContext": make_pod_security(),
        **({"initContainers": pulls} if pulls else {}),
        "containers": [make_container(served, name="triton", ports=PORTS, location=served.source.location)],
        "volumes": [*served.source.make_volumes(), *make_volumes(served)],
    }


def make_pod_security() -> dict[str, Any]:
    """Return what holds for all containers: the user of the stock image, and the runtime's filter of system calls."""
    users = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    return {"runAsNonRoot": True, **users, "seccompProfile": {"type": "RuntimeDefault"}}


def make_security() -> dict[str, Any]:
    """Return what a container must do without."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def make_container(served: Served, *, name: str, ports: dict[str, int], location: str) -> dict[str, Any]:
    """Return the container of tritonserver, which serves the repository at `location`."""
    needs, source = served.needs, served.source
    memory = write_bytes(needs.memory_bytes)
    http = {"port": "http"}
    ready = {"httpGet": {"path": READY, **http}}
    return {
        "name": name,
        "image": served.image,
        "args": make_arguments(served, location=location, ports=ports),
        **(make_credentials(source.secret) if source.runs_in_server else {}),
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "startupProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": _LOADING_S // 5},
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2},
        # never on ready, which would end a pod for a model that does not answer, and all of them at once
        "livenessProbe": {
            "httpGet": {"path": LIVE, **http},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": PAUSE_S}}},
        "resources": {"requests": {"cpu": str(needs.cores), "memory": memory}, "limits": {"memory": memory}},
        "securityContext": make_security(),
        "volumeMounts": [
            *(make_mounts(source) if location == source.location else ()),
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - in the container
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def make_volumes(served: Served) -> list[dict[str, Any]]:
    """Return the volumes that the server writes to; shared memory counts as the container's memory."""
    needs = served.needs
    temporary = _TEMPORARY_BYTES + (2 * needs.repository_bytes if served.source.runs_in_server else 0)
    shared = {"medium": "Memory", "sizeLimit": write_bytes(needs.shared_bytes)}
    return [{"name": "shm", "emptyDir": shared}, {"name": "tmp", "emptyDir": {"sizeLimit": write_bytes(temporary)}}]


def make_arguments(served: Served, *, location: str, ports: dict[str, int]) -> list[str]:
    """Return what the image's own entry point runs.

    Nobody needs the restricted APIs here, where a new version is a new pod: their key is drawn when the server starts,
    and nobody is told.
    """
    locks = " ".join(f'"{text}"' for text in served.locks)
    script = f'read -r key < /proc/sys/kernel/random/uuid; exec tritonserver "$@" {locks}'
    numbers = [f"--{name}-port={number}" for name, number in ports.items() if number != PORTS[name]]
    wrapper = ["sh", "-ec", script, "sh"] if locks else ["tritonserver"]
    return [*wrapper, f"--model-repository={location}", *served.options, *numbers]


def make_affinity(needs: Needs) -> dict[str, Any]:
    """Return the affinity to nodes with a GPU that the plans were built for; empty where that is not known.

    The labels are those of NVIDIA's GPU feature discovery.
    """
    major, minor = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
    terms = []
    for capability in needs.capabilities:
        numbers = zip((major, minor), capability.split("."), strict=True)
        terms.append([{"key": key, "operator": "In", "values": [number]} for key, number in numbers])
    if needs.ampere_or_later:
        terms.append([{"key": major, "operator": "Gt", "values": ["7"]}])
    if not terms:
        return {}
    required = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def write_bytes(count: int) -> str:
    """Return a number of bytes as Kubernetes takes it, rounded up to MiB."""
    return f"{count // GIB}Gi" if count % GIB == 0 else f"{-(-count // MIB)}Mi"
