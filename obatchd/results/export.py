"""Writes rows as text, JSON, JSON Lines, CSV or Parquet, in constant memory."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import starmap
from typing import Any, BinaryIO, Literal, Protocol, TextIO

from obatchd.errors import ResultsError
from obatchd.installation import lacks
from obatchd.results.answers import Parsed, parse_answer
from obatchd.results.arrow import arrow_batches
from obatchd.results.rows import Record, Row
from obatchd.results.table import Column, as_cell, cells, columns_of
from obatchd.results.tally import DOUBTS, Tally
from obatchd.results.workbook import Workbook

Format = Literal["text", "json", "jsonl", "csv", "parquet", "xlsx"]
FORMATS: tuple[Format, ...] = ("text", "json", "jsonl", "csv", "parquet", "xlsx")
BINARY = ("parquet", "xlsx")  # nothing for a terminal
ONLY = (*DOUBTS, "failed")  # what an export may be limited to
_Rows = Iterator[tuple[Row, Parsed]]
_VECTORS = {"embedding", "embeddings"}
# Characters that command a terminal; all but tab and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Where str.splitlines and others end a line, beside the line feed; JSON has them in strings alone.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def data_of(row: Row) -> Parsed:
    """The data of a success: as the daemon checked and recorded it, else as parsed here."""
    if row.succeeded and not _VECTORS & row.record.keys():
        if "data" in row.record:
            return Parsed(row.record["data"])
        if isinstance(response := row.record.get("response"), str):
            return parse_answer(response)
    return Parsed(problem=None)


class Rows(Protocol):
    """What has rows that can be read more than once."""

    def rows(self) -> Iterator[Row]: ...


def export(
    source: Rows,
    form: Format,
    target: BinaryIO,
    *,
    data_only: bool = False,
    only: str | None = None,
    at_once: bool = False,
) -> Tally:
    """Write all rows of ``source`` to ``target``; returns their count.

    Args:
        only: write no others than these of :data:`ONLY`; all are counted.
        at_once: pass each row on as soon as it is there, which takes longer.
        data_only: for json and jsonl: of each success only its data; other answers are only in the tally.

    Raises:
        ResultsError: Parquet or a workbook is asked for and its library is not installed, or it has no room.
    """
    tally = Tally(data_only=data_only)
    rows = _counted(source, tally, only)
    spread = form in ("csv", *BINARY)  # over columns that have to be known first
    columns = []
    if spread:
        columns = columns_of((row, data_of(row).data) for row in source.rows() if _wanted(row, only))
    if form == "parquet":
        _write_parquet(rows, columns, target)
        return tally
    if form == "xlsx":
        book = Workbook(columns)
        book.write((cells(row, parsed.data, columns) for row, parsed in rows), target)
        tally.cut = book.cut
        return tally
    with writing_text(target, at_once=at_once) as text:
        if form == "text":
            _write_text(rows, text)
        elif form == "csv":
            writer = csv.writer(text)
            writer.writerow(as_cell(column.heading) for column in columns)
            writer.writerows(map(as_cell, cells(row, parsed.data, columns)) for row, parsed in rows)
        elif form == "json":
            _write_json(_documents(rows, data_only), text)
        else:
            text.writelines(f"{_json(document)}\n" for document in _documents(rows, data_only))
    return tally


def count_rows(source: Rows) -> Tally:
    """The count of all rows alone."""
    tally = Tally()
    for _ in _counted(source, tally, None):
        pass
    return tally


@contextlib.contextmanager
def writing_text(target: BinaryIO, *, at_once: bool = False) -> Iterator[TextIO]:
    """``target`` for text, which it gets ``at_once`` or in blocks; it stays open, for it is the caller's to close."""
    text = io.TextIOWrapper(target, encoding="utf-8", errors="backslashreplace", newline="", write_through=at_once)
    try:
        yield text
        text.flush()
    finally:
        text.detach()


def _counted(source: Rows, tally: Tally, only: str | None) -> _Rows:
    for row in source.rows():
        parsed = data_of(row)
        tally.add(row, parsed.problem)
        if _wanted(row, only):
            yield row, parsed


def _wanted(row: Row, only: str | None) -> bool:
    return only is None or (not row.succeeded if only == "failed" else row.succeeded and bool(row.record.get(only)))


def document(row: Row, parsed: Parsed) -> Record:
    """One row as JSON."""
    return {**({"file": row.file} if row.file else {}), **row.record, **({"data": parsed.data} if parsed.found else {})}


def _documents(rows: _Rows, data_only: bool) -> Iterator[Any]:
    if data_only:
        return (parsed.data for _, parsed in rows if parsed.found)
    return starmap(document, rows)


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False).translate(_LINE_ENDS)


def _write_json(documents: Iterator[Any], target: TextIO) -> None:
    """One array, an element a line."""
    opening = "[\n"
    for document in documents:
        target.write(opening + _json(document))
        opening = ",\n"
    target.write("[]\n" if opening == "[\n" else "\n]\n")


def _write_text(rows: _Rows, target: TextIO) -> None:
    for row, _ in rows:
        parts = [f"{'─' * 72}\n{row.name}{f'  ({row.file})' if row.file and row.file != row.name else ''}"]
        if row.record.get("prompt"):
            parts.append(f"Prompt: {row.record['prompt']}")
        answer = row.record.get("response") or next((row.record[key] for key in _VECTORS & row.record.keys()), "")
        answer = answer if row.succeeded else row.failure
        choices = [f"[{choice.get('index')}] {choice['response']}" for choice in row.choices]
        parts += choices or [answer if isinstance(answer, str) else _json(answer)]
        target.writelines(f"{_CONTROL.sub('', part)}\n\n" for part in parts)


def _write_parquet(rows: _Rows, columns: list[Column], target: BinaryIO) -> None:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ResultsError(lacks("pyarrow", "Parquet"), code="no_pyarrow") from None
    schema, batches = arrow_batches(rows, columns)
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
