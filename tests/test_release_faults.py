"""Releases when something is wrong: the address, the credentials, the clock, a kill, a full disk, a damaged object."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from generator.cli import main
from generator.errors import MissingDependencyError, ReleaseError
from generator.release.bucket import Bucket
from generator.release.channel import find_channel, read_channel
from generator.release.fetch import pull
from generator.release.manifest import Manifest, hash_content, manifest_path
from generator.release.prune import prune, read_contents
from generator.release.publish import push, roll_back
from generator.release.store import open_store
from tests.release_parts import push_text, read_tree, use_s3, write_repository
from tests.test_disk_full import Disk, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Ends itself when the first file is through.
_KILLED = """
import os, signal, sys
from pathlib import Path
from generator.release.fetch import pull
from generator.release.publish import push

def kill(event):
    if event.step == sys.argv[2] and event.fraction < 1:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "push":
    push(Path(sys.argv[4]), sys.argv[3], allow_unproved=True, on_event=kill)
else:
    pull(sys.argv[3], Path(sys.argv[4]), on_event=kill)
"""


class Amazon:
    """Answers as Amazon's S3 does where moto does not: one status and one code for everything."""

    def __init__(self) -> None:
        self.status, self.code = 200, ""
        self.heard: list[dict[str, str]] = []
        amazon = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                amazon.heard.append({name.lower(): value for name, value in self.headers.items()})
                self.rfile.read(int(self.headers.get("content-length", 0)))
                body = f"<Error><Code>{amazon.code}</Code><Message>No.</Message></Error>".encode()
                self.send_response(amazon.status)
                self.send_header("ETag", '"x"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = answer  # noqa: N815 - its names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Amazon]:
    amazon = Amazon()
    thread = threading.Thread(target=amazon.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use_s3(monkeypatch, amazon.url)
    yield amazon
    amazon.server.shutdown()
    thread.join()
    amazon.server.server_close()


def test_every_file_is_sent_with_its_hash(amazon: Amazon, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(b"text")
    bucket: Any = open_store("s3://bucket/releases")
    bucket.put_file(tmp_path / "model.py", "model.py", parts=1)
    assert amazon.heard[0]["x-amz-checksum-sha256"] == b64encode(hashlib.sha256(b"text").digest()).decode()


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (301, "PermanentRedirect", "the bucket is in another region", "set AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region", "set AWS_REGION"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is more than 15 minutes off", "set the clock"),
        (403, "InvalidAccessKeyId", "the access key is not known there", "set AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the secret key is not that of the access key", "set AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", "the credentials have expired", "set AWS_ACCESS_KEY_ID"),
        (
            403,
            "AccessDenied",
            "these credentials may not do that",
            "give them the rights to list, read",
        ),
        (404, "NoSuchBucket", "there is no such bucket", "make the bucket"),
        (405, "MethodNotAllowed", "405 Method Not Allowed", "look at what the store says"),
    ],
)
def test_what_a_store_refuses_is_said_in_words(
    amazon: Amazon, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, code: str, message: str, hint: str
) -> None:
    amazon.status, amazon.code = status, code
    repository = str(write_repository(tmp_path / "models"))
    one = ["pull", "--release", "20260101T000000Z-0123456789abcdef"]
    for command in (["push", "--allow-unproved"], ["list"], ["pull"], one, ["rollback"], ["prune"]):
        options = ["--repository", repository] if command[0] == "push" else []
        assert main(["release", command[0], "s3://bucket/releases", *command[1:], *options]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: s3://bucket/releases cannot be used: "), said
        assert message in said
        assert f"hint: {hint}" in said
        assert len(said.splitlines()) == 2


def test_without_credentials(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_s3(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert main(["release", "list", "s3://bucket/releases"]) == 1
    said = capsys.readouterr().err
    assert "cannot be used: the credentials are not complete\nhint: set AWS_ACCESS_KEY_ID" in said
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert main(["release", "list", "s3://bucket/releases"]) == 1
    assert time.monotonic() - started < 15
    said = capsys.readouterr().err
    assert "cannot be used: there are no credentials\nhint: set AWS_ACCESS_KEY_ID" in said


def test_tritonserver_is_not_started_where_it_would_hang(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push_text(bucket, tmp_path / "models", "first")
    monkeypatch.setattr("generator.server.embedded.EmbeddedServer.__enter__", lambda _: pytest.fail("started"))
    for name in ("AWS_DEFAULT_REGION", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as patched:
            patched.delenv(name)
            assert main(["serve", bucket, "--direct"]) == 1
            said = capsys.readouterr().err
            assert f"tritonserver reads {name} from the environment, which lacks it, and would wait for ever" in said
    assert main(["serve", f"{bucket}/a b", "--direct"]) == 1
    assert "takes " in capsys.readouterr().err
    assert main(["serve", f"file://{tmp_path}/store", "--direct"]) == 1
    assert "is not on S3" in capsys.readouterr().err


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_s3(monkeypatch, "http://127.0.0.1:9")
    assert main(["release", "list", "s3://bucket/releases"]) == 1
    assert "it cannot be reached\nhint: check the network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://http://127.0.0.1:9000/bucket", "is not a valid address of a bucket"),
        ("s3://bucket/../other", "is not a valid address of a bucket"),
        ("s3://", "is not a valid address of a bucket"),
        ("s3://Bucket", "is not a valid address of a bucket"),
        ("s3://bucket/models?version=1", "is not a valid address of a bucket: s3://bucket/prefix was expected"),
        ("az://c/x", "is not a valid address of a bucket: az://account/container/prefix was expected"),
        ("ftp://host/models", "is not a store of releases"),
        ("file://host/models", "is not a valid address of a folder"),
    ],
)
def test_addresses_that_are_none(address: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "list", address]) == 1
    assert f"error: {address} {message}" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["1000000", "-1", "99999999999"])
def test_ages_that_are_none(days: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "prune", str(tmp_path), "--older-than-days", days]) == 2
    assert "Invalid value for '--older-than-days'" in capsys.readouterr().err


def test_a_folder_by_its_address(tmp_path: Path) -> None:
    release = push_text(f"file://{tmp_path}/with%20space", tmp_path / "models", "first").release
    assert read_channel(open_store(str(tmp_path / "with space")), "production").release == release


def test_without_obstore_a_folder_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="obstore is not installed: it reads and writes buckets") as caught:
        open_store("s3://bucket/releases")
    assert "[storage]" in caught.value.hint
    push_text(str(tmp_path / "store"), tmp_path / "models", "first")


