"""One gRPC channel to several servers, which spreads requests, waits and repeats by itself.

The same file stands in `clients/` and in `generator/bulk/`, which cannot import each other; a test compares the two.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# A request waits for a server that is not there, and is repeated, five times at most, where the server did not take it:
# it is busy, or ends. One that ends also says for some seconds that it does not know its models (NOT_FOUND), and
# may take 30 s for it. All of this happens within the request's own deadline.
SERVICE: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.5s",
                "backoffMultiplier": 4,
                "maxBackoff": "20s",
                "retryableStatusCodes": ["UNAVAILABLE", "NOT_FOUND"],
            },
        }
    ],
}
OPTIONS = (
    ("grpc.service_config", json.dumps(SERVICE)),
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),  # a request above this, by default 256 KiB, is never repeated
    ("grpc.max_reconnect_backoff_ms", 2000),  # by default two minutes
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
)
_PROBE_TIMEOUT_S = 2.0


def describe_channel(endpoints: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
    """Return the target and the options of a channel to these servers, `host:port` each.

    One name may stand for several addresses, such as that of a headless service in Kubernetes, and is looked up again
    when servers come and go. Several are looked up once. With TLS, the certificates of all must have the first's name.

    Raises:
        OSError: One of several hosts has no IPv4 address.
    """
    if len(endpoints) == 1:
        return f"dns:///{endpoints[0]}", [*OPTIONS]
    addresses = []
    for endpoint in endpoints:
        host, port = split_endpoint(endpoint)
        try:
            found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name such as a..b
            why = getattr(error, "strerror", None) or error
            raise OSError(f"{endpoint}: no IPv4 address is known of this host: {why}") from error
        addresses += [f"{address[0]!s}:{port}" for *_, address in found]
    # else gRPC expects a certificate of the whole list's name
    return f"ipv4:{','.join(addresses)}", [*OPTIONS, ("grpc.default_authority", endpoints[0])]


def is_reachable(endpoint: str) -> bool:
    """Tell whether anything accepts connections at `host:port`."""
    try:
        socket.create_connection(split_endpoint(endpoint), _PROBE_TIMEOUT_S).close()
    except (OSError, UnicodeError):  # UnicodeError: a name such as a..b
        return False
    return True


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
