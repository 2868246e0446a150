"""The arrows in order: spec -> network -> ONNX -> plan -> configurations -> staged repository -> gate -> published."""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.decoding import choose_decode
from generator.errors import SpecError
from generator.events import Done, OnEvent, ignore
from generator.packages import installed_packages, made_by
from generator.repository import Change, Layout, Record, plan_changes, publish, read_record, recover, staging
from generator.repository.edits import check_edits, find_damaged
from generator.repository.fingerprint import fingerprint
from generator.repository.layout import RECORD_FILE, next_version
from generator.repository.publish import check_contract, check_owner, hash_tree
from generator.repository.stage import stage_files, stage_listed_versions, take_over
from generator.target import check_target, choose_target
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from generator.artifact import Artifact
    from generator.gate import GateReport
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

_LOG = logging.getLogger(__name__)
# The proof of a model that was published with --no-verify.
UNVERIFIED: Mapping[str, Any] = {"stage": "all", "status": "not proved", "reason": "--no-verify"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build, as opposed to what: the same for all models of one command."""

    verify: bool = True
    require_all: bool = False
    replace: bool = False
    discard_edits: bool = False
    dry_run: bool = False
    images: Path | None = None
    on_event: OnEvent = ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What one model's build came to. `report` is None where nothing had to be proved again."""

    name: str
    version: int
    changes: tuple[Change, ...]
    report: GateReport | None
    notes: tuple[str, ...] = ()


def build_repository(spec: ModelSpec, root: Path, options: BuildOptions) -> Built:
    """Build, prove and publish one model below `root`; touch nothing if its inputs did not change.

    Raises:
        TrtgenError: Any stage; nothing is published then.
    """
    if options.images is not None and spec.source == "export":
        msg = f"{spec.name}: its images were settled when the graph was exported: its reference.npz holds the answers"
        raise SpecError(msg, hint="leave images out, or export again with them")
    spec, reason = choose_target(spec)
    if not options.dry_run:
        for line in recover(root):
            _LOG.warning("%s", line)
    old = read_record(root, spec.name)
    spec, where = choose_decode(spec, _find_recipe, old)
    inputs = fingerprint(spec)
    if old is not None and old.inputs == inputs and _proof_suffices(old, options) and not find_damaged(root, old.files):
        return Built(
            name=spec.name,
            version=old.version,
            changes=tuple(Change(word="identical", path=path) for path in (*old.files, f"{spec.name}/{RECORD_FILE}")),
            report=None,
        )
    if reason:
        options.on_event(Done(step="target", detail=reason))
    if where:
        options.on_event(Done(step="decode", detail=where))
    check_target(spec)
    with _staging(root, dry_run=options.dry_run) as staged:
        old = read_record(root, spec.name)  # again, now that nobody else can write
        reusable = old is not None and _is_reusable(root, old, inputs)
        version = old.version if old is not None and reusable else next_version(root, spec.model_names)
        layout = Layout.of(spec, version)
        check_owner(root, layout, old)
        _refuse_edits(root, old, options)
        artifact = (
            take_over(root, staged, old, spec, layout) if old and reusable else _make(spec, staged, layout, options)
        )
        contract = _contract(spec, artifact)
        check_contract(old, contract, replace=options.replace)
        stage_files(spec, staged, layout, artifact, inputs)
        served = stage_listed_versions(spec, root, staged, layout)
        report = _prove(spec, staged, served, artifact, options)
        record = _record(spec, staged, layout, artifact, inputs, contract, report, root)
        (staged / layout.record).write_text(record.to_json(), encoding="utf-8")
        replace = options.replace and old is not None
        changes = plan_changes(root, staged, layout, old, replace=replace)
        _refuse_edits(root, old, options)  # again: exporting and proving take minutes
        if not options.dry_run:
            publish(root, layout, changes, replaced=Layout.of_record(old) if old and replace else None)
    return Built(name=spec.name, version=version, changes=tuple(changes), report=report, notes=artifact.notes)


def _find_recipe(spec: ModelSpec) -> Recipe:
    from generator.sources import describe_source

    return describe_source(spec)[0]


def _refuse_edits(root: Path, old: Record | None, options: BuildOptions) -> None:
    if old is not None and not options.discard_edits:
        check_edits(root, old, removing=options.replace)


def _proof_suffices(old: Record, options: BuildOptions) -> bool:
    """Say whether what was proved then is what is asked for now."""
    if not options.verify or options.dry_run:
        return True
    unproved = [entry for entry in old.proof if entry["status"] == "not proved"]
    return not unproved or not (options.require_all or unproved[0]["stage"] == UNVERIFIED["stage"])


def _is_reusable(root: Path, old: Record, inputs: dict[str, str]) -> bool:
    """Say whether the published version's own files are what this build would make again."""
    versioned = {path: digest for path, digest in old.files.items() if f"/{old.version}/" in path}
    if old.inputs["artifact"] != inputs["artifact"]:
        return False
    damaged = find_damaged(root, versioned)
    for path in damaged:
        _LOG.warning("%s is not what was published: it stays as it is, and a new version is made", root / path)
    return not damaged


@contextmanager
def _staging(root: Path, *, dry_run: bool) -> Iterator[Path]:
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="trtgen-dry-run-") as folder:
            yield Path(folder)
    else:
        with staging(root) as staged:
            yield staged


