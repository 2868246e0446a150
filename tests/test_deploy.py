"""Manifests: what they say, that schemas and rules take them and no broken ones, and how a real server ends."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import kubernetes_validate
import numpy as np
import pytest
import typer.main
import yaml
from PIL import Image
from tritonclient import grpc

from benchmarks.machine import measure_pss
from benchmarks.pod_end import Clients, Pod, Way
from generator.cli import app, main
from generator.deploy import kserve
from generator.deploy.kubernetes import Scaling, make_layers, make_query
from generator.deploy.kustomize import Layer, Operation
from generator.deploy.manifests import Manifests
from generator.deploy.needs import GIB, MIB, read_needs
from generator.deploy.pod import CONNECTION_AGE_S, DNS_CACHE_S, LIVE, PAUSE_S, READY, Served, describe_served
from generator.deploy.pod_rules import read_quantity
from generator.deploy.rules import RULES, check, refuse_problems
from generator.deploy.source import DirectSource, ImageSource, ReleaseSource, Source
from generator.errors import DeployError
from generator.server.container import STOCK_RELEASE
from generator.server.hardening import OWNER_HEADER, STOP_TIMEOUT_S, Values, write_options
from generator.written import write_files, write_yaml
from tests.custom_resources import DATA, find_errors, read_definitions, read_schemas
from tests.server_parts import wait_until, write_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "demo" / "expected"
PASSPORT = ROOT / "tests" / "data" / "passport.json"
RELEASE = "20261126T192608Z-5789f58f1c8f50e7"
KUBERNETES = "1.37"  # the latest whose schemas are here
IMAGE = ImageSource(image="registry.example/models@sha256:" + "0" * 64)
SOURCES: dict[str, Source] = {
    "image": IMAGE,
    "channel": ReleaseSource(
        url="s3://bucket/models", puller="registry.example/trtgen:1", channel="production", secret="store"
    ),
    "release": ReleaseSource(url="s3://bucket/models", puller="registry.example/trtgen:1", release=RELEASE),
    "direct": DirectSource(url="s3://https://store.example:9000/bucket/models", secret="store"),
}


def write_cpu(root: Path) -> Path:
    """Write the demo's configurations, which are what is read of a repository."""
    return Path(shutil.copytree(GOLDEN, root / "cpu"))


def add_plan(model: Path, *, file: str = "model.plan", **changes: Any) -> Path:
    """Add a plan with a passport; `changes` are those of its GPU and options."""
    plan = model / "1" / file
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(b"ftrt")
    passport = json.loads(PASSPORT.read_text())
    passport["gpu"] |= {key: value for key, value in changes.items() if key in passport["gpu"]}
    passport["options"] |= {key: value for key, value in changes.items() if key not in passport["gpu"]}
    plan.with_name(f"{file}.json").write_text(json.dumps(passport))
    return plan


def write_gpu(root: Path, **changes: Any) -> Path:
    """Write the same with a plan in place of the graph."""
    folder = Path(shutil.copytree(GOLDEN, root / "gpu"))
    model = write_config(
        folder / "demo_classifier", backend="tensorrt", max_batch_size=32, instances="count: 4 kind: KIND_GPU"
    )
    add_plan(model, **changes)
    return folder


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("deploy")
    return {"cpu": write_cpu(root), "gpu": write_gpu(root)}


class Case(NamedTuple):
    """What one layer comes to."""

    served: Served
    layer: Layer

    @property
    def manifests(self) -> Manifests:
        needs = self.served.needs
        external = {("Secret", self.served.source.secret)}
        return Manifests(objects=self.layer.merge(), external=external, members=needs.members)


def make_cases(repositories: dict[str, Path]) -> dict[str, Case]:
    """Return every layer for every processor and source, by name; KServe's only for what it can read."""
    cases: dict[str, Case] = {}
    for processor, repository in repositories.items():
        for name, source in SOURCES.items():
            served = describe_served(repository, source, namespace="vision")
            layers = make_layers(served, Scaling())
            if name in ("image", "release"):
                layers.append(kserve.make_layer(served, Scaling()))
            cases |= {f"{processor}/{name}/{layer.folder}": Case(served, layer) for layer in layers}
    return cases


def make_every_manifest() -> list[dict[str, Any]]:
    """Return every object that is made, for tests/data/custom_resources.yaml."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases = make_cases({"cpu": write_cpu(root), "gpu": write_gpu(root)})
    return [one for case in cases.values() for one in case.layer.merge()]


@pytest.fixture(scope="session")
def cases(repositories: dict[str, Path]) -> dict[str, Case]:
    return make_cases(repositories)


@pytest.fixture(scope="session")
def schemas() -> dict[tuple[str, str], dict[str, Any]]:
    return read_schemas()


def find(objects: list[dict[str, Any]], kind: str, name: str = "demo") -> dict[str, Any]:
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def get_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = find(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def validate(manifest: dict[str, Any], schemas: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Return what the strict schema of its kind says; the CRDs' own, or Kubernetes'."""
    key = (manifest["apiVersion"], manifest["kind"])
    if key in schemas:
        return find_errors(manifest, schemas[key])
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


def test_every_object_has_a_schema_that_accepts_it(
    cases: dict[str, Case], schemas: dict[tuple[str, str], dict[str, Any]]
) -> None:
    different = {
        json.dumps(manifest, sort_keys=True): (name, manifest)
        for name, case in cases.items()
        for manifest in case.layer.merge()
    }
    found = {
        f"{name}: {manifest['kind']}": errors
        for name, manifest in different.values()
        if (errors := validate(manifest, schemas))
    }
    assert found == {}


@pytest.mark.parametrize(("version", "source"), [("1.31", "release"), ("1.31", "direct"), ("1.33", "image")])
def test_the_oldest_kubernetes_knows_every_field(cases: dict[str, Case], version: str, source: str) -> None:
    for folder in ("overlays/cpu", "base"):
        for manifest in cases[f"cpu/{source}/{folder}"].layer.merge():
            kubernetes_validate.validate(manifest, version, strict=True)


def test_no_object_breaks_a_rule(cases: dict[str, Case]) -> None:
    found = {name: [*map(str, problems)] for name, case in cases.items() if (problems := check(case.manifests))}
    assert found == {}


