"""What a tritonserver is started with, option by option: the one table for the pip server, the container and `harden`.

An option that a release does not know ends tritonserver, so each row says which release has it first (the parser's
tables of the branches r20.01 to r26.08), and what makes up for it where it is missing.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from generator.errors import ServerError
from generator.rules.rule import release_key

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER_HEADER = "trtgen-owner"
PIP_RELEASE, LAST_KNOWN = "24.10", "26.08"
LEAST_RELEASE, FIXED_RELEASE = "25.07", "26.07"
STOP_TIMEOUT_S = 30
KEY = "$key"  # of a shell
DEFAULT_INPUT_BYTES = 64 * 2**20  # Triton's own
# What clients do not need: all groups of release 23.11 to 26.08 but health, metadata and inference.
RESTRICTED_APIS = ("shared-memory", "model-config", "model-repository", "statistics", "trace", "logging")
_RESTRICTED = f"{','.join(RESTRICTED_APIS)}:{OWNER_HEADER}={{key}}"

Use = Literal["always", "tls", "hardened"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of tritonserver.

    `value` is a template: its fields are those of `Values`. `first` is the first release that has it. `without` is what
    to do where a release lacks it. `use` is which servers of ours get it.
    """

    name: str
    value: str = ""
    first: str = "20.01"
    reason: str
    without: str = ""
    use: Use = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What the options' values depend on.

    `secrets` is the folder of certificates and key as tritonserver sees it. `key` is what opens the restricted APIs, or
    the shell's expression for it. `max_connection_age_ms` is when a gRPC connection is told to end.
    """

    address: str
    control: str = "none"
    http_address: str = ""
    secrets: str = ""
    key: str = ""
    max_input_bytes: int = DEFAULT_INPUT_BYTES
    max_connection_age_ms: int = 3_600_000


def _tls(name: str, value: str, first: str, reason: str) -> Option:
    without = "encrypt and authenticate at the proxy"
    return Option(name=name, value=value, first=first, reason=reason, without=without, use="tls")


def _hard(name: str, value: str, first: str, reason: str, without: str = "") -> Option:
    return Option(name=name, value=value, first=first, reason=reason, without=without, use="hardened")


_PUBLISH = "it listens on every interface: publish its port on loopback only, or close it with a firewall"
_PATIENCE = "the proxy closes idle connections"
OPTIONS = (
    Option(name="model-control-mode", value="{control}", reason="whoever may load models may run code"),
    Option(
        name="http-address",
        value="{http_address}",
        first="22.04",
        reason="HTTP has no TLS: this machine or the container's network only",
        without=_PUBLISH,
    ),
    Option(name="grpc-address", value="{address}", first="22.04", reason="who may connect", without=_PUBLISH),
    Option(
        name="metrics-address",
        value="{http_address}",
        first="23.05",
        reason="metrics have neither TLS nor a password",
        without=_PUBLISH,
    ),
    Option(
        name="disable-auto-complete-config",
        first="22.07",
        reason="a gap in config.pbtxt is an error, not a guess",
        without="--strict-model-config=true",
    ),
    Option(name="exit-on-error", value="true", reason="a server that misses a model does not go on"),
    Option(name="strict-readiness", value="true", reason="ready means: every model is"),
    Option(name="exit-timeout-secs", value=str(STOP_TIMEOUT_S), reason="requests under way are answered at the end"),
    Option(
        name="allow-sagemaker",
        value="false",
        first="21.06",
        reason="another way in, which restricted APIs did not cover before 26.03",
        without="it does not exist",
    ),
    Option(
        name="allow-vertex-ai",
        value="false",
        first="21.11",
        reason="the same; AIP_MODE=PREDICTION in the environment would open it",
        without="it does not exist",
    ),
    Option(name="log-format", value="ISO8601", first="22.06", reason="times with date and zone", without="leave it"),
    _tls("grpc-use-ssl", "true", "20.08", "what travels is encrypted"),
    _tls("grpc-server-cert", "{secrets}/server.crt", "20.08", "the server's certificate"),
    _tls("grpc-server-key", "{secrets}/server.key", "20.08", "its key"),
    _tls("grpc-use-ssl-mutual", "true", "21.03", "a client without a certificate is refused"),
    _tls("grpc-root-cert", "{secrets}/ca.crt", "20.08", "who signs the clients' certificates"),
    _hard(
        "http-restricted-api",
        _RESTRICTED,
        "23.11",
        "everything but health, metadata and inference needs a header with the key",
        "the proxy passes health, metadata and inference only; nobody else may reach the HTTP port",
    ),
    _hard(
        "grpc-restricted-protocol",
        _RESTRICTED,
        "23.04",
        "the same for gRPC",
        "the proxy passes health, metadata and inference only",
    ),
    _hard(
        "allow-client-shm",
        "false",
        "26.04",
        "no client registers shared memory; a Python-based backend's own is not protected from it",
        "the group shared-memory is restricted; share no /dev/shm with clients (no --ipc=host)",
    ),
    _hard(
        "http-max-input-size",
        "{max_input_bytes}",
        "25.06",
        "no request is larger than the largest image, as many times as the largest batch",
        "the proxy limits bodies",
    ),
    _hard("grpc-keepalive-time", "60000", "21.08", "a client that is gone is noticed within minutes", _PATIENCE),
    _hard("grpc-keepalive-timeout", "20000", "21.08", "how long it may take to answer a ping", _PATIENCE),
    _hard("grpc-http2-max-ping-strikes", "2", "21.08", "a client that floods with pings is cut off", _PATIENCE),
    _hard(
        "grpc-http2-min-recv-ping-interval-without-data",
        "300000",
        "21.08",
        "what counts as flooding: pings without requests every 5 minutes or faster",
        _PATIENCE,
    ),
    _hard(
        "grpc-max-connection-age",
        "{max_connection_age_ms}",
        "24.01",
        "no connection is kept for ever",
        _PATIENCE,
    ),
    _hard("grpc-max-connection-age-grace", "60000", "24.01", "requests under way are answered first", _PATIENCE),
    _hard("trace-config", "level=OFF", "23.04", "no request is written to a file", "it is off unless asked for"),
    _hard("log-verbose", "0", "20.01", "verbose logs tell names and headers of requests"),
)
# What no release has, and what the proxy does about it.
PROXY = (
    ("TLS for HTTP", "the proxy ends it: HTTPS, with a certificate asked of every client"),
    ("a limit for the size of gRPC requests (2 GiB are taken)", "`client_max_body_size`"),
    ("other APIs kept from clients who know the key", "only health, metadata and inference are passed on"),
    ("TLS or a password for metrics", "not passed on: scrape them inside the network"),
)
# Commits by the first release branch that has them; which CVE is which is NVIDIA's to say.
FIXES = (
    ("25.07", "HTTP requests that overflow the stack (CVE-2025-23310, -23311); names and bounds of shared memory"),
    ("25.08", "offsets and bounds of system shared memory; checks of the Python backend's input"),
    ("25.09", "a model's name cannot lead out of the repository"),
    ("25.10", "large JSON inputs"),
    ("25.11", "an integer overflow"),
    ("26.01", "a limit for what compressed requests become"),
    ("26.02", "label files outside the model's folder are refused"),
    ("26.03", "restricted APIs are restricted at the SageMaker and Vertex AI endpoints, too"),
    ("26.04", "client shared memory is off by default; an overflow in JSON; checks of model names"),
    ("26.05", "the same output asked for twice; errors of the file system"),
    ("26.06", "archives of Python environments cannot write outside their folder"),
    ("26.07", "SageMaker's multi-model endpoint obeys restrictions"),
)


def write_options(values: Values, *uses: Use, release: str = LAST_KNOWN) -> list[tuple[Option, str]]:
    """Return the options that a release knows, each as tritonserver takes it, in the table's order."""
    fields = {
        "address": values.address,
        "control": values.control,
        "http_address": values.http_address or values.address,
        "secrets": values.secrets,
        "key": values.key,
        "max_input_bytes": values.max_input_bytes,
        "max_connection_age_ms": values.max_connection_age_ms,
    }
    return [
        (option, f"--{option.name}={option.value.format(**fields)}" if option.value else f"--{option.name}")
        for option in OPTIONS
        if option.use in ("always", *uses) and release_key(option.first) <= release_key(release)
    ]


