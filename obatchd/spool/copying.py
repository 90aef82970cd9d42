"""Copies drops: from one mount of a spool to another, and submissions from their open files.

rename(2) fails with EXDEV between two file systems, and between two mounts of the same one. What it cannot move is
copied durably before its first name goes, so a crash leaves the original, the whole copy, or both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Set
from pathlib import Path
from typing import IO

import msgspec

from obatchd import log
from obatchd.errors import ControlError
from obatchd.jobs.model import Intent
from obatchd.spool.flush import sync_paths, tree
from obatchd.spool.layout import input_bytes

_log = log.get(__name__)
INCOMING = "incoming"
_TAKEN = ".taken"  # behind the job: a folder that was copied, while it is being deleted from the inbox
_COPY_BYTES = 1024**2


def move(source: Path, target: Path) -> None:
    """Rename a file, link, folder or special file, or copy it and delete the original.

    Raises OSError where it cannot be, and FileNotFoundError where there is none.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(source, target)
        take_away(source, source.with_name(f".{source.name}.gone"))


def copy(source: Path, target: Path) -> tuple[int, int]:
    """A durable copy under a name that appears when it is whole; it is the daemon's own, not the owner's.

    Returns device and inode of what was copied. Raises OSError where that cannot be, or something else took its place.
    """
    temporary = target.with_name(f"{target.name}.copy")
    for earlier in (temporary, target):
        delete(earlier)
    try:
        copied = _copy(source, temporary)
        sync_paths(path for path in tree(temporary) if path.is_file() or path.is_dir())
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            delete(temporary)
        raise
    sync_paths([target.parent])
    return copied


def _copy(source: Path, target: Path) -> tuple[int, int]:
    status = source.lstat()
    if stat.S_ISDIR(status.st_mode):
        target.mkdir(mode=0o755)
        for child in source.iterdir():
            _copy(child, target / child.name)
    elif stat.S_ISREG(status.st_mode):
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as content, open(target, "xb") as file:
            status = os.fstat(descriptor)  # of what is read: the name may be another file's by now
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "something else took its place")
            shutil.copyfileobj(content, file, _COPY_BYTES)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mkfifo(target, 0o600)  # in place of whatever it is: nobody reads it
    return status.st_dev, status.st_ino


def take_away(path: Path, aside: Path) -> None:
    """Delete a drop that was copied, at one instant; ``aside`` is a hidden name beside it, for a folder on its way.

    Not flushed. Raises OSError where it may not be deleted: it is whole then.
    """
    if stat.S_ISDIR(path.lstat().st_mode):
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.unlink(path)


def delete(path: Path) -> None:
    """Delete a file or folder, where there is one."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


# The inbox on another mount: a drop leaves it when its copy is durable.


def leave(path: Path, job: str) -> None:
    """Delete a drop from the inbox whose copy is durable; as :func:`take_away`."""
    take_away(path, path.with_name(f".{job}{_TAKEN}"))


def leave_again(intent: Intent, inbox: Path, target: Path) -> bool:
    """Delete the original of the copy at ``target``, where a crash has left it in the inbox.

    False: that cannot be, or the original was written to since.
    """
    source, wanted = inbox / os.fsdecode(intent.name), (intent.device, intent.inode)
    if not os.path.lexists(target) or _identity(source) != wanted:
        return True
    if _identity(target) == wanted:
        return True  # it was renamed, and has that name again because it has several
    try:
        if input_bytes(source) != input_bytes(target):
            return False
        leave(source, intent.job)
    except OSError as error:
        _log.warning("drop_not_deleted", job=intent.job, owner=intent.owner, reason=log.reason(error))
        return False
    sync_paths([inbox])
    return True


def clear_taken(inbox: Path, known: Set[str]) -> None:
    """Delete what a crash has left of folders that were copied for these jobs."""
    for path in inbox.glob(f".*{_TAKEN}"):
        if path.name.removeprefix(".").removesuffix(_TAKEN) in known:
            shutil.rmtree(path, ignore_errors=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


# Submissions.


class Incoming(msgspec.Struct):
    """A submission being written into work. Not accepted before :func:`commit_submission`."""

    job: str
    name: bytes
    owner: int
    kind: str
    directory: Path
    copied_bytes: int = 0

    @property
    def input(self) -> Path:
        return self.directory / INCOMING

    def add(self, name: str, source: IO[bytes], limit_bytes: int, keep_free_bytes: int = 0) -> None:
        """Copy one file; for a folder ``name`` is its path inside. ``limit_bytes`` is for all files together.

        Raises ControlError where the name leads out of the folder, is there already, or there is too much of it for the
        limit or for a disk that is to keep ``keep_free_bytes``, OSError where it cannot be written.
        """
        target = self.input
        if self.kind == "folder":
            if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
                raise ControlError(f"{name!r} cannot be a file name in a submitted folder", code="bad_name")
            target = self.input / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.lexists(target):
            raise ControlError(f"{name} is there twice in the submission", code="bad_name")
        with open(target, "xb") as file:
            while block := source.read(_COPY_BYTES):
                self.copied_bytes += len(block)
                if self.copied_bytes > limit_bytes:
                    reason = f"it has more than the {limit_bytes} bytes of max_unpacked_bytes in [inbox]"
                    raise ControlError(reason, code="too_large")
                disk = os.fstatvfs(file.fileno())
                free_bytes = disk.f_bavail * disk.f_frsize
                if free_bytes - len(block) < keep_free_bytes:
                    least = f"{keep_free_bytes // 1024**2} MiB (min_free_bytes in [disk]) must stay free"
                    reason = f"the disk has no room for it: {free_bytes // 1024**2} MiB are left, {least}"
                    raise ControlError(reason, code="no_room")
                file.write(block)

    def abandon(self) -> None:
        """Remove the written files; nothing was accepted."""
        shutil.rmtree(self.directory, ignore_errors=True)
