"""Answers as a data frame of pandas or a table of Arrow; neither library is needed for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obatchd.errors import ResultsError
from obatchd.installation import lacks
from obatchd.results.arrow import arrow_batches
from obatchd.results.export import Rows, data_of
from obatchd.results.table import Column, cells, columns_of

if TYPE_CHECKING:
    import pandas
    import pyarrow

# Kinds of columns that pandas has a type for in which a value may be missing.
_NULLABLE = {"bool": "boolean", "int": "Int64"}


def as_pandas(source: Rows) -> pandas.DataFrame:
    """Every row, with the columns that an export has."""
    try:
        import pandas
    except ImportError:
        raise ResultsError(lacks("pandas", "A data frame"), code="no_pandas") from None
    columns = _columns(source)
    values: list[list[Any]] = [[] for _ in columns]
    for row in source.rows():
        for column, cell in zip(values, cells(row, data_of(row).data, columns), strict=True):
            column.append(cell)
    made = {column.heading: _series(pandas, column, cells) for column, cells in zip(columns, values, strict=True)}
    return pandas.DataFrame(made)


def as_arrow(source: Rows) -> pyarrow.Table:
    """The same as a table of Arrow; what is neither number, text nor truth value is JSON."""
    try:
        import pyarrow
    except ImportError:
        raise ResultsError(lacks("pyarrow", "A table of Arrow"), code="no_pyarrow") from None
    schema, batches = arrow_batches(((row, data_of(row)) for row in source.rows()), _columns(source))
    return pyarrow.Table.from_batches(batches, schema)


def _columns(source: Rows) -> list[Column]:
    return columns_of((row, data_of(row).data) for row in source.rows())


def _series(pandas: Any, column: Column, values: Sequence[Any]) -> Any:
    kind = _NULLABLE.get(column.kind) if None in values else None
    return pandas.Series(values, dtype=kind or ("object" if column.kind in ("numbers", "json") else None))
