"""The gate's stage for a classifier's plan: run directly on the GPU, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import DeviceError, PlanError
from generator.gate import causes
from generator.gate.run import why_no_plan_runs
from generator.graph.batches import batch_sizes
from generator.images.sets import extreme_pixels
from generator.task import StageResult, not_proved
from generator.tasks.classification.compare import comparable, compare
from generator.tasks.classification.stages import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference
    from generator.tasks.classification.compare import Limit

STAGE = "plan"


def check_plan(
    candidate: Candidate, reference: Reference, limit: Limit
) -> tuple[StageResult, NDArray[np.float32] | None]:
    """Run the plan on the reference's pixels; return the result and the scores, None where it could not run here.

    The batches that are served are compared with the source, then those of `batch_sizes` and each profile's optimum
    with these: other profiles have other kernels.
    """
    import numpy as np

    from generator.plan.local import open_engine

    plan = candidate.plan
    assert plan is not None, "only plans come here"
    if reason := why_no_plan_runs():
        return not_proved(STAGE, reason), None
    try:
        with open_engine(plan) as engine:
            maximum = candidate.spec.batch.max
            # as the server is asked, so that the same kernels answer
            scores = np.concatenate(
                [
                    engine.run_rows(reference.pixels[at : at + maximum])
                    for at in range(0, len(reference.pixels), maximum)
                ]
            )
            result = judge(STAGE, candidate, reference, scores, limit, lambda: causes.of_precision(candidate))
            if result.status == "proved":
                optima = {profile[engine.input.name].opt[0] for profile in engine.all_profiles}
                sizes = {*batch_sizes(maximum), *(min(size, maximum) for size in optima)}
                result = check_rows(
                    result, candidate, reference, engine.run_rows, scores, sizes=sorted(sizes), limit=limit
                )
    except (PlanError, DeviceError) as error:
        return StageResult(stage=STAGE, status="failed", reason=error.message, cause=error.hint), None
    return result, scores


def run_plan(candidate: Candidate, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | str:
    """Return the plan's scores in batches as the server is asked, or why it cannot run here."""
    import numpy as np

    from generator.plan.local import open_engine

    if reason := why_no_plan_runs():
        return reason
    assert candidate.plan is not None, "only plans come here"
    maximum = candidate.spec.batch.max
    with open_engine(candidate.plan) as engine:
        parts = [engine.run_rows(pixels[at : at + maximum]) for at in range(0, len(pixels), maximum)]
    scores: NDArray[np.float32] = np.concatenate(parts)
    return scores


def check_rows(
    result: StageResult,
    candidate: Candidate,
    reference: Reference,
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    scores: NDArray[np.float32],
    *,
    sizes: Sequence[int],
    limit: Limit,
) -> StageResult:
    """Return `result` if batches of these sizes give each image what `scores` (N, classes) says, else a failure.

    The images are taken backwards, so that each has other neighbours than for `scores`.
    """
    import numpy as np

    if not all(np.isfinite(run(image[None])).all() for image in extreme_pixels(reference.pixels.shape[1:])):
        reason = "NaN or infinity for a black, a white or a noise image"
        return StageResult(stage=STAGE, status="failed", reason=reason, cause=causes.NAN)
    for size in sizes:
        rows = np.arange(size)[::-1] % len(reference.pixels)
        answers = run(reference.pixels[rows])
        if not np.isfinite(answers).all():
            reason = f"NaN or infinity in a batch of {size}"
            return StageResult(stage=STAGE, status="failed", reason=reason, cause=causes.NAN)
        expected, actual = (comparable(one, candidate.artifact.head.activation) for one in (scores[rows], answers))
        comparison = compare(expected, actual)
        if comparison.worst_cosine < limit.cosine:
            reason = (
                f"{reference.names[rows[comparison.worst_image]]} gets another answer in a batch of {size}: "
                f"cosine {comparison.worst_cosine:.6f} (limit {limit.cosine:.5f})"
            )
            cause = "a layer mixes the rows of a batch, or the kernels of another profile round too much"
            return StageResult(stage=STAGE, status="failed", reason=reason, cause=cause)
    return result
