"""A real Prometheus scrapes a real tritonserver: the metrics are those of the list, alerts fire on what happens."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import threading
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from generator.monitoring.files import SCRAPE, make_files
from generator.monitoring.metrics import METRICS
from generator.monitoring.scrape import Targets
from generator.monitoring.watched import find_watched
from generator.server.embedded import EmbeddedServer
from generator.server.hardening import OWNER_HEADER
from generator.server.ports import Ports, choose_ports
from generator.server.stubs import find_stubs
from generator.written import write_files
from tests.server_parts import wait_until
from tests.test_monitoring import QUICK, find_dashboard_expressions
from tests.tiny_repository import build_tiny_repository, make_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

BAD, GOOD = b"no image", make_image("red")
SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? \S+$", re.MULTILINE)


class Prometheus:
    """A Prometheus of its own port and data, asked over its HTTP API."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._url = f"127.0.0.1:{choose_ports(Ports(http=0, grpc=0, metrics=0), address='127.0.0.1').http}"
        program = shutil.which("prometheus")
        assert program is not None
        self._command = [
            program,
            f"--config.file={folder / SCRAPE}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address={self._url}",
            "--log.level=warn",
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self._url}/api/v1/{path}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.URLError:  # it is not there yet
            return {"alerts": [], "result": []}

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now."""
        return list(self._get(f"query?{urllib.parse.urlencode({'query': expression})}")["result"])

    def firing(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the alerts that fire, by name and model."""
        alerts = [alert for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]
        return {(alert["labels"]["alertname"], alert["labels"].get("model", "")): alert for alert in alerts}

    def wait_for(self, *expected: tuple[str, str]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the alerts once all expected ones fire."""
        assert wait_until(lambda: self.firing().keys() >= {*expected}, timeout_s=60), self.firing().keys()
        return self.firing()


@contextlib.contextmanager
def calling(grpc_url: str, *images: bytes, threads: int = 1) -> Iterator[list[str]]:
    """Let clients ask `tiny` for these images in turn without a pause; the list has what was refused."""
    stop, errors = threading.Event(), list[str]()

    def call() -> None:
        with InferenceServerClient(grpc_url) as client:
            while not stop.is_set():
                for image in images:
                    tensor = InferInput("IMAGE", [1, 1], "BYTES")
                    tensor.set_data_from_numpy(np.array([[image]], dtype=object))
                    try:
                        client.infer("tiny", [tensor], client_timeout=30)
                    except InferenceServerException as error:
                        errors.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(threads)]
    for caller in callers:
        caller.start()
    try:
        yield errors
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def check_metrics(page: str) -> None:
    """Compare what a server without a GPU exports with the list."""
    exported: dict[str, set[frozenset[str]]] = {}
    for sample in SAMPLE.finditer(page):
        labels = frozenset(re.findall(r'(\w+)="', sample["labels"] or ""))
        exported.setdefault(sample["name"], set()).add(labels)
    for metric in METRICS:
        if metric.source == "Triton":
            assert exported.get(metric.name) == {frozenset(metric.labels)}, metric.name


@pytest.mark.server
@pytest.mark.slow
def test_alerts_fire_on_what_happens_to_a_real_server(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus here (apt-get install prometheus)")
    root = build_tiny_repository(tmp_path / "models")
    build_tiny_repository(root, name="spare")
    models = find_watched(root)
    with EmbeddedServer(root, explicit=True) as server:
        targets = Targets(metrics=(server.metrics_url,), http=(server.http_url,))
        folder = tmp_path / "monitoring"
        write_files(make_files(models, QUICK, targets), folder)
        with Prometheus(folder, tmp_path / "data") as prometheus:
            with calling(server.grpc_url, GOOD) as errors:
                expression = 'sum(rate(nv_inference_request_success{model="tiny"}[5s])) > 1'
                assert wait_until(lambda: prometheus.query(expression) != [], timeout_s=60)
                with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
                    check_metrics(page.read().decode())
                others = [metric.name for metric in METRICS if metric.source not in ("Triton", "Prometheus")]
                for expression in find_dashboard_expressions(models):
                    if not any(name in expression for name in others):
                        assert prometheus.query(in_grafana(expression)) != [], expression
            assert errors == []
            assert prometheus.firing() == {}

            # Half of the images are bad: the ensemble refuses half, not two thirds, and no member counts a failure.
            with calling(server.grpc_url, GOOD, BAD) as errors:
                alerts = prometheus.wait_for(("EnsembleFails", "tiny"))
                assert wait_until(
                    lambda: 0.45 < float(prometheus.firing()["EnsembleFails", "tiny"]["value"]) < 0.55, timeout_s=30
                ), alerts
            assert prometheus.firing().keys() == {("EnsembleFails", "tiny")}
            assert "cannot be decoded" in errors[0]

            # A model is unloaded.
            with InferenceServerClient(server.grpc_url) as client:
                client.unload_model("spare", headers={f"triton-grpc-protocol-{OWNER_HEADER}": server.secret})
            missing = prometheus.wait_for(("ModelMissing", "spare"))["ModelMissing", "spare"]
            instance = server.metrics_url
            assert missing["annotations"]["summary"] == f"{instance} does not have the model spare"

            # The process of a model dies: the server goes on saying that it is ready.
            (stub,) = [stub for stub, model in find_stubs(server.pid).items() if model == "tiny_preprocess"]
            stub.send_signal(signal.SIGKILL)
            with calling(server.grpc_url, GOOD, threads=4) as errors:
                dead = [(name, "tiny_preprocess") for name in ("ModelFails", "ModelStuck")]
                alerts = prometheus.wait_for(*dead)
                assert alerts[dead[0]]["labels"]["reason"] == "BACKEND"
                with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready") as ready:
                    assert ready.status == 200
            assert "is not healthy" in errors[0]

            server.stop(0)
            down = prometheus.wait_for(("TritonDown", ""))["TritonDown", ""]
            assert down["annotations"]["summary"] == f"{instance} cannot be scraped"
            assert ("TritonGone", "") not in prometheus.firing()


def in_grafana(expression: str) -> str:
    """Put in what Grafana would, with all chosen."""
    for variable, value in {"$__rate_interval": "5s", "$instance": ".*", "$model": ".*"}.items():
        expression = expression.replace(variable, value)
    return expression