SCHEMA_FAULTS: dict[str, tuple[str, str, Callable[[dict[str, Any]], object], str]] = {
    "a field of the Deployment": (
        "cpu/image/base",
        "Deployment",
        lambda one: one["spec"].update(stratgy={}),
        "stratgy",
    ),
    "a type": (
        "cpu/image/base",
        "Deployment",
        lambda one: one["spec"]["template"]["spec"].update(terminationGracePeriodSeconds="105"),
        "'105' is not of type",
    ),
    "KServe's storageUri": (
        "cpu/image/kserve",
        "InferenceService",
        lambda one: one["spec"]["predictor"]["model"].update(storageURI="s3://x"),
        "spec.predictor.model: Additional properties are not allowed ('storageURI'",
    ),
    "KServe's minReplicas": (
        "cpu/image/kserve",
        "InferenceService",
        lambda one: one["spec"]["predictor"].update(minReplica=1),
        "spec.predictor: Additional properties are not allowed ('minReplica'",
    ),
    "KServe's protocolVersion": (
        "cpu/image/kserve",
        "InferenceService",
        lambda one: one["spec"]["predictor"]["model"].update(protocolVersion=2),
        "spec.predictor.model.protocolVersion: 2 is not of type 'string'",
    ),
    "a ServingRuntime without containers": (
        "cpu/image/kserve",
        "ServingRuntime",
        lambda one: one["spec"].pop("containers"),
        "spec: 'containers' is a required property",
    ),
    "KEDA's threshold": (
        "cpu/image/overlays/keda",
        "ScaledObject",
        lambda one: one["spec"]["triggers"][0]["metadata"].update(threshold=5),
        "spec.triggers.0.metadata.threshold: 5 is not of type 'string'",
    ),
    "KEDA's triggers": (
        "cpu/image/overlays/keda",
        "ScaledObject",
        lambda one: one["spec"].pop("triggers"),
        "spec: 'triggers' is a required property",
    ),
    "the PodMonitor's endpoints": (
        "cpu/image/overlays/monitoring",
        "PodMonitor",
        lambda one: one["spec"].update(endpoints=one["spec"].pop("podMetricsEndpoints")),
        "spec: Additional properties are not allowed ('endpoints'",
    ),
    "the PodMonitor's interval": (
        "cpu/image/overlays/monitoring",
        "PodMonitor",
        lambda one: one["spec"]["podMetricsEndpoints"][0].update(interval="often"),
        "spec.podMetricsEndpoints.0.interval: 'often' does not match",
    ),
}


@pytest.mark.parametrize("fault", SCHEMA_FAULTS)
def test_a_schema_refuses(cases: dict[str, Case], schemas: dict[tuple[str, str], dict[str, Any]], fault: str) -> None:
    case, kind, spoil, words = SCHEMA_FAULTS[fault]
    manifest = find(cases[case].layer.merge(), kind)
    spoil(manifest)
    (error,) = validate(manifest, schemas)
    assert words in error


def test_the_schemas_have_their_notices() -> None:
    text = DATA.read_text()
    assert "Apache License 2.0" in text
    parts = text.split("---\n")[1:]
    assert len(parts) == len(read_definitions(DATA)) == 4
    for part in parts:
        assert re.match(r"# https://github\.com/\S+ \S+\.yaml\n# at [0-9a-f]{40}\. .*Copyright", part)


class Fault(NamedTuple):
    """A manifest made bad: the rule that says so, its words, the case, the object, and what is done to it."""

    rule: str
    words: str
    spoil: Callable[[list[dict[str, Any]]], object]
    case: str = "gpu/channel/overlays/keda"


def in_pod(change: Callable[[dict[str, Any]], object]) -> Callable[[list[dict[str, Any]]], object]:
    return lambda objects: change(get_pod(objects))


def in_server(change: Callable[[dict[str, Any]], object]) -> Callable[[list[dict[str, Any]]], object]:
    return lambda objects: change(get_pod(objects)["containers"][0])


def set_option(name: str, value: str) -> Callable[[list[dict[str, Any]]], object]:
    def change(server: dict[str, Any]) -> None:
        server["args"] = [re.sub(rf"^--{name}=.*", f"--{name}={value}", text) for text in server["args"]]

    return in_server(change)


