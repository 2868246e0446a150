"""Readings as Prometheus's text format: over HTTP, or in a file for node_exporter's textfile collector."""

from __future__ import annotations

import contextlib
import http.server
import threading
from typing import TYPE_CHECKING, NamedTuple

from generator.errors import ServerError
from generator.files import write_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from generator.canary.asking import Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SLOW_READER_S = 10.0


class _Metric(NamedTuple):
    """A gauge with the label `model`; `read` returns None where a reading does not tell it."""

    name: str
    help: str
    read: Callable[[Reading], float | None]


_METRICS = (
    _Metric(
        "trtgen_canary_up",
        "Whether the server was asked the model's proved images and answered all of them, rightly or wrongly.",
        lambda reading: reading.is_answered,
    ),
    _Metric(
        "trtgen_canary_agreement",
        "Share of the images whose answer agrees with the proved one; absent where the server did not answer.",
        lambda reading: reading.agreement,
    ),
    _Metric(
        "trtgen_canary_proved",
        "Whether the answers are within the limits that the model was proved with.",
        lambda reading: reading.is_proved,
    ),
    _Metric(
        "trtgen_canary_last_run_timestamp_seconds",
        "When the model's images were last asked, whether or not they were answered.",
        lambda reading: reading.at_s,
    ),
    _Metric(
        "trtgen_canary_duration_seconds",
        "How long asking and comparing took.",
        lambda reading: reading.seconds,
    ),
)
_RELEASE = ("trtgen_release_info", "The release and the version of the model that the server is compared with.")


def format_metrics(readings: Sequence[Reading]) -> str:
    """Return the last readings, one for each model, as a text that Prometheus reads."""
    lines = []
    for name, text, read in _METRICS:
        lines += _head(name, text)
        for reading in readings:
            if (value := read(reading)) is not None:
                lines.append(f"{name}{_labels(model=reading.model)} {_number(value)}")
    lines += _head(*_RELEASE)
    for reading in readings:
        if reading.expected is not None:
            version = str(reading.expected.version)
            labels = _labels(model=reading.model, release=reading.expected.release, version=version)
            lines.append(f"{_RELEASE[0]}{labels} 1")
    return "\n".join(lines) + "\n"


def _head(name: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} gauge"]


def _labels(**labels: str) -> str:
    parts = []
    for name, value in labels.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        parts.append(f'{name}="{escaped}"')
    return "{" + ",".join(parts) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def write_metrics(path: Path, text: str) -> None:
    """Replace the file at once, so that nobody reads half of it.

    Raises:
        OSError: It cannot be written; the one before stays.
    """
    temporary = write_temporary(path, text.encode())
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class MetricsServer:
    """Answers `GET /metrics` with what was published last, from a thread of its own, inside its context.

    Args:
        address: What to bind to, IPv4.
        port: 0 takes a free one.

    Attributes:
        url: `host:port`.

    Raises:
        ServerError: The port cannot be bound.
    """

    def __init__(self, address: str, port: int) -> None:
        try:
            self._server = http.server.ThreadingHTTPServer((address, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ServerError(
                f"the metrics cannot be served at {address}:{port}: {why}",
                hint="take another port, and an address of this machine",
                fields={"metrics_port": None, "address": None},
            ) from error
        self.url = f"{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self.publish("")

    def publish(self, text: str) -> None:
        """Answer with this text from now on."""
        self._server.text = text.encode()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _SLOW_READER_S

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(http.HTTPStatus.NOT_FOUND, "there is /metrics only")
            return
        body: bytes = self.server.text  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):  # who asked is gone
            self.send_response(http.HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing of each scrape."""
