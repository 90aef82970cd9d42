"""Completes the outbox of jobs: response files as results come, the whole at the end, ``summary.json`` last.

A response file is written after its result is committed and before its job's whole.
Jobs that end together share their flushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from obatchd import crash_points, log
from obatchd.delivery.documents import counts_of, last_status, summary_of
from obatchd.delivery.late import note_change
from obatchd.delivery.passing_on import with_input
from obatchd.delivery.responses import ResponseWriter
from obatchd.documents.alarms import DropChanged
from obatchd.documents.jobs import Counts, JobDocument, Summary
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow, Owed, owed_for
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Part, Work, job_done
from obatchd.spool.batch_lines import batch_line
from obatchd.spool.layout import size_bytes
from obatchd.spool.outbox import JobOutbox, flush_outboxes

_log = log.get(__name__)
_TOGETHER = 1000
# Answered jobs not yet published above which no more drops are taken: they wait as well in the inbox, and cost nothing.
_UNPUBLISHED_LIMIT = 5_000


class DeliveryEvents(Protocol):
    """Hears of published jobs; :class:`obatchd.engine.engine.Engine`."""

    def published(self, row: JobRow, counts: Counts) -> None:
        """The ``summary.json`` of a job is durable."""


class Publisher(Part):
    """Publishes jobs in the order in which their last results came."""

    def __init__(self, work: Work, models: Models, events: DeliveryEvents) -> None:
        super().__init__(work)
        self.responses = ResponseWriter(work.owner)
        self._models = models
        self._events = events
        self._queue: deque[LiveJob] = deque()
        self._event = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        # Its own thread: a status must not wait behind the whole of a large job.
        self._status_thread = ThreadPoolExecutor(1, thread_name_prefix="status")
        self._changed: list[DropChanged] = []  # alarms that the thread found
        self._alone = 0  # jobs at the head of the queue to be published one by one
        self._backlog = 0  # jobs that are answered and not published yet

    async def start(self) -> None:
        await self.responses.start()
        self._tasks.start(self._run(), "publisher")

    async def stop(self) -> None:
        """Finish publications in progress; the other jobs are published at the next start."""
        await self._tasks.stop()
        await self.responses.stop()
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._status_thread.shutdown)

    def publish(self, live: LiveJob) -> None:
        self._queue.append(live)
        self._event.set()
        self._backlog += 1
        if self._backlog > _UNPUBLISHED_LIMIT:
            self._work.conditions.publishing_lags(True)

    def _gone(self) -> None:
        """A job is not waiting any more."""
        self._backlog -= 1
        if self._backlog <= _UNPUBLISHED_LIMIT // 2:
            self._work.conditions.publishing_lags(False)

    def write_statuses(self, statuses: list[tuple[Path, JobDocument]]) -> None:
        """Replace ``status.json`` of jobs, given by outbox, in the background; the next one makes up for a failure."""

        def write() -> None:
            for outbox, document in statuses:
                with contextlib.suppress(OSError):
                    JobOutbox(outbox).write_status(document)

        asyncio.get_running_loop().run_in_executor(self._status_thread, write)

    async def _run(self) -> None:
        while True:
            await self._event.wait()
            self._event.clear()
            while self._queue:
                size = 1 if self._alone else min(_TOGETHER, len(self._queue))
                batch = [self._queue.popleft() for _ in range(size)]
                self._alone = max(0, self._alone - size)
                try:
                    published = await self._work.conditions.until_disk_takes(
                        partial(self._try, batch), "outbox", "publish_failed", "results cannot be published",
                        jobs=len(batch),
                    )  # fmt: skip
                except Exception:  # noqa: BLE001 - logged; one job that cannot be published must not hold up the others
                    self._set_apart(batch)
                    continue
                for live, counts in zip(batch, published, strict=True):
                    self._gone()
                    self._events.published(live.row, counts)
                while self._changed:
                    self._work.announcer.announce(self._changed.pop())

    async def _try(self, batch: list[LiveJob]) -> list[Counts]:
        await self.responses.settle(live.outbox for live in batch)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._publish, batch)
        except DISK_ERRORS:
            # A full or failing disk: the store keeps everything, and the same jobs are tried again. After a failed
            # flush the kernel takes pages that it could not write for clean, so every file is written again.
            self.responses.incomplete.update(live.outbox for live in batch if live.response_files())
            raise

    def _set_apart(self, batch: list[LiveJob]) -> None:
        """After a defect: try the jobs one by one, and leave the one that is to blame for a later start."""
        if len(batch) > 1:
            self._queue.extendleft(reversed(batch))
            self._alone = len(batch)
        else:
            self._gone()
            _log.exception("job_not_published", job=batch[0].row.job, remedy="its results are safe in the store")

    def _publish(self, batch: list[LiveJob]) -> list[Counts]:
        boxes = [JobOutbox(live.outbox, live.text_suffix) for live in batch]
        every, unfinished = [], []
        for live, box in zip(batch, boxes, strict=True):
            # Of a valid one all else was flushed before it was written; a crash came before the index knew of it.
            published = box.valid_summary() if live.resumed else None
            if published is None:
                unfinished.append((box, self._write_whole(live, box)))
            every.append(counts_of(published or unfinished[-1][1]))
        crash_points.reach("publish.after_whole")
        flush_outboxes(boxes)
        crash_points.reach("publish.after_flush")
        for box, summary in unfinished:
            box.write_summary(summary)
        crash_points.reach("publish.after_summary")
        flush_outboxes(boxes)
        finished_s = time.time()
        changes: list[tuple[int, dict[str, Any]]] = []
        owed: list[Owed] = []
        for live, box, counts in zip(batch, boxes, every, strict=True):
            # The store holds just the results that it wrote.
            kept_bytes = size_bytes(self._work.layout.job_dir(live.row.job)) + box.whole_bytes()
            done = {"state": JobState.DONE, "finished_s": finished_s, "summary": msgspec.to_builtins(counts)}
            about = {"answered_s": live.answered_s, "refused_lines": live.refused}
            changes.append((live.row.key, done | about | {"kept_bytes": kept_bytes, "notes": live.row.notes}))
            if live.row.settings.notify:
                owed += owed_for(live.row, job_done(live.row, counts))
        self._work.store.state.finish(changes, owed)
        crash_points.reach("publish.after_done")
        for live in batch:
            self._work.store.settle(live.row)
        return every

    def _write_whole(self, live: LiveJob, box: JobOutbox) -> Summary:
        """Everything but ``summary.json``, which is returned; not flushed."""
        box.create()
        again = live.resumed or live.outbox in self.responses.incomplete
        row, store = live.row, self._work.store
        rows = with_input(store.results(row), store.of(row), row.key, self._work.request_file(row))
        line_of = partial(batch_line, row.job) if row.settings.openai_batch else None
        totals = box.write_whole(rows, responses=live.response_files() and again, line_of=line_of)
        self.responses.incomplete.discard(live.outbox)
        if (alarm := note_change(row, self._work.layout)) is not None:
            self._changed.append(alarm)
        summary = summary_of(live, totals, self._models)
        box.write_status(last_status(live, summary))
        return summary
