"""Reading a drop's bytes, packed or not."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from obatchd.jobs.model import RequestRefused
from obatchd.prompts.encodings import Utf8, coding_of

# What opening says of this one file; anything else (no descriptors left, a failing disk) may be over in a moment.
_NOT_OURS = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ENXIO}
)
_HEAD_BYTES = 64 * 1024
raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode  # the fields of one JSON object, not read yet
_WHOLE_BYTES = 256 * 1024  # at a time
_DAMAGED = (gzip.BadGzipFile, zlib.error, EOFError)


class Unreadable(Exception):
    """The content cannot be read, or not further; in plain words."""


class TooMuch(Exception):
    """The drop unpacks to more than it may."""


def decoded(raw: bytes, column: str = "") -> str:
    """UTF-8 as text; ``column`` is where it stands in a row. Raises RequestRefused where it is none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f'byte {error.start} of its cell "{column}"' if column else f"its byte {error.start}"
        raise RequestRefused("invalid_utf8", f"{byte} is not UTF-8") from None


class Budget(msgspec.Struct):
    """How much may still be read, over all files of a drop."""

    left_bytes: int


class ByteSource:
    """The content of one file, or its first ``size_bytes``, however much is appended to it meanwhile.

    ``budget`` bounds the bytes read, not the packed ones: a few kilobytes of gzip can hold terabytes.
    """

    def __init__(self, file: io.BufferedIOBase, budget: Budget | None = None, size_bytes: int = sys.maxsize) -> None:
        self._file = file
        self._budget = budget
        self._left_bytes = size_bytes

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, as soon as there are any; none at the end.

        Raises Unreadable where it is damaged; everything before the damage was read, TooMuch where there is more than
        the budget.
        """
        size, budget = min(size, self._left_bytes), self._budget
        try:
            block = self._file.read1(size if budget is None else min(size, budget.left_bytes) or 1)
        except _DAMAGED as error:
            raise Unreadable(f"the gzip file is damaged or was cut off: {error}") from error
        if budget is not None:
            if block and not budget.left_bytes:
                raise TooMuch
            budget.left_bytes -= len(block)
        self._left_bytes -= len(block)
        return block

    def whole(self, limit_bytes: int) -> bytes:
        """All of it, or one byte more than ``limit_bytes`` of it; raises as ``read`` does."""
        content = bytearray()
        while (left := limit_bytes + 1 - len(content)) and (block := self.read(min(left, _WHOLE_BYTES))):
            content += block
        return bytes(content)


def open_file(path: Path, folder: Path | None = None) -> io.BufferedReader:
    """``path`` opened for reading; it is one in ``folder``, if given.

    Raises Unreadable where it is not there, not for us, or not a regular file; links are not followed, because the
    owner of a folder may still swap its files and folders, OSError where the system is at fault.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    above: int | None = None
    folders = [] if folder is None else [str(folder), *path.parts[:-1]]
    try:
        for part in folders:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=above)
            if above is not None:
                os.close(above)
            above = inner
        descriptor = os.open(path if folder is None else path.name, flags, dir_fd=above)
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise Unreadable(error.strerror) from error
        raise
    finally:
        if above is not None:
            os.close(above)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # open() would refuse a folder, and leave it open
        raise Unreadable("it is not a regular file")
    return open(descriptor, "rb")


@contextmanager
def open_source(
    path: Path,
    *,
    packed: bool,
    budget: Budget | None = None,
    size_bytes: int | None = None,
    folder: Path | None = None,
    text: bool = False,
    encoding: str | None = None,
) -> Iterator[ByteSource]:
    """``path`` opened as :func:`open_file` does; of a plain file only ``size_bytes``, if given.

    ``text`` is read as UTF-8, whatever its byte-order mark or else ``encoding`` says that it is.
    """
    with open_file(path, folder) as file:
        if packed:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield ByteSource(Utf8(unpacked, encoding) if text else unpacked, budget)
        else:
            size = sys.maxsize if size_bytes is None else size_bytes
            yield ByteSource(Utf8(file, encoding) if text else file, budget, size)


def is_utf8(path: Path, encoding: str | None) -> bool:
    """Whether a plain text can be read where it lies, with the byte offsets that it has there."""
    with open_source(path, packed=False) as source:
        return coding_of(source.read(_HEAD_BYTES), encoding) is None


def is_packed(name: str) -> bool:
    """Whether a file of this name is taken for gzip."""
    return name.lower().endswith(".gz")
