"""The engine: puts the path of a drop together, from its acceptance to its ``summary.json``."""

from __future__ import annotations

import asyncio
from typing import Any

from obatchd import log
from obatchd.delivery.committer import Committer
from obatchd.delivery.completion import Completion
from obatchd.delivery.documents import job_document
from obatchd.delivery.responses import ResponseWriter
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.switching import ProfileSwitcher
from obatchd.engine.admission import Admission
from obatchd.engine.resumption import Resumption
from obatchd.intake.feeder import Feeder
from obatchd.intake.intake import Intake
from obatchd.intake.limits import OwnerLimits
from obatchd.intake.preparation import Preparation
from obatchd.intake.reuse import Reuse
from obatchd.jobs.model import JobIds
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow
from obatchd.live.forecast import forecast
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Work
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_STATUS_S = 1.0
_FORECAST_JOBS = 2000  # of more nobody waits for the turn, and counting costs a moment of the main loop


class Engine:
    """Owns the path of a drop. All methods are called from the main loop.

    Implements :class:`obatchd.delivery.publisher.DeliveryEvents`.
    """

    def __init__(self, work: Work, models: Models) -> None:
        """Each part is made after those that it uses: from the end of the path to its beginning."""
        self.work, self.settings = work, work.settings
        self.layout, self.store, self.jobs, self.conditions = work.layout, work.store, work.jobs, work.conditions
        self._tasks = TaskSet(work.owner)
        self.committer = Committer(work)
        self.preparation = Preparation(work, self.committer)
        self._feeder = Feeder(work, self.preparation, self.committer)
        self.queue = JobQueue(self._feeder)
        self.completion = Completion(work, self.queue, self.committer, ResponseWriter(work.owner), models, self)
        self._switcher = ProfileSwitcher(
            self.queue, work.settings.value.dispatch.switch_after_s, models, self.completion
        )
        self.dispatcher = Dispatcher(
            self.queue, work.settings.value.dispatch, self.completion, self._switcher, work.holds
        )
        self._admission = Admission(work, self.queue, self.completion, self.committer, Reuse(work, models))
        self.intake = Intake(work, JobIds(work.store.state.last_job()), self._admission)
        self.resumption = Resumption(work, self._admission, self.completion, self._feeder, self.intake, self.dispatcher)

    # Life.

    async def start(self) -> None:
        """Take up what an earlier run left, then watch the inbox; on a disk that refuses, as soon as it does not."""
        await self.completion.start(self.dispatcher)
        await self._look_at_disk()
        self._tasks.start(self._write_statuses(), "job-status")
        await self.resumption.start()

    async def stop(self, drain_s: float) -> None:
        """Give in-flight requests ``drain_s`` to end, make their results durable, stop."""
        await self.resumption.stop()
        await self.intake.stop()
        self.work.holds.hold("stopping")
        await self.dispatcher.until_idle(drain_s)
        await self.dispatcher.stop()
        await self._feeder.stop()
        await self.preparation.stop()
        await self._admission.stop()
        await self.completion.cancellation.stop()
        await self.committer.stop()
        await self._tasks.stop()
        await self.completion.publisher.stop()

    def hurry(self) -> None:
        """Do not wait for in-flight requests any longer; they stay pending in the store."""
        self.dispatcher.give_up_waiting()

    def settings_changed(self) -> None:
        """Tell the parts that do not read the settings at the moment of use."""
        dispatch = self.work.settings.value.dispatch
        self._switcher.switch_after_s = dispatch.switch_after_s
        self.dispatcher.apply(dispatch)
        self.preparation.settings_changed()

    async def pause(self, live: LiveJob, paused: bool) -> None:
        """Hold or go on with one job; what is in flight ends."""
        await asyncio.to_thread(self.work.store.state.update, live.key, paused=int(paused))
        live.paused = paused
        if paused:
            self.queue.pause(live.key)
        else:
            self.queue.resume(live.key)

    def published(self, row: JobRow, summary: dict[str, Any]) -> None:
        """A job is over: forget it, and tell."""
        work = self.work
        work.jobs.pop(row.key, None)
        work.conditions.of_jobs.pop(row.key, None)
        self.dispatcher.forget_job(row.key)
        self._feeder.forget(row.key)
        work.store.of(row).forget_lanes(row.key)
        counts = {name: summary[name] for name in ("requests", "succeeded", "failed", "wall_s")}
        _log.info("job_done", job=row.job, **counts)
        work.announcer.announce("job_done", {"job": row.job, "owner": row.owner, **counts})

    # Status.

    async def _look_at_disk(self) -> None:
        await self.work.conditions.look_at_disk(self.work.layout, self.work.settings.value.disk)

    async def _write_statuses(self) -> None:
        """The status of every job that has changed; one that is done within the second never needs its first."""
        jobs = self.work.jobs
        while True:
            await asyncio.sleep(_STATUS_S)
            await self._look_at_disk()
            self.completion.watch_backlog()
            in_flight = self.dispatcher.in_flight()
            changed = []
            if len(jobs) <= _FORECAST_JOBS:
                forecast(jobs.values(), in_flight)
            for live in jobs.values():
                self.completion.cancellation.expire(live)
                stamp = (live.finished, live.requests, live.paused, live.publishing, in_flight.get(live.key, 0),
                         live.turn and live.turn.position)  # fmt: skip
                if stamp != live.status_written and not live.publishing:
                    live.status_written = stamp
                    changed.append((live.outbox, job_document(live, in_flight.get(live.key, 0))))
            if changed:
                self.completion.publisher.write_statuses(changed)

    def limits(self) -> OwnerLimits:
        """What every owner has open, and may have."""
        return OwnerLimits(self.work.settings.value.limits, self.work.jobs.values())
