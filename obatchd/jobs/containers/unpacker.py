"""The process that unpacks one drop: it writes what a confined child reads, within the limits, and judges every name.

A child (:mod:`obatchd.child`) of the daemon for each drop. Nothing is lost with it: the drop is unpacked again.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import importlib
import lzma
import os
import shutil
import socket
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from obatchd import confined, frames
from obatchd.errors import DropRefused
from obatchd.installation import lacks
from obatchd.jobs.containers.kinds import HEAD_BYTES, Container, container_of, is_to_convert, name_of_content
from obatchd.jobs.containers.limits import Meter, Names, nested, refuse_nested
from obatchd.jobs.containers.messages import (
    Block,
    FromChild,
    Member,
    Note,
    Order,
    Refused,
    Trouble,
    Unpacked,
    from_child,
)
from obatchd.jobs.containers.unpacked import CONTENT, UNPACKED
from obatchd.jobs.formats.folder import folder_files, shown_name
from obatchd.jobs.formats.source import Unreadable, open_file

# Their words are plain; those of others are for programmers.
_DAMAGES = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
# What a file system says that has no such names, or does not tell small from large letters.
_OF_NAMES = (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EILSEQ)
_NOTES = 10
_NICE = 5  # answers go first
_OF_ALL = ("unpacked_too_large", "unpack_timeout", "library_missing")  # refusals that are not of one file alone


def main(connection: socket.socket, order: Order) -> None:
    """The work of the process: unpack, answer, end."""
    os.nice(_NICE)
    unpacker = Unpacker(order, connection)
    try:
        answer: Unpacked | Refused | Trouble = unpacker.run()
    except DropRefused as refusal:
        answer = Refused(refusal.code, refusal.message)
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in _OF_NAMES:
            answer = Refused("bad_archive", f"a file of it cannot be written: {words}; give it another name")
        else:
            unpacker.clean()  # others need the room
            answer = Trouble(error.errno or 0, words, unpacker.meter.needed_bytes)
    frames.send(connection, answer)


class Unpacker:
    """Unpacks one drop into ``unpacked`` beside it.

    Args:
        parent: the socket to the daemon, whose end ends this process.
    """

    def __init__(self, order: Order, parent: socket.socket) -> None:
        self._order = order
        self._parent = parent
        self._input = Path(order.directory) / "input"
        self._target = Path(order.directory) / UNPACKED
        self._content = self._target / CONTENT
        self.meter = Meter(order, self._free_bytes)
        self._deadline_s = time.monotonic() + order.timeout_s
        self._notes: list[str] = []

    def run(self) -> Unpacked:
        """Raises DropRefused where the drop cannot be unpacked, OSError where the disk refuses."""
        self.clean()
        self._target.mkdir(mode=0o700)
        name, overlay = self._order.name, self._input.is_dir()
        if overlay:
            self._content.mkdir(mode=0o700)
            problems = self._convert_files(self._input)
        else:
            container, file = self._opened(None, self._input, name)
            with file:
                is_tree = self._write(container, file, name, self._content, self._target / "tree")
            name = self._settle() if is_tree else name_of_content(container, name)
            problems = self._convert_inside(name) if is_tree else {}
        return Unpacked(name, overlay, problems, self._notes)

    def clean(self) -> None:
        """Delete what an attempt has written that came to nothing."""
        shutil.rmtree(self._target, ignore_errors=True)

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._target)
        return disk.f_bavail * disk.f_frsize

    def _opened(self, folder: Path | None, path: Path, name: str) -> tuple[Container, BinaryIO]:
        """A file that is to be unpacked; raises DropRefused where it is no container."""
        try:
            file = open_file(path, folder)
        except Unreadable as error:
            raise DropRefused(str(error), code="bad_archive") from None
        try:
            container = container_of(file.read(HEAD_BYTES), name)
            file.seek(0)
            if container is None:
                raise DropRefused("its first bytes are not those of the kind that its name says", code="bad_archive")
            _require_library(container)
        except BaseException:
            file.close()
            raise
        return container, file

    # Writing.

    def _write(self, container: Container, file: BinaryIO, name: str, alone: Path, tree: Path | None) -> bool:
        """Write what is in a container: one content to ``alone``, members below ``tree``; whether it had members.

        Raises DropRefused where it cannot be read, or goes beyond a limit.
        """
        self.meter.begin(os.fstat(file.fileno()).st_size)
        names, member, begun, out = Names(), b"", False, contextlib.ExitStack()
        target: BinaryIO | None = None
        with out:
            for message in self._messages(container, file, name):
                match message:
                    case Note(text):
                        self._note(text if name == self._order.name else f"{name}: {text}")
                    case Member(member, size, is_folder):
                        out.close()
                        self.meter.expect(size)
                        place = self._place(names, member, is_folder, alone, tree, name)
                        target, begun = (out.enter_context(_new(place)), False) if place else (None, True)
                    case Block(data):
                        if not begun and member:
                            refuse_nested(data, member)
                        begun = True
                        self.meter.add(len(data))
                        if target is not None:
                            target.write(data)
        if alone.exists():
            return False
        if tree is None:
            raise nested(os.fsencode(name))
        tree.mkdir(exist_ok=True)
        return True

    def _note(self, text: str) -> None:
        if len(self._notes) < _NOTES:
            self._notes.append(text)

    def _place(
        self, names: Names, member: bytes, is_folder: bool, alone: Path, tree: Path | None, name: str
    ) -> Path | None:
        """Where a member is written; None where it is not."""
        if not member:
            return alone
        if tree is None:
            raise nested(os.fsencode(name))
        path = names.judge(member, is_folder)
        return None if path is None else tree / path

    def _messages(self, container: Container, file: BinaryIO, name: str) -> Iterator[FromChild]:
        order = self._order
        limits = confined.Limits(max(self._deadline_s - time.monotonic(), 0.001), order.memory_bytes)
        try:
            for message in confined.messages(partial(_read, container, file, name), from_child, limits, self._parent):
                if isinstance(message, Refused):
                    raise DropRefused(message.message, code=message.code)
                yield message
        except confined.Died as died:
            words = died.words
            if died.cause == "timeout":
                words = f"took longer than {order.timeout_s:g} s (unpack_timeout_s in [inbox])"
            elif died.cause == "memory":
                words += " (unpack_memory_bytes in [inbox])"
            remedy = "unpack it yourself and drop the files"
            raise DropRefused(f"unpacking it {words}; {remedy}", code=f"unpack_{died.cause}") from None

    # Folders.

    def _settle(self) -> str:
        """Make the content of an archive's tree: its one file, or the folder in which all of it lies."""
        root, name = self._target / "tree", self._order.name
        while len(inside := list(root.iterdir())) == 1 and inside[0].is_dir():
            root = inside[0]
        if not inside:
            raise DropRefused("it holds no file", code="empty")
        if len(inside) == 1 and root == self._target / "tree":
            root, name = inside[0], shown_name(Path(inside[0].name))
        root.rename(self._content)
        return name

    def _convert_inside(self, name: str) -> dict[str, str]:
        if self._content.is_dir():
            return self._convert_files(self._content)
        if is_to_convert(name):
            self._convert(None, self._content, name, self._content)
        return {}

    def _convert_files(self, folder: Path) -> dict[str, str]:
        """Convert the files of a folder that need it; returns those that cannot be, and why."""
        problems = {}
        for path, problem in folder_files(folder):
            if problem is None and is_to_convert(path.name):
                try:
                    self._convert(folder, path, path.name, self._content / path)
                except DropRefused as refusal:
                    if refusal.code in _OF_ALL:
                        raise DropRefused(f"{shown_name(path)}: {refusal.message}", code=refusal.code) from None
                    problems[shown_name(path)] = refusal.message
        return problems

    def _convert(self, folder: Path | None, path: Path, name: str, target: Path) -> None:
        """Put the content of one file where it is read; it keeps its name."""
        temporary = self._target / "converting"
        temporary.unlink(missing_ok=True)
        if folder is None:
            folder, path = path.parent, Path(path.name)
        container, file = self._opened(folder, path, name)
        with file:
            if name_of_content(container, name) not in (name, name.rpartition(".")[0]):
                raise DropRefused(f"it is {container.words}; call it {container.endings[0]}", code="bad_archive")
            self._write(container, file, name, temporary, None)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)


def _new(path: Path) -> BinaryIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb")


def _require_library(container: Container) -> None:
    """Import it here, once for all children."""
    if not container.library:
        return
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # others reserve more than a child may have
    try:
        importlib.import_module(container.library)
    except ImportError:
        words = lacks(container.library.partition(".")[0], f"it is {container.words}, which")
        raise DropRefused(words, code="library_missing") from None


def _read(container: Container, file: BinaryIO, name: str, send: confined.Send) -> None:
    """In the confined child."""
    module, _, function = container.reader.rpartition(".")
    try:
        getattr(importlib.import_module(f"{__package__}.{module}"), function)(file, name, send)
    except DropRefused as refusal:
        send(Refused(refusal.code, refusal.message))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a reader may raise anything over what a stranger wrote; it is reported
        words = f" ({' '.join(str(error).split())[:200]})" if isinstance(error, _DAMAGES) and str(error) else ""
        send(Refused("bad_archive", f"it is {container.words}, but damaged or cut off{words}"))
