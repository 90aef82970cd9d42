"""The pieces of one file of a drop: lines, elements, an object, rows of a table, a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from obatchd.errors import ConfigError, DropRefused
from obatchd.jobs.formats.recognise import Format
from obatchd.jobs.formats.records import RecordMaker, RecordRules, passed_on_alone
from obatchd.jobs.formats.source import ByteSource, decoded
from obatchd.jobs.formats.split import UTF8_BOM, split_array, split_lines
from obatchd.jobs.formats.table import Row, split_rows
from obatchd.jobs.model import RequestRefused, without_packing


class Found(NamedTuple):
    """A piece of a drop."""

    number: int
    raw: bytes | None  # a line of a request file, or the fields that come back with the refusal; None: too long
    length: int
    where: str  # for its author
    refusal: RequestRefused | None = None


def find(source: ByteSource, name: str, form: Format, limit_bytes: int, rules: RecordRules) -> Iterator[Found]:
    """The pieces of the file ``name``; its records made into requests by ``rules``.

    Raises DropRefused where a table has no column that the rules need, Unreadable or TooMuch where the source raises
    it, after the pieces before.
    """
    if form is Format.TABLE:
        return _rows(source, name, limit_bytes, rules)
    if form is Format.TEXT:
        return _text(source, name, limit_bytes, rules)
    pieces = _pieces(source, form, limit_bytes)
    return _made(pieces, RecordMaker(rules, limit_bytes)) if rules.given else pieces


_SPLITTERS = {
    Format.LINES: (split_lines, "line"),
    Format.BATCH: (split_lines, "line"),
    Format.ARRAY: (split_array, "element"),
}


def _pieces(source: ByteSource, form: Format, limit: int) -> Iterator[Found]:
    if form is Format.OBJECT:
        content = source.whole(limit).removeprefix(UTF8_BOM).strip(b" \t\r\n")
        yield Found(1, content if len(content) <= limit else None, len(content), "the object")
        return
    split, word = _SPLITTERS[form]
    for number, offset, raw, length in split(source, limit):
        yield Found(number, raw, length, f"{word} {number}, byte offset {offset}")


def _made(pieces: Iterator[Found], maker: RecordMaker) -> Iterator[Found]:
    for piece in pieces:
        if piece.raw is None:
            yield piece
            continue
        try:
            yield piece._replace(raw=maker.of_json(piece.raw))
        except RequestRefused as refused:
            yield piece._replace(raw=maker.refused(msgspec.Raw(piece.raw)), refusal=refused)


def _text(source: ByteSource, name: str, limit: int, rules: RecordRules) -> Iterator[Found]:
    content = source.whole(limit).removeprefix(UTF8_BOM)
    if len(content) > limit:
        yield Found(1, None, len(content), "the text")
        return
    passed_on = {"file": name}
    refusal, raw = None, passed_on_alone(passed_on)
    try:
        record = {**passed_on, "text": content.decode("utf-8")}
        wanted = rules if rules.given else RecordRules(text_column="text")
        raw = RecordMaker(wanted, limit).request(record, passed_on)
    except UnicodeDecodeError as error:
        refusal = RequestRefused("invalid_utf8", f"its byte {error.start} is not UTF-8; save it as UTF-8")
    except RequestRefused as refused:
        refusal = refused
    yield Found(1, raw, len(content), "the text", refusal)


def _rows(source: ByteSource, name: str, limit: int, rules: RecordRules) -> Iterator[Found]:
    delimiter = b"\t" if without_packing(name.lower()).endswith(".tsv") else None
    rows = split_rows(source, limit, delimiter)
    header = next(rows, None)
    if header is None or header.cells is None:
        reason = header.problem if header else "there is none"
        raise DropRefused(f"{name} has no header that could be read: {reason}", code="columns")
    columns = _columns(header.cells, name)
    try:
        maker = RecordMaker(rules, limit, columns)
    except ConfigError as error:
        raise DropRefused(f"{name}: {error.message}", code=error.code) from None
    for row in rows:
        raw, refusal = _of_row(row, columns, maker)
        yield Found(row.number, raw, row.length, f"line {row.number}, byte offset {row.offset}", refusal)


def _columns(cells: list[bytes], name: str) -> list[str]:
    """Every column with a name of its own."""
    columns: dict[str, None] = {}
    counts: dict[str, int] = {}  # thousands of columns may have one name
    for number, cell in enumerate(cells, 1):
        try:
            column = given = cell.decode("utf-8").strip() or f"column_{number}"
        except UnicodeDecodeError:
            raise DropRefused(f"{name}: its header is not UTF-8; save it as UTF-8", code="encoding") from None
        while column in columns:
            counts[given] = counts.get(given, 1) + 1
            column = f"{given}_{counts[given]}"
        columns[column] = None
    return list(columns)


def _of_row(row: Row, columns: list[str], maker: RecordMaker) -> tuple[bytes, RequestRefused | None]:
    if row.cells is None:
        return passed_on_alone({}), RequestRefused("bad_row", row.problem)
    record = dict(zip(columns, [cell.decode("utf-8", "replace") for cell in row.cells], strict=False))
    if len(row.cells) != len(columns):
        reason = f"the row has {len(row.cells)} cells, the header has {len(columns)}"
        reason += "; put quotation marks around cells that hold the delimiter"
        return passed_on_alone(record), RequestRefused("bad_row", reason)  # its id may stand in another column
    try:
        for column, cell in zip(columns, row.cells, strict=True):
            if not cell.isascii():
                decoded(cell, column)
        return maker.request(record, record), None
    except RequestRefused as refused:
        return maker.refused(record), refused
