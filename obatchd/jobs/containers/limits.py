"""The limits of what comes out of a container: bytes, their ratio to the packed ones, files, names, nesting."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath

from obatchd.errors import DropRefused
from obatchd.jobs.containers.kinds import HEAD_BYTES, container_of
from obatchd.jobs.containers.messages import Order
from obatchd.jobs.model import ARCHIVE_ENDINGS, is_passed_over

MEMBERS = 100_000  # with the folders that only their paths name: each takes space on the disk
DEPTH = 32  # folders in one another
_NAME_BYTES, _PATH_BYTES = 255, 2000  # NAME_MAX, and half of PATH_MAX
# Texts shrink to a twentieth at best, and a few repetitive ones to a hundredth; bombs to less than a thousandth.
RATIO, RATIO_FROM_BYTES = 200, 256 * 1024**2
_LOOK_AT_DISK_BYTES = 8 * 1024**2
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_REMEDY = "; unpack it yourself and drop the files"


def shown(name: bytes) -> str:
    """A member's name in a message: on one line, and not without end."""
    text = name.decode("utf-8", "backslashreplace")
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return clean if len(clean) <= 100 else clean[:100] + "…"


class Meter:
    """Counts what comes out, before it is written. Every method raises DropRefused at a limit."""

    def __init__(self, order: Order, free_bytes: Callable[[], int]) -> None:
        self._order = order
        self._free_bytes = free_bytes
        self._bytes = 0
        self._packed_bytes = 0
        self._looked_bytes = -_LOOK_AT_DISK_BYTES

    def begin(self, packed_bytes: int) -> None:
        """A container of so many bytes is unpacked next."""
        self._packed_bytes += packed_bytes

    def add(self, count: int) -> None:
        """So many bytes are about to be written. Raises OSError where the disk has no room for them."""
        self._bytes += count
        self.expect(0)
        if self._bytes - self._looked_bytes >= _LOOK_AT_DISK_BYTES:
            self._looked_bytes = self._bytes
            if (free := self._free_bytes() - _LOOK_AT_DISK_BYTES) < self._order.keep_free_bytes:
                raise OSError(errno.ENOSPC, f"unpacking needs more bytes than the disk can spare ({free} free)")

    @property
    def needed_bytes(self) -> int:
        """What has to be free for an attempt to come further than this one."""
        return self._bytes + _LOOK_AT_DISK_BYTES

    def expect(self, count: int) -> None:
        """So many bytes are announced."""
        total, limit = self._bytes + count, self._order.max_bytes
        if total > limit:
            raise DropRefused(
                f"it unpacks to more than max_unpacked_bytes ({limit}) in [inbox]", code="unpacked_too_large"
            )
        if total > RATIO_FROM_BYTES and total > RATIO * self._packed_bytes:
            raise bomb()


class Names:
    """Judges the names of an archive's members."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._files: set[str] = set()
        self.count = 0

    def judge(self, name: bytes, is_folder: bool) -> PurePosixPath | None:
        """Where a file belongs; None for folders and litter. Raises DropRefused where it belongs nowhere."""
        self.count += 1
        if self.count > MEMBERS:
            raise too_many()
        path = _path(name)
        if not path.parts or any(is_passed_over(part) for part in path.parts):
            return None
        key, folders = _key(path), {_key(above) for above in path.parents[:-1]}
        if is_folder:
            folders.add(key)
        elif path.name.lower().endswith(ARCHIVE_ENDINGS):
            raise nested(name)
        elif key in self._files:
            raise bad_member(name, "is there twice, or with other capitals; give every file a name of its own")
        else:
            self._files.add(key)
        self._folders |= folders
        if len(self._files) + len(self._folders) > MEMBERS:
            raise too_many()
        if folders & self._files or (not is_folder and key in self._folders):
            raise bad_member(name, "is a file and a folder at once")
        return None if is_folder else path


def _key(path: PurePosixPath) -> str:
    """A path as a disk sees it that does not tell small from large letters."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _path(name: bytes) -> PurePosixPath:
    text = os.fsdecode(name)
    path = PurePosixPath(text)
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise bad_member(name, "has a control character in its name; rename it")
    if path.is_absolute() or _DRIVE.match(text):
        raise bad_member(name, "has an absolute path; pack the folder by its relative name")
    if ".." in path.parts:
        raise bad_member(name, "leads out of the archive (..); pack it from within its folder")
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.parts):
        raise bad_member(name, f"has a name longer than {_NAME_BYTES} bytes; rename it")
    if len(name) > _PATH_BYTES:
        raise bad_member(name, f"has a path longer than {_PATH_BYTES} bytes; pack it from within its folder")
    if len(path.parts) > DEPTH:
        raise bad_member(name, f"lies more than {DEPTH} folders deep; pack fewer")
    return path


def too_many() -> DropRefused:
    return DropRefused(f"it holds more than {MEMBERS} files and folders{_REMEDY}", code="too_many_files")


def bomb() -> DropRefused:
    words = f"it unpacks to more than {RATIO} times its size, as only a zip bomb does{_REMEDY}"
    return DropRefused(words, code="unpacked_too_large")


def bad_member(name: bytes, problem: str, code: str = "bad_archive") -> DropRefused:
    """The refusal of an archive because of one of its members."""
    return DropRefused(f"{shown(name)} in it {problem}", code=code)


def nested(name: bytes, words: str = "an archive") -> DropRefused:
    return bad_member(name, f"is {words} itself; unpack it before you pack", "nested_archive")


def refuse_nested(head: bytes, name: bytes) -> None:
    """Raise DropRefused where a member that begins with ``head`` is an archive, whatever its name says."""
    inside = container_of(head[:HEAD_BYTES], os.fsdecode(name))
    if inside is not None and not inside.read_as and not os.fsdecode(name).lower().endswith(inside.endings):
        raise nested(name, inside.words)
