"""Cancellation and expiry: jobs and lanes that are over before all their requests are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from attrs import define

from obatchd import log
from obatchd.delivery.committer import Committer
from obatchd.errors import ObatchError
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Outcome, Profile
from obatchd.jobs.queue import JobQueue
from obatchd.live.job import CANCELLED, Ending, LiveJob
from obatchd.live.work import Part
from obatchd.times import instant

_log = log.get(__name__)
_TOGETHER = 5000


class CompletionCheck(Protocol):
    """Publishes complete jobs; :class:`obatchd.delivery.completion.Completion`."""

    def check(self, live: LiveJob) -> None:
        """A job has more outcomes; it may be complete."""


@define(eq=False)
class Cancellation(Part):
    """Gives requests that will not be answered their outcome."""

    _queue: JobQueue
    _committer: Committer
    _completion: CompletionCheck

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        message = f"{error.message} (model {profile.model}, context {profile.context_length})"
        for lane in self._queue.lanes_of_profile(profile):
            self.fail_lane(lane, error.code, message)

    def fail_lane(self, lane: Lane, code: str, message: str) -> None:
        """Fail the waiting requests of a lane."""
        live = self._work.jobs.get(lane.job)
        if live is None:
            return
        self._queue.remove_lanes([lane])
        live.lanes.pop(lane.number, None)
        _log.warning("requests_unservable", job=live.row.job, model=lane.profile.model, code=code, reason=message)
        self._start(live, self._end_pending(live, Ending(Outcome.FAILED, code, message), lane.number))

    async def cancel(self, live: LiveJob) -> None:
        """End a job: answers stay, all other requests are cancelled."""
        await asyncio.to_thread(self._work.store.state.update, live.key, cancelled=1)
        _log.info("job_cancelled", job=live.row.job)
        live.ending = CANCELLED
        self._queue.cancel_job(live.key)
        await self._end_pending(live, CANCELLED)

    def expire(self, live: LiveJob) -> None:
        if self.mark_expired(live):
            self._queue.cancel_job(live.key)
            self.carry_out(live)

    def mark_expired(self, live: LiveJob) -> bool:
        """Whether a job's deadline has just passed. A restart finds it passed again."""
        expires_s = live.expires_s
        if expires_s is None or live.ending or live.complete or time.time() < expires_s:
            return False
        live.ending = Ending(Outcome.EXPIRED, "expired", f"the job's deadline, {instant(expires_s)}, passed")
        _log.warning("job_expired", job=live.row.job, deadline=instant(expires_s), requests=live.requests,
                     finished=live.finished)  # fmt: skip
        return True

    def carry_out(self, live: LiveJob) -> None:
        """Go on with an ending that was decided before the job was indexed, or by an earlier run."""
        assert live.ending is not None
        self._start(live, self._end_pending(live, live.ending))

    def _start(self, live: LiveJob, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work, f"end-{live.row.job}")

    async def _end_pending(self, live: LiveJob, ending: Ending, lane: int | None = None) -> None:
        """Give every request without a result, of one lane or of all, this outcome, a chunk at a time."""
        await self._committer.settle(timeout_s=60)
        reached = 0

        async def end_some() -> list[int]:
            segment = await asyncio.to_thread(self._work.store.of, live.row)
            return await asyncio.to_thread(segment.end_pending, live.key, lane, *ending, _TOGETHER, reached)

        words = f"job {live.row.job} cannot be ended"
        while ended := await self._work.conditions.until_disk_takes(
            end_some, live.key, "end_failed", words, job=live.row.job
        ):
            live.count(ending.outcome, len(ended))
            reached = ended[-1]
        self._completion.check(live)
