"""Reads requests of a lane from the store and their bytes from the input, when the lane's turn comes near."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from obatchd import log
from obatchd.dispatch.dispatcher import INTERRUPTED, Finished, Suspicion
from obatchd.jobs.lane import WINDOW_FETCH, Lane, Pending
from obatchd.jobs.model import Outcome
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import DISK_ERRORS, AttemptRow, PendingRow, Segment, unanswered_record
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
# Bytes of one fetch: 1,024 small requests, or a few long ones.
_FETCH_BYTES = 4 * 1024**2
_RETRY_S = 2.0


class History(NamedTuple):
    """Earlier attempts of a request, from the store."""

    attempts: int
    servers: list[str]
    suspicion: Suspicion
    spent_s: float = 0.0


def histories(attempts: Sequence[AttemptRow]) -> dict[int, History]:
    """What is known of each line's attempts. An attempt that never ended counts as a crash seen, not as a try."""
    found: dict[int, History] = {}
    for attempt in attempts:
        count, servers, suspicion, spent_s = found.get(attempt.line, History(0, [], Suspicion()))
        suspicion.crashes += attempt.fault in ("", "crash", "crash_alone")
        suspicion.alone += attempt.fault == "crash_alone"
        tries, spent_s = count + (attempt.fault not in ("", INTERRUPTED)), spent_s + attempt.spent_s
        found[attempt.line] = History(tries, [*servers, attempt.server], suspicion, spent_s)
    return found


def read_requests(
    path: Path, rows: Sequence[PendingRow], known: dict[int, History], byte_limit: int = _FETCH_BYTES
) -> tuple[list[Pending], list[PendingRow]]:
    """The bytes of ``rows`` up to ``byte_limit`` (at least one row), and the rows whose bytes have changed."""
    pending: list[Pending] = []
    changed: list[PendingRow] = []
    size = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row in rows:
            if size and size + row.length > byte_limit:
                break
            raw = os.pread(descriptor, row.length, row.offset)
            size += row.length
            if zlib.crc32(raw) != row.checksum:
                changed.append(row)
                continue
            history = known.get(row.line)
            if history is None:
                pending.append(Pending(row.line, raw))
            else:
                pending.append(Pending(row.line, raw, history.attempts + 1, history.servers, history.spent_s))
    finally:
        os.close(descriptor)
    return pending, changed


def changed_record(row: PendingRow) -> bytes:
    """The failure of a request whose bytes are not those that were indexed."""
    message = (
        f"line {row.line}: its {row.length} bytes at offset {row.offset} changed after the drop was accepted; drop the "
        "file again, by mv rather than by writing into it"
    )
    return unanswered_record(row.id, row.line, Outcome.FAILED, "input_changed", message)


class Feeder:
    """Fills lanes' windows in a thread of its own."""

    def __init__(
        self,
        queue: JobQueue,
        source_of: Callable[[int], tuple[Callable[[], Segment], Path] | None],
        on_finished: Callable[[Finished], None],
        suspicion: dict[tuple[int, int], Suspicion],
        wake: Callable[[], None],
        on_trouble: Callable[[int, str], None],
        owner: TaskOwner,
    ) -> None:
        """``source_of`` gives what opens a job's segment, and its request file, or None when the job is gone.

        ``on_trouble`` is told why a job's requests cannot be read, and "" when they can.
        """
        self._queue = queue
        self._source_of = source_of
        self._on_finished = on_finished
        self._suspicion = suspicion
        self._wake = wake
        self._on_trouble = on_trouble
        self._known: dict[int, dict[int, History]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeder")
        self._tasks = TaskSet(owner)

    def remember(self, job: int, known: dict[int, History]) -> None:
        """Earlier attempts of a job taken up again."""
        if known:
            self._known[job] = known
            for line, history in known.items():
                self._suspicion[job, line] = history.suspicion

    def forget(self, job: int) -> None:
        for line in self._known.pop(job, {}):
            self._suspicion.pop((job, line), None)

    def fetch(self, lane: Lane) -> None:
        """Start reading more of ``lane``."""
        self._tasks.start(self._fetch(lane), "feeder")

    async def stop(self) -> None:
        await self._tasks.stop()
        self._thread.shutdown()

    async def _fetch(self, lane: Lane) -> None:
        source = self._source_of(lane.job)
        if source is None:
            return
        open_segment, path = source
        known = self._known.get(lane.job, {})
        expected = lane.unread  # what is indexed while this reads may be missing from what it finds

        def read() -> tuple[list[Pending], list[PendingRow], int]:
            rows = open_segment().pending(lane.job, lane.number, lane.cursor, WINDOW_FETCH)
            if not rows and lane.gaps[1]:
                rows = open_segment().pending(lane.job, lane.number, lane.gaps[0], WINDOW_FETCH, lane.gaps[1])
            return (*read_requests(path, rows, known), len(rows))

        try:
            pending, changed, found = await asyncio.get_running_loop().run_in_executor(self._thread, read)
        except DISK_ERRORS as error:
            _log.error("input_unreadable", job=lane.job, path=path, reason=log.reason(error))
            self._on_trouble(lane.job, f"its input cannot be read: {log.reason(error)}")
            await asyncio.sleep(_RETRY_S)
            self._queue.fetched(lane, [])
            self._wake()
            return
        self._on_trouble(lane.job, "")
        lines = [p.line for p in pending] + [row.line for row in changed]
        if lines and min(lines) > lane.cursor:
            lane.cursor = max(lines)
        elif lines:
            lane.gaps = (max(lines), lane.gaps[1])
        for row in changed:
            self._on_finished(Finished(lane.job, row.line, lane.number, False, changed_record(row), 0.0))
        self._queue.fetched(lane, pending, len(changed), phantom=0 if found else expected)
        self._wake()
