"""tritonserver reads a release from S3 by itself: what it is given for that, and what it would wait for in vain."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from generator.buckets import ENDPOINTS
from generator.errors import ReleaseError
from generator.release.channel import read_channel
from generator.release.manifest import RELEASES, read_manifest
from generator.release.store import open_store
from generator.release.transfer import run_all
from generator.repository.layout import RECORD_FILE

if TYPE_CHECKING:
    from pathlib import Path

# Without one of these it asks Amazon's metadata service, without a word in its log and without an end.
_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
_PLAIN = re.compile(r"s3://[A-Za-z0-9._/-]+")
_DESCRIBES = ("config.pbtxt", RECORD_FILE)


def prepare_direct(url: str, folder: Path, *, channel: str = "production") -> tuple[str, str]:
    """Return the id of a channel's release and the address under which tritonserver reads it from S3.

    `folder` gets the configurations and records, by which we choose the server's options and explain its failures.

    Raises:
        ReleaseError: It is not S3; a variable is missing without which tritonserver would wait for ever; or there is no
            such channel or release.
    """
    if not url.startswith("s3://"):
        msg = f"{url} is not on S3, which is all that tritonserver was tried with"
        raise ReleaseError(msg, hint="have the release pulled instead")
    if not _PLAIN.fullmatch(url):
        msg = f"tritonserver takes {url} for the name of a host: letters, digits, '.', '_', '-' and '/' were expected"
        raise ReleaseError(msg, hint="push to a prefix without other characters, or have the release pulled instead")
    if missing := [name for name in _VARIABLES if not os.environ.get(name)]:
        msg = f"tritonserver reads {', '.join(missing)} from the environment, which lacks it, and would wait for ever"
        raise ReleaseError(msg, hint="set it, or have the release pulled instead")
    store = open_store(url)
    manifest = read_manifest(store, read_channel(store, channel).release)

    def fetch(path: str) -> None:
        stored = store.read(f"{RELEASES}/{manifest.release}/{path}")
        if stored is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(stored.data)

    describing = [path for path in manifest.files if PurePosixPath(path).name in _DESCRIBES]
    for _ in run_all(fetch, describing):
        pass
    return manifest.release, f"{_name_for_triton(url)}/{RELEASES}/{manifest.release}"


def _name_for_triton(url: str) -> str:
    """Return the store's address, with its server in it where that is not Amazon's; Triton needs the port, too."""
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    if not endpoint:
        return url.rstrip("/")
    address = urlsplit(endpoint)
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    return f"s3://{address.scheme}://{address.hostname}:{port}/{url.removeprefix('s3://').rstrip('/')}"
