"""`trtgen detect-all`."""

from __future__ import annotations

from pathlib import Path

from generator.cli.bulk import (
    BatchOption,
    EndpointOption,
    EngineOption,
    InFlightOption,
    ModelOption,
    OutOption,
    RowsOption,
    SecretsOption,
    SourceArgument,
    TimeoutOption,
    WorkersOption,
    answer_all,
)
from generator.cli.options import RepositoryOption


def detect_all(
    source: SourceArgument,
    *,
    out: OutOption,
    model: ModelOption = None,
    repository: RepositoryOption = Path("model_repository"),
    batch: BatchOption = 32,
    workers: WorkersOption = None,
    rows_per_part: RowsOption = 20_000,
    endpoint: EndpointOption = None,
    in_flight: InFlightOption = 8,
    timeout: TimeoutOption = 120.0,
    secrets: SecretsOption = None,
    engine: EngineOption = "local",
) -> None:
    """Detect objects in all images of a folder, a bucket or a list with a model of the repository, into Parquet files.

    The same command goes on where it was broken off. An image that cannot be read is a row with an error.

    Example: trtgen detect-all photos/ --out results/
    """
    answer_all(
        source,
        out,
        task="detection",
        repository=repository,
        model=model,
        top=None,
        batch=batch,
        workers=workers,
        rows_per_part=rows_per_part,
        endpoint=endpoint,
        in_flight=in_flight,
        timeout_s=timeout,
        secrets=secrets,
        engine=engine,
    )
