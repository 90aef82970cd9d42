"""The audit log in the spool: lines of JSON that are only ever added to, beside the index, which may be made again.

``work/audit/audit.jsonl`` has the latest entries, ``audit.1.jsonl`` those before, and so on. An entry is durable before
what it tells of is done, so a crash may leave one of something that was not done, and never the opposite. Where the
disk refuses, or says nothing for two seconds, the action goes on all the same: a GPU that burns is taken out of use on
a full disk, too. What could not be written is kept in memory and tried again, and the status says so.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from attrs import define, field

from obatchd import log
from obatchd.documents.audit import ITSELF, RECORDS_LOST, AuditAsked, AuditDocument, AuditEntry
from obatchd.naming import user_name
from obatchd.spool.flush import sync_paths
from obatchd.tasks import TaskSet
from obatchd.times import instant
from obatchd.words import counted

_log = log.get(__name__)
_DIRECTORY, _NAME = "audit", "audit.jsonl"
_FILE_BYTES = 4 * 1024**2  # then another one is begun
_OLDER_FILES = 7
_TEXT_CHARACTERS = 500
_PATIENCE_S = 2.0  # longest wait of an action for a disk that says nothing
_AGAIN_S = 10.0
_WAITING = 1000  # entries kept while the disk refuses


class AuditFile:
    """The files of a spool. Every method blocks, and raises OSError where the disk refuses."""

    def __init__(self, work: Path) -> None:
        self._directory = work / _DIRECTORY
        self._lock = threading.Lock()

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Add entries, durably."""
        lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
        path = self._directory / _NAME
        with self._lock:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._rotate(path)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                if size := os.fstat(descriptor).st_size:
                    # After half a line of a crash or a full disk the next one begins on a line of its own.
                    lines = lines if os.pread(descriptor, 1, size - 1) == b"\n" else b"\n" + lines
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if not size:
                sync_paths([self._directory, self._directory.parent])

    def _rotate(self, path: Path) -> None:
        """Begin another file where this one is full. Where the disk refuses, it only gets larger."""
        try:
            if path.stat().st_size < _FILE_BYTES:
                return
        except FileNotFoundError:
            return
        with suppress(OSError):
            for number in range(_OLDER_FILES, 1, -1):
                with suppress(FileNotFoundError):
                    self._older(number - 1).replace(self._older(number))
            path.replace(self._older(1))

    def _older(self, number: int) -> Path:
        return self._directory / f"audit.{number}.jsonl"

    def read(self, asked: AuditAsked) -> tuple[list[AuditEntry], int]:
        """The entries asked for, the oldest first, and how many lines on the way were none."""
        found, unreadable = list[AuditEntry](), 0
        with self._lock:
            for line in self._lines():
                try:
                    entry = msgspec.json.decode(line, type=AuditEntry)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    unreadable += 1
                    continue
                if _fits(entry, asked):
                    found.append(entry)
                    if len(found) == asked.limit:
                        break
        return found[::-1], unreadable

    def _lines(self) -> Iterator[bytes]:
        """From the latest to the oldest."""
        for path in (self._directory / _NAME, *map(self._older, range(1, _OLDER_FILES + 1))):
            with suppress(FileNotFoundError):
                yield from (line for line in reversed(path.read_bytes().split(b"\n")) if line)


def _fits(entry: AuditEntry, asked: AuditAsked) -> bool:
    """Times are told in one form, which sorts as they do."""
    since, until = instant(asked.since_s), instant(asked.until_s)
    return (
        (not since or entry.at >= since)
        and (not until or entry.at < until)
        and (not asked.kinds or any(entry.kind == kind or entry.kind.startswith(f"{kind}_") for kind in asked.kinds))
    )


@define(eq=False)
class AuditLog:
    """Writes entries, and keeps those that the disk does not take. Called from the main loop."""

    _work: Path
    problem: str = field(default="", init=False)  # why entries wait for the disk; empty: none does
    _file: AuditFile = field(init=False)
    _tasks: TaskSet = field(init=False)
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _waiting: list[AuditEntry] = field(factory=list, init=False)
    _lost: int = field(default=0, init=False)
    _trying: asyncio.Task[None] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._file, self._tasks = AuditFile(self._work), TaskSet(self)

    def task_failed(self, name: str, error: BaseException) -> None:
        """A defect, which is in the log: what operators do goes on."""
        self.problem = "the audit log is not written because of a defect of obatchd; restart it"

    async def record(self, *entries: AuditEntry) -> None:
        """Write entries: they are durable when this returns, unless the disk refuses or says nothing for long."""
        await asyncio.wait({self.note(*entries)}, timeout=_PATIENCE_S)

    def note(self, *entries: AuditEntry) -> asyncio.Task[None]:
        """Write entries soon; the task of it, for which nobody has to wait."""
        room = max(0, _WAITING - len(self._waiting))
        self._waiting += entries[:room]
        self._lost += len(entries[room:])
        return self._tasks.start(self._write(), "audit")

    async def _write(self) -> None:
        async with self._turn:
            entries, lost = [*self._waiting], self._lost
            if not entries:
                return
            if lost:
                entries.append(entry_of_itself(RECORDS_LOST, detail=counted(lost, "entry", "entries")))
            try:
                await asyncio.to_thread(self._append, entries)
            except OSError as error:
                self._tell(log.reason(error))
                return
            del self._waiting[: len(entries) - bool(lost)]
            self._lost -= lost
            if self.problem:
                _log.info("audit_written_again")
            self.problem = ""

    def _tell(self, reason: str) -> None:
        if not self.problem:
            _log.error("audit_not_written", reason=reason)
        waiting = counted(len(self._waiting), "entry", "entries")
        lost = f"; {self._lost:,} more are lost" if self._lost else ""
        self.problem = f"the audit log cannot be written: {reason}; {waiting} kept in memory until it can{lost}"
        if self._trying is None or self._trying.done():
            self._trying = self._tasks.start(self._try_again(), "audit-again")

    async def _try_again(self) -> None:
        while self.problem:
            await asyncio.sleep(_AGAIN_S)
            await self._write()

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        """The names are looked up here, because whoever knows the users may take long."""
        self._file.append([_as_kept(entry) for entry in entries])

    async def read(self, asked: AuditAsked) -> AuditDocument:
        """The entries asked for; raises OSError where the disk refuses."""
        return AuditDocument(*await asyncio.to_thread(self._file.read, asked), self.problem)

    async def stop(self) -> None:
        """Write what waits; what the disk does not take is lost, and the log says so."""
        if self._trying is not None:
            self._trying.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._write()
        await self._tasks.stop()
        if left := len(self._waiting) + self._lost:
            _log.error("audit_entries_lost", entries=left)


def entry_of_itself(kind: str, target: str = "", detail: str = "") -> AuditEntry:
    """What obatchd did, unasked."""
    return AuditEntry(
        at=instant(time.time()) or "", kind=kind, uid=os.geteuid(), door=ITSELF, target=target,
        detail=detail or msgspec.UNSET,
    )  # fmt: skip


def _as_kept(entry: AuditEntry) -> AuditEntry:
    """With the user's name, and each text of one length at most and whole characters."""
    entry = msgspec.structs.replace(entry, user=user_name(entry.uid))
    texts = {name: value for name, value in msgspec.structs.asdict(entry).items() if isinstance(value, str)}
    kept = {name: text[:_TEXT_CHARACTERS].encode("utf-8", "replace").decode() for name, text in texts.items()}
    return msgspec.structs.replace(entry, **kept)
