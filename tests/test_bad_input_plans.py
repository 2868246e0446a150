"""What users do wrong with plans, exports and graphs: each ends with an error that names the fix, never a traceback.

Everything goes through the command line, on a host without a GPU; what needs one is in test_engine_gpu.py.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generator import exporting as export_module
from generator.cli import main
from generator.errors import ExportError, PlanError
from generator.exporting import export_folder
from generator.files import hash_file
from generator.pipeline import BuildOptions
from generator.plan.compatibility import Host
from generator.plan.header import read_header
from generator.plan.passport import passport_path
from generator.plan.timing_cache import CacheKey, TimingCache
from generator.server.plans import check_plans
from generator.spec.exported import EXPORT_FILE
from generator.spec.file import make_spec
from generator.spec.model import ModelSpec
from tests.test_passport import H200, write_passport
from tests.test_passport import make as make_passport
from tests.test_plan_header import plan_bytes
from tests.tiny_onnx import write_tiny_onnx

DEEP = "[" * 100_000
RECIPE = {"resize": 32, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers on a host that has a GPU or TensorRT."""
    monkeypatch.setattr("generator.gpu.why_no_gpu", lambda *_: "there is no GPU")
    monkeypatch.setattr("generator.target.installed_version", lambda: None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny classifier for TensorRT."""
    place = tmp_path_factory.mktemp("exported")
    source = write_tiny_onnx(place / "tiny.onnx")
    spec = make_spec([str(source)], target="tensorrt-10", precision="fp32", labels="index", recipe=RECIPE)[0]
    export_folder(spec, place / "tiny")
    return place / "tiny"


@pytest.fixture
def graph(exported: Path, tmp_path: Path) -> Path:
    """The graph of a copy of the export, to be changed at will."""
    return Path(shutil.copytree(exported, tmp_path / "mit Leerzeichen ü")) / "model.onnx"


def change_record(graph: Path, **changes: Any) -> None:
    path = graph.with_name(EXPORT_FILE)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_plan(path: Path, data: bytes | None = None, **changes: Any) -> Path:
    """A file with the header of a plan, and its passport."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plan_bytes() if data is None else data)
    facts = {"plan_bytes": path.stat().st_size, "plan_sha256": hash_file(path), **changes}
    write_passport(make_passport(**facts), path)
    return path


class TestSpecs:
    def test_what_auto_became_disagrees_with_keep(self, run: Callable[..., Any], tmp_path: Path) -> None:
        (tmp_path / "models.yaml").write_text("models: [{name: demo, keep: [Conv]}]")
        for command in ("show", "export", "build-repo"):
            code, _, err = run(command, "--spec", tmp_path / "models.yaml")
            assert code == 1
            assert "demo: with target onnxruntime and precision fp32: keep goes with precision: fp16 or int8" in err
            assert "hint: set target and precision (--target NAME, --precision NAME)" in err

    @pytest.mark.parametrize(
        "words",
        [
            "squeezenet1_1 --weights sq.pt --classes 5 --labels 'my labels.txt' --max-batch 64 --target tensorrt-10",
            "birds --architecture squeezenet1_1 --weights sq.pt --image-size 96 --target tensorrt-11 --images photos",
            "net.onnx --recipe imagenet --labels index --target tensorrt-8.6 --precision fp16",
            "net.onnx --recipe imagenet --labels index --precision int8 --calibration photos",
            "demo --precision int8",
            "resnet18 --weights random --target tensorrt-10",
            "demo --name shapes --target tensorrt-10",
            "net.onnx --name birds --labels index --recipe imagenet --target tensorrt-10",
            "'my net.onnx' --labels index --recipe imagenet --target tensorrt-10",
            "--spec models.yaml",
            "--spec models.yaml --target tensorrt-11 --images photos",
        ],
    )
    def test_the_export_that_the_hint_gives_is_of_the_same_model(
        self, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
    ) -> None:
        """What it exports is the spec that was to be built, for the target that is missing."""
        monkeypatch.chdir(tmp_path)
        Path("models.yaml").write_text("models: [{name: one, precision: int8, keep: [Conv], batch: {opt: 3, max: 6}}]")
        for name in ("net.onnx", "my net.onnx"):
            write_tiny_onnx(Path(name))
        Path("sq.pt").write_bytes(b"weights")
        Path("my labels.txt").write_text("a")
        asked: list[tuple[ModelSpec, Path | None]] = []

        def stop(spec: ModelSpec, _: Path, options: BuildOptions) -> None:
            asked.append((spec, options.images))
            raise PlanError("seen", hint="none")

        def keep(spec: ModelSpec, _: Path, *, images: Path | None, **__: Any) -> tuple[str, ...]:
            asked.append((spec, images))
            return ()

        with monkeypatch.context() as patch:
            patch.setattr("generator.pipeline.build_repository", stop)
            run("build-repo", *shlex.split(words))
        code, _, err = run("build-repo", *shlex.split(words))
        assert code == 1
        (command,) = re.findall(r"build from that export on the GPU host: trtgen (export .*)\n", err)
        monkeypatch.setattr("generator.exporting.export_folder", keep)
        assert run(*shlex.split(command))[0] == 0
        (wanted, images), (exported, exported_images) = asked
        wanted = wanted if wanted.target != "auto" else wanted.model_copy(update={"target": "tensorrt-10"})
        precision = "fp16" if wanted.precision == "auto" else wanted.precision
        assert exported == wanted.model_copy(update={"precision": precision}) or exported == wanted
        assert exported_images == images

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("tensorrt-8.6", "install NVIDIA's libraries and Python package of TensorRT 8.6"),
            ("tensorrt-10", "pip install -e '.[tensorrt]' 'tensorrt<11'; or export it for tensorrt-10 here"),
            ("tensorrt-11", "pip install -e '.[tensorrt]'; or export it for tensorrt-11 here"),
        ],
    )
    def test_the_tensorrt_of_the_target_is_to_be_installed(
        self, run: Callable[..., Any], tmp_path: Path, target: str, words: str
    ) -> None:
        code, _, err = run("build-repo", "demo", "--target", target, "-r", tmp_path / "r")
        assert (code, "TensorRT 8.6" in err) == (1, target == "tensorrt-8.6")
        assert words in err

    def test_options_are_named_beside_fields(self, run: Callable[..., Any], tmp_path: Path) -> None:
        source = write_tiny_onnx(tmp_path / "net.onnx", size=48)
        code, _, err = run("build-repo", source, "--recipe", "imagenet", "--labels", "index", "-r", tmp_path / "r")
        assert (code, "set image_size: [48, 48], or another crop (--image-size 48)" in err) == (1, True)

    def test_show_takes_what_the_rules_of_a_precision_ask_for(self, run: Callable[..., Any]) -> None:
        code, out, _ = run("show", "demo", "--target", "tensorrt-10", "--precision", "int8", "--json")
        assert code == 0
        assert json.loads(out)["models"][0]["precision"] == "int8"


