"""What a running tritonserver says about itself over HTTP, with the standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass

from generator.errors import ServerError

__all__ = ["ModelState", "accepts_connections", "is_ready", "list_models", "read_server_id"]

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One version of one model: `state` is READY, LOADING, UNAVAILABLE or UNLOADING, `reason` says why not READY."""

    name: str
    version: str
    state: str
    reason: str = ""


def is_ready(url: str) -> bool:
    """Tell whether the server answers and every model of its repository is ready."""
    try:
        status, _ = _request(url, "GET", "/v2/health/ready")
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def read_server_id(url: str) -> str | None:
    """Return the name the server was started with, None when nothing answers there."""
    try:
        status, body = _request(url, "GET", "/v2")
    except (OSError, http.client.HTTPException):
        return None
    return str(json.loads(body).get("name")) if status == http.client.OK else None


def list_models(url: str) -> list[ModelState]:
    """Return every model version that the server knows, in the order of their names.

    Raises:
        ServerError: The server does not answer.
    """
    try:
        status, body = _request(url, "POST", "/v2/repository/index")
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"tritonserver at {url} does not answer: {error}", hint="trtgen serve") from error
    if status != http.client.OK:
        raise ServerError(f"tritonserver at {url} does not list its models: HTTP {status}")
    states = [
        ModelState(
            name=str(entry["name"]),
            version=str(entry.get("version", "")),
            state=str(entry.get("state", "UNAVAILABLE")),
            reason=str(entry.get("reason", "")),
        )
        for entry in json.loads(body)
    ]
    return sorted(states, key=lambda state: (state.name, state.version))


def accepts_connections(url: str) -> bool:
    """Tell whether something listens there."""
    host, _, port = url.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False


def _request(url: str, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