@pytest.mark.parametrize("kind", ["unproved", "edited", "missing", "stranger"])
def test_what_is_not_proved_is_not_pushed(
    demo: Path, tmp_path: Path, edit: Callable[[Path, str, str], None], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    record = demo / "demo" / "trtgen.json"
    if kind == "unproved":
        entries = json.loads(record.read_text())
        entries["proof"][0] = {"stage": "batches", "status": "not proved", "reason": "no time"}
        record.write_text(json.dumps(entries))
        why = "demo: batches is not proved (no time)"
    elif kind == "edited":
        edit(demo / "demo_preprocess" / "1" / "model.py", "import", "import  ")
        why = "demo_preprocess/1/model.py: it was changed after it was proved"
    elif kind == "missing":
        (demo / "demo" / "labels.txt").unlink()
        why = "demo/labels.txt: it is missing"
    else:
        write_repository(demo)
        why = "model: trtgen did not make it"
    store = str(tmp_path / "store")
    command = ["release", "push", store, "--repository", str(demo)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"error: {demo} is not proved to work:\n  {why}\nhint: " in said
    assert "(--allow-unproved)" in said
    assert open_store(store).list_names("releases") == []
    assert main([*command, "--allow-unproved"]) == 0
    assert f"! not proved: {why}\n" in capsys.readouterr().err
    (released,) = read_contents(open_store(store)).releases
    assert released.unproved == [why]


def test_no_release_goes_where_a_server_reads(store: str, tmp_path: Path) -> None:
    root = write_repository(tmp_path / "models")
    open_store(store).write("resnet50/config.pbtxt", b"")
    with pytest.raises(ReleaseError, match=r"holds other things \(resnet50/\): a server may read its models there"):
        push(root, store, allow_unproved=True)
    assert open_store(store).list_names("") == ["resnet50/"]
    for inside in (root / "releases", write_repository(tmp_path / "other") / "releases"):
        with pytest.raises(ReleaseError, match="lies in a model repository"):
            push(root, str(inside), allow_unproved=True)
        assert not inside.exists()


def test_what_cannot_be_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, store = write_repository(tmp_path / "models"), str(tmp_path / "store")

    def fail(*options: str) -> str:
        assert main(["release", "push", store, "--allow-unproved", *options]) == 1
        assert open_store(store).list_names("releases") == []
        return capsys.readouterr().err

    assert "holds no model" in fail("--repository", str(tmp_path))
    assert "'Prod' is not a valid name of a channel" in fail("--repository", str(root), "--channel", "Prod")
    (root / "ensemble" / "1").mkdir(parents=True)
    assert f"{root}/ensemble/1 is empty, and object storage has no folders" in fail("--repository", str(root))
    (root / "ensemble" / "1").rmdir()
    (root / "ensemble").rmdir()
    (root / "model" / "link").symlink_to("nothing")
    assert f"{root}/model/link is not a regular file" in fail("--repository", str(root))


def test_a_file_that_changes_meanwhile_is_noticed(bucket: str, tmp_path: Path) -> None:
    root = write_repository(tmp_path / "models")

    def change(event: Any) -> None:
        (root / "model" / "1" / "model.py").write_text("longer than before")

    with pytest.raises(ReleaseError, match=r"model.py was changed while it was pushed"):
        push(root, bucket, allow_unproved=True, on_event=change)
    assert find_channel(open_store(bucket), "production").channel is None


def test_a_bucket_that_goes_in_the_middle(
    bucket: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bucket.split("/")[2]

    def remove(_event: Any) -> None:
        with contextlib.suppress(s3.exceptions.NoSuchBucket):  # it is gone already
            for one in s3.list_objects_v2(Bucket=name)["Contents"]:
                s3.delete_object(Bucket=name, Key=one["Key"])
            s3.delete_bucket(Bucket=name)

    push_text(bucket, tmp_path / "models", "first")
    with pytest.raises(ReleaseError, match="there is no such bucket") as caught:
        push(write_repository(tmp_path / "models", "second"), bucket, allow_unproved=True, on_event=remove)
    assert caught.value.hint == "make the bucket, or correct the address"
    s3.create_bucket(Bucket=name)
    target = tmp_path / "pulled"
    large = {f"{number}": bytes([number]) * 9000 for number in range(20)}
    push(write_repository(tmp_path / "models", more=large), bucket, allow_unproved=True)
    read_part, calls = Bucket._read_part, iter(range(100))

    def remove_then_read(self: Bucket, *arguments: Any) -> memoryview:
        if next(calls) == 2:
            remove(None)
        return read_part(self, *arguments)

    monkeypatch.setattr(Bucket, "_read_part", remove_then_read)
    with pytest.raises(ReleaseError, match=r"releases/2.*/model/1/.* cannot be used: there is no such bucket"):
        pull(bucket, target)
    assert not target.exists()


def kill_in(action: str, step: str, store: str, folder: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _KILLED, action, step, store, str(folder)], check=False)
    assert run.returncode == -signal.SIGKILL


def test_killed_while_pulling(store: str, tmp_path: Path) -> None:
    first = push_text(store, tmp_path / "models", "first")
    pulled = tmp_path / "pulled"
    tree: dict[str, bytes] | None = None
    for before in (False, True):  # onto nothing, and onto a release that is there
        more = {f"{number}.{before}": bytes([number, before]) * 100 for number in range(30)}
        manifest = push(write_repository(tmp_path / "models", more=more), store, allow_unproved=True).manifest
        kill_in("pull", "pulling", store, pulled)
        if before:
            assert read_tree(pulled) == tree
        else:
            assert not pulled.exists()
        # What is half there, or was left by the pull of another release, does not get in.
        staged = tmp_path / ".pulled.pull" / "files"
        kept = [path for path in staged.rglob("*") if path.is_file()]
        assert kept
        kept[0].unlink()  # which may be a link to what is served
        kept[0].write_bytes(b"half")
        (staged / "other" / "1").mkdir(parents=True)
        (staged / "other" / "1" / "model.py").write_bytes(b"of another release")
        result = pull(store, pulled)
        assert result.manifest == manifest
        assert read_tree(pulled) == read_tree(tmp_path / "models")
        assert result.kept_bytes > 0 or len(kept) == 1
        assert not (tmp_path / ".pulled.pull").exists()
        tree = read_tree(pulled)
    assert pull(store, pulled, release=first.release).manifest == first


def test_killed_while_pushing(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = push_text(store, tmp_path / "models", "first").release
    root = write_repository(tmp_path / "models", "second")
    step = "reading" if store.startswith("/") else "pushing"
    kill_in("push", step, store, root)
    assert main(["release", "list", store]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "is unfinished" in printed.err
    assert read_channel(open_store(store), "production").release == release
    second = push(root, store, allow_unproved=True)
    assert pull(store, tmp_path / "pulled").manifest == second.manifest
    unfinished = read_contents(open_store(store)).unfinished
    assert prune(store, older_than_days=0) == unfinished
    assert len(unfinished) == (1 if store.startswith("/") else 0)  # in a bucket the next push has finished it
    assert len(open_store(store).list_names("releases")) == 2


def test_a_pull_onto_a_full_disk(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_text(store, tmp_path / "models", "first")
    home = tmp_path / "disk"
    home.mkdir()
    pull(store, home / "pulled")
    tree = read_tree(home / "pulled")
    push(write_repository(tmp_path / "models", "second", {"big": b"x" * 100_000}), store, allow_unproved=True)
    for room in (0, 5, 50_000, 99_999):
        with monkeypatch.context() as patched:
            fill(patched, Disk(home, room))
            with pytest.raises(ReleaseError, match="was left as it was: No space left on device") as caught:
                pull(store, home / "pulled")
        assert "make room there and run the same command" in caught.value.hint
        assert read_tree(home / "pulled") == tree
    pull(store, home / "pulled")
    assert read_tree(home / "pulled") == read_tree(tmp_path / "models")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 7}))
    with pytest.raises(ReleaseError, match=r"needs 108,0\d\d bytes on the disk of .*, which has 7 left"):
        pull(store, tmp_path / "elsewhere")


def test_a_push_onto_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    push_text(str(store), tmp_path / "models", "first")
    before = sorted(path.relative_to(store) for path in store.rglob("*"))
    for room in (0, 5_000):
        with monkeypatch.context() as patched:
            fill(patched, Disk(store, room))
            with pytest.raises(ReleaseError, match="No space left on device"):
                push_text(str(store), tmp_path / "models", "second")
        assert sorted(path.relative_to(store) for path in store.rglob("*")) == before
    push_text(str(store), tmp_path / "models", "second")


def test_a_damaged_object_is_not_served(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = push_text(store, tmp_path / "models", "first")
    pulled = tmp_path / "pulled"
    pull(store, pulled)
    tree = read_tree(pulled)
    second = push_text(store, tmp_path / "models", "second")
    place = open_store(store)
    for data in (b"# secone\n", b"# sec"):
        place.write(f"releases/{second.release}/model/1/model.py", data)
        assert main(["release", "pull", store, "--repository", str(pulled)]) == 1
        said = capsys.readouterr().err
        assert f"releases/{second.release}/model/1/model.py in {store} is damaged: it has {len(data)} bytes" in said
        assert f"hint: go back to the release before it: trtgen release rollback {store}" in said
        assert read_tree(pulled) == tree
    path = f"releases/{second.release}/model/1/model.py"
    place.write(path, b"")
    with pytest.raises(ReleaseError, match=f"{path} .*(shorter than its manifest says|is damaged: it has 0 bytes)"):
        pull(store, pulled)
    place.remove(path)
    with pytest.raises(
        ReleaseError, match=rf"{path} cannot be used: it is gone|No such file or directory \(.*{path}\)"
    ):
        pull(store, pulled)
    assert read_tree(pulled) == tree
    roll_back(store)
    assert pull(store, pulled).manifest == first


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"content": "0" * 64}, "its files are not those that its release id stands for"),
        ({"files": {}}, "its files are not those that its release id stands for"),
        ({"format": 2}, "it has format 2, this version of trtgen reads 1"),
        ({"models": None}, "models: Input should be an object"),
    ],
)
def test_a_manifest_that_does_not_fit_its_release(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], why: str
) -> None:
    manifest = push_text(store, tmp_path / "models", "first")
    place = open_store(store)
    place.write(manifest_path(manifest.release), json.dumps({**json.loads(manifest.to_json()), **change}).encode())
    assert main(["release", "pull", store, "--repository", str(tmp_path / "pulled")]) == 1
    said = capsys.readouterr().err
    assert f"the manifest of {manifest.release} in {store} cannot be used: " in said
    assert why in said
    assert not (tmp_path / "pulled").exists()
    assert main(["release", "list", store]) == 0
    assert f"! the manifest of {manifest.release} cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "", "trtgen-release.json", "a//b", "./a"])
