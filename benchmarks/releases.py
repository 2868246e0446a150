"""Push and pull a repository, and copy the same files to and from the same store without a release.

    python -m benchmarks.releases --size-mib 1024
    python -m benchmarks.releases --store s3://bucket/benchmark

Without --store: a folder, where the plain copy is shutil.copytree, and a server of moto's, a stand-in for S3 in a
process of its own on this machine, which reads the whole object for each part that is asked for. The plain copy of a
bucket is that of boto3, as `aws s3 cp` does it: large files in parts, ten requests for each, eight files at a time. Two
shapes of a repository: four large files, and files of 256 KiB.

Each round does all four, in turn, until what was written is on the disk; the ratio is that of the fastest times, plain
copy to release. Exit code 1: a ratio is below 0.8.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from benchmarks.machine import describe_machine
from generator.release.fetch import pull
from generator.release.publish import push
from generator.release.store import is_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MIB = 2**20
_SMALL_BYTES = 256 * 1024
_LOWEST_RATIO = 0.8
_FILES = 8  # at the same time
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def fill_repository(root: Path, *, size_bytes: int, file_bytes: int) -> None:
    """Write a model whose version has files of `file_bytes` of noise, `size_bytes` together."""
    version = root / "noise" / "1"
    version.mkdir(parents=True)
    (root / "noise" / "config.pbtxt").write_text('backend: "python"\n')
    for number in range(size_bytes // file_bytes):
        (version / f"{number}.bin").write_bytes(os.urandom(file_bytes))


@contextlib.contextmanager
def serve_moto() -> Iterator[str]:
    """Run moto's server in a process of its own; yield the address of a bucket in it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                with contextlib.suppress(OSError), urlopen(url):
                    break
                time.sleep(0.1)
            os.environ.update(_KEYS, AWS_ENDPOINT_URL=url)
            import boto3

            boto3.client("s3", endpoint_url=url).create_bucket(Bucket="benchmark")
            yield "s3://benchmark/releases"
        finally:
            process.kill()


def copy_up(root: Path, store: str) -> None:
    """Copy the files of a repository to a store."""
    if not is_address(store):
        shutil.copytree(root, Path(store, "plain"))
        return
    client, bucket, prefix = connect(store)
    files = [path for path in root.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(_FILES) as pool:
        list(pool.map(lambda path: client.upload_file(path, bucket, f"{prefix}{path.relative_to(root)}"), files))


def copy_down(store: str, target: Path) -> None:
    """Copy what `copy_up` made back."""
    if not is_address(store):
        shutil.copytree(Path(store, "plain"), target)
        return
    client, bucket, prefix = connect(store)

    def load(key: str) -> None:
        path = target / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, path)

    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    with ThreadPoolExecutor(_FILES) as pool:
        list(pool.map(load, [one["Key"] for page in pages for one in page["Contents"]]))


def connect(store: str) -> tuple[Any, str, str]:
    """Return a client of S3, the bucket, and the prefix of the plain copy."""
    import boto3

    bucket, _, prefix = store.removeprefix("s3://").partition("/")
    return boto3.client("s3"), bucket, f"{prefix}/plain/"


def measure(root: Path, store: str, *, rounds: int) -> dict[str, float]:
    """Return the fastest seconds of each of the four."""
    seconds: dict[str, float] = {}

    def clock(name: str, work: Callable[[], object]) -> None:
        os.sync()  # what was written before is not to be written in this time
        started = time.perf_counter()
        work()
        os.sync()
        seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - started)

    for _ in range(rounds):
        place = f"{store}/{uuid.uuid4().hex}"  # each time a new one: the same release is not pushed twice
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            clock("plain up", partial(copy_up, root, place))
            clock("push", partial(push, root, f"{place}/releases", allow_unproved=True))
            clock("plain down", partial(copy_down, place, Path(folder, "plain")))
            clock("pull", partial(pull, f"{place}/releases", Path(folder, "pulled")))
        if not is_address(store):
            shutil.rmtree(place)
    return seconds


def main() -> int:
    """Print a line per store and shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", help="a prefix on S3, by default a folder and moto's server")
    options = parser.parse_args()
    print(describe_machine())
    print("| store | files | plain copy up, push, s | ratio | plain copy down, pull, s | ratio |")
    print("|---|---|---|---|---|---|")
    lowest = 1.0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtgen-releases-")))
        stores = {"given": options.store} if options.store else {"folder": str(folder / "store")}
        if not options.store:
            stores["moto"] = stack.enter_context(serve_moto())
        for size_bytes, file_bytes in (
            (options.size_mib * _MIB, size) for size in (options.size_mib * _MIB // 4, _SMALL_BYTES)
        ):
            root = folder / "repository"
            fill_repository(root, size_bytes=size_bytes, file_bytes=file_bytes)
            for name, store in stores.items():
                times = measure(root, store, rounds=options.rounds)
                up, down = times["plain up"] / times["push"], times["plain down"] / times["pull"]
                lowest = min(lowest, up, down)
                print(
                    f"| {name} | {size_bytes // file_bytes} of {file_bytes / _MIB:g} MiB | {times['plain up']:.2f}, "
                    f"{times['push']:.2f} | {up:.2f} | {times['plain down']:.2f}, {times['pull']:.2f} | {down:.2f} |",
                    flush=True,
                )
            shutil.rmtree(root)
    return int(lowest < _LOWEST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
