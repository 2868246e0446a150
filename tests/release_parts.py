"""What the tests of releases share: S3 as moto serves it, and small repositories."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

from generator.release.publish import push

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pytest

    from generator.release.manifest import Manifest

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let S3 be the server at `url`, and its credentials those that moto takes."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def serve_s3() -> Iterator[Any]:
    """Run moto's server in a thread; yield a client of it, whose address is `client.meta.endpoint_url`."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        yield boto3.client("s3", endpoint_url=f"http://{host}:{port}", **names)
    finally:
        server.stop()


def write_repository(root: Path, text: str = "first", more: Mapping[str, bytes] | None = None) -> Path:
    """Write a repository of one model: `text` is what differs, `more` are files beside it."""
    version = root / "model" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (root / "model" / "config.pbtxt").write_text('backend: "python"\n')
    (version / "model.py").write_text(f"# {text}\n")
    (version / "weights.bin").write_bytes(b"the same" * 1000)
    for name, data in (more or {}).items():
        (version / name).write_bytes(data)
    return root


def push_text(store: str, root: Path, text: str, *, channel: str = "production") -> Manifest:
    """Push what `write_repository` writes."""
    return push(write_repository(root, text), store, channel=channel, allow_unproved=True).manifest


def read_tree(root: Path) -> dict[str, bytes]:
    """Return every file but the manifest."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != "trtgen-release.json")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
