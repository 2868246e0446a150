"""The gate's order: what runs, what could not run here, and whether the model may be published."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError, PlanError, ServerError, VerificationError
from generator.events import Doing, OnEvent, ignore
from generator.gate.client import GrpcAddress, ServedModel
from generator.task import StageResult, find_task, not_proved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.gate.candidate import Candidate
    from generator.images.reference import Reference
    from generator.task import Stage

_NOT_IN_PROOF = ("figures", "agreement")  # the former are entries of their own, the latter is what a server answered


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
        proof = []
        for result in self.results:
            texts = {key: value for key, value in asdict(result).items() if value and key not in _NOT_IN_PROOF}
            proof.append({**texts, **result.figures})
        return proof

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
            msg = f"{self.model}: every stage was required to be proved, but not proved are:\n  " + "\n  ".join(lines)
            hint = "make these stages possible here, or do not require all"
            raise VerificationError(msg, hint=hint, fields={"require_all": None})


def run_gate(
    candidate: Candidate, reference: Reference, *, address: GrpcAddress | None = None, on_event: OnEvent = ignore
) -> GateReport:
    """Run every stage that can run here; the server is started on the candidate's repository without `address`.

    Raises:
        VerificationError: Nothing can be compared with the reference.
    """
    name = candidate.spec.name
    stages = find_task(candidate.spec.task).make_stages(candidate, reference)
    results: list[StageResult] = []
    for stage in stages:
        failed = [result.stage for result in results if result.status == "failed"]
        if stage.needs == "graph" or (stage.needs == "plan" and not failed):
            on_event(Doing(step=f"verifying {name}", part=stage.name))
            results.append(stage.run(None))
    served = [stage for stage in stages if stage.needs == "server"]
    if failed := [result.stage for result in results if result.status == "failed"]:
        results += [not_proved(stage.name, f"{failed[0]} failed") for stage in served]
    elif served:
        results += _run_served(candidate, served, address, on_event)
    results += [
        StageResult(stage=what, status="assumed", reason=why) for what, why in candidate.artifact.assumed.items()
    ]
    return GateReport(model=name, images=len(reference.names), results=tuple(results))


def _run_served(
    candidate: Candidate, stages: Sequence[Stage], address: GrpcAddress | None, on_event: OnEvent
) -> list[StageResult]:
    from generator.server.embedded import EmbeddedServer

    def tell(part: str) -> None:
        on_event(Doing(step=f"verifying {candidate.spec.name}", part=part))

    if address is not None:
        return _ask(candidate, stages, address, tell)
    if reason := why_not_served(candidate):
        return [not_proved(stage.name, reason) for stage in stages]
    tell("the server's start")
    try:
        with EmbeddedServer(candidate.repository, models=[candidate.layout.entry]) as server:
            results = _ask(candidate, stages, GrpcAddress(url=server.grpc_url), tell)
            tell("the server's end")
            return results
    except ServerError as error:
        return _stopped_at(stages, error)


def why_not_served(candidate: Candidate) -> str:
    """Return why no server can be started on this machine for the model, empty where one can."""
    from generator.server.wheel import check_embedded

    if candidate.plan is not None and (reason := why_no_plan_runs()):
        return reason

    try:
        check_embedded()
    except (MissingDependencyError, ServerError) as error:
        return f"{error.message} ({error.hint})"
    return ""


def why_no_plan_runs() -> str:
    """Return why no plan can run on this machine, empty where one can."""
    from generator.gpu import why_no_gpu
    from generator.plan.library import import_tensorrt

    if reason := why_no_gpu():
        return reason
    try:
        import_tensorrt()
    except (MissingDependencyError, PlanError) as error:
        return error.message
    return ""


def _ask(
    candidate: Candidate, stages: Sequence[Stage], address: GrpcAddress, tell: Callable[[str], None]
) -> list[StageResult]:
    results: list[StageResult] = []
    with ServedModel(address, candidate.layout, max_batch_size=candidate.spec.batch.max) as served:
        for stage in stages:
            tell(stage.name)
            try:
                results.append(stage.run(served))
            except ServerError as error:
                return results + _stopped_at(stages[len(results) :], error)
    return results


def _stopped_at(stages: Sequence[Stage], error: ServerError) -> list[StageResult]:
    """The results from the stage on at which the server did not start or did not answer."""
    first, *others = (stage.name for stage in stages)
    failed = StageResult(stage=first, status="failed", reason=error.message, cause=error.hint)
    return [failed, *(not_proved(stage, f"{first} failed") for stage in others)]


def _failure(result: StageResult) -> str:
    return f"{result.stage}: {result.reason}" + (f"\n    likely cause: {result.cause}" if result.cause else "")
