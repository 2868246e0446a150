"""`trtgen verify`: the gate on what is published, from the records and references in the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import RepositoryError
from generator.events import Doing, OnEvent, ignore
from generator.gate.labelled import check_recipe, measure_accuracies
from generator.gate.run import GateReport, run_gate
from generator.gate.served import check_server
from generator.gate.subject import Subject
from generator.images.reference import Reference, load_reference, make_reference
from generator.images.sets import read_images, read_labelled
from generator.repository import Layout, Record, find_records, name_option, read_record, recover
from generator.repository.layout import RECORD_FILE
from generator.spec.model import ModelSpec
from generator.spec.recipe import Recipe
from generator.tasks.head import read_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["verify_published"]


def verify_published(
    root: Path,
    names: Sequence[str],
    *,
    images: Path | None = None,
    labelled: Path | None = None,
    grpc_url: str | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[GateReport]:
    """Yield the gate's report for each model below `root` (all if `names` is empty).

    Raises:
        RepositoryError: No such model.
        ServerError: No server at `grpc_url`, or it does not serve one of the models.
        VerificationError: The images cannot be used.
    """
    recover(root)
    subjects = [(record, _subject(root, record)) for record in _find(root, names)]
    if grpc_url is not None:
        check_server(grpc_url, [subject.layout for _, subject in subjects], root)
    for record, subject in subjects:
        on_event(Doing(step=f"verifying {record.name}", part="the source's own answers" if images else ""))
        reference = _ask_source(record, images) if images else load_reference(root / subject.layout.reference)
        report = run_gate(subject, reference, grpc_url=grpc_url, on_event=on_event)
        if labelled is not None:
            on_event(Doing(step=f"verifying {record.name}", part="labelled images"))
            files = read_labelled(labelled, subject.labels)
            results = [*report.results, *measure_accuracies(subject, record, files, grpc_url)]
            if "recipe" in record.assumed:
                results = [result for result in results if result.stage != "recipe"]
                results.append(check_recipe(subject, record, files))
            report = GateReport(model=report.model, images=report.images, results=tuple(results))
        yield report


def _find(root: Path, names: Sequence[str]) -> list[Record]:
    records = find_records(root)
    if not names:
        if not records:
            msg = f"{root} holds no model made by trtgen"
            raise RepositoryError(msg, hint=f"trtgen build-repo demo{name_option(root)}")
        return records
    found = []
    for name in names:
        record = read_record(root, name)
        if record is None:
            msg = f"{root} holds no model {name!r}; it has {', '.join(r.name for r in records) or 'none'}"
            raise RepositoryError(msg, hint=f"trtgen build-repo {name}{name_option(root)}")
        found.append(record)
    return found


def _subject(root: Path, record: Record) -> Subject:
    try:
        spec = ModelSpec.model_validate(record.spec)
        recipe = Recipe.model_validate(record.recipe)
        labels = tuple(record.contract["labels"])
        layout = Layout.of(spec, max(spec.versions) if isinstance(spec.versions, list) else record.version)
        head = read_head(record.head, spec.activation, root / layout.reference)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{root / record.name / RECORD_FILE} does not say spec, recipe, labels and head"
        raise RepositoryError(msg, hint=f"move {root / record.name} and its members away and build it again") from error
    return Subject(
        repository=root,
        layout=layout,
        recipe=recipe,
        labels=labels,
        head=head,
        assumed=record.assumed,
        target=spec.target,
        precision=spec.precision,
        max_batch_size=spec.batch.max,
    )


def _ask_source(record: Record, folder: Path) -> Reference:
    from generator.sources import load_network

    return make_reference(load_network(ModelSpec.model_validate(record.spec)), read_images(folder))
