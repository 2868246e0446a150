"""The stages of the gate for a detector, each a function from what is compared to a StageResult."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from generator.errors import SourceError, VerificationError
from generator.gate import causes as pixel_causes
from generator.gate.client import as_bytes
from generator.gate.stages import ask_pixels, check_batches, describe_distance, judge_pixels
from generator.graph.model import load_proto, open_onnx, read_onnx, run_graph
from generator.images.geometry import measure_geometry
from generator.images.served_pixels import are_alike
from generator.task import Stage, StageResult, not_proved
from generator.tasks.detection import causes
from generator.tasks.detection.anchors import AnchorErrors, measure_errors, measure_spread, pick_anchors
from generator.tasks.detection.compare import (
    AS_IS,
    LIMITS,
    compare,
    cut_rows,
    find_different_rows,
    plan_limit,
)
from generator.tasks.detection.decode import Dense, Rows, drop_background
from generator.tasks.detection.head import BELOW, BEST, BOXES, CLASSES, SCORES
from generator.tasks.detection.judge import Gate, decide, find_broken, judge_rows, read_rows
from generator.tasks.detection.naive import ANSWERS, detect_all, read_settings, settings_of, to_network, unpad

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.gate.client import ServedModel
    from generator.graph.model import OnnxModel
    from generator.images.reference import Reference
    from generator.tasks.detection.compare import Limit
    from generator.tasks.detection.naive import Settings

# A served graph is the same file in the same onnxruntime: only the order of summation in a batch may differ. Of scores,
# and of boxes as a share of the network's input.
_SERVED_TOLERANCE = 1e-4
# All anchors of a few images fit into memory.
_BATCH = 4


def make_stages(candidate: Candidate, reference: Reference) -> list[Stage]:
    """Return the gate's stages in order.

    Raises:
        VerificationError: The source gives the same answer for all images, so nothing can be compared.
        ConfigError: The post-processing step's config.pbtxt cannot be read.
    """
    from generator.tasks.detection.plan_stage import check_plan
    from generator.tasks.detection.postprocess_stage import CODE_STAGE, STAGE, check_postprocessing

    require_discrimination(candidate.spec.name, reference)
    gate = Gate(
        candidate=candidate,
        reference=reference,
        settings=find_settings(candidate),
        limit=plan_limit(candidate.precision) if candidate.plan else LIMITS[candidate.precision],
        source=Rows(**{name: reference.answers[name] for name in ("boxes", "scores", "classes")}),
        ties=max((int(entry.get("ties", 0)) for entry in candidate.proof), default=0),
    )

    def served(check: Callable[[Gate, ServedModel], StageResult]) -> Callable[[ServedModel | None], StageResult]:
        def run(model: ServedModel | None) -> StageResult:
            assert model is not None, "it needs the server"
            return check(gate, model)

        return run

    postprocessing = Stage(name=STAGE, needs="server", run=served(check_postprocessing), watched=True)
    if candidate.layout.is_fused:
        postprocessing = Stage(name=CODE_STAGE, needs="graph", run=lambda _: check_postprocessing(gate, None))
    return [
        Stage(name="batches", needs="graph", run=lambda _: check_batches(candidate, reference)),
        Stage(name="onnx", needs="graph", run=lambda _: check_onnx(gate)),
        *([Stage(name="plan", needs="plan", run=lambda _: check_plan(gate))] if candidate.plan else []),
        Stage(name="served pixels", needs="server", run=served(check_pixels), watched=True),
        Stage(name="served detector", needs="server", run=served(check_detector)),
        postprocessing,
        Stage(name=candidate.layout.entry_stage, needs="server", run=served(check_ensemble), watched=True),
    ]


def find_settings(candidate: Candidate) -> Settings:
    """Return what the post-processing step is told; of an export, which has none yet, what the spec asks for."""
    path = candidate.repository / candidate.layout.find("postprocess") / "config.pbtxt"
    if not path.is_file():
        return settings_of(candidate.spec, candidate.artifact)
    return read_settings(path, candidate.artifact.labels)


def require_discrimination(name: str, reference: Reference) -> None:
    """Do nothing if a mix-up of two images would be noticed.

    Raises:
        VerificationError: The source gives the same answer for most images, so nothing can be compared.
    """
    spread = measure_spread(reference.answers["anchor_boxes"], reference.answers["anchor_scores"])
    if not (spread.has_boxes or spread.has_scores):
        msg = (
            f"{name}: images do not discriminate: "
            f"the source answers alike for {len(reference.names)} images, so a wrong model would pass too"
        )
        raise VerificationError(msg, hint="give images of several of its classes", fields={"images": None})


# --- the graph -----------------------------------------------------------------------------------------------------


def check_onnx(gate: Gate) -> StageResult:
    """The graph, run directly, answers like the source: its best rows, and single anchors before these are taken."""
    candidate, reference = gate.candidate, gate.reference
    # what came in low precision is compared with itself: only the pixels in front may round otherwise
    limit = AS_IS if candidate.spec.is_as_is else LIMITS[candidate.graph_precision]
    model = read_onnx(candidate.onnx)
    gate.ran_graph = True
    try:
        outputs, errors = _run_with_anchors(gate, model, limit)
    except SourceError as error:
        return StageResult(stage="onnx", status="failed", reason=error.message)
    rows = read_rows(outputs)

    def cause() -> str:
        return causes.of_graph(candidate, model, reference, (gate.source, rows))

    result = judge_rows(gate, "onnx", rows, limit, cause)
    if result.status == "failed":
        return result
    if errors is not None and not errors.meets(limit):
        reason = (
            f"{errors}, which is {max(errors.box_share, errors.score_share):.2g} of what they vary between images "
            f"(limit {limit.error:g})"
        )
        return replace(result, status="failed", reason=reason, cause=cause())
    if candidate.artifact.onnx.precision not in ("int8", "fp8") and candidate.plan is None:
        gate.direct = rows  # else a server computes in integers, which was not done here
    seen = f"{errors}" if errors is not None else ""
    if result.status == "not proved":
        return replace(result, reason="; ".join(part for part in (result.reason, seen) if part))
    filled = int((rows.scores[:, -1] >= min(gate.settings.thresholds)).sum())
    notes = [seen, f"{filled} images fill all {rows.scores.shape[1]} rows (detection.candidates)" if filled else ""]
    return replace(result, measured="; ".join([result.measured, *filter(None, notes)]) + candidate.ran_as)


def _run_with_anchors(
    gate: Gate, model: OnnxModel, limit: Limit
) -> tuple[dict[str, NDArray[Any]], AnchorErrors | None]:
    """Run a copy of the graph that also answers the anchors before top-K; none where the network's own rows are all."""
    import numpy as np

    reference, head = gate.reference, gate.candidate.artifact.head
    boxes, scores = reference.answers["anchor_boxes"], reference.answers["anchor_scores"]
    names = _find_anchors(model) if head.layout != "end2end" else ()
    run = open_onnx(model.path, tensors=names)
    parts: list[dict[str, NDArray[Any]]] = []
    picked: list[Dense] = []
    for start in range(0, len(reference.pixels), _BATCH):
        here = slice(start, start + _BATCH)
        outputs = run(reference.pixels[here])
        parts.append({name: outputs[name] for name in (BOXES, SCORES, CLASSES)})
        if names:
            found = outputs[names[1]]
            if found.shape[2] > head.classes:  # logits, with the background's
                found = drop_background(found, head)
            dense = Dense(boxes=outputs[names[0]], scores=found)
            picked.append(pick_anchors(dense, boxes[here], scores[here], limit))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not picked:
        return rows, None
    return rows, measure_errors(boxes, scores, picked)