class TestExports:
    def test_a_graph_without_its_record(self, run: Callable[..., Any], graph: Path) -> None:
        graph.with_name(EXPORT_FILE).unlink()
        code, _, err = run("build-repo", "--onnx", graph, "-r", graph.parent / "repo")
        assert code == 1
        assert "is the graph of an export, but export.json is missing beside it" in err
        assert "hint: copy the whole folder" in err

    def test_a_spec_that_calls_it_a_graph_of_the_user(self, run: Callable[..., Any], graph: Path) -> None:
        path = graph.with_name("spec.yaml")
        keys = "source: onnx, labels: index, target: onnxruntime, recipe: imagenet"
        path.write_text(f"models: [{{name: a, onnx: {graph.name}, {keys}}}]")
        code, _, err = run("build-repo", "--spec", path, "-r", graph.parent / "repo")
        assert code == 1
        assert "is the graph of an export" in err
        assert "hint: set source: export" in err

    @pytest.mark.parametrize(
        "changes",
        [
            {"files": ["model.onnx"]},
            {"files": {}},
            {"files": {"../up": "x"}},
            {"recipe": 3},
            {"recipe": {"resize": "x"}},
            {"labels": 3},
            {"labels": [1]},
            {"notes": 3},
            {"name": 3},
            {"target": 3},
            {"spec": {}},
            {"spec": []},
        ],
        ids=str,
    )
    def test_a_damaged_record(self, run: Callable[..., Any], graph: Path, changes: dict[str, Any]) -> None:
        change_record(graph, **changes)
        for command in ("show", "build-repo"):
            code, _, err = run(command, graph)
            assert code == 1
            assert f"{EXPORT_FILE} cannot be read: " in err or f"{EXPORT_FILE} does not list" in err
            assert "hint: copy the whole folder" in err

    def test_a_record_of_endless_depth(self, run: Callable[..., Any], graph: Path) -> None:
        graph.with_name(EXPORT_FILE).write_text(DEEP)
        code, _, err = run("show", graph)
        assert (code, "cannot be read" in err) == (1, True)

    def test_a_target_that_does_not_exist(self, run: Callable[..., Any], graph: Path) -> None:
        change_record(graph, target="tensorrt-9")
        code, _, err = run("show", graph)
        assert (code, "with target tensorrt-9" in err) == (1, True)

    def test_a_graph_that_is_not_the_record_s(self, run: Callable[..., Any], graph: Path) -> None:
        code, _, err = run("build-repo", "--onnx", graph.rename(graph.with_name("other.onnx")))
        assert (code, "does not list other.onnx among its files" in err) == (1, True)

    def test_another_target_than_the_export_s(self, run: Callable[..., Any], graph: Path) -> None:
        change_record(graph, precision="fp16")
        code, _, err = run("build-repo", graph, "--target", "onnxruntime")
        assert code == 1
        assert "target is onnxruntime" in err
        assert "was exported for tensorrt-10" in err

    def test_another_activation_has_no_option(self, run: Callable[..., Any], graph: Path, tmp_path: Path) -> None:
        entry = {"name": "tiny", "source": "export", "onnx": str(graph), "activation": "sigmoid"}
        (tmp_path / "models.yaml").write_text(json.dumps({"models": [entry]}))
        code, _, err = run("build-repo", "--spec", tmp_path / "models.yaml")
        assert code == 1
        assert "export again with activation: sigmoid" in err

    def test_images_are_not_ignored(self, run: Callable[..., Any], graph: Path, tmp_path: Path) -> None:
        code, _, err = run("build-repo", graph, "--images", tmp_path, "--repository", tmp_path / "models")
        assert (code, "its images were settled when the graph was exported" in err) == (1, True)
        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize(
        ("name", "words"), [("", "is a folder"), ("export.json", "does not end in .onnx"), ("x.plan", "does not end")]
    )
    def test_onnx_takes_an_onnx_file(self, run: Callable[..., Any], graph: Path, name: str, words: str) -> None:
        code, _, err = run("build-repo", "--onnx", graph.with_name(name) if name else graph.parent)
        assert (code, words in err) == (1, True)
        assert "hint: give it as --onnx" in err

    def test_bad_images_are_found_before_the_work(self, run: Callable[..., Any], tmp_path: Path) -> None:
        code, _, err = run(
            "export", "demo", "--target", "onnxruntime", "--images", tmp_path / "no", "-o", tmp_path / "x"
        )
        assert code == 1
        assert "is not a folder" in err
        assert "loaded" not in err
        assert not (tmp_path / "x").exists()

    def test_a_full_disk_is_called_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fill(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(export_module, "export_artifact", fill)
        with pytest.raises(ExportError, match="No space left") as caught:
            export_folder(make_spec(["demo"], target="onnxruntime")[0], tmp_path / "x")
        assert "free disk space" in (caught.value.hint or "")
        assert not any(tmp_path.iterdir())

    def test_the_export_of_before_stays_where_the_new_one_cannot_be_put(
        self, graph: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.rename

        def interrupted(path: Path, target: Path) -> Path:
            if path.name == "new":
                raise KeyboardInterrupt
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", interrupted)
        before = sorted(path.name for path in graph.parent.iterdir())
        source = write_tiny_onnx(graph.parent.parent / "tiny.onnx")
        spec = make_spec([str(source)], target="onnxruntime", labels="index", recipe=RECIPE)[0]
        with pytest.raises(KeyboardInterrupt):
            export_folder(spec, graph.parent)
        assert sorted(path.name for path in graph.parent.iterdir()) == before
        assert sorted(path.name for path in graph.parent.parent.iterdir()) == [graph.parent.name, "tiny.onnx"]


class TestGraphs:
    @pytest.mark.parametrize("command", ["check", "build-plan", "bench"])
    def test_a_plan_is_called_one(self, run: Callable[..., Any], tmp_path: Path, command: str) -> None:
        metadata = b'{"task": "detect"}'
        files = {
            "model.plan": plan_bytes(),
            "cut.plan": plan_bytes(size=2048, stated=4096),
            "rtx.plan": b"vtrt" + plan_bytes()[4:],
            "yolo.engine": struct.pack("<I", len(metadata)) + metadata + plan_bytes(),
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            code, _, err = run(command, tmp_path / name)
            assert code == 1
            kind = {"rtx": "a plan of TensorRT-RTX", "yolo": "an .engine file of Ultralytics, which holds a plan"}
            what = kind.get(name.partition(".")[0], "a TensorRT plan")
            assert f"{name} is {what}; an ONNX file was expected" in err

    @pytest.mark.parametrize("name", ["graph.json", "graph.textproto", "graph.onnxtxt", "graph.pbtxt"])
    def test_the_ending_of_the_name_decides_nothing(
        self, run: Callable[..., Any], tmp_path: Path, exported: Path, name: str
    ) -> None:
        (tmp_path / name).write_text('{"not": "onnx"}')
        for command in ("check", "inspect"):
            code, _, err = run(command, tmp_path / name)
            assert (code, "is not an ONNX file" in err or "holds no graph" in err) == (1, True)
        shutil.copyfile(exported / "model.onnx", tmp_path / name)
        assert run("inspect", tmp_path / name)[0] == 0

    def test_more_batches_than_a_profile_may_have(self, run: Callable[..., Any], exported: Path) -> None:
        for command in ("check", "build-plan"):
            code, _, err = run(command, exported / "model.onnx", "--max-batch", 2000)
            assert code == 2
            assert "--max-batch 2000: Input should be less than or equal to 1024" in err

    def test_the_command_of_a_hint_can_be_pasted(self, run: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
        code, _, err = run("build-plan", exported / "model.onnx", "--output", tmp_path / "no such" / "x.plan")
        assert code == 1
        assert f"hint: mkdir -p '{tmp_path / 'no such'}'" in err

    def test_bench_asks_for_its_folder_first(self, run: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        code, _, err = run("bench", exported / "model.onnx", "--output", tmp_path / "file" / "x")
        assert code == 1
        assert "cannot be written: Not a directory" in err
        assert "measuring" not in err


class TestPlans:
    @pytest.mark.parametrize("text", [DEEP, "[[", "{}"], ids=["deep", "cut", "empty"])
    def test_a_damaged_passport(self, run: Callable[..., Any], tmp_path: Path, text: str) -> None:
        plan = write_plan(tmp_path / "model.plan")
        passport_path(plan).write_text(text)
        code, _, err = run("inspect", plan)
        assert (code, "the passport" in err) == (1, True)

    def test_a_passport_with_shapes_of_no_axis(self, run: Callable[..., Any], tmp_path: Path) -> None:
        plan = write_plan(tmp_path / "model.plan")
        text = re.sub(r"\[\s+\d+,\s+8,\s+8,\s+3\s+\]", "[]", passport_path(plan).read_text())
        passport_path(plan).write_text(text)
        code, _, err = run("inspect", plan)
        assert (code, "profiles.0.PIXELS: min, opt and max need a batch" in err) == (1, True)

    @pytest.mark.server
    @pytest.mark.parametrize("changes", [{"recipe": 3}, {"contract": {}}], ids=str)
    def test_a_record_that_does_not_say_what_a_plan_needs(
        self, run: Callable[..., Any], built_demo: Path, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        plan = write_plan(tmp_path / "demo_classifier" / "1" / "model.plan")
        record = tmp_path / "demo" / "trtgen.json"
        record.parent.mkdir()
        record.write_text(json.dumps({**json.loads((built_demo / "demo" / "trtgen.json").read_text()), **changes}))
        for words in (("classify-plan", "x.jpg", "--plan", plan), ("verify", "--repository", tmp_path)):
            code, _, err = run(*words)
            assert code == 1
            assert "trtgen.json cannot be read: " in err
            assert "pydantic" not in err

    def test_a_recipe_that_is_none(self, tmp_path: Path) -> None:
        from generator.repository.model_info import read_recipe
        from generator.tensor import Tensor, from_onnx

        (tmp_path / "r.json").write_text('{"resize": "x"}')
        tensor = Tensor(name="PIXELS", data_type=from_onnx(2), shape=(-1, 8, 8, 3))
        with pytest.raises(PlanError, match=r"is not a recipe: resize") as caught:
            read_recipe(str(tmp_path / "r.json"), tensor)
        assert "pydantic" not in caught.value.message

    def test_a_folder_is_searched_to_the_depth_of_a_repository_only(self, tmp_path: Path) -> None:
        deep = tmp_path / "a" / "b" / "c" / "d"
        deep.mkdir(parents=True)
        (deep / "model.plan").write_bytes(plan_bytes())
        with pytest.raises(PlanError) as caught:
            read_header(tmp_path)
        assert str(deep) not in (caught.value.hint or "")
        with pytest.raises(PlanError) as caught:
            read_header(tmp_path / "a" / "b")
        assert str(deep / "model.plan") in (caught.value.hint or "")

    def test_a_timing_cache_of_endless_depth(self, tmp_path: Path) -> None:
        key = CacheKey(gpu="G", compute_capability="9.0", driver="1", cuda="13.0", tensorrt="10.16.1.11")
        cache = TimingCache(key, tmp_path)
        cache.path.write_text(f"{DEEP}\nx")
        assert cache.load() is None

    @pytest.mark.server
    def test_what_cannot_run_here_is_not_proved(self, run: Callable[..., Any], demo: Path) -> None:
        record = demo / "demo" / "trtgen.json"
        data = json.loads(record.read_text())
        data["spec"].update(target="tensorrt-10", precision="fp16")
        record.write_text(json.dumps(data))
        config = demo / "demo_classifier" / "config.pbtxt"
        config.write_text(config.read_text().replace('"onnxruntime"', '"tensorrt"'))
        write_plan(demo / "demo_classifier" / "1" / "model.plan")
        code, out, err = run("verify", "--repository", demo, "--json")
        assert code == 0, err
        (report,) = json.loads(out)
        status = {stage["stage"]: stage["status"] for stage in report["stages"]}
        served = ("plan", "served pixels", "served classifier", "served ensemble")
        assert {stage: status[stage] for stage in served} == dict.fromkeys(served, "not proved")
        assert status["onnx"] == "proved"
        code, _, err = run("verify", "--repository", demo, "--require", "all")
        assert (code, "(--require all)" in err) == (1, True)

    @pytest.mark.parametrize(
        ("version", "refused", "words"),
        [
            ((11, 4, 0, 1), True, "11.4.0.1, this host has 10.16.1.11, which loads no later plans"),
            ((8, 6, 1, 6), False, "built with TensorRT 8.6.1.6, it runs on the 10.16.1.11 of this host only if"),
            ((10, 16, 1, 11), False, "is not known"),
        ],
    )
    def test_without_a_passport_the_header_counts(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        version: tuple[int, ...],
        refused: bool,
        words: str,
    ) -> None:
        plan = tmp_path / "model.plan"
        plan.write_bytes(plan_bytes(version))
        host = Host(tensorrt="10.16.1.11", gpu=H200, source="this host")
        caplog.set_level("WARNING", "generator")
        monkeypatch.setattr(logging.getLogger("generator"), "propagate", True)  # which main() turns off
        if refused:
            with pytest.raises(PlanError, match=words):
                check_plans([plan], host)
        else:
            check_plans([plan], host)
            assert words in caplog.text

    def test_a_passport_of_another_plan(self, tmp_path: Path) -> None:
        plan = write_plan(tmp_path / "model.plan")
        plan.write_bytes(plan_bytes(size=8192))
        with pytest.raises(PlanError, match="8192 bytes, its passport says 4096"):
            check_plans([plan], Host(tensorrt="10.16.1.11", gpu=H200, source="this host"))

    def test_the_way_out_on_a_host_without_a_gpu_is_one(self, run: Callable[..., Any], tmp_path: Path) -> None:
        write_plan(tmp_path / "m_classifier" / "1" / "model.plan")
        (tmp_path / "m_classifier" / "config.pbtxt").write_text('backend: "tensorrt"')
        code, _, err = run("serve", "--repository", tmp_path)
        assert code == 1
        # the backend is part of the contract, so without --replace the build would refuse
        assert "--target onnxruntime --replace" in err
