"""Claiming drops so that a crash at any instant neither loses nor doubles one.

Order: intents committed → renamed into work → inode compared → flushed → accepted. After a crash an intent whose inode
is in work is adopted, one still in the inbox is forgotten, an input without intent is adopted as recovered. A claimed
drop is never put back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from obatchd import crash_points, log
from obatchd.errors import ControlError, DropRefused
from obatchd.jobs.model import Intent, JobIds
from obatchd.jobs.store import StateStore
from obatchd.spool.drop import Drop
from obatchd.spool.flush import sync_filesystem, sync_paths, tree
from obatchd.spool.layout import Layout
from obatchd.spool.refusal import refuse_claimed

_log = log.get(__name__)
_COPY_BYTES = 1024**2
# Up to this many files their own fsyncs are cheaper than one flush of the whole file system.
_FEW_DROPS = 4
_NAME_FILE = "name"
_INCOMING = "incoming"


class ClaimReport(msgspec.Struct):
    """The intents that became jobs, and the drops that could not be renamed away, with why."""

    accepted: list[Intent] = []
    not_taken: list[tuple[Drop, OSError]] = []


def claim(drops: Sequence[Drop], layout: Layout, ledger: StateStore, ids: JobIds) -> ClaimReport:
    """Take everything that is ready, in the order given, and drops that an earlier call that failed has left.

    A drop that is not the one that the scan saw is left where it is: the next scan looks at it again. Raises OSError
    where the spool's file system refused; the next call, or :func:`recover`, settles the claims in progress.
    """
    accepted = settle(ledger.intents(), layout, ledger)
    wanted = [(drop, intent) for drop in drops if (intent := _intend(drop, ids)) is not None]
    if not wanted:
        return ClaimReport(accepted)
    ledger.add_intents([intent for _, intent in wanted])
    crash_points.reach("claim.after_intents")
    taken: list[Intent] = []
    lost: list[str] = []
    not_taken: list[tuple[Drop, OSError]] = []
    for drop, intent in wanted:
        arrived = _take(drop, intent, layout, not_taken)
        if arrived is None:
            lost.append(intent.job)
        else:
            taken.append(arrived)
        crash_points.reach("claim.after_rename")
    _conclude(taken, lost, layout, ledger)
    return ClaimReport([*accepted, *taken], not_taken)


def _conclude(taken: Sequence[Intent], lost: Sequence[str], layout: Layout, ledger: StateStore) -> None:
    _flush(taken, layout)
    crash_points.reach("claim.after_flush")
    if lost:
        ledger.forget(lost)
    if taken:
        for owner in {intent.owner for intent in taken}:
            layout.make_owner(owner)
        ledger.accept(taken)
    crash_points.reach("claim.after_accept")


def _intend(drop: Drop, ids: JobIds) -> Intent | None:
    """The intent to take ``drop``; None when it was withdrawn, swapped or changed since the scan."""
    try:
        descriptor = os.open(drop.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        intent = _intent(ids.new(), drop.name, drop.path, status, time.time())
    except OSError:
        return None
    found = (intent.device, intent.inode, intent.kind, status.st_mtime_ns)
    if found != (drop.device, drop.inode, drop.kind, drop.mtime_ns) or (
        drop.kind == "file" and intent.size != drop.size
    ):
        return None
    return intent


def _intent(job: str, name: bytes, path: Path, status: os.stat_result, at_s: float) -> Intent:
    """The intent for what lies at ``path``, for its own owner."""
    kind, size = "file", status.st_size
    if stat.S_ISDIR(status.st_mode):
        kind = "folder"
        size = sum(_file_bytes(os.path.join(place, name)) for place, _, files in os.walk(path) for name in files)
    return Intent(job, name, status.st_uid, status.st_dev, status.st_ino, size, kind, at_s)


def _file_bytes(path: str) -> int:
    """0 of anything that is no file."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def _take(drop: Drop, intent: Intent, layout: Layout, not_taken: list[tuple[Drop, OSError]]) -> Intent | None:
    """Rename one drop into its own new directory; None when nothing that can be a job arrived there."""
    directory = layout.job_dir(intent.job)
    directory.mkdir(mode=0o700)
    crash_points.reach("claim.after_mkdir")
    try:
        os.rename(drop.path, directory / "input")
    except OSError as error:
        directory.rmdir()
        if not isinstance(error, FileNotFoundError):  # else it was withdrawn in the last instant
            not_taken.append((drop, error))
        return None
    return _arrived(intent, layout)


def _arrived(intent: Intent, layout: Layout) -> Intent | None:
    """The intent as it turned out, once its drop is in work; None when it is not there or is no file.

    The name may have been given to something else between the look and the rename. What arrived is then run as what it
    is, for its own owner; it is never put back.
    """
    directory = layout.job_dir(intent.job)
    status = _lstat(directory / "input")
    if status is None:
        return None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        refusal = DropRefused("it was swapped for something that is no file", code="not_a_file")
        refuse_claimed(intent.job, intent.name, status.st_uid, layout, refusal)
        return None
    _write_name(directory, intent.name)
    # An inode is soon given to another file once its own is deleted.
    kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
    arrived = (status.st_dev, status.st_ino, status.st_uid, kind)
    if arrived != (intent.device, intent.inode, intent.owner, intent.kind):
        # A file of our own is the copy that an earlier call made of a drop with other names.
        owner = intent.owner if status.st_uid == os.geteuid() else status.st_uid
        _log.warning("input_is_another_file", job=intent.job, owner=owner)
        intent = msgspec.structs.replace(_found(directory, status), name=intent.name, owner=owner, at_s=intent.at_s)
    if intent.kind == "file" and status.st_nlink > 1:
        _own_copy(directory / "input")
        _log.info("drop_copied", job=intent.job, reason="the file has other names, under which it could be changed")
    return intent


