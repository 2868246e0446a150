"""`trtgen verify`: the gate on what is published, from the records and references in the repository."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from generator.errors import PlanError, RepositoryError
from generator.events import Doing, OnEvent, ignore
from generator.gate.candidate import Candidate
from generator.gate.client import GrpcAddress, check_server
from generator.gate.run import GateReport, run_gate
from generator.images.reference import Reference, load_reference, make_reference
from generator.images.sets import read_images
from generator.plan.choice import PLAN_FILE, choose_plan
from generator.plan.compatibility import local_host
from generator.repository import Layout, Record, find_records, read_record, recover
from generator.repository.layout import RECORD_FILE
from generator.repository.stage import read_published
from generator.server.plans import find_plans
from generator.spec.model import ModelSpec
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def verify_published(
    root: Path,
    names: Sequence[str],
    *,
    images: Path | None = None,
    labelled: Path | None = None,
    grpc_url: str | None = None,
    secrets: Path | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[GateReport]:
    """Yield the gate's report for each model below `root` (all if `names` is empty).

    Raises:
        RepositoryError: No such model.
        PlanError: A model has plans for other GPUs only than this host's, which is to serve it.
        ServerError: No server at `grpc_url`, or it does not serve one of the models.
        VerificationError: The images cannot be used.
    """
    recover(root)
    records = find_published(root, names)
    candidates = [read_candidate(root, record) for record in records]
    if grpc_url is None and (capability := _find_capability()):
        find_plans(root, [record.name for record in records], capability=capability)
    address = None if grpc_url is None else GrpcAddress(url=grpc_url, secrets=secrets)
    if address is not None:
        check_server(address, [candidate.layout for candidate in candidates], root)
    for candidate in candidates:
        name = candidate.spec.name
        on_event(Doing(step=f"verifying {name}", part="the source's own answers" if images else ""))
        reference = _ask_source(candidate.spec, images) if images else load_reference(root / candidate.layout.reference)
        report = run_gate(candidate, reference, address=address, on_event=on_event)
        if labelled is not None:
            on_event(Doing(step=f"verifying {name}", part="labelled images"))
            measured = list(find_task(candidate.spec.task).measure_labelled(candidate, labelled, address))
            replaced = {result.stage for result in measured}  # what was assumed may be measured now
            results = [*(result for result in report.results if result.stage not in replaced), *measured]
            report = GateReport(model=report.model, images=report.images, results=tuple(results))
        yield report


def find_published(root: Path, names: Sequence[str]) -> list[Record]:
    """Return the records of these models below `root`, of all if `names` is empty.

    Raises:
        RepositoryError: There is none, or a record cannot be read.
    """
    records = find_records(root)
    if not names:
        if not records:
            msg = f"{root} holds no model made by trtgen"
            fields = {"repository": root}
            raise RepositoryError(msg, hint="build one", command=("build-repo", "demo"), fields=fields)
        return records
    found = []
    for name in names:
        record = read_record(root, name)
        if record is None:
            msg = f"{root} holds no model {name!r}; it has {', '.join(r.name for r in records) or 'none'}"
            fields = {"repository": root}
            raise RepositoryError(msg, hint="build it", command=("build-repo", name), fields=fields)
        found.append(record)
    return found


def read_candidate(root: Path, record: Record, *, read_graph: bool = True) -> Candidate:
    """Return the model that `record` describes.

    Without `read_graph` neither the graph nor the `onnx` package is needed, unless an older record of a graph in low
    precision does not tell in which.

    Raises:
        RepositoryError: It does not describe one.
        SourceError: Its graph cannot be read.
        PlanError: Its plan has no valid passport.
    """
    layout = Layout.of_record(record)
    try:
        spec = ModelSpec.model_validate(record.spec)
        if isinstance(spec.versions, list):
            layout = replace(layout, version=max(spec.versions))
        if record.plans:
            layout = _choose_plan(root, record, layout)
        read_graph = read_graph or (spec.is_as_is and "low_precisions" not in record.graph)
        artifact = read_published(root, record, spec, layout, read_graph=read_graph)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{root / record.name / RECORD_FILE} does not say spec, recipe, labels and head"
        raise RepositoryError(msg, hint=f"move {root / record.name} and its members away and build it again") from error
    return Candidate(repository=root, layout=layout, spec=spec, artifact=artifact, proof=record.proof)


def _choose_plan(root: Path, record: Record, layout: Layout) -> Layout:
    """Return the layout with the plan that this host takes; any where none is for it, as with a server elsewhere."""
    if capability := _find_capability():
        with contextlib.suppress(PlanError):
            folder = (root / layout.plan).parent
            return replace(layout, plan_file=choose_plan(folder, record.for_capability, PLAN_FILE, capability).name)
    return layout


def _find_capability() -> str | None:
    gpu = local_host().gpu
    return None if gpu is None else gpu.compute_capability


def _ask_source(spec: ModelSpec, folder: Path) -> Reference:
    from generator.sources import load_network

    return make_reference(spec, load_network(spec), read_images(folder))
