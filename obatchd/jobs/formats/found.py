"""The pieces of one file of a drop: lines, elements, an object, rows of a table, a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from obatchd.errors import ConfigError, DropRefused
from obatchd.jobs.formats.recognise import Format
from obatchd.jobs.formats.records import RecordMaker, RecordRules, passed_on_alone
from obatchd.jobs.formats.shapes import as_request, requests_in
from obatchd.jobs.formats.source import ByteSource, TooMuch, Unreadable, decoded
from obatchd.jobs.formats.split import UTF8_BOM, split_array, split_lines, split_objects
from obatchd.jobs.formats.table import Row, split_rows
from obatchd.jobs.model import RequestRefused, without_packing
from obatchd.words import counted


class Found(NamedTuple):
    """A piece of a drop."""

    number: int
    raw: bytes | None  # a line of a request file, or the fields that come back with the refusal; None: too long
    length: int
    where: str  # for its author
    refusal: RequestRefused | None = None
    alone: bool = False  # in its file: then the file's name can be its id
    ends: bytes = b""  # of one that is too long: its id may stand there


def find(source: ByteSource, name: str, form: Format, limit_bytes: int, rules: RecordRules) -> Iterator[Found]:
    """The pieces of the file ``name``; its records made into requests by ``rules``.

    Raises DropRefused where a table has no column that the rules need, Unreadable or TooMuch where the source raises
    it, after the pieces before.
    """
    if form is Format.TABLE:
        return _rows(source, name, limit_bytes, rules)
    if form is Format.TEXT:
        return (_lines if rules.lines else _text)(source, name, limit_bytes, rules)
    pieces = _pieces(source, form, limit_bytes)
    return _made(pieces, RecordMaker(rules, limit_bytes)) if rules.given else pieces


_SPLITTERS = {
    Format.LINES: (split_lines, "line"),
    Format.BATCH: (split_lines, "line"),
    Format.ARRAY: (split_array, "element"),
    Format.OBJECTS: (split_objects, "object"),
}


def _pieces(source: ByteSource, form: Format, limit: int) -> Iterator[Found]:
    if form is Format.OBJECT:
        yield from _object(source.whole(limit).removeprefix(UTF8_BOM).strip(b" \t\r\n"), limit)
        return
    split, word = _SPLITTERS[form]
    for number, _, raw, length, ends in split(source, limit):
        if raw is not None:
            raw = as_request(raw) if form is Format.ARRAY else raw.removesuffix(b",")
        yield Found(number, raw, length, f"{word} {number}", ends=ends)


def _object(content: bytes, limit: int) -> Iterator[Found]:
    """One request, or those of a list in it."""
    if len(content) > limit:
        yield Found(1, None, len(content), "the object", alone=True, ends=content)
        return
    try:
        requests = requests_in(content)
    except RequestRefused as refused:
        yield Found(1, passed_on_alone({}), len(content), "the object", refused, alone=True)
        return
    if requests is None:
        yield Found(1, content, len(content), "the object", alone=True)
        return
    for number, (where, raw) in enumerate(requests, 1):
        yield Found(number, raw, len(raw), where)


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
        yield Found(1, None, len(content), "the text", alone=True)
        return
    notes, count = [], sum(1 for line in content.split(b"\n") if line.strip())
    if rules.lines is None and not rules.given and count > 1:
        notes = [f"the text has {counted(count, 'line')} and is one prompt; --lines makes each line a prompt"]
    yield _of_text(content, name, limit, rules, notes)._replace(where="the text", alone=True)


def _lines(source: ByteSource, name: str, limit: int, rules: RecordRules) -> Iterator[Found]:
    """The lines of a text, each a prompt."""
    for number, _, raw, length, _ in split_lines(source, limit):
        found = Found(number, None, length, "") if raw is None else _of_text(raw, name, limit, rules, [])
        yield found._replace(number=number, where=f"line {number}")


def _of_text(content: bytes, name: str, limit: int, rules: RecordRules, notes: list[str]) -> Found:
    passed_on = {"file": name}
    refusal, raw = None, passed_on_alone(passed_on)
    try:
        record = {**passed_on, "text": decoded(content)}
        wanted = rules if rules.given else RecordRules(text_column="text")
        raw = RecordMaker(wanted, limit).request(record, passed_on, notes)
    except RequestRefused as refused:
        wrong = refused.code == "invalid_utf8"
        refusal = RequestRefused(refused.code, f"{refused.reason}; save it as UTF-8") if wrong else refused
    return Found(1, raw, len(content), "", refusal)


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
    kinds: set[bool] = set()  # of rows so far: whether they are short
    for row, last in _with_last(rows):
        raw, refusal = _of_row(row, columns, maker)
        short = row.cells is not None and len(row.cells) < len(columns)
        if short and last and kinds == {False} and refusal is None:
            reason = f"{_uneven(row, columns)}; it is the last one, and all before it are whole: it may be cut off"
            raw, refusal = maker.refused_row(_record(row, columns)), RequestRefused("bad_row", reason)
        kinds.add(short)
        yield Found(row.number, raw, row.length, f"line {row.number}", refusal)


def _with_last(rows: Iterator[Row]) -> Iterator[tuple[Row, bool]]:
    """Rows, and whether each is the last one that can be read."""
    row = next(rows, None)
    while row is not None:
        try:
            following = next(rows, None)
        except (Unreadable, TooMuch):
            yield row, True
            raise
        yield row, following is None
        row = following


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
    record = _record(row, columns)
    if row.cells is None:
        return maker.refused_row(record), RequestRefused("bad_row", row.problem)
    uneven = _uneven(row, columns)
    if any(cell.strip() for cell in row.cells[len(columns) :]):
        reason = f"{uneven}; put quotation marks around cells that hold the delimiter"
        return maker.refused_row(record), RequestRefused("bad_row", reason)
    short = len(row.cells) < len(columns)
    try:
        for column, cell in zip(columns, row.cells, strict=False):
            if not cell.isascii():
                decoded(cell, column)
        return maker.request(record, record, [f"{uneven}: the last ones are taken for empty"] if short else []), None
    except RequestRefused as refused:
        if short and refused.code == "missing_field":
            return maker.refused_row(record), RequestRefused("bad_row", f"{uneven}, and the prompt is not among them")
        return maker.refused(record), refused


def _record(row: Row, columns: list[str]) -> dict[str, str]:
    """The cells by column; of a row that cannot be read, the first one."""
    cells = [row.first] if row.cells is None else row.cells
    return dict(zip(columns, [cell.decode("utf-8", "replace") for cell in cells], strict=False))


def _uneven(row: Row, columns: list[str]) -> str:
    return f"the row has {counted(len(row.cells or ()), 'cell')}, the header has {len(columns)}"
