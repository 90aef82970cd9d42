"""CSV and its like, row by row, in constant memory.

Rows are found here and not by :mod:`csv`, because that reads on to the end of the file behind a quotation mark that is
never closed, and knows no byte offsets. Here such a row is its first line, which fails alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from obatchd.jobs.formats.source import ByteSource
from obatchd.jobs.formats.split import UTF8_BOM

_BLOCK_BYTES = 1024**2
_LOOKED_AT_BYTES = 64 * 1024
_DELIMITERS = (b",", b";", b"\t", b"|")
_FIRST_CELL_BYTES = 400
_SEPARATOR = re.compile(rb'\s*"?sep=([^\r\n"])"?\r?\n', re.IGNORECASE)  # a first line for Excel
_UNCLOSED = "a quotation mark is not closed, or text follows the closing one; inside quotes write it twice"


class Row(NamedTuple):
    """One row."""

    number: int  # of the line that it begins on
    offset: int  # bytes
    length: int  # bytes
    cells: list[bytes] | None  # None where they cannot be read
    problem: str = ""  # why
    first: bytes = b""  # the first cell of such a row, as far as it can be told


def split_rows(source: ByteSource, max_row_bytes: int, delimiter: bytes | None = None) -> Iterator[Row]:
    """The rows that are not blank, the header among them. Without ``delimiter`` the first rows decide, or a line
    ``sep=;`` before them.

    Raises Unreadable or TooMuch where the source raises it, after the rows before.
    """
    reader = _Reader(source, max_row_bytes)
    begin = reader.first_lines()
    if match := _SEPARATOR.match(begin):
        reader.pass_over(match.end())
        delimiter = match[1]
    delimiter = delimiter or _delimiter(begin)
    grammar = _Grammar(delimiter)
    while reader.more():
        yield from reader.next_row(grammar)


def _delimiter(lines: bytes) -> bytes:
    """The delimiter that cuts most of the first rows into as many cells as the header, whose names may hold commas."""
    whole = lines if len(lines) < _LOOKED_AT_BYTES or b"\n" not in lines else lines[: lines.rindex(b"\n")]
    header, *rows = [line for line in re.sub(rb'"[^"]*"', b"", whole).split(b"\n") if line.strip()] or [b""]

    def fit(delimiter: bytes) -> tuple[int, int]:
        count = header.count(delimiter)
        return (sum(row.count(delimiter) == count for row in rows) if count else -1, count)

    return max(_DELIMITERS, key=fit)


class _Grammar:
    """Rows with one delimiter. A quoted cell may hold it, and line breaks; a quotation mark in it is written twice."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        escaped = re.escape(delimiter)
        blank = rb" *+" if delimiter == b"\t" else rb"[ \t]*+"  # around quotes it is no part of the cell
        cell = blank + rb'"[^"]*+(?:""[^"]*+)*+"' + blank + rb'|(?!%b")[^\n%b]*+' % (blank, escaped)
        self._cell = re.compile(rb"%b(%b)" % (escaped, cell))
        # A cell behind a delimiter may be empty, so that the group does not fail in its middle: Python before 3.11.5
        # then goes on where it failed (gh-106052). The row ends behind the delimiter where the cell has no end.
        self._row = re.compile(rb"(?:%b)(?:%b(?:%b|))*+\r?" % (cell, escaped, cell))

    def row_end(self, data: bytearray, begin: int, *, ended: bool) -> int | None:
        """Where the line of the row that begins at ``begin`` ends; -1 where there is none, because quotes do not match.

        None where the row does not end in ``data``, and that may not be all there is (unless ``ended``).
        """
        line_end = data.find(b"\n", begin)
        if line_end < 0 and not ended:
            return None
        stop = line_end if line_end >= 0 else len(data)
        if data.find(b'"', begin, stop) < 0:
            return stop
        match = self._row.match(data, begin)
        end = match.end() if match else begin
        after = data[end : end + 1]
        if match and (after == b"\n" or (ended and not after)):
            return end
        unfinished = not match or not after or data[end - 1 : end] == self._delimiter  # a cell without an end follows
        return None if unfinished and not ended else -1

    def cells(self, row: bytes) -> list[bytes]:
        row = row.rstrip(b"\r")
        if b'"' not in row:
            return row.split(self._delimiter)
        found = self._cell.findall(self._delimiter + row)
        return [
            bare[1:-1].replace(b'""', b'"') if (bare := cell.strip(b" \t")).startswith(b'"') else cell for cell in found
        ]

    def first_cell(self, begin: bytes) -> bytes:
        """The first cell of a row that cannot be read; empty where it cannot be told."""
        cell, found, _ = begin.partition(self._delimiter)
        return cell.strip() if found and b'"' not in cell and b"\n" not in cell else b""


