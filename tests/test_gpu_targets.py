"""The targets of the GPU figures: what is missed is said, and what was not measured is not judged."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_targets import describe, of_bench, of_serving


def figure(runner: str, batch: int, images_per_s: float, **more: Any) -> dict[str, Any]:
    return {"runner": runner, "batch": batch, "images_per_s": images_per_s, "failure": None, **more}


def bench(*figures: dict[str, Any]) -> dict[str, Any]:
    return {"bench resnet50": {"figures": list(figures)}}


def test_a_ratio_below_its_target_is_missed() -> None:
    results = bench(
        figure("torch-fp16-graph", 64, 1000, images_per_joule=10),
        figure("plan-fp16-graph", 64, 1990, images_per_joule=20),
    )
    first, second = of_bench(results)
    assert (first.measured, first.reaches(first.must), second.reaches(second.aim)) == (1.99, False, True)
    assert [line.rsplit("  ", 1)[1].strip() for line in describe([first, second])] == ["MISSED", "reached"]


def test_an_aim_is_missed_more_gently_and_time_counts_downwards() -> None:
    results = bench(
        figure("torch-fp16-graph", 64, 1000), figure("plan-fp16-graph", 64, 2100),
        figure("plan-fp16-graph", 1, 3000, median_ms=0.6),
    )  # fmt: skip
    lines = [*describe(of_bench(results))]
    assert len(lines) == 2
    assert all(line.endswith("aim missed") for line in lines)


def test_what_failed_or_was_not_measured_is_left_out() -> None:
    broken = {**figure("plan-fp16-graph", 64, 9000), "failure": "out of memory"}
    assert [*of_bench(bench(figure("torch-fp16-graph", 64, 1000), broken))] == []
    assert [*of_bench({})] == [*of_serving({})] == []


def test_accuracy_that_is_lost_and_shares_behind_the_endpoint() -> None:
    def held_out(accuracy: float) -> dict[str, Any]:
        return {"stages": [{"stage": "onnx"}, {"stage": "labelled plan", "accuracy": accuracy}]}

    (lost,) = of_bench({"held-out": {"demo_fp32": held_out(0.99), "demo_int8": held_out(0.97)}})
    assert not lost.reaches(lost.aim)
    unproved = {"stages": [{"stage": "labelled plan", "status": "not proved"}]}
    assert [*of_bench({"held-out": {"demo_fp32": held_out(0.99), "demo_int8": unproved, "x": {"stages": []}}})] == []
    assert [*of_bench({"timing cache": {"cold": "warm", "warm": "warm", "ratio": 1.0}})] == []
    row = {"preprocess": 16, "classifier": 4, "singles_share": 0.59, "eights_share": 0.7, "raw_share": 0.6}
    assert [one.reaches(one.must) for one in of_serving({"measure": [row]})] == [False, True, True]
