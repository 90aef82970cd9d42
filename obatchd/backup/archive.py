"""The tar file of a backup as it grows."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Archive:
    """Adds documents, files and folders. ``unfinished`` are members that must not count, because they changed."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.unfinished: list[str] = []

    def add_document(self, name: str, document: msgspec.Struct) -> None:
        body = msgspec.json.encode(document)
        about = tarfile.TarInfo(name)
        about.size, about.mode, about.mtime = len(body), 0o600, time.time()
        self._tar.addfile(about, io.BytesIO(body))

    def add(self, name: str, path: Path) -> bool:
        """A file, a link as it is, or a folder with all that is in it; whether all of it stayed as it was meanwhile.

        What is neither is passed over. Raises OSError where it cannot be read, or is gone.
        """
        with _opened(path.parent, None) as parent:
            return self._add(name, path.name, parent)

    def add_open(self, name: str, descriptor: int) -> bool:
        """An open file or folder, whatever it is called by now; likewise."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            return self._add_folder(name, descriptor, status)
        return self._add_file(name, os.dup(descriptor), status)

    def _add(self, name: str, entry: str, parent: int) -> bool:
        status = os.stat(entry, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            about = _about(name, status)
            about.type, about.linkname = tarfile.SYMTYPE, os.readlink(entry, dir_fd=parent)
            self._tar.addfile(about)
            return True
        if stat.S_ISDIR(status.st_mode):
            with _opened(entry, parent) as descriptor:
                return self._add_folder(name, descriptor, status)
        if stat.S_ISREG(status.st_mode):
            descriptor = os.open(entry, _FLAGS, dir_fd=parent)
            return self._add_file(name, descriptor, os.fstat(descriptor))
        return True

    def _add_folder(self, name: str, descriptor: int, status: os.stat_result) -> bool:
        about = _about(name, status)
        about.type = tarfile.DIRTYPE
        self._tar.addfile(about)
        steady = [self._add(f"{name}/{entry}", entry, descriptor) for entry in sorted(os.listdir(descriptor))]
        return all(steady) and os.fstat(descriptor).st_mtime_ns == status.st_mtime_ns

    def _add_file(self, name: str, descriptor: int, status: os.stat_result) -> bool:
        about = _about(name, status)
        about.size = status.st_size
        with open(descriptor, "rb") as file:
            file.seek(0)
            self._tar.addfile(about, _Whole(file, status.st_size))
            now = os.fstat(descriptor)
        return (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def _about(name: str, status: os.stat_result) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.mode, about.uid, about.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    about.mtime = status.st_mtime
    return about


@contextmanager
def _opened(path: Path | str, parent: int | None) -> Iterator[int]:
    descriptor = os.open(path, _FLAGS | os.O_DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Whole(io.RawIOBase):
    """A file with as many bytes as its header says, also where it was cut meanwhile; then it does not count."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left_bytes = size_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left_bytes if size < 0 else min(size, self._left_bytes)
        block = self._file.read(wanted).ljust(wanted, b"\0")
        self._left_bytes -= len(block)
        return block
