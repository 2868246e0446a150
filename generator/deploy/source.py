"""How the model repository reaches a pod: in an image, as a pulled release, or read by Triton itself.

In the image and in what is pulled it lies in the folder `models`, which is mounted alone: that is where KServe looks
for it in an image, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from generator.errors import DeployError, ReleaseError
from generator.release.channel import check_name as check_channel
from generator.release.manifest import is_id
from generator.release.store import check_bucket

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = "/models"  # where the server sees it
_VOLUME, _FOLDER = "models", "models"
_PULLED = "/release"  # where the init container sees the volume
_HTTPS = 443
_TRITON_URL = re.compile(r"(s3|gs|as)://[^\s/]\S*")
_KSERVE_URL = re.compile(r"(s3|gs)://[^\s/:]+(/\S*)?")


class Source(Protocol):
    """Where the repository comes from; dictionaries are those of a pod's description."""

    @property
    def location(self) -> str:
        """What tritonserver is given as its model repository."""

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports that the pod must reach outside of it, beside that of DNS."""

    @property
    def secret(self) -> str:
        """The Secret with credentials, whose keys are variables of the environment; empty for none."""

    @property
    def runs_in_server(self) -> bool:
        """Whether the server itself needs these credentials, and space in /tmp for the files."""

    @property
    def storage_uri(self) -> str:
        """The same for KServe, which fetches it; DeployError where it cannot."""

    def make_volumes(self) -> list[dict[str, Any]]:
        """Return the pod's volumes."""

    def make_pull(self) -> tuple[str, list[str]] | None:
        """Return image and command of what fills the volume before the server starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """An OCI image whose folder /models is the repository, mounted as a volume: Kubernetes 1.35, or 1.33 if enabled."""

    image: str
    location: ClassVar[str] = MODELS
    ports: ClassVar[tuple[int, ...]] = ()
    secret: ClassVar[str] = ""
    runs_in_server: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_image(self.image, "repository_image")

    @property
    def storage_uri(self) -> str:
        """The image as a volume, since KServe 0.20: its `oci://` would want a shell in the image."""
        return f"oci+native://{self.image}"

    def make_volumes(self) -> list[dict[str, Any]]:
        """Return the image as a volume."""
        return [{"name": _VOLUME, "image": {"reference": self.image, "pullPolicy": "IfNotPresent"}}]

    def make_pull(self) -> None:
        """Return nothing: the node pulls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSource:
    """A release in an object store, pulled and checked by an init container.

    Either `channel`, which each pod resolves when it starts, or `release`, which all pods of a rollout share.
    `puller` is the image with trtgen that pulls it. `store_ports` are the store's, where they are not that of HTTPS.
    """

    url: str
    puller: str
    channel: str = ""
    release: str = ""
    secret: str = ""
    store_ports: tuple[int, ...] = ()
    location: ClassVar[str] = MODELS
    runs_in_server: ClassVar[bool] = False

    def __post_init__(self) -> None:
        try:
            check_bucket(self.url)
        except ReleaseError as error:
            hint = "give s3://bucket/models, say; AWS_ENDPOINT_URL in the Secret names a server other than Amazon's"
            raise DeployError(error.message, hint=hint, fields={"release": None, "secret": None}) from error
        if self.release and not is_id(self.release):
            msg = f"{self.release!r} is not the id of a release, such as 20261126T192608Z-5789f58f1c8f50e7"
            command = ("release", "list", self.url)
            raise DeployError(msg, hint="choose one of those", command=command)
        if self.channel:
            try:
                check_channel(self.channel)
            except ReleaseError as error:
                raise DeployError(error.message, **error.advice) from error
        check_image(self.puller, "release_image")

    @property
    def ports(self) -> tuple[int, ...]:
        """The store's ports."""
        return self.store_ports or (_HTTPS,)

    @property
    def storage_uri(self) -> str:
        """The release's folder, which never changes."""
        if not self.release:
            msg = f"KServe reads a folder, and the channel {self.channel} is none"
            raise DeployError(msg, hint="name the release", fields={"release_id": None})
        return _name_for_kserve(f"{self.url.rstrip('/')}/releases/{self.release}")

    def make_volumes(self) -> list[dict[str, Any]]:
        """Return what it is pulled into."""
        return [{"name": _VOLUME, "emptyDir": {}}]

    def make_pull(self) -> tuple[str, list[str]]:
        """Return image and command that pull it."""
        which = ["--release", self.release] if self.release else ["--channel", self.channel]
        return self.puller, ["trtgen", "release", "pull", self.url, *which, "--repository", f"{_PULLED}/{_FOLDER}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectSource:
    """A folder in an object store that Triton reads itself, without checking what it gets.

    `store_ports` are the store's, where they are not that of the URL or of HTTPS.
    """

    url: str
    secret: str = ""
    store_ports: tuple[int, ...] = ()
    runs_in_server: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not _TRITON_URL.fullmatch(self.url):
            msg = f"{self.url or repr('')} is not a URL that Triton reads: s3://, gs:// or as:// was expected"
            raise DeployError(msg, hint="give one such as s3://bucket/models", fields={"direct": None})
        _find_port(self.url)

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    @property
    def ports(self) -> tuple[int, ...]:
        """The store's ports."""
        return self.store_ports or (_find_port(self.url),)

    @property
    def storage_uri(self) -> str:
        """The URL."""
        return _name_for_kserve(self.url)

    def make_volumes(self) -> list[dict[str, Any]]:
        """Return nothing: it goes to /tmp."""
        return []

    def make_pull(self) -> None:
        """Return nothing: the server pulls it."""


def make_mounts(source: Source) -> list[dict[str, Any]]:
    """Return where the server sees the repository."""
    if not source.make_volumes():
        return []
    return [{"name": _VOLUME, "mountPath": MODELS, "subPath": _FOLDER, "readOnly": True}]


def make_init_containers(source: Source, *, security: dict[str, Any], mounts: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what fills the volume before the server starts."""
    pull = source.make_pull()
    if pull is None:
        return []
    image, command = pull
    return [
        {
            "name": "pull",
            "image": image,
            "command": command,
            "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - the only place it may write to
            **make_credentials(source.secret),
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "securityContext": security,
            "volumeMounts": [{"name": _VOLUME, "mountPath": _PULLED}, *mounts],
        }
    ]


def make_credentials(secret: str) -> dict[str, Any]:
    """Return the field of a container that takes the Secret's keys into its environment."""
    return {"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}


def check_image(image: str, field: str) -> None:
    """Refuse an image that may be another one tomorrow.

    Raises:
        DeployError: Names it.
    """
    if not has_version(image):
        msg = f"the image {image or repr('')} has no tag that says which it is"
        raise DeployError(msg, hint="give a tag other than latest, or a digest", fields={field: None})


def has_version(image: str) -> bool:
    """Say whether an image has a tag, other than `latest`, or a digest."""
    name, _, digest = image.partition("@")
    _, _, tag = name.rpartition("/")[2].partition(":")
    return re.fullmatch(r"\S+", image) is not None and bool(digest or tag not in ("", "latest"))


def _name_for_kserve(url: str) -> str:
    """Return the URL; KServe takes what comes first in it for a bucket, never for a server, as Triton does."""
    if not _KSERVE_URL.fullmatch(url):
        msg = f"KServe cannot read {url}: s3://bucket/... or gs://bucket/... was expected"
        hint = "give such a URL; a server other than Amazon's belongs in KServe's credentials (AWS_ENDPOINT_URL)"
        raise DeployError(msg, hint=hint)
    return url


def _find_port(url: str) -> int:
    """Return the port of a store: that of `s3://https://host:port/...`, else that of HTTPS."""
    _, _, rest = url.partition("://")
    try:
        inner = urlsplit(rest if "://" in rest else url)
        port = inner.port
    except ValueError as error:
        msg = f"{url} has no valid server or port"
        hint = "give a URL such as s3://bucket/models"
        raise DeployError(msg, hint=hint, fields={"direct": None}) from error
    return port or (80 if inner.scheme == "http" else _HTTPS)