def _own_copy(target: Path) -> None:
    """Somebody else still holds a name for the inode and could change it: run a copy."""
    temporary = target.with_name("input.copy")
    try:
        shutil.copyfile(target, temporary, follow_symlinks=False)
    except PermissionError:  # its owner has closed it to us since the look: it cannot be run either
        return
    os.replace(temporary, target)


def _write_name(directory: Path, name: bytes) -> None:
    """Beside the input, so that a drop can be named even when the index is lost."""
    with open(directory / _NAME_FILE, "wb") as file:
        file.write(name)


def _flush(intents: Sequence[Intent], layout: Layout) -> None:
    if not intents:
        return
    if len(intents) > _FEW_DROPS or any(intent.kind == "folder" for intent in intents):
        # A folder may hold entries that cannot be opened for fsync: files of mode 0, FIFOs.
        sync_filesystem(layout.jobs)
        return
    try:
        for intent in intents:
            sync_paths(tree(layout.job_dir(intent.job)))
        sync_paths([layout.jobs, layout.inbox])
    except PermissionError:  # its owner may close a file to us at any time, which must hold up nobody
        sync_filesystem(layout.jobs)


def settle(intents: Sequence[Intent], layout: Layout, ledger: StateStore) -> list[Intent]:
    """End claims that were cut short: adopt drops in work, forget those still in the inbox."""
    adopted: list[Intent] = []
    forgotten: list[str] = []
    for intent in intents:
        arrived = _arrived(intent, layout)
        if arrived is None:
            forgotten.append(intent.job)
            shutil.rmtree(layout.job_dir(intent.job), ignore_errors=True)
        else:
            adopted.append(arrived)
            _log.warning("drop_adopted", job=intent.job, owner=intent.owner, reason="its claim was cut short")
    if intents:
        _conclude(adopted, forgotten, layout, ledger)
    return adopted


def recover(layout: Layout, ledger: StateStore) -> list[Intent]:
    """Settle claims that a crash cut short; returns the adopted drops. Only at the start."""
    adopted = settle(ledger.intents(), layout, ledger)
    known = ledger.jobs()
    found: list[Intent] = []
    for directory in sorted(layout.jobs.iterdir()):
        if directory.name in known:
            complete_submission(directory)
        if directory.name in known or not directory.is_dir():
            continue
        if not os.path.lexists(directory / "input"):
            shutil.rmtree(directory, ignore_errors=True)  # a submission or claim that never came to anything
        elif (intent := identify(directory)) is not None:
            found.append(intent)
            _log.warning("drop_adopted", job=directory.name, reason="an input without an intent; the index was lost")
    if found:
        _conclude(found, [], layout, ledger)
    return [*adopted, *found]


def identify(directory: Path) -> Intent | None:
    """The drop that a job's input must have been, where nothing else is known; None where there is none."""
    status = _lstat(directory / "input")
    if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return None
    return _found(directory, status)


def _found(directory: Path, status: os.stat_result) -> Intent:
    name = b"recovered.jsonl"
    with contextlib.suppress(OSError):
        name = (directory / _NAME_FILE).read_bytes() or name
    return _intent(directory.name, name, directory / "input", status, status.st_mtime)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


# Submissions: drops that come through obatchctl submit.


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
        return self.directory / _INCOMING

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


def begin_submission(layout: Layout, ids: JobIds, name: bytes, owner: int, kind: str) -> Incoming:
    """Make room for a submission of ``kind`` ``file`` or ``folder``."""
    job = ids.new()
    directory = layout.job_dir(job)
    directory.mkdir(mode=0o700)
    _write_name(directory, name)
    if kind == "folder":
        (directory / _INCOMING).mkdir(mode=0o700)
    return Incoming(job, name, owner, kind, directory)


def commit_submission(incoming: Incoming, layout: Layout, ledger: StateStore) -> Intent:
    """Make a submission durable and accept it. Raises ControlError where it is empty."""
    status = _lstat(incoming.input)
    if status is None or (incoming.kind == "file" and not status.st_size):
        raise ControlError(f"{os.fsdecode(incoming.name)} is empty: there is no request in it", code="empty")
    intent = _intent(incoming.job, incoming.name, incoming.input, status, time.time())
    intent = msgspec.structs.replace(intent, owner=incoming.owner)
    _flush([intent], layout)
    layout.make_owner(incoming.owner)
    # Accepted before it gets its final name: a crash before this forgets it, one after it completes the rename.
    ledger.accept([intent])
    crash_points.reach("submit.after_accept")
    complete_submission(incoming.directory)
    return intent


def complete_submission(directory: Path) -> None:
    """Give an accepted submission its final name, where that was not done yet."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory / _INCOMING, directory / "input")
    except OSError as error:
        _log.error("submission_not_renamed", job=directory.name, reason=log.reason(error), remedy="it is tried again")
