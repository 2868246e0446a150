"""One reading: the images of reference.npz, asked of a running server and compared as the gate compares."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generator.errors import RepositoryError, ServerError, TrtgenError
from generator.files import hash_bytes
from generator.gate.client import GrpcAddress, ServedModel, check_server
from generator.gate.published import find_published, read_candidate
from generator.images.reference import Reference, load_reference
from generator.release.manifest import read_pulled
from generator.task import StageResult, find_task, not_proved

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.gate.candidate import Candidate
    from generator.repository import Record

# Few images at once, so that clients need not wait for them; several, so that a mix-up within a request shows.
_IMAGES_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a server is compared with: the model's version, and the release that the repository is.

    Without one, `release` is the beginning of the record's SHA-256.
    """

    release: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one model's images came to, once.

    `expected` is None where the repository cannot be read. `error` says why not everything was asked and answered;
    `results` are those of the stages up to there. `at_s` is when it was done, in seconds since 1970.
    """

    model: str
    expected: Expected | None
    results: Sequence[StageResult]
    error: TrtgenError | None
    at_s: float
    seconds: float

    @property
    def is_answered(self) -> bool:
        """Say whether everything was asked and answered, rightly or wrongly."""
        return self.error is None

    @property
    def unproved(self) -> tuple[StageResult, ...]:
        """The stages that do not prove anything, or the contrary."""
        return tuple(result for result in self.results if result.status != "proved")

    @property
    def is_proved(self) -> bool:
        """Say whether what is served answers within the limits of every stage."""
        return self.is_answered and not self.unproved

    @property
    def agreement(self) -> float | None:
        """The share of images, 0 to 1, that are answered as the source answers them; None where nothing tells it.

        It is 0 where the answers have not even the form or the labels of the proved ones.
        """
        if self.error is not None:
            return None
        last = self.results[-1]  # what clients call
        return 0.0 if last.agreement is None and last.status == "failed" else last.agreement


def list_models(root: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the published models that are to be watched, all if `names` is empty.

    Raises:
        RepositoryError: There is none of this name, or a record cannot be read.
    """
    return [record.name for record in find_published(root, names)]


def ask_model(root: Path, name: str, address: GrpcAddress, *, timeout_s: float) -> Reading:
    """Ask the server at `address` the images of the model `name`, one request after the other.

    What goes wrong is part of the reading. Nothing is written below `root`, and neither its graph nor its plan is read.

    Args:
        root: The model repository, or as much of it as records, references and configurations.
        name: What clients call.
        address: The server's.
        timeout_s: How long it may take for one request.
    """
    start_s = time.monotonic()
    results: list[StageResult] = []
    expected: Expected | None = None
    error: TrtgenError | None = None
    try:
        (record,) = find_published(root, [name])
        expected = Expected(release=_find_release(root, record), version=record.version)
        candidate = read_candidate(root, record, read_graph=False)
        _ask(candidate, address, timeout_s, results)
    except TrtgenError as caught:
        error = caught
    except (OSError, ValueError) as caught:  # such as a network's file system that is away
        error = RepositoryError(f"{root} cannot be read: {caught}", hint="look at the file system, and at this file")
    seconds = time.monotonic() - start_s
    return Reading(model=name, expected=expected, results=results, error=error, at_s=time.time(), seconds=seconds)


def _ask(candidate: Candidate, address: GrpcAddress, timeout_s: float, results: list[StageResult]) -> None:
    """Append each stage's result; ServerError where the server does not answer."""
    layout = candidate.layout
    reference = _shuffle(load_reference(candidate.repository / layout.reference))
    stages = [stage for stage in find_task(candidate.spec.task).make_stages(candidate, reference) if stage.watched]
    if not stages:
        msg = f"{candidate.spec.name}: nothing of the task {candidate.spec.task!r} can be watched"
        raise RepositoryError(msg, hint="have the task mark what only needs the server: Stage(watched=True)")
    check_server(address, [layout], candidate.repository, timeout_s=timeout_s)
    batch = min(_IMAGES_AT_ONCE, candidate.spec.batch.max)
    with ServedModel(address, layout, max_batch_size=batch, timeout_s=timeout_s) as served:
        results.append(_check_versions(served, layout.version))
        for stage in stages:
            try:
                results.append(stage.run(served))
            except ServerError:
                raise
            except TrtgenError as error:
                results.append(not_proved(stage.name, f"{error.message} ({error.hint})"))
            except ModuleNotFoundError as error:  # no stage needs more for what most servers answer
                results.append(not_proved(stage.name, f"it needs the package {error.name}, which is not installed"))
            except (LookupError, TypeError, ValueError) as error:  # of a form that no model of ours answers in
                reason = f"the answer cannot be compared: {type(error).__name__}: {error}"
                results.append(StageResult(stage=stage.name, status="failed", reason=reason))


def _shuffle(reference: Reference) -> Reference:
    """Return the images in another order each time: a server with a response cache has not seen such a request yet."""
    import numpy as np

    order = np.random.default_rng().permutation(len(reference.names))
    return Reference(
        names=tuple(reference.names[index] for index in order),
        files=tuple(reference.files[index] for index in order),
        pixels=reference.pixels[order],
        answers={name: rows[order] for name, rows in reference.answers.items()},
    )


def _check_versions(served: ServedModel, version: int) -> StageResult:
    """The version that was proved is the one that answers: another may be within the limits, too."""
    stage = "served version"
    found = served.find_versions()
    if wrong := {model: one for model, one in found.items() if one != version}:
        told = ", ".join(f"version {one} of {model}" for model, one in wrong.items())
        reason = f"{told} is served, version {version} was expected"
        cause = "another release, or the server has not loaded the published one yet"
        return StageResult(stage=stage, status="failed", reason=reason, cause=cause)
    return StageResult(stage=stage, status="proved", measured=str(version))


def _find_release(root: Path, record: Record) -> str:
    """Return the id of the release that `root` was pulled as, else what tells this record from others.

    Raises:
        ReleaseError: The release's manifest cannot be read.
    """
    pulled = read_pulled(root)
    return hash_bytes(record.to_json().encode())[:12] if pulled is None else pulled.release
