"""What a running tritonserver says about itself, and which ports it listens on."""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S, _LOAD_TIMEOUT_S = 5.0, 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One version of one model: `state` is READY, LOADING, UNAVAILABLE or UNLOADING, `reason` says why not READY."""

    name: str
    version: str = ""
    state: str = "UNAVAILABLE"
    reason: str = ""


def is_ready(url: str) -> bool:
    """Tell whether the server answers and every model of its repository is ready."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return _request(url, "GET", "/v2/health/ready")[0] == http.client.OK
    return False


def count_pending(metrics_url: str) -> int | None:
    """Return how many requests wait in the queues of all models, None where the server does not say."""
    try:
        status, body = _request(metrics_url, "GET", "/metrics")
    except (OSError, http.client.HTTPException):
        return None
    lines = [line for line in body.decode().splitlines() if line.startswith("nv_inference_pending_request_count{")]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines) if status == http.client.OK else None


def list_models(url: str, *, headers: Mapping[str, str]) -> list[ModelState]:
    """Return every model version that the server knows, in the order of their names.

    Raises:
        ServerError: The server does not answer.
    """
    try:
        status, body = _request(url, "POST", "/v2/repository/index", headers)
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"tritonserver at {url} does not answer: {error}", hint="start the server again") from error
    if status != http.client.OK:
        raise ServerError(
            f"tritonserver at {url} does not list its models: HTTP {status}",
            hint="its repository API is restricted: ask each model by its name",
        )
    states = [ModelState(**entry) for entry in json.loads(body)]
    return sorted(states, key=lambda state: (state.name, state.version))


def find_batch_limit(url: str, name: str, *, headers: Mapping[str, str]) -> int:
    """Return the max_batch_size of a model that is served.

    Raises:
        ServerError: The server does not say.
    """
    try:
        status, body = _request(url, "GET", f"/v2/models/{name}/config", headers)
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"tritonserver at {url} does not answer: {error}", hint="look at its log") from error
    if status != http.client.OK:
        msg = f"tritonserver at {url} does not show the configuration of {name}: HTTP {status}"
        raise ServerError(msg, hint="give its key", fields={"key": None})
    return int(json.loads(body).get("max_batch_size", 0))


def load_model(url: str, name: str, *, headers: Mapping[str, str], body: Mapping[str, object]) -> None:
    """Load a model, or load it again, and wait until it is ready; `body` is that of Triton's repository API.

    Raises:
        ServerError: The server does not answer, or says why it did not.
    """
    path, text = f"/v2/repository/models/{name}/load", json.dumps(body)
    try:
        status, answer = _request(url, "POST", path, headers, text, timeout_s=_LOAD_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"tritonserver at {url} does not answer: {error}", hint="look at its log") from error
    if status != http.client.OK:
        msg = f"{name} was not loaded: {answer.decode(errors='replace')}"
        raise ServerError(msg, hint="look at the server's log")


def find_listening_ports(pid: int) -> set[int]:
    """Return the TCP ports that the process itself listens on; empty once it is gone."""
    import psutil

    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}


def _request(
    url: str,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: str | None = None,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
