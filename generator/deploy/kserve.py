"""The objects of a deployment on KServe, in its mode Standard: a ServingRuntime of ours and an InferenceService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.deploy.kustomize import Layer
from generator.deploy.pod import (
    GPU,
    MARGIN_S,
    PAUSE_S,
    PORTS,
    make_affinity,
    make_container,
    make_pod_security,
    make_volumes,
)
from generator.server.hardening import STOP_TIMEOUT_S

if TYPE_CHECKING:
    from generator.deploy.kubernetes import Scaling
    from generator.deploy.kustomize import Manifest
    from generator.deploy.pod import Served

CONTAINER = "kserve-container"  # the one that KServe gives the repository to
LOCATION = "/mnt/models"  # where it puts it
# The first is what KServe's service passes on as port 80.
_PORTS = {"http": 8080, "grpc": 9000, "metrics": PORTS["metrics"]}
_FORMAT = "triton"
_BUSY_PERCENT = 70


def make_layer(served: Served, scaling: Scaling) -> Layer:
    """Return both objects.

    Raises:
        DeployError: KServe cannot fetch the repository from its source.
    """
    runtime, service = _make_runtime(served), _make_service(served, scaling)
    return Layer(folder="kserve", objects={"serving-runtime.yaml": [runtime], "inference-service.yaml": [service]})


def _make_metadata(served: Served, annotations: dict[str, str]) -> dict[str, Any]:
    found = {"annotations": annotations} if annotations else {}
    labels = {**served.labels, "app.kubernetes.io/managed-by": "trtgen"}
    return {"name": served.name, "namespace": served.namespace, "labels": labels, **found}


def _make_runtime(served: Served) -> Manifest:
    container = make_container(served, name=CONTAINER, ports=_PORTS, location=LOCATION)
    if served.needs.gpu:
        container["resources"]["limits"][GPU] = "1"
    spec = {
        "annotations": {"prometheus.kserve.io/port": str(_PORTS["metrics"]), "prometheus.kserve.io/path": "/metrics"},
        "supportedModelFormats": [{"name": _FORMAT, "version": "2", "autoSelect": False}],
        "protocolVersions": ["v2", "grpc-v2"],
        "containers": [container],
        "volumes": make_volumes(served),
    }
    metadata = _make_metadata(served, {})
    return {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": metadata, "spec": spec}


def _make_service(served: Served, scaling: Scaling) -> Manifest:
    needs = served.needs
    # nothing that KServe measures by itself says how busy a GPU is
    scaled = {} if needs.gpu else {"scaleMetric": "cpu", "scaleTarget": _BUSY_PERCENT}
    affinity = make_affinity(needs)
    predictor = {
        "minReplicas": scaling.least,
        "maxReplicas": scaling.least if needs.gpu else scaling.most,
        **scaled,
        "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": PAUSE_S + STOP_TIMEOUT_S + MARGIN_S,
        "securityContext": make_pod_security(),
        **({"affinity": affinity} if affinity else {}),
        **({"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]} if needs.gpu else {}),
        "model": {
            "modelFormat": {"name": _FORMAT},
            "protocolVersion": "v2",
            "runtime": served.name,
            "storageUri": served.source.storage_uri,
        },
    }
    annotations = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "none" if needs.gpu else "hpa",
    }
    metadata = _make_metadata(served, annotations)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": predictor},
    }
