"""From the inbox into the queue: scan, claim, index. Small drops go together, large ones chunk by chunk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import msgspec

from obatchd import log
from obatchd.documents.alarms import JobRefused
from obatchd.errors import DropRefused, SpoolError
from obatchd.intake.indexing import NEXT_CHUNK, Chunk, DropReader
from obatchd.intake.limits import OwnerLimits
from obatchd.intake.submitted import SubmittedSettings
from obatchd.intake.unpacking import DropUnpacker
from obatchd.jobs.model import JobIds, JobState
from obatchd.jobs.store import DISK_ERRORS, IndexBatch, JobRow, owed_for
from obatchd.live.conditions import INTAKE, RETRY_S
from obatchd.live.work import Part, Work
from obatchd.settings.settings import Settings
from obatchd.spool import claim
from obatchd.spool.flush import sync_filesystem, sync_paths
from obatchd.spool.inbox import Inbox, ScanReport
from obatchd.spool.refusal import refuse_claimed, refuse_drop

_log = log.get(__name__)
# Up to this many drops their own fsyncs are cheaper than one flush of the whole file system.
_FEW_DROPS = 4


class IntakeEvents(Protocol):
    """Hears of jobs on their way in; :class:`obatchd.engine.admission.Admission`."""

    def accepted(self, row: JobRow) -> None:
        """A drop has become a job and its settings are known; its chunks follow."""

    def indexed(self, job: int, chunk: Chunk) -> None:
        """More of the job with this key is indexed."""

    def refused(self, row: JobRow) -> None:
        """An accepted drop turned out not to be a job."""


class Intake(Part):
    """Takes drops and submissions; runs its file and store work in threads."""

    def __init__(self, work: Work, events: IntakeEvents) -> None:
        super().__init__(work)
        self._layout, self._store, self._conditions = work.layout, work.store, work.conditions
        self._events = events
        self.ids = JobIds(work.store.state.last_job())
        self.inbox = Inbox(work.layout, work.settings)
        self.report = ScanReport()
        self.refused = 0
        self.held_back = 0  # drops that are ready, and not taken because of a condition
        self.scanned = asyncio.Event()  # the first scan is done
        self._claim_failed = False  # the disk refused: the next claim settles the one that was cut short
        self._unlisted: list[str] = []  # accepted, but their rows could not be read yet
        self._wake = asyncio.Event()
        self._claim_thread = ThreadPoolExecutor(1, thread_name_prefix="intake")
        self._index_threads = ThreadPoolExecutor(2, thread_name_prefix="index")
        self._unpacker = DropUnpacker(work)
        self._unpacking: dict[int, tuple[JobRow, asyncio.Task[None]]] = {}  # drops being unpacked, by key of their job
        self._stopped = False
        self._conditions.listen(self)

    def start(self) -> None:
        """Watch the inbox. The watch begins before the first scan, so that nothing falls between."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self.inbox.start(wake)
        self._tasks.start(self._run(), "intake")

    async def stop(self) -> None:
        """Stop taking drops; half indexed ones go on at the next start."""
        self._stopped = True
        await self._tasks.stop()
        await asyncio.to_thread(self._claim_thread.shutdown)
        await asyncio.to_thread(self._index_threads.shutdown)
        await asyncio.to_thread(self.inbox.stop)

    def condition_over(self) -> None:
        """Look at the inbox now."""
        self._wake.set()

    def settings_changed(self) -> None:
        """Look at the inbox now: other drops may be ready, and the next look may be due sooner."""
        self._wake.set()

    @property
    def _settings(self) -> Settings:
        return self._work.settings.value

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            delay_s = self._settings.inbox.rescan_s
            try:
                more = await self._look()
                self._conditions.report(INTAKE, "")
                if more:
                    continue
                if self.report.next_s is not None:
                    delay_s = min(delay_s, self.report.next_s)
            except (*DISK_ERRORS, SpoolError) as error:
                _log.error("intake_failed", reason=log.reason(error))
                self._conditions.report(INTAKE, f"drops cannot be taken: {log.reason(error)}")
                delay_s = RETRY_S
            self.scanned.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()

    async def _look(self) -> bool:
        """One scan and claim; whether another should follow at once."""
        loop = asyncio.get_running_loop()
        limits, known_problem = self.limits(), self.report.problem
        self.report = await loop.run_in_executor(
            self._claim_thread, self.inbox.scan, lambda drop: limits.room(drop.owner, drop.size)
        )
        if self.report.problem not in ("", known_problem):
            _log.warning("inbox_problem", reason=self.report.problem)
        may_claim = self._conditions.may_claim
        self.held_back = 0 if may_claim else len(self.report.ready)
        if not may_claim:
            return False
        await loop.run_in_executor(self._claim_thread, self._refuse_found, self.report)
        if not self.report.ready and not self._claim_failed:
            return False
        self._claim_failed = True
        rows = await loop.run_in_executor(self._claim_thread, self._claim, self.report)
        self._claim_failed = False
        await self.begin(rows)
        return len(self.report.ready) >= self._settings.inbox.claim_batch

    def limits(self) -> OwnerLimits:
        """The limits of every owner, with the open work as it is now."""
        limits = OwnerLimits(self._settings.limits, self._work.jobs.values())
        for row, _ in self._unpacking.values():
            limits.room(row.owner, row.size)
        return limits

    def _refuse_found(self, report: ScanReport) -> None:
        for drop, refusal in report.refused:
            if (error := refuse_drop(drop, self._layout, refusal)) is not None:
                self.inbox.not_taken(drop, error)
                continue
            self.inbox.taken(drop)
            self.refused += 1
            _log.warning("drop_refused", owner=drop.owner, inode=drop.inode, code=refusal.code)

    def _claim(self, report: ScanReport) -> list[JobRow]:
        keep_free_bytes = self._settings.disk.min_free_bytes
        result = claim.claim(report.ready, self._layout, self._store.state, self.ids, keep_free_bytes)
        not_taken = {drop.name for drop, _ in result.not_taken}
        for drop in report.ready:
            if drop.name not in not_taken:  # else that it is blocked stays known, and is not logged again
                self.inbox.taken(drop)
        for drop, error in result.not_taken:
            self.inbox.not_taken(drop, error)
        self._unlisted += [accepted.job for accepted in result.accepted]
        rows = self._store.state.find(self._unlisted)
        self._unlisted = []
        return rows

    async def begin(self, rows: Sequence[JobRow], unpacked_s: float = 0.0) -> None:
        """Index the first chunk of newly accepted jobs, together; longer drops go on in the background.

        Those that have to be unpacked first are waited for as long as ``unpacked_s``. A submission that was accepted
        just before the daemon stops is indexed at its next start.
        """
        if self._stopped:
            return
        try:
            await self._begin(rows)
            if unpacked_s and (tasks := [self._unpacking[row.key][1] for row in rows if row.key in self._unpacking]):
                await asyncio.wait(tasks, timeout=unpacked_s)
        except DISK_ERRORS as error:
            _log.error("index_failed", jobs=len(rows), reason=log.reason(error))
            for row in rows:  # one by one, so that a single bad drop does not hold up the others
                self._conditions.report_job(row.key, f"job {row.job} cannot be read: {log.reason(error)}")
                self._tasks.start(self._begin_later(row), f"begin-{row.job}")

    async def _begin_later(self, row: JobRow) -> None:
        await asyncio.sleep(RETRY_S)
        words = f"job {row.job} cannot be read"
        await self._conditions.until_disk_takes(partial(self._begin, [row]), row.key, "index_failed", words)

    async def _begin(self, rows: Sequence[JobRow]) -> None:
        loop = asyncio.get_running_loop()
        readers = [DropReader(row, self._layout, self._settings, self.check_space) for row in rows]
        packed, read = await loop.run_in_executor(self._claim_thread, self._first_chunks, readers)
        if self._stopped:  # what was indexed is in the store: the next start takes it from there
            return
        for reader in packed:
            task = self._tasks.start(self._unpack_first(reader.row), f"unpack-{reader.row.job}")
            self._unpacking[reader.row.key] = reader.row, task
        for reader, chunk in read:
            self._conditions.report_job(reader.row.key, "")
            if chunk is None:
                self._events.refused(reader.row)
                continue
            self._events.accepted(reader.row)
            self._events.indexed(reader.row.key, chunk)
            if not chunk.final:
                self.go_on(reader)

    async def _unpack_first(self, row: JobRow) -> None:
        """Have a drop unpacked by a process of its own, then index it; other drops go on."""
        loop = asyncio.get_running_loop()

        async def step() -> bool:
            try:
                await self._unpacker.unpack(row)
            except DropRefused as refusal:
                await loop.run_in_executor(self._claim_thread, self.refuse, row, refusal)
                return False
            return True

        words = f"job {row.job} cannot be unpacked"
        unpacked = await self._conditions.until_disk_takes(step, row.key, "unpack_failed", words, job=row.job)
        del self._unpacking[row.key]
        if unpacked:
            await self.begin([row])
        else:
            self._events.refused(row)

    def go_on(self, reader: DropReader) -> None:
        """Index the rest of a drop in the background."""
        self._tasks.start(self._index_rest(reader), f"index-{reader.row.job}")

    def _first_chunks(
        self, readers: list[DropReader]
    ) -> tuple[list[DropReader], list[tuple[DropReader, Chunk | None]]]:
        """Drops that have to be unpacked first, and the first chunk of each other; None of one that is refused."""
        packed: list[DropReader] = []
        batches: list[tuple[DropReader, IndexBatch]] = []
        changes: list[tuple[int, dict[str, Any]]] = []
        for reader in readers:
            claim.complete_submission(reader.directory)
            try:
                if reader.is_packed:
                    packed.append(reader)
                    continue
                changed = reader.prepare(self._store)
                batches.append((reader, reader.first_batch()))
                if batches[-1][1].final:
                    changed["indexed_s"] = reader.row.indexed_s = time.time()
                changes.append((reader.row.key, changed))  # not of a refused one: its row says why
            except DropRefused as refusal:
                self.refuse(reader.row, refusal)
            except FileNotFoundError:  # a crash came between moving the drop to failed/ and saying so in the store
                self.refuse(reader.row, DropRefused("it had been moved to failed/ before", code="drop_refused"))
        flush_unpacked([reader for reader, _ in batches])
        self._store.state.update_many(changes)
        indexed = self._store.write_index([batch for _, batch in batches])
        chunks = {r.row.key: r.chunk(batch, chunk) for (r, batch), chunk in zip(batches, indexed, strict=True)}
        return packed, [(reader, chunks.get(reader.row.key)) for reader in readers if reader not in packed]

    async def _index_rest(self, reader: DropReader) -> None:
        row, loop = reader.row, asyncio.get_running_loop()

        async def next_chunk() -> Chunk:
            nonlocal reader
            try:
                return await loop.run_in_executor(self._index_threads, self._next_chunk, reader)
            except DISK_ERRORS:
                # Read the drop from its beginning when the disk is well again: the store skips lines that it has.
                row.notes = reader.notes  # without those on a part
                reader = DropReader(row, self._layout, self._settings, self.check_space)
                raise

        words, final = f"job {row.job} cannot be read on", False
        while not final:
            chunk = await self._conditions.until_disk_takes(next_chunk, row.key, "index_failed", words, job=row.job)
            final = chunk.final
            self._events.indexed(row.key, chunk)

    def _next_chunk(self, reader: DropReader) -> Chunk:
        try:
            batch = reader.batch(NEXT_CHUNK)
        except DropRefused as refusal:
            # Part of it runs already; only a change by its owner can have made it unreadable since.
            batch = reader.broken_off(self._store, refusal.message)
        flush_unpacked([reader])
        if batch.final:
            reader.row.indexed_s = time.time()
            changes = reader.finish_digest(self._store) | {"indexed_s": reader.row.indexed_s}
            self._store.state.update(reader.row.key, **changes)
        [indexed] = self._store.write_index([batch])
        return Chunk(indexed, {}, batch.final)

    def refuse(self, row: JobRow, refusal: DropRefused) -> None:
        """Move an accepted drop that cannot be a job to ``failed/`` with the reason."""
        if row.settings.notify is None:  # what was submitted is not read yet
            with contextlib.suppress(msgspec.DecodeError):  # it may be the reason for the refusal
                row.settings = SubmittedSettings.read(self._layout.job_dir(row.job)).settings
        if owed := owed_for(row, JobRefused(row.job, row.owner)):  # before what says so is gone
            self._store.state.update_many([], owed)
        refuse_claimed(row.job, row.name, row.owner, self._layout, refusal)
        notes = [refusal.message]
        self._store.state.update(row.key, state=JobState.REFUSED, finished_s=time.time(), notes=notes, released=1)
        self.refused += 1
        _log.warning("drop_refused", job=row.job, owner=row.owner, code=refusal.code)

    def check_space(self, size_bytes: int) -> None:
        """Wait rather than refuse: space comes back, and requests of this drop may be answered already."""
        free_bytes = self._layout.free().bytes
        if free_bytes - size_bytes < self._settings.disk.min_free_bytes:
            reason = f"unpacking needs {size_bytes} bytes more than the disk can spare ({free_bytes} free)"
            raise OSError(errno.ENOSPC, reason)


def flush_unpacked(readers: Sequence[DropReader]) -> None:
    """Make unpacked bytes durable: the index, which is written next, must not outlive the bytes it refers to."""
    unpacked = [reader for reader in readers if reader.writes_requests]
    if len(unpacked) > _FEW_DROPS:
        sync_filesystem(unpacked[0].directory)
    else:
        sync_paths(path for reader in unpacked for path in (reader.request_file, reader.directory))
