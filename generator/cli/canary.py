"""`trtgen canary`."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.console import fail, say
from generator.cli.options import RepositoryOption
from generator.errors import ServerError, VerificationError
from generator.signals import EndedBySignal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.canary.asking import Reading

# Canaries that start together, or go by the clock, are not to ask at the same time.
_JITTER = 0.1
_LONGEST_START_S = 30.0
_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def _parse_interval(text: str) -> float:
    """Return the seconds of a text such as `30s`, `5m` or `1h`."""
    found = re.fullmatch(r"(\d{1,6})([smh])", text)
    if found is None or int(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not an interval such as 30s, 5m or 1h")
    return float(found[1]) * _UNITS_S[found[2]]


def canary(
    url: Annotated[str, typer.Argument(metavar="HOST:PORT", help="gRPC address of the server.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Models; all if none.")] = None,
    *,
    repository: RepositoryOption = Path("model_repository"),
    every_s: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="TIME",
            parser=_parse_interval,
            help="Go on, and ask as often as that: 30s, 5m, 1h. [default: once]",
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, metavar="S", help="Seconds for each request.")
    ] = 10.0,
    secrets: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For TLS: the folder with ca.crt, client.crt and client.key.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="With --every: answer Prometheus here; 0: a free one."),
    ] = None,
    address: Annotated[str, typer.Option(metavar="IPV4", help="What --metrics-port binds to.")] = "127.0.0.1",
    metrics_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the metrics here, for node_exporter's textfile collector (.prom)."),
    ] = None,
) -> None:
    """Ask a running server the images that its models were proved with, and compare: does it still answer so?

    It needs records and references of the repository, not its graphs, and neither torch nor onnxruntime.

    Example: trtgen canary triton:8001 --every 5m --metrics-port 9810
    """
    from generator.canary.asking import ask_model, list_models
    from generator.canary.metrics import MetricsServer, format_metrics, write_metrics
    from generator.files import expand_home
    from generator.gate.client import GrpcAddress

    if metrics_port is not None and every_s is None:
        raise typer.BadParameter("--metrics-port goes with --every: nobody would be there to answer")
    root = expand_home(repository).resolve()
    server = GrpcAddress(url=url, secrets=secrets)
    models = list_models(root, names or [])

    def ask() -> list[Reading]:
        return [ask_model(root, model, server, timeout_s=timeout_s) for model in models]

    with contextlib.ExitStack() as stack:
        endpoint = None
        if metrics_port is not None:
            endpoint = stack.enter_context(MetricsServer(address, metrics_port))
            say(f"metrics: http://{endpoint.url}/metrics")

        def publish(readings: Sequence[Reading]) -> None:
            text = format_metrics(readings)
            if endpoint is not None:
                endpoint.publish(text)
            if metrics_file is not None:
                write_metrics(metrics_file, text)

        if every_s is None:
            readings = ask()
            _print_table(readings)
            _publish_once(publish, readings, metrics_file)
            _raise_for_status(readings)
        else:
            say(f"{url} is asked for {', '.join(models)} every {every_s:g} s")
            try:
                _watch(ask, publish, every_s)
            except EndedBySignal as end:
                if end.number != signal.SIGTERM:
                    raise
                say("ended by SIGTERM")  # which is how a service ends


def _print_table(readings: Sequence[Reading]) -> None:
    width = max((len(result.stage) for reading in readings for result in reading.results), default=0)
    for reading in readings:
        for result in reading.results:
            text = result.reason if result.status != "proved" else result.measured
            print(f"{reading.model}  {result.stage:{width}}  {result.status:11} {text}")
        if reading.error is not None:
            print(f"{reading.model}  {'':{width}}  {'no answer':11} {reading.error.message}")


def _publish_once(publish: Callable[[Sequence[Reading]], None], readings: Sequence[Reading], path: Path | None) -> None:
    try:
        publish(readings)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}"
        raise ServerError(msg, hint="name a file in a folder that is there", fields={"metrics_file": None}) from error


def _raise_for_status(readings: Sequence[Reading]) -> None:
    for reading in readings:
        if reading.error is not None:
            raise reading.error
    if wrong := [line for reading in readings for line in _describe(reading)]:
        hint = "find out what changed at the server since it was proved; `verify` also tries the graph and the plan"
        raise VerificationError("what is served is not what was proved:\n  " + "\n  ".join(wrong), hint=hint)


def _watch(
    ask: Callable[[], list[Reading]],
    publish: Callable[[Sequence[Reading]], None],
    every_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Ask again and again, and say what has changed since the last time."""
    before: dict[str, object] = {}
    unwritten = ""
    wait_s = random.uniform(0, min(_JITTER * every_s, _LONGEST_START_S))  # noqa: S311 - nobody must not foresee it
    while True:
        sleep(wait_s)
        readings = ask()
        for reading in readings:
            # figures in the reasons, and the images that they name, may differ each time
            error = reading.error and (type(reading.error), re.sub(r"[\d.]+", "", reading.error.message))
            state = (error, [(result.stage, result.status) for result in reading.unproved])
            if state != before.get(reading.model):
                _tell(reading)
            before[reading.model] = state
        try:
            publish(readings)
            unwritten = ""
        except OSError as error:
            if unwritten != str(error):
                fail(f"the metrics cannot be written: {error}")
            unwritten = str(error)
        wait_s = every_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - as above


def _tell(reading: Reading) -> None:
    if reading.is_proved:
        say(f"{reading.model}: proved, in {reading.seconds:.1f} s")
    for line in _describe(reading):
        fail(line)


def _describe(reading: Reading) -> list[str]:
    """Say what is wrong with a reading: a line for each stage, or why there is no answer."""
    if reading.error is not None:
        return [f"{reading.model}: {reading.error.message}"]
    return [
        f"{reading.model}: {result.stage} {result.status}: {result.reason}"
        + (f" (likely cause: {result.cause})" if result.cause else "")
        for result in reading.unproved
    ]
