"""From the inbox into the queue: scan, claim, index. Small drops go together, large ones chunk by chunk."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from obatchd import log
from obatchd.errors import DropRefused, SpoolError
from obatchd.intake.indexing import NEXT_CHUNK, Chunk, Reading, flush_unpacked
from obatchd.intake.limits import OwnerLimits
from obatchd.jobs.model import JobIds, JobState
from obatchd.jobs.store import DISK_ERRORS, IndexBatch, JobRow, Store
from obatchd.settings.settings import Settings
from obatchd.spool import claim
from obatchd.spool.inbox import Inbox, ScanReport
from obatchd.spool.layout import Layout
from obatchd.spool.refusal import refuse_claimed, refuse_drop
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_RETRY_S = 2.0


class Intake:
    """Takes drops and submissions; runs its file and store work in threads.

    Args:
        owner: answers for the tasks without which nothing is taken.
        may_claim: False while the disk is too full to take more.
        limits: how much more each owner may have open, as things stand.
        on_job: a job is accepted and its settings are known, before any of its chunks.
        on_chunk: more of a job is indexed.
        on_refused: an accepted drop turned out not to be a job.
        on_trouble: why drops cannot be taken, and "" when they can.
        on_job_trouble: why one job (by key) cannot be read, and "" when it can.
    """

    def __init__(
        self,
        layout: Layout,
        store: Store,
        ids: JobIds,
        settings: Callable[[], Settings],
        *,
        owner: TaskOwner,
        may_claim: Callable[[], bool],
        limits: Callable[[], OwnerLimits],
        on_job: Callable[[JobRow, Reading], None],
        on_chunk: Callable[[int, Chunk], None],
        on_refused: Callable[[JobRow, DropRefused], None],
        on_trouble: Callable[[str], None],
        on_job_trouble: Callable[[int, str], None],
    ) -> None:
        self._layout = layout
        self._store = store
        self.ids = ids
        self._settings = settings
        self._may_claim = may_claim
        self._limits = limits
        self._on_job = on_job
        self._on_chunk = on_chunk
        self._on_refused = on_refused
        self._on_trouble = on_trouble
        self._on_job_trouble = on_job_trouble
        self.inbox = Inbox(layout, settings().inbox)
        self.report = ScanReport()
        self.refused = 0
        self.scanned = asyncio.Event()  # the first scan is done
        self._claim_failed = False  # the disk refused: the next claim settles what that one began
        self._unlisted: list[str] = []  # accepted, but their rows could not be read yet
        self._wake = asyncio.Event()
        self._tasks = TaskSet(owner)
        self._claim_thread = ThreadPoolExecutor(1, thread_name_prefix="intake")
        self._index_threads = ThreadPoolExecutor(2, thread_name_prefix="index")

    def start(self) -> None:
        """Watch the inbox. The watch begins before the first scan, so that nothing falls between."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self.inbox.start(wake)
        self._tasks.start(self._run(), "intake")

    async def stop(self) -> None:
        """Stop taking drops; what is half indexed goes on at the next start."""
        await self._tasks.stop()
        await asyncio.to_thread(self._claim_thread.shutdown)
        await asyncio.to_thread(self._index_threads.shutdown)
        await asyncio.to_thread(self.inbox.stop)

    def wake(self) -> None:
        """Look at the inbox now."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            delay_s = self._settings().inbox.rescan_s
            try:
                more = await self._look()
                self._on_trouble("")
                if more:
                    continue
                if self.report.next_s is not None:
                    delay_s = min(delay_s, self.report.next_s)
            except (*DISK_ERRORS, SpoolError) as error:
                _log.error("intake_failed", reason=log.reason(error))
                self._on_trouble(f"drops cannot be taken: {log.reason(error)}")
                delay_s = _RETRY_S
            self.scanned.set()
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self) -> bool:
        """One scan and claim; whether another should follow at once."""
        loop = asyncio.get_running_loop()
        limits, known_problem = self._limits(), self.report.problem
        self.report = await loop.run_in_executor(
            self._claim_thread, self.inbox.scan, lambda drop: limits.room(drop.owner, drop.size)
        )
        if self.report.problem not in ("", known_problem):
            _log.warning("inbox_problem", reason=self.report.problem)
        if not self._may_claim():
            return False
        await loop.run_in_executor(self._claim_thread, self._refuse_found, self.report)
        if not self.report.ready and not self._claim_failed:
            return False
        self._claim_failed = True
        rows = await loop.run_in_executor(self._claim_thread, self._claim, self.report)
        self._claim_failed = False
        await self.begin(rows)
        return len(self.report.ready) >= self._settings().inbox.claim_batch

    def _refuse_found(self, report: ScanReport) -> None:
        for drop, refusal in report.refused:
            if (error := refuse_drop(drop, self._layout, refusal)) is not None:
                self.inbox.not_taken(drop, error)
                continue
            self.inbox.taken(drop)
            self.refused += 1
            _log.warning("drop_refused", owner=drop.owner, inode=drop.inode, code=refusal.code)

    def _claim(self, report: ScanReport) -> list[JobRow]:
        result = claim.claim(report.ready, self._layout, self._store.state, self.ids)
        for drop in report.ready:
            self.inbox.taken(drop)
        for drop, error in result.not_taken:
            self.inbox.not_taken(drop, error)
        self._unlisted += [accepted.job for accepted in result.accepted]
        rows = self._store.state.find(self._unlisted)
        self._unlisted = []
        return rows

    async def begin(self, rows: Sequence[JobRow]) -> None:
        """Index the first chunk of newly accepted jobs, together; what is longer goes on in the background."""
        loop = asyncio.get_running_loop()
        settings = self._settings()
        readings = [Reading(row, self._layout, settings, self._check_space) for row in rows]
        try:
            begun = await loop.run_in_executor(self._claim_thread, self._first_chunks, readings)
        except DISK_ERRORS as error:
            _log.error("index_failed", jobs=len(rows), reason=log.reason(error))
            self._tasks.start(self._begin_later(rows, log.reason(error)), "begin-later")
            return
        for reading, chunk, refusal in begun:
            self._on_job_trouble(reading.row.key, "")
            if refusal is not None:
                self._on_refused(reading.row, refusal)
            if chunk is None:
                continue
            self._on_job(reading.row, reading)
            self._on_chunk(reading.row.key, chunk)
            if not chunk.final:
                self.go_on(reading)

    def go_on(self, reading: Reading) -> None:
        """Index the rest of a drop in the background."""
        self._tasks.start(self._index_rest(reading), f"index-{reading.row.job}")

    async def _begin_later(self, rows: Sequence[JobRow], reason: str) -> None:
        """The disk refused: one by one, so that a single bad drop does not hold up the others."""
        for row in rows:
            self._on_job_trouble(row.key, f"job {row.job} cannot be read: {reason}")
        await asyncio.sleep(_RETRY_S)
        for row in rows:
            await self.begin([row])

    def _first_chunks(self, readings: list[Reading]) -> list[tuple[Reading, Chunk | None, DropRefused | None]]:
        batches: list[tuple[Reading, IndexBatch]] = []
        changes: list[tuple[int, dict[str, Any]]] = []
        outcomes: dict[int, tuple[Reading, Chunk | None, DropRefused | None]] = {}
        for reading in readings:
            claim.complete_submission(reading.directory)
            try:
                changed = reading.prepare(self._store)
                batches.append((reading, reading.first_batch()))
                changes.append((reading.row.key, changed))  # not of a refused one: its row says why
            except (DropRefused, FileNotFoundError) as error:
                # Not found: a crash came between moving the drop to failed/ and saying so in the store.
                gone = DropRefused("it had been moved to failed/ before", code="drop_refused")
                refusal = error if isinstance(error, DropRefused) else gone
                self.refuse(reading.row, refusal)
                outcomes[reading.row.key] = (reading, None, refusal)
        flush_unpacked([reading for reading, _ in batches])
        self._store.state.update_many(changes)
        indexed = self._store.write_index([batch for _, batch in batches])
        for (reading, batch), chunk in zip(batches, indexed, strict=True):
            outcomes[reading.row.key] = (reading, reading.chunk(batch, chunk), None)
        return [outcomes[reading.row.key] for reading in readings]

    async def _index_rest(self, reading: Reading) -> None:
        loop = asyncio.get_running_loop()
        final = False
        while not final:
            row = reading.row
            try:
                chunk = await loop.run_in_executor(self._index_threads, self._next_chunk, reading)
            except DISK_ERRORS as error:
                # Start the reading over when the disk is well again: the store skips what it has.
                _log.error("index_failed", job=row.job, reason=log.reason(error))
                self._on_job_trouble(row.key, f"job {row.job} cannot be read on: {log.reason(error)}")
                await asyncio.sleep(_RETRY_S)
                reading = Reading(row, self._layout, self._settings(), self._check_space)
                continue
            self._on_job_trouble(row.key, "")
            final = chunk.final
            self._on_chunk(reading.row.key, chunk)

    def _next_chunk(self, reading: Reading) -> Chunk:
        try:
            batch = reading.batch(NEXT_CHUNK)
        except DropRefused as refusal:
            # Part of it runs already; only a change by its owner can have made it unreadable since.
            batch = reading.broken_off(self._store, refusal.message)
        flush_unpacked([reading])
        if batch.final:
            changes = reading.finish_digest(self._store)
            if changes:
                self._store.state.update(reading.row.key, **changes)
        [indexed] = self._store.write_index([batch])
        return Chunk(indexed, {}, batch.final)

    def refuse(self, row: JobRow, refusal: DropRefused) -> None:
        """Move an accepted drop that cannot be a job to ``failed/`` with the reason."""
        refuse_claimed(row.job, row.name, row.owner, self._layout, refusal)
        notes = [refusal.message]
        self._store.state.update(row.key, state=JobState.REFUSED, finished_s=time.time(), notes=notes, released=1)
        self.refused += 1
        _log.warning("drop_refused", job=row.job, owner=row.owner, code=refusal.code)

    def _check_space(self, size_bytes: int) -> None:
        """Wait rather than refuse: space comes back, and requests of this drop may be answered already."""
        free_bytes = self._layout.free().bytes
        if free_bytes - size_bytes < self._settings().disk.min_free_bytes:
            reason = f"unpacking needs {size_bytes} bytes more than the disk can spare ({free_bytes} free)"
            raise OSError(errno.ENOSPC, reason)
