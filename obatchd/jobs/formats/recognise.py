"""The format of a drop, by its content and, where that leaves a doubt, its name."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from obatchd.errors import DropRefused
from obatchd.jobs.containers.kinds import kind_in_words
from obatchd.jobs.formats.reader.batch import is_batch_line
from obatchd.jobs.formats.reader.fields import begins_object, fields_of
from obatchd.jobs.formats.source import ByteSource, Unreadable, is_packed, open_source, raw_fields
from obatchd.jobs.formats.split import UTF8_BOM, ObjectScan
from obatchd.jobs.model import (
    FORMATS_IN_WORDS,
    PARQUET_ENDINGS,
    TABLE_ENDINGS,
    TEXT_ENDINGS,
    WORKBOOK_ENDINGS,
    without_packing,
)
from obatchd.prompts.encodings import seems_other

_HEAD_BYTES = 65536
_FIRST_OBJECT_BYTES = 16 * 1024**2
_WIDE_JSON = (b"{\0", b"[\0", b"\0{", b"\0[")  # without a byte-order mark
_LOOKED_AT_LINES = 20
_RECORD_SEPARATOR = b"\x1e"
_OBJECT_LINE = re.compile(rb"^[^\S\n]*\{", re.MULTILINE)


class Format(Enum):
    LINES = "JSON Lines"
    OBJECT = "one JSON object"
    OBJECTS = "JSON objects one after the other"
    ARRAY = "a JSON array"
    BATCH = "an OpenAI batch file"
    TABLE = "a table of comma-separated values"
    TEXT = "text"
    FOLDER = "a folder of files"


def recognise(path: Path, name: str, encoding: str | None = None, *, folder: Path | None = None) -> Format:
    """The format of a drop, or of the file at ``path`` in ``folder``; ``encoding`` is that of texts that name none.

    Raises DropRefused where it is none of our formats (``format``), not UTF-8 (``encoding``) or empty (``empty``),
    OSError where the system is at fault.
    """
    if folder is None and path.is_dir():
        return Format.FOLDER
    try:
        with open_source(path, packed=is_packed(name), folder=folder, text=True, encoding=encoding) as source:
            return _by_content(source, name)
    except Unreadable as error:
        raise DropRefused(f"{name} cannot be read: {error}", code="format") from error


def _by_content(source: ByteSource, name: str) -> Format:
    head = _head(source)
    kind, remedy = kind_in_words(head)
    if kind:
        raise DropRefused(f"{name} is {kind}, by its first bytes; {remedy}", code="format")
    text = head.removeprefix(UTF8_BOM).lstrip()
    if not text and len(head) < _HEAD_BYTES:
        raise DropRefused(f"{name} is empty: there is no request in it", code="empty")
    plain_name = without_packing(name.lower())
    if head[:2] in _WIDE_JSON:
        _require_utf8(head, name)
    if plain_name.endswith(TABLE_ENDINGS + WORKBOOK_ENDINGS):
        _require_utf8(head, name)
        return Format.TABLE
    if plain_name.endswith(TEXT_ENDINGS) and not _begins_with_json(text):
        _require_utf8(head, name)
        return Format.TEXT
    lines = plain_name.endswith((".jsonl", ".ndjson", *PARQUET_ENDINGS))
    if text.startswith((b"{", _RECORD_SEPARATOR)):
        return _of_objects(text, source, lines=lines)
    if lines and (not text or (not _opens_array(text) and _OBJECT_LINE.search(text))):
        return _of_lines(text)
    if text.startswith(b"["):
        return Format.ARRAY
    raise DropRefused(
        f"{name} begins neither with {{ nor with [: it is no JSON. Drop {FORMATS_IN_WORDS}",
        code="format",
    )


def _head(source: ByteSource) -> bytes:
    """The first bytes and the whole first line, where it is an object of a length that can be; bytes before a damaged
    place count.
    """
    head = bytearray()
    while len(head) < _HEAD_BYTES or (
        len(head) < _FIRST_OBJECT_BYTES
        and head[:_HEAD_BYTES].removeprefix(UTF8_BOM).lstrip()[:1] == b"{"
        and b"\n" not in head.strip()
    ):
        try:
            block = source.read(max(_HEAD_BYTES, len(head)))
        except Unreadable:
            if not head:
                raise
            break
        if not block:
            break
        head += block
    return bytes(head)


def _begins_with_json(text: bytes) -> bool:
    """Whether text is called so by mistake: its first line is a JSON object."""
    try:
        raw_fields(text.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return False
    return True


def _opens_array(text: bytes) -> bool:
    """Whether a file named JSON Lines begins like an array laid out over lines, or is nothing but one."""
    first, _, rest = text.partition(b"\n")
    first = first.rstrip()
    return first.startswith(b"[") and (first == b"[" or first.endswith(b",") or not rest.strip())


def _require_utf8(head: bytes, name: str) -> None:
    """Raises DropRefused where a table or a text is wholly in another encoding: once, and not for each row."""
    wide = b"\0" in head[:1024]
    if (at := 0 if wide else seems_other(head)) is not None:
        encoding = ("utf-16-be" if head[:1] == b"\0" else "utf-16-le") if wide else "cp1252"
        place = f"line {head.count(10, 0, at) + 1}"
        raise DropRefused(
            f"{name} is not UTF-8 ({place}): save it as UTF-8, or say what it is, most probably obatchctl submit "
            f'--encoding {encoding} {name}; in a folder encoding = "{encoding}" in job.toml',
            code="encoding",
        )


def _of_objects(text: bytes, source: ByteSource, *, lines: bool) -> Format:
    """The format of what begins with an object; ``lines`` where its name says JSON Lines."""
    if text.startswith(_RECORD_SEPARATOR):
        return Format.OBJECTS
    first, _, rest = text.partition(b"\n")
    if _is_object(first):
        return _of_lines(text) if lines or rest.lstrip().startswith(b"{") or is_batch_line(first) else Format.OBJECT
    seen, scan = bytearray(text), ObjectScan()
    well = begins_object(text[:_HEAD_BYTES])
    end = next(scan.ends(text), None) if well else None
    while well and end is None and len(seen) <= _FIRST_OBJECT_BYTES:
        try:
            block = source.read(_FIRST_OBJECT_BYTES)
        except Unreadable:
            break
        if not block:
            break
        end = next((len(seen) + place for place in scan.ends(block)), None)
        seen += block
    if end is not None and _is_object(bytes(seen[:end])):
        if bytes(seen[end : end + _HEAD_BYTES]).lstrip(b" \t\r\n,\x1e").startswith(b"{"):
            return Format.OBJECTS
        if b"\n" in seen[:end]:
            return Format.OBJECT
    broken = rest.lstrip().startswith(b"{") and not first.rstrip().endswith((b":", b"[", b","))
    return _of_lines(text) if lines or broken else Format.OBJECT


def _is_object(text: bytes) -> bool:
    """Whether a text is one JSON object and no more, but for a comma."""
    try:
        fields_of(text.strip(b" \t\r\n,"))
    except (ValueError, RecursionError):
        return False
    return True


def _of_lines(text: bytes) -> Format:
    """JSON Lines are a batch file where more of the first lines are such lines than are not."""
    *lines, rest = text.split(b"\n")
    kinds = [is_batch_line(line.strip().rstrip(b",")) for line in (lines or [rest])[:_LOOKED_AT_LINES]]
    return Format.BATCH if kinds.count(True) > kinds.count(False) else Format.LINES
