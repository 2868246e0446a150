"""The step of bulk work with a plan, on stand-ins of TensorRT, the driver and the decoder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generator.bulk import local as local_engine
from generator.bulk import ray_engine
from generator.bulk import step as step_module
from generator.bulk.local import make_local_steps
from generator.bulk.run import Engine, run_in_processes, run_on_shared_gpus
from generator.bulk.step import LocalStep
from generator.cli.bulk import _open_engine
from generator.errors import PlanError
from generator.images.served_pixels import prepare_one
from generator.plan import local
from generator.runtime.bindings import TensorRTLog
from generator.runtime.device import EngineError
from generator.runtime.gpu_chain import DeviceArray
from generator.spec.recipe import Recipe
from tests.gpu_images_standin import LEFT_OPEN, Libraries
from tests.tensorrt_standin import Driver, make_plan, make_tensorrt

SIDE = 8
RECIPE = Recipe(resize=SIDE, crop=(SIDE, SIDE), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
PROFILE = {"X": ([1, SIDE, SIDE, 3], [4, SIDE, SIDE, 3], [4, SIDE, SIDE, 3])}


@pytest.fixture
def make_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that returns the step of a plan that doubles pixels; an answer is their sum."""
    limit = Image.MAX_IMAGE_PIXELS

    def answer_one(_spec: Any, _artifact: Any, outputs: Any, geometry: Sequence[float], *, top: int) -> Any:
        return [{"label": f"{geometry[-2]}x{geometry[-1]}", "index": int(outputs["Y"].sum()), "score": 1.0}]

    def make(decode: str, **behaviour: Any) -> tuple[LocalStep, Driver, Libraries]:
        plan, driver = tmp_path / "model.plan", Driver()
        plan.write_bytes(make_plan({"X": ("UINT8", [-1, SIDE, SIDE, 3])}, profiles=[PROFILE], **behaviour))
        trt, libraries = make_tensorrt(driver), Libraries(driver)
        for name, value in {
            "find_gpu": lambda _index: None,
            "hold_context": lambda _index: None,
            "load_driver": lambda: driver,
            "import_tensorrt": lambda: trt,
            "open_log": functools.cache(lambda: TensorRTLog(trt)),
        }.items():
            monkeypatch.setattr(local, name, value)
        monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", libraries.codec)
        monkeypatch.setitem(sys.modules, "cvcuda", libraries.cvcuda)
        candidate = SimpleNamespace(
            plan=plan,
            spec=SimpleNamespace(task="classification", decode=decode),
            artifact=SimpleNamespace(recipe=RECIPE),
        )
        monkeypatch.setattr(step_module, "find_candidate", lambda _root, _name: candidate)
        monkeypatch.setattr(step_module, "find_task", lambda _name: SimpleNamespace(answer_one=answer_one))
        return LocalStep(tmp_path, "doubled", top=1, threads=1), driver, libraries

    yield make
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture
def batch(tmp_path: Path) -> dict[str, Any]:
    """Four pictures, one of them for the CPU's decoder, one that is broken and one that is gone."""
    paths = []
    for number, (size, kind) in enumerate(
        [((40, 30), "JPEG"), ((33, 48), "JPEG"), ((20, 20), "PNG"), ((24, 24), "JPEG")]
    ):
        paths.append(tmp_path / f"{number}.{kind}")
        values = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(values).save(paths[-1], kind)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    return {"path": np.array([str(path) for path in (*paths, tmp_path / "broken.jpg", "gone.jpg")])}


@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_pixels_go_from_the_decoder_to_the_plan(
    make_step: Any, batch: dict[str, Any], decode: str, caplog: pytest.LogCaptureFixture
) -> None:
    step, driver, libraries = make_step(decode)
    for _ in range(2):
        answers = step(batch)
        for path, rows in zip(batch["path"][:4], answers["classes"], strict=False):
            pixels, geometry = prepare_one(RECIPE, Path(path).read_bytes(), path)
            assert rows == [{"label": f"{geometry[-2]}x{geometry[-1]}", "index": int((pixels * 2).sum()), "score": 1.0}]
        assert list(answers["classes"][4:]) == [None, None]
        assert [bool(error) for error in answers["error"]] == [False] * 4 + [True] * 2
    step.close()
    assert not caplog.messages
    assert bool(libraries.batches) == (decode == "gpu")
    assert (driver.memory, driver.open) == ({}, LEFT_OPEN if decode == "gpu" else 0)


def test_images_are_decoded_on_the_cpu_where_the_gpu_cannot(
    make_step: Any, batch: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise EngineError("nvidia.nvimgcodec is not installed")

    monkeypatch.setattr("generator.runtime.gpu_images.import_libraries", fail)
    step, *_ = make_step("gpu")
    assert "images are decoded on the CPU: nvidia.nvimgcodec is not installed" in caplog.text
    assert [bool(rows) for rows in step(batch)["classes"]] == [True] * 4 + [False] * 2
    step.close()


def test_a_plan_that_fails_says_why_and_everything_is_released(make_step: Any, batch: dict[str, Any]) -> None:
    step, driver, _ = make_step("cpu", fail_rows=2)
    two = {"path": batch["path"][:2]}
    with pytest.raises(PlanError, match=r"does not run here.*the kernel is ill"):
        step(two)
    assert (driver.memory, driver.open) == ({}, 0)


def test_a_part_is_not_begun_where_the_rest_would_be_too_few(make_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILE, "X", ([4, SIDE, SIDE, 3], [4, SIDE, SIDE, 3], [8, SIDE, SIDE, 3]))
    step, driver, _ = make_step("gpu")
    engine = step._run.__self__
    _, address = driver.cuMemAlloc(4 * SIDE * SIDE * 3)
    rows = DeviceArray(address, (4, SIDE, SIDE, 3))
    assert [engine.begin(rows, 0, total) for total in (7, 8)] == [False, True]
    engine.wait()
    driver.cuMemFree(address)
    step.close()


@pytest.mark.parametrize(
    ("plan", "decode", "workers", "engine", "per_gpu"),
    [
        ("model.plan", "gpu", 12, run_on_shared_gpus, 6),
        ("model.plan", "cpu", 8, run_in_processes, 4),
        (None, "gpu", 5, run_in_processes, 0),
    ],
)
def test_processes_by_where_images_are_decoded(
    plan: str | None,
    decode: str,
    workers: int,
    engine: Engine,
    per_gpu: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two GPUs, with each of which a served model would have six processes."""
    candidate: Any = SimpleNamespace(plan=plan, spec=SimpleNamespace(decode=decode))
    for name, value in {
        "find_candidate": lambda _root, _name: candidate,
        "find_gpu": lambda: None,
        "count_gpus": lambda: 2,
        "usable_cores": lambda: 5,
        "decoding_instances": lambda: 6,
    }.items():
        monkeypatch.setattr(local_engine, name, value)
    steps: Any = make_local_steps(tmp_path, "doubled", top=1, workers=None)
    gpus = [step.keywords["gpu"] for step in steps]
    assert gpus == [number % 2 if plan else 0 for number in range(workers)]
    assert len(make_local_steps(tmp_path, "doubled", top=1, workers=3)) == 3
    assert _open_engine("local", candidate) is engine
    monkeypatch.setattr(ray_engine, "RayEngine", dict)
    on_ray: list[Any] = [_open_engine("ray", candidate), _open_engine("ray", None)]
    assert on_ray == [{"per_gpu": per_gpu}, {"per_gpu": 0}]
    assert _open_engine("local", None) is run_in_processes
