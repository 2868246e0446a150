"""Bulk work: sources in their order, results that survive a crash, processes that die, the served model's answers."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from generator.bulk import results, run, sources
from generator.bulk.images import as_column, open_store, read_images
from generator.bulk.results import MANIFEST, Finished, Results, open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import Source, open_source
from generator.bulk.step import Step
from generator.bulk.table import make_schema, make_table
from generator.cli import main
from generator.demo.scenes import draw_scenes
from generator.errors import BulkError, MissingDependencyError
from generator.events import Doing
from generator.pipeline import build_repository
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from tests.bulk_steps import TextStep, die, refuse
from tests.release_parts import use_s3
from tests.server_parts import wait_until
from tests.test_disk_full import Disk, fill
from tests.test_repository import QUICK, RECIPE, tiny
from tests.tiny_onnx import write_tiny_onnx

ROOT = Path(__file__).parents[1]
IMAGES = 20_000
BAD_EVERY = 100


def write_texts(folder: Path, count: int) -> Path:
    """Files whose text is their number, in two folders."""
    for number in range(count):
        path = folder / str(number % 2) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    return folder


def names_of(source: Source, start: int = 0, after: str = "") -> list[str]:
    return [item.path for item in source.iterate(start, after)]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(folder).to_pylist()
    return rows


# --- sources


def test_a_folder_goes_on_behind_any_of_its_files(tmp_path: Path) -> None:
    names = ["a/b.jpg", "a/b.jpg.jpg", "a.jpg", "a.JPG", "a!.png", "b/a/c.webp", "b/a.gif", "b/z/y/x.bmp", "é.jpeg"]
    for name in [*names, "a/notes.txt", "b/README"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    names = sorted([*names, "circle.jpg", "linked.jpg"])
    source = open_source(str(tmp_path))
    items = list(source.iterate(0, ""))
    assert [item.name for item in items] == names
    assert [item.path for item in items] == [f"{tmp_path}/{name}" for name in names]
    for number, item in enumerate(items, 1):
        assert list(source.iterate(number, item.name)) == items[number:]
    assert source.count() == len(names)
    (tmp_path / names[3]).unlink()  # it was the last one that was read
    assert list(source.iterate(4, names[3])) == items[4:]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg"]),
        ("x/**/*.jpg", ["x/c.jpg", "x/y/d.jpg"]),
        ("*/?.jpg", ["x/c.jpg"]),
        ("x/y/*", ["x/y/d.jpg", "x/y/e.txt"]),
        ("[!a].*", ["b.jpg"]),
        ("nothing*", []),
    ],
)
def test_a_pattern_is_read_as_a_shell_does(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "x/y/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = open_source(f"{tmp_path}/{pattern}")
    assert names_of(source) == [f"{tmp_path}/{name}" for name in names]
    assert source.count() == len(names)


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").touch()

    def deny(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", deny)  # these tests run as root, whom nothing is denied
    with pytest.raises(BulkError, match=r"cannot be read: Permission denied"):
        names_of(open_source(str(tmp_path)))


def test_lists_of_paths(tmp_path: Path) -> None:
    paths = ["a.jpg", "/b.jpg", "s3://c/d.jpg", 'with "quotes", and\nlines.jpg', "a.jpg"] * 50
    with (tmp_path / "list.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["label", "path"], *(["x", path] for path in paths)])
    parquet.write_table(pa.table({"path": paths, "label": paths}), tmp_path / "list.parquet", row_group_size=7)
    wanted = [path if path.startswith(("/", "s3:")) else f"{tmp_path}/{path}" for path in paths]
    for name in ("list.csv", "list.parquet"):
        source = open_source(str(tmp_path / name))
        assert source.count() == len(paths)
        for start in (0, 1, 6, 7, 8, 20, len(paths)):
            assert names_of(source, start) == wanted[start:]


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "wrong.csv").write_text("file,label\na.jpg,1\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "nul.csv").write_text("path\n" + "x" * 200_000)
    (tmp_path / "text.parquet").write_text("path")
    (tmp_path / "empty.parquet").touch()
    parquet.write_table(pa.table({"path": [1]}), tmp_path / "numbers.parquet")
    parquet.write_table(pa.table({"file": ["a"]}), tmp_path / "columns.parquet")
    for text, words in {
        "gone": "does not exist",
        "photo.jpg": "is a file; a folder, a pattern",
        "gone/*.jpg": "is not a folder",
        "wrong.csv": "its columns are file, label",
        "empty.csv": "its columns are none",
        "nul.csv": "field larger than field limit",
        "text.parquet": "cannot be read as a list of paths: Parquet",
        "empty.parquet": "cannot be read as a list of paths: Parquet file size is 0 bytes",
        "numbers.parquet": "its column path holds int64, text was expected",
        "columns.parquet": "its columns are file",
    }.items():
        with pytest.raises(BulkError, match=words):
            names_of(open_source(str(tmp_path / text)))
        if text.endswith((".csv", ".parquet")):
            with pytest.raises(BulkError, match=words):
                open_source(str(tmp_path / text)).count()
    with pytest.raises(BulkError, match="is none of s3://"):
        open_source("ftp://host/photos")


def test_an_image_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(b"good")
    (tmp_path / "large.jpg").write_bytes(bytes(11))
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    names = ["good.jpg", "gone.jpg", "large.jpg", "folder.jpg", "pipe.jpg", "circle.jpg", "\0"]
    paths = [*(f"{tmp_path}/{name}" for name in names), "foo://bar/x.jpg", "http://host/x.jpg", ""]
    batch = read_images({"path": np.array(paths, np.object_)}, most_bytes=10)
    assert list(batch["image"]) == [b"good"] + [None] * 9
    assert list(batch["error"]) == [
        None,
        "cannot be read: No such file or directory",
        "more than 10 bytes, which is the most that is accepted",
        "cannot be read: Is a directory",
        "cannot be read: not a regular file",
        "cannot be read: Too many levels of symbolic links",
        "cannot be read: embedded null byte",
        "cannot be read: foo:// is not supported; s3://, gs:// and az:// are",
        "cannot be read: http:// is not supported; s3://, gs:// and az:// are",
        "the row has no path",
    ]


def test_a_row_of_a_list_without_a_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("label,path\nx,\nx\n")
    parquet.write_table(pa.table({"path": ["", None]}), tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        work(tmp_path / name, tmp_path / f"results of {name}", TextStep)
        rows = read_rows(tmp_path / f"results of {name}")
        assert [(row["path"], row["error"]) for row in rows] == [("", "the row has no path")] * 2


@pytest.fixture
def stored(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """s3://photos with a few objects."""
    from obstore.store import from_url

    use_s3(monkeypatch, s3.meta.endpoint_url)
    open_store.cache_clear()
    s3.create_bucket(Bucket="photos")
    store = from_url("s3://photos", client_options={"allow_http": True})
    for number in range(25):
        store.put(f"in/{number % 2}/{number:02d} ü%20.jpg", str(number).encode())
    store.put("in/readme.txt", b"")
    store.put("inner/other.jpg", b"")
    yield store
    open_store.cache_clear()


