"""AP50 and mAP on labelled images, of the source and of every stage that can run here."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError
from generator.gate.client import GrpcAddress, ServedModel
from generator.gate.run import why_no_plan_runs
from generator.gate.stages import ask_pixels
from generator.graph.model import open_onnx
from generator.images.geometry import measure_geometry
from generator.images.sets import read_image
from generator.images.training_pixels import prepare
from generator.task import StageResult, not_proved
from generator.tasks.detection.annotations import Truth, read_annotations
from generator.tasks.detection.compare import ENOUGH
from generator.tasks.detection.decode import Rows, decode, select_rows
from generator.tasks.detection.judge import read_rows
from generator.tasks.detection.naive import Found
from generator.tasks.detection.postprocess import Postprocess
from generator.tasks.detection.stages import ask_rows, find_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.candidate import Candidate
    from generator.sources import Network

    # pixels, and the files that they are of, to rows
    Ask = Callable[[NDArray[np.uint8], Sequence[bytes]], Rows]

# Everything counts for an average precision, up to a hundred boxes of an image.
_SCORE, _MOST = 0.01, 100
# What is held in memory at once, and what a network answers at once.
_IMAGES, _BATCH = 64, 4
# AP50 that a lower precision may lose.
MOST_LOST = 0.02


def measure_labelled(candidate: Candidate, folder: Path, address: GrpcAddress | None) -> Iterator[StageResult]:
    """Yield AP50 and mAP of the source, the graph, the plan, and of what the server at `address` serves.

    Thresholds play no part: what the networks answer goes through the post-processing step with a threshold of .01.

    Raises:
        VerificationError: The annotations cannot be used.
        MissingDependencyError: What computes mAP is not installed.
    """
    _import_coco()
    annotated = read_annotations(folder, candidate.artifact.labels)
    network = _load_source(candidate)
    if network is None:
        yield not_proved("labelled source", "the source is where it was exported")
    if candidate.plan is not None and (reason := why_no_plan_runs()):
        yield not_proved("labelled plan", reason)
    with contextlib.ExitStack() as stack:
        asked = _open_stages(candidate, network, address, stack)
        truths, found = _detect(candidate, network, annotated, asked)
    count = sum(len(boxes) for boxes in truths)
    scores = {name: score_boxes(truths, boxes, len(candidate.artifact.labels)) for name, boxes in found.items()}
    first, (best, _) = next(iter(scores.items()))
    for name, (ap50, average) in scores.items():
        yield _judge(name, ap50, average, first, best, f"on {len(annotated)} images with {count} boxes", count)
    if "precision" in candidate.artifact.assumed:
        measured = f"AP50 {best:.4f} on {len(annotated)} images, of the graph as it came; its original is not here"
        yield StageResult(stage="precision", status="measured", measured=measured, figures={"ap50": best})


def _judge(name: str, ap50: float, average: float, first: str, best: float, on: str, count: int) -> StageResult:
    measured = f"AP50 {ap50:.4f}, mAP {average:.4f} {on}"
    if name != first:
        measured += f", AP50 {ap50 - best:+.4f} to {first.removeprefix('labelled ')}"
    result = StageResult(stage=name, status="measured", measured=measured, figures={"ap50": ap50, "map": average})
    if best - ap50 <= MOST_LOST or count < ENOUGH:
        return result
    cause = "the precision loses too much: keep the last layers in FP32 (keep), or give calibration images of your own"
    return replace(result, status="failed", reason=f"{measured} (limit {-MOST_LOST:+.2f})", cause=cause)


def _load_source(candidate: Candidate) -> Network | None:
    from generator.sources import load_network

    return None if candidate.spec.source == "export" else load_network(candidate.spec)


def _open_stages(
    candidate: Candidate, network: Network | None, address: GrpcAddress | None, stack: contextlib.ExitStack
) -> dict[str, Ask]:
    """Return what can be asked here, by the stage's name; what must be closed goes onto the stack."""
    import numpy as np

    reading, crop = candidate.artifact.head, candidate.artifact.recipe.crop
    run = open_onnx(candidate.onnx)

    def in_batches(ask: Callable[[NDArray[np.uint8]], Rows]) -> Ask:
        def answer(pixels: NDArray[np.uint8], _: Sequence[bytes]) -> Rows:
            parts = [ask(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
            names = ("boxes", "scores", "classes")
            return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

        return answer

    asked: dict[str, Ask] = {}
    if network is not None:
        source = network.run
        asked["labelled source"] = in_batches(lambda batch: select_rows(decode(reading, source(batch), crop), reading))
    asked["labelled onnx"] = in_batches(lambda batch: read_rows(run(batch)))
    if candidate.plan is not None and not why_no_plan_runs():
        from generator.plan.local import open_engine

        engine = stack.enter_context(open_engine(candidate.plan))
        asked["labelled plan"] = lambda pixels, _: read_rows(engine.run_outputs(pixels))
    if address is not None:
        batch = candidate.spec.batch.max
        served = stack.enter_context(ServedModel(address, candidate.layout, max_batch_size=batch))

        def ask_server(_: NDArray[np.uint8], files: Sequence[bytes]) -> Rows:
            return ask_rows(served, candidate, ask_pixels(served, files)["PIXELS"], files)

        asked["labelled served"] = ask_server
    return asked


def _detect(
    candidate: Candidate,
    network: Network | None,
    annotated: Sequence[tuple[Path, list[Truth]]],
    asked: Mapping[str, Ask],
) -> tuple[list[list[Truth]], dict[str, list[Found]]]:
    """Return the right boxes in pixels of their images, and what each stage finds."""
    from generator.images.served_pixels import prepare_without_torch

    recipe, settings = candidate.artifact.recipe, find_settings(candidate)
    parameters = {"score": str(_SCORE), "iou": str(settings.iou), "nms": settings.nms}
    step = Postprocess(parameters, candidate.artifact.labels, max(settings.most, _MOST))
    truths: list[list[Truth]] = []
    found: dict[str, list[Found]] = {name: [] for name in asked}
    for start in range(0, len(annotated), _IMAGES):
        part = annotated[start : start + _IMAGES]
        files = [read_image(path) for path, _ in part]
        geometry = measure_geometry(recipe, files)
        if network is None:  # this host may have no torch
            pixels = prepare_without_torch(recipe, files, [str(path) for path, _ in part])
        else:
            pixels = prepare(recipe, files, network.pixels)
        for name, ask in asked.items():
            rows = ask(pixels, files)
            images = zip(rows.boxes, rows.scores, rows.classes, geometry.tolist(), strict=True)
            found[name] += [Found(*step.detect(*image)) for image in images]
        for (_, boxes), (*_, width, height) in zip(part, geometry.tolist(), strict=True):
            truths.append([truth.in_pixels(width, height) for truth in boxes])
    return truths, found


def score_boxes(truths: Sequence[Sequence[Truth]], found: Sequence[Found], classes: int) -> tuple[float, float]:
    """Return AP50 and mAP (the mean over IoUs from .5 to .95) as COCO defines them."""
    coco, evaluation = _import_coco()
    images = [{"id": image} for image in range(len(truths))]
    right = [
        {
            "image_id": image,
            "category_id": truth.index,
            "bbox": list(truth.box),
            "area": truth.box[2] * truth.box[3],
            "iscrowd": int(truth.is_crowd),
        }
        for image, boxes in enumerate(truths)
        for truth in boxes
    ]
    categories = [{"id": index, "name": str(index)} for index in range(classes)]
    right = [{"id": number, **one} for number, one in enumerate(right, 1)]
    expected = coco({"images": images, "annotations": right, "categories": categories, "info": {}})
    answers = [
        {
            "image_id": image,
            "category_id": int(index),
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for image, boxes in enumerate(found)
        for box, score, index in zip(*boxes, strict=True)
    ]
    run = evaluation(expected, expected.loadRes(answers), "bbox", print_function=lambda *_: None)
    run.evaluate()
    run.accumulate()
    run.summarize()
    average, ap50 = (float(value) for value in run.stats[:2])
    return max(ap50, 0.0), max(average, 0.0)  # -1 where nothing is to be found


def _import_coco() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        why = "it computes mAP on labelled images"
        raise MissingDependencyError("faster-coco-eval", extra="detection", why=why) from error
    return COCO, COCOeval_faster