def _find_anchors(model: OnnxModel) -> tuple[str, ...]:
    """Return the names of the boxes and the scores or logits of all anchors, which the head's nodes choose from.

    None where somebody changed these nodes, so that the rows alone must tell.
    """
    nodes = {node.name: node for node in load_proto(model.path, weights=False).graph.node}
    reads_scores = BELOW if BELOW in nodes else BEST
    return tuple(nodes[name].input[0] for name in (BOXES, reads_scores)) if {BOXES, BEST} <= nodes.keys() else ()


# --- what is served ------------------------------------------------------------------------------------------------


def check_pixels(gate: Gate, served: ServedModel) -> StageResult:
    """The served preprocessing makes the source's pixels, and tells where in them each image lies."""
    answers = ask_pixels(served, gate.reference.files)
    gate.pixels = answers["PIXELS"]
    return judge_pixels(answers, gate.candidate, gate.reference)


def check_detector(gate: Gate, served: ServedModel) -> StageResult:
    """The served network gives the rows of the same file run directly."""
    stage = "served detector"
    direct = _find_direct(gate)
    if isinstance(direct, str):
        return not_proved(stage, direct)
    rows = ask_rows(served, gate.candidate, gate.reference.pixels, gate.reference.files)
    if broken := find_broken(gate, stage, rows):
        return broken
    box = _SERVED_TOLERANCE * max(gate.candidate.artifact.recipe.crop)
    different, worst = find_different_rows(direct, rows, score=_SERVED_TOLERANCE, box=box)
    if different:
        reason = (
            f"{different} rows are not those of the same file run directly, most on {gate.reference.names[worst]}: "
            f"scores differ by more than {_SERVED_TOLERANCE:g} or boxes by more than {box:.2g} px"
        )
        cause = "the server runs another file or version"
        return StageResult(stage=stage, status="failed", reason=reason, cause=cause)
    import numpy as np

    distance = float(np.abs(rows.scores - direct.scores).max())
    measured = f"{rows.scores.size} rows, scores {describe_distance(distance)}"
    return StageResult(stage=stage, status="proved", measured=measured)


