"""trtgen-release.json, the manifest: makes a release of objects in a store, and names the one that was pulled."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from generator.errors import ReleaseError
from generator.spec.records import JsonRecord

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from generator.release.store import Store

MANIFEST_FILE = "trtgen-release.json"
RELEASES = "releases"
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}")


def _check_path(path: str) -> str:
    """Refuse what would lead out of the repository: a manifest comes from elsewhere."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "/".join(parts) != path or path == MANIFEST_FILE:
        msg = f"{path!r} is not a path inside a repository"
        raise ValueError(msg)
    return path


class File(BaseModel):
    """One file of a release; `sha256` is in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size_bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Origin(BaseModel):
    """Who did something, and when, by the clock of that machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: str
    host: str
    time: str

    @classmethod
    def here_and_now(cls) -> Self:
        """Return this user, this machine and this second."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = str(os.getuid())
        time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(user=user, host=socket.gethostname(), time=time)

    def __str__(self) -> str:
        return f"{self.user} on {self.host} at {self.time}"


class Manifest(JsonRecord):
    """The content of trtgen-release.json.

    `content` is the hash of all paths and their SHA-256; the id ends with its first 16 digits. `models` maps each
    model made by trtgen to its version. `unproved` says why a repository was not proved that was pushed all the same.
    """

    made_by: str
    release: str
    content: str
    pushed: Origin
    models: Mapping[str, int]
    unproved: list[str]
    files: Mapping[Annotated[str, AfterValidator(_check_path)], File]
    format: Literal[1] = 1

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files.values())

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.content != hash_content(self.files) or not self.release.endswith(f"-{self.content[:16]}"):
            msg = "its files are not those that its release id stands for"
            raise ValueError(msg)
        return self


def hash_content(files: Mapping[str, File]) -> str:
    """Return the SHA-256 of a listing in the form of sha256sum, sorted by path."""
    lines = (f"{files[path].sha256}  {path}\n" for path in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def make_id(content: str, pushed: Origin) -> str:
    """Return the id of a release: its time for people, its content for everything else."""
    return f"{re.sub('[-:]', '', pushed.time)}-{content[:16]}"


def is_id(name: str) -> bool:
    """Tell whether this is the id of a release."""
    return _ID.fullmatch(name) is not None


def manifest_path(release: str) -> str:
    """Return where a release's manifest lies in its store."""
    return f"{RELEASES}/{release}/{MANIFEST_FILE}"


def read_manifest(store: Store, release: str) -> Manifest:
    """Return the manifest of a release.

    Raises:
        ReleaseError: There is no such release, or its manifest is damaged.
    """
    stored = store.read(manifest_path(release)) if is_id(release) else None
    if stored is None:
        msg = f"{store.url} holds no release {release!r}"
        raise ReleaseError(msg, hint="choose one of those", command=("release", "list", store.url))
    try:
        return parse_manifest(stored.data, release)
    except ValueError as error:
        msg = f"the manifest of {release} in {store.url} cannot be used: {error}"
        raise ReleaseError(msg, hint="push the repository again, or choose another release") from error


def parse_manifest(data: bytes, release: str) -> Manifest:
    """Return the manifest of a release.

    Raises:
        ValueError: It is damaged, or of another release; in words.
    """
    manifest = Manifest.parse(data)
    if manifest.release != release:
        msg = f"it is that of {manifest.release}"
        raise ValueError(msg)
    return manifest


def read_pulled(root: Path) -> Manifest | None:
    """Return the manifest in the root of a pulled repository, None where the repository was not pulled.

    Raises:
        ReleaseError: It cannot be read.
    """
    path = root / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        return Manifest.read(path)
    except ValueError as error:
        msg = f"{path} cannot be used: {error}"
        raise ReleaseError(msg, hint=f"move {root} away and pull again") from error
