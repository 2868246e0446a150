"""Decoding on a real GPU: Pillow's pixels, its refusals, memory that is full, a served model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_images import CHECKS, Both, encode, make_files, make_kinds, mutate, photograph
from generator import api, decoding
from generator.gpu import why_no_gpu
from generator.images.served_pixels import are_alike
from generator.runtime import gpu_images
from generator.runtime.gpu_chain import PACKAGES
from generator.spec.recipe import IMAGENET

WITHOUT = why_no_gpu() or next((f"{one} is not installed" for one in PACKAGES if not decoding._is_installed(one)), "")
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU and the extra gpu-decode: {WITHOUT}")
GOOD = encode(photograph("flower", (640, 427)))


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    one = Both(IMAGENET)
    yield one
    one.images.close()
    one.device.close()


def test_the_probe() -> None:
    assert decoding._probe() == ""


def test_pieces_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_images, "_PIECE", 32)
    monkeypatch.setattr(gpu_images, "_CHAINS", 2)
    one, files = Both(IMAGENET, on_host=False), make_files("mixed", 200)
    alone = np.concatenate([one.decode([data])[0] for data in files])
    for turn in (files, files[::-1], files):
        pixels, errors, on_gpu = one.decode(turn)
        assert np.array_equal(pixels, alone if turn is files else alone[::-1])
        assert (on_gpu, set(errors)) == (200, {None})
    one.images.close()
    one.device.close()


@pytest.mark.parametrize("on_host", [True, False], ids=["host", "GPU"])
@pytest.mark.parametrize("recipe", CHECKS)
def test_levels(recipe: str, on_host: bool) -> None:
    kinds = {kind: data for kind, data in make_kinds().items() if "with an end" not in kind}
    one = Both(CHECKS[recipe], on_host=on_host)
    pixels, errors, on_gpu = one.decode(list(kinds.values()))
    wanted = one.on_cpu.decode(list(kinds.values()))
    assert list(errors) == list(wanted.errors)
    alike = are_alike(pixels, wanted.pixels, on_gpu=True)
    assert [kind for kind, is_alike in zip(kinds, alike, strict=True) if not is_alike] == []
    assert on_gpu > len(kinds) // 3  # others are enlarged, or no plain JPEG
    assert one.warnings == []


def test_mutated_files_among_good_ones(both: Both) -> None:
    chance, source = random.Random(1), encode(photograph("china", (500, 375)))
    alone = both.decode([GOOD])[0][0]
    for _ in range(100):
        mutated = [mutate(source, chance) for _ in range(6)]
        pixels, errors, _ = both.decode([GOOD, *mutated, GOOD])
        assert list(errors[1:7]) == list(both.on_cpu.decode(mutated).errors)
        assert np.array_equal(pixels[0], alone)
        assert np.array_equal(pixels[7], alone)


def test_memory_stays(both: Both) -> None:
    files = [encode(photograph("china", (400 + 7 * index, 300 + 11 * index))) for index in range(40)]
    for _ in range(10):
        both.decode(files)
    before = both.device.free_memory()[0]
    for _ in range(100):
        both.decode(files)
    assert before - both.device.free_memory()[0] < 64 << 20


def test_memory_that_is_full() -> None:
    one = Both(IMAGENET)
    wanted = one.on_cpu.decode([GOOD] * 8).pixels
    blocks = []
    for size in (1 << 30, 1 << 26, 1 << 20):
        while one.device.free_memory()[0] > size:
            try:
                blocks.append(one.device.allocate(size))
            except Exception:  # noqa: BLE001 - it is full
                break
    try:
        pixels, errors, _ = one.decode([GOOD] * 8)
    finally:
        for block in blocks:
            one.device.release("cuMemFree", block)
    assert list(errors) == [None] * 8
    assert are_alike(pixels, wanted, on_gpu=True).all()
    pixels, _, on_gpu = one.decode([GOOD] * 8)
    assert on_gpu == 8
    assert len(one.warnings) <= 2


@pytest.mark.server
@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_a_model_is_proved(tmp_path: Path, layout: str) -> None:
    pytest.importorskip("tensorrt")
    pytest.importorskip("pytriton")
    built = api.build("resnet18", tmp_path / "models", weights="random", decode="gpu", layout=layout)
    assert built.report is not None
    stages = {result.stage: result.status for result in built.report.results}
    assert set(stages.values()) <= {"proved", "assumed"}, stages
