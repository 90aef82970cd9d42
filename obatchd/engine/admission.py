"""From an accepted drop to the queue: indexed requests become lanes, or wait for the answers of earlier jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from attrs import define

from obatchd import log
from obatchd.delivery.committer import Committer
from obatchd.delivery.completion import Completion
from obatchd.intake.indexing import Chunk
from obatchd.intake.reuse import Reuse
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Outcome
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow, LaneRow
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Part

_log = log.get(__name__)


@define(eq=False)
class Admission(Part):
    """Called from the main loop. Implements :class:`obatchd.intake.intake.IntakeEvents`."""

    _queue: JobQueue
    _completion: Completion
    _committer: Committer
    _models: Models

    def add(self, row: JobRow) -> LiveJob:
        live = self._work.jobs[row.key] = LiveJob(row, self._work.outbox_of(row))
        if row.paused:
            self._queue.pause(row.key)
        return live

    async def pause(self, live: LiveJob, paused: bool) -> None:
        """Hold or go on with one job; requests in flight end."""
        await asyncio.to_thread(self._work.store.state.update, live.key, paused=int(paused))
        live.paused = paused
        if paused:
            self._queue.pause(live.key)
        else:
            self._queue.resume(live.key)

    def accepted(self, row: JobRow) -> None:
        self._completion.cancellation.mark_expired(self.add(row))
        _log.info("job_accepted", job=row.job, owner=row.owner, size=row.size)

    def refused(self, row: JobRow) -> None:
        if self._work.forget(row.key) is not None:
            self._queue.cancel_job(row.key)
        self._work.tell_submitter(row)

    def indexed(self, job: int, chunk: Chunk) -> None:
        live = self._work.jobs.get(job)
        if live is None:
            return
        if chunk.indexed.refused:
            live.count(Outcome.FAILED, chunk.indexed.refused)
            self._work.counters.requests[Outcome.FAILED.value] += chunk.indexed.refused
            live.refused += chunk.indexed.refused
        for refusal in chunk.indexed.refusals:
            live.blame(refusal.code, refusal.message)
            self._work.counters.failures[refusal.code] += 1
        live.requests += chunk.indexed.refused
        for lane_row in chunk.indexed.lanes:
            live.requests += lane_row.requests
            self.extend(live, lane_row, lane_row.requests, chunk.pending.get(lane_row.lane, ()))
        if chunk.final:
            live.indexed = True
            _log.info("job_indexed", job=live.row.job, requests=live.requests)
            self.go_on(live)

    def go_on(self, live: LiveJob) -> None:
        """Take the steps that a job's state asks for, beside answering its requests."""
        if live.ending:
            self._completion.cancellation.carry_out(live)
        elif live.looking_back and live.indexed:
            self._tasks.start(self._look_back(live), f"reuse-{live.row.job}")
        self._completion.check(live)

    async def _look_back(self, live: LiveJob) -> None:
        """Copy earlier answers, then let the rest be asked."""
        copied = 0
        async for batch in Reuse(self._work, self._models).answers(live):
            for finished in batch:
                self._committer.finish(finished)
            copied += len(batch)
            await self._committer.settle(timeout_s=60)
        _log.info("earlier_answers_copied", job=live.row.job, requests=copied)
        live.looking_back = False
        for row in await asyncio.to_thread(lambda: self._work.store.of(live.row).lanes(live.key)):
            if row.requests > row.finished:
                self.extend(live, row, row.requests - row.finished)
        self._completion.check(live)

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
            self._completion.cancellation.fail_lane(lane, "no_model", message)
            return
        self._queue.extend(lane, stored, pending)
