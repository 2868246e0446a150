"""Engines on a real GPU: run, sessions that take turns, CUDA graphs, memory given back, refusals in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from generator.errors import PlanError
from generator.gpu import load_driver, why_no_gpu
from generator.plan.local import open_engine
from generator.plan.profiles import describe_profiles
from generator.runtime.device import call
from generator.tensor import Tensor, from_onnx

WITHOUT = why_no_gpu() or ("" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed")
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU and TensorRT: {WITHOUT}")


def build(path: Path, *, profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)) -> Path:
    """A plan that doubles rows of four numbers, built with TensorRT's own API."""
    import tensorrt as trt

    from generator.plan.library import open_log

    builder = trt.Builder(open_log().logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    given = network.add_input("x", trt.float32, (-1, 4))
    made = network.add_elementwise(given, given, trt.ElementWiseOperation.SUM).get_output(0)
    made.name = "y"
    network.mark_output(made)
    config = builder.create_builder_config()
    for low, best, high in profiles:
        one = builder.create_optimization_profile()
        one.set_shape("x", (low, 4), (best, 4), (high, 4))
        config.add_optimization_profile(one)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, open_log().last_error()
    path.write_bytes(bytes(plan))
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plan") / "model.plan")


@pytest.fixture(scope="module")
def plan_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plan") / "model.plan", profiles=((1, 1, 2), (4, 8, 16)))


def test_what_it_is(plan_of_two: Path) -> None:
    with open_engine(plan_of_two) as engine:
        assert engine.input == Tensor(name="x", data_type=from_onnx(1), shape=(-1, 4))
        assert engine.output.name == "y"
        assert describe_profiles(engine.all_profiles) == "profile 0: x 1..2x4; profile 1: x 4..16x4"
        assert engine.context_bytes >= 0


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 16, 17, 37])
def test_any_number_of_rows(plan_of_two: Path, rows: int) -> None:
    given = np.random.default_rng(rows).random((rows, 4), np.float32)
    with open_engine(plan_of_two) as engine:
        for _ in range(2):
            assert (engine.run_rows(given) == given * 2).all()


def test_rows_that_do_not_fit(plan: Path) -> None:
    with open_engine(plan) as engine:
        for rows in (np.zeros((0, 4), np.float32), np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float64)):
            with pytest.raises(PlanError):
                engine.run_rows(rows)


def test_batches_take_turns(plan_of_two: Path) -> None:
    with open_engine(plan_of_two) as engine:
        for batch, chosen in ((1, 0), (2, 0), (4, 1), (16, 1), (5, 1)):
            shapes, profile = engine.open_batch(batch)
            assert profile == chosen
            graph = engine.record(0, shapes)
            for number in range(3):
                given = np.full((batch, 4), batch + number, np.float32)
                engine.stage(0, given)
                engine.send(0, 0, 0, given.nbytes)
                if number:
                    engine.device.launch(graph)
                else:
                    engine.enqueue(0, shapes)
                assert (engine.fetch(0, shapes)[0] == given * 2).all()
            engine.device.release("cuGraphExecDestroy", graph)


def test_a_batch_that_it_has_not(plan_of_two: Path) -> None:
    with open_engine(plan_of_two) as engine:
        for batch in (3, 17):
            with pytest.raises(PlanError):
                engine.open_batch(batch)


def test_everything_is_given_back(plan: Path) -> None:
    driver = load_driver()

    def once() -> None:
        with open_engine(plan) as engine:
            engine.open_batch(8)
            engine.run_rows(np.ones((20, 4), np.float32))

    once()
    free, _ = call(driver, "cuMemGetInfo")
    for _ in range(20):
        once()
    assert call(driver, "cuMemGetInfo")[0] >= free - (32 << 20)


def test_the_header_of_a_real_plan(plan: Path) -> None:
    import tensorrt as trt

    from generator.plan.header import read_header

    assert str(read_header(plan).version).startswith(".".join(trt.__version__.split(".")[:3]))


def test_a_damaged_plan_is_refused_in_words(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(plan.read_bytes()[:64] + b"\xff" * 200)
    with pytest.raises(PlanError) as caught, open_engine(path):
        pass
    assert caught.value.hint
