"""Addresses and ports: loopback unless asked otherwise, free ports, and an error that says which one is taken."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from generator.errors import ServerError

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - bound only where it was allowed
_FREE = 0
_MAXIMUM_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The three ports of tritonserver. As a wish, 0 stands for any free one."""

    http: int
    grpc: int
    metrics: int

    def named(self) -> dict[str, int]:
        """Return the ports by the name that the command line uses."""
        return {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}

    @property
    def any_free(self) -> bool:
        """Whether at least one port may be chosen."""
        return _FREE in self.named().values()


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach a server bound to `address`."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def check_address(address: str, *, allow_non_loopback: bool, embedded: bool = True) -> None:
    """Refuse an address that others can reach, unless that was asked for.

    Raises:
        ServerError: The address is neither loopback nor allowed, or it is IPv6.
    """
    if ":" in address:
        msg = f"the address {address} is IPv6; trtgen serves on IPv4"
        raise ServerError(msg, hint="serve on an IPv4 address", fields={"address": "127.0.0.1"})
    if is_loopback(address) or allow_non_loopback:
        return
    reason = "tritonserver trusts everybody who reaches it: neither passwords nor encryption"
    if embedded:
        reason = "the pip tritonserver (release 24.10) lacks the security fixes of later releases"
    hint = "serve in the stock container behind a gateway, or, in a network that you trust, allow other addresses"
    msg = f"{address} can be reached from other machines, and {reason}"
    raise ServerError(msg, hint=hint, fields={"container": True, "allow_non_loopback": True})


def choose_ports(wish: Ports, *, address: str) -> Ports:
    """Return the wished ports, each 0 replaced by a free one.

    Raises:
        ServerError: A wished port is taken, named twice, out of range or not allowed; the message names it.
    """
    given = [port for port in wish.named().values() if port != _FREE]
    if len(set(given)) != len(given):
        raise ServerError(f"the ports {given} are not different from each other", hint="give each of them its own port")
    chosen: dict[str, int] = {}
    with ExitStack() as stack:
        # All are held until the last is chosen, so that no two free ones are the same; the wished ones come first.
        for name, port in sorted(wish.named().items(), key=lambda item: item[1] == _FREE):
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # Without it a port would look taken for a minute after a server that used it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(listener, address, port, name=name)
            chosen[name] = listener.getsockname()[1]
    return Ports(**chosen)


def _bind(listener: socket.socket, address: str, port: int, *, name: str) -> None:
    if not 0 <= port <= _MAXIMUM_PORT:
        raise ServerError(f"the {name} port {port} does not exist", hint="take one up to 65535")
    try:
        listener.bind((address, port))
        listener.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServerError(
                f"the {name} port {port} on {address} is in use by another program",
                hint=f"stop it (ss -ltnp 'sport = :{port}' names it), or take another one",
                fields={f"{name.lower()}_port": None},
            ) from error
        raise ServerError(
            f"cannot listen on {address}:{port}: {error.strerror}",
            hint="take an address of this machine, such as 127.0.0.1, and a port above 1023",
            fields={"address": "127.0.0.1"},
        ) from error
