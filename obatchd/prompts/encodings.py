"""Texts in any encoding as UTF-8 with newlines: what PowerShell, Excel and old Macs write is read as it was meant."""

from __future__ import annotations

import codecs
import io
import re

_BLOCK_BYTES = 64 * 1024
_WIDE = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
         (b"\xfe\xff", "utf-16"))  # fmt: skip
# Codecs of Python that are no character sets; some take a time that grows with the square of the text.
_NO_SETS = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem"})
_BESIDE_LETTER = re.compile(rb"[A-Za-z][\x80-\xff]|[\x80-\xff][A-Za-z]")


def encoding_problem(name: str) -> str:
    """Why a text cannot be read in the encoding ``name``; empty when it can."""
    try:
        found = codecs.lookup(name)
        if found.name.replace("-", "_") not in _NO_SETS:
            b"a".decode(name, "replace")  # raises LookupError where it is another kind of codec
            return ""
    except (LookupError, ValueError):
        pass
    return f"there is no encoding {name!r}; utf-8, cp1252, latin-1, utf-16 and shift_jis are some"


def coding_of(head: bytes, encoding: str | None) -> tuple[str, bool] | None:
    """The encoding of a text that begins with ``head``, and whether its lines end as on old Macs; None for UTF-8.

    A byte-order mark counts more than ``encoding``, which somebody gave for all files of a folder.
    """
    given = None if encoding is None or codecs.lookup(encoding).name == "utf-8" else encoding
    marked = "utf-8" if head.startswith(codecs.BOM_UTF8) else None
    name = marked or next((wide for mark, wide in _WIDE if head.startswith(mark)), given or "utf-8")
    text = head if name == "utf-8" else codecs.getincrementaldecoder(name)("replace").decode(head).encode()
    mac = b"\r" in text[:-1] and b"\n" not in text
    return (name, mac) if mac or name != "utf-8" else None


def seems_other(head: bytes) -> int | None:
    """Where a text is no UTF-8 but looks like one of another encoding: all through, and within words."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
        return None
    except UnicodeDecodeError as error:
        whole = head.decode("utf-8", "ignore")
        return error.start if whole.isascii() and _BESIDE_LETTER.search(head) else None


class Utf8(io.BufferedIOBase):
    """A text as UTF-8. Bytes that are nothing in its encoding stay as they are, so that their line fails alone."""

    def __init__(self, file: io.BufferedIOBase, encoding: str | None) -> None:
        self._file = file
        self._encoding = encoding
        self._decoder: codecs.IncrementalDecoder | None = None
        self._mac = False
        self._begun = False
        self._rest = b""  # read and not given out yet

    def read1(self, size: int = -1, /) -> bytes:
        if not self._begun:
            self._begin()
        while not self._rest:
            block = self._file.read1(_BLOCK_BYTES if self._decoder is not None else size)
            self._rest = self._read(block)
            if not block:
                break
        given = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(given) :]
        return given

    def _begin(self) -> None:
        self._begun = True
        head = b""
        while len(head) < len(_WIDE[0][0]) and (block := self._file.read1(_BLOCK_BYTES)):
            head += block
        if (coding := coding_of(head, self._encoding)) is not None:
            name, self._mac = coding
            wide = codecs.lookup(name).name.startswith(("utf-16", "utf-32"))
            self._decoder = codecs.getincrementaldecoder(name)("replace" if wide else "surrogateescape")
        self._rest = self._read(head)

    def _read(self, block: bytes) -> bytes:
        if self._decoder is None:
            return block
        text = self._decoder.decode(block, final=not block)
        return (text.replace("\r", "\n") if self._mac else text).encode("utf-8", "surrogateescape")
