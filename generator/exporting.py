"""A spec becomes its artifact: exported from the source, or taken from an export; and `trtgen export`."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.artifact import Artifact
from generator.errors import ExportError
from generator.events import Doing, Done, OnEvent, ignore
from generator.graph.export import MODEL_FILE
from generator.graph.model import OnnxModel, load_proto, read_onnx
from generator.packages import installed_packages, made_by
from generator.repository.publish import hash_tree
from generator.spec.exported import EXPORT_FILE, REFERENCE_FILE, ExportRecord, write_export
from generator.target import choose_target
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import NDArray

    from generator.sources import Network
    from generator.spec.model import ModelSpec


def export_artifact(spec: ModelSpec, folder: Path, *, shown: str, images: Path | None, on_event: OnEvent) -> Artifact:
    """Write the graph for the spec's target and precision and the source's answers into `folder`.

    `shown` is what `on_event` is told of the graph, since `folder` is often a temporary one.

    Raises:
        SourceError: The source cannot be loaded.
        ExportError: It does not become the graph that is asked for.
        VerificationError: `images` cannot be used, or the source's answers cannot.
    """
    from generator.graph.export import make_graph
    from generator.images.reference import make_reference, save_reference
    from generator.images.sets import read_images
    from generator.sources import load_network

    task = find_task(spec.task)
    chosen = read_images(images) if images else None  # first: it is soon said what is wrong with them
    start = time.monotonic()
    on_event(Doing(step=f"loading {spec.name}"))
    network = load_network(spec)
    on_event(Done(step="loaded", detail=network.description, seconds=time.monotonic() - start))
    for repair in network.repairs:
        on_event(Done(step="repaired", detail=repair))
    start = time.monotonic()
    doing = partial(Doing, step=f"exporting {spec.name}")
    on_event(doing(part="the graph"))
    proto, fitted = make_graph(spec, network)
    for repair in fitted:
        on_event(Done(step="repaired", detail=repair))
    on_event(doing(part="the source's own answers"))
    reference = make_reference(spec, network, chosen or task.default_images(network.recipe))
    onnx, head, notes, keep = _export_graph(spec, network, proto, reference.answers, folder, on_event)
    detail = f"{shown}  {onnx.node_count} nodes, opset {onnx.opset}, batch 1 to {spec.batch.max}"
    if spec.is_tensorrt:
        detail += f", for {spec.target} in {onnx.precision if spec.is_as_is else spec.precision}"
    on_event(Done(step="exported", detail=detail, seconds=time.monotonic() - start))
    save_reference(reference, folder / REFERENCE_FILE)
    return Artifact(
        onnx=onnx,
        head=head,
        recipe=network.recipe,
        labels=network.labels,
        description=network.description,
        assumed=task.list_assumed(spec, network, head),
        notes=notes,
        keep=keep,
        repairs=(*network.repairs, *fitted),
    )


def _export_graph(
    spec: ModelSpec,
    network: Network,
    proto: onnx.ModelProto,
    answers: Mapping[str, NDArray[Any]],
    folder: Path,
    on_event: OnEvent,
) -> tuple[OnnxModel, Any, tuple[str, ...], tuple[str, ...]]:
    """Write the graph; return it, its head, what the user should know, and the names of the nodes that `keep` fits."""
    from generator.graph.export import export_onnx

    doing = partial(Doing, step=f"exporting {spec.name}")
    on_event(doing(part="head and batches"))
    if _is_plain(spec) and not spec.keep:
        onnx, head = export_onnx(spec, network, proto, answers, folder)
        return onnx, head, _note_float_layers(spec, onnx), ()
    from generator.graph.precision import convert_graph
    from generator.graph.precision.calibration import read_calibration

    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    calibration: Any = None
    if spec.precision == "int8":
        on_event(doing(part="calibration images"))
        images = read_calibration(spec.calibration, network.recipe)
        calibration = images.pixels
        notes += [images.warning] if images.warning else []
    with tempfile.TemporaryDirectory(prefix="trtgen-fp32-") as plain:
        fp32, head = export_onnx(spec, network, proto, answers, Path(plain))
        on_event(doing(part=spec.precision))
        converted = convert_graph(
            fp32.path,
            folder / MODEL_FILE,
            precision=spec.precision,
            target=spec.target,
            keep=spec.keep,
            calibration=calibration,
        )
    notes += converted.warnings
    keep = tuple(name for name, reason in converted.kept_nodes.items() if reason == "keep")
    return read_onnx(folder / MODEL_FILE), head, tuple(notes), keep


def _note_float_layers(spec: ModelSpec, onnx: OnnxModel) -> tuple[str, ...]:
    """Say which layers of a quantised file that was taken as it is compute in float."""
    if spec.onnx is None or onnx.precision not in ("int8", "fp8"):
        return ()
    from generator.graph.as_is import find_float_layers

    in_float, count = find_float_layers(load_proto(onnx.path, weights=False))
    named = ", ".join(in_float[:5]) + (", ..." if len(in_float) > 5 else "")
    if not in_float:
        return ()
    return (f"{len(in_float)} of {count} layers stay in float: not all they take is quantised: {named}",)


def _is_plain(spec: ModelSpec) -> bool:
    """Say whether the graph is served in the precision that it comes in."""
    if not spec.is_tensorrt or spec.is_as_is:
        return True
    from generator.graph.precision import graph_precision

    return graph_precision(spec.target, spec.precision) == "fp32"


def take_export(spec: ModelSpec, folder: Path) -> Artifact:
    """Copy what `trtgen export` wrote beside the spec's file into `folder`; neither torch nor the source is needed.

    Raises:
        SourceError: The export is incomplete or was changed.
    """
    from generator.spec.exported import read_export
    from generator.spec.recipe import Recipe

    assert spec.onnx is not None, "the spec's own rules see to it"
    record = read_export(spec.onnx)
    folder.mkdir(parents=True, exist_ok=True)
    for name in record.files:
        shutil.copyfile(spec.onnx.parent / name, folder / name)
    return Artifact(
        onnx=read_onnx(folder / spec.onnx.name),
        head=find_task(spec.task).restore_head(record.head, spec, folder / REFERENCE_FILE),
        recipe=Recipe.model_validate(record.recipe),
        labels=tuple(record.labels),
        description=record.description,
        assumed=record.assumed,
        notes=tuple(record.notes),
        keep=tuple(record.keep),
        repairs=tuple(record.repairs),
    )


def add_plan(spec: ModelSpec, artifact: Artifact, path: Path, *, command: str, on_event: OnEvent) -> Artifact:
    """Build the plan of the artifact's graph at `path`, with its passport beside it.

    Raises:
        PlanError: TensorRT refuses the graph, or does not build it.
        DeviceError: The GPU's memory is exhausted.
    """
    from generator.plan.build import BuildRequest, build_plan
    from generator.plan.profiles import make_profiles

    start = time.monotonic()
    profiles = make_profiles(artifact.onnx, spec.profile_batches())
    request = BuildRequest(
        onnx=artifact.onnx,
        precision=artifact.onnx.precision if spec.is_as_is else spec.precision,
        profiles=profiles,
        max_batch_size=spec.batch.max,
        options=spec.plan,
        command=command,
        keep=artifact.keep,
    )
    doing = partial(Doing, step=f"building the plan of {spec.name}")
    plan = build_plan(request, path, on_progress=lambda phase, done: on_event(doing(part=phase, fraction=done)))
    passport = plan.passport
    detail = (
        f"{spec.network_name}  {passport.plan_bytes / 1e6:.1f} MB plan, TensorRT {passport.tensorrt}, "
        f"{passport.precision}, timing cache {passport.timing_cache}"
    )
    on_event(Done(step="built", detail=detail, seconds=time.monotonic() - start))
    notes = artifact.notes
    if (largest := max(one.max for one in spec.profile_batches())) > spec.batch.max:
        more = f"a profile reaches {largest} images, which takes memory for nothing: batch.max is {spec.batch.max}"
        notes = (*notes, more)
    return replace(artifact, passport=passport, notes=notes)


def export_folder(
    spec: ModelSpec, folder: Path, *, images: Path | None = None, on_event: OnEvent = ignore
) -> tuple[str, ...]:
    """Write model.onnx, reference.npz and export.json into `folder`, which appears at once and complete.

    Returns what the user should know.

    Raises:
        ExportError: No target was said, `folder` holds something else, or cannot be written.
        SourceError: As `export_artifact`.
        VerificationError: As `export_artifact`; or the source answers alike for all images, which would be found on
            the GPU host otherwise.
    """
    if spec.source == "export":
        msg = f"{spec.onnx} is an export already"
        raise ExportError(msg, hint="export from the source again")
    settled, reason = choose_target(spec)
    if spec.target == "auto" and not settled.is_tensorrt:
        msg = f"{spec.name}: an export is made for a target, and none was given ({reason})"
        hint = "set target: tensorrt-10, or what is installed where the plan is built"
        raise ExportError(msg, hint=hint, fields={"target": "tensorrt-10"})
    if reason:
        on_event(Done(step="target", detail=reason))
    spec = settled
    if folder.exists() and not (folder / EXPORT_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is no export: it is left as it is"
        raise ExportError(msg, hint="give another folder", fields={"folder": None})
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
            new = Path(place) / "new"
            artifact = export_artifact(spec, new, shown=str(folder / MODEL_FILE), images=images, on_event=on_event)
            _check_reference(spec, artifact, new)
            record = ExportRecord(
                made_by=made_by(),
                name=spec.name,
                description=artifact.description,
                target=spec.target,
                precision=spec.precision,
                activation=getattr(artifact.head, "activation", "none"),
                head=asdict(artifact.head),
                assumed=artifact.assumed,
                recipe=artifact.recipe,
                labels=list(artifact.labels),
                notes=list(artifact.notes),
                keep=list(artifact.keep),
                repairs=list(artifact.repairs),
                spec=spec.as_record(),
                packages=installed_packages(),
                files=hash_tree(new),
            )
            write_export(record, new)
            new.chmod(0o755)
            _put(new, folder, Path(place) / "old")
    except OSError as error:
        msg = f"{folder} cannot be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"free disk space there, or in {tempfile.gettempdir()}, where the graph is converted"
            raise ExportError(msg, hint=hint) from error
        raise ExportError(msg, hint="give a folder that you may write", fields={"folder": None}) from error
    return artifact.notes


def _check_reference(spec: ModelSpec, artifact: Artifact, folder: Path) -> None:
    """Refuse answers that prove nothing, as the gate on the GPU host would."""
    from generator.gate.candidate import Candidate
    from generator.images.reference import load_reference
    from generator.repository import Layout

    candidate = Candidate(repository=folder, layout=Layout.of(spec, 1), spec=spec, artifact=artifact)
    find_task(spec.task).make_stages(candidate, load_reference(folder / REFERENCE_FILE))


def _put(new: Path, folder: Path, old: Path) -> None:
    """Let `new` take the place of `folder`, which stays as it was if that fails or is interrupted."""
    if not folder.exists():
        new.rename(folder)
        return
    try:
        folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
