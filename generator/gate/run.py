"""The gate's order: what runs, what could not run here, and whether the model may be published."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError, ServerError, VerificationError
from generator.events import Doing, OnEvent, ignore
from generator.gate import stages
from generator.gate.compare import LIMITS, Limit, comparable, discriminates, plan_limit
from generator.gate.plan_stage import check_plan, why_not_here
from generator.gate.served import ServedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from generator.gate.stages import StageResult
    from generator.gate.subject import Subject
    from generator.images.reference import Reference
    from generator.tasks.head import Head

__all__ = ["GateReport", "require_discrimination", "run_gate", "why_not_served"]

_LOG = logging.getLogger(__name__)
SERVED_STAGES = ("served pixels", "served classifier", "served ensemble")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """Every stage's result, in order."""

    model: str
    images: int
    results: tuple[StageResult, ...]

    @property
    def failed(self) -> tuple[StageResult, ...]:
        """The stages that ran and failed: such a model is never published."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def unproved(self) -> tuple[StageResult, ...]:
        """The stages that could not run here."""
        return tuple(result for result in self.results if result.status == "not proved")

    def as_proof(self) -> list[dict[str, Any]]:
        """Return the results for trtgen.json and --json, without empty fields."""
        return [
            {key: value for key, value in asdict(result).items() if value not in ("", None)} for result in self.results
        ]

    def raise_for_status(self, *, require_all: bool, hint: str = "build the model again from its source") -> None:
        """Do nothing if the model may be published or go on being served.

        Raises:
            VerificationError: A stage failed, or `require_all` and one could not run.
        """
        if self.failed:
            lines = [_failure(result) for result in self.failed]
            msg = f"{self.model} is not what its source is:\n  " + "\n  ".join(lines)
            raise VerificationError(msg, hint=hint)
        if require_all and self.unproved:
            lines = [f"{result.stage}: {result.reason}" for result in self.unproved]
            msg = f"{self.model}: --require all, but not proved:\n  " + "\n  ".join(lines)
            raise VerificationError(msg, hint="make these stages possible here, or leave --require all out")


def require_discrimination(name: str, reference: Reference, head: Head, limit: Limit) -> None:
    """Do nothing if a mix-up of two images would be noticed.

    Raises:
        VerificationError: The source gives the same answer for all images, so nothing can be compared.
    """
    if not discriminates(comparable(head.finish(reference.scores), head.activation), limit):
        msg = (
            f"{name}: images do not discriminate: "
            f"the source answers alike for {len(reference.names)} images, so a wrong model would pass too"
        )
        raise VerificationError(msg, hint="give --images DIR with images of several of its classes")


def run_gate(
    subject: Subject, reference: Reference, *, grpc_url: str | None = None, on_event: OnEvent = ignore
) -> GateReport:
    """Run every stage that can run here; the server is started on the subject's repository unless `grpc_url` is given.

    Raises:
        VerificationError: The source gives the same answer for all images, so nothing can be compared; or its answers
            are not what the record says.
    """
    limit = plan_limit(subject.precision) if subject.plan else LIMITS[subject.precision]
    name, head = subject.layout.ensemble, subject.head
    if found := head.contradiction(reference.scores):
        msg = f"{name}: its record says that the source answers {head.output}, but its answers are {found}"
        raise VerificationError(msg, hint="build the model again from its source")
    require_discrimination(name, reference, head, limit)

    def tell(stage: str) -> None:
        on_event(Doing(step=f"verifying {name}", part=stage))

    tell("batches")
    results = [stages.check_batches(subject, reference)]
    tell("onnx")
    results.append(stages.check_onnx(subject, reference))
    direct: NDArray[np.float32] | None = None
    if subject.plan is not None and not any(result.status == "failed" for result in results):
        tell("plan")
        result, direct = check_plan(subject, reference, limit)
        results.append(result)
    if failed := [result.stage for result in results if result.status == "failed"]:
        reason = f"{failed[0]} failed"
        results += [stages.not_proved(stage, reason) for stage in SERVED_STAGES]
    else:
        results += _served_stages(subject, reference, limit, direct, grpc_url, tell=tell)
    results += stages.list_assumed(subject)
    return GateReport(model=name, images=len(reference.names), results=tuple(results))


def _served_stages(
    subject: Subject,
    reference: Reference,
    limit: Limit,
    direct: NDArray[np.float32] | None,
    grpc_url: str | None,
    *,
    tell: Callable[[str], None],
) -> list[StageResult]:
    if grpc_url is not None:
        return _ask(subject, reference, limit, direct, grpc_url, tell=tell)
    from generator.server.embedded import EmbeddedServer

    if reason := why_not_served(subject):
        return [stages.not_proved(stage, reason) for stage in SERVED_STAGES]
    tell("the server's start")
    try:
        with EmbeddedServer(subject.repository, models=[subject.layout.ensemble]) as server:
            results = _ask(subject, reference, limit, direct, server.grpc_url, tell=tell)
            tell("the server's end")
            return results
    except ServerError as error:
        return _stopped_at(0, error)


def why_not_served(subject: Subject) -> str:
    """Return why no server can be started on this machine for the model, empty where one can."""
    from generator.server import embedded

    if subject.plan is not None and (reason := why_not_here()):
        return reason

    try:
        embedded.check_embedded()
    except (MissingDependencyError, ServerError) as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return ""


def _ask(
    subject: Subject,
    reference: Reference,
    limit: Limit,
    direct: NDArray[np.float32] | None,
    grpc_url: str,
    *,
    tell: Callable[[str], None],
) -> list[StageResult]:
    results: list[StageResult] = []
    with ServedModel(grpc_url, subject.layout, max_batch_size=subject.max_batch_size) as served:
        try:
            tell("served pixels")
            results.append(stages.check_pixels(served, subject, reference))
            tell("served classifier")
            results.append(stages.check_classifier(served, subject, reference, direct))
            tell("served ensemble")
            results.append(stages.check_ensemble(served, subject, reference, limit))
        except ServerError as error:
            results += _stopped_at(len(results), error)
    return results


def _stopped_at(position: int, error: ServerError) -> list[StageResult]:
    """The results from the stage on at which the server did not start or did not answer."""
    first, *others = SERVED_STAGES[position:]
    failed = stages.StageResult(stage=first, status="failed", reason=error.message, cause=error.hint or "")
    return [failed, *(stages.not_proved(stage, f"{first} failed") for stage in others)]


def _failure(result: StageResult) -> str:
    return f"{result.stage}: {result.reason}" + (f"\n    likely cause: {result.cause}" if result.cause else "")
