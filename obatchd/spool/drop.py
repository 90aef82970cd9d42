"""An entry of the inbox: its kind, and whether it may be taken."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from obatchd.errors import DropRefused
from obatchd.jobs.model import is_passed_over


class Drop(msgspec.Struct, frozen=True):
    name: bytes
    path: Path
    owner: int  # uid
    device: int
    inode: int
    size: int  # bytes
    kind: str  # file or folder
    mtime_ns: int

    @property
    def label(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")


class Blocked(msgspec.Struct, frozen=True):
    """A drop that cannot be taken as things stand."""

    name: str
    reason: str
    owner: int  # uid
    tried: bool = False  # all looked well, but it could not be renamed away


def is_temporary(name: bytes) -> bool:
    """Whether a name is passed over: one that copying programs and editors use until they are done, or litter."""
    return is_passed_over(os.fsdecode(name))


def describe(name: bytes, path: Path, status: os.stat_result) -> Drop:
    kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
    size = status.st_size if kind == "file" else 0
    return Drop(name, path, status.st_uid, status.st_dev, status.st_ino, size, kind, status.st_mtime_ns)


def not_a_file(status: os.stat_result) -> DropRefused | None:
    """Why something that is no drop at all is refused."""
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return None
    if stat.S_ISLNK(status.st_mode):
        return DropRefused("it is a symbolic link; links are not followed: drop the file itself", code="link")
    return DropRefused("it is neither a file nor a folder", code="not_a_file")


def permission_trouble(drop: Drop) -> str | None:
    """Why the daemon's user may not take a drop, or None."""
    if drop.kind == "folder" and os.geteuid() not in (0, drop.owner):
        # rename(2) of a directory rewrites its "..", so it needs write permission in the directory itself.
        return "a folder of another user cannot be taken from the inbox: use obatchctl submit"
    needed = os.R_OK | (os.W_OK | os.X_OK if drop.kind == "folder" else 0)
    if not os.access(drop.path, needed, effective_ids=True) and os.path.lexists(drop.path):
        right = "chmod u+rwx" if drop.kind == "folder" else "chmod a+r"  # no name: it is logged
        return f"the daemon's user may not read it: use obatchctl submit, or give it the right with  {right}"
    return None
