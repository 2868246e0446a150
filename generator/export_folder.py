"""`trtgen export`: a spec becomes the folder that the GPU host builds from."""

from __future__ import annotations

import errno
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from generator.artifact import export_artifact
from generator.errors import ExportError
from generator.events import Done, OnEvent, ignore
from generator.graph.export import MODEL_FILE
from generator.repository.exported import EXPORT_FILE, REFERENCE_FILE, ExportRecord, write_export
from generator.repository.fingerprint import installed_packages, made_by
from generator.repository.publish import hash_tree
from generator.target import Asked, choose_target

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec
    from generator.tasks.head import Head

__all__ = ["export_folder"]


def export_folder(
    spec: ModelSpec,
    folder: Path,
    *,
    images: Path | None = None,
    spec_file: Path | None = None,
    on_event: OnEvent = ignore,
) -> tuple[str, ...]:
    """Write model.onnx, reference.npz and export.json into `folder`, which appears at once and complete.

    Returns what the user should know. `spec_file` is where the spec stands, for hints.

    Raises:
        ExportError: No target was said, `folder` holds something else, or cannot be written.
        SourceError: As `export_artifact`.
        VerificationError: As `export_artifact`; or the source answers alike for all images, which would be found on
            the GPU host otherwise.
    """
    if spec.source == "export":
        msg = f"{spec.onnx} is an export already"
        raise ExportError(msg, hint="export from the source again")
    choice = choose_target(spec, Asked(spec_file=spec_file, images=images))
    if spec.target == "auto" and not choice.spec.is_tensorrt:
        msg = f"{spec.name}: an export is made for a target, and none was given ({choice.reason})"
        raise ExportError(msg, hint="--target tensorrt-10, or what is installed where the plan is built")
    if choice.reason:
        on_event(Done(step="target", detail=choice.reason))
    spec = choice.spec
    if folder.exists() and not (folder / EXPORT_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is no export: it is left as it is"
        raise ExportError(msg, hint="give another folder with --output")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
            new = Path(place) / "new"
            artifact = export_artifact(spec, new, shown=str(folder / MODEL_FILE), images=images, on_event=on_event)
            _require_discrimination(spec, artifact.head, new)
            record = ExportRecord(
                made_by=made_by(),
                name=spec.name,
                description=artifact.description,
                target=spec.target,
                precision=spec.precision,
                activation=artifact.head.activation,
                head=asdict(artifact.head),
                assumed=artifact.assumed,
                recipe=artifact.recipe.model_dump(mode="json"),
                labels=list(artifact.labels),
                notes=list(artifact.notes),
                keep=list(artifact.keep),
                spec=spec.model_dump(mode="json"),
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
        else:
            hint = "give a folder that you may write, with --output"
        raise ExportError(msg, hint=hint) from error
    return artifact.notes


def _require_discrimination(spec: ModelSpec, head: Head, folder: Path) -> None:
    from generator.gate.compare import LIMITS, plan_limit
    from generator.gate.reference import load_reference
    from generator.gate.run import require_discrimination

    reference = load_reference(folder / REFERENCE_FILE)
    limit = plan_limit(spec.precision) if spec.is_tensorrt else LIMITS["fp32"]
    require_discrimination(spec.name, reference, head, limit)


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
