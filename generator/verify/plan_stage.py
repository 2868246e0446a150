"""The gate's stage for a plan: run directly on the GPU, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import DeviceError, MissingDependencyError, PlanError
from generator.verify.stages import StageResult, judge, not_proved

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from generator.verify.compare import Limit
    from generator.verify.reference import Reference
    from generator.verify.subject import Subject

__all__ = ["check_plan", "why_not_here"]

STAGE = "plan"
# Rows of other batches may come from the kernels of another profile, in the plan's precision.
_ROW_TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}


def check_plan(subject: Subject, reference: Reference, limit: Limit) -> tuple[StageResult, NDArray[np.float32] | None]:
    """Run the plan on the reference's pixels; return the result and the scores, None where it could not run here.

    The largest batches are compared with the source, then batches of 1, 3 and the maximum with each other.
    """
    from generator.plan.engine import open_engine

    plan = subject.plan
    assert plan is not None, "only plans come here"
    if reason := why_not_here():
        return not_proved(STAGE, reason), None
    try:
        with open_engine(plan) as engine:
            scores = engine.run(reference.pixels)
            result = judge(STAGE, subject, reference, scores, limit, lambda: _cause(subject))
            if result.status == "proved":
                result = _check_rows(result, subject, reference, engine.run, scores)
    except (PlanError, DeviceError) as error:
        return StageResult(stage=STAGE, status="failed", reason=error.message, cause=error.hint or ""), None
    return result, scores


def why_not_here() -> str:
    """Return why no plan can run on this machine, empty where one can."""
    from generator.gpu.device import why_no_gpu
    from generator.plan.library import import_tensorrt

    if reason := why_no_gpu():
        return reason
    try:
        import_tensorrt()
    except (MissingDependencyError, PlanError) as error:
        return error.message
    return ""


def _check_rows(
    result: StageResult, subject: Subject, reference: Reference, run: object, scores: NDArray[np.float32]
) -> StageResult:
    import numpy as np

    assert callable(run)
    maximum = subject.max_batch_size
    worst = 0.0
    for size in sorted({1, min(3, maximum), maximum}):
        rows = np.arange(size) % len(reference.pixels)
        worst = max(worst, float(np.abs(run(reference.pixels[rows]) - scores[rows]).max()))
    if not worst <= _ROW_TOLERANCES[subject.precision]:
        reason = f"an image gets another answer in another batch: scores differ by {worst:.2g}"
        return StageResult(stage=STAGE, status="failed", reason=reason, cause="a layer mixes the rows of a batch")
    return result


def _cause(subject: Subject) -> str:
    """The graph passed with its own limit, so that only TensorRT's arithmetic is left."""
    if subject.precision == "fp32":
        return "TF32 rounds to 10 bits: try plan.tf32: false"
    if subject.precision == "int8":
        return "scales that do not fit these images: give calibration images of your own, or keep the first layers"
    return f"{subject.precision} overflows or rounds too much: name the nodes to keep in FP32 (keep), or take fp32"