CPU, KSERVE = "cpu/image/overlays/cpu", "cpu/image/kserve"
FAULTS = {
    "unknown kind": Fault(
        "kinds",
        "batch/v1 CronJob is not known",
        lambda all_: find(all_, "Deployment").update(apiVersion="batch/v1", kind="CronJob"),
    ),
    "old version": Fault(
        "kinds",
        "HorizontalPodAutoscaler is known as autoscaling/v2",
        lambda all_: find(all_, "HorizontalPodAutoscaler").update(apiVersion="autoscaling/v2beta2"),
        CPU,
    ),
    "service": Fault(
        "selectors",
        "Service demo-grpc: it selects app.kubernetes.io/name=other, which no pod has",
        lambda all_: find(all_, "Service", "demo-grpc")["spec"].update(selector={"app.kubernetes.io/name": "other"}),
    ),
    "empty selector": Fault(
        "selectors",
        "NetworkPolicy demo: it has no selector, or an empty one",
        lambda all_: find(all_, "NetworkPolicy")["spec"].update(podSelector={}),
    ),
    "disruption budget": Fault(
        "selectors",
        "PodDisruptionBudget demo: it selects",
        lambda all_: find(all_, "PodDisruptionBudget")["spec"]["selector"].update(matchLabels={"app": "demo"}),
    ),
    "the deployment's own pods": Fault(
        "selectors",
        "Deployment demo: it selects app.kubernetes.io/name=demo, version=2, but its pods have",
        lambda all_: find(all_, "Deployment")["spec"]["selector"].update(
            matchLabels={"app.kubernetes.io/name": "demo", "version": "2"}
        ),
    ),
    "service port": Fault(
        "ports",
        "Service demo: it names the port web, but the pods have grpc, http, metrics",
        lambda all_: find(all_, "Service")["spec"]["ports"][0].update(targetPort="web"),
    ),
    "policy's port": Fault(
        "ports",
        "NetworkPolicy demo: it names the port rpc",
        lambda all_: find(all_, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0].update(port="rpc"),
    ),
    "monitor's port": Fault(
        "ports",
        "PodMonitor demo: it names the port prometheus",
        lambda all_: find(all_, "PodMonitor")["spec"]["podMetricsEndpoints"][0].update(port="prometheus"),
    ),
    "probe's port": Fault(
        "ports",
        "livenessProbe asks the port web, but the container has",
        in_server(lambda server: server["livenessProbe"]["httpGet"].update(port="web")),
    ),
    "mount without volume": Fault(
        "volumes", "the volume shm is mounted, but there is none", in_pod(lambda pod: pod["volumes"].pop(1))
    ),
    "volume without mount": Fault(
        "volumes",
        "the volume more is mounted nowhere",
        in_pod(lambda pod: pod["volumes"].append({"name": "more", "emptyDir": {}})),
    ),
    "two at one place": Fault(
        "volumes",
        "the container triton mounts two volumes at /tmp",
        in_server(lambda server: server["volumeMounts"][1].update(mountPath="/tmp")),
    ),
    "grace": Fault(
        "grace",
        "it is killed after 30 s, but its pause, exit timeout and margin take 105 s",
        in_pod(lambda pod: pod.update(terminationGracePeriodSeconds=30)),
    ),
    "grace by default": Fault(
        "grace", "it is killed after 30 s", in_pod(lambda pod: pod.pop("terminationGracePeriodSeconds"))
    ),
    "longer exit timeout": Fault("grace", "take 135 s", set_option("exit-timeout-secs", "60")),
    "no pause": Fault("pause", "it has no preStop pause", in_server(lambda server: server.pop("lifecycle"))),
    "long connections": Fault(
        "pause", "gRPC connections last 3600 s, which is more", set_option("grpc-max-connection-age", "3600000")
    ),
    "connections for ever": Fault(
        "pause",
        "gRPC connections last for ever",
        in_server(lambda server: server.update(args=[one for one in server["args"] if "connection-age=" not in one])),
    ),
    "liveness on ready": Fault(
        "probes",
        "livenessProbe asks /v2/health/ready, but has to ask /v2/health/live",
        in_server(lambda server: server["livenessProbe"]["httpGet"].update(path="/v2/health/ready")),
    ),
    "no startup probe": Fault(
        "probes",
        "startupProbe asks nothing, but has to ask /v2/health/ready",
        in_server(lambda server: server.pop("startupProbe")),
    ),
    "no time to load": Fault(
        "probes",
        "its models have 30 s to load; give them 60 s or more",
        in_server(lambda server: server["startupProbe"].update(failureThreshold=6)),
    ),
    "request above limit": Fault(
        "resources",
        "triton requests 64Gi of memory, above its limit",
        in_server(lambda server: server["resources"]["requests"].update(memory="64Gi")),
    ),
    "no limit": Fault(
        "resources",
        "triton has no request or no limit of memory",
        in_server(lambda server: server["resources"]["limits"].pop("memory")),
    ),
    "shared memory without size": Fault(
        "resources",
        "the volume shm is memory, but has no sizeLimit",
        in_pod(lambda pod: pod["volumes"][1]["emptyDir"].pop("sizeLimit")),
    ),
    "shared memory not counted": Fault(
        "resources",
        "shm may take 64Gi of memory, and triton has",
        in_pod(lambda pod: pod["volumes"][1]["emptyDir"].update(sizeLimit="64Gi")),
    ),
    "half a GPU": Fault(
        "gpus",
        "triton asks for 0.5 of nvidia.com/gpu; GPUs are whole",
        in_server(lambda server: server["resources"]["limits"].update({"nvidia.com/gpu": "0.5"})),
    ),
    "a GPU requested only": Fault(
        "gpus",
        "triton requests 1 of nvidia.com/gpu, which has to stand in limits",
        in_server(
            lambda server: server["resources"]["requests"].update(
                {"nvidia.com/gpu": server["resources"]["limits"].pop("nvidia.com/gpu")}
            )
        ),
    ),
    "scaled without target": Fault(
        "targets",
        "ScaledObject demo: it scales Deployment gone, which is not there",
        lambda all_: find(all_, "ScaledObject")["spec"]["scaleTargetRef"].update(name="gone"),
    ),
    "HPA without target": Fault(
        "targets",
        "HorizontalPodAutoscaler demo: it scales StatefulSet demo, which is not there",
        lambda all_: find(all_, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(kind="StatefulSet"),
        CPU,
    ),
    "scaled twice": Fault(
        "targets",
        "ScaledObject twice: it scales Deployment demo, and so does ScaledObject demo",
        lambda all_: all_.append(rename(copy.deepcopy(find(all_, "ScaledObject")), "twice")),
    ),
    "size stated": Fault(
        "targets",
        "it scales Deployment demo, which sets its replicas back whenever it is applied",
        lambda all_: find(all_, "Deployment")["spec"].update(replicas=2),
    ),
    "runtime": Fault(
        "targets",
        "InferenceService demo: its runtime gone is not there",
        lambda all_: find(all_, "InferenceService")["spec"]["predictor"]["model"].update(runtime="gone"),
        KSERVE,
    ),
    "format": Fault(
        "targets",
        "InferenceService demo: its runtime does not take the format onnx",
        lambda all_: find(all_, "InferenceService")["spec"]["predictor"]["model"].update(modelFormat={"name": "onnx"}),
        KSERVE,
    ),
    "scaled by the ensemble": Fault(
        "scaling",
        "it counts what waits for demo, which is an ensemble or not there: that is always 0",
        lambda all_: set_query(all_, 'sum(nv_inference_pending_request_count{model="demo"})'),
    ),
    "scaled by everything": Fault(
        "scaling",
        "it counts what waits for every model",
        lambda all_: set_query(all_, "sum(nv_inference_pending_request_count)"),
    ),
    "secret": Fault(
        "references",
        "it needs the Secret other, which is not there",
        in_pod(lambda pod: pod["initContainers"][0]["envFrom"][0]["secretRef"].update(name="other")),
    ),
    "config map as a variable": Fault(
        "references",
        "it needs the ConfigMap settings, which is not there",
        in_server(
            lambda server: server.update(
                env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}}]
            )
        ),
    ),
    "secret as a volume": Fault(
        "references",
        "it needs the Secret tls, which is not there",
        in_pod(lambda pod: pod["volumes"][1].update(secret={"secretName": "tls"})),
    ),
    "no tag": Fault(
        "images",
        "the image registry.example:5000/trtgen has no tag",
        in_server(lambda server: server.update(image="registry.example:5000/trtgen")),
    ),
    "latest": Fault(
        "images",
        "the image models:latest has no tag",
        in_pod(lambda pod: pod["volumes"][0]["image"].update(reference="models:latest")),
        "cpu/image/base",
    ),
    "root": Fault(
        "rights",
        "its containers may run as root",
        in_pod(lambda pod: pod["securityContext"].pop("runAsNonRoot")),
    ),
    "token": Fault("rights", "it is given a token", in_pod(lambda pod: pod.pop("automountServiceAccountToken"))),
    "writable root": Fault(
        "rights",
        "pull has rights that it does not need",
        in_pod(lambda pod: pod["initContainers"][0]["securityContext"].pop("readOnlyRootFilesystem")),
    ),
    "capabilities": Fault(
        "rights",
        "triton has rights that it does not need",
        in_server(lambda server: server["securityContext"]["capabilities"].update(drop=["NET_RAW"])),
    ),
}


