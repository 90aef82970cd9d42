"""Claiming drops so that a crash at any instant neither loses nor doubles one.

Order: intents committed → renamed into work → inode compared → flushed → accepted. After a crash an intent whose inode
is in work is adopted, one still in the inbox is forgotten, an input without intent is adopted as recovered. A claimed
drop is never put back.

Where the inbox is another mount, the drop is copied and flushed instead, and then deleted from the inbox. After a crash
an input that is the copy of what still lies in the inbox is adopted, and the original deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from obatchd import crash_points, log
from obatchd.errors import ControlError, DropRefused
from obatchd.jobs.model import Intent, JobIds
from obatchd.jobs.store import BatchRow, StateStore
from obatchd.spool.copying import INCOMING, Incoming, clear_taken, copy, leave, leave_again
from obatchd.spool.drop import Drop
from obatchd.spool.flush import sync_filesystem, sync_paths, tree
from obatchd.spool.layout import Layout, input_bytes, size_bytes
from obatchd.spool.refusal import refuse_claimed

_log = log.get(__name__)
# Up to this many files their own fsyncs are cheaper than one flush of the whole file system.
_FEW_DROPS = 4
_NAME_FILE, _OWNER_FILE = "name", "owner"


class ClaimReport(msgspec.Struct):
    """The intents that became jobs, and the drops that could not be renamed away, with why."""

    accepted: list[Intent] = []
    not_taken: list[tuple[Drop, OSError]] = []


def claim(
    drops: Sequence[Drop], layout: Layout, ledger: StateStore, ids: JobIds, keep_free_bytes: int = 0
) -> ClaimReport:
    """Take everything that is ready, in the order given, and drops that an earlier call that failed has left.

    A drop that is not the one that the scan saw is left where it is: the next scan looks at it again. One that has to
    be copied is taken only while ``keep_free_bytes`` stay free. Raises OSError where the spool's file system refused;
    the next call, or :func:`recover`, settles the claims in progress.
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
        arrived = _take(drop, intent, layout, not_taken, keep_free_bytes)
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
    return intent if _is_seen(drop, intent, status) else None


def _is_seen(drop: Drop, intent: Intent, status: os.stat_result) -> bool:
    """Whether it is still what the scan saw."""
    found = (intent.device, intent.inode, intent.kind, status.st_mtime_ns)
    return found == (drop.device, drop.inode, drop.kind, drop.mtime_ns) and (
        drop.kind == "folder" or intent.size == drop.size
    )


def _intent(job: str, name: bytes, path: Path, status: os.stat_result, at_s: float) -> Intent:
    """The intent for what lies at ``path``, for its own owner."""
    kind, size = "file", status.st_size
    if stat.S_ISDIR(status.st_mode):
        kind, size = "folder", input_bytes(path)
    return Intent(job, name, status.st_uid, status.st_dev, status.st_ino, size, kind, at_s)


def _take(
    drop: Drop, intent: Intent, layout: Layout, not_taken: list[tuple[Drop, OSError]], keep_free_bytes: int
) -> Intent | None:
    """Move one drop into its own new directory; None when nothing that can be a job arrived there."""
    directory = layout.job_dir(intent.job)
    directory.mkdir(mode=0o700)
    crash_points.reach("claim.after_mkdir")
    try:
        os.rename(drop.path, directory / "input")
    except OSError as error:
        if error.errno == errno.EXDEV:
            return _take_copy(drop, intent, layout, not_taken, keep_free_bytes)
        directory.rmdir()
        if not isinstance(error, FileNotFoundError):  # else it was withdrawn in the last instant
            not_taken.append((drop, error))
        return None
    return _arrived(intent, layout)


def _take_copy(
    drop: Drop, intent: Intent, layout: Layout, not_taken: list[tuple[Drop, OSError]], keep_free_bytes: int
) -> Intent | None:
    """The same for a drop that lies on another mount: until it is gone from there, the copy counts for nothing."""
    directory = layout.job_dir(intent.job)
    try:
        _write_name(directory, intent.name)
        if layout.free().bytes - (intent.size or size_bytes(drop.path)) < keep_free_bytes:
            raise OSError(errno.ENOSPC, "the disk of the spool has no room for a copy")
        copied = copy(drop.path, directory / "input")
        sync_paths([directory / _NAME_FILE, layout.jobs])
        crash_points.reach("claim.after_copy")
        status = drop.path.lstat()
        now = _intent(intent.job, intent.name, drop.path, status, intent.at_s)
        if copied != (intent.device, intent.inode) or not _is_seen(drop, now, status):
            raise FileNotFoundError(errno.ENOENT, "it was changed meanwhile")  # the next scan looks at it again
        leave(drop.path, intent.job)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        if not isinstance(error, FileNotFoundError):
            not_taken.append((drop, error))
        return None
    sync_paths([layout.inbox])
    found = _found(directory, (directory / "input").lstat())
    return msgspec.structs.replace(found, owner=intent.owner, at_s=intent.at_s)


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
        has_left = leave_again(intent, layout.inbox, layout.job_dir(intent.job) / "input")
        arrived = _arrived(intent, layout) if has_left else None
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
    clear_taken(layout.inbox, known)
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
            _log.warning(
                "drop_adopted", job=directory.name, reason="the list of jobs was lost, and its input was still there"
            )
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
    intent = _intent(directory.name, name, directory / "input", status, status.st_mtime)
    with contextlib.suppress(OSError, ValueError):
        intent = msgspec.structs.replace(intent, owner=int((directory / _OWNER_FILE).read_bytes()))
    return intent


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


# Submissions: drops that come through obatchctl submit.


def begin_submission(layout: Layout, ids: JobIds, name: bytes, owner: int, kind: str) -> Incoming:
    """Make room for a submission of ``kind`` ``file`` or ``folder``."""
    job = ids.new()
    directory = layout.job_dir(job)
    directory.mkdir(mode=0o700)
    _write_name(directory, name)
    if kind == "folder":
        (directory / INCOMING).mkdir(mode=0o700)
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


def begin_batch(layout: Layout, ids: JobIds, name: bytes, owner: int, content: Path) -> Incoming:
    """Make room for a batch of an uploaded file, which gets a second name here, or a copy where it cannot have one.

    Raises FileNotFoundError where the file is gone.
    """
    begun = begin_submission(layout, ids, name, owner, "file")
    try:
        (begun.directory / _OWNER_FILE).write_text(str(owner), "ascii")  # the file is the daemon's own
        try:
            os.link(content, begun.input)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(content, begun.input)
    except BaseException:
        begun.abandon()
        raise
    return begun


def commit_batch(begun: Incoming, layout: Layout, ledger: StateStore, batch: BatchRow) -> Intent:
    """Make a batch durable and accept it, with its terms, in one transaction."""
    intent = _intent(begun.job, begun.name, begun.input, begun.input.lstat(), time.time())
    intent = msgspec.structs.replace(intent, owner=begun.owner)
    _flush([intent], layout)
    layout.make_owner(begun.owner)
    ledger.accept([intent], batch)  # as a submission, before the file gets its final name
    crash_points.reach("batches.after_accept")
    complete_submission(begun.directory)
    return intent


def complete_submission(directory: Path) -> None:
    """Give an accepted submission its final name, where that was not done yet."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory / INCOMING, directory / "input")
    except OSError as error:
        _log.error("submission_not_renamed", job=directory.name, reason=log.reason(error), remedy="it is tried again")