def _make(spec: ModelSpec, staged: Path, layout: Layout, options: BuildOptions) -> Artifact:
    from generator.exporting import add_plan, export_artifact, take_export

    folder = (staged / layout.onnx).parent
    if spec.source == "export":
        artifact = take_export(spec, folder)
    else:
        artifact = export_artifact(
            spec, folder, shown=str(layout.onnx), images=options.images, on_event=options.on_event
        )
    if not spec.is_tensorrt:
        return artifact
    return add_plan(spec, artifact, staged / layout.plan, command=_command(layout), on_event=options.on_event)


def _command(layout: Layout, root: Path | None = None) -> str:
    """Return the command that makes the same again."""
    repository = root.resolve().name if root else "model_repository"
    return f"trtgen build-repo --spec {repository}/{layout.record} --repository {repository}"


def _contract(spec: ModelSpec, artifact: Artifact) -> dict[str, Any]:
    """What clients and the older versions of the same model rely on: one config.pbtxt serves all versions."""
    given = artifact.onnx.input
    outputs = [[tensor.name, tensor.data_type.triton, list(tensor.shape)] for tensor in artifact.onnx.outputs]
    return {
        "input": [given.data_type.triton, list(given.shape)],
        "output": outputs[0] if len(outputs) == 1 else outputs,
        "preprocessing": artifact.recipe.pixel_fields(),
        **find_task(spec.task).make_contract(artifact),
        "backend": "onnxruntime" if artifact.passport is None else "tensorrt",
        # its members are gone for who called them, and one config.pbtxt serves no versions of another layout
        **({"layout": spec.layout} if spec.layout == "fused" else {}),
    }


def _prove(
    spec: ModelSpec, staged: Path, layout: Layout, artifact: Artifact, options: BuildOptions
) -> GateReport | None:
    from generator.gate import Candidate, run_gate
    from generator.images.reference import load_reference

    if not options.verify or options.dry_run:
        return None
    start = time.monotonic()
    candidate = Candidate(repository=staged, layout=layout, spec=spec, artifact=artifact)
    report = run_gate(candidate, load_reference(staged / layout.reference), on_event=options.on_event)
    report.raise_for_status(require_all=options.require_all, hint="nothing was published; fix the source or the spec")
    proved = sum(result.status == "proved" for result in report.results)
    stages = proved + len(report.unproved)
    detail = f"{spec.name}  {proved} of {stages} stages on {report.images} images"
    options.on_event(Done(step="verified", detail=detail, seconds=time.monotonic() - start))
    return report


def _record(
    spec: ModelSpec,
    staged: Path,
    layout: Layout,
    artifact: Artifact,
    inputs: dict[str, str],
    contract: dict[str, Any],
    report: GateReport | None,
    root: Path,
) -> Record:
    return Record(
        made_by=made_by(),
        command=_command(layout, root),
        name=spec.name,
        version=layout.version,
        description=artifact.description,
        spec=spec.as_record(),
        inputs=inputs,
        packages=installed_packages(),
        recipe=artifact.recipe,
        contract=contract,
        graph={
            "opset": artifact.onnx.opset,
            "nodes": artifact.onnx.node_count,
            "input": artifact.onnx.input.name,
            "output": " ".join(tensor.name for tensor in artifact.onnx.outputs),
            **({"low_precisions": list(low)} if (low := artifact.onnx.low_precisions) else {}),
        },
        plan=_plan_facts(artifact),
        proof=list(report.as_proof() if report else [UNVERIFIED]),
        files=hash_tree(staged),
        head=asdict(artifact.head),
        assumed=artifact.assumed,
        repairs=list(artifact.repairs),
    )


def _plan_facts(artifact: Artifact) -> dict[str, Any] | None:
    """What must fit where the plan is to run; all of it is in the passport."""
    passport = artifact.passport
    if passport is None:
        return None
    return {
        "tensorrt": passport.tensorrt,
        "gpu": passport.gpu["name"],
        "compute_capability": passport.gpu["compute_capability"],
        "precision": passport.precision,
        "bytes": passport.plan_bytes,
    }
