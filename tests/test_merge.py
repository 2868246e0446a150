"""Builds for several compute capabilities in one repository; tests/test_merge_gpu.py serves them on a real GPU.

The repositories are built by the pipeline from an export, as on a host each. Their plans are stand-ins: the passport is
the one that the build writes, the plan has the header of one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2

from generator.cli import main
from generator.doctor.examine import examine
from generator.doctor.repository import read_repository
from generator.errors import DeviceError, PlanError, RepositoryError, ServerError, SpecError
from generator.exporting import export_folder
from generator.files import hash_file
from generator.gate.published import read_candidate, verify_published
from generator.gpu import Gpu, why_no_gpu
from generator.measure.tune.run import _find_record as find_tuned
from generator.pipeline import BuildOptions, build_repository
from generator.plan import build as plan_build
from generator.plan.library import TensorRTVersion
from generator.plan.passport import read_passport
from generator.repository import Layout, find_records, read_record
from generator.repository import merge as merge_module
from generator.repository.journal import lock, staging_folder
from generator.repository.merge import Merged, merge_repositories
from generator.repository.publish import hash_tree
from generator.repository.removal import remove_model
from generator.server.container import Container
from generator.server.embedded import EmbeddedServer
from generator.server.plans import check_local_plans, find_plans, has_version_compatible
from generator.server.ports import Ports
from generator.spec.file import make_spec
from tests.tensorrt_standin import make_plan, write_backend
from tests.test_build_plan import as_version
from tests.test_passport import H200
from tests.test_tensorrt_backend import add_model, make_input, plan_of, rows

L4 = replace(H200, name="NVIDIA L4", compute_capability="8.9", multiprocessors=58)
A100 = replace(H200, name="NVIDIA A100", compute_capability="8.0", multiprocessors=108)
B200 = replace(H200, name="NVIDIA B200", compute_capability="10.0", multiprocessors=148)
VERSION = "8.6.1.6"
ONNX = ("onnx", "proved", "")  # a stage, what came of it, and why
Run = Callable[..., tuple[int, str, str]]


@contextlib.contextmanager
def host(gpu: Gpu | None, tensorrt: str = VERSION) -> Iterator[None]:
    """A host with this GPU and TensorRT."""
    version = TensorRTVersion.parse(tensorrt)
    with pytest.MonkeyPatch.context() as patch:
        if gpu is not None:
            patch.setattr("generator.gpu.find_gpu", lambda *_: gpu)
        patch.setattr("generator.gpu.why_no_gpu", lambda: "" if gpu else "there is no GPU")
        for module in ("generator.plan.library", "generator.target", "generator.plan.compatibility"):
            patch.setattr(f"{module}.installed_version", lambda: version)
        yield


def write_plan(request: plan_build.BuildRequest, path: Path, gpu: Gpu, version: str) -> plan_build.Plan:
    """What `build_plan` leaves, with a plan that says where it was built."""
    from generator.plan.passport import write_plan as write
    from generator.plan.versions import open_adapter

    tensor = request.onnx.input
    major, minor, patch, number = (int(part) for part in version.split("."))
    given = {tensor.name: ("UINT8", list(tensor.shape))}
    data = make_plan(given, version=(major, minor, patch, number), built_on=gpu.name)
    adapter = as_version(open_adapter("tensorrt_rtx"), version)
    passport = plan_build._make_passport(adapter, gpu, request, plan_build.Compiled(data=data))
    write(data, passport, path)
    return plan_build.Plan(path=path, passport=passport)


def build(root: Path, gpu: Gpu, *exports: Path, tensorrt: str = VERSION, **options: Any) -> Path:
    """Build exports on a host with this GPU."""
    with host(gpu, tensorrt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_build, "build_plan", lambda request, path, **_: write_plan(request, path, gpu, tensorrt))
        for export in exports:
            (spec,) = make_spec([str(export / "model.onnx")], **options)
            build_repository(spec, root, BuildOptions(verify=False))
    return root


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of the demo models for TensorRT 8.6."""
    place = tmp_path_factory.mktemp("exports")
    for name in ("demo", "demo-detector"):
        (spec,) = make_spec([name], target="tensorrt-8.6", precision="fp32", batch={"max": 8})
        export_folder(spec, place / name)
    return {name: place / name for name in ("demo", "demo-detector")}