def rename(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    manifest["metadata"]["name"] = name
    return manifest


def set_query(objects: list[dict[str, Any]], query: str) -> None:
    find(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"] = query


@pytest.mark.parametrize("name", FAULTS)
def test_a_rule_refuses(cases: dict[str, Case], name: str) -> None:
    fault = FAULTS[name]
    manifests = cases[fault.case].manifests
    objects = list(copy.deepcopy(manifests.objects))
    fault.spoil(objects)
    problems = check(replace(manifests, objects=objects))
    assert {problem.rule for problem in problems} == {fault.rule}, [*map(str, problems)]
    assert fault.words in "\n".join(map(str, problems))


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    assert {fault.rule for fault in FAULTS.values()} == {"kinds", *RULES}


def test_problems_are_said_all_at_once(cases: dict[str, Case]) -> None:
    manifests = cases[KSERVE].manifests
    objects = list(copy.deepcopy(manifests.objects))
    find(objects, "ServingRuntime")["spec"]["containers"][0].update(image="a", lifecycle={})
    with pytest.raises(DeployError, match=r"no tag(.|\n)*") as caught:
        refuse_problems(replace(manifests, objects=objects))
    assert "ServingRuntime demo: it has no preStop pause" in caught.value.message


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("500m", 0.5), ("2Gi", 2 * GIB), ("64Mi", 64 * MIB), ("1k", 1000), ("0.5", 0.5)]
)
def test_quantities(text: str, number: float) -> None:
    assert read_quantity(text) == number


def read_kubectl() -> tuple[int, ...]:
    """Return the version of kubectl on PATH; empty where there is none."""
    if shutil.which("kubectl") is None:
        return ()
    words = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v(\d+)\.(\d+)", words)
    return tuple(map(int, found.groups())) if found else ()


@pytest.mark.skipif(read_kubectl() < (1, 27), reason="needs kubectl 1.27 or later, whose kustomize is version 5")
@pytest.mark.parametrize("name", ["cpu/channel", "gpu/image", "gpu/direct"])
def test_kustomize_merges_as_we_do(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    chosen = {key: case for key, case in cases.items() if key.startswith(f"{name}/")}
    layers = [case.layer for case in chosen.values()]
    write_files({path: write_yaml(ones) for layer in layers for path, ones in layer.write().items()}, tmp_path)
    for case in chosen.values():
        command = ["kubectl", "kustomize", str(tmp_path / case.layer.folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        theirs = list(yaml.safe_load_all(result.stdout))
        assert len(theirs) == len(case.layer.merge())
        for ours in case.layer.merge():
            assert find(theirs, ours["kind"], ours["metadata"]["name"]) == ours


def test_each_layer_adds_its_part(cases: dict[str, Case]) -> None:
    base = ["Deployment demo", "Service demo", "Service demo-grpc", "PodDisruptionBudget demo", "NetworkPolicy demo"]
    scaler, monitor, scaled = "HorizontalPodAutoscaler demo", "PodMonitor demo", "ScaledObject demo"
    expected = {
        "cpu/image/base": base,
        "cpu/image/overlays/cpu": [*base, scaler],
        "cpu/image/overlays/monitoring": [*base, scaler, monitor],
        "cpu/image/overlays/keda": [*base, monitor, scaled],  # which makes a scaler of its own
        "gpu/image/base": base,
        "gpu/image/overlays/gpu": base,
        "gpu/image/overlays/monitoring": [*base, monitor],
        "gpu/image/overlays/keda": [*base, monitor, scaled],
    }
    for name, objects in expected.items():
        found = [f"{one['kind']} {one['metadata']['name']}" for one in cases[name].layer.merge()]
        assert found == objects, name
    assert {name for name in cases if "/image/" in name} - set(expected) == {"cpu/image/kserve", "gpu/image/kserve"}


def test_the_pod_starts_is_watched_and_ends_in_time(cases: dict[str, Case]) -> None:
    objects = cases["cpu/image/base"].layer.merge()
    pod = get_pod(objects)
    (server,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == PAUSE_S + STOP_TIMEOUT_S + 10
    assert server["lifecycle"] == {"preStop": {"sleep": {"seconds": PAUSE_S}}}
    assert PAUSE_S >= 1.1 * CONNECTION_AGE_S + DNS_CACHE_S  # gRPC adds up to a tenth
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] == 600
    assert find(objects, "Deployment")["spec"]["progressDeadlineSeconds"] > 600
    assert find(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod["securityContext"]["runAsUser"], pod["enableServiceLinks"]) == (1000, False)
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_the_container_runs_a_hardened_launch(cases: dict[str, Case]) -> None:
    """Its options are those of the table of `trtgen harden`, all but TLS; the key is nobody's."""
    values = Values(
        address="0.0.0.0",
        key="$key",
        max_input_bytes=32 * 2**25 + 2**16,  # 32 images of 32 MiB, and the header
        max_connection_age_ms=CONNECTION_AGE_S * 1000,
    )
    table = [text for _, text in write_options(values, "hardened", release=STOCK_RELEASE)]
    shell, flag, script, name, repository, *options = get_pod(cases["cpu/image/base"].layer.merge())["containers"][0][
        "args"
    ]
    assert (shell, flag, name, repository) == ("sh", "-ec", "sh", "--model-repository=/models")
    locks = [text for text in table if "$key" in text]
    assert len(locks) == 2
    assert sorted([*options, *locks]) == sorted(table)
    assert script.endswith('exec tritonserver "$@" ' + " ".join(f'"{lock}"' for lock in locks))
    assert not any("$(" in text for text in (script, *options))  # which Kubernetes would take for its own


def test_the_container_gets_what_the_models_need(tmp_path: Path, edit: Callable[[Path, str, str], None]) -> None:
    """The options without which the server ignores a cache, or refuses a plan that carries code."""
    repository = write_gpu(tmp_path, version_compatible=True)
    edit(
        repository / "demo" / "config.pbtxt",
        "ensemble_scheduling {",
        "response_cache { enable: true }\nensemble_scheduling {",
    )
    options = describe_served(repository, IMAGE).options
    more = ["--cache-config=local,size=268435456", "--backend-config=tensorrt,version-compatible=true"]
    assert list(options[-2:]) == more


def test_services(cases: dict[str, Case]) -> None:
    objects = cases["cpu/image/base"].layer.merge()
    http, grpc = (find(objects, "Service", name)["spec"] for name in ("demo", "demo-grpc"))
    assert (http["type"], http["ports"][0]["port"]) == ("ClusterIP", 8000)
    assert (grpc["clusterIP"], grpc["ports"][0]["appProtocol"]) == ("None", "kubernetes.io/h2c")
    assert find(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    ("source", "ports"), [("image", []), ("release", [443]), ("direct", [9000]), ("channel", [9000, 80])]
)
def test_pods_are_reached_and_reach_their_store_and_nothing_else(
    repositories: dict[str, Path], source: str, ports: list[int]
) -> None:
    chosen = SOURCES[source]
    if isinstance(chosen, ReleaseSource) and chosen.channel:
        chosen = replace(chosen, store_ports=(9000, 80))
    layers = make_layers(describe_served(repositories["cpu"], chosen), Scaling(monitoring="watch"))
    clients = {"from": [{"podSelector": {}}], "ports": [{"port": "http"}, {"port": "grpc"}]}  # of the same namespace
    names = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    store = {"ports": [{"protocol": "TCP", "port": port} for port in ports]}
    closed = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "demo"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [clients],
        "egress": [names, store] if ports else [],
    }
    prometheus = {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}}],
        "ports": [{"port": "metrics"}],
    }
    watched = {**closed, "ingress": [clients, prometheus]}
    found = [find(layer.merge(), "NetworkPolicy")["spec"] for layer in layers]
    assert found == [closed, closed, watched, watched]


