"""Splitting a drop's bytes into requests in constant memory: the lines of JSONL, the elements of an array, objects.

Lines end at ``\\n`` alone: ``str.splitlines`` would also split at U+2028 and others that are legal inside JSON strings.
Elements are cut out, not parsed: they keep their bytes, and a bad one does not hide those after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from obatchd.jobs.formats.source import ByteSource, Unreadable
from obatchd.words import counted

_BLOCK_BYTES = 64 * 1024  # there three times while it is split: as read, joined to the line before, and as lines
UTF8_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_BETWEEN = _BLANK + b",\x1e"  # objects one after the other; JSON text sequences (RFC 7464) begin each with 1E
_END_BYTES = 4096
_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE = re.compile(rb'["\[\]{},]')


class Piece(NamedTuple):
    """One line or element without the white space around it."""

    number: int  # from 1
    offset: int  # bytes
    raw: bytes | None  # None where it is longer than allowed
    length: int
    ends: bytes = b""  # the beginning and the end of one that is too long: its id may stand there


def _ends(before: bytes, part: bytes) -> bytes:
    """The beginning and the end of ``before`` and ``part`` together, where ``before`` are such ends."""
    whole = before + part
    return whole if len(whole) <= 2 * _END_BYTES else whole[:_END_BYTES] + whole[-_END_BYTES:]


def _piece(number: int, offset: int, raw: bytes, blank: bytes = _BLANK) -> Piece:
    stripped = raw.strip(blank)
    return Piece(number, offset + raw.find(stripped), stripped, len(stripped))


def split_lines(source: ByteSource, max_line_bytes: int) -> Iterator[Piece]:
    """The lines that are not blank; blank ones are counted. One byte order mark at the start is passed over.

    Raises Unreadable or TooMuch where the source raises it, after the lines before.
    """
    number, offset, rest, skipped, ends = 0, 0, bytearray(), 0, b""
    while True:
        block = source.read(_BLOCK_BYTES)
        if block and b"\n" not in block:
            rest += block
        else:
            *lines, last = (bytes(rest) + (block or b"\n")).split(b"\n")
            rest = bytearray(last)
            for raw in lines:
                number += 1
                if number == 1 and raw.startswith(UTF8_BOM):
                    raw, offset = raw[len(UTF8_BOM) :], len(UTF8_BOM)
                length = len(raw) + skipped
                if length > max_line_bytes:
                    yield Piece(number, offset, None, length, _ends(ends, raw))
                elif raw and not raw.isspace():
                    yield _piece(number, offset, raw)
                offset += length + 1
                skipped, ends = 0, b""
        if not block:
            return
        if len(rest) > max_line_bytes:
            # Too long to be kept: only its length goes on being counted.
            ends = _ends(ends, bytes(rest))
            skipped += len(rest)
            rest.clear()


class _Element:
    """The bytes of an element so far, while there are not too many."""

    def __init__(self, max_bytes: int, blank: bytes) -> None:
        self._max_bytes = max_bytes
        self._blank = blank
        self._bytes = bytearray()
        self._ends = b""
        self.length = 0

    def add(self, part: bytes) -> None:
        self.length += len(part)
        if self.length <= self._max_bytes:
            self._bytes += part
        else:
            self._ends = _ends(self._ends, bytes(self._bytes + part))
            self._bytes.clear()

    def piece(self, number: int, offset: int) -> Piece:
        if self.length > self._max_bytes:
            return Piece(number, offset, None, self.length, self._ends)
        return _piece(number, offset, bytes(self._bytes), self._blank)


def split_array(source: ByteSource, max_element_bytes: int) -> Iterator[Piece]:
    """The elements of a JSON array, as they stand in the file. A comma before the closing bracket is passed over.

    Raises Unreadable or TooMuch where the source raises it, where the array has no end, or it is not the end of the
    file.
    """
    number, offset, begun = 0, 0, 0
    depth, in_string, skip = 0, False, 0
    element = _Element(max_element_bytes, _BLANK)
    while block := source.read(_BLOCK_BYTES):
        kept, position = 0, skip
        while found := (_IN_STRING if in_string else _OUTSIDE).search(block, position):
            position = found.end()
            match found[0]:
                case b'"':
                    in_string = not in_string
                case b"\\":
                    position += 1  # whatever is escaped, it does not end the string
                case b"[" | b"{":
                    depth += 1
                    if depth == 1:
                        kept, begun = position, offset + position
                case b"]" | b"}":
                    depth -= 1
                case _ if depth > 1:
                    continue
            if depth == 0 or (depth == 1 and found[0] == b","):
                element.add(block[kept : found.start()])
                piece = element.piece(number + 1, begun)
                if piece.length or depth:
                    number += 1
                    yield piece
                if depth == 0:
                    _require_end(source, block[position:], offset + position)
                    return
                element = _Element(max_element_bytes, _BLANK)
                kept, begun = position, offset + position
        element.add(block[kept:])
        skip = max(0, position - len(block))
        offset += len(block)
    inside = f" inside element {number + 1}" if element.piece(1, 0).length else ""
    raise Unreadable(f"the file ends{inside} before the array is closed; it may have been cut off")


def split_objects(source: ByteSource, max_object_bytes: int) -> Iterator[Piece]:
    """JSON objects one after the other, each over many lines or many on one; commas between them are passed over.

    Raises Unreadable or TooMuch where the source raises it, after the objects before.
    """
    number, offset, begun = 0, 0, 0
    scan = ObjectScan()
    element = _Element(max_object_bytes, _BETWEEN)
    while block := source.read(_BLOCK_BYTES):
        kept = 0
        for end in scan.ends(block):
            element.add(block[kept:end])
            number += 1
            yield element.piece(number, begun)
            element = _Element(max_object_bytes, _BETWEEN)
            kept, begun = end, offset + end
        element.add(block[kept:])
        offset += len(block)
    if (rest := element.piece(number + 1, begun)).length:
        yield rest


class ObjectScan:
    """Finds where the outermost JSON objects and arrays end."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._skip = 0  # bytes of the next block that are escaped

    def ends(self, block: bytes) -> Iterator[int]:
        """The place behind each that ends in ``block``, which follows the blocks before."""
        position = self._skip
        while found := (_IN_STRING if self._in_string else _OUTSIDE).search(block, position):
            position = found.end()
            match found[0]:
                case b'"':
                    self._in_string = not self._in_string
                case b"\\":
                    position += 1
                case b"[" | b"{":
                    self._depth += 1
                case b"]" | b"}":
                    self._depth = max(0, self._depth - 1)
                    if not self._depth:
                        yield position
        self._skip = max(0, position - len(block))


def _require_end(source: ByteSource, rest: bytes, offset: int) -> None:
    while not rest.strip(_BLANK):
        offset += len(rest)
        if not (rest := source.read(_BLOCK_BYTES)):
            return
    offset += len(rest) - len(rest.lstrip(_BLANK))
    raise Unreadable(f"there is more text behind the array, which ends after {counted(offset, 'byte')}")
