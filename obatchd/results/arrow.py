"""Rows as batches of Arrow, for Parquet and for programs. Imports pyarrow only when it is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from obatchd.results.answers import Parsed
from obatchd.results.rows import Row
from obatchd.results.table import Column, as_text, cells

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 5000


def arrow_batches(
    rows: Iterator[tuple[Row, Parsed]], columns: Sequence[Column]
) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    """The schema of ``columns``, and the rows in batches, made as they are asked for.

    Raises:
        ImportError: pyarrow is not installed.
    """
    import pyarrow

    types = {"bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    types["numbers"] = pyarrow.list_(pyarrow.float64())
    schema = pyarrow.schema([(column.heading, types.get(column.kind, pyarrow.string())) for column in columns])

    def batches() -> Iterator[pyarrow.RecordBatch]:
        while batch := list(islice(rows, _BATCH_ROWS)):
            table = [cells(row, parsed.data, columns) for row, parsed in batch]
            arrays = [
                pyarrow.array([_arrow_value(cell, column) for cell in values], type=field.type)
                for values, column, field in zip(zip(*table, strict=True), columns, schema, strict=True)
            ]
            yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    return schema, batches()


def _arrow_value(value: Any, column: Column) -> Any:
    if value is None or column.kind in ("bool", "int"):
        return value
    if column.kind == "float":
        return float(value)
    if column.kind == "numbers":
        return [float(number) for number in value]
    return as_text(value).encode("utf-8", "replace").decode()  # lone surrogates have no place in Arrow