def test_a_bucket(stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("s3://photos/in/")
    monkeypatch.setattr(sources, "_LISTED_AT_ONCE", 4)
    items = list(source.iterate(0, ""))
    assert [item.path for item in items[:2]] == ["s3://photos/in/0/00 ü%20.jpg", "s3://photos/in/0/02 ü%20.jpg"]
    assert len(items) == 25
    for number, item in enumerate(items, 1):
        assert list(source.iterate(number, item.name)) == items[number:]
    stored.put("in/1/03 ü%20.jpg", bytes(2000))
    work("s3://photos/in", tmp_path / "results", TextStep)
    rows = read_rows(tmp_path / "results")
    assert [row["path"] for row in rows] == [item.path for item in items]
    assert [row["error"] for row in rows if row["error"]] == [
        "more than 1000 bytes, which is the most that is accepted"
    ]
    wanted = [str(number) for number in [*range(0, 25, 2), *range(1, 25, 2)] if number != 3]
    assert [label for label in labels_of(tmp_path / "results") if label] == wanted


def test_an_object_that_is_gone_is_an_error_and_a_bucket_that_is_gone_the_end(stored: Any, tmp_path: Path) -> None:
    texts = ["s3://photos/in/gone.jpg", "s3://photos", "s3://photos/a//b.jpg", "s3://photos/in/1/01 ü%20.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *texts]))
    work(tmp_path / "list.csv", tmp_path / "results", TextStep)
    *errors, good = [row["error"] for row in read_rows(tmp_path / "results")]
    assert errors[:2] == ["cannot be read: no such object", "cannot be read: no object is named"]
    assert "empty path segment" in errors[2]
    assert good is None
    (tmp_path / "list.csv").write_text("path\n" + "s3://photos/in/1/01 ü%20.jpg\n" * 10 + "s3://nowhere/a.jpg\n")
    with pytest.raises(BulkError, match=r"s3://nowhere cannot be read: there is no such bucket"):
        work(tmp_path / "list.csv", tmp_path / "others", TextStep)
    assert labels_of(tmp_path / "others") == ["1"] * 10
    with pytest.raises(BulkError, match=r"s3://nowhere/in cannot be read: there is no such bucket"):
        work("s3://nowhere/in", tmp_path / "more", TextStep)


def test_buckets_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.exceptions", "obstore.store"):
        monkeypatch.setitem(sys.modules, name, None)
    for read in (
        lambda: read_images({"path": as_column(["s3://photos/a.jpg"])}, most_bytes=9),
        lambda: list(open_source("s3://photos/in").iterate(0, "")),
    ):
        with pytest.raises(MissingDependencyError, match="obstore is not installed"):
            read()


# --- results


def answers(first: int, count: int, *, errors: int = 0) -> Any:
    rows = [None] * errors + [[{"label": "x", "index": 1, "score": 0.5}]] * (count - errors)
    return make_table(
        {
            "item": np.arange(first, first + count),
            "path": as_column([f"{number}.jpg" for number in range(first, first + count)]),
            "classes": as_column(rows),
            "error": as_column(["broken"] * errors + [None] * (count - errors)),
        }
    )


@contextlib.contextmanager
def opened(folder: Path, identity: dict[str, Any] | None = None, rows_per_part: int = 10) -> Iterator[Results]:
    with open_results(folder, identity or {"source": "photos"}, rows_per_part=rows_per_part) as results:
        yield results


def write_parts(folder: Path, parts: int) -> list[Path]:
    with opened(folder) as results:
        for number in range(parts):
            results.add(answers(10 * number, 10, errors=1), f"name {number}")
    return sorted(folder.glob("*.parquet"))


def test_results_go_on_behind_the_last_part(tmp_path: Path) -> None:
    paths = write_parts(tmp_path / "results", 3)
    assert paths[1].name == "part-000000000010-000000000020.parquet"
    with opened(tmp_path / "results") as results:
        assert results.finished == Finished(items=30, errors=3, last="name 2")
        assert not results.is_complete
        results.add(answers(30, 4), "odd \udcff")
        assert list((tmp_path / "results").glob(".*")) != []  # begun, and dropped as the block ends
    assert list((tmp_path / "results").glob(".*")) == []
    with opened(tmp_path / "results") as results:
        assert results.finished.items == 30
        results.add(answers(30, 4), "odd \udcff")
        results.complete()
    with opened(tmp_path / "results") as results:
        assert results.finished == Finished(items=34, errors=3, last="odd \udcff")
        assert results.is_complete
    assert [row["item"] for row in read_rows(tmp_path / "results")] == list(range(34))


def test_a_part_that_a_crash_cut_off_is_thrown_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "results"
    *others, last = write_parts(folder, 3)
    (folder / ".part-000000000030.parquet.tmp").write_bytes(last.read_bytes()[:100])
    (folder / f".{MANIFEST}.abc").touch()
    with opened(tmp_path / "short", rows_per_part=9) as results:
        results.add(answers(0, 9), "name")
    (short,) = (tmp_path / "short").glob("*.parquet")
    data = last.read_bytes()
    for harmed in (b"", data[:4], data[: len(data) // 2], data[:-1], short.read_bytes()):
        last.write_bytes(harmed)
        with opened(folder) as results:
            assert results.finished.items == 20
        assert "is incomplete: it is removed" in caplog.text
        assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, *(part.name for part in others)]


def test_a_part_that_cannot_be_read_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_parts(tmp_path / "results", 2)

    def fail(_path: Path) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(parquet, "read_metadata", fail)
    with pytest.raises(BulkError) as caught, opened(tmp_path / "results"):
        pass
    assert caught.value.message == f"{paths[0]} cannot be read: Input/output error"
    assert "let this user read it" in caught.value.hint
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("harm", ["missing", "cut off"])
def test_parts_that_do_not_follow_each_other_are_refused(tmp_path: Path, harm: str) -> None:
    _, second, third = write_parts(tmp_path / "results", 3)
    second.unlink() if harm == "missing" else os.truncate(second, 50)
    words = "item 10 is in no part" if harm == "missing" else f"{second.name} is damaged"
    with pytest.raises(BulkError, match=f"cannot be continued: {words}"), opened(tmp_path / "results"):
        pass
    assert third.exists()


def test_results_of_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    with opened(folder, {"source": "phots", "top": 5}):
        pass
    write_parts(folder, 1)  # nothing was there yet: a wrong source does no harm
    words = "results of something else: source was photos and is others; top was None and is 5"
    with pytest.raises(BulkError, match=words), opened(folder, {"source": "others", "top": 5}):
        pass
    with opened(folder), pytest.raises(BulkError, match="another run writes its results to"), opened(folder):
        pass
    (folder / MANIFEST).write_text("{")
    with pytest.raises(BulkError, match=f"{MANIFEST} cannot be read"), opened(folder):
        pass
    (folder / MANIFEST).unlink()
    with pytest.raises(BulkError, match=f"holds files, but no {MANIFEST}: it is not a results folder"), opened(folder):
        pass

    def deny(*_arguments: Any, **_options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_temporary", deny)  # these tests run as root, whom nothing is denied
        with pytest.raises(BulkError, match=r"cannot be written to .*: Permission denied"), opened(tmp_path / "new"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(BulkError, match=r"cannot be written to .*file: "), opened(tmp_path / "file"):
        pass


def write_on(results: Results, count: int) -> None:
    while True:
        results.add(answers(results.finished.items, count), "name")


def test_a_full_disk_is_said_and_what_is_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "results", 2)
    monkeypatch.setattr("generator.bulk.results._ROW_GROUP_BYTES", 1 << 16)
    for room, count in ((0, 10), (3, 10), (1000, 10), (1500, 10), (9000, 5000)):  # the last one as rows are written
        with monkeypatch.context() as patched, opened(tmp_path / "results") as results:
            fill(patched, Disk(tmp_path, room))
            with pytest.raises(BulkError, match=r"cannot be written to .*: No space left on device"):
                write_on(results, count)
            results.flush()  # as a run does however it ends: there is nothing that could be kept
        assert list((tmp_path / "results").glob(".*")) == []
        with opened(tmp_path / "results") as results:
            assert results.finished.items >= 20
            assert [row["item"] for row in read_rows(tmp_path / "results")] == list(range(results.finished.items))


# --- the work


def work(
    source: Path | str, folder: Path, *steps: Callable[[], Step], batch_size: int = 10, **options: Any
) -> Finished:
    with opened(folder, rows_per_part=20) as results:
        return run_bulk(open_source(str(source)), results, steps, batch_size=batch_size, **options)


def labels_of(folder: Path) -> list[str | None]:
    return [row["classes"] and row["classes"][0]["label"] for row in read_rows(folder)]


def test_a_process_that_is_killed_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_texts(tmp_path / "photos", 200)
    (photos / "0/00100.jpg").write_bytes(bytes(2000))
    step = functools.partial(TextStep, "36", "kill", tmp_path / "killed")
    told: list[Any] = []
    finished = work(photos, tmp_path / "results", step, step, on_event=told.append)
    assert (finished.items, finished.errors) == (200, 1)
    assert caplog.messages == ["a worker process ended by signal SIGKILL, as when memory runs out: it is started again"]
    wanted: list[str | None] = [str(number) for number in [*range(0, 200, 2), *range(1, 200, 2)]]
    wanted[50] = None
    assert labels_of(tmp_path / "results") == wanted
    assert all(isinstance(event, Doing) and " of 200 images, " in event.part for event in told)


def test_a_process_that_always_fails_ends_the_work_with_the_reason(tmp_path: Path) -> None:
    photos = write_texts(tmp_path / "photos", 60)
    kills = functools.partial(TextStep, "50", "kill")
    with pytest.raises(BulkError, match=r"3 worker processes ended at the same images, .*00040.jpg to .*00058.jpg"):
        work(photos, tmp_path / "killed", kills)
    assert labels_of(tmp_path / "killed") == [str(number) for number in range(0, 40, 2)]
    with pytest.raises(BulkError, match="the GPU is gone") as raised:
        work(photos, tmp_path / "raised", functools.partial(TextStep, "50", "raise"))
    assert raised.value.hint == "look for it"
    with pytest.raises(BulkError, match="no plan"):
        work(photos, tmp_path / "refused", refuse)
    with pytest.raises(BulkError, match=r"ended by signal SIGKILL.* before it was ready"):
        work(photos, tmp_path / "dead", die)
    work(photos, tmp_path / "killed", TextStep)
    assert sorted(map(int, filter(None, labels_of(tmp_path / "killed")))) == list(range(60))


def test_silence_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_texts(tmp_path / "photos", 20)
    monkeypatch.setattr(run, "_SILENCE_S", 0.2)
    monkeypatch.setattr(run, "_TOLD_EVERY_S", 0.1)
    work(photos, tmp_path / "results", functools.partial(TextStep, "4", "sleep"))
    assert f"at work: {photos}/0/00000.jpg" in caplog.text


def test_a_source_without_an_image_is_said_and_another_can_follow(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BulkError, match="the source holds no image") as caught:
        work(tmp_path / "empty", tmp_path / "results", TextStep)
    assert ".png, .webp" in caught.value.hint
    work(write_texts(tmp_path / "photos", 3), tmp_path / "results", TextStep)
    assert labels_of(tmp_path / "results") == ["0", "2", "1"]


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    acts: dict[str, Callable[[], object]] = {
        "pyarrow": lambda: make_schema(["path"]),
        "obstore.store": lambda: open_source("s3://not-asked-before/photos"),
    }
    for package, act in acts.items():
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(MissingDependencyError, match=f"{package.partition('.')[0]} is not installed"):
                act()


# --- a model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier for 32x32 pixels, one that tells two classes apart, and the demo detector."""
    folder = tmp_path_factory.mktemp("models")
    build_repository(tiny(folder), folder / "repo", QUICK)
    two = write_tiny_onnx(folder / "two.onnx", classes=1, tail="sigmoid")
    (folder / "two.txt").write_text("open\nshut\n")
    build_repository(make_spec([str(two)], labels=folder / "two.txt", recipe=RECIPE)[0], folder / "repo", QUICK)
    build_repository(make_spec(["demo-detector"], target="onnxruntime")[0], folder / "repo", QUICK)
    return folder / "repo"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 pictures of 32x32 pixels in 100 folders, one of each hundred broken."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"{number // 200:02d}" / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        with io.BytesIO() as stream:
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG", compress_level=1)
            data = stream.getvalue()
        path.write_bytes(data[:90] if number % BAD_EVERY == 50 else data)
    return folder


def start(root: Path, source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "generator", "classify-all", source, "--out", out, "-r", root, "--model", "tiny"),
            *("--batch", "32", "--rows-per-part", "1000", *options),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def count_parts(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


def check_all_there(out: Path, photos: Path) -> None:
    rows = read_rows(out)
    assert [row["item"] for row in rows] == list(range(IMAGES))
    assert [row["path"] for row in rows] == sorted(map(str, photos.rglob("*.png")))
    broken = [row for row in rows if row["error"] is not None]
    assert [row["item"] % BAD_EVERY for row in broken] == [50] * (IMAGES // BAD_EVERY)
    assert {row["error"].partition(":")[0] for row in broken} == {"broken image"}
    assert all((row["classes"] is None) == (row["error"] is not None) for row in rows)


def kill_after(process: subprocess.Popen[str], out: Path, parts: int) -> None:
    """Kill the command, not its processes, once there are so many parts; all of them end."""
    assert wait_until(lambda: count_parts(out) >= parts, timeout_s=60)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(child.is_running() for child in children))


def test_three_times_killed_and_every_image_is_answered_once(root: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    for _ in range(3):
        kill_after(start(root, photos, out), out, count_parts(out) + 2)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    items = max(int(name[18:30]) for name in kept)
    assert items < IMAGES
    process = start(root, photos, out)
    output, said = process.communicate()
    assert (process.returncode, output) == (0, f"{out}\n"), said
    assert f"holds the answers to {items:,} images: it goes on behind them" in said
    assert f"answered {IMAGES - items:,} images" in said
    assert "200 of 20,000 images (1.0%) have no answer: see the column `error`" in said
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept  # nothing is done twice
    check_all_there(out, photos)
    output, said = start(root, photos, out).communicate()
    assert "holds the answers to 20,000 images: all of the source" in said


def test_ctrl_c_keeps_what_is_answered(root: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    process = start(root, photos, out, "--rows-per-part", "1000000")
    assert wait_until(lambda: bool(list(out.glob(".part-*"))), timeout_s=60)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    (part,) = out.glob("part-*.parquet")
    kept = parquet.read_metadata(part).num_rows
    assert said.splitlines() == [
        f"{out} holds the answers to {kept:,} images: the same command goes on behind them",
        "error: interrupted",
    ]
    assert list(out.glob(".*")) == []
    start(root, photos, out).communicate()
    check_all_there(out, photos)


def test_images_that_vanish_are_errors(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a list whose files are gone; another list, model or number of classes is another result."""
    (tmp_path / "list.csv").write_text("path\ngone.jpg\n" + f"{ROOT}/clients/samples/star.jpg\n")
    arguments = [str(tmp_path / "list.csv"), "-r", str(root), "--out", str(tmp_path / "results")]
    with monkeypatch.context() as patched:
        patched.setattr("PIL.__version__", "1.2")
        assert main(["classify-all", *arguments, "--model", "tiny"]) == 0
    assert "Pillow is 1.2, the pixels of tiny were proved with" in capsys.readouterr().err
    rows = read_rows(tmp_path / "results")
    assert [row["error"] for row in rows] == ["cannot be read: No such file or directory", None]
    assert [len(row["classes"]) for row in rows[1:]] == [4]
    for command, words in {
        ("classify-all", "--model", "tiny", "--top", "2"): "something else: top was 5 and is 2",
        ("classify-all", "--model", "two"): "something else: model was tiny and is two; network was",
        ("classify-all",): "holds 2 models for classification: tiny, two\nhint: name one (--model tiny)",
        ("detect-all", "--model", "two"): "two is a model for classification, not for detection",
        ("detect-all", "--model", "three"): "holds no model 'three'",
    }.items():
        assert main([*command, *arguments]) == 1
        assert words in capsys.readouterr().err
    with (tmp_path / "list.csv").open("a") as stream:
        stream.write("another.jpg\n")
    assert main(["classify-all", *arguments, "--model", "tiny"]) == 1
    assert "modified_ns was" in capsys.readouterr().err


@pytest.mark.server
def test_the_answers_are_the_served_models(root: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, scene in enumerate(draw_scenes(12)):
        (photos / f"{number}.jpg").write_bytes(scene.jpeg)
    for name in ("clients/samples/star.jpg", "generator/assets/china.jpg"):
        shutil.copy(ROOT / name, photos)
    image = Image.open(photos / "0.jpg")
    image.convert("P").save(photos / "palette.gif")
    image.convert("LA").save(photos / "alpha.png")
    image.convert("CMYK").save(photos / "inks.jpg")
    with EmbeddedServer(root) as server:
        for model, command, client, column in (
            ("tiny", "classify-all", "classify", "classes"),
            ("two", "classify-all", "classify", "classes"),
            ("demo-detector", "detect-all", "detect", "detections"),
        ):
            asked = subprocess.run(
                [sys.executable, f"clients/{client}.py", "--url", server.grpc_url, "--model", model, "--json", photos],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            served = {Path(one["file"]).name: one[column] for one in map(json.loads, asked.stdout.splitlines())}
            assert len(served) == 17
            for engine in (("-r", str(root)), ("--endpoint", server.grpc_url.rpartition("://")[2])):
                out = tmp_path / (model + engine[0])
                assert main([command, str(photos), "--model", model, *engine, "--out", str(out)]) == 0
                answered = {Path(row["path"]).name: row[column] for row in read_rows(out)}
                assert answered.keys() == served.keys()
                for name, rows in answered.items():
                    assert [(row["label"], row["index"]) for row in rows] == [
                        (row["label"], row["index"]) for row in served[name]
                    ]
                    for row, other in zip(rows, served[name], strict=True):
                        np.testing.assert_allclose(row["score"], other["score"], atol=1e-5)
                        np.testing.assert_allclose(row.get("box", []), other.get("box", []), atol=0.02)
