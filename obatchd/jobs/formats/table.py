"""CSV and its like, row by row, in constant memory.

Rows are found here and not by :mod:`csv`, because that reads on to the end of the file behind a quotation mark that is
never closed, and knows no byte offsets. Here such a row is its first line, which fails alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from obatchd.jobs.formats.source import Source
from obatchd.jobs.formats.split import UTF8_BOM

_BLOCK_BYTES = 1024**2
_DELIMITERS = (b",", b";", b"\t", b"|")
_UNCLOSED = "a quotation mark is not closed, or text follows the closing one; inside quotes write it twice"


class Row(NamedTuple):
    """One row: the number of the line it begins on, its offset and length in bytes, and its cells.

    ``cells`` is None where it cannot be read: then ``problem`` says why.
    """

    number: int
    offset: int
    length: int
    cells: list[bytes] | None
    problem: str = ""


class _Incomplete(Exception):
    """The row goes on behind what has been read."""


class _Malformed(Exception):
    """No row begins here."""


def split_rows(source: Source, max_row_bytes: int, delimiter: bytes | None = None) -> Iterator[Row]:
    """The rows that are not blank, the header among them. Without ``delimiter`` the first row decides.

    Raises:
        Unreadable, TooMuch: from the source, after the rows before.
    """
    reader = _Reader(source, max_row_bytes)
    if delimiter is None:
        delimiter = _delimiter_of(reader.first_line())
    cell_end = re.compile(b"[\n" + re.escape(delimiter) + b"]")
    while reader.more():
        yield from reader.next_row(delimiter, cell_end)


def _delimiter_of(line: bytes) -> bytes:
    outside = re.sub(rb'"[^"]*"', b"", line)
    return max(_DELIMITERS, key=outside.count)


class _Reader:
    """The bytes from the beginning of the next row on."""

    def __init__(self, source: Source, max_row_bytes: int) -> None:
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

    def first_line(self) -> bytes:
        """The first line that is not blank, as far as it is short enough for a row."""
        while True:
            line, ended, _ = bytes(self._bytes[self._at :]).lstrip(b"\r\n").partition(b"\n")
            if ended or len(self._bytes) > self._max_bytes or not self._read():
                return line

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

    def _line_end(self) -> int:
        return self._bytes.find(b"\n", self._at)

    def next_row(self, delimiter: bytes, cell_end: re.Pattern[bytes]) -> Iterator[Row]:
        """One row; none where the line is blank."""
        while True:
            try:
                cells, end = _cells(self._bytes, self._at, delimiter, cell_end, ended=self._ended)
                break
            except _Incomplete:
                # At the end of the file it is looked at once more: the last line may have no end of its own.
                if len(self._bytes) - self._at <= self._max_bytes and (self._read() or self._ended):
                    continue
                yield self._first_line_alone()
                return
            except _Malformed:
                yield self._first_line_alone()
                return
        row = Row(self._number, self._offset + self._at, end - self._at, cells)
        blank = len(cells) == 1 and not self._bytes[self._at : end].strip(b" \r")
        self._number += max(1, self._bytes.count(b"\n", self._at, end + 1))
        self._at = end + 1
        if row.length > self._max_bytes:
            yield row._replace(cells=None, problem=self._too_long(row.length))
        elif not blank:
            yield row

    def _first_line_alone(self) -> Row:
        """What cannot be read as a row: its first line, and the next one begins another row."""
        begin, number = self._offset + self._at, self._number
        length = 0
        while (end := self._line_end()) < 0:
            length += len(self._bytes) - self._at
            self._at = len(self._bytes)
            if not self._read():
                end = self._at
                break
        length += end - self._at
        self._at = end + 1
        self._number += 1
        return Row(number, begin, length, None, self._too_long(length) if length > self._max_bytes else _UNCLOSED)

    def _too_long(self, length: int) -> str:
        return f"the row has {length} bytes, more than max_line_bytes ({self._max_bytes})"


def _cells(
    data: bytearray, begin: int, delimiter: bytes, cell_end: re.Pattern[bytes], *, ended: bool
) -> tuple[list[bytes], int]:
    """The cells of the row that begins at ``begin``, and where its line ends.

    Raises:
        _Incomplete: the row does not end in ``data``, and that may not be all there is (unless ``ended``).
        _Malformed: quotes do not match.
    """
    line_end = data.find(b"\n", begin)
    if line_end < 0 and not ended:
        raise _Incomplete
    stop = line_end if line_end >= 0 else len(data)
    if data.find(b'"', begin, stop) < 0:
        return bytes(data[begin:stop]).rstrip(b"\r").split(delimiter), stop
    cells, at = [], begin
    while True:
        if data[at : at + 1] != b'"':
            found = cell_end.search(data, at)
            if found is None and not ended:
                raise _Incomplete
            end = found.start() if found else len(data)
            cells.append(bytes(data[at:end]))
        else:
            cell, end = _quoted(data, at, delimiter, ended=ended)
            cells.append(cell)
        if data[end : end + 1] != delimiter:
            cells[-1] = cells[-1].rstrip(b"\r") if data[at : at + 1] != b'"' else cells[-1]
            return cells, end
        at = end + 1


def _quoted(data: bytearray, at: int, delimiter: bytes, *, ended: bool) -> tuple[bytes, int]:
    """The cell whose opening quotation mark is at ``at``, and where what follows it begins."""
    search = at + 1
    while True:
        close = data.find(b'"', search)
        if close < 0 or (close + 1 == len(data) and not ended):
            raise _Malformed if ended else _Incomplete
        if data[close + 1 : close + 2] != b'"':
            break
        search = close + 2
    end = close + 1
    if data[end : end + 1] == b"\r":
        end += 1
        if end == len(data) and not ended:
            raise _Incomplete
    if end < len(data) and data[end : end + 1] not in (b"\n", delimiter):
        raise _Malformed
    if data[end : end + 1] == delimiter and end != close + 1:
        raise _Malformed
    return bytes(data[at + 1 : close]).replace(b'""', b'"'), end
