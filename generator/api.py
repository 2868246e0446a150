"""What a program calls: the commands without their words. Nothing here prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.events import OnEvent, ignore
from generator.spec.file import make_spec, resolve_paths
from generator.spec.model import ModelSpec

if TYPE_CHECKING:
    from generator.gate import GateReport
    from generator.pipeline import Built
    from generator.server.embedded import EmbeddedServer

_REPOSITORY = Path("model_repository")


def build(
    model: ModelSpec | str,
    repository: Path | str = _REPOSITORY,
    *,
    images: Path | str | None = None,
    verify: bool = True,
    require_all: bool = False,
    replace: bool = False,
    discard_edits: bool = False,
    dry_run: bool = False,
    on_event: OnEvent = ignore,
    **fields: Any,
) -> Built:
    """Build, prove and publish one model; touch nothing if its inputs did not change.

    Args:
        model: A spec, or what `trtgen build-repo` takes: a name or the path of an ONNX file.
        repository: The model repository.
        images: A folder of images to compare on.
        verify: Run the gate before publishing.
        require_all: Also fail if a stage of the gate cannot run here.
        replace: Remove the published versions where classes, shapes or recipe changed.
        discard_edits: Overwrite published files that somebody edited.
        dry_run: Publish nothing.
        on_event: Called with what is being done and with what is done.
        fields: More fields of the spec, where `model` is a name.

    Raises:
        TrtgenError: Any stage; nothing is published then.
    """
    from generator.pipeline import BuildOptions, build_repository

    options = BuildOptions(
        verify=verify,
        require_all=require_all,
        replace=replace,
        discard_edits=discard_edits,
        dry_run=dry_run,
        images=_path(images),
        on_event=on_event,
    )
    return build_repository(_spec(model, fields), Path(repository), options)


def export(
    model: ModelSpec | str,
    folder: Path | str,
    *,
    images: Path | str | None = None,
    on_event: OnEvent = ignore,
    **fields: Any,
) -> tuple[str, ...]:
    """Export a model for the host that builds its plan; return what the user should know.

    Args:
        model: As for `build`; its `target` must be given.
        folder: Where model.onnx, reference.npz and export.json go; it appears at once and complete.
        images: A folder of images to compare on.
        on_event: Called with what is being done and with what is done.
        fields: More fields of the spec, where `model` is a name.

    Raises:
        TrtgenError: The source cannot be loaded or exported.
    """
    from generator.exporting import export_folder

    return export_folder(_spec(model, fields), Path(folder), images=_path(images), on_event=on_event)


def verify(
    *names: str,
    repository: Path | str = _REPOSITORY,
    images: Path | str | None = None,
    labelled: Path | str | None = None,
    grpc_url: str | None = None,
    secrets: Path | str | None = None,
    on_event: OnEvent = ignore,
) -> list[GateReport]:
    """Prove that published models answer like their sources, all of them where no name is given.

    Args:
        names: Models of the repository.
        repository: The model repository.
        images: A folder of images to compare on; asks the source itself.
        labelled: A folder with one folder per class: also measures the accuracy of each stage.
        grpc_url: A running server; by default one is started.
        secrets: The folder of certificates for a server that asks for them.
        on_event: Called with what is being done.

    Raises:
        TrtgenError: A model is not there, or nothing can be compared. A stage that fails is in the report.
    """
    from generator.gate.published import verify_published

    return list(
        verify_published(
            Path(repository),
            names,
            images=_path(images),
            labelled=_path(labelled),
            grpc_url=grpc_url,
            secrets=_path(secrets),
            on_event=on_event,
        )
    )


def serve(repository: Path | str = _REPOSITORY, **options: Any) -> EmbeddedServer:
    """Return a tritonserver from pip for the repository; `with` starts and stops it.

    `options` are those of `generator.server.embedded.EmbeddedServer`.
    """
    from generator.server.embedded import EmbeddedServer

    return EmbeddedServer(Path(repository), **options)


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _spec(model: ModelSpec | str, fields: dict[str, Any]) -> ModelSpec:
    if isinstance(model, ModelSpec):
        if fields:
            msg = f"the fields {', '.join(fields)} are given beside a spec, which states everything"
            raise TypeError(msg)
        return resolve_paths(model, Path())
    return make_spec([model], **fields)[0]
