"""Tables in files of their own kind, made into those that we read. Called in the confined child."""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

import msgspec

from obatchd.confined import Send
from obatchd.errors import DropRefused
from obatchd.jobs.containers.archives import checked_members
from obatchd.jobs.containers.limits import RATIO, RATIO_FROM_BYTES, bad_member, bomb
from obatchd.jobs.containers.messages import Block, Member, Note
from obatchd.jobs.containers.streams import BLOCK_BYTES

_ROWS = 1_048_576  # of a sheet; ECMA-376, part 1, 18.3.1.73
_LOOK_ROWS = 1000
_PARQUET_ROWS = 256  # at a time
# No part has a document type (ECMA-376, part 2, 9.1.4): all entities, and so all bombs of them, are declared in one.
_DECLARATIONS = tuple("<!DOCTYPE".encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be"))
_MEDIA = "xl/media/"  # pictures, which may be of XML
_LONGEST = max(map(len, _DECLARATIONS))


def workbook(file: BinaryIO, name: str, send: Send) -> None:
    """The first sheet with something in it, as a table of comma-separated values, row by row."""
    import openpyxl

    _check_parts(file)
    book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
    sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible" and _has_content(sheet)]
    if not sheets:
        raise DropRefused("it is empty: no sheet of it has a row", code="empty")
    if more := ", ".join(f'"{sheet.title}"' for sheet in sheets[1:4]):
        read = f'Only the sheet "{sheets[0].title}" of the workbook is read'
        send(Note(f"{read}, not {more}: save each as a file of its own."))
    send(Member())
    _send_lines(_rows(sheets[0]), send)


def _check_parts(file: BinaryIO) -> None:
    """Raise DropRefused where a part has a document type, or the workbook is a bomb or something else."""
    with zipfile.ZipFile(file) as parts:
        members = checked_members(parts)
        if not any(info.filename.startswith("xl/") and info.filename.endswith(".xml") for info in members):
            raise DropRefused("it is no workbook with sheets of XML; save it as .xlsx", code="bad_archive")
        packed, seen = sum(info.compress_size for info in members), 0
        for info in members:
            with parts.open(info) as part:
                end = b""
                while block := part.read(BLOCK_BYTES):
                    seen += len(block)
                    if seen > RATIO_FROM_BYTES and seen > RATIO * packed:
                        raise bomb()
                    block, end = end + block, block[-_LONGEST:]
                    if not info.filename.startswith(_MEDIA) and any(mark in block for mark in _DECLARATIONS):
                        problem = "declares XML entities, as no program that makes workbooks does"
                        raise bad_member(info.filename.encode(), problem)
    file.seek(0)


def _has_content(sheet: Any) -> bool:
    sheet.reset_dimensions()  # they may be wrong, and rows would be filled up to them
    return any(cell is not None for row in islice(sheet.iter_rows(values_only=True), _LOOK_ROWS) for cell in row)


def _rows(sheet: Any) -> Iterator[bytes]:
    """The lines of the table; a row without a value is an empty line, so that rows keep their numbers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    width = 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        if number > _ROWS:
            raise DropRefused(f"it has a row behind row {_ROWS}, which no sheet has", code="bad_archive")
        cells = [_text(cell) for cell in row]
        while cells and not cells[-1]:
            del cells[-1]
        if not cells:
            yield b"\n"
            continue
        width = width or len(cells)
        writer.writerow(cells + [""] * (width - len(cells)))
        yield buffer.getvalue().encode("utf-8", "replace")
        buffer.seek(0)
        buffer.truncate()


def _text(cell: Any) -> str:
    """A value as a spreadsheet shows it."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime.datetime):
        return cell.date().isoformat() if cell.time() == datetime.time() else cell.isoformat(" ")
    return str(cell)


def parquet(file: BinaryIO, name: str, send: Send) -> None:
    """The rows, each as an object on a line of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    try:
        table = pq.ParquetFile(file, memory_map=False, pre_buffer=False)
        send(Member())
        _send_lines(_objects(table.iter_batches(_PARQUET_ROWS, use_threads=False)), send)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise
        raise EOFError(str(error).partition("\n")[0]) from None


def _objects(batches: Iterable[Any]) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode
    for batch in batches:
        for row in batch.to_pylist():
            yield encode(row) + b"\n"


def _send_lines(lines: Iterable[bytes], send: Send) -> None:
    block = bytearray(codecs.BOM_UTF8)  # says what it is, whatever a job says of its texts
    for line in lines:
        block += line
        if len(block) >= BLOCK_BYTES:
            send(Block(bytes(block)))
            block.clear()
    send(Block(bytes(block)))
