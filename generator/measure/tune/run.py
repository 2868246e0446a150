"""A published model and what is wanted of it become a search: everything is checked before the first server starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.decoding import choose_decode
from generator.errors import PerfError, SpecError
from generator.measure.about import describe_run
from generator.measure.perf import analyzer, served
from generator.measure.perf.images import collect_images
from generator.measure.results import check_folder
from generator.measure.tune.journal import JOURNAL_FILE, Journal
from generator.measure.tune.knobs import draw_candidates, find_knobs
from generator.measure.tune.served import Candidates
from generator.measure.tune.spec_file import make_text
from generator.repository.edits import check_edits
from generator.repository.fingerprint import fingerprint
from generator.repository.record import find_records
from generator.server.launch import open_repository
from generator.sources import describe_source
from generator.spec.file import load_spec
from generator.spec.model import usable_cores
from generator.target import choose_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.measure.tune.knobs import Knob, Settings
    from generator.measure.tune.search import Schedule
    from generator.measure.tune.trial import Goal
    from generator.repository import Record
    from generator.spec.model import ModelSpec

_FORMAT = 1  # raised when the meaning of a journal changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to tune, for what, and how much of it to measure.

    `spec` is the file that the model was built from, None for what its record says. `folder` is where journal and
    results go, `written` where the spec with the chosen fields does.
    """

    repository: Path
    name: str | None
    spec: Path | None
    goal: Goal
    schedule: Schedule
    candidates: int
    seed: int
    batch_size: int
    images: Path | None
    max_spread_percent: float
    timeout_s: float
    folder: Path
    written: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """A search that can start: `drawn` are its candidates, the spec as it is first."""

    spec: ModelSpec
    knobs: Sequence[Knob]
    drawn: Sequence[Settings]
    candidates: Candidates
    journal: Journal
    about: dict[str, Any]
    written: Path

    def make_spec(self, request: Request, settings: Settings) -> str:
        """Return the text of the spec with these fields."""
        return make_text(self.spec, request.spec, settings, self.written)


def prepare(request: Request) -> Tuning:
    """Check everything that would fail later.

    Raises:
        TrtgenError: No such model, a spec of another one, edited files, no perf_analyzer, nothing to try, an objective
            that cannot be measured here, a file in the way, or the journal of another run.
    """
    goal = request.goal
    if goal.objective == "energy":
        _check_energy()
    root = open_repository(request.repository)
    record = _find_record(root, request.name)
    check_edits(root, record, removing=False)
    asked = _read_spec(request.spec or root / record.name / "trtgen.json", record.name)
    spec, _ = choose_decode(choose_target(asked)[0], lambda one: describe_source(one)[0], record)
    inputs = fingerprint(spec)
    if request.spec is not None and inputs["artifact"] != record.inputs["artifact"]:
        raise SpecError(
            f"{record.name} in {root} was built from something else than {request.spec}, or with other packages",
            hint="build it first",
            command=("build-repo",),
            fields={"spec": request.spec, "repository": request.repository},
        )
    served.check_batch_size(served.read_repository(root, record.name)[:1], request.batch_size)
    check_folder(request.folder)
    program = analyzer.find_analyzer()
    version = analyzer.check_analyzer(program)
    knobs = find_knobs(spec, cores=usable_cores(), p99_ms=goal.p99_ms)
    drawn = draw_candidates(spec, knobs, count=request.candidates, seed=request.seed)
    if len(drawn) == 1:
        msg = f"there is nothing to tune in {record.name}: config of its spec states it all"
        raise SpecError(msg, hint="leave instance_group, dynamic_batching and optimization out of config")
    images = collect_images(request.images)
    about = describe_run(perf_analyzer=version)
    measured = {
        "format": _FORMAT,
        "repository": str(root),
        "model": f"{record.name} version {record.version}",
        "spec": inputs,
        "load": {"batch_size": request.batch_size, "images": images.describe()},
        "concurrencies": list(request.schedule.concurrencies or ()),
        "requests": request.schedule.requests,
        "objective": goal.objective,
        "p99_ms": goal.p99_ms,
        "seed": request.seed,
        "candidates": len(drawn),
        "machine": {key: about["machine"][key] for key in ("processor", "cores", "gpus")},
    }
    written = _choose_written(request, record)
    make_text(asked, request.spec, drawn[1], written)  # can it be written at all?
    return Tuning(
        spec=asked,
        knobs=knobs,
        drawn=drawn,
        candidates=Candidates(
            root=root,
            record=record,
            spec=spec,
            folder=request.folder.absolute() / "repository",
            images=images,
            analyzer=program,
            batch_size=request.batch_size,
            max_spread_percent=request.max_spread_percent,
            timeout_s=request.timeout_s,
        ),
        journal=Journal(request.folder / JOURNAL_FILE, measured),
        about={**about, "tune": measured},
        written=written,
    )


def _check_energy() -> None:
    from generator.gpu import why_no_gpu

    if reason := why_no_gpu():
        raise PerfError(
            f"the objective energy needs a GPU, whose power is measured: {reason}",
            hint="choose another objective",
            fields={"objective": "throughput"},
        )


def _find_record(root: Path, name: str | None) -> Record:
    """Return the record of the model `name`, or of the one that there is."""
    records = {record.name: record for record in find_records(root)}
    if name is None and len(records) == 1:
        (name,) = records
    if name is None or name not in records:
        raise SpecError(
            f"{root} holds {', '.join(records) or 'no model of trtgen'}; {name or 'one model'} was to be tuned",
            hint="name one of them",
        )
    if records[name].plans:
        msg = f"{name} of {root} has plans for several GPUs, and settings are found for one"
        raise SpecError(msg, hint="tune it in the repository that it was built in, and merge again")
    return records[name]


def _read_spec(path: Path, name: str) -> ModelSpec:
    found = {spec.name: spec for spec in load_spec(path)}
    if name not in found:
        raise SpecError(f"{path} describes {', '.join(found)}, and not {name}", hint="give the file it was built from")
    return found[name]


def _choose_written(request: Request, record: Record) -> Path:
    """Return where the spec will be written: beside the file that it is a copy of, else among the results.

    Raises:
        SpecError: There is a file.
    """
    beside = None if request.spec is None else request.spec.with_name(f"{request.spec.stem}.tuned.yaml")
    path = request.written or beside or request.folder / f"{record.name}.yaml"
    if path.exists():
        raise SpecError(
            f"{path} exists already, and is left as it is", hint="move it away, or name another", fields={"write": None}
        )
    return path
