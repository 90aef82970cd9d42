"""From an answer to ``summary.json``: results are committed, counted and written out, then the job is published."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from obatchd.delivery.cancellation import Cancellation
from obatchd.delivery.committer import AttemptsInProgress, Committer
from obatchd.delivery.publisher import DeliveryEvents, Publisher
from obatchd.dispatch.events import Failed, Finished
from obatchd.dispatch.protocol import JobContext
from obatchd.errors import ObatchError
from obatchd.jobs.model import Outcome, Profile
from obatchd.jobs.queue import JobQueue
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Work

# Results not yet committed above which nothing more is offered: bounds memory while a disk is slow or full.
_BACKLOG_LIMIT = 20_000
_BACKLOG = "backlog"


@define(eq=False, slots=False)
class Completion:
    """Called from the main loop. Implements ``DispatchEvents`` and ``CommitListener``."""

    _work: Work
    _queue: JobQueue
    _committer: Committer
    _models: Models
    _events: DeliveryEvents
    publisher: Publisher = field(init=False)
    cancellation: Cancellation = field(init=False)  # ends jobs and lanes before all is answered

    def __attrs_post_init__(self) -> None:
        self.publisher = Publisher(self._work, self._models, self._events)
        self.cancellation = Cancellation(self._work, self._queue, self._committer, self)

    async def start(self, attempts: AttemptsInProgress) -> None:
        self._committer.start(self, attempts)
        await self.publisher.start()

    # Events of dispatch, whose Protocol says what they mean.

    def finished(self, finished: Finished) -> None:
        self._committer.finish(finished)

    def failed(self, failed: Failed) -> None:
        self._committer.fail(failed)

    def model_missing(self, model: str) -> None:
        self._models.forget(model)

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        self.cancellation.unservable(profile, error)

    def context_of(self, job: int) -> JobContext:
        return self._work.jobs[job].context()

    # From commit to publication.

    def committed(self, batch: Sequence[Finished]) -> None:
        """Count results that are durable, write their files, and publish the jobs that are complete."""
        jobs = self._work.jobs
        responses: dict[int, list[tuple[int, bytes]]] = {}
        touched: dict[int, LiveJob] = {}
        for finished in batch:
            live = jobs.get(finished.job)
            if live is None:
                continue
            outcome = Outcome.SUCCEEDED if finished.succeeded else Outcome.FAILED
            live.count(outcome, tokens=finished.response_tokens)
            touched[live.key] = live
            if finished.succeeded and live.response_files():
                responses.setdefault(live.key, []).append((finished.line, finished.record))
        if responses:
            given = [(jobs[key], records) for key, records in responses.items()]
            self.publisher.responses.write([(live.outbox, records, live.text_suffix) for live, records in given])
        for live in touched.values():
            self.check(live)
        self.watch_backlog()

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
            live.publishing = True
            self._queue.remove_job(live.key)
            self.publisher.publish(live)
