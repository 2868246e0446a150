"""The gate's stage for a detector's plan: run directly on the GPU, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import DeviceError, PlanError
from generator.gate import causes as pixel_causes
from generator.gate.run import why_no_plan_runs
from generator.graph.batches import batch_sizes
from generator.images.sets import extreme_pixels
from generator.task import StageResult, not_proved
from generator.tasks.detection.compare import ENOUGH, compare, take_images
from generator.tasks.detection.judge import judge_rows, read_rows
from generator.tasks.detection.naive import detect_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.tasks.detection.decode import Rows
    from generator.tasks.detection.judge import Gate

STAGE = "plan"


def check_plan(gate: Gate) -> StageResult:
    """Run the plan on the reference's pixels; its rows are kept, for what is served to be compared with.

    The batches that are served are compared with the source, then those of `batch_sizes` and each profile's optimum
    with these: other profiles have other kernels.
    """
    import numpy as np

    from generator.plan.local import open_engine

    plan, pixels = gate.candidate.plan, gate.reference.pixels
    assert plan is not None, "only plans come here"
    if reason := why_no_plan_runs():
        return not_proved(STAGE, reason)
    try:
        with open_engine(plan) as engine:
            maximum = gate.candidate.spec.batch.max
            # as the server is asked, so that the same kernels answer
            parts = [engine.run_outputs(pixels[at : at + maximum]) for at in range(0, len(pixels), maximum)]
            rows = read_rows({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
            result = judge_rows(gate, STAGE, rows, gate.limit, lambda: pixel_causes.of_precision(gate.candidate))
            if result.status != "failed":
                gate.direct = rows
                optima = {profile[engine.input.name].opt[0] for profile in engine.all_profiles}
                sizes = {*batch_sizes(maximum), *(min(size, maximum) for size in optima)}
                result = check_rows(result, gate, engine.run_outputs, rows, sizes=sorted(sizes))
    except (PlanError, DeviceError) as error:
        return StageResult(stage=STAGE, status="failed", reason=error.message, cause=error.hint)
    return result


def run_plan(candidate: Candidate, pixels: NDArray[np.uint8]) -> Rows | str:
    """Return the plan's rows in batches as the server is asked, or why it cannot run here."""
    import numpy as np

    from generator.plan.local import open_engine

    if reason := why_no_plan_runs():
        return reason
    assert candidate.plan is not None, "only plans come here"
    maximum = candidate.spec.batch.max
    with open_engine(candidate.plan) as engine:
        parts = [engine.run_outputs(pixels[at : at + maximum]) for at in range(0, len(pixels), maximum)]
    return read_rows({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def check_rows(
    result: StageResult,
    gate: Gate,
    run: Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]],
    rows: Rows,
    *,
    sizes: Sequence[int],
) -> StageResult:
    """Return `result` if batches of these sizes give each image what `rows` says, else a failure.

    The images are taken backwards, so that each has other neighbours than for `rows`.
    """
    import numpy as np

    pixels = gate.reference.pixels
    for image in extreme_pixels(pixels.shape[1:]):
        if not all(np.isfinite(values).all() for values in run(image[None]).values()):
            reason = "NaN or infinity for a black, a white or a noise image"
            return StageResult(stage=STAGE, status="failed", reason=reason, cause=pixel_causes.NAN)
    for size in sizes:
        chosen = np.arange(size)[::-1] % len(pixels)
        answers = read_rows(run(pixels[chosen]))
        if not np.isfinite(answers.boxes).all() or not np.isfinite(answers.scores).all():
            reason = f"NaN or infinity in a batch of {size}"
            return StageResult(stage=STAGE, status="failed", reason=reason, cause=pixel_causes.NAN)
        sides = (take_images(rows, chosen), answers)
        one, other = (detect_all(side, gate.geometry[chosen], gate.settings) for side in sides)
        comparison = compare(one, other, gate.settings, gate.limit)
        allowed = (1 - gate.limit.agreement) * max(comparison.judged, ENOUGH)
        if comparison.missed > allowed + 1e-9:
            reason = (
                f"in a batch of {size}, {comparison.missed} of {comparison.judged} boxes are others than in the "
                f"batches that are served, most for {gate.reference.names[int(chosen[comparison.worst])]}"
            )
            cause = "a layer mixes the rows of a batch, or the kernels of another profile round too much"
            return StageResult(stage=STAGE, status="failed", reason=reason, cause=cause)
    return result