def _find_direct(gate: Gate) -> Rows | str:
    """Return the rows of the served file, run here on what the served network gets; or why there are none.

    A fused model's network gets what that decodes, which may differ from the reference by the level that it may.
    """
    candidate, pixels = gate.candidate, gate.reference.pixels
    if candidate.layout.is_fused:
        gate.direct, pixels = None, gate.take_pixels()
    if gate.direct is not None:
        return gate.direct
    if candidate.plan is None:
        gate.direct = read_rows(run_graph(read_onnx(candidate.onnx), pixels, as_served=True))
    elif candidate.layout.is_fused:
        from generator.tasks.detection.plan_stage import run_plan

        found = run_plan(candidate, pixels)
        if isinstance(found, str):
            return found
        gate.direct = found
    else:
        return "the plan was not run directly, so there is nothing to compare with"
    return gate.direct


def ask_rows(served: ServedModel, candidate: Candidate, pixels: NDArray[Any], files: Sequence[bytes]) -> Rows:
    """Return the rows of the served network: for these pixels, of a fused model for the encoded images."""
    values = as_bytes(files) if candidate.layout.is_fused else pixels
    names = (BOXES, SCORES, CLASSES)
    return read_rows(served.ask("detector", values, only=names, needed=names))


def check_ensemble(gate: Gate, served: ServedModel) -> StageResult:
    """From the JPEG's bytes to the boxes, over the wire, like the source with its own transforms and a plain loop."""
    stage, files = gate.candidate.layout.entry_stage, gate.reference.files
    geometry = measure_geometry(gate.candidate.artifact.recipe, files)
    answers = served.ask("ensemble", as_bytes(files), needed=ANSWERS)
    if wrong := find_wrong_form(answers) or find_wrong_labels(answers, gate.candidate.artifact.labels):
        return StageResult(stage=stage, status="failed", reason=wrong[0], cause=wrong[1])
    own, note = _find_expected_rows(gate)
    rows = (cut_rows(own, geometry), cut_rows(own if note or gate.direct is None else gate.direct, geometry))
    expected, actual = (
        [to_network(found, place) for found, place in zip(side, geometry, strict=True)]
        for side in (detect_all(own, geometry, gate.settings), unpad(answers))
    )
    comparison = compare(expected, actual, gate.settings, gate.limit, rows=rows)
    if comparison.ties > gate.ties + max(2, comparison.judged // 100):  # NMS has no more to choose than it had here
        comparison = replace(comparison, missed=comparison.missed + comparison.ties, ties=0)
    result = decide(gate, stage, comparison, gate.limit, lambda: causes.UPSTREAM)
    said = (", labels equal" if result.status == "proved" else "") + note + gate.edits
    return replace(result, measured=result.measured + said) if result.measured else result


def _find_expected_rows(gate: Gate) -> tuple[Rows, str]:
    """Return the rows that the ensemble's boxes follow from, and whose they are where they are not the source's.

    Where the served pixels differ, by the level that they may, they are what the graph answers to these: a level alone
    moves boxes by more than an exact limit allows. The graph itself and the pixels are proved by their own stages.
    """
    import numpy as np

    pixels, expected = gate.pixels, gate.reference.pixels
    if pixels is None or pixels.shape != expected.shape or np.array_equal(pixels, expected):
        return gate.source, ""
    alike = are_alike(pixels, expected, on_gpu=gate.candidate.spec.decode == "gpu").all()
    if not alike and not gate.ran_graph:  # wrong ones are no reason to begin with that
        return gate.source, ""
    rows = read_rows(run_graph(read_onnx(gate.candidate.onnx), pixels))
    return rows, "; compared with what the graph answers to the served pixels"


def find_wrong_form(answers: Mapping[str, NDArray[Any]]) -> tuple[str, str] | None:
    """Return what is wrong with the form of boxes that were answered, and its likely cause: NaN, padding."""
    import numpy as np

    classes, numbers = answers["CLASSES"], answers["NUM_DETECTIONS"]
    if not np.isfinite(answers["BOXES"]).all() or not np.isfinite(answers["SCORES"]).all():
        return "NaN or infinity in what is served", pixel_causes.NAN
    padded = (classes == -1) & (answers["SCORES"] == 0) & (answers["BOXES"] == 0).all(axis=2)
    padded &= answers["LABELS"] == b""
    if (padded == (np.arange(classes.shape[1]) >= numbers)).all():
        return None
    reason = "rows behind NUM_DETECTIONS are not padding (0, class -1, no label), or rows before it are"
    return reason, "NUM_DETECTIONS or the padding of the post-processing step is wrong"


def find_wrong_labels(answers: Mapping[str, NDArray[Any]], labels: Sequence[str]) -> tuple[str, str] | None:
    """Return which class is called otherwise than by the source, and the likely cause."""
    for index, text in zip(answers["CLASSES"].ravel(), answers["LABELS"].ravel(), strict=True):
        name = "" if index == -1 else labels[index] if 0 <= index < len(labels) else None
        if text.decode() != name:
            called = f"the source calls it {name!r}" if name is not None else f"there are {len(labels)} labels"
            return f"class {index} is served as {text.decode()!r}, {called}", causes.LABELS
    return None
