"""Where releases lie: a bucket or a folder, by its address."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from generator.errors import ReleaseError
from generator.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from generator.release.manifest import File

# How each is written.
BUCKETS = {"s3": "s3://bucket/prefix", "gs": "gs://bucket/prefix", "az": "az://account/container/prefix"}
_BUCKET_ADDRESSES = ", ".join(BUCKETS.values())
_ADDRESSES = f"{_BUCKET_ADDRESSES}, file:///folder or a folder"
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A small object as it was read; `tag` is what the store knows this version of it by, for `Store.swap`."""

    data: bytes
    tag: Mapping[str, str]


class Upload(Protocol):
    """A release under way; nothing of it is seen as a release before its manifest is written."""

    def add(self, source: Path, path: str) -> File:
        """Take a file for the release and return its size and hash. Called from several threads."""

    def finish(self, release: str) -> Iterable[str]:
        """Put every file that was added below `releases/RELEASE`, and yield each path once it is there."""


class Store(Protocol):
    """A bucket's prefix or a folder. Paths are relative to it, with forward slashes.

    Each method raises ReleaseError where the store cannot be used.
    """

    url: str

    def read(self, path: str) -> Stored | None:
        """Return a small object, None where there is none."""

    def read_blocks(self, path: str, size_bytes: int, *, parts: int) -> Iterator[memoryview]:
        """Yield an object block by block, with up to `parts` requests at the same time.

        A block may be overwritten when the second one after it is asked for.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write a small object, in one step."""

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        """Write a small object if it is still `before`, None for not there; say whether it was."""

    def upload(self) -> AbstractContextManager[Upload]:
        """Give a release to be filled; what is not finished in the block is removed where that can be done."""

    def list_names(self, folder: str) -> list[str]:
        """Return the names directly in a folder, sorted; those of folders end with a slash."""

    def last_change(self, folder: str) -> datetime | None:
        """Return when, by the store's own clock, anything below a folder was last written; None where nothing is."""

    def remove(self, path: str) -> None:
        """Delete one object, which is there."""

    def delete(self, folder: str) -> None:
        """Delete everything below a folder."""


def is_address(text: str) -> bool:
    """Tell whether this is the address of a store, and not a plain path."""
    return "://" in text


def open_store(url: str) -> Store:
    """Return the store at an address; a bucket is not asked yet.

    Raises:
        ReleaseError: It is not a valid address.
        MissingDependencyError: A bucket, but the package that talks to it is not installed.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        from generator.release.folder import FolderStore

        address = urlsplit(url)
        if separator and (address.netloc not in ("", "localhost") or not address.path):
            msg = f"{url} is not a valid address of a folder: file:/// and its absolute path were expected"
            raise ReleaseError(msg, hint="give it as a plain path")
        return FolderStore(expand_home(Path(unquote(address.path) if separator else url)).resolve(), url=url)
    if scheme not in BUCKETS:
        raise ReleaseError(f"{url} is not a store of releases", hint=f"give one of {_ADDRESSES}")
    check_bucket(url)
    from generator.release.bucket import Bucket

    return Bucket(url.rstrip("/"))


def check_bucket(url: str) -> None:
    """Refuse what is not the address of a bucket.

    Raises:
        ReleaseError: It is not.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    is_path = not re.search(r"//|[?#]", prefix) and not {".", ".."} & {*prefix.split("/")}
    if scheme not in BUCKETS or not _BUCKET_NAME.fullmatch(bucket) or not is_path:
        expected = BUCKETS.get(scheme, BUCKETS["s3"])
        msg = f"{url or repr('')} is not a valid address of a bucket: {expected} was expected"
        hint = f"give one of {_BUCKET_ADDRESSES}"
        if "://" in rest:
            hint = "set AWS_ENDPOINT_URL for a server other than Amazon's"
        raise ReleaseError(msg, hint=hint)