def test_a_manifest_cannot_lead_out_of_the_repository(tmp_path: Path, path: str) -> None:
    manifest = push_text(str(tmp_path / "store"), tmp_path / "models", "first")
    files = {path: manifest.files["model/config.pbtxt"]}
    content = hash_content(files)
    entries = json.loads(manifest.to_json())
    entries |= {"files": {path: entries["files"]["model/config.pbtxt"]}, "content": content}
    entries["release"] = f"20260101T000000Z-{content[:16]}"
    with pytest.raises(ValueError, match="is not a path inside a repository"):
        Manifest.parse(json.dumps(entries).encode())


def test_a_damaged_channel(store: str, tmp_path: Path) -> None:
    push_text(store, tmp_path / "models", "first")
    open_store(store).write("channels/production.json", b"{")
    for act in (lambda: pull(store, tmp_path / "pulled"), lambda: push_text(store, tmp_path / "models", "second")):
        with pytest.raises(ReleaseError, match=r"the channel production in .* cannot be used: Invalid JSON"):
            act()


def test_an_outage_is_not_taken_for_damage(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in "abc":
        push_text(store, tmp_path / "models", text)
    kind = type(open_store(store))
    read = kind.read

    def fail(self: Any, path: str) -> Any:
        if path.endswith("trtgen-release.json"):
            raise ReleaseError("it cannot be reached", hint="check the network")
        return read(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "read", fail)
        with pytest.raises(ReleaseError, match="it cannot be reached"):
            prune(store, older_than_days=0)
    assert len(read_contents(open_store(store)).releases) == 3
