"""The objects of a deployment on Kubernetes: a base, what the processor asks for, and what watches and scales it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.deploy.kustomize import Layer, Operation, Patch
from generator.deploy.pod import GPU, NAME_LABEL, PORTS, check_name, make_affinity, make_pod
from generator.errors import DeployError

if TYPE_CHECKING:
    from generator.deploy.kustomize import Manifest
    from generator.deploy.pod import Served

_DNS_PORT = 53
_BUSY_PERCENT = 70
# until Deployment is said to have failed: longer than models may take to load
_PROGRESS_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many pods there are, and where what decides on it is found.

    `prometheus` is the URL that KEDA asks. `monitoring` is the namespace that Prometheus runs in.
    """

    least: int = 2
    most: int = 8
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    monitoring: str = "monitoring"

    def __post_init__(self) -> None:
        check_name(self.monitoring, "monitoring_namespace")
        if self.most < self.least:
            msg = f"at most {self.most} pods, but at least {self.least}"
            raise DeployError(msg, hint="raise the first number or lower the second", fields={"max_replicas": None})


def make_layers(served: Served, scaling: Scaling) -> list[Layer]:
    """Return the base and the overlays, each on top of the one before.

    There is one of `cpu` and `gpu`, as the repository needs. `monitoring` adds what Prometheus scrapes, and `keda`,
    which asks Prometheus, what scales by it.
    """
    deployment, policy = _make_deployment(served), _make_network_policy(served)
    base = Layer(
        folder="base",
        objects={
            "deployment.yaml": [deployment],
            "services.yaml": _make_services(served),
            "disruption-budget.yaml": [_make_disruption_budget(served)],
            "network-policy.yaml": [policy],
        },
    )
    replicas = ("spec", "replicas")
    if served.needs.gpu:
        operations = (Operation(path=replicas, value=scaling.least), *_ask_for_gpu(served))
        processor = Layer(folder="overlays/gpu", below=base, patches=(Patch(target=deployment, operations=operations),))
        # who scales a Deployment must be the only one to state its size
        unscaled = Patch(target=deployment, operations=(Operation(path=replicas),))
    else:
        scaler = _make_autoscaler(served, scaling)
        processor = Layer(folder="overlays/cpu", below=base, objects={"autoscaler.yaml": [scaler]})
        unscaled = Patch(target=scaler)
    scrape = Operation(path=("spec", "ingress", "-"), value=_admit_prometheus(scaling))
    monitoring = Layer(
        folder="overlays/monitoring",
        below=processor,
        objects={"pod-monitor.yaml": [_make_pod_monitor(served)]},
        patches=(Patch(target=policy, operations=(scrape,)),),
    )
    keda = Layer(
        folder="overlays/keda",
        below=monitoring,
        objects={"scaled-object.yaml": [_make_scaled_object(served, scaling)]},
        patches=(unscaled,),
    )
    return [base, processor, monitoring, keda]


def _make_object(served: Served, api: str, kind: str, spec: dict[str, Any], *, name: str = "") -> Manifest:
    labels = {**served.labels, "app.kubernetes.io/managed-by": "trtgen"}
    metadata = {"name": name or served.name, "namespace": served.namespace, "labels": labels}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _select(served: Served) -> dict[str, Any]:
    return {"matchLabels": served.labels}


def _make_deployment(served: Served) -> Manifest:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": _select(served),
    }
    spec = {
        "progressDeadlineSeconds": _PROGRESS_S,
        "selector": _select(served),
        # a new pod is ready before an old one goes: with GPUs that takes a spare one
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": served.labels},
            "spec": {**make_pod(served), "topologySpreadConstraints": [spread]},
        },
    }
    return _make_object(served, "apps/v1", "Deployment", spec)