def test_what_was_asked_for_is_in_its_object(repositories: dict[str, Path]) -> None:
    scaling = Scaling(least=3, most=11, prometheus="http://prometheus.example:9999")
    pulled = ReleaseSource(url="gs://bucket/models", puller="registry.example/own:5", release=RELEASE)
    _, cpu, _, keda = (layer.merge() for layer in make_layers(describe_served(repositories["cpu"], pulled), scaling))
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "demo"}
    scaler = find(cpu, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"], scaler["scaleTargetRef"]) == (3, 11, deployment)
    (metric,) = scaler["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    scaled = find(keda, "ScaledObject")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"], scaled["scaleTargetRef"]) == (3, 11, deployment)
    assert scaled["triggers"][0]["metadata"]["serverAddress"] == "http://prometheus.example:9999"
    (pull,) = get_pod(cpu)["initContainers"]
    assert pull["image"] == "registry.example/own:5"
    assert pull["env"] == [{"name": "HOME", "value": "/tmp"}]
    assert pull["volumeMounts"][1] == {"name": "tmp", "mountPath": "/tmp"}

    gpu, scaled_gpu = (
        layer.merge() for layer in make_layers(describe_served(repositories["gpu"], pulled), scaling)[1::2]
    )
    assert get_pod(gpu)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert find(gpu, "Deployment")["spec"]["replicas"] == 3
    assert "replicas" not in find(scaled_gpu, "Deployment")["spec"]


def test_what_triton_reads_itself_has_space(repositories: dict[str, Path]) -> None:
    served = describe_served(repositories["cpu"], SOURCES["direct"])
    served = replace(served, needs=replace(served.needs, repository_bytes=3 * GIB))
    sizes = {}
    for name, source in (("direct", SOURCES["direct"]), ("image", IMAGE)):
        pod = get_pod(make_layers(replace(served, source=source), Scaling())[0].merge())
        sizes[name] = next(one["emptyDir"]["sizeLimit"] for one in pod["volumes"] if one["name"] == "tmp")
    assert sizes == {"direct": "7Gi", "image": "1Gi"}  # the files, twice


def test_the_canary_of_the_documentation_is_one_of_the_pod(cases: dict[str, Case]) -> None:
    page = (ROOT / "docs" / "canary.md").read_text()
    (text,) = re.findall(r"```yaml\n(# deploy/overlays/.*?)```", page, re.DOTALL)
    manifests = cases["cpu/image/overlays/monitoring"].manifests
    objects = list(manifests.objects)
    for patch in yaml.safe_load(text)["patches"]:
        for one in yaml.safe_load(patch["patch"]):
            path = tuple(one["path"].strip("/").split("/"))
            Operation(path=path, value=one["value"]).apply(find(objects, patch["target"]["kind"]))
    server, canary = get_pod(objects)["containers"]
    assert canary["volumeMounts"] == [mount for mount in server["volumeMounts"] if mount["name"] == "models"]
    port = canary["args"][canary["args"].index("--metrics-port") + 1]
    assert canary["ports"] == [{"name": "canary", "containerPort": int(port)}]
    *_, metrics, admitted = find(objects, "NetworkPolicy")["spec"]["ingress"]
    assert admitted == {**metrics, "ports": [{"port": "canary"}]}


