"""Publishing: versions, contracts, journal and recovery, on real built models."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from tritonclient.grpc import InferenceServerClient

from benchmarks.crash import run_until_killed
from generator.cli import main
from generator.errors import RepositoryError
from generator.files import hash_file
from generator.gate.published import verify_published
from generator.packages import installed_packages
from generator.pipeline import BuildOptions, build_repository
from generator.repository import find_records, journal, read_record
from generator.repository.publish import hash_tree
from generator.repository.removal import remove_model
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from tests.tiny_onnx import write_tiny_onnx

QUICK = BuildOptions(verify=False)
RECIPE = {
    "resize": 36,
    "crop": 32,
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def tiny(tmp_path: Path, *, seed: int = 0, classes: int = 4, **options: Any) -> ModelSpec:
    """A spec of a tiny ONNX file whose content follows from `seed`."""
    path = write_tiny_onnx(tmp_path / "tiny.onnx", seed=seed, classes=classes)
    given = {"labels": "index", "recipe": RECIPE, "instances": {"preprocess": 1}, **options}
    return make_spec([str(path)], **given)[0]


def words(tmp_path: Path, spec: ModelSpec, options: BuildOptions = QUICK) -> dict[str, str]:
    built = build_repository(spec, tmp_path / "repo", options)
    return {change.path: change.word for change in built.changes}


def test_the_tree(tmp_path: Path) -> None:
    assert set(words(tmp_path, tiny(tmp_path)).values()) == {"create"}
    assert list(hash_tree(tmp_path / "repo")) == [
        "tiny/1/version.json",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
        "tiny/trtgen.json",
        "tiny_classifier/1/model.onnx",
        "tiny_classifier/1/reference.npz",
        "tiny_classifier/config.pbtxt",
        "tiny_classifier/labels.txt",
        "tiny_preprocess/1/model.py",
        "tiny_preprocess/config.pbtxt",
        "tiny_preprocess/warmup/image.bin",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nothing_changed_touches_nothing(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    words(tmp_path, spec)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "repo").rglob("*")}
    assert set(words(tmp_path, spec).values()) == {"identical"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "repo").rglob("*")} == before


def test_new_weights_are_a_new_version_and_the_old_one_stays_as_it_is(tmp_path: Path) -> None:
    words(tmp_path, tiny(tmp_path))
    first = hash_tree(tmp_path / "repo" / "tiny_classifier" / "1")
    changes = words(tmp_path, tiny(tmp_path, seed=1))
    assert {path for path, word in changes.items() if word == "create"} == {
        "tiny/2/version.json",
        "tiny_classifier/2/model.onnx",
        "tiny_classifier/2/reference.npz",
        "tiny_preprocess/2/model.py",
    }
    assert changes["tiny_classifier/config.pbtxt"] == "identical"
    assert hash_tree(tmp_path / "repo" / "tiny_classifier" / "1") == first


def test_another_configuration_is_no_new_version(tmp_path: Path) -> None:
    words(tmp_path, tiny(tmp_path))
    changes = words(tmp_path, tiny(tmp_path, max_queue_delay_microseconds=9))
    assert {path for path, word in changes.items() if word == "update"} == {
        "tiny_classifier/config.pbtxt",
        "tiny/trtgen.json",
    }
    assert "max_queue_delay_microseconds: 9" in (tmp_path / "repo/tiny_classifier/config.pbtxt").read_text()


def test_what_somebody_edited_is_refused_with_its_lines(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    words(tmp_path, tiny(tmp_path))
    config, labels = root / "tiny_classifier/config.pbtxt", root / "tiny/labels.txt"
    published = hash_tree(root)
    config.write_text(config.read_text().replace("microseconds: 500", "microseconds: 800"))
    labels.write_text(labels.read_text().replace("2\n", "two\n"))
    edited = hash_tree(root)

    def check(options: BuildOptions, **change: Any) -> None:
        with pytest.raises(RepositoryError) as caught:
            words(tmp_path, tiny(tmp_path, **change), options)
        lines = caught.value.message.splitlines()
        assert lines == [
            "tiny is left as it is, since somebody edited it:",
            f"{labels} was changed after trtgen published it",
            "  --- published",
            f"  +++ {labels}",
            "  @@ -3 +3 @@",
            "  -2",
            "  +two",
            f"{config} was changed after trtgen published it",
            "  --- published",
            f"  +++ {config}",
            lines[10],  # the place
            "  -dynamic_batching { max_queue_delay_microseconds: 500 }",
            "  +dynamic_batching { max_queue_delay_microseconds: 800 }",
        ]
        assert caught.value.fields == {"discard_edits": True}
        assert hash_tree(root) == edited

    check(QUICK)
    check(QUICK, max_queue_delay_microseconds=9)
    check(QUICK, seed=1)
    check(replace(QUICK, replace=True))
    check(replace(QUICK, dry_run=True))
    for dry in (True, False):
        changes = words(tmp_path, tiny(tmp_path), replace(QUICK, discard_edits=True, dry_run=dry))
        assert {path for path, word in changes.items() if word == "update"} == {
            "tiny_classifier/config.pbtxt",
            "tiny/labels.txt",
        }, "what was published comes back, and the record says the same as before"
        assert hash_tree(root) == (edited if dry else published)


def test_an_edit_is_named_where_its_lines_cannot_be_shown(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    words(tmp_path, spec)
    (tmp_path / "repo/tiny_preprocess/warmup/image.bin").write_bytes(b"\xff")
    with pytest.raises(RepositoryError, match=r"image.bin was changed after trtgen published it$"):
        words(tmp_path, spec)
    (tmp_path / "repo/tiny_classifier/1/model.onnx").write_bytes(b"nothing can be rendered from this")
    with pytest.raises(RepositoryError, match=r"image.bin was changed after trtgen published it$"):
        words(tmp_path, spec)


def test_lines_that_trtgen_would_write_otherwise_now_are_not_called_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(tmp_path)
    words(tmp_path, spec)
    config = tmp_path / "repo/tiny_preprocess/config.pbtxt"
    config.write_text(config.read_text() + "\n" * 60)
    versions = {**installed_packages(), "pillow": "99"}
    monkeypatch.setattr("generator.tasks.members.installed_packages", lambda: versions)
    with pytest.raises(RepositoryError) as caught:
        words(tmp_path, spec)
    lines = caught.value.message.splitlines()
    assert lines[2] == "  --- as trtgen would write it now"
    assert any(line.startswith('  -parameters { key: "pillow" value { string_value: "99"') for line in lines)
    assert (len(lines), lines[-1]) == (43, "  ... and 26 more lines")


def test_an_edit_made_while_a_build_runs_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words(tmp_path, tiny(tmp_path))
    config = tmp_path / "repo/tiny/config.pbtxt"

    def prove(*_: object) -> None:
        config.write_text(config.read_text() + "# mine\n")

    monkeypatch.setattr("generator.pipeline._prove", prove)
    with pytest.raises(RepositoryError, match="was changed after"):
        words(tmp_path, tiny(tmp_path, seed=1))
    assert config.read_text().endswith("# mine\n")
    assert not (tmp_path / "repo/tiny/2").exists()


def test_files_that_somebody_added_stay_and_are_not_removed_with_a_version(tmp_path: Path) -> None:
    words(tmp_path, tiny(tmp_path))
    notes = tmp_path / "repo/tiny_classifier/notes.txt"
    notes.write_text("mine")
    words(tmp_path, tiny(tmp_path, seed=1))
    with pytest.raises(RepositoryError, match=r"notes.txt was not made by trtgen$"):
        words(tmp_path, tiny(tmp_path, classes=5), replace(QUICK, replace=True))
    assert notes.read_text() == "mine"
    changes = words(tmp_path, tiny(tmp_path, classes=5), replace(QUICK, replace=True, discard_edits=True))
    assert changes["tiny_classifier/notes.txt"] == "remove"
    assert not notes.exists()


def test_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    words(tmp_path, tiny(tmp_path))
    (tmp_path / "repo/tiny/labels.txt").unlink()
    assert words(tmp_path, tiny(tmp_path))["tiny/labels.txt"] == "create"


def test_files_come_before_the_configuration_that_names_them_and_the_record_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words(tmp_path, tiny(tmp_path))
    for name in ("tiny/labels.txt", "tiny_classifier/labels.txt", "tiny_preprocess/warmup/image.bin"):
        (tmp_path / "repo" / name).write_text("edited")
    for config in (tmp_path / "repo").glob("*/config.pbtxt"):
        config.write_text(config.read_text() + "# edited\n")
    moved: list[str] = []
    rename = Path.rename

    def watch(path: Path, target: Path) -> Path:
        if target.is_relative_to(tmp_path / "repo"):
            moved.append(target.relative_to(tmp_path / "repo").as_posix())
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watch)
    words(tmp_path, tiny(tmp_path, seed=1), replace(QUICK, discard_edits=True))
    assert moved == [
        "tiny_preprocess/2",
        "tiny_preprocess/warmup/image.bin",
        "tiny_preprocess/config.pbtxt",
        "tiny_classifier/2",
        "tiny_classifier/labels.txt",
        "tiny_classifier/config.pbtxt",
        "tiny/2",
        "tiny/labels.txt",
        "tiny/config.pbtxt",
        "tiny/trtgen.json",
    ]


def test_a_damaged_graph_is_replaced_by_a_new_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = tiny(tmp_path)
    words(tmp_path, spec)
    damaged = tmp_path / "repo/tiny_classifier/1/model.onnx"
    damaged.write_bytes(b"broken")
    assert words(tmp_path, spec)["tiny_classifier/2/model.onnx"] == "create"
    assert damaged.read_bytes() == b"broken"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{damaged} is not what was published: it stays as it is, and a new version is made"
    ]


def test_other_labels_are_another_contract(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    spec = tiny(tmp_path, labels=str(labels))
    words(tmp_path, spec)
    labels.write_text("a\nb\nd\nc\n")
    with pytest.raises(RepositoryError, match=r"labels: \['a', 'b', 'c', 'd'\] -> \['a', 'b', 'd', 'c'\]"):
        build_repository(spec, tmp_path / "repo", QUICK)


def test_weights_beside_an_onnx_file_count_too(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    model = onnx.load(tmp_path / "tiny.onnx")
    onnx.save(model, tmp_path / "tiny.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    words(tmp_path, spec)
    weights = bytearray((tmp_path / "w.bin").read_bytes())
    weights[3] ^= 1  # the sign or exponent of one number
    (tmp_path / "w.bin").write_bytes(weights)
    assert words(tmp_path, spec)["tiny_classifier/2/model.onnx"] == "create"


def test_a_checkpoint_may_lie_elsewhere(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    words(tmp_path, spec)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "tiny.onnx").rename(moved / "tiny.onnx")
    changes = words(tmp_path, spec.model_copy(update={"onnx": moved / "tiny.onnx"}))
    assert {path for path, word in changes.items() if word != "identical"} == {"tiny/trtgen.json"}


def test_the_folder_one_stands_in_can_be_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "here"
    root.mkdir()
    monkeypatch.chdir(root)
    build_repository(tiny(tmp_path), Path(), QUICK)
    assert sorted(path.name for path in root.iterdir()) == ["tiny", "tiny_classifier", "tiny_preprocess"]
    record = read_record(root, "tiny")
    assert record is not None
    assert record.command == "trtgen build-repo --spec here/tiny/trtgen.json --repository here"


CONFIG = {
    "classifier": """
        instance_group [ { kind: KIND_CPU count: 2 } ]  # in place of one
        model_warmup []
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }
    """,
    "preprocess": "dynamic_batching { preferred_batch_size: [ 4 ] }",
    "ensemble": 'metric_tags { key: "team" value: "vision" }',
}


@pytest.mark.server
def test_an_earlier_version_can_be_served_again(tmp_path: Path) -> None:
    proved = BuildOptions(require_all=True)
    words(tmp_path, tiny(tmp_path), proved)
    words(tmp_path, tiny(tmp_path, seed=1), proved)
    back = tiny(tmp_path, seed=1, versions=[1], config=CONFIG)
    changes = words(tmp_path, back, proved)
    assert {path for path, word in changes.items() if word == "update"} == {
        "tiny_classifier/config.pbtxt",
        "tiny_preprocess/config.pbtxt",
        "tiny/config.pbtxt",
        "tiny/trtgen.json",
    }
    with EmbeddedServer(tmp_path / "repo") as server:
        (report,) = verify_published(tmp_path / "repo", ["tiny"], grpc_url=server.grpc_url)
        assert report.failed == report.unproved == ()
        with InferenceServerClient(server.grpc_url) as client:
            classifier, preprocess, ensemble = (
                client.get_model_config(name).config for name in ("tiny_classifier", "tiny_preprocess", "tiny")
            )
    assert [(group.kind, group.count) for group in classifier.instance_group] == [(2, 2)]
    assert {key: value.string_value for key, value in classifier.parameters.items()} == {"intra_op_thread_count": "1"}
    assert list(classifier.model_warmup) == []
    assert list(preprocess.dynamic_batching.preferred_batch_size) == [4]
    assert preprocess.parameters["resize"].string_value == "36"
    assert ensemble.metric_tags["team"] == "vision"
    with pytest.raises(RepositoryError, match=r"versions lists \[7\], but there are \[1, 2\]"):
        build_repository(tiny(tmp_path, seed=1, versions=[7]), tmp_path / "repo", QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 5}, "output:"),
        ({"recipe": {**RECIPE, "resize": 40}}, "preprocessing:"),
        ({"recipe": {**RECIPE, "fit": "letterbox"}}, "preprocessing:"),
        ({"recipe": {**RECIPE, "rounding": "floor"}}, "preprocessing:"),
        ({"activation": "none"}, "output:"),
    ],
)
def test_another_contract_needs_replace(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    words(tmp_path, tiny(tmp_path))
    before = hash_tree(tmp_path / "repo")
    spec = tiny(tmp_path, **change)
    with pytest.raises(RepositoryError, match="published with another contract") as caught:
        build_repository(spec, tmp_path / "repo", QUICK)
    assert message in caught.value.message
    assert caught.value.fields == {"replace": True}
    assert hash_tree(tmp_path / "repo") == before
    changes = words(tmp_path, spec, replace(QUICK, replace=True))
    assert changes["tiny_classifier/1/model.onnx"] == "remove"
    assert not (tmp_path / "repo/tiny_classifier/1").exists()
    assert (tmp_path / "repo/tiny_classifier/2/model.onnx").is_file()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    dry = replace(QUICK, dry_run=True)
    assert set(words(tmp_path, tiny(tmp_path), dry).values()) == {"create"}
    assert not (tmp_path / "repo").exists()
    words(tmp_path, tiny(tmp_path))
    before = hash_tree(tmp_path / "repo")
    changes = words(tmp_path, tiny(tmp_path, max_queue_delay_microseconds=9), dry)
    assert changes["tiny_classifier/config.pbtxt"] == "update"
    assert hash_tree(tmp_path / "repo") == before


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a repository with one model, not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    words(folder, tiny(folder))
    return folder


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """A copy of that repository, to be changed at will."""
    return Path(shutil.copytree(published / "repo", tmp_path / "repo"))


def test_a_model_is_removed_with_its_members_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "other").mkdir()
    files = [path for path in hash_tree(root) if path.startswith("tiny")]
    assert main(["remove", "tiny", "-r", str(root)]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [f"remove    {root / path}" for path in files]
    assert [path.name for path in root.iterdir()] == ["other"]
    assert not journal.staging_folder(root).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", r"holds no model 'tinny' made by trtgen; it has tiny$"),
        ("tiny_classifier", "tiny_classifier is a member of tiny and is removed with it"),
        ("foreign", "holds no model 'foreign' made by trtgen"),
        ("../repo/tiny", "holds no model '../repo/tiny' made by trtgen"),
        ("", "holds no model '' made by trtgen"),
    ],
)
def test_what_is_no_model_of_trtgen_is_not_removed(root: Path, name: str, message: str) -> None:
    (root / "foreign/1").mkdir(parents=True)
    before = sorted(root.rglob("*"))
    with pytest.raises(RepositoryError, match=message) as caught:
        remove_model(root, name)
    if "member" in message:
        assert (caught.value.command, caught.value.fields) == (("remove", "tiny"), {"repository": root})
    assert sorted(root.rglob("*")) == before
    with pytest.raises(RepositoryError, match=r"it has none$"):
        remove_model(root / "nowhere", "tiny")
    assert not (root / "nowhere").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tiny/config.pbtxt", "was changed after trtgen published it\n  --- published\n"),
        ("tiny_preprocess/1/model.py", "was changed after trtgen published it\n  --- published\n"),
        ("tiny_classifier/notes.txt", "was not made by trtgen"),
    ],
)
def test_what_somebody_edited_or_added_is_not_removed_unasked(root: Path, path: str, words: str) -> None:
    with (root / path).open("a") as stream:
        stream.write("# mine\n")
    before = hash_tree(root)
    with pytest.raises(RepositoryError, match=f"{path} {words}") as caught:
        remove_model(root, "tiny")
    assert caught.value.fields == {"discard_edits": True}
    assert hash_tree(root) == before
    assert path in remove_model(root, "tiny", discard_edits=True)
    assert list(root.iterdir()) == []


def test_a_removal_that_is_killed_anywhere_is_finished_or_was_not_begun(published: Path, tmp_path: Path) -> None:
    before = hash_tree(published / "repo")
    recovered = set()
    for step in range(1000):
        root = tmp_path / str(step) / "repo"
        shutil.copytree(published / "repo", root)
        if not run_until_killed(partial(remove_model, root, "tiny"), step=step):
            break
        assert not (root / "tiny").exists() or hash_tree(root) == before, "an ensemble without its members"
        recovered |= set(journal.recover(root))
        assert hash_tree(root) in ({}, before)
        assert not journal.staging_folder(root).exists()
    assert step >= 10
    assert "finished removing tiny, tiny_classifier, tiny_preprocess" in recovered


def test_the_list_says_what_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = root / "tiny/trtgen.json"
    data = json.loads(record.read_text())
    proof = [{"stage": stage, "status": "proved"} for stage in ("batches", "onnx")]
    plan = {"tensorrt": "10.16.1.11", "precision": "fp16"}
    proof += [{"stage": "plan", "status": "not proved"}, {"stage": "recipe", "status": "assumed"}]
    changed = {"proof": proof, "plan": plan}
    for version in (2, 10):
        (root / f"tiny_classifier/{version}").mkdir()
    os.utime(record, (0, 1_700_000_000))
    arguments = ["list", "-r", str(root)]
    assert main(arguments) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "versions", "served", "backend", "precision", "published", "proved"]
    when = datetime.fromtimestamp(1_700_000_000)
    assert re.split(r" {2,}", row) == [
        "tiny", "1, 2, 10", "10", "onnxruntime", "fp32", f"{when:%Y-%m-%d %H:%M}", "nothing (--no-verify)",
    ]  # fmt: skip
    record.write_text(json.dumps({**data, **changed, "spec": {**data["spec"], "versions": [1, 2]}}))
    (root / "tiny/labels.txt").write_text("edited")
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "1, 2, 10  1, 2    onnxruntime 10.16.1.11  fp16" in captured.out
    assert captured.out.endswith("2 of 3 stages, not plan; assumed: recipe\n")
    assert captured.err == f"! {root / 'tiny/labels.txt'} was changed after trtgen published it\n"
    assert main([*arguments, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["versions"], model["served"], model["edited"]) == ([1, 2, 10], [1, 2], ["tiny/labels.txt"])
    assert (model["proof"], model["tensorrt"]) == (changed["proof"], "10.16.1.11")
    assert datetime.fromisoformat(model["published"]).tzinfo is not None
    assert main(["list", "-r", str(root / "nowhere")]) == 1
    assert f"error: there is no model repository at {root / 'nowhere'}" in capsys.readouterr().err
    (root / "empty").mkdir()
    assert main(["list", "-r", str(root / "empty")]) == 0
    assert capsys.readouterr() == ("", f"{root / 'empty'} holds no model made by trtgen\n")


def test_what_trtgen_did_not_make_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "repo/tiny").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="trtgen did not make it"):
        build_repository(tiny(tmp_path), tmp_path / "repo", QUICK)
    (tmp_path / "repo/tiny").rename(tmp_path / "repo/tiny_classifier")
    with pytest.raises(RepositoryError, match="tiny_classifier exists, but trtgen did not make it"):
        build_repository(tiny(tmp_path), tmp_path / "repo", QUICK)


def test_a_repository_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "repo").write_text("a file")
    with pytest.raises(RepositoryError, match="cannot be used: File exists"):
        build_repository(tiny(tmp_path), tmp_path / "repo", QUICK)


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder in which even root may not write")
def test_a_folder_in_which_nobody_may_write(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="/sys/trtgen cannot be used") as caught:
        build_repository(tiny(tmp_path), Path("/sys/trtgen"), QUICK)
    assert (caught.value.hint, caught.value.fields) == ("give a folder that you may write", {"repository": None})


def test_two_builders_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_onnx(tmp_path / "net.onnx", size=224)
    arguments = ["build-repo", str(path), "--recipe", "imagenet", "--labels", "index", "--target", "onnxruntime"]
    with journal.staging(tmp_path / "repo"):  # as the other one has it while it builds
        assert main([*arguments, "--no-verify", "-r", str(tmp_path / "repo")]) == 1
    assert capsys.readouterr().err == (
        f"error: another trtgen is writing to {tmp_path / 'repo'}\n"
        "hint: wait until it has finished and run the same command again\n"
    )
    with journal.lock(tmp_path / "repo"), pytest.raises(RepositoryError, match="another trtgen is writing"):
        build_repository(tiny(tmp_path), tmp_path / "repo", QUICK)


def test_a_first_build_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with journal.staging(tmp_path / "new/models/repo"):
        assert (tmp_path / "new/models/repo").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_or_holds_something_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with journal.lock(tmp_path / "there"):
        pass
    with journal.lock(tmp_path / "made/repo"):
        (tmp_path / "made/notes").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["made", "notes", "there"]


def test_a_repository_that_is_removed_in_the_moment_of_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "repo"
    flock = fcntl.flock

    def lose_the_race(handle: int, operation: int) -> None:
        root.rmdir()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", lose_the_race)
    with pytest.raises(RepositoryError, match="another trtgen is writing"), journal.lock(root):
        pytest.fail("a folder that is gone was locked")


def test_folders_that_were_made_go_though_the_innermost_never_came_to_be(tmp_path: Path) -> None:
    with (
        pytest.raises(RepositoryError, match="File name too long"),
        journal.lock(tmp_path / "new/models" / ("x" * 300)),
    ):
        pytest.fail("a folder that cannot be was locked")
    assert list(tmp_path.iterdir()) == []


def deny(*_arguments: object, **_options: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def leave_behind(tmp_path: Path, *, decided: bool) -> tuple[Path, Path]:
    """A repository with the staging folder of a build that died, before or after it had decided."""
    root = tmp_path / "repo"
    root.mkdir()
    folder = journal.staging_folder(root)
    (folder / "staged/tiny").mkdir(parents=True)
    if decided:
        (folder / "journal.json").write_text(json.dumps([{"kind": "publish", "path": "tiny"}]))
    return root, folder


def test_a_staging_folder_that_may_not_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = leave_behind(tmp_path, decided=False)
    monkeypatch.setattr(shutil, "rmtree", deny)
    words = f"{folder}, left by a build that did not finish, cannot be removed: Permission denied"
    assert journal.recover(root) == [words]
    with pytest.raises(RepositoryError, match="cannot be removed: Permission denied") as caught, journal.staging(root):
        pytest.fail("a folder that is not empty was given")
    assert caught.value.hint == f"remove it as its owner: {folder}"


def test_a_decided_change_that_may_not_be_finished_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = leave_behind(tmp_path, decided=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", deny)
        with pytest.raises(RepositoryError, match="cannot be finished: Permission denied") as caught:
            journal.recover(root)
        assert str(folder) in str(caught.value.hint)
        with pytest.raises(RepositoryError, match="cannot be finished: Permission denied"), journal.staging(root):
            pytest.fail("a folder that is not empty was given")
    assert journal.recover(root) == ["finished publishing tiny"]


def test_recovery_says_why_it_could_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = leave_behind(tmp_path, decided=False)
    with journal.lock(root):
        assert journal.recover(root, otherwise="served") == [f"another trtgen is writing to {root}; served"]
        assert journal.recover(root) == []
    monkeypatch.setattr(os, "open", deny)
    (words,) = journal.recover(root, otherwise="served")
    assert words == f"the model repository {root} cannot be used: Permission denied; served"


AS_NOBODY = """
import os, sys
from pathlib import Path
from generator.errors import TrtgenError
from generator.repository import journal
from generator.server.launch import open_repository
os.seteuid(65534)
root = Path(sys.argv[1])
print(journal.recover(root))
for use in (lambda: journal.lock(root).__enter__(), lambda: open_repository(root)):
    try:
        use()
    except TrtgenError as error:
        print(error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_searched() -> None:
    with tempfile.TemporaryDirectory() as closed:  # 0700
        root = Path(closed) / "repo"
        root.mkdir()
        run = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(root)], capture_output=True, text=True, check=False, timeout=60
        )
    assert run.stdout.splitlines() == [
        "[]",
        f"the model repository {root} cannot be used: Permission denied",
        f"there is no model repository at {root}",
    ], run.stderr


