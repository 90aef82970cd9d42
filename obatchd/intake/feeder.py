"""Reads requests of a lane from the store and their bytes from the input, when the lane's turn comes near."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from attrs import define, field

from obatchd.dispatch.events import INTERRUPTED, Finished
from obatchd.dispatch.trials import Suspicion
from obatchd.intake.preparation import Preparation
from obatchd.jobs.lane import WINDOW_FETCH, Lane, Pending
from obatchd.jobs.model import Entry, Outcome, written_line
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import AttemptRow, unanswered_record
from obatchd.live.work import Outcomes, Part

# Bytes of one fetch: 1,024 small requests, or a few long ones.
_FETCH_BYTES = 4 * 1024**2


class History(NamedTuple):
    """Earlier attempts of a request, from the store."""

    attempts: int
    servers: list[str]
    suspicion: Suspicion
    spent_s: float = 0.0


def histories(attempts: Sequence[AttemptRow]) -> dict[int, History]:
    """The attempts of each line. An attempt that never ended counts as a crash seen, and has no number."""
    found: dict[int, History] = {}
    for attempt in attempts:
        count, servers, suspicion, spent_s = found.get(attempt.line, History(0, [], Suspicion()))
        suspicion.crashes += attempt.fault in ("", "crash", "crash_alone")
        suspicion.alone += attempt.fault == "crash_alone"
        suspicion.uncounted += attempt.fault in ("crash", "crash_alone")
        tries, spent_s = count + (attempt.fault not in ("", INTERRUPTED)), spent_s + attempt.spent_s
        found[attempt.line] = History(tries, [*servers, attempt.server], suspicion, spent_s)
    return found


def read_requests(
    path: Path, rows: Sequence[Entry], known: dict[int, History], byte_limit: int = _FETCH_BYTES
) -> tuple[list[Pending], list[Entry]]:
    """The bytes of ``rows`` up to ``byte_limit`` (at least one row), and the rows whose bytes have changed."""
    pending: list[Pending] = []
    changed: list[Entry] = []
    size = 0
    with open(path, "rb", buffering=0) as file:
        for row in rows:
            if size and size + row.length > byte_limit:
                break
            size += row.length
            if (raw := row.read(file.fileno())) is None:
                changed.append(row)
                continue
            request = Pending(row.line, raw, family=row.family)
            if (history := known.get(row.line)) is not None:
                request.attempt, request.servers, request.spent_s = (
                    history.attempts + 1,
                    history.servers,
                    history.spent_s,
                )
            pending.append(request)
    return pending, changed


def changed_record(row: Entry) -> bytes:
    """The failure of a request whose bytes are not those that were indexed."""
    line = written_line(row.line)[0]
    message = f"line {line} changed after the drop was accepted; drop the file again, with mv, not by writing"
    return unanswered_record(row.id, row.line, Outcome.FAILED, "input_changed", message)


@define(eq=False)
class Feeder(Part):
    """Fills lanes' windows in a thread of its own. Implements :class:`obatchd.jobs.queue.LaneFeeder`."""

    _preparation: Preparation
    _outcomes: Outcomes
    _known: dict[int, dict[int, History]] = field(factory=dict, init=False)
    _thread: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="feeder"), init=False)

    def remember(self, job: int, known: dict[int, History]) -> None:
        """Earlier attempts of a job taken up again."""
        if known:
            self._known[job] = known

    def forget(self, job: int) -> None:
        self._known.pop(job, None)

    def fetch(self, lane: Lane, queue: JobQueue) -> None:
        self._tasks.start(self._fetch(lane, queue), "feeder")

    def ready(self, lane: Lane, pending: Sequence[Pending], queue: JobQueue) -> Sequence[Pending]:
        return self._preparation.ready(lane, pending, queue)

    async def stop(self) -> None:
        await self._tasks.stop()
        self._thread.shutdown()

    async def _fetch(self, lane: Lane, queue: JobQueue) -> None:
        source = self._work.source_of(lane.job)
        if source is None:
            return
        known = self._known.get(lane.job, {})
        expected = lane.unread  # lines that are indexed while this reads may be missing

        def read() -> tuple[list[Pending], list[Entry], int]:
            if lane.job not in self._work.jobs:  # over meanwhile: its files may be gone
                return [], [], 0
            segment = source.open_segment()
            rows = segment.pending(lane.job, lane.number, lane.cursor, WINDOW_FETCH)
            if not rows and lane.gaps[1]:
                rows = segment.pending(lane.job, lane.number, lane.gaps[0], WINDOW_FETCH, lane.gaps[1])
            return (*read_requests(source.request_file, rows, known), len(rows))

        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._thread, read)
        pending, changed, found = await self._work.conditions.until_disk_takes(
            in_thread, lane.job, "input_unreadable", "its input cannot be read", job=lane.job
        )
        lines = [p.line for p in pending] + [row.line for row in changed]
        if lines and min(lines) > lane.cursor:
            lane.cursor = max(lines)
        elif lines:
            lane.gaps = (max(lines), lane.gaps[1])
        for row in changed:
            self._outcomes.finish(Finished(lane.job, row.line, lane.number, False, changed_record(row), 0.0))
        queue.fetched(lane, pending, len(changed), phantom=0 if found else expected)
