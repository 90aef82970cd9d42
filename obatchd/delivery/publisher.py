"""Completes the outbox of jobs: response files as results come, the whole at the end, ``summary.json`` last.

A response file is written after its result is committed and before its job's whole.
Jobs that end together share their flushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from obatchd import crash_points, log
from obatchd.delivery.passing_on import with_input
from obatchd.delivery.responses import ResponseWriter
from obatchd.jobs.formats import request_file
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow, Store
from obatchd.spool.batch_lines import batch_line
from obatchd.spool.layout import size_bytes
from obatchd.spool.outbox import JobOutbox, Totals, flush_outboxes
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_TOGETHER = 1000
_RETRY_S = 2.0


class Publication(msgspec.Struct):
    """A job whose requests all have results. ``details`` are the parts of the summary that only the engine knows."""

    row: JobRow
    outbox: Path
    directory: Path  # of its input
    files: bool  # each response gets files of its own
    text_suffix: str  # of its text
    resumed: bool  # what an earlier run wrote may stand there, and response files may be missing
    details: Callable[[Totals], dict[str, Any]]
    status: Callable[[dict[str, Any]], dict[str, Any]]  # the last status.json, from the summary


class Publisher:
    """``on_done`` is told of each job whose ``summary.json`` is durable; ``on_trouble`` of a disk that refuses."""

    def __init__(
        self,
        store: Store,
        responses: ResponseWriter,
        *,
        on_done: Callable[[JobRow, dict[str, Any]], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._store = store
        self.responses = responses
        self._on_done = on_done
        self._on_trouble = on_trouble
        self._queue: deque[Publication] = deque()
        self._event = asyncio.Event()
        self._tasks: TaskSet | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        # Its own thread: a status must not wait behind the whole of a large job.
        self._status_thread = ThreadPoolExecutor(1, thread_name_prefix="status")
        self._alone = 0  # jobs at the head of the queue to be published one by one
        self.backlog = 0  # jobs that are answered and not published yet

    async def start(self, owner: TaskOwner) -> None:
        await self.responses.start()
        self._tasks = TaskSet(owner)
        self._tasks.start(self._run(), "publisher")

    async def stop(self) -> None:
        """Finish what was begun; jobs not yet published are published at the next start."""
        if self._tasks is not None:
            await self._tasks.stop()
        await self.responses.stop()
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._status_thread.shutdown)

    def publish(self, publication: Publication) -> None:
        self.backlog += 1
        self._queue.append(publication)
        self._event.set()

    def write_statuses(self, statuses: list[tuple[Path, dict[str, Any]]]) -> None:
        """Replace ``status.json`` of jobs, given by outbox, in the background; the next one makes up for a failure."""

        def write() -> None:
            for outbox, document in statuses:
                with contextlib.suppress(OSError):
                    JobOutbox(outbox).write_status(document)

        asyncio.get_running_loop().run_in_executor(self._status_thread, write)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._event.wait()
            self._event.clear()
            while self._queue:
                size = 1 if self._alone else min(_TOGETHER, len(self._queue))
                batch = [self._queue.popleft() for _ in range(size)]
                self._alone = max(0, self._alone - size)
                await self.responses.settle(publication.outbox for publication in batch)
                try:
                    summaries = await loop.run_in_executor(self._thread, self._publish, batch)
                except DISK_ERRORS as error:
                    # A full or failing disk: the store keeps everything, and the same jobs are tried again. After a
                    # failed flush the kernel takes what it could not write for clean, so every file is written again.
                    self.responses.incomplete.update(publication.outbox for publication in batch if publication.files)
                    self._queue.extendleft(reversed(batch))
                    _log.error("publish_failed", jobs=len(batch), reason=log.reason(error))
                    self._on_trouble(f"results cannot be published: {log.reason(error)}")
                    await asyncio.sleep(_RETRY_S)
                    continue
                except Exception:  # noqa: BLE001 - logged; one job that cannot be published must not hold up the others
                    self._set_apart(batch)
                    continue
                self._on_trouble("")
                for publication, summary in zip(batch, summaries, strict=True):
                    self.backlog -= 1
                    self._on_done(publication.row, summary)

    def _set_apart(self, batch: list[Publication]) -> None:
        """After a defect: try the jobs one by one, and leave the one that is to blame for a later start."""
        if len(batch) > 1:
            self._queue.extendleft(reversed(batch))
            self._alone = len(batch)
        else:
            self.backlog -= 1
            _log.exception("job_not_published", job=batch[0].row.job, remedy="its results are safe in the store")

    def _publish(self, batch: list[Publication]) -> list[dict[str, Any]]:
        boxes = [JobOutbox(publication.outbox, publication.text_suffix) for publication in batch]
        summaries, unfinished = [], []
        for publication, box in zip(batch, boxes, strict=True):
            if publication.resumed and (published := box.valid_summary()) is not None:
                # All else was flushed before it was written; a crash came before the index knew of it.
                summaries.append(published)
                continue
            summary = self._write_whole(publication, box)
            summaries.append(summary)
            unfinished.append((box, summary))
        crash_points.reach("publish.after_whole")
        flush_outboxes(boxes)
        crash_points.reach("publish.after_flush")
        for box, summary in unfinished:
            box.write_summary(summary)
        crash_points.reach("publish.after_summary")
        flush_outboxes(boxes)
        finished_s = time.time()
        changes = [
            (publication.row.key, _done(publication, box, summary, finished_s))
            for publication, box, summary in zip(batch, boxes, summaries, strict=True)
        ]
        self._store.state.update_many(changes)
        for publication in batch:
            self._store.settle(publication.row)
        return summaries

    def _write_whole(self, publication: Publication, box: JobOutbox) -> dict[str, Any]:
        """Everything but ``summary.json``, which is returned; not flushed."""
        box.create()
        again = publication.resumed or publication.outbox in self.responses.incomplete
        row = publication.row
        rows = with_input(
            self._store.results(row), self._store.of(row), row.key, request_file(publication.directory / "input")
        )
        line_of = partial(batch_line, row.job) if row.settings.openai_batch else None
        totals = box.write_whole(rows, responses=publication.files and again, line_of=line_of)
        self.responses.incomplete.discard(publication.outbox)
        summary = publication.details(totals)
        box.write_status(publication.status(summary))
        return summary


def _done(publication: Publication, box: JobOutbox, summary: dict[str, Any], finished_s: float) -> dict[str, Any]:
    """What the index keeps of a published job."""
    kept = ("requests", "succeeded", "failed", "cancelled", "expired", "wall_s")
    return {
        "state": JobState.DONE,
        "finished_s": finished_s,
        "summary": {name: summary[name] for name in kept},
        # What the store holds of it is what it wrote.
        "kept_bytes": size_bytes(publication.directory) + box.whole_bytes(),
    }
