"""The share of right answers on labelled images, of every stage that can run here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from generator.pixels import prepare_without_torch
from generator.spec import ModelSpec
from generator.verify import stages
from generator.verify.gate import why_not_served
from generator.verify.plan_stage import why_not_here
from generator.verify.reference import prepare
from generator.verify.served import ServedModel
from generator.verify.stages import StageResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from generator.repository import Record
    from generator.verify.images import LabelledImages
    from generator.verify.subject import Subject

__all__ = ["measure_accuracies"]


def measure_accuracies(
    subject: Subject, record: Record, labelled: LabelledImages, grpc_url: str | None
) -> Iterator[StageResult]:
    """Yield the accuracy of the source, the graph, the plan and the served ensemble; say which could not run here."""
    import numpy as np

    truth = np.array(labelled.classes)
    if record.spec["source"] == "export":  # this host may have no torch
        pixels = prepare_without_torch(subject.recipe, labelled.images.files, labelled.images.names)
    else:
        pixels = prepare(subject.recipe, labelled.images.files)
    answers: dict[str, Callable[[], NDArray[np.float32] | str]] = {
        "labelled source": lambda: _ask_source(record, pixels),
        "labelled onnx": lambda: _run_onnx(subject, pixels),
        "labelled plan": lambda: _run_plan(subject, pixels),
        "labelled ensemble": lambda: _ask_server(subject, labelled, grpc_url),
    }
    if subject.plan is None:
        del answers["labelled plan"]
    for stage, answer in answers.items():
        scores = answer()
        if isinstance(scores, str):
            yield stages.not_proved(stage, scores)
        else:
            accuracy = float((scores.argmax(axis=1) == truth).mean())
            yield StageResult(stage=stage, status="measured", accuracy=accuracy, measured=f"{len(truth)} images")


def _ask_source(record: Record, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | str:
    from generator.sources import load_network

    spec = ModelSpec.model_validate(record.spec)
    if spec.source == "export":
        return "the source is where it was exported"
    return load_network(spec).run(pixels)


def _run_onnx(subject: Subject, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | str:
    from generator.onnx_model import read_onnx, run_graph

    if subject.graph_precision == "bf16":
        return stages.NO_BF16
    return run_graph(read_onnx(subject.onnx), pixels)


def _run_plan(subject: Subject, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | str:
    from generator.plan.engine import open_engine

    if reason := why_not_here():
        return reason
    assert subject.plan is not None, "only plans come here"
    with open_engine(subject.plan) as engine:
        return engine.run(pixels)


def _ask_server(subject: Subject, labelled: LabelledImages, grpc_url: str | None) -> NDArray[np.float32] | str:
    from generator.server.embedded import EmbeddedServer

    if grpc_url is None and (reason := why_not_served(subject)):
        return reason
    with contextlib.ExitStack() as stack:
        if grpc_url is None:
            server = EmbeddedServer(subject.repository, models=[subject.layout.ensemble])
            grpc_url = stack.enter_context(server).grpc_url
        served = stack.enter_context(ServedModel(grpc_url, subject.layout, max_batch_size=subject.max_batch_size))
        return served.classify_images(labelled.images.files)
