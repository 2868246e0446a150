"""Releases: pushed, listed, pulled, rolled back, pruned and served; in a bucket (moto's) and in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from generator.cli import main
from generator.errors import ReleaseError
from generator.release import manifest as manifest_module
from generator.release.channel import read_channel
from generator.release.fetch import pull
from generator.release.manifest import MANIFEST_FILE, Origin, read_pulled
from generator.release.prune import prune, read_contents
from generator.release.publish import push, roll_back
from generator.release.store import Store, open_store
from generator.release.transfer import PART_BYTES
from generator.repository import find_records
from tests.release_parts import push_text, read_tree, write_repository

FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
CLIENTS = Path(__file__).parents[1] / "clients"


@pytest.fixture
def bucket(bucket: str) -> str:
    return bucket.replace("/releases", "/a prefix/releases")


def test_what_is_pulled_is_what_was_pushed(store: str, built_demo: Path, tmp_path: Path) -> None:
    pushed = push(built_demo, store)
    assert (pushed.is_new, pushed.is_moved, pushed.manifest.unproved) == (True, True, [])
    manifest = pushed.manifest
    assert manifest.models == {"demo": 1}
    files = {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in read_tree(built_demo).items()}
    assert {path: (file.size_bytes, file.sha256) for path, file in manifest.files.items()} == files

    again = push(built_demo, store)
    assert (again.is_new, again.is_moved) == (False, False)
    assert again.manifest == manifest
    assert open_store(store).list_names("releases") == [f"{manifest.release}/"]

    pulled = pull(store, tmp_path / "models")
    assert read_tree(tmp_path / "models") == read_tree(built_demo)
    assert (pulled.fetched_bytes, pulled.kept_bytes) == (manifest.size_bytes, 0)
    assert read_pulled(tmp_path / "models") == manifest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_large_file_goes_in_parts_that_s3_checks(bucket: str, s3: Any, tmp_path: Path) -> None:
    """What is sent for a file in one piece, which moto does not keep, is in tests/test_release_faults.py."""
    root = write_repository(tmp_path / "models", more={"large": os.urandom(PART_BYTES + 1)})
    release = push(root, bucket, allow_unproved=True).manifest.release
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    place = {"Bucket": name, "Key": f"{prefix}/releases/{release}/model/1/large"}
    parts = s3.get_object_attributes(**place, ObjectAttributes=["Checksum", "ObjectParts"])
    assert parts["Checksum"]["ChecksumSHA256"]
    assert s3.head_object(**place)["ETag"].endswith('-2"')
    pull(bucket, tmp_path / "pulled")
    assert read_tree(tmp_path / "pulled") == read_tree(root)


def test_the_manifest_comes_last_and_makes_the_release(store: str, tmp_path: Path) -> None:
    seen = []

    def look(event: Any) -> None:
        if event.step == "pushing":
            seen.extend(read_contents(open_store(store)).releases)

    push(write_repository(tmp_path / "models"), store, allow_unproved=True, on_event=look)
    assert seen == []
    assert len(read_contents(open_store(store)).releases) == 1


def test_a_channel_goes_back_step_by_step(store: str, tmp_path: Path) -> None:
    first, second, third = (push_text(store, tmp_path / "models", text).release for text in ("1", "2", "3"))
    assert roll_back(store) == (third, second)
    assert roll_back(store) == (second, first)  # and not forth again
    with pytest.raises(ReleaseError, match="names the first release that was pushed to it"):
        roll_back(store)
    assert roll_back(store, release=third) == (first, third)
    with pytest.raises(ReleaseError, match="never named 20200101T000000Z-0123456789abcdef"):
        roll_back(store, release="20200101T000000Z-0123456789abcdef")
    moves = read_channel(open_store(store), "production").history
    assert [move.release for move in moves] == [third, first, second, third, second, first]
    assert [move.action for move in moves] == ["rollback"] * 3 + ["push"] * 3
    pushed = push_text(store, tmp_path / "models", "2")  # an old one again is moved to, and not pushed again
    assert pushed.release == second
    assert roll_back(store) == (second, third)


def test_of_two_publishers_one_is_told_who_won(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push_text(store, tmp_path / "models", "before")
    mine, theirs = write_repository(tmp_path / "mine", "mine"), tmp_path / "theirs"
    won: list[str] = []

    def interfere(_event: Any) -> None:
        if not won:
            won.append("")
            with monkeypatch.context() as patched:
                patched.setattr("getpass.getuser", lambda: "bob")
                patched.setattr("socket.gethostname", lambda: "ci-7")
                won[0] = push_text(store, theirs, "theirs").release

    with pytest.raises(ReleaseError) as caught:
        push(mine, store, allow_unproved=True, on_event=interfere)
    assert f"it names {won[0]}, by a push of bob on ci-7 at 20" in caught.value.message
    assert read_channel(open_store(store), "production").release == won[0]
    pull(store, tmp_path / "pulled")
    assert read_tree(tmp_path / "pulled") == read_tree(theirs)

    again = push(mine, store, allow_unproved=True)
    assert (again.is_new, again.is_moved) == (False, True)
    assert roll_back(store)[1] == won[0]


def test_of_many_swaps_in_a_folder_one_goes_through(tmp_path: Path) -> None:
    """A bucket's are the server's to keep apart; moto looks and writes in two steps."""
    place = open_store(str(tmp_path / "store"))
    for turn in range(3):
        before = place.read("channels/production.json")
        with ThreadPoolExecutor(8) as pool:
            swapped = list(
                pool.map(lambda i: place.swap("channels/production.json", b"%d %d" % (turn, i), before), range(8))  # noqa: B023
            )
        assert swapped.count(True) == 1, turn
        now = place.read("channels/production.json")
        assert now is not None
        assert now.data == b"%d %d" % (turn, swapped.index(True))


def test_a_clock_that_is_off_changes_nothing_but_the_name(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = push_text(store, tmp_path / "models", "first")
    early = Origin(user="a", host="b", time="2001-01-01T00:00:00Z")
    monkeypatch.setattr(manifest_module.Origin, "here_and_now", classmethod(lambda _: early))
    second = push_text(store, tmp_path / "models", "second")
    assert second.release.startswith("20010101T000000Z-")
    assert pull(store, tmp_path / "pulled").manifest == second
    assert prune(store, older_than_days=1) == []  # its age is not that of its name
    assert roll_back(store) == (second.release, first.release)


def test_prune_keeps_what_a_channel_names_or_goes_back_to(store: str, tmp_path: Path) -> None:
    releases = [push_text(store, tmp_path / "models", text).release for text in "abcd"]
    staged = push_text(store, tmp_path / "models", "staged", channel="staging").release
    assert prune(store, older_than_days=1) == []  # young
    assert prune(store, older_than_days=0, dry_run=True) == sorted(releases[:2])
    assert len(read_contents(open_store(store)).releases) == 5
    assert prune(store, older_than_days=0) == sorted(releases[:2])
    contents = read_contents(open_store(store))
    assert {one.release for one in contents.releases} == {*releases[2:], staged}
    assert open_store(store).list_names(f"releases/{releases[0]}") == []
    with pytest.raises(ReleaseError, match="holds no release"):
        roll_back(store, release=releases[0])
    assert roll_back(store)[1] == releases[2]


def test_prune_gives_way_to_a_channel_that_moves_meanwhile(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = [push_text(store, tmp_path / "models", text).release for text in "abc"]
    kind = type(open_store(store))
    remove = kind.remove

    def move_then_remove(self: Store, path: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(kind, "remove", remove)
            roll_back(store, release=first)
        remove(self, path)

    monkeypatch.setattr(kind, "remove", move_then_remove)
    assert prune(store, older_than_days=0) == []
    assert pull(store, tmp_path / "pulled").manifest.release == first


def test_only_what_has_changed_is_fetched(store: str, tmp_path: Path) -> None:
    push_text(store, tmp_path / "models", "first")
    pull(store, tmp_path / "pulled")
    weights = tmp_path / "pulled" / "model" / "1" / "weights.bin"
    before = weights.stat().st_ino
    manifest = push_text(store, tmp_path / "models", "second")
    pulled = pull(store, tmp_path / "pulled")
    assert pulled.manifest == manifest
    assert (pulled.fetched_bytes, weights.stat().st_ino) == (len("# second\n"), before)
    assert read_tree(tmp_path / "pulled") == read_tree(tmp_path / "models")
    assert pull(store, tmp_path / "pulled").fetched_bytes == 0


def test_a_pull_touches_nothing_that_is_not_its_own(store: str, tmp_path: Path) -> None:
    push_text(store, tmp_path / "models", "first")
    with pytest.raises(ReleaseError, match="is not empty and was not pulled: it is left as it is"):
        pull(store, tmp_path / "models")
    with pytest.raises(ReleaseError, match="is a mount of its own"):
        pull(store, Path("/dev/shm"))
    pulled = tmp_path / "pulled"
    pull(store, pulled)
    (pulled / "model" / "config.pbtxt").write_text("edited")
    (pulled / "added").write_text("added")
    with pytest.raises(ReleaseError, match=r"changed after it was pulled: (added, )?model/config.pbtxt"):
        pull(store, pulled)
    assert (pulled / "model" / "config.pbtxt").read_text() == "edited"
    pull(store, pulled, discard_edits=True)
    assert read_tree(pulled) == read_tree(tmp_path / "models")


def test_what_was_pulled_is_a_repository_like_any_other(
    built_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    release = push(built_demo, store).manifest.release
    pulled = tmp_path / "pulled"
    pull(store, pulled)
    assert json.loads((pulled / MANIFEST_FILE).read_text())["release"] == release
    assert find_records(pulled) == find_records(built_demo)
    found = []
    for root in (pulled, built_demo):
        main(["doctor", str(root)])
        found.append(capsys.readouterr().out.replace(str(root), ""))
    assert found[0] == found[1]
    assert "in 3 models" in found[0]
    again = push(pulled, store)  # the manifest that the pull left is no part of it
    assert (again.manifest.release, again.is_new) == (release, False)


@pytest.mark.server
def test_a_release_is_served_pulled_and_by_tritonserver_itself(
    bucket: str, built_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = bucket.replace("a prefix", "models")  # which tritonserver could not read
    release = push(built_demo, store, channel="staging").manifest.release
    shell = 'exec "$0" "$1/classify.py" --url "$TRTGEN_GRPC_URL" "$1/samples/star.jpg"'
    ask = ["sh", "-c", shell, sys.executable, str(CLIENTS)]
    for options in ([], ["--direct"]):
        command = ["serve", store, "--channel", "staging", *options, *FREE_PORTS, "--", *ask]
        assert main(command) == 0, capfd.readouterr().err
        printed = capfd.readouterr()
        assert "1.0000  star" in printed.out
        assert f"staging names {release}" in printed.err
        assert printed.err.count("READY") == 3
        if options:
            assert f"/releases/{release}" in printed.err.partition("unchecked: s3://http://127.0.0.1:")[2]
        else:
            (folder,) = (tmp_path / "cache" / "trtgen" / "releases").iterdir()
            assert read_tree(folder) == read_tree(built_demo)
    # A damaged cache is repaired before it is served.
    (folder / "demo" / "labels.txt").write_text("damaged")
    shutil.rmtree(folder / "demo_preprocess")
    monkeypatch.setattr("generator.server.embedded.EmbeddedServer.__enter__", lambda _: pytest.exit("served"))
    with pytest.raises(pytest.exit.Exception):
        main(["serve", store, "--channel", "staging", *FREE_PORTS])
    assert read_tree(folder) == read_tree(built_demo)


def test_the_command_line_says_what_it_did(
    built_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    repository = ["--repository", str(built_demo)]
    assert main(["release", "push", store, *repository, "--channel", "staging"]) == 0
    printed = capsys.readouterr()
    release = printed.out.strip()
    assert "* pushed  " in printed.err
    assert main(["release", "push", store, *repository]) == 0
    assert "already there, not pushed again" in capsys.readouterr().err
    assert main(["release", "pull", store, "--repository", str(tmp_path / "pulled"), "--release", release]) == 0
    assert capsys.readouterr().out == f"{release}\n"
    assert main(["release", "list", store]) == 0
    printed = capsys.readouterr()
    assert [row.split()[0] for row in printed.out.splitlines()] == ["release", release]
    assert printed.out.splitlines()[1].endswith("production, staging")
    assert f"staging: {release}, by a push of " in printed.err
    assert main(["release", "list", store, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["release"] for one in listed["releases"]] == [release]
    assert listed["channels"]["staging"]["history"][0]["action"] == "push"
    assert main(["release", "rollback", store]) == 1
    assert main(["release", "prune", store, "--older-than-days", "0"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["release", "pull", store, "--release", "x"]) == 1
    said = capsys.readouterr().err
    quoted = f"'{store}'" if " " in store else store
    assert f"holds no release 'x'\nhint: choose one of those: trtgen release list {quoted}\n" in said
    assert main(["release", "pull", store, "--channel", "nightly"]) == 1
    assert "has no channel nightly; it has production, staging" in capsys.readouterr().err
    assert main(["release", "list", str(tmp_path / "nothing")]) == 1
    assert "holds no releases" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["push", "list", "pull", "rollback", "prune"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", command, "--help"]) == 0
    assert f"Example: trtgen release {command} s3://" in capsys.readouterr().out
