"""From an accepted drop to the queue: what is indexed of a job becomes lanes, or waits for what was answered before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from obatchd import log
from obatchd.delivery.completion import Completion
from obatchd.delivery.endings import Endings
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.errors import DropRefused
from obatchd.intake.indexing import Chunk, Reading
from obatchd.intake.reuse import Reuse
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Outcome
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow, LaneRow, Store
from obatchd.live.job import LiveJob
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout

_log = log.get(__name__)


class Admission:
    """Called from the main loop.

    Args:
        jobs: live jobs by key; this puts them in.
        spawn: runs a coroutine beside the main loop's work.
    """

    def __init__(
        self,
        jobs: dict[int, LiveJob],
        layout: Layout,
        store: Store,
        settings: Callable[[], Settings],
        *,
        queue: JobQueue,
        dispatcher: Dispatcher,
        completion: Completion,
        endings: Endings,
        reuse: Reuse,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._jobs = jobs
        self._layout = layout
        self._store = store
        self._settings = settings
        self._queue = queue
        self._dispatcher = dispatcher
        self._completion = completion
        self._endings = endings
        self._reuse = reuse
        self._spawn = spawn

    def add(self, row: JobRow) -> LiveJob:
        """Make a job live."""
        outbox = self._layout.outbox_dir(row.job, row.name, row.owner)
        live = self._jobs[row.key] = LiveJob(row, outbox)
        if row.paused:
            self._queue.pause(row.key)
        return live

    def accepted(self, row: JobRow, reading: Reading) -> None:
        """A drop has become a job; its chunks follow."""
        live = self.add(row)
        self._endings.mark_expired(live)
        _log.info("job_accepted", job=row.job, owner=row.owner, size=row.size)

    def refused(self, row: JobRow, refusal: DropRefused) -> None:
        """An accepted drop turned out not to be a job."""
        if self._jobs.pop(row.key, None) is not None:
            self._queue.remove_job(row.key)
            self._dispatcher.cancel_job(row.key)

    def indexed(self, key: int, chunk: Chunk) -> None:
        """More of a job is indexed."""
        live = self._jobs.get(key)
        if live is None:
            return
        if chunk.indexed.refused:
            live.count(Outcome.FAILED, chunk.indexed.refused)
        live.requests += chunk.indexed.refused
        for lane_row in chunk.indexed.lanes:
            live.requests += lane_row.requests
            self.extend(live, lane_row, lane_row.requests, chunk.pending.get(lane_row.lane, ()))
        if chunk.final:
            live.indexed = True
            _log.info("job_indexed", job=live.row.job, requests=live.requests)
            self.go_on(live)
        self._dispatcher.wake()

    def go_on(self, live: LiveJob) -> None:
        """Do what a job's state asks for, beside answering its requests."""
        if live.ending:
            self._endings.carry_out(live)
        elif live.looking_back and live.indexed:
            self._spawn(self._look_back(live))
        self._completion.check(live)

    async def _look_back(self, live: LiveJob) -> None:
        """Copy earlier answers, then let the rest be asked."""
        copied = 0
        async for batch in self._reuse.answers(live):
            for finished in batch:
                self._completion.finished(finished)
            copied += len(batch)
            await self._completion.committer.settle(timeout_s=60)
        _log.info("earlier_answers_copied", job=live.row.job, requests=copied)
        live.looking_back = False
        for row in await asyncio.to_thread(lambda: self._store.of(live.row).lanes(live.key)):
            if row.requests > row.finished:
                self.extend(live, row, row.requests - row.finished)
        self._completion.check(live)
        self._dispatcher.wake()

    def extend(self, live: LiveJob, row: LaneRow, stored: int, pending: Sequence[Pending] = ()) -> None:
        """``stored`` more requests of a lane wait in the store; ``pending`` where they are at hand."""
        if live.ending or live.looking_back:
            return
        lane = live.lanes.get(row.lane)
        if lane is None:
            profile = live.profile_of(row)
            lane = Lane(live.key, row.lane, live.row.owner, profile, live.priority_of(row), live.row.accepted_s)
            live.lanes[row.lane] = self._queue.add_lane(lane)
        if not lane.profile.model:
            message = "no model is named: set model in the request, in job.toml or in the daemon's configuration"
            self._endings.fail_lane(lane, "no_model", message)
            return
        self._queue.extend(lane, stored, pending)