def test_ways_of_the_repository_into_the_pod(cases: dict[str, Case]) -> None:
    pods = {name: get_pod(cases[f"cpu/{name}/base"].layer.merge()) for name in SOURCES}
    assert pods["image"]["volumes"][0]["image"]["reference"] == IMAGE.image
    mount = {"name": "models", "mountPath": "/models", "subPath": "models", "readOnly": True}
    assert all(pods[name]["containers"][0]["volumeMounts"][0] == mount for name in ("image", "channel", "release"))
    (pull,) = pods["channel"]["initContainers"]
    assert " ".join(pull["command"]) == (
        "trtgen release pull s3://bucket/models --channel production --repository /release/models"
    )
    assert pull["volumeMounts"][0] == {"name": "models", "mountPath": "/release"}
    assert pull["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert "envFrom" not in pods["channel"]["containers"][0]  # clients reach the server, not its credentials
    assert RELEASE in pods["release"]["initContainers"][0]["command"]
    server = pods["direct"]["containers"][0]
    assert "--model-repository=s3://https://store.example:9000/bucket/models" in server["args"]
    assert server["envFrom"] == [{"secretRef": {"name": "store"}}]


def test_the_pull_is_a_command_of_ours(cases: dict[str, Case]) -> None:
    groups: Any = typer.main.get_command(app)
    options = {option for one in groups.commands["release"].commands["pull"].params for option in one.opts}
    for name in ("channel", "release"):
        program, *words = get_pod(cases[f"cpu/{name}/base"].layer.merge())["initContainers"][0]["command"]
        assert (program, words[:2]) == ("trtgen", ["release", "pull"])
        assert {word for word in words if word.startswith("--")} <= options


def test_kserve_gets_the_same_server(cases: dict[str, Case]) -> None:
    uris = {}
    for name in ("image", "release"):
        runtime, service = cases[f"gpu/{name}/kserve"].layer.merge()
        uris[name] = service["spec"]["predictor"]["model"]["storageUri"]
    assert uris == {
        "image": f"oci+native://{IMAGE.image}",
        "release": f"s3://bucket/models/releases/{RELEASE}",
    }
    (server,) = runtime["spec"]["containers"]
    assert server["name"] == "kserve-container"
    assert {"--model-repository=/mnt/models", "--http-port=8080", "--grpc-port=9000"} <= set(server["args"])
    assert [port["containerPort"] for port in server["ports"]] == [8080, 9000, 8002]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    predictor = service["spec"]["predictor"]
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert predictor["terminationGracePeriodSeconds"] == PAUSE_S + STOP_TIMEOUT_S + 10
    assert predictor["affinity"]
    assert predictor["minReplicas"] == predictor["maxReplicas"] == 2  # nothing there measures a GPU
    assert cases["cpu/image/kserve"].layer.merge()[1]["spec"]["predictor"]["scaleMetric"] == "cpu"


def test_kserve_reads_no_channel(repositories: dict[str, Path]) -> None:
    served = describe_served(repositories["cpu"], SOURCES["channel"])
    with pytest.raises(DeployError, match="the channel production is none"):
        kserve.make_layer(served, Scaling())


@pytest.mark.parametrize(
    "source",
    [
        SOURCES["direct"],
        DirectSource(url="s3://store.example:9000/bucket/models"),
        DirectSource(url="as://account/container/models"),
        ReleaseSource(url="az://account/container/models", puller="registry.example/trtgen:1", release=RELEASE),
    ],
)
def test_kserve_reads_no_address_with_a_server_in_it_and_none_of_azure(
    repositories: dict[str, Path], source: DirectSource | ReleaseSource
) -> None:
    served = describe_served(repositories["cpu"], source)
    with pytest.raises(DeployError, match=f"KServe cannot read {source.url}") as caught:
        kserve.make_layer(served, Scaling())
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_kserve_reads_a_bucket() -> None:
    for url in ("s3://bucket/models", "gs://bucket"):
        assert DirectSource(url=url).storage_uri == url


def test_what_waits_is_counted_for_the_members(cases: dict[str, Case]) -> None:
    """Never for the ensemble, which clients call; its own count is always 0."""
    needs = cases["cpu/image/base"].served.needs
    assert (needs.models, needs.members) == (("demo",), ("demo_classifier", "demo_preprocess"))
    trigger = find(cases["cpu/image/overlays/keda"].layer.merge(), "ScaledObject")["spec"]["triggers"][0]
    where = 'namespace="vision", job="demo", model=~"demo_classifier|demo_preprocess"'
    assert trigger["metadata"]["query"] == f"sum(nv_inference_pending_request_count{{{where}}})"
    assert trigger["metadata"]["threshold"] == str(needs.instances) == "3"  # 2 that decode, 1 with the network
    monitor = find(cases["cpu/image/overlays/keda"].layer.merge(), "PodMonitor")["spec"]
    assert monitor["jobLabel"] == "app.kubernetes.io/name"  # which makes the job of the query


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (apt-get install prometheus)")
def test_the_query_is_promql(cases: dict[str, Case], tmp_path: Path) -> None:
    served = replace(
        cases["cpu/image/base"].served, needs=replace(cases["cpu/image/base"].served.needs, members=("a.b",))
    )
    rules = {"groups": [{"name": "g", "rules": [{"record": "waiting", "expr": make_query(served)}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    result = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_memory_follows_from_the_instances(tmp_path: Path, edit: Callable[[Path, str, str], None]) -> None:
    """Two processes that decode take a batch of 32 images of 4 MiB each, and its pixels."""
    repository = write_cpu(tmp_path)
    needs = read_needs(repository)
    batch = 32 * (4 * MIB + 96 * 96 * 3)
    assert needs.shared_bytes == -(-2 * (MIB + batch) // (64 * MIB)) * 64 * MIB
    process = 192 * MIB + 4 * 50_000_000  # a canvas of the recipe's max_pixels
    assert needs.memory_bytes == -(-(needs.shared_bytes + GIB + 2 * process) // (256 * MIB)) * 256 * MIB
    assert (needs.cores, needs.gpu) == (4, False)
    edit(repository / "demo_preprocess" / "config.pbtxt", "count: 2", "count: 8")
    more = read_needs(repository)
    assert more.shared_bytes == -(-8 * (MIB + batch) // (64 * MIB)) * 64 * MIB
    assert more.memory_bytes - needs.memory_bytes > 6 * process + more.shared_bytes - needs.shared_bytes - 256 * MIB
    assert (more.cores, more.instances) == (16, 9)
    edit(repository / "demo_preprocess" / "config.pbtxt", "num_versions: 1", "num_versions: 2")
    assert read_needs(repository).instances == 17  # each version has processes of its own
    edit(repository / "demo_preprocess" / "config.pbtxt", "max_batch_size: 32", "max_batch_size: 512")
    for layer in make_layers(describe_served(repository, IMAGE), Scaling()):  # nearly all of it shared memory
        refuse_problems(Manifests(objects=layer.merge(), members=read_needs(repository).members))
    edit(repository / "demo_preprocess" / "config.pbtxt", "max_batch_size: 512", "max_batch_size: 32")
    edit(
        repository / "demo_preprocess" / "config.pbtxt",
        'value { string_value: "33554432" }',
        'value { string_value: "1048576" }',
    )
    assert read_needs(repository).shared_bytes < more.shared_bytes  # no image is larger than the recipe lets in


def test_a_gpu_is_asked_for_and_found_by_the_passport(cases: dict[str, Case]) -> None:
    pod = get_pod(cases["gpu/image/overlays/gpu"].layer.merge())
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in resources["requests"]
    assert list_capabilities(pod) == [{"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}]
    without, with_gpu = (cases[f"{one}/image/base"].served.needs.memory_bytes for one in ("cpu", "gpu"))
    assert with_gpu == without + 2 * GIB  # CUDA's libraries and contexts
    assert "affinity" not in get_pod(cases["gpu/image/base"].layer.merge())


def list_capabilities(pod: dict[str, Any]) -> list[dict[str, str]]:
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [
        {one["key"]: ("> " if one["operator"] == "Gt" else "") + one["values"][0] for one in term["matchExpressions"]}
        for term in required["nodeSelectorTerms"]
    ]


def test_plans_for_several_gpus(tmp_path: Path, edit: Callable[[Path, str, str], None]) -> None:
    """A plan for each capability in one model: any of these nodes will do."""
    repository = write_gpu(tmp_path)
    config = repository / "demo_classifier" / "config.pbtxt"
    with config.open("a") as text:
        for capability in ("8.9", "12.0", "9.0"):
            text.write(f'cc_model_filenames {{ key: "{capability}" value: "model.sm{capability}.plan" }}\n')
    assert read_needs(repository).capabilities == ("8.9", "9.0", "12.0")
    second = write_config(repository / "second", backend="tensorrt", instances="count: 1 kind: KIND_GPU")
    plan = add_plan(second, compute_capability="9.0")
    assert read_needs(repository).capabilities == ("9.0",)  # both models have to run
    add_plan(second, compute_capability="7.5")
    with pytest.raises(
        DeployError, match=r"no GPU runs every plan of .*demo_classifier/1: 8\.9, 9\.0, 12\.0; second/1: 7\.5"
    ):
        read_needs(repository)
    plan.with_name("model.plan.json").unlink()
    needs = read_needs(repository)
    assert needs.unknown_plans == (plan,)
    assert needs.capabilities == ("8.9", "9.0", "12.0")


def test_plans_for_ampere_and_later(tmp_path: Path) -> None:
    repository = write_gpu(tmp_path, hardware_compatibility="ampere-plus", compute_capability="8.6")
    layers = make_layers(describe_served(repository, IMAGE), Scaling())
    assert list_capabilities(get_pod(layers[1].merge())) == [{"nvidia.com/gpu.compute.major": "> 7"}]
    second = write_config(repository / "second", backend="tensorrt", instances="count: 1 kind: KIND_GPU")
    add_plan(second, compute_capability="7.5")
    with pytest.raises(DeployError, match=r"demo_classifier/1: 8\.0 or later; second/1: 7\.5"):
        read_needs(repository)
    add_plan(second, compute_capability="9.0")
    assert read_needs(repository).capabilities == ("9.0",)


def test_a_default_plan_for_ampere_and_later_beside_others(
    tmp_path: Path, edit: Callable[[Path, str, str], None]
) -> None:
    repository = write_gpu(tmp_path, hardware_compatibility="ampere-plus", compute_capability="8.6")
    config = repository / "demo_classifier" / "config.pbtxt"
    with config.open("a") as text:
        for capability in ("7.5", "9.0"):
            text.write(f'cc_model_filenames {{ key: "{capability}" value: "model.sm{capability}.plan" }}\n')
    needs = read_needs(repository)
    assert (needs.capabilities, needs.ampere_or_later) == (("7.5",), True)
    layers = make_layers(describe_served(repository, IMAGE), Scaling())
    turing = {"nvidia.com/gpu.compute.major": "7", "nvidia.com/gpu.compute.minor": "5"}
    assert list_capabilities(get_pod(layers[1].merge())) == [turing, {"nvidia.com/gpu.compute.major": "> 7"}]
    second = write_config(repository / "second", backend="tensorrt", instances="count: 1 kind: KIND_GPU")
    for capability, of_both in (("8.9", ("8.9",)), ("7.5", ("7.5",)), ("9.0", ("9.0",))):
        add_plan(second, compute_capability=capability)
        needs = read_needs(repository)
        assert (needs.capabilities, needs.ampere_or_later) == (of_both, False)
    add_plan(second, compute_capability="8.0", hardware_compatibility="ampere-plus")
    needs = read_needs(repository)
    assert (needs.capabilities, needs.ampere_or_later) == ((), True)
    edit(config, 'key: "7.5"', 'key: "7"')
    with pytest.raises(
        DeployError, match=r"config\.pbtxt names a plan for the compute capability '7', and one such as"
    ):
        read_needs(repository)


def deploy(repository: Path, output: Path, *options: str, command: str = "kubernetes") -> int:
    given = ["--repository", str(repository), "--output", str(output), *options]
    return main(["deploy", command, *given])


IMAGE_OPTION = ("--repository-image", "registry.example/models:7")


def test_the_command_writes_only_what_changes(
    repositories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deploy"
    assert deploy(repositories["cpu"], output, *IMAGE_OPTION) == 0
    said = capsys.readouterr()
    assert f"create    {output / 'base' / 'deployment.yaml'}" in said.out
    assert f"kubectl apply --dry-run=server -k {output / 'overlays' / 'cpu'}" in said.err
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.yaml")}
    assert deploy(repositories["cpu"], output, *IMAGE_OPTION) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"identical"}
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.yaml")} == before
    own = output / "overlays" / "own" / "kustomization.yaml"
    own.parent.mkdir()
    own.write_text("resources: [../keda]\n")
    assert deploy(repositories["gpu"], output, *IMAGE_OPTION) == 0
    changes = dict(line.split()[::-1] for line in capsys.readouterr().out.splitlines())
    assert changes[str(output / "overlays" / "cpu" / "autoscaler.yaml")] == "remove"
    assert changes[str(output / "overlays" / "gpu" / "kustomization.yaml")] == "create"
    assert changes[str(output / "base" / "services.yaml")] == "identical"
    assert changes[str(output / "base" / "deployment.yaml")] == "update"
    assert sorted(path.name for path in (output / "overlays").iterdir()) == ["gpu", "keda", "monitoring", "own"]
    assert own.read_text() == "resources: [../keda]\n"


def test_an_edited_file_is_not_overwritten(
    repositories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(repositories["cpu"], tmp_path, *IMAGE_OPTION) == 0
    edited = tmp_path / "base" / "deployment.yaml"
    edited.write_text(edited.read_text().replace("maxSurge: 1", "maxSurge: 2"))
    before = {path: path.read_text() for path in tmp_path.rglob("*.yaml")}
    capsys.readouterr()
    assert deploy(repositories["cpu"], tmp_path, *IMAGE_OPTION, "--namespace", "other") == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path} has files that were edited, or made by others: base/deployment.yaml; nothing" in said
    assert "(--discard-edits)" in said
    assert {path: path.read_text() for path in tmp_path.rglob("*.yaml")} == before
    assert deploy(repositories["cpu"], tmp_path, *IMAGE_OPTION, "--namespace", "other", "--discard-edits") == 0
    assert "maxSurge: 1" in edited.read_text()


@pytest.mark.parametrize("output", ["a file", "closed"])
def test_a_folder_that_cannot_be_written(
    repositories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (tmp_path / "a file").write_text("")
    place = Path("/proc/closed") if output == "closed" else tmp_path / output
    assert deploy(repositories["cpu"], place, *IMAGE_OPTION) == 1
    assert re.search(
        r"error: .* cannot be written: .*\nhint: name another folder \(--output DIR\)", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "give one of --repository-image, --release and --direct"),
        ((*IMAGE_OPTION, "--direct", "s3://a/b"), 2, "give one of"),
        (("--release", "s3://a/b"), 2, "--release needs one of --channel and --release-id"),
        (("--release", "s3://a/b", "--channel", "c", "--release-id", "i"), 2, "--release needs one of"),
        (("--direct", "s3://a/b", "--channel", "c"), 2, "go with --release"),
        ((*IMAGE_OPTION, "--secret", "store"), 2, "--secret goes with --release and --direct"),
        (("--repository-image", "models"), 1, "the image models has no tag that says which it is"),
        (("--repository-image", "models:latest"), 1, "(--repository-image IMAGE)"),
        ((*IMAGE_OPTION, "--image", "registry.example/triton:prod"), 1, "does not say its release"),
        ((*IMAGE_OPTION, "--image", "triton:24.10"), 1, "release 24.10 can be taken over"),
        ((*IMAGE_OPTION, "--name", "Demo_1"), 1, "'Demo_1' is not a valid name in Kubernetes"),
        ((*IMAGE_OPTION, "--namespace", "1e3"), 1, "'1e3' is not a valid name"),
        ((*IMAGE_OPTION, "--min-replicas", "9"), 1, "at most 8 pods, but at least 9"),
        (("--direct", "s3://host:99999/b"), 1, "has no valid server or port"),
        (("--direct", "s3://[x/y"), 1, "s3://[x/y has no valid server or port"),
        (("--direct", "models"), 1, "is not a URL"),
        (("--direct", "https://store/models"), 1, "https://store/models is not a URL that Triton reads"),
        (("--direct", ""), 1, "'' is not a URL"),
        (("--repository-image", ""), 1, "the image '' has no tag that says which it is"),
        (("--repository-image", ""), 1, "(--repository-image IMAGE)"),
        (("--release", "https://a/b", "--channel", "c"), 1, "https://a/b is not a valid address of a bucket"),
        (("--release", "file:///srv", "--channel", "c"), 1, "file:///srv is not a valid address of a bucket"),
        (
            ("--release", "s3://http://a:9/b", "--channel", "c"),
            1,
            "AWS_ENDPOINT_URL in the Secret names a server",
        ),
        (("--release", "", "--channel", "c"), 1, "'' is not a valid address of a bucket"),
        (("--release", "s3://abc/d", "--channel", "No"), 1, "'No' is not a valid name of a channel"),
        (("--release", "s3://abc/d", "--release-id", "7"), 1, "'7' is not the id of a release"),
        (("--release", "s3://abc/d", "--release-id", "7"), 1, "choose one of those: trtgen release list s3://abc/d"),
        ((*IMAGE_OPTION, "--store-port", "9000"), 2, "--store-port goes with --release and --direct"),
        (("--direct", "s3://a/b", "--store-port", "65536"), 2, "less than or equal to 65535"),
        (("--direct", "s3://a/b", "--secret", "My Secret"), 1, "(--secret NAME)"),
    ],
)
def test_bad_options(
    repositories: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    assert deploy(repositories["cpu"], tmp_path / "deploy", *options) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "deploy").exists()


def test_ports_of_the_store(repositories: dict[str, Path], tmp_path: Path) -> None:
    ports = ("--store-port", "9000", "--store-port", "80", "--store-port", "9000")
    for source in (("--release", "s3://bucket/models", "--channel", "production"), ("--direct", "s3://bucket/models")):
        assert deploy(repositories["cpu"], tmp_path, *source, *ports) == 0
        policy = yaml.safe_load((tmp_path / "base" / "network-policy.yaml").read_text())
        expected = [{"protocol": "TCP", "port": port} for port in (9000, 80)]
        assert policy["spec"]["egress"][1] == {"ports": expected}


@pytest.mark.parametrize("text", ["garbage {{", ""])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    repository = write_cpu(tmp_path)
    config = repository / "demo_preprocess" / "config.pbtxt"
    config.write_text(text)
    assert deploy(repository, tmp_path / "deploy", *IMAGE_OPTION) == 1
    said = capsys.readouterr().err
    assert f"error: {config} is empty or no model configuration" in said
    assert f"trtgen doctor {repository}" in said
    assert not (tmp_path / "deploy").exists()


def test_no_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy(tmp_path / "none", tmp_path / "deploy", *IMAGE_OPTION) == 1
    assert "there is no model repository" in capsys.readouterr().err


def test_kserve_by_command(repositories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--release", "s3://bucket/models", "--release-id", RELEASE, "--name", "pictures")
    assert deploy(repositories["gpu"], tmp_path, *options, command="kserve") == 0
    said = capsys.readouterr()
    assert "serving-runtime.yaml" in said.out
    assert f"kubectl apply --dry-run=server -k {tmp_path / 'kserve'}" in said.err
    assert "one GPU more than pods is needed" in said.err
    service = yaml.safe_load((tmp_path / "kserve" / "inference-service.yaml").read_text())
    assert service["spec"]["predictor"]["model"]["runtime"] == service["metadata"]["name"] == "pictures"


@pytest.mark.parametrize("names", [["ResNet_50.a1"], ["a", "b"]])
def test_names(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_config(tmp_path / name)
    expected = "resnet-50-a1" if len(names) == 1 else "triton"
    assert describe_served(tmp_path, IMAGE).name == expected


@pytest.fixture(scope="module")
def pod(built_demo: Path) -> Iterator[Pod]:
    """The container of the manifests, its arguments run by the pip server."""
    with Pod(built_demo) as running:
        yield running


def ask(port: int, path: str, *, method: str = "GET") -> tuple[int, str]:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, headers={OWNER_HEADER: "$key"})  # the shell has put another in its place
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def make_photographs(count: int) -> NDArray[np.object_]:
    """Return JPEGs of about 4 MiB, [count, 1]: noise does not compress."""
    noise = np.random.default_rng(0).integers(0, 256, (1960, 1960, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="JPEG", quality=93)
    assert 3.6 * MIB < len(stream.getvalue()) < 4 * MIB
    return np.array([[stream.getvalue()]] * count, np.object_)


@pytest.mark.server
def test_the_container_answers_and_is_closed(pod: Pod) -> None:
    with Clients(f"127.0.0.1:{pod.ports.grpc}", count=1) as clients:
        assert wait_until(lambda: clients.count()["OK"] > 2)
    assert clients.count().keys() == {"OK"}
    assert ask(pod.ports.http, "/v2/repository/index", method="POST")[0] == 403
    assert [ask(pod.ports.http, path)[0] for path in (LIVE, READY)] == [200, 200]


@pytest.mark.server
def test_the_query_names_what_the_server_counts(pod: Pod, built_demo: Path) -> None:
    _, text = ask(pod.ports.metrics, "/metrics")
    counted = set(re.findall(r'nv_inference_pending_request_count\{model="([^"]+)"', text))
    assert set(read_needs(built_demo).members) == counted - {"demo"}


@pytest.mark.server
def test_the_largest_batches_fit_into_memory(pod: Pod, built_demo: Path) -> None:
    """Of photographs of 4 MiB: their shared memory grows, but not beyond what is counted for it."""
    needs = read_needs(built_demo)
    regions = Path("/dev/shm").glob
    with grpc.InferenceServerClient(f"127.0.0.1:{pod.ports.grpc}") as client:
        images = make_photographs(8)
        tensor = grpc.InferInput("IMAGE", list(images.shape), "BYTES")
        tensor.set_data_from_numpy(images)
        for _ in range(3):
            assert client.infer("demo", [tensor]).as_numpy("PROBABILITIES").shape == (8, 10)
    taken = sum(path.stat().st_size for path in regions(f"{pod.prefix}_*"))
    counted = MIB + 8 * (4 * MIB + 96 * 96 * 3)  # of the one process that decodes
    assert 0.9 * counted < taken - MIB < counted < needs.shared_bytes  # the pip server runs the network in one, too
    assert measure_pss(pod.pid) < needs.memory_bytes


@pytest.mark.server
@pytest.mark.slow
def test_clients_see_a_pod_end_without_a_pause_and_not_with_one(built_demo: Path) -> None:
    """The same as in the manifests, but for shorter times: a pause that is longer than connections last."""
    hurried = Way(pause_s=0).run(built_demo)
    assert hurried["NOT_FOUND"] > 20
    patient = Way(pause_s=5, connection_age_s=2, held_s=2, resolved_s=0.5).run(built_demo)
    assert patient.keys() == {"OK"}
    assert patient["OK"] > 100
