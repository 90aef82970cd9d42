"""From an answer to ``summary.json``: results are committed, counted and written out, then the job is published.

A cancelled or expired job is over before all its requests are answered: the others get that outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import msgspec
from attrs import define, field

from obatchd import log
from obatchd.delivery.committer import AttemptsInProgress, Committer
from obatchd.delivery.energy import EnergyBill, SlotsInUse
from obatchd.delivery.publisher import DeliveryEvents, Publisher
from obatchd.dispatch.events import Failed, Finished
from obatchd.dispatch.protocol import JobContext
from obatchd.errors import ObatchError
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Outcome, Profile
from obatchd.jobs.queue import JobQueue
from obatchd.live.job import CANCELLED, Ending, LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Part, Work
from obatchd.times import instant

_log = log.get(__name__)
# Results not yet committed above which nothing more is offered: bounds memory while a disk is slow or full.
_BACKLOG_LIMIT = 20_000
_BACKLOG = "backlog"
_TOGETHER = 5000  # requests ended at once
_DEFECTIVE = Ending(
    Outcome.FAILED,
    "job_defect",
    "obatchd itself failed to offer the requests of this job to a server; the daemon's log says where. Most likely a "
    "setting of the job cannot be sent to one, such as a whole number of more than 64 bits: submit the job again "
    "without that setting",
)


class _Failure(msgspec.Struct):
    """The parts of a failed request's record that are counted."""

    code: str = ""
    message: str = ""
    server: str = ""
    duration_s: float = 0.0
    prompt_tokens: int = 0
    response_tokens: int = 0


_failure = msgspec.json.Decoder(_Failure)


class AttemptsAtServers(AttemptsInProgress, SlotsInUse, Protocol):
    """Knows the attempts that run; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""


@define(eq=False)
class Completion:
    """Called from the main loop. Implements ``DispatchEvents`` and ``CommitListener``."""

    _work: Work
    _queue: JobQueue
    _committer: Committer
    _models: Models
    _events: DeliveryEvents
    publisher: Publisher = field(init=False)
    cancellation: Cancellation = field(init=False)  # ends jobs and lanes before all is answered
    energy: EnergyBill = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.publisher = Publisher(self._work, self._models, self._events)
        self.cancellation = Cancellation(self._work, self._queue, self._committer, self)
        self.energy = EnergyBill(self._work, self._models)

    async def start(self, attempts: AttemptsAtServers) -> None:
        self.energy.start(attempts)
        self._committer.start(self, attempts, self.energy)
        await self.publisher.start()

    # Events of dispatch, whose Protocol says what they mean.

    def finished(self, finished: Finished) -> None:
        self._committer.finish(finished)

    def failed(self, failed: Failed) -> None:
        self._committer.fail(failed)

    def hindered(self, job: int, reason: str) -> None:
        if (live := self._work.jobs.get(job)) is not None:
            live.hindrance = reason

    def model_missing(self, model: str) -> None:
        self._models.forget(model)

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        self.cancellation.unservable(profile, error)

    def answered_for_nobody(self, finished: Finished) -> None:
        """A server answered a request of no job: its part of the energy is no job's."""
        self.energy.answered(
            finished.job, finished.server, finished.duration_s, finished.prompt_tokens, finished.response_tokens
        )

    def context_of(self, job: int) -> JobContext:
        return self._work.jobs[job].context()

    def name_of(self, job: int) -> str:
        live = self._work.jobs.get(job)
        return live.row.job if live is not None else str(job)

    def defective(self, job: int) -> None:
        if (live := self._work.jobs.get(job)) is not None:
            _log.error("job_defective", job=live.row.job, remedy="its requests fail; please report the error above")
            self.cancellation.end(live, _DEFECTIVE)
        else:
            self._queue.cancel_job(job)

    # From commit to publication.

    def committed(self, batch: Sequence[Finished]) -> None:
        """Count results that are durable, write their files, and publish the jobs that are complete."""
        by_job: dict[int, list[Finished]] = {}
        for finished in batch:
            by_job.setdefault(finished.job, []).append(finished)
        for job, results in by_job.items():
            if (live := self._work.jobs.get(job)) is not None:
                self._count(live, results)
                self.check(live)
        self.watch_backlog()

    def _count(self, live: LiveJob, results: list[Finished]) -> None:
        good = [finished for finished in results if finished.succeeded]
        if good:
            live.count(Outcome.SUCCEEDED, len(good), sum(finished.response_tokens for finished in good))
            self._work.counters.requests[Outcome.SUCCEEDED.value] += len(good)
            self.energy.count(live, good)
        if good and live.response_files():
            records = [(finished.line, finished.record) for finished in good]
            self.publisher.responses.write([(live.outbox, records, live.text_suffix)])
        if len(good) < len(results):
            self._count_failures(live, [finished for finished in results if not finished.succeeded])

    def _count_failures(self, live: LiveJob, results: list[Finished]) -> None:
        live.count(Outcome.FAILED, len(results))
        self._work.counters.requests[Outcome.FAILED.value] += len(results)
        for failure in [_failure.decode(finished.record) for finished in results]:
            self._work.counters.failures[failure.code] += 1
            live.blame(failure.code, failure.message)
            if failure.prompt_tokens or failure.response_tokens:  # an answer that was none
                self.energy.answered(
                    live.key, failure.server, failure.duration_s, failure.prompt_tokens, failure.response_tokens
                )

    def watch_backlog(self) -> None:
        """Offer nothing more while results gather faster than the disk takes them."""
        backlog = max(self._committer.backlog, self.publisher.responses.backlog)
        if backlog > _BACKLOG_LIMIT:
            self._work.holds.hold(_BACKLOG)
        elif backlog < _BACKLOG_LIMIT // 2:
            self._work.holds.release(_BACKLOG)

    def check(self, live: LiveJob) -> None:
        """Publish a job if every request of it has its result."""
        if live.complete and not live.publishing:
            live.publishing, live.answered_s = True, time.time()
            self.energy.close(live)
            self._queue.remove_job(live.key)
            self.publisher.publish(live)


@define(eq=False)
class Cancellation(Part):
    """Gives requests that will not be answered their outcome."""

    _queue: JobQueue
    _committer: Committer
    _completion: Completion

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
        live.row.cancelled_s = time.time()
        await asyncio.to_thread(self._work.store.state.update, live.key, cancelled=1, cancelled_s=live.row.cancelled_s)
        _log.info("job_cancelled", job=live.row.job)
        live.ending = CANCELLED
        self._queue.cancel_job(live.key)
        await self._end_pending(live, CANCELLED)

    def end(self, live: LiveJob, ending: Ending) -> None:
        """End a job: answers stay, all other requests get this outcome."""
        live.ending = ending
        self._queue.cancel_job(live.key)
        self.carry_out(live)

    def expire(self, live: LiveJob) -> None:
        if self.mark_expired(live) and live.ending:
            self.end(live, live.ending)

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
            live.blame(ending.code, ending.message, len(ended))
            self._work.counters.requests[ending.outcome.value] += len(ended)
            if ending.outcome is Outcome.FAILED:
                self._work.counters.failures[ending.code] += len(ended)
            reached = ended[-1]
        self._completion.check(live)
