"""A candidate served: the published versions with its configurations, a real tritonserver, perf_analyzer's load."""

from __future__ import annotations

import contextlib
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from generator.errors import PerfError, RepositoryError, ServerError
from generator.measure.perf import served, sweep
from generator.measure.perf.measurement import Unsettled
from generator.measure.tune.knobs import apply_settings
from generator.measure.tune.trial import Figure
from generator.repository import Layout
from generator.repository.stage import link, read_published, stage_files, stage_listed_versions, take_over
from generator.server.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from generator.artifact import Artifact
    from generator.measure.perf.images import RequestImages
    from generator.measure.tune.knobs import Settings
    from generator.repository import Record
    from generator.spec.model import ModelSpec

_NOTICED_S = 1.5  # what it takes to see that a process of the server has ended


class Probe(Protocol):
    """Measures one candidate."""

    def __call__(self, concurrency: int, requests: int) -> Figure:
        """Return what so many requests in flight come to, in windows of `requests`; TrtgenError if it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The candidates of one published model.

    `spec` is that of `record`, or one with the same graph and plan. `folder` is where a candidate's repository is made
    and removed again; on the file system of `root` it takes no space. The log of the last server lies beside it.
    """

    root: Path
    record: Record
    spec: ModelSpec
    folder: Path
    images: RequestImages
    analyzer: Path
    batch_size: int
    max_spread_percent: float
    timeout_s: float

    @contextlib.contextmanager
    def open(self, settings: Settings) -> Iterator[Probe]:
        """Serve the candidate for as long as the block runs.

        Raises:
            TrtgenError: The spec does not take the settings, or the server does not start with them.
        """
        try:
            stage_candidate(apply_settings(self.spec, settings), self.root, self.folder, self.record)
            with EmbeddedServer(self.folder, log_path=self.folder.with_name("tritonserver.log")) as server:
                why_ended = _watch(server)
                try:
                    yield lambda concurrency, requests: self._measure(server, why_ended, concurrency, requests)
                finally:
                    server.stop(0)  # nothing is under way; in order it takes a second for each process
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _measure(
        self, server: EmbeddedServer, why_ended: Callable[[], ServerError | None], concurrency: int, requests: int
    ) -> Figure:
        load = sweep.Load(
            analyzer=self.analyzer,
            protocol="grpc",
            url=server.grpc_url,
            concurrencies=(concurrency,),
            requests_per_window=max(requests, 2 * concurrency),
            timeout_s=self.timeout_s,
            batch_size=self.batch_size,
            shared_memory="none",
            metrics_url=server.metrics_url,
            max_spread_percent=self.max_spread_percent,
        )
        try:
            _, models = served.read_models("grpc", server.grpc_url, self.spec.name)
            (found,) = sweep.measure(models[:1], self.images, load)
        except PerfError as error:
            if ended := why_ended():
                raise ended from error
            raise
        if isinstance(found, Unsettled):
            raise PerfError(found.problem, hint="stop what else keeps the machine busy, or allow a larger spread")
        return Figure(
            infer_per_s=found.infer_per_s,
            p99_ms=found.p99_ms,
            images_per_joule=found.gpu.images_per_joule,
            shares={member.model: member.share for member in found.members},
        )


def stage_candidate(spec: ModelSpec, root: Path, folder: Path, record: Record) -> None:
    """Make a repository that serves the published version with the configurations of `spec`.

    Raises:
        RepositoryError: The published version is gone, or the folder cannot be written.
    """
    layout = Layout.of(spec, record.version)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
        if (spec.layout or "ensemble", spec.decode) == _read_code(record):
            artifact = take_over(root, folder, record, spec, layout)
        else:
            artifact = _link_graph(root, folder, record, spec, layout)
        stage_files(spec, folder, layout, artifact, dict(record.inputs))
        stage_listed_versions(spec, root, folder, layout)
    except OSError as error:  # shutil.Error is one
        msg = f"a copy of {record.name} cannot be made in {folder}: {error.strerror or error}"
        raise RepositoryError(msg, hint="free disk space there; is the model still in its repository?") from error


def _read_code(record: Record) -> tuple[str, str]:
    """Return what the code in the published version directories follows from: layout and decode."""
    return record.spec.get("layout", "ensemble"), record.spec.get("decode", "cpu")


def _link_graph(root: Path, folder: Path, record: Record, spec: ModelSpec, layout: Layout) -> Artifact:
    """Stage graph and plan alone, for members that have other code than the published ones."""
    source = root / Layout.of_record(record).network / str(record.version)
    target = (folder / layout.onnx).parent
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".py" and path.name != "version.json":
            link(str(path), str(target / path.name))
    return read_published(folder, record, spec, layout)


def _watch(server: EmbeddedServer) -> Callable[[], ServerError | None]:
    """Return what says why the server ended, or one of its processes; None while all run."""
    found: list[ServerError] = []

    def wait() -> None:
        try:
            server.wait()
        except ServerError as error:
            found.append(error)

    thread = threading.Thread(target=wait, name="server", daemon=True)
    thread.start()

    def why_ended() -> ServerError | None:
        thread.join(_NOTICED_S)
        return found[0] if found else None

    return why_ended
