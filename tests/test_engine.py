"""Engines: what can be decided without a GPU, and real ones where there is a GPU and TensorRT."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import generator.plan.local as engine_module
from generator.cli.classify_plan import classify_plan
from generator.demo.draw import draw_set
from generator.errors import DeviceError, PlanError, SourceError, TrtgenError
from generator.gpu import why_no_gpu
from generator.images.served_pixels import prepare_without_torch
from generator.images.sets import photographs
from generator.images.training_pixels import prepare
from generator.measure.bench.runners import plan_runner
from generator.plan.load_errors import explain_failure
from generator.plan.local import check_rows, open_engine
from generator.plan.profiles import describe_profiles
from generator.repository import read_record
from generator.repository.model_info import check_model_info, find_model_info, read_recipe
from generator.runtime.bindings import TensorRTLog
from generator.runtime.gpu_chain import DeviceArray
from generator.runtime.shapes import choose_profile, split_rows
from generator.spec.recipe import IMAGENET, Recipe
from generator.tasks.classification.rows import make_rows
from generator.tensor import DATA_TYPES, Profile, ShapeRange, Tensor, from_onnx, from_tensorrt, from_triton
from tests.gpu_images_standin import read_memory
from tests.tensorrt_standin import Driver, make_plan, make_tensorrt
from tests.test_passport import make, write_passport
from tests.test_plan_header import plan_bytes


def profile(low: int, best: int, high: int) -> Profile:
    rest = (8, 8, 3)
    return {"PIXELS": ShapeRange(min=(low, *rest), opt=(best, *rest), max=(high, *rest))}


def tensor(data_type: int = 2, shape: tuple[int, ...] = (-1, 8, 8, 3)) -> Tensor:
    return Tensor(name="PIXELS", data_type=from_onnx(data_type), shape=shape)


class TestChooseProfile:
    PROFILES = (profile(1, 1, 8), profile(1, 8, 64), profile(32, 64, 128))

    @pytest.mark.parametrize(
        ("batch", "chosen"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 1), (35, 1), (36, 1), (37, 2), (64, 2), (128, 2)]
    )
    def test_the_nearest_opt_among_those_that_contain_it(self, batch: int, chosen: int) -> None:
        assert choose_profile(self.PROFILES, ((batch, 8, 8, 3),)) == chosen

    def test_of_equally_near_ones_the_first(self) -> None:
        assert choose_profile((profile(1, 2, 8), profile(1, 6, 8)), ((4, 8, 8, 3),)) == 0

    @pytest.mark.parametrize("shape", [(129, 8, 8, 3), (0, 8, 8, 3), (4, 8, 9, 3), (4, 8, 8)])
    def test_none(self, shape: tuple[int, ...]) -> None:
        assert choose_profile(self.PROFILES, (shape,)) is None

    def test_all_inputs_count(self) -> None:
        def two(best: int) -> Profile:
            one = ShapeRange(min=(1,), opt=(1,), max=(9,))
            return {"a": one, "b": ShapeRange(min=(1,), opt=(best,), max=(9,))}

        assert choose_profile((two(9), two(2)), ((1,), (3,))) == 1

    def test_a_static_shape_is_described_as_one(self) -> None:
        assert describe_profiles((profile(4, 4, 4),)) == "profile 0: PIXELS 4x8x8x3"


class TestSplitRows:
    @pytest.mark.parametrize(
        ("rows", "ranges", "parts"),
        [
            (1, [(1, 8)], [(0, 1)]),
            (8, [(1, 8)], [(0, 8)]),
            (20, [(1, 8)], [(0, 8), (8, 16), (16, 20)]),
            (3, [(8, 8)], None),
            (6, [(1, 4), (8, 16)], [(0, 4), (4, 6)]),
            (40, [(1, 4), (8, 16)], [(0, 16), (16, 32), (32, 40)]),
        ],
    )
    def test_cases(self, rows: int, ranges: list[tuple[int, int]], parts: list[tuple[int, int]] | None) -> None:
        assert split_rows(rows, ranges) == parts

    @given(
        rows=st.integers(1, 5000),
        ranges=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200)), min_size=1, max_size=4),
    )
    def test_every_row_once_and_every_batch_within_a_profile(self, rows: int, ranges: list[tuple[int, int]]) -> None:
        batches = [(low, low + more) for low, more in ranges]
        parts = split_rows(rows, batches)
        if parts is not None:
            assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
            assert parts[-1][1] == rows
            assert all(any(low <= stop - start <= high for low, high in batches) for start, stop in parts)


class TestRows:
    def test_right_ones(self) -> None:
        check_rows(tensor(), (5, 8, 8, 3), "uint8")
        check_rows(tensor(shape=(-1, -1, -1, 3)), (5, 9, 7, 3), "uint8")

    @pytest.mark.parametrize(
        ("shape", "data_type", "words"),
        [
            ((5, 8, 8, 4), "uint8", r"takes rows of 8x8x3, the array has the shape \[5, 8, 8, 4\]"),
            ((5, 3, 8, 8), "uint8", "takes rows of 8x8x3"),
            ((8, 8, 3), "uint8", "takes rows of 8x8x3"),
            ((), "uint8", "takes rows of 8x8x3"),
            ((5, 8, 8, 3), "float32", "takes uint8, the array is float32"),
            ((0, 8, 8, 3), "uint8", "got no row"),
        ],
    )
    def test_wrong_ones(self, shape: tuple[int, ...], data_type: str, words: str) -> None:
        with pytest.raises(PlanError, match=words) as caught:
            check_rows(tensor(), shape, data_type)
        assert caught.value.hint


def test_data_types_by_name() -> None:
    expected = {"FLOAT": "TYPE_FP32", "HALF": "TYPE_FP16", "UINT8": "TYPE_UINT8", "INT8": "TYPE_INT8",
                "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "BOOL": "TYPE_BOOL", "BF16": "TYPE_BF16"}  # fmt: skip
    assert {name: from_tensorrt(name).triton for name in expected} == expected
    for unknown in ("FP8", ""):
        with pytest.raises(KeyError):
            from_tensorrt(unknown)
    assert all(from_onnx(row.onnx) is from_triton(row.triton) is row for row in DATA_TYPES)


def test_data_types_are_named_as_tensorrt_names_them() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for name in ("FLOAT", "HALF", "UINT8", "INT8", "INT32", "INT64", "BOOL", "BF16", "FP8"):
        assert getattr(trt.DataType, name).name == name


@pytest.mark.parametrize(
    ("text", "words", "kind"),
    [
        (
            (
                "6: The engine plan file is not compatible with this version of TensorRT, expecting library version "
                "8.6.1.2 got 8.6.1.6, please rebuild."
            ),
            "it was built with TensorRT 8.6.1.6, this is 8.6.1.2",
            PlanError,
        ),
        (
            (
                "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                "10.3.0.26 got .., please rebuild."
            ),
            "this is 10.3.0.26",
            PlanError,
        ),
        (
            (
                "The engine plan file is generated on an incompatible device, expecting compute 9.0 got compute 8.6, "
                "please rebuild."
            ),
            "compute capability 8.6, this one has 9.0",
            PlanError,
        ),
        (
            (
                "The current device is not compatible with this hardware-compatible engine. Expected "
                "compute capability >= 8.0 but got compute capability = 7.5"
            ),
            "runs on compute capability 8.0 and later, this GPU has 7.5",
            PlanError,
        ),
        (
            "The current device only supports 16 multiprocessors but the engine file requires 132",
            "needs 132 multiprocessors, this GPU has 16",
            PlanError,
        ),
        (
            "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.",
            "is not a TensorRT plan",
            PlanError,
        ),
        ("Serialization assertion plan->header.size == blobSize failed.", "cut off", PlanError),
        (
            (
                "Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match. "
                "Note: Current Version: 236, Serialized Engine Version: 239"
            ),
            "another version of TensorRT",
            PlanError,
        ),
        (
            "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is false.",
            "carries code of its own",
            PlanError,
        ),
        ("Platform specific tag mismatch detected. TensorRT plan files are", "another operating system", PlanError),
        (
            "Cannot deserialize plugin since corresponding IPluginCreator not found in Plugin Registry",
            "plugin",
            PlanError,
        ),
        ("getPluginCreator could not find plugin: EfficientNMS_TRT version: 1", "EfficientNMS_TRT", PlanError),
        (
            "[executionContext.cpp::initialize] Error Code 2: OutOfMemory (no further information)",
            "memory",
            DeviceError,
        ),
        ("Error Code 1: Cuda Runtime (out of memory)", "memory is exhausted", DeviceError),
        (
            "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)",
            "the driver is older",
            DeviceError,
        ),
        (
            (
                "Profile 0 has been chosen by another IExecutionContext. Use another profileIndex or destroy the "
                "IExecutionContext that use this profile."
            ),
            "in use by another execution context",
            PlanError,
        ),
    ],
)
def test_tensorrts_words_in_plain_ones(text: str, words: str, kind: type[TrtgenError]) -> None:
    later = "4: [runtime.cpp::deserialize::66] Error Code 4: Internal Error (Engine deserialization failed.)"
    error = explain_failure("model.plan cannot be loaded", [text, later])
    assert type(error) is kind
    assert words in error.message
    assert text in error.message
    assert error.hint


def test_words_that_are_not_known_are_handed_on() -> None:
    error = explain_failure("it does not run", ["something new"], otherwise=DeviceError, hint="try")
    assert isinstance(error, DeviceError)
    assert "something new" in error.message
    assert "does not say why" in explain_failure("it does not run", []).message


@given(text=st.text(max_size=200))
@settings(max_examples=50)
def test_any_words_give_an_error(text: str) -> None:
    assert explain_failure("it", [text, "{0} {x}", text]).hint


class TestOpenWithoutGpu:
    def test_what_is_no_plan_is_found_first(self, tmp_path: Path) -> None:
        path = tmp_path / "model.plan"
        path.write_text("text")
        with pytest.raises(PlanError, match="not a TensorRT plan"), open_engine(path):
            pass

    def test_a_plan_that_is_not_its_passports(self, tmp_path: Path) -> None:
        path = tmp_path / "model.plan"
        path.write_bytes(plan_bytes())
        write_passport(make(), path)
        with pytest.raises(PlanError, match="its passport says 4"), open_engine(path):
            pass

    @pytest.mark.skipif(not why_no_gpu(), reason="needs a machine without a GPU")
    def test_no_gpu(self, tmp_path: Path) -> None:
        path = tmp_path / "model.plan"
        path.write_bytes(plan_bytes())
        with pytest.raises(DeviceError) as caught, open_engine(path):
            pass
        assert caught.value.message == why_no_gpu()


class TestOpen:
    """On stand-ins for the driver and TensorRT, whose network doubles its input."""

    TWO = ({"X": ([1, 4], [1, 4], [2, 4])}, {"X": ([4, 4], [8, 4], [16, 4])})

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, Driver]]:
        def make(plan: bytes, **options: Any) -> tuple[Path, Driver]:
            path, driver = tmp_path / "model.plan", Driver(**options)
            path.write_bytes(plan)
            trt = make_tensorrt(driver)
            for name, value in {
                "find_gpu": lambda _index: None,
                "hold_context": lambda _index: None,
                "load_driver": lambda: driver,
                "import_tensorrt": lambda: trt,
                "open_log": functools.cache(lambda: TensorRTLog(trt)),
            }.items():
                monkeypatch.setattr(engine_module, name, value)
            return path, driver

        return make

    @pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 19, 37])
    @pytest.mark.parametrize("profiles", [TWO, TWO[1:]])
    def test_any_number_of_rows(self, place: Any, profiles: tuple[Any, ...], rows: int) -> None:
        path, driver = place(make_plan({"X": ("FLOAT", [-1, 4])}, profiles=list(profiles)))
        given = np.random.default_rng(rows).random((rows, 4), np.float32)
        with open_engine(path) as engine:
            for _ in range(2):
                assert (engine.run_rows(given) == given * 2).all()
            _, number = engine.open_batch(8)
            assert number == len(profiles) - 1
            assert (engine.run_rows(given) == given * 2).all()
        assert (driver.memory, driver.graphs, driver.open) == ({}, {}, 0)

    @pytest.mark.parametrize("rows", [1, 3, 16, 37])
    @pytest.mark.parametrize("profiles", [TWO, TWO[1:]])
    def test_rows_that_lie_on_the_gpu(self, place: Any, profiles: tuple[Any, ...], rows: int) -> None:
        path, driver = place(make_plan({"X": ("FLOAT", [-1, 4])}, profiles=list(profiles)))
        given = np.random.default_rng(rows).random((rows, 4), np.float32)
        with open_engine(path) as engine:
            address = engine.device.allocate(given.nbytes)
            read_memory(driver, address, given.shape, np.float32)[...] = given
            on_gpu = DeviceArray(address, given.shape, "<f4")
            assert (engine.run_outputs(on_gpu)["Y"] == given * 2).all()
            with pytest.raises(PlanError, match="takes rows of 4"):
                engine.run_outputs(DeviceArray(address, (rows, 2, 2), "<f4"))
            engine.device.release("cuMemFree", address)

    def test_a_static_plan(self, place: Any) -> None:
        path, _ = place(make_plan({"X": ("FLOAT", [4, 4])}))
        given = np.random.default_rng(0).random((6, 4), np.float32)
        with open_engine(path) as engine:
            assert (engine.run_rows(given) == given * 2).all()

    def test_rows_that_do_not_fit(self, place: Any) -> None:
        path, _ = place(make_plan({"X": ("FLOAT", [-1, 4])}, profiles=list(self.TWO)))
        with open_engine(path) as engine:
            for rows in (np.zeros((0, 4), np.float32), np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float64)):
                with pytest.raises(PlanError):
                    engine.run_rows(rows)
            with pytest.raises(PlanError, match=r"profile 0: X 1\.\.2x4; profile 1: X 4\.\.16x4"):
                engine.open_batch(3)

    def test_several_inputs_or_outputs_are_refused(self, place: Any) -> None:
        tensors = {name: ("FLOAT", [2, 4]) for name in ("X_A", "X_B")}
        path, driver = place(make_plan(tensors))
        for method, found in (("run_outputs", r"2 inputs \(X_A, X_B\)"), ("run_rows", r"2 outputs \(Y_A, Y_B\)")):
            with (
                pytest.raises(PlanError, match=rf"has {found}, one was expected"),
                open_engine(path) as engine,
            ):
                getattr(engine, method)(np.zeros((2, 4), np.float32))
            assert driver.open == 0

    @pytest.mark.parametrize(
        ("behaviour", "kind", "words"),
        [
            ({"fail_rows": 2}, PlanError, "TensorRT says: the kernel is ill"),
            (
                {"too_large": True},
                DeviceError,
                r"\(it needs at least \d+ MiB of GPU memory\): the GPU's m",
            ),
            ({"version": (10, 3, 0, 26)}, PlanError, "not compatible with this version"),
        ],
    )
    def test_failures_in_plain_words(self, place: Any, behaviour: Any, kind: type[TrtgenError], words: str) -> None:
        path, driver = place(make_plan({"X": ("FLOAT", [2, 4])}, **behaviour))
        with pytest.raises(kind, match=words) as caught, open_engine(path) as engine:
            engine.run_rows(np.zeros((2, 4), np.float32))
        assert caught.value.hint
        assert (driver.memory, driver.open) == ({}, 0)

    @pytest.mark.parametrize("graphs", [False, True])
    def test_a_runner_of_the_benchmark(self, place: Any, monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
        profiles = [{"X": ([1, 2, 2, 3], [4, 2, 2, 3], [8, 2, 2, 3])}]
        path, driver = place(make_plan({"X": ("UINT8", [-1, 2, 2, 3])}, profiles=profiles))
        monkeypatch.setattr(plan_runner, "find_gpu", lambda: SimpleNamespace(name="GPU"))
        runner = plan_runner.open_runner({"plan": str(path), "cuda_graph": graphs})
        assert runner.about()["context_bytes"] == 3 << 20
        random = np.random.default_rng(0)
        for batch in (4, 8):
            sets = [random.integers(0, 100, (batch, 2, 2, 3), np.uint8) for _ in range(3)]
            runner.prepare(sets)
            assert len(driver.graphs) == (3 if graphs else 0)
            for index in (2, 1):
                runner.enqueue(index)
                (answers,) = runner._engine.fetch(0, runner._shapes)
                assert (answers == sets[index] * 2).all()
            assert (runner.scores() == sets[0] * 2).all()
            runner._device.fill(runner._inputs[0], 0, sets[0].nbytes)  # the copy brings it back
            runner.enqueue_with_copies(1)
            runner.synchronize()
            assert (runner._engine.host_outputs[0].array[: sets[0].size].reshape(sets[0].shape) == sets[0] * 2).all()
            event = runner.make_event()
            runner.record(event)
            assert runner.elapsed_ms(event, event) == 0.5
        runner.release()
        assert not driver.on_gpu
        assert not driver.graphs
        runner.close()
        assert not driver.memory

    def test_memory_that_is_exhausted(self, place: Any) -> None:
        width = 1 << 20
        plan = make_plan({"X": ("FLOAT", [2, width])})
        path, driver = place(plan, memory_bytes=10 << 20)
        with pytest.raises(DeviceError, match="it needs at least 19 MiB of GPU memory"), open_engine(path) as engine:
            engine.run_rows(np.zeros((2, width), np.float32))
        assert (driver.memory, driver.open) == ({}, 0)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


class TestPixels:
    @pytest.mark.parametrize("recipe", [IMAGENET, IMAGENET.with_image_size((96, 80))])
    def test_they_are_those_of_torchvision(self, recipe: Recipe) -> None:
        pytest.importorskip("torchvision")
        files = [*photographs().files, *draw_images(3)]
        ours, theirs = prepare_without_torch(recipe, files), prepare(recipe, files)
        assert ours.dtype == np.uint8
        assert ours.shape == (len(files), *recipe.crop, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 1

    def test_a_broken_image_is_named(self) -> None:
        good = encode(Image.new("RGB", (300, 300)))
        with pytest.raises(SourceError, match="second: not an image"):
            prepare_without_torch(IMAGENET, [good, b"text"], ["first", "second"])
        with pytest.raises(SourceError, match="image 0: no bytes"):
            prepare_without_torch(IMAGENET, [b""])

    def test_no_images(self) -> None:
        assert prepare_without_torch(IMAGENET, []).shape == (0, 224, 224, 3)

    def test_pillows_own_limit_is_left_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limit = 1_000_000
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for _ in range(2):  # the first one loads the step, too
            prepare_without_torch(IMAGENET, draw_images(1))
            assert limit == Image.MAX_IMAGE_PIXELS


def draw_images(count: int) -> list[bytes]:
    return [one.jpeg for one in draw_set(count, seed=5)]


class TestModelInfo:
    def test_from_the_repository(self, demo: Path) -> None:
        plan = demo / "demo_classifier" / "1" / "model.plan"
        plan.write_bytes(plan_bytes())
        info, record = find_model_info(plan), read_record(demo, "demo")
        assert info is not None
        assert record is not None
        assert info.recipe == record.recipe
        assert info.labels == tuple(record.contract["labels"])
        shutil.copytree(demo / "demo_classifier", demo / "demo_other")
        assert find_model_info(demo / "demo_other" / "1" / "model.plan") is None

    def test_from_an_export(self, tmp_path: Path) -> None:
        path = tmp_path / "export.json"
        path.write_text(json.dumps({"recipe": IMAGENET.model_dump(mode="json"), "labels": ["a", "b"], "name": "x"}))
        info = find_model_info(tmp_path / "model.plan")
        assert info is not None
        assert (info.recipe, info.labels) == (IMAGENET, ("a", "b"))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": {}, "labels": []}', '{"recipe": 1, "labels": 2}'])
    def test_a_damaged_export(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(PlanError, match=r"export\.json"):
            find_model_info(tmp_path / "model.plan")

    def test_from_nowhere(self, tmp_path: Path) -> None:
        assert find_model_info(tmp_path / "model.plan") is None
        assert find_model_info(Path("/model.plan")) is None

    def test_a_recipe_that_is_asked_for(self, tmp_path: Path) -> None:
        assert read_recipe("imagenet", tensor(shape=(-1, 224, 224, 3))) == IMAGENET
        assert read_recipe("imagenet", tensor(shape=(-1, 96, 80, 3))).crop == (96, 80)
        path = tmp_path / "recipe.json"
        path.write_text(IMAGENET.model_dump_json())
        assert read_recipe(str(path), tensor()) == IMAGENET
        for text in ("{}", "[1]", "no json"):
            path.write_text(text)
            with pytest.raises(PlanError) as caught:
                read_recipe(str(path), tensor())
            assert caught.value.hint
        with pytest.raises(PlanError, match="UINT8 pixels of height x width x channels"):
            read_recipe("imagenet", tensor(shape=(-1, 3, 224, 224)))

    def test_what_does_not_go_together(self) -> None:
        given, made = tensor(shape=(-1, 224, 224, 3)), tensor(data_type=1, shape=(-1, 2))
        check_model_info(IMAGENET, ("a", "b"), given, made)
        check_model_info(IMAGENET, None, given, made)
        with pytest.raises(PlanError, match="there are 3 labels, the plan has 2 classes"):
            check_model_info(IMAGENET, ("a", "b", "c"), given, made)
        with pytest.raises(PlanError, match="takes images of 8x8x3, the recipe makes 224x224x3"):
            check_model_info(IMAGENET, None, tensor(), made)
        with pytest.raises(PlanError, match="UINT8 pixels"):
            check_model_info(IMAGENET, None, tensor(data_type=1, shape=(-1, 3, 224, 224)), made)


def test_the_best_class_comes_first_and_of_equal_ones_the_lower_index() -> None:
    scores = {"PROBABILITIES": np.array([[0.1, 0.4, 0.1, 0.4]], np.float32)}
    (best,) = make_rows(scores, ("a", "b", "c", "d"), 3)
    assert [(one["index"], one["label"]) for one in best] == [(1, "b"), (3, "d"), (0, "a")]
    assert best[0]["score"] == pytest.approx(0.4)
    assert len(make_rows(scores, None, 9)[0]) == 4
    assert make_rows(scores, None, 1)[0][0]["label"] is None
    levels = np.random.default_rng(1).integers(0, 4, (200, 9)).astype(np.float32)  # many are equal
    levels[levels == 3] = np.nan
    for top in (1, 3, 9, None):
        found = [[row["index"] for row in rows] for rows in make_rows({"scores": levels}, None, top)]
        assert found == [[*np.argsort(-row, kind="stable")[:top]] for row in levels]


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(classify_plan)
    return CliRunner().invoke(app, arguments)


class TestCommand:
    def test_a_plan_of_which_nothing_is_known(self, tmp_path: Path) -> None:
        path = tmp_path / "model.plan"
        path.write_bytes(plan_bytes())
        result = run("x.jpg", "--plan", str(path))
        assert isinstance(result.exception, PlanError)
        assert "nothing says how images become the input" in result.exception.message

    def test_no_plan(self, tmp_path: Path) -> None:
        result = run("x.jpg", "--plan", str(tmp_path / "absent.plan"))
        assert isinstance(result.exception, PlanError)
        assert "cannot be read" in result.exception.message

    @pytest.mark.skipif(not why_no_gpu(), reason="needs a machine without a GPU")
    def test_no_gpu(self, tmp_path: Path) -> None:
        path = tmp_path / "model.plan"
        path.write_bytes(plan_bytes())
        result = run("x.jpg", "--plan", str(path), "--recipe", "imagenet")
        assert isinstance(result.exception, DeviceError)