def test_a_record_can_be_built_again(tmp_path: Path) -> None:
    from generator.spec.file import load_spec

    words(tmp_path, tiny(tmp_path))
    (spec,) = load_spec(tmp_path / "repo/tiny/trtgen.json")
    assert set(words(tmp_path, spec).values()) == {"identical"}
    (record,) = find_records(tmp_path / "repo")
    assert record.command == "trtgen build-repo --spec repo/tiny/trtgen.json --repository repo"
    assert record.files["tiny_classifier/1/model.onnx"] == hash_file(tmp_path / "repo/tiny_classifier/1/model.onnx")
    assert record.proof == [{"stage": "all", "status": "not proved", "reason": "--no-verify"}]


def test_records_that_cannot_be_read(tmp_path: Path) -> None:
    words(tmp_path, tiny(tmp_path))
    path = tmp_path / "repo/tiny/trtgen.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(RepositoryError, match="has format 99"):
        read_record(tmp_path / "repo", "tiny")
    path.write_text("{")
    with pytest.raises(RepositoryError, match="cannot be read"):
        read_record(tmp_path / "repo", "tiny")


def test_a_record_is_written_as_it_was_by_earlier_versions(root: Path) -> None:
    text = (root / "tiny/trtgen.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == [
        "made_by", "command", "name", "version", "description", "spec", "inputs", "packages", "recipe", "contract",
        "graph", "proof", "files", "plan", "head", "assumed", "repairs", "plans", "format",
    ]  # fmt: skip
    record = read_record(root, "tiny")
    assert record is not None
    assert record.to_json() == text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.update(proof=[{"stage": "onnx"}]), "proof.0.status: Field required"),
        (lambda data: data["proof"][0].update(status="good"), "proof.0.status: Input should be 'proved'"),
        (lambda data: data["spec"].update(versions="both"), "spec.versions"),
        (lambda data: data["spec"].pop("precision"), "spec.precision: Field required"),
        (lambda data: data.update(spec=3), "spec: Input should be"),
        (lambda data: data["recipe"].update(crop="all"), "recipe.crop"),
        (lambda data: data["contract"].pop("backend"), "contract.backend: Field required"),
        (lambda data: data["inputs"].pop("artifact"), "inputs.artifact: Field required"),
        (lambda data: data["files"].update(x=1), "files.x: Input should be a valid string"),
        (lambda data: data.update(colour="red"), "colour: Extra inputs are not permitted"),
    ],
)
def test_a_record_that_is_not_of_our_making(
    root: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], object], problem: str
) -> None:
    path = root / "tiny/trtgen.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert main(["list", "--repository", str(root)]) == 1
    said = capsys.readouterr().err
    assert f"{path} cannot be read: {problem}" in said
    assert "hint: move " in said
