"""Answers as Arrow tables: the columns of the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import MissingDependencyError

if TYPE_CHECKING:
    from generator.bulk.images import Batch


def import_pyarrow() -> Any:
    """Return pyarrow.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", extra="bulk", why="it writes the results as Parquet") from error
    return pa


def make_schema(columns: list[str]) -> Any:
    """Return the Arrow schema of results that have these of the columns item, path, classes, detections and error.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pa = import_pyarrow()
    row = [("label", pa.string()), ("index", pa.int32()), ("score", pa.float32())]
    types = {
        "item": pa.int64(),
        "path": pa.string(),
        "classes": pa.list_(pa.struct(row)),
        "detections": pa.list_(pa.struct([*row, ("box", pa.list_(pa.float32()))])),
        "error": pa.string(),
    }
    return pa.schema([(name, kind) for name, kind in types.items() if name in columns])


def make_table(answers: Batch) -> Any:
    """Return what a step answers as an Arrow table, columns in the schema's order.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    pa = import_pyarrow()
    schema = make_schema(list(answers))
    # surrogates stand for bytes of a file's name that are no UTF-8, which Arrow's text must be
    values = {**answers, "path": [_as_text(path) for path in answers["path"]]}
    return pa.table({field.name: pa.array(values[field.name], field.type) for field in schema}, schema=schema)


def _as_text(path: str) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()