def _make_services(served: Served) -> list[Manifest]:
    """Return one service with an address for HTTP, and one without for gRPC, whose clients choose among the pods."""
    http = {"name": "http", "port": PORTS["http"], "targetPort": "http", "appProtocol": "http"}
    grpc = {"name": "grpc", "port": PORTS["grpc"], "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"}
    chosen = {"selector": served.labels}
    return [
        _make_object(served, "v1", "Service", {"type": "ClusterIP", **chosen, "ports": [http]}),
        _make_object(
            served, "v1", "Service", {"clusterIP": "None", **chosen, "ports": [grpc]}, name=f"{served.name}-grpc"
        ),
    ]


def _make_disruption_budget(served: Served) -> Manifest:
    # a pod that is not ready serves nobody and does not keep a node from being drained
    spec = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": _select(served)}
    return _make_object(served, "policy/v1", "PodDisruptionBudget", spec)


def _make_network_policy(served: Served) -> Manifest:
    """Return what closes the pods but for clients of their own namespace, and for the store where they need one."""
    egress: list[dict[str, Any]] = []
    if served.source.ports:
        egress = [
            {"ports": [{"protocol": protocol, "port": _DNS_PORT} for protocol in ("UDP", "TCP")]},
            {"ports": [{"protocol": "TCP", "port": port} for port in served.source.ports]},
        ]
    clients = {"from": [{"podSelector": {}}], "ports": [{"port": "http"}, {"port": "grpc"}]}
    spec = {
        "podSelector": _select(served),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [clients],
        "egress": egress,
    }
    return _make_object(served, "networking.k8s.io/v1", "NetworkPolicy", spec)


def _ask_for_gpu(served: Served) -> list[Operation]:
    pod = ("spec", "template", "spec")
    affinity = make_affinity(served.needs)
    toleration = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
    return [
        Operation(path=(*pod, "containers", "0", "resources", "limits", GPU), value="1"),
        Operation(path=(*pod, "tolerations"), value=[toleration]),
        *([Operation(path=(*pod, "affinity"), value=affinity)] if affinity else []),
    ]


def _name_deployment(served: Served) -> dict[str, str]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": served.name}


def _make_autoscaler(served: Served, scaling: Scaling) -> Manifest:
    busy = {"type": "Utilization", "averageUtilization": _BUSY_PERCENT}
    spec = {
        "scaleTargetRef": _name_deployment(served),
        "minReplicas": scaling.least,
        "maxReplicas": scaling.most,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": busy}}],
    }
    return _make_object(served, "autoscaling/v2", "HorizontalPodAutoscaler", spec)


def _admit_prometheus(scaling: Scaling) -> dict[str, Any]:
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": scaling.monitoring}}
    return {"from": [{"namespaceSelector": namespace}], "ports": [{"port": "metrics"}]}


def _make_pod_monitor(served: Served) -> Manifest:
    spec = {
        "jobLabel": NAME_LABEL,  # the metrics' job is the name
        "selector": _select(served),
        "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": "15s"}],
    }
    return _make_object(served, "monitoring.coreos.com/v1", "PodMonitor", spec)


def _make_scaled_object(served: Served, scaling: Scaling) -> Manifest:
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",  # for each pod
        "metadata": {
            "serverAddress": scaling.prometheus,
            "query": make_query(served),
            # as many wait as are worked on: a new one waits about as long as it then takes
            "threshold": str(served.needs.instances),
        },
    }
    spec = {
        "scaleTargetRef": _name_deployment(served),
        "pollingInterval": 15,
        "minReplicaCount": scaling.least,
        "maxReplicaCount": scaling.most,
        "triggers": [trigger],
    }
    return _make_object(served, "keda.sh/v1alpha1", "ScaledObject", spec)


def make_query(served: Served) -> str:
    """Return how many requests wait in all pods, in PromQL; an ensemble's own count is always 0."""
    members = "|".join(name.replace(".", r"\\.") for name in served.needs.members)
    where = f'namespace="{served.namespace}", job="{served.name}", model=~"{members}"'
    return f"sum(nv_inference_pending_request_count{{{where}}})"
