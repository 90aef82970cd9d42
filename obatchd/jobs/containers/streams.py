"""Files that are packed as one stream, and the tar archive that may be in one. Called in the confined child."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from obatchd.confined import Send
from obatchd.errors import DropRefused
from obatchd.jobs.containers.kinds import HEAD_BYTES, TAR, container_of
from obatchd.jobs.containers.messages import Block, Member
from obatchd.jobs.model import ARCHIVE_ENDINGS

BLOCK_BYTES = 256 * 1024
_ZST_INPUT_BYTES = 2048  # a block of 128 KiB can have four bytes
_ZST_WINDOW_BYTES = 128 * 1024**2  # of zstd -22; more only by --long
_DAMAGED = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Peeked:
    """A stream whose first bytes have been looked at; remembers its last ones."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source
        self.end = b""  # up to 512 bytes

    def read(self, size: int) -> bytes:
        if self._head:
            block, self._head = self._head[:size], self._head[size:]
        else:
            block = self._source.read(size)
        self.end = (self.end + block)[-512:] if len(block) < 512 else block[-512:]
        return block


def gz(file: BinaryIO, name: str, send: Send) -> None:
    _stream(gzip.GzipFile(fileobj=file), name, send)


def xz(file: BinaryIO, name: str, send: Send) -> None:
    with lzma.LZMAFile(file) as source:
        _stream(source, name, send)


def bz2_(file: BinaryIO, name: str, send: Send) -> None:
    _stream(bz2.BZ2File(file), name, send)


def zst(file: BinaryIO, name: str, send: Send) -> None:
    import zstandard

    try:
        _stream(_Zst(file, zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW_BYTES).decompressobj), name, send)
    except zstandard.ZstdError as error:
        if "too much memory" in str(error):
            reason = f"it needs a window of more than {_ZST_WINDOW_BYTES // 1024**2} MiB; pack it without --long"
            raise DropRefused(reason, code="bad_archive") from None
        raise EOFError(str(error)) from None


class _Zst:
    """zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, file: BinaryIO, new: Callable[[], "zstandard.ZstdDecompressionObj"]) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
        self._file = file
        self._new = new
        self._frame = new()
        self._inside = False
        self._ready = io.BytesIO()

    def read(self, size: int) -> bytes:
        while not (block := self._ready.read(size)):
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._inside = self._new(), False
            packed = packed or self._file.read(_ZST_INPUT_BYTES)
            if not packed:
                if self._inside:
                    raise EOFError("it ends in the middle")
                return b""
            self._inside = True
            self._ready = io.BytesIO(self._frame.decompress(packed))
        return block


def _stream(source: Source, name: str, send: Send) -> None:
    from obatchd.jobs.containers.archives import tar_members

    head = _exactly(source, HEAD_BYTES)
    inside = container_of(head, "")
    if inside is TAR or name.lower().endswith(ARCHIVE_ENDINGS):
        tar_members(Peeked(head, source), send)
        return
    if inside is not None:
        raise DropRefused(f"what is packed in it is {inside.words} itself; unpack it once", code="nested_archive")
    send(Member())
    copy(Peeked(head, source), send)


def _exactly(source: Source, size: int) -> bytes:
    head = b""
    while len(head) < size and (block := source.read(size - len(head))):
        head += block
    return head


def copy(source: Source, send: Send) -> None:
    """Send all that is left of a stream."""
    while block := source.read(BLOCK_BYTES):
        send(Block(block))
