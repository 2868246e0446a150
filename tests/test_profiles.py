"""Optimization profiles: every mistake is found before TensorRT starts, and all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.errors import PlanError
from generator.graph.model import OnnxModel, read_onnx
from generator.plan.profiles import check_profiles, make_profiles
from generator.spec.plan import BatchProfile, uncovered_batches
from generator.tensor import Profile, ShapeRange
from tests.tiny_onnx import write_tiny_onnx

REST = (3, 32, 32)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return read_onnx(write_tiny_onnx(tmp_path_factory.mktemp("onnx") / "dynamic.onnx"))


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return read_onnx(write_tiny_onnx(tmp_path_factory.mktemp("onnx") / "static.onnx", batch=4))


def batches(*ranges: tuple[int, int, int]) -> list[BatchProfile]:
    return [BatchProfile(min=low, opt=opt, max=high) for low, opt, high in ranges]


def one(name: str, low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> Profile:
    return {name: ShapeRange(min=low, opt=opt, max=high)}


def problems(onnx: OnnxModel, profiles: list[Profile], max_batch_size: int | None = None) -> list[str]:
    with pytest.raises(PlanError) as caught:
        check_profiles(onnx, profiles, max_batch_size=max_batch_size)
    assert caught.value.hint
    return caught.value.message.splitlines()[1:]


def test_a_range_of_batches_becomes_whole_shapes(dynamic: OnnxModel) -> None:
    assert make_profiles(dynamic, batches((1, 8, 32))) == (one("image", (1, *REST), (8, *REST), (32, *REST)),)


def test_dynamic_image_size_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write_tiny_onnx(tmp_path / "open.onnx"))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"edge{axis}"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(PlanError, match=r"input image \[\?, 3, \?, \?\] has no fixed size in axis 2, axis 3"):
        make_profiles(read_onnx(tmp_path / "open.onnx"), batches((1, 1, 1)))


@pytest.mark.parametrize(
    "ranges",
    [[(1, 8, 32)], [(1, 1, 1), (2, 8, 32)], [(1, 4, 8), (4, 16, 32)], [(8, 16, 32), (1, 1, 7)], [(1, 1, 64)]],
    ids=["one", "adjacent", "overlapping", "any order", "more than needed"],
)
def test_every_batch_has_a_profile(dynamic: OnnxModel, ranges: list[tuple[int, int, int]]) -> None:
    check_profiles(dynamic, make_profiles(dynamic, batches(*ranges)), max_batch_size=32)


def test_graph_of_fixed_shape_needs_no_profile(static: OnnxModel) -> None:
    check_profiles(static, (), max_batch_size=None)
    check_profiles(static, [one("image", *[(4, *REST)] * 3)], max_batch_size=0)


@pytest.mark.parametrize(
    ("ranges", "largest", "expected"),
    [
        ([(12, 16, 32), (1, 4, 8)], 32, "9-11 (they cover 1-8, 12-32)"),
        ([(1, 4, 8), (10, 16, 32)], 32, "9 ("),
        ([(2, 4, 8)], 8, "1 ("),
        ([(1, 4, 8)], 32, "9-32 ("),
        ([(2, 2, 2), (4, 4, 4)], 5, "1, 3, 5 ("),
        ([(1, 1, 1), (100, 100, 100)], 32, "2-32 ("),
        ([(1, 8, 16), (2, 2, 2)], 20, "17-20 ("),
    ],
)
def test_gaps_and_ends(dynamic: OnnxModel, ranges: list[tuple[int, int, int]], largest: int, expected: str) -> None:
    (found,) = problems(dynamic, list(make_profiles(dynamic, batches(*ranges))), largest)
    assert f"input image, axis 0, the batch: no profile covers {expected}" in found


def test_without_profiles_no_batch_is_covered() -> None:
    assert uncovered_batches([], 3) == "1-3"
    assert uncovered_batches([], 1) == "1"
    assert uncovered_batches([(1, 1024)], 3) == ""


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (one("picture", (1, *REST), (1, *REST), (1, *REST)), ["no input picture; its input is image", "is missing"]),
        (one("image", (1, 3, 32), (1, *REST), (1, *REST)), ["min [1, 3, 32] has 3 axes; the graph's"]),
        (one("image", (1, 3, 32, 32), (1, 3, 32, 48), (1, 3, 32, 64)), ["max 64; the graph fixes this axis to 32"]),
        (one("image", (8, *REST), (4, *REST), (16, *REST)), ["opt 4, max 16; 1 <= min <= opt <= max was expected"]),
        (one("image", (0, *REST), (4, *REST), (16, *REST)), ["axis 0: min 0, opt 4, max 16; 1 <= min"]),
    ],
    ids=["unknown name", "rank", "fixed axis", "order", "nothing"],
)  # fmt: skip
def test_what_tensorrt_would_find_late_or_never(dynamic: OnnxModel, profile: Profile, expected: list[str]) -> None:
    found = problems(dynamic, [profile])
    assert len(found) == len(expected)
    for text, line in zip(expected, found, strict=True):
        assert line.strip().startswith("profile 0: ")
        assert text in line


def test_no_profile_for_a_dynamic_graph(dynamic: OnnxModel) -> None:
    assert "has dynamic axes and there is no optimization profile" in problems(dynamic, [], 8)[0]


def test_fixed_batch_and_a_wish_for_batches(static: OnnxModel) -> None:
    found = problems(static, [], 8)
    assert "the graph fixes it to 4; a dynamic one was expected for batches of 1 to 8" in found[0]


def test_all_problems_at_once(dynamic: OnnxModel) -> None:
    bad = [one("image", (8, *REST), (4, *REST), (16, *REST)), one("x", (1,), (1,), (1,))]
    assert len(problems(dynamic, bad, 64)) == 3