def find_image_release(image: str) -> str:
    """Return the release that an image's tag begins with.

    Raises:
        ServerError: It does not begin with one.
    """
    if match := re.search(r":(\d\d\.\d\d)(?!\d)[^/]*$", image):
        return match[1]
    raise ServerError(
        f"the tag of {image} does not say its release, which decides what options it takes",
        hint="tag it so: docker tag IMAGE NAME:26.10",
        fields={"image": None},
    )


def list_missing(release: str) -> list[Option]:
    """Return the options that a release lacks."""
    return [option for option in OPTIONS if release_key(option.first) > release_key(release)]


def judge_release(release: str, *, insecure: bool = False) -> list[str]:
    """Return what is to be said of a release before it is served to others.

    Raises:
        ServerError: It is no release, or one with known ways in, and `insecure` does not accept that.
    """
    try:
        at = release_key(release)
    except ValueError as error:
        raise ServerError(str(error), hint="give one such as 26.10", fields={"release": None}) from error
    lacks = "; ".join(f"{first}: {what}" for first, what in FIXES if release_key(first) > at)
    if at < release_key(LEAST_RELEASE) and not insecure:
        raise ServerError(
            f"release {release} can be taken over by whoever reaches it: it lacks the fixes of {lacks}",
            hint=f"take {FIXED_RELEASE} or later, or accept that",
            fields={"insecure": True},
        )
    return list(_remark(release, lacks))


def _remark(release: str, lacks: str) -> Iterator[str]:
    at = release_key(release)
    if at < release_key(LEAST_RELEASE):
        yield f"warning: release {release} is insecure whatever its options; it lacks the fixes of {lacks}"
    elif at < release_key(FIXED_RELEASE):
        yield f"warning: release {release} lacks the fixes of {lacks}"
    if at > release_key(LAST_KNOWN):
        yield (
            f"note: the options known last are those of {LAST_KNOWN}, taken for {release}, too; the list of security "
            "fixes ends in 2026-11"
        )


def read_key_in_shell(path: str) -> str:
    """Return the command that sets KEY to what is in a file; with -e it ends a shell whose file is absent or empty."""
    return f'key=$(cat {shlex.quote(path)}); : "${{key:?{path} is empty}}"'


def describe(option: Option) -> str:
    """Return since when there is an option, and why it is set."""
    return f"since {option.first}: {option.reason}"


def list_remarks(release: str) -> list[str]:
    """Return what a release lacks, and what makes up for it there."""
    missing = [f"{release} has no --{option.name}: {option.without}" for option in list_missing(release)]
    return [*missing, *(f"no release has {what}: {how}" for what, how in PROXY)]