class _Reader:
    """The bytes from the beginning of the next row on."""

    def __init__(self, source: ByteSource, max_row_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_row_bytes
        self._bytes = bytearray()
        self._at = 0  # of the next row in the bytes
        self._offset = 0  # of the bytes in the file
        self._number = 1
        self._ended = False
        self._started = False

    def more(self) -> bool:
        """Whether there is another row, or may be."""
        return self._at < len(self._bytes) or self._read()

    def first_lines(self) -> bytes:
        """The beginning: as much as is looked at to tell the delimiter, however it comes."""
        while len(self._bytes) - self._at < _LOOKED_AT_BYTES and self._read():
            pass
        return bytes(self._bytes[self._at : self._at + _LOOKED_AT_BYTES])

    def pass_over(self, line_end: int) -> None:
        """Begin behind the lines that end there, counted from the beginning."""
        self._number += self._bytes.count(b"\n", self._at, self._at + line_end)
        self._at += line_end

    def _read(self) -> bool:
        """Read on; whether there was anything."""
        block = b"" if self._ended else self._source.read(_BLOCK_BYTES)
        if not block:
            self._ended = True
            return False
        if self._at:
            del self._bytes[: self._at]
            self._offset += self._at
            self._at = 0
        self._bytes += block
        if not self._started and (len(self._bytes) >= len(UTF8_BOM) or not self._read()):
            self._started = True
            if self._bytes.startswith(UTF8_BOM):
                self._at = len(UTF8_BOM)
        return True

    def next_row(self, grammar: _Grammar) -> Iterator[Row]:
        """One row; none where the line is blank."""
        while (end := grammar.row_end(self._bytes, self._at, ended=self._ended)) is None:
            if len(self._bytes) - self._at > self._max_bytes:
                end = -1
                break
            self._read()
        if end < 0:
            yield self._first_line_alone(grammar)
            return
        line = bytes(self._bytes[self._at : end])
        cells = grammar.cells(line)
        row = Row(self._number, self._offset + self._at, len(line), cells)
        self._number += 1 + line.count(b"\n")
        self._at = end + 1
        if row.length > self._max_bytes:
            yield row._replace(cells=None, problem=self._too_long(row.length), first=cells[0])
        elif len(cells) > 1 or line.strip(b" \r"):
            yield row

    def _first_line_alone(self, grammar: _Grammar) -> Row:
        """The first line of a malformed row; the next line begins another row."""
        begin, number = self._offset + self._at, self._number
        length, first = 0, grammar.first_cell(bytes(self._bytes[self._at : self._at + _FIRST_CELL_BYTES]))
        while (end := self._bytes.find(b"\n", self._at)) < 0:
            length += len(self._bytes) - self._at
            self._at = len(self._bytes)
            if not self._read():
                end = self._at
                break
        length += end - self._at
        self._at = end + 1
        self._number += 1
        problem = self._too_long(length) if length > self._max_bytes else _UNCLOSED
        return Row(number, begin, length, None, problem, first)

    def _too_long(self, length: int) -> str:
        return f"the row has {length} bytes, more than max_line_bytes ({self._max_bytes})"
