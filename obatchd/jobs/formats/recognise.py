"""The format of a drop, by its content and, where that leaves a doubt, its name."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from obatchd.errors import DropRefused
from obatchd.jobs.containers.kinds import kind_in_words
from obatchd.jobs.formats.openai import looks_like_batch
from obatchd.jobs.formats.source import ByteSource, Unreadable, is_packed, open_source, raw_fields
from obatchd.jobs.formats.split import UTF8_BOM
from obatchd.jobs.model import (
    FORMATS_IN_WORDS,
    PARQUET_ENDINGS,
    TABLE_ENDINGS,
    TEXT_ENDINGS,
    WORKBOOK_ENDINGS,
    without_packing,
)

_HEAD_BYTES = 65536
_FIRST_LINE_BYTES = 16 * 1024**2
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_OBJECT_LINE = re.compile(rb"^[^\S\n]*\{", re.MULTILINE)


class Format(Enum):
    LINES = "JSON Lines"
    OBJECT = "one JSON object"
    ARRAY = "a JSON array"
    BATCH = "an OpenAI batch file"
    TABLE = "a table of comma-separated values"
    TEXT = "text"
    FOLDER = "a folder of files"


def recognise(path: Path, name: str, *, folder: Path | None = None) -> Format:
    """The format of a drop, or of the file at ``path`` in ``folder``.

    Raises DropRefused where it is none of our formats (``format``), not UTF-8 (``encoding``) or empty (``empty``),
    OSError where the system is at fault.
    """
    if folder is None and path.is_dir():
        return Format.FOLDER
    try:
        with open_source(path, packed=is_packed(name), folder=folder) as source:
            return _by_content(source, name)
    except Unreadable as error:
        raise DropRefused(f"{name} cannot be read: {error}", code="format") from error


def _by_content(source: ByteSource, name: str) -> Format:
    head = _head(source)
    if head.startswith(_WIDE_BOMS):
        raise DropRefused(f"{name} is UTF-16 or UTF-32; save it as UTF-8", code="encoding")
    kind, remedy = kind_in_words(head)
    if kind:
        raise DropRefused(f"{name} is {kind}, by its first bytes; {remedy}", code="format")
    text = head.removeprefix(UTF8_BOM).lstrip()
    if not text and len(head) < _HEAD_BYTES:
        raise DropRefused(f"{name} is empty: there is no request in it", code="empty")
    plain_name = without_packing(name.lower())
    if plain_name.endswith(TABLE_ENDINGS + WORKBOOK_ENDINGS):
        return Format.TABLE
    if plain_name.endswith(TEXT_ENDINGS) and not _begins_with_json(text):
        return Format.TEXT
    if plain_name.endswith((".jsonl", ".ndjson", *PARQUET_ENDINGS)):
        if not text or text.startswith(b"{") or (not _opens_array(text) and _OBJECT_LINE.search(text)):
            return Format.BATCH if looks_like_batch(text) else Format.LINES
    elif text.startswith(b"{"):
        if looks_like_batch(text):
            return Format.BATCH
        return Format.LINES if _is_lines(text, source) else Format.OBJECT
    if text.startswith(b"["):
        return Format.ARRAY
    raise DropRefused(
        f"{name} begins neither with {{ nor with [: it is no JSON. Drop {FORMATS_IN_WORDS}",
        code="format",
    )


def _head(source: ByteSource) -> bytes:
    """The first bytes, or all there are; bytes before a damaged place count."""
    head = b""
    while len(head) < _HEAD_BYTES:
        try:
            block = source.read(_HEAD_BYTES)
        except Unreadable:
            if not head:
                raise
            break
        if not block:
            break
        head += block
    return head


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


def _is_lines(text: bytes, source: ByteSource) -> bool:
    """Whether another object follows the first one on a line of its own."""
    seen, end = bytearray(text), -1
    while len(seen) <= _FIRST_LINE_BYTES:
        end = seen.find(b"\n", max(0, len(seen) - len(text))) if end < 0 else end
        if end >= 0 and (rest := bytes(seen[end + 1 :]).lstrip()):
            return rest.startswith(b"{") and not bytes(seen[:end]).rstrip().endswith((b":", b"[", b","))
        try:
            text = source.read(_FIRST_LINE_BYTES)
        except Unreadable:
            return False
        if not text:
            return False
        seen += text
    return False
