"""The stages that every task can have: batches, and the served pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import ExportError, SourceError
from generator.gate import causes
from generator.gate.client import PREPROCESS_KEY, as_bytes
from generator.graph.batches import ROW_TOLERANCES, batch_sizes, prove_dynamic_batch
from generator.graph.model import read_onnx
from generator.graph.names import DYNAMIC_HINT, NAN_HINT
from generator.images.geometry import FIELDS, measure_geometry
from generator.task import StageResult, find_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.gate.client import ServedModel
    from generator.images.reference import Reference


def check_batches(candidate: Candidate, reference: Reference) -> StageResult:
    """Every batch gives each row what it gets alone."""
    try:
        worst = prove_dynamic_batch(
            read_onnx(candidate.onnx),
            maximum=candidate.spec.batch.max,
            pixels=reference.pixels,
            tolerance=ROW_TOLERANCES[candidate.graph_precision],
            is_reordered=find_task(candidate.spec.task).is_reordered,
        )
    except ExportError as error:
        cause = {DYNAMIC_HINT: "a batch axis is baked in", NAN_HINT: causes.NAN}.get(error.hint, error.hint)
        return StageResult(stage="batches", status="failed", reason=str(error), cause=cause)
    except SourceError as error:
        return StageResult(stage="batches", status="failed", reason=str(error))
    sizes = batch_sizes(candidate.spec.batch.max)
    return StageResult(
        stage="batches", status="proved", measured=f"{sizes}: rows {describe_distance(worst)}{candidate.ran_as}"
    )


def ask_pixels(served: ServedModel, files: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """Return what the served preprocessing makes of encoded images: PIXELS, and where it tells it, GEOMETRY."""
    return served.ask(PREPROCESS_KEY, as_bytes(files), only=("PIXELS", "GEOMETRY"), needed=("PIXELS",))


def judge_pixels(answers: Mapping[str, NDArray[Any]], candidate: Candidate, reference: Reference) -> StageResult:
    """Compare what the served preprocessing answers with the reference: pixels, and where it tells it, geometry.

    Pixels must be those that training would have made, as `are_alike` says.
    """
    import numpy as np

    from generator.images.served_pixels import are_alike

    pixels = answers["PIXELS"]
    if pixels.shape != reference.pixels.shape:
        reason = f"pixels have shape {list(pixels.shape)}, {list(reference.pixels.shape)} was expected"
        return StageResult(stage="served pixels", status="failed", reason=reason, cause="crop or resize differs")
    levels = np.abs(pixels.astype(np.int16) - reference.pixels.astype(np.int16)).reshape(len(pixels), -1).max(axis=1)
    worst = int(levels.argmax())
    on_gpu = candidate.spec.decode == "gpu"
    alike = are_alike(pixels, reference.pixels, on_gpu=on_gpu)
    if alike.all():
        measured = f"within {levels[worst]}/255" if levels[worst] else "identical"
        if "GEOMETRY" not in answers:
            return StageResult(stage="served pixels", status="proved", measured=measured)
        return _judge_geometry(answers["GEOMETRY"], candidate, reference, measured)
    return StageResult(
        stage="served pixels",
        status="failed",
        measured=f"{levels[worst]}/255",
        reason=f"{int((~alike).sum())} of {len(levels)} images differ by more than "
        f"{'2 levels of 255, or by 2 in more than 1 of 1,000 values' if on_gpu else '1 level of 255'}, "
        f"{reference.names[worst]} by {levels[worst]}",
        cause=causes.of_pixels(candidate, reference, pixels),
    )


def _judge_geometry(
    geometry: NDArray[np.float32], candidate: Candidate, reference: Reference, measured: str
) -> StageResult:
    """Compare with where torchvision's transforms put each image: it is how boxes get back to the original's pixels."""
    import numpy as np

    expected = measure_geometry(candidate.artifact.recipe, reference.files)
    wrong = ~np.isclose(geometry, expected, rtol=1e-6, atol=0)
    if not wrong.any():
        return StageResult(stage="served pixels", status="proved", measured=f"{measured}, geometry equal")
    image = int(wrong.any(axis=1).argmax())
    differing = ", ".join(
        f"{name} {got:.7g} for {wanted:.7g}"
        for name, got, wanted, is_wrong in zip(FIELDS, geometry[image], expected[image], wrong[image], strict=True)
        if is_wrong
    )
    return StageResult(
        stage="served pixels",
        status="failed",
        measured=measured,
        reason=f"the pixels fit, but GEOMETRY is wrong for {int(wrong.any(axis=1).sum())} of {len(wrong)} images, "
        f"{reference.names[image]} has {differing}",
        cause=causes.of_geometry(geometry, expected),
    )


def describe_distance(worst: float) -> str:
    """Say how far two sets of numbers are apart."""
    return f"within {worst:.1g}" if worst else "identical"