@pytest.fixture(scope="module")
def built(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of repositories: both models, for an L4 and for an H200."""
    place = tmp_path_factory.mktemp("built")
    for gpu in (L4, H200):
        build(place / gpu.compute_capability, gpu, *exports.values())
    return place


@pytest.fixture(scope="module")
def demo(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of repositories of the classifier alone, called by their compute capabilities."""
    place = tmp_path_factory.mktemp("demo")
    for gpu in (A100, L4, H200, B200):
        build(place / gpu.compute_capability, gpu, exports["demo"])
    return place


@pytest.fixture(scope="module")
def merged(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models with both plans."""
    root = tmp_path_factory.mktemp("merged") / "models"
    merge_repositories([built / "8.9", built / "9.0"], root)
    return root


@pytest.fixture(scope="module")
def with_default(demo: Path, exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: plans of the classifier for 8.0 and later, and in `merged` one of them beside that for 9.0."""
    place = tmp_path_factory.mktemp("default")
    for gpu in (A100, H200):
        options = {"hardware_compatibility": "ampere-plus"}
        build(place / f"any-{gpu.compute_capability}", gpu, exports["demo"], plan=options)
    merge_repositories([demo / "9.0", place / "any-9.0"], place / "merged")
    return place


@pytest.fixture
def place(demo: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed at will."""
    return Path(shutil.copytree(demo, tmp_path / "place"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def merge(place: Path, *capabilities: str, into: str = "merged", **options: Any) -> Merged:
    """Merge the builds for these capabilities of the demo model."""
    (merged,) = merge_repositories([place / one for one in capabilities], place / into, **options)
    return merged


def refuse(place: Path, *capabilities: str, error: type[Exception] = RepositoryError, **options: Any) -> str:
    """Return why the builds are not merged; nothing is left of the try."""
    with pytest.raises(error) as caught:
        merge(place, *capabilities, **options)
    assert not staging_folder(place / "merged").exists()
    return f"{caught.value}\nhint: {caught.value.hint}"  # type: ignore[attr-defined]


def read_config(root: Path, model: str) -> Any:
    return text_format.Parse((root / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def change_record(root: Path, change: Callable[[dict[str, Any]], None], name: str = "demo") -> None:
    path = root / name / "trtgen.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def set_versions(versions: int, data: dict[str, Any]) -> None:
    data["spec"]["versions"] = versions


def set_proof(root: Path, proof: list[dict[str, Any]]) -> None:
    change_record(root, lambda data: data.update(proof=proof))


def change_file(root: Path, path: str, content: bytes) -> None:
    """Change a file as if it had been published so."""
    (root / path).write_bytes(content)
    change_record(root, lambda data: data["files"].update({path: hash_file(root / path)}))


def change_passport(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = "demo_classifier/1/model.plan.json"
    data = json.loads((root / path).read_text())
    change(data)
    change_file(root, path, json.dumps(data).encode())


class TestResult:
    def test_both_models_have_both_plans(self, built: Path, tmp_path: Path) -> None:
        root = tmp_path / "merged"
        merged = merge_repositories([built / "9.0", built / "8.9"], root)
        assert [one.name for one in merged] == ["demo", "demo-detector"]
        for record in find_records(root):
            layout = Layout.of_record(record)
            folder = root / layout.network / "1"
            assert sorted(path.name for path in folder.glob("*.plan*")) == [
                "model.sm89.plan", "model.sm89.plan.json", "model.sm90.plan", "model.sm90.plan.json",
            ]  # fmt: skip
            config = read_config(root, layout.network)
            assert dict(config.cc_model_filenames) == {"8.9": "model.sm89.plan", "9.0": "model.sm90.plan"}
            for capability, name in config.cc_model_filenames.items():
                assert hash_file(folder / name) == hash_file(built / capability / layout.network / "1/model.plan")
                passport = read_passport(folder / name, check_hash=True)
                assert passport.gpu["compute_capability"] == capability
            # all else is the first build's, to the byte
            ours, theirs = hash_tree(root), hash_tree(built / "9.0")
            changed = {path for path in ours if ours[path] != theirs.get(path)}
            made = {f"{layout.network}/config.pbtxt", f"{record.name}/trtgen.json", f"{record.name}/1/version.json"}
            names = {path for path in changed if path.split("/")[0] in layout.models}
            assert names - {path for path in names if ".plan" in path} == made
            assert record.files == {path: ours[path] for path in record.files}
            assert set(record.files) == {
                path for path in ours if path.split("/")[0] in layout.models and not path.endswith("trtgen.json")
            }

    def test_the_record_says_where_each_plan_is_from(self, place: Path) -> None:
        proved = {"stage": "plan", "status": "proved", "measured": "cosine 1"}
        for capability in ("8.9", "9.0"):
            set_proof(place / capability, [{**proved, "measured": f"on {capability}"}])
        merge(place, "8.9", "9.0")
        record = read_record(place / "merged", "demo")
        assert record is not None
        assert list(record.plans) == ["model.sm89.plan", "model.sm90.plan"]
        for capability, gpu, name in (("8.9", L4, "model.sm89.plan"), ("9.0", H200, "model.sm90.plan")):
            plan, source = record.plans[name], read_record(place / capability, "demo")
            assert source is not None
            assert (plan["compute_capability"], plan["gpu"], plan["tensorrt"]) == (capability, gpu.name, VERSION)
            assert (plan["repository"], plan["version"]) == (str(place / capability), 1)
            assert plan["artifact"] == source.inputs["artifact"]
            assert plan["proof"] == list(source.proof)
        assert record.proof == [{"stage": "plan", "status": "proved", "where": "NVIDIA L4 (8.9), NVIDIA H200 (9.0)"}]

    @pytest.mark.parametrize(
        ("proofs", "expected"),
        [
            (
                [[ONNX, ("plan", "proved", "")], [ONNX, ("plan", "not proved", "no GPU")]],
                [ONNX, ("plan", "not proved", "NVIDIA H200 (9.0): no GPU")],
            ),
            (
                [[ONNX], [("all", "not proved", "--no-verify")]],
                [("all", "not proved", "NVIDIA H200 (9.0): --no-verify")],
            ),
            (
                [[("recipe", "assumed", "by whom")], [("recipe", "assumed", "by whom")]],
                [("recipe", "assumed", "NVIDIA L4 (8.9), NVIDIA H200 (9.0): by whom")],
            ),
        ],
    )  # fmt: skip
    def test_proved_is_what_was_proved_of_each_build(self, place: Path, proofs: Any, expected: Any) -> None:
        for capability, proof in zip(("8.9", "9.0"), proofs, strict=True):
            entries = [{"stage": stage, "status": status, "reason": why} for stage, status, why in proof]
            set_proof(place / capability, entries)
        merge(place, "8.9", "9.0")
        record = read_record(place / "merged", "demo")
        assert record is not None
        assert [(one["stage"], one["status"], one.get("reason", "")) for one in record.proof] == expected

    def test_a_fused_model_too(self, exports: dict[str, Path], tmp_path: Path) -> None:
        for gpu in (L4, H200):
            build(tmp_path / gpu.compute_capability, gpu, exports["demo"], layout="fused")
        merge(tmp_path, "8.9", "9.0")
        config = read_config(tmp_path / "merged", "demo")
        assert config.default_model_filename == "model.py"
        assert dict(config.cc_model_filenames) == {"8.9": "model.sm89.plan", "9.0": "model.sm90.plan"}
        assert not (tmp_path / "merged/demo/1/model.plan").exists()
        assert not (tmp_path / "merged/demo/1/version.json").exists()
        with host(L4):
            found = find_plans(tmp_path / "merged", capability="9.0")
        assert [plan.name for plan in found] == ["model.sm90.plan"]


class TestPublishing:
    def test_the_same_again_changes_nothing(self, place: Path, run: Run) -> None:
        first = merge(place, "8.9", "9.0")
        assert {change.word for change in first.changes} == {"create"}
        before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (place / "merged").rglob("*")}
        for order in (("8.9", "9.0"), ("9.0", "8.9")):
            again = merge(place, *order)
            assert (again.version, {change.word for change in again.changes}) == (1, {"identical"})
        assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (place / "merged").rglob("*")} == before
        code, out, err = run("merge", place / "8.9", place / "9.0", "-o", place / "merged")
        assert code == 0
        assert {line.split()[0] for line in out.splitlines()} == {"identical"}
        assert f"demo version 1 is up to date in {place / 'merged'}" in err

    def test_another_capability_is_another_version(self, place: Path) -> None:
        merge(place, "8.9", "9.0")
        published = hash_tree(place / "merged/demo_classifier/1")
        again = merge(place, "8.9", "9.0", "10.0")
        assert again.version == 2
        assert hash_tree(place / "merged/demo_classifier/1") == published
        assert list(again.plans) == ["model.sm89.plan", "model.sm90.plan", "model.sm100.plan"]
        assert sorted(path.name for path in (place / "merged/demo_classifier/2").glob("*.plan")) == sorted(again.plans)

    def test_the_result_may_be_merged_with_another_build(self, place: Path) -> None:
        """Also into itself: the builds that it came from need not be kept."""
        merge(place, "8.9", "9.0")
        text = (place / "merged/demo_classifier/config.pbtxt").read_text()
        shutil.rmtree(place / "8.9")
        again = merge(place, "merged", "10.0")
        assert (again.version, len(again.plans)) == (2, 3)
        assert again.plans["model.sm89.plan"]["repository"] == str(place / "8.9")
        added = (place / "merged/demo_classifier/config.pbtxt").read_text()
        assert added.replace(',\n  { key: "10.0" value: "model.sm100.plan" }', "") == text
        for _ in range(2):  # the same merge again touches nothing
            same = merge(place, "merged", "10.0")
            assert (same.version, {change.word for change in same.changes}) == (2, {"identical"})
        change_passport(place / "9.0", lambda data: data.update(plan_sha256="0" * 64))
        words = refuse(place, "merged", "9.0", into="other")
        assert "hold a plan of demo for compute capability 9.0 (built on NVIDIA H200)" in words
        change_file(place / "10.0", "demo_classifier/labels.txt", b"other\n" * 6)
        assert "demo_classifier/labels.txt: its content" in refuse(place, "merged", "10.0")

    def test_a_capability_is_not_lost_unasked(self, place: Path) -> None:
        merge(place, "8.9", "9.0")
        words = refuse(place, "9.0", "10.0")
        assert "demo is published with a plan for 8.9 (NVIDIA L4), which is in none of the repositories" in words
        merged = merge(place, "9.0", "10.0", replace=True)
        assert list(merged.plans) == ["model.sm90.plan", "model.sm100.plan"]

    def test_a_build_does_not_take_its_place_unasked(self, place: Path, exports: dict[str, Path]) -> None:
        merge(place, "8.9", "9.0")
        before = hash_tree(place / "merged")
        with pytest.raises(RepositoryError, match="plans: one for each compute capability -> one"):
            build(place / "merged", H200, exports["demo"])
        assert hash_tree(place / "merged") == before
        shutil.copytree(place / "9.0", place / "single")
        assert "plans: one -> one for each compute capability" in refuse(place, "8.9", "9.0", into="single")

    def test_other_models_there_are_left_alone(self, built: Path, place: Path) -> None:
        merge(place, "8.9", "9.0")
        before = hash_tree(place / "merged")
        merge_repositories([built / "8.9", built / "9.0"], place / "merged", models=["demo-detector"])
        after = hash_tree(place / "merged")
        assert {path: digest for path, digest in after.items() if "detector" not in path} == before

    def test_older_versions_that_are_served_need_every_plan(self, place: Path) -> None:
        for capability in ("8.9", "9.0", "10.0"):
            change_record(place / capability, lambda data: data["spec"].update(versions=2))
        merge(place, "8.9", "9.0")
        words = refuse(place, "8.9", "9.0", "10.0")
        assert "demo_classifier/1 is served, too (versions: 2), and has no model.sm100.plan" in words
        assert merge(place, "8.9", "9.0", "10.0", replace=True).version == 2
        merge(place, "8.9", "9.0", into="three")
        for capability in ("8.9", "9.0", "10.0"):
            change_record(place / capability, lambda data: data["spec"].update(versions=1))
        assert merge(place, "8.9", "9.0", "10.0", into="three").version == 2
        plan = place / "8.9/demo_classifier/1/model.plan"
        change_file(place / "8.9", "demo_classifier/1/model.plan", plan.read_bytes()[:-1] + b"!")
        for listed in (3, 4, 9):
            change_record(place / "8.9", functools.partial(set_versions, listed))
            words = refuse(place, "8.9", "9.0", "10.0", into="three")
            assert f"demo_classifier/1 is served, too (versions: {listed}), and has no model.sm100.plan" in words
        change_record(place / "8.9", lambda data: data["spec"].update(versions=[1]))
        assert "demo serves the versions [1]" in refuse(place, "8.9", "9.0", into="other")

    def test_edits_are_shown_and_kept(self, place: Path) -> None:
        merge(place, "8.9", "9.0")
        config = place / "merged/demo_classifier/config.pbtxt"
        text = config.read_text()
        config.write_text(text.replace("model.sm90.plan", "model.plan"))
        words = refuse(place, "8.9", "9.0", "10.0")
        assert '-  { key: "9.0" value: "model.sm90.plan" }' in words
        assert '+  { key: "9.0" value: "model.plan" }' in words
        assert len([line for line in words.splitlines() if line.startswith(("  +", "  -"))]) == 4
        merge(place, "8.9", "9.0", discard_edits=True)
        assert config.read_text() == text

    def test_it_is_removed_as_any_model(self, place: Path) -> None:
        merge(place, "8.9", "9.0")
        files = remove_model(place / "merged", "demo")
        assert "demo_classifier/1/model.sm90.plan" in files
        assert list((place / "merged").iterdir()) == []

    @pytest.mark.parametrize("step", range(4))
    def test_an_interruption_leaves_all_or_nothing(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """While files are copied there is nothing; once the journal is written, the next command finishes it."""
        copied: list[Path] = []

        def copy(source: Path, target: Path) -> None:
            copied.append(target)
            if len(copied) == 1 + 6 * step:
                raise KeyboardInterrupt
            real(source, target)

        real = merge_module._copy
        monkeypatch.setattr(merge_module, "_copy", copy)
        with contextlib.suppress(KeyboardInterrupt):
            merge(place, "8.9", "9.0")
        if step < 3:
            assert not (place / "merged").exists()
            assert not staging_folder(place / "merged").exists()
        monkeypatch.undo()
        merge(place, "8.9", "9.0", into="whole")
        merge(place, "8.9", "9.0")
        for path, digest in hash_tree(place / "whole").items():
            assert path.endswith("trtgen.json") or hash_file(place / "merged" / path) == digest

    def test_a_publishing_that_was_interrupted_is_finished(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Path.rename
        moved: list[Path] = []

        def rename(self: Path, target: Path) -> Path:
            if len(moved) == 1:
                raise KeyboardInterrupt
            moved.append(self)
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            merge(place, "8.9", "9.0")
        monkeypatch.undo()
        assert not (place / "merged/demo").exists()
        assert {change.word for change in merge(place, "8.9", "9.0").changes} == {"identical"}
        assert (place / "merged/demo/trtgen.json").is_file()


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda data: data.update(precision="fp16"), "precision: fp32 -> fp16"),
            (
                lambda data: data["profiles"][0]["PIXELS"].update(max=[4, 64, 64, 3]),
                "optimization profiles: ",
            ),
            (lambda data: data["inputs"][0].update(shape=[-1, 32, 32, 3]), "inputs of the plan: "),
            (lambda data: data["outputs"][0].update(shape=[-1, 11]), "outputs of the plan: "),
        ],
    )  # fmt: skip
    def test_plans_that_one_configuration_does_not_fit(self, place: Path, change: Any, said: str) -> None:
        change_passport(place / "9.0", change)
        words = refuse(place, "8.9", "9.0")
        assert f"demo is not the same in {place / '8.9'} and {place / '9.0'}:\n  {said}" in words
        assert "hint: export the model once" in words

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda data: data.update(description="another"), "source: demo model of trtgen -> another"),
            (lambda data: data["contract"]["labels"].__setitem__(3, "x"), "labels: number 3 is "),
            (lambda data: data["recipe"].update(mean=[0.0, 0.0, 0.0]), "recipe: mean "),
            (lambda data: data["head"].update(activation="none"), "what was put behind the network: activation "),
            (lambda data: data["contract"].update(layout="fused"), "layout: None -> fused"),
        ],
    )
    def test_other_models(self, place: Path, change: Any, said: str) -> None:
        change_record(place / "9.0", change)
        assert f"\n  {said}" in refuse(place, "8.9", "9.0")

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("demo_classifier/1/model.onnx", "demo_classifier/1/model.onnx: its content"),
            ("demo_classifier/1/reference.npz", "demo_classifier/1/reference.npz: its content"),
            ("demo_preprocess/1/model.py", "demo_preprocess/1/model.py: its content"),
        ],
    )
    def test_other_files(self, place: Path, path: str, said: str) -> None:
        change_file(place / "9.0", path, b"another")
        assert f"\n  {said}\nhint" in refuse(place, "8.9", "9.0")

    @pytest.mark.parametrize(
        ("model", "old", "new", "said"),
        [
            ("demo_classifier", "max_batch_size: 8", "max_batch_size: 4", "max_batch_size"),
            ("demo_preprocess", 'key: "pillow" value { string_value: "', "\\g<0>9", "the parameter pillow: "),
            ("demo", 'label_filename: "labels.txt"', "", "output"),
        ],
    )
    def test_other_configurations(self, place: Path, model: str, old: str, new: str, said: str) -> None:
        path = f"{model}/config.pbtxt"
        text, count = re.subn(old, new, (place / "9.0" / path).read_text())
        assert count == 1
        change_file(place / "9.0", path, text.encode())
        assert f"\n  {path}: {said}" in refuse(place, "8.9", "9.0")

    def test_what_may_differ_is_that_of_the_first_and_noted(self, place: Path) -> None:
        """How many instances there are by default follows from the host's cores."""
        path = "demo_preprocess/config.pbtxt"
        text = (place / "9.0" / path).read_text()
        before = read_config(place / "8.9", "demo_preprocess").instance_group[0].count
        change_file(place / "9.0", path, text.replace(f"count: {before}", "count: 77").encode())
        merged = merge(place, "8.9", "9.0")
        (note,) = merged.notes
        assert note == f"demo_preprocess: instance_group is that of {place / '8.9'}; {place / '9.0'} has another"
        assert read_config(place / "merged", "demo_preprocess").instance_group[0].count == before

    def test_the_same_capability_twice(self, place: Path) -> None:
        shutil.copytree(place / "9.0", place / "again")
        change_passport(place / "again", lambda data: data.update(plan_sha256="0" * 64))
        words = refuse(place, "9.0", "again")
        assert f"both {place / '9.0'} and {place / 'again'} hold a plan of demo for compute capability 9.0" in words

    def test_versions_of_tensorrt_that_no_server_has_both_of(
        self, place: Path, exports: dict[str, Path], tmp_path: Path
    ) -> None:
        build(tmp_path / "newer", H200, exports["demo"], tensorrt="8.6.2.3")
        (place / "newer").symlink_to(tmp_path / "newer")
        words = refuse(place, "8.9", "newer")
        assert "no server loads both plans" in words
        assert "has one of TensorRT 8.6.1.6" in words
        assert "one of 8.6.2.3" in words
        options = {"version_compatible": True}
        build(tmp_path / "compatible", L4, exports["demo"], plan=options)
        build(tmp_path / "newer-too", H200, exports["demo"], tensorrt="8.6.2.3", plan=options)
        (merged,) = merge_repositories([tmp_path / "compatible", tmp_path / "newer-too"], tmp_path / "merged")
        assert has_version_compatible(tmp_path / "merged")
        record = read_record(tmp_path / "merged", "demo")
        assert record is not None
        assert record.plan == {"tensorrt": "8.6.2.3", "precision": "fp32"}
        assert [plan["tensorrt"] for plan in merged.plans.values()] == [VERSION, "8.6.2.3"]

    def test_edited_and_missing_files(self, place: Path) -> None:
        (place / "9.0/demo_classifier/1/model.plan.json").unlink()
        words = refuse(place, "8.9", "9.0")
        assert f"{place / '9.0/demo_classifier/1/model.plan.json'} is missing, or is not what was published" in words
        plan = place / "8.9/demo_classifier/1/model.plan"
        plan.write_bytes(plan.read_bytes()[:-1])
        assert f"{plan} is missing, or is not what was published" in refuse(place, "8.9", "9.0")

    def test_files_that_cannot_be_read(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def read(path: Path) -> str:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr("generator.repository.edits.hash_file", read)
        assert "cannot be read: Permission denied\nhint: let this user read" in refuse(place, "8.9", "9.0")

    def test_a_full_disk(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def copy(*_: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(merge_module, "_copy", copy)
        words = refuse(place, "8.9", "9.0")
        assert f"{place / 'merged'} was left as it was: No space left on device\nhint: make room" in words
        assert not (place / "merged").exists()

    def test_a_passport_that_cannot_be_read(self, place: Path) -> None:
        change_file(place / "9.0", "demo_classifier/1/model.plan.json", b"{}")
        assert "model.plan.json cannot be read" in refuse(place, "8.9", "9.0", error=PlanError)

    @pytest.mark.parametrize("text", ["banana", "9", ""])
    def test_a_passport_whose_version_or_gpu_is_none(self, place: Path, text: str) -> None:
        path = place / "9.0/demo_classifier/1/model.plan.json"
        before = path.read_bytes()
        change_passport(place / "9.0", lambda data: data.update(tensorrt=text))
        words = refuse(place, "8.9", "9.0", error=PlanError)
        assert f"{path} cannot be read: tensorrt: {text!r} is not a TensorRT version such as 10.16.1.11" in words
        change_file(place / "9.0", "demo_classifier/1/model.plan.json", before)
        change_passport(place / "9.0", lambda data: data["gpu"].update(compute_capability=text))
        words = refuse(place, "8.9", "9.0", error=PlanError)
        said = f"gpu.compute_capability: {text!r} is not a compute capability such as 9.0"
        assert f"{path} cannot be read: {said}" in words

    def test_models_without_a_plan(self, place: Path) -> None:
        change_record(place / "8.9", lambda data: data["contract"].update(backend="onnxruntime"))
        for order in (("8.9", "9.0"), ("9.0", "8.9")):
            words = refuse(place, *order)
            assert f"demo of {place / '8.9'} has no plan: its graph is served by onnxruntime" in words

    def test_models_that_are_not_in_all(self, built: Path, place: Path) -> None:
        with pytest.raises(RepositoryError, match="holds no model 'demo-detector' made by trtgen; it has demo"):
            merge_repositories([built / "8.9", place / "9.0"], place / "merged")
        with pytest.raises(RepositoryError) as caught:
            merge_repositories([built / "8.9", built / "9.0"], place / "merged", models=["demoo"])
        assert caught.value.hint == "did you mean demo?"
        assert not (place / "merged").exists()

    def test_repositories_that_cannot_be(self, place: Path, run: Run) -> None:
        merged = place / "merged"
        (place / "empty").mkdir()
        (place / "file").touch()
        (place / "taken/demo_classifier").mkdir(parents=True)
        for sources, output, said in (
            (["9.0"], merged, "two repositories were expected at least"),
            (["9.0", "9.0/../9.0"], merged, "two repositories were expected at least"),
            (["9.0", "absent"], merged, f"there is no model repository at {place / 'absent'}"),
            (["9.0", "file"], merged, f"there is no model repository at {place / 'file'}"),
            (["empty", "empty2"], merged, f"there is no model repository at {place / 'empty2'}"),
            (["empty", "9.0"], merged, "holds no model 'demo' made by trtgen; it has none"),
            (["8.9", "9.0"], place / "file", f"the model repository {place / 'file'} cannot be used"),
            (["8.9", "9.0"], place / "taken", "exists, but trtgen did not make it"),
        ):
            code, out, err = run("merge", *(place / source for source in sources), "--output", output)
            assert (code, out) == (1, "")
            assert said in err
            assert "hint: " in err
            assert "Traceback" not in err
        assert not merged.exists()

    @pytest.mark.parametrize("locked", ["8.9", "merged"])
    def test_a_repository_that_is_being_written(self, place: Path, locked: str) -> None:
        merge(place, "9.0", "10.0")
        before = hash_tree(place)
        with lock(place / locked):
            words = refuse(place, "8.9", "9.0", "10.0")
        assert f"another trtgen is writing to {place / locked}" in words
        assert hash_tree(place) == before


class TestDefault:
    """A plan for 8.0 and later is the file for every GPU that has none of its own."""

    def test_it_may_be_built_on_the_same_gpu(self, with_default: Path) -> None:
        folder = with_default / "merged/demo_classifier/1"
        assert sorted(path.name for path in folder.glob("*.plan")) == ["model.plan", "model.sm90.plan"]
        assert read_passport(folder / "model.plan").hardware_compatibility == "ampere-plus"
        config = read_config(with_default / "merged", "demo_classifier")
        assert (dict(config.cc_model_filenames), config.default_model_filename) == (
            {"9.0": "model.sm90.plan"},
            "model.plan",
        )
        assert "takes the default file" in (with_default / "merged/demo_classifier/config.pbtxt").read_text()

    def test_which_gpu_takes_it(self, with_default: Path) -> None:
        for gpu, name in ((H200, "model.sm90.plan"), (L4, "model.plan"), (B200, "model.plan")):
            with host(gpu):
                check_local_plans(with_default / "merged")
                record = read_record(with_default / "merged", "demo")
                assert record is not None
                plan = read_candidate(with_default / "merged", record).plan
                assert plan is not None
                assert plan.name == name
        with host(replace(L4, compute_capability="7.5")), pytest.raises(PlanError, match=r"run on 8\.0 and later"):
            check_local_plans(with_default / "merged")

    def test_there_is_one_only(self, with_default: Path, tmp_path: Path) -> None:
        with pytest.raises(RepositoryError, match=r"hold a plan of demo for GPUs of 8\.0 and later"):
            merge_repositories([with_default / "any-8.0", with_default / "any-9.0"], tmp_path / "merged")

    def test_doctor_finds_nothing_more(self, demo: Path, with_default: Path) -> None:
        for gpu in (None, "9.0", "12.0"):
            assert diagnose(with_default / "merged", gpu) == diagnose(demo / "9.0", None)


class TestHosts:
    """What the other commands make of the result, on hosts with one GPU or another."""

    def test_a_server_is_given_the_plan_for_its_gpu(self, merged: Path) -> None:
        for gpu in (L4, H200):
            with host(gpu):
                check_local_plans(merged)
                check_local_plans(merged, ["demo"])
                found = find_plans(merged, capability=gpu.compute_capability)
            name = f"model.sm{gpu.compute_capability.replace('.', '')}.plan"
            assert [str(plan.relative_to(merged)) for plan in found] == [
                f"demo-detector_detector/1/{name}",
                f"demo_classifier/1/{name}",
            ]
        assert [plan.name for plan in find_plans(merged)] == ["model.sm89.plan", "model.sm90.plan"] * 2

    def test_another_gpu_is_told_what_there_is(self, merged: Path, run: Run) -> None:
        said = "demo_classifier/1 has no plan for a GPU of compute capability 10.0: there are plans for 8.9, 9.0"
        with host(B200):
            for names in ([], ["demo"]):
                code, _, err = run("verify", *names, "--repository", merged)
                assert code == 1
                assert said.replace("demo_classifier", "demo_classifier" if names else "demo-detector_detector") in err
                assert "hint: build the model on such a GPU, and merge that build with the others" in err
            with pytest.raises(PlanError, match=re.escape(said)), EmbeddedServer(merged, models=["demo"]):
                pass
            with pytest.raises(PlanError, match=r"there are plans for 8\.9, 9\.0"):
                Container(merged, ports=Ports(http=1, grpc=2, metrics=3)).check()

    def test_another_tensorrt_is_refused_for_the_plan_that_would_be_taken(self, merged: Path) -> None:
        with host(L4, "10.16.1.11"), pytest.raises(PlanError) as caught:
            check_local_plans(merged)
        assert "model.sm89.plan: the plan was built with TensorRT 8.6.1.6" in caught.value.message
        assert "sm90" not in caught.value.message

    def test_verify_takes_the_plan_for_its_gpu(self, merged: Path) -> None:
        for gpu, name in ((L4, "model.sm89.plan"), (H200, "model.sm90.plan"), (None, "model.sm89.plan")):
            with host(gpu) if gpu else contextlib.nullcontext():
                for record in find_records(merged):
                    candidate = read_candidate(merged, record)
                    assert candidate.plan is not None
                    assert candidate.plan.name == name
                    assert candidate.artifact.passport == read_passport(candidate.plan)
        with host(B200):  # as for a server elsewhere, which --url names
            assert read_candidate(merged, record).plan is not None

    def test_without_a_gpu_the_rest_is_proved(self, merged: Path) -> None:
        if not why_no_gpu():
            pytest.skip("this host has a GPU")
        with pytest.raises(DeviceError, match=r"sm89\.plan needs a GPU") as caught:
            check_local_plans(merged, ["demo"])
        assert caught.value.command == ()  # which would replace what others are served with
        (report,) = verify_published(merged, ["demo"])
        stages = {result.stage: result.status for result in report.results}
        assert (stages["onnx"], stages["plan"]) == ("proved", "not proved")

    def test_list_names_the_capabilities(self, merged: Path, run: Run) -> None:
        code, out, _ = run("list", "--repository", merged)
        assert code == 0
        assert f"tensorrt {VERSION} (8.9, 9.0)" in out
        _, out, _ = run("list", "--repository", merged, "--json")
        plans = json.loads(out)[0]["plans"]
        assert {name: plan["gpu"] for name, plan in plans.items()} == {
            "model.sm89.plan": "NVIDIA L4",
            "model.sm90.plan": "NVIDIA H200",
        }

    def test_tune_is_for_one_gpu(self, built: Path, merged: Path) -> None:
        assert find_tuned(built / "9.0", "demo").name == "demo"
        with pytest.raises(SpecError, match="has plans for several GPUs"):
            find_tuned(merged, "demo")

    def test_the_command_line(self, built: Path, tmp_path: Path, run: Run) -> None:
        given = ["--model", "demo", "--output", tmp_path / "merged"]
        code, out, err = run("merge", built / "8.9", built / "9.0", *given)
        assert code == 0
        lines = [f"create    {tmp_path / 'merged' / path}" for path in hash_tree(tmp_path / "merged")]
        assert sorted(out.splitlines()) == sorted(lines)
        assert f"plan      for 8.9, built on NVIDIA L4, from {built / '8.9'}" in err
        assert f"published demo version 1 in {tmp_path / 'merged'}" in err

    def test_doctor_finds_nothing_more(self, built: Path, merged: Path) -> None:
        """Than in each build, of which it says that the stock image lacks Pillow."""
        for capability in ("8.9", "9.0"):
            as_built = diagnose(built / capability, capability)
            assert as_built == ["python-import-absent"] * 2
            assert diagnose(merged, capability) == as_built
        assert diagnose(merged, None) == as_built
        assert sorted(diagnose(merged, "10.0")) == ["plan-capability-none"] * 2 + as_built

    def test_doctor_sees_what_is_wrong_with_a_fused_model(self, exports: dict[str, Path], tmp_path: Path) -> None:
        for gpu in (L4, H200):
            build(tmp_path / gpu.compute_capability, gpu, exports["demo"], layout="fused")
        merge(tmp_path, "8.9", "9.0")
        folder = tmp_path / "merged/demo/1"
        as_built = diagnose(tmp_path / "9.0", "9.0")
        assert diagnose(tmp_path / "merged", "9.0") == as_built
        shutil.copy(folder / "model.sm89.plan", folder / "model.plan")
        assert sorted(diagnose(tmp_path / "merged", "9.0")) == sorted([*as_built, "plan-capability-default"])
        (folder / "model.sm90.plan").unlink()
        assert "plan-capability-missing" in diagnose(tmp_path / "merged", "9.0")


@pytest.mark.server
def test_a_real_server_hands_the_names_to_the_backend(tmp_path: Path) -> None:
    """On the stand-in for a GPU of 9.0, which loads one of the plans only; the other is of another TensorRT."""
    backend = write_backend(tmp_path / "backend").parent
    named = 'cc_model_filenames [ {{ key: "8.9" value: "a.plan" }}, {{ key: "{}" value: "b.plan" }} ]'
    for name, capability in (("one", "9.0"), ("none", "12.0")):
        model = add_model(tmp_path / name, backend, "net", plan_of(), more=named.format(capability))
        (model / "1/standin.plan").rename(model / "1/b.plan")
        (model / "1/a.plan").write_bytes(plan_of(version=(8, 5, 0, 1)))
    with EmbeddedServer(tmp_path / "one") as server, grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("net", [make_input(rows(3))]).as_numpy("Y")
        assert (answer == rows(3) * 2).all()
    with pytest.raises(ServerError) as caught, EmbeddedServer(tmp_path / "none"):
        pass
    assert "it has no plan for a GPU of compute capability 9.0: there are plans for 8.9, 12.0" in str(caught.value)


def diagnose(root: Path, gpu: str | None) -> list[str]:
    found = examine(read_repository(root), "26.10", tensorrt=TensorRTVersion.parse(VERSION), gpu=gpu)
    return [finding.rule.id for finding in found]
