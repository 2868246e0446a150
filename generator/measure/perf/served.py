"""What a running server has to measure: an ensemble (or one model) and its members, read from the server itself."""

from __future__ import annotations

import http.client
import importlib
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError
from generator.triton.check import parse_config
from generator.triton.fused import NETWORK_BACKEND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredModel:
    """One model to measure.

    `image_input` is the name of its one BYTES input, None for a model that takes tensors. `members` are the models an
    ensemble calls, in its order; empty for a plain model. `max_batch_size` is 0 for a model without a batch axis,
    `has_open_outputs` whether its configuration leaves the size of an output open (strings, dims of -1), `is_fused`
    whether it is a fused model of trtgen's, which decodes and runs the network by itself. `instances` are those on all
    of its GPUs. `queue_delay_us` is how long a request may wait for others to fill a batch.
    """

    name: str
    image_input: str | None
    members: tuple[str, ...]
    max_batch_size: int = 0
    has_open_outputs: bool = False
    on_cpu: bool = False
    is_fused: bool = False
    instances: int = 1
    queue_delay_us: int = 0


def find_address(url: str) -> str:
    """Return `url` (`host:port`) with the address that answers in place of a name of this machine.

    perf_analyzer opens a connection for every sixth request in flight and its gRPC looks the name up for each of them,
    IPv6 included: where /etc/hosts has `localhost` for IPv4 only, each waits for the DNS server while it measures.
    Another machine keeps its name: a proxy in front of it may choose by name.
    """
    host, _, port = url.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S) as connection:
            address = ipaddress.ip_address(connection.getpeername()[0])
    except OSError:
        return url  # who asks there next says why nobody answers
    if not address.is_loopback:
        return url
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def count_cores(url: str) -> int | None:
    """Return how many cores the server at `url` (`host:port`) may use; None where it is on another machine."""
    try:
        local = ipaddress.ip_address(url.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:  # a name
        local = False
    return len(os.sched_getaffinity(0)) if local else None


def read_models(protocol: str, url: str, name: str | None) -> tuple[str, list[MeasuredModel]]:
    """Return the server's name and version, and what it serves: the model `name` first, then its members.

    Args:
        protocol: `grpc` or `http`.
        url: `host:port`.
        name: None takes the one ensemble that is served.

    Raises:
        PerfError: No server, the model is not ready, or the choice is not clear.
    """
    from tritonclient.utils import InferenceServerException

    triton = importlib.import_module(f"tritonclient.{protocol}")
    limits = {"connection_timeout": _TIMEOUT_S, "network_timeout": _TIMEOUT_S} if protocol == "http" else {}
    options = {"as_json": True, "client_timeout": _TIMEOUT_S} if protocol == "grpc" else {}
    client = triton.InferenceServerClient(url, **limits)
    try:
        return _read(lambda question, *arguments: getattr(client, question)(*arguments, **options), url, name)
    except (InferenceServerException, OSError, http.client.HTTPException) as error:
        if "restricted" in str(error):  # hardened, as by `trtgen harden`
            raise PerfError(
                f"{url} hides what a measurement reads, the APIs model-config and statistics: {error}",
                hint="measure a server of the same repository that shows them",
                command=("serve",),
            ) from error
        tls = " (a server that asks for TLS closes such connections)" if "Socket closed" in str(error) else ""
        raise PerfError(
            f"no Triton server answers {protocol} at {url}: {error}{tls}",
            hint="give its address and protocol, or start one",
            command=("serve",),
        ) from error
    finally:
        client.close()


def check_batch_size(models: Sequence[MeasuredModel], batch_size: int) -> None:
    """Refuse requests of more images than one of `models` takes.

    Raises:
        PerfError: Naming the model and its limit.
    """
    for model in models:
        limit = max(model.max_batch_size, 1)
        if batch_size > limit:
            raise PerfError(
                f"{model.name} takes batches of at most {limit} (max_batch_size: {model.max_batch_size}), "
                f"a request was to have {batch_size}",
                hint=f"send {limit} images at most, or build the model with a larger batch.max",
                fields={"batch_size": limit},
            )


def read_repository(root: Path, name: str | None) -> list[MeasuredModel]:
    """Return what a server of the repository `root` would have, as `read_models` does.

    Raises:
        PerfError: No such model, or the choice is not clear.
        ConfigError: A configuration cannot be read.
    """
    from google.protobuf import json_format

    def read(model: str) -> MeasuredModel:
        text = (root / model / "config.pbtxt").read_text(encoding="utf-8")
        config = json_format.MessageToDict(parse_config(model, text), preserving_proto_field_name=True)
        return _read_config({"name": model, **config})

    present = sorted(path.parent.name for path in root.glob("*/config.pbtxt"))
    return _choose(read, present, name, f"the repository {root} holds")


def _read(ask: Callable[..., Any], url: str, name: str | None) -> tuple[str, list[MeasuredModel]]:
    from tritonclient.utils import InferenceServerException

    about = ask("get_server_metadata")
    try:
        index = ask("get_model_repository_index")
    except InferenceServerException as error:  # as with `trtgen serve --model-control explicit`
        if name is None:
            raise PerfError(
                f"{url} does not list its models: {error}", hint="choose one by its name", fields={"model": None}
            ) from error
        index = [{"name": name, "state": "READY"}]
    entries = index.get("models", []) if isinstance(index, dict) else index
    ready = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})

    def read(model: str) -> MeasuredModel:
        answer = ask("get_model_config", model)
        return _read_config(answer.get("config", answer))

    if name is not None and name not in ready:
        raise PerfError(f"the model {name!r} is not ready at {url}", hint=f"ready models: {', '.join(ready) or 'none'}")
    return f"{about['name']} {about['version']}", _choose(read, ready, name, f"{url} serves")


def _choose(
    read: Callable[[str], MeasuredModel], present: Sequence[str], name: str | None, where: str
) -> list[MeasuredModel]:
    """Return the model `name`, or the one ensemble, and its members."""
    if name is None:
        ensembles = [model.name for model in map(read, present) if model.members or model.is_fused]
        if len(ensembles) != 1:
            names = ", ".join(ensembles or present) or "nothing at all"
            raise PerfError(
                f"{where} {len(ensembles)} ensembles, not one ({names})",
                hint="choose one by its name",
                fields={"model": None},
            )
        name = ensembles[0]
    elif name not in present:
        raise PerfError(f"{where} no model {name!r}", hint=f"its models: {', '.join(present) or 'none'}")
    model = read(name)
    return [model, *map(read, model.members)]


def _read_config(config: dict[str, Any]) -> MeasuredModel:
    inputs = config["input"]
    is_image = len(inputs) == 1 and inputs[0]["data_type"] == "TYPE_STRING"
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    groups = config.get("instance_group", [])
    return MeasuredModel(
        name=config["name"],
        image_input=inputs[0]["name"] if is_image else None,
        members=tuple(dict.fromkeys(step["model_name"] for step in steps)),
        max_batch_size=int(config.get("max_batch_size", 0)),
        has_open_outputs=any(
            output["data_type"] == "TYPE_STRING" or any(int(dim) < 0 for dim in output["dims"])
            for output in config["output"]
        ),
        on_cpu={group.get("kind") for group in groups} == {"KIND_CPU"},
        is_fused=NETWORK_BACKEND in config.get("parameters", {}),
        instances=sum(int(group.get("count", 1)) * max(len(group.get("gpus", [])), 1) for group in groups) or 1,
        queue_delay_us=int(config.get("dynamic_batching", {}).get("max_queue_delay_microseconds", 0)),
    )
