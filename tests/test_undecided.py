"""First classes count where the source is decided: rounding may not fail a gate, and a wrong plan may not pass it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from generator.artifact import Artifact
from generator.gate.candidate import Candidate
from generator.graph.model import OnnxModel
from generator.images.reference import Reference, load_reference, save_reference
from generator.repository import Layout
from generator.spec.file import make_spec
from generator.spec.recipe import IMAGENET
from generator.task import StageResult
from generator.tasks.classification.activation import Head
from generator.tasks.classification.answers import find_decided
from generator.tasks.classification.compare import LIMITS
from generator.tasks.classification.plan_stage import check_rows
from generator.tasks.classification.stages import judge
from generator.tensor import Tensor, from_onnx

IMAGES, CLASSES = 40, 50
PIXELS = np.random.default_rng(0).integers(125, 132, (IMAGES, 8, 8, 3), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(0, 0.05, (8 * 8 * 3, CLASSES))
TENSOR = Tensor(name="x", data_type=from_onnx(1), shape=(-1, CLASSES))
SPEC = make_spec(["m"], target="tensorrt-10", precision="fp16", batch={"max": 8})[0]
CANDIDATE = Candidate(
    repository=Path(),
    layout=Layout.of(SPEC, 1),
    spec=SPEC,
    artifact=Artifact(
        onnx=OnnxModel(path=Path("m.onnx"), input=TENSOR, outputs=(TENSOR,), opset=17, node_count=1, sha256=""),
        head=Head(output="logits", activation="none"),
        recipe=IMAGENET,
        labels=(),
        description="",
    ),
)


def source(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = ((pixels.reshape(len(pixels), -1) - 128.0) @ WEIGHTS).astype(np.float32)
    return scores


def reference(scores: NDArray[np.float32]) -> Reference:
    decided = find_decided(source, PIXELS, scores)
    return Reference(
        names=tuple(f"{n}.jpg" for n in range(IMAGES)),
        files=(b"",) * IMAGES,
        pixels=PIXELS,
        answers={"scores": scores, "decided": decided},
    )


def gate(expected: Reference, scores: NDArray[np.float32], precision: str = "fp16") -> StageResult:
    return judge("plan", CANDIDATE, expected, scores, LIMITS[precision], lambda: "")


def with_first_and_second_swapped(scores: NDArray[np.float32], images: NDArray[np.int64]) -> NDArray[np.float32]:
    swapped = scores.copy()
    second, first = np.argsort(scores, axis=1)[:, -2:].T
    swapped[images, first[images]], swapped[images, second[images]] = (
        scores[images, second[images]], scores[images, first[images]],
    )  # fmt: skip
    return swapped


def test_some_images_are_decided_and_some_are_not() -> None:
    decided = reference(source(PIXELS)).answers["decided"]
    assert 5 < decided.sum() < IMAGES - 5
    lead = np.diff(np.sort(source(PIXELS), axis=1)[:, -2:])[:, 0]
    assert lead[decided].min() > lead[~decided].min()


def test_a_first_class_that_noise_decides_does_not_count() -> None:
    expected = reference(source(PIXELS))
    lead = np.diff(np.sort(expected.answers["scores"], axis=1)[:, -2:])[:, 0]
    closest = np.argsort(lead)[:1]
    assert not expected.answers["decided"][closest].any()
    result = gate(expected, with_first_and_second_swapped(expected.answers["scores"], closest))
    assert (result.status, result.figures.get("top1")) == ("proved", 1.0)
    assert (
        f"top-1 100.0% of the {expected.answers['decided'].sum()} images that the source is decided on"
        in result.measured
    )
    assert f"{closest[0]}.jpg (margin " in result.measured
    assert "undecided)" in result.measured


def test_a_graph_in_fp32_must_agree_on_every_image() -> None:
    expected = reference(source(PIXELS))
    closest = np.argsort(np.diff(np.sort(expected.answers["scores"], axis=1)[:, -2:])[:, 0])[:1]
    result = gate(expected, with_first_and_second_swapped(expected.answers["scores"], closest), precision="fp32")
    assert (result.status, result.figures.get("top1")) == ("failed", 1 - 1 / IMAGES)


def test_a_first_class_that_the_source_is_decided_on_counts() -> None:
    expected = reference(source(PIXELS))
    lead = np.diff(np.sort(expected.answers["scores"], axis=1)[:, -2:])[:, 0]
    narrow = np.array([min(np.flatnonzero(expected.answers["decided"]), key=lambda image: lead[image])])
    result = gate(expected, with_first_and_second_swapped(expected.answers["scores"], narrow))
    assert result.status == "failed"
    assert result.figures.get("top1") == pytest.approx(1 - 1 / expected.answers["decided"].sum())
    assert f"{narrow[0]}.jpg (margin" in result.reason


def test_without_a_decided_image_the_cosine_alone_judges() -> None:
    flat = np.random.default_rng(2).normal(0, 1e-4, (IMAGES, CLASSES)).astype(np.float32)
    expected = reference(flat)
    assert not expected.answers["decided"].any()
    result = gate(expected, flat)
    assert (result.status, result.figures.get("top1")) == ("proved", None)
    assert "top-1 not judged" in result.measured
    assert gate(expected, -flat).status == "failed"


def test_what_is_decided_is_kept_with_the_reference(tmp_path: Path) -> None:
    expected = reference(source(PIXELS))
    save_reference(expected, tmp_path / "reference.npz")
    assert (load_reference(tmp_path / "reference.npz").answers["decided"] == expected.answers["decided"]).all()


# --- other batches of a plan ------------------------------------------------------------------------------------------

PROVED = StageResult(stage="plan", status="proved")


def rows_of(run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> StageResult:
    expected = reference(source(PIXELS))
    return check_rows(
        PROVED, CANDIDATE, expected, run, expected.answers["scores"], sizes=[1, 3, 8], limit=LIMITS["fp16"]
    )


def test_batches_that_give_each_image_its_answer_are_proved() -> None:
    assert rows_of(source) is PROVED


def test_a_nan_in_one_batch_size_is_found() -> None:
    """In Python max(0, nan) is 0."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full_like(source(pixels), np.nan) if len(pixels) == 3 else source(pixels)

    result = rows_of(run)
    assert (result.status, result.reason) == ("failed", "NaN or infinity in a batch of 3")


def test_rows_that_are_mixed_up_are_found() -> None:
    result = rows_of(lambda pixels: source(pixels)[::-1])
    assert result.status == "failed"
    assert "gets another answer in a batch of 3: cosine" in result.reason


def test_large_scores_may_round_as_their_precision_does() -> None:
    """FP16 has steps of 0.016 at 16 and more: no absolute limit would do."""
    assert rows_of(lambda pixels: source(pixels).astype(np.float16).astype(np.float32)) is PROVED
