"""The engine: live jobs, and what happens to them between acceptance and ``summary.json``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from obatchd import log
from obatchd.delivery.completion import Completion
from obatchd.delivery.documents import job_document
from obatchd.delivery.endings import Endings
from obatchd.dispatch.dispatcher import Dispatcher, Finished
from obatchd.dispatch.switching import ProfileSwitcher
from obatchd.engine.admission import Admission
from obatchd.engine.resumption import Resumption
from obatchd.intake.feeder import Feeder
from obatchd.intake.intake import Intake
from obatchd.intake.limits import OwnerLimits
from obatchd.intake.preparation import Preparation
from obatchd.intake.reuse import Reuse
from obatchd.jobs.formats import request_file
from obatchd.jobs.model import JobIds
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow, Segment, Store
from obatchd.live.forecast import forecast
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.troubles import INTAKE, Troubles
from obatchd.settings.settings import Settings
from obatchd.settings.tables.alarms import AlarmKind
from obatchd.spool.layout import Layout
from obatchd.spool.outbox import JobOutbox
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_STATUS_S = 1.0
_FORECAST_JOBS = 2000  # of more nobody waits for the turn, and counting costs a moment of the main loop


class Engine:
    """Owns the path of a drop. All methods are called from the main loop.

    Args:
        owner: told when a part of the engine ended by an exception.
    """

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        store: Store,
        context: ForkServerContext,
        models: Models,
        owner: TaskOwner,
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.store = store
        self.jobs: dict[int, LiveJob] = {}
        self.announce: Callable[[AlarmKind, dict[str, Any]], None] = lambda kind, facts: None  # alarms
        self.owner = owner
        self.troubles = Troubles(lambda kind: self.dispatcher.hold(kind), self._trouble_over)
        self._tasks = TaskSet(owner)
        self._statuses = TaskSet(owner)
        self._build_dispatch(context, models)
        self.completion = Completion(
            self.jobs, layout, store, settings, context,
            queue=self.queue, dispatcher=self.dispatcher, models=models, troubles=self.troubles,
            on_published=self._published, on_caught_up=lambda: self.intake.wake(),
        )  # fmt: skip
        self._build_entrance(Reuse(store, layout, models.digest, lambda: self.settings))

    def _build_dispatch(self, context: ForkServerContext, models: Models) -> None:
        """From the queue to the servers."""
        settings = self.settings
        self.preparation = Preparation(
            settings.context, context, self.layout.sources,
            input_of=self._input_of, on_finished=self._finished, wake=lambda: self.dispatcher.wake(), owner=self.owner,
        )  # fmt: skip
        self.queue = JobQueue(lambda lane: self.feeder.fetch(lane), sift=self.preparation.sift)
        self.preparation.queue = self.queue
        self.switcher = ProfileSwitcher(
            self.queue,
            settings.dispatch.switch_after_s,
            models.ensure,
            lambda profile, error: self.endings.unservable(profile, error),
        )
        self.dispatcher = Dispatcher(
            self.queue, settings.dispatch, context,
            context_of=lambda job: self.jobs[job].context(), on_finished=self._finished,
            on_failed=lambda failed: self.completion.committer.fail(failed), on_model_missing=models.forget,
            switcher=self.switcher,
        )  # fmt: skip
        self.feeder = Feeder(
            self.queue, self._source_of, self._finished, self.dispatcher.suspicion, self.dispatcher.wake,
            self.troubles.say_of_job, self.owner,
        )  # fmt: skip

    def _build_entrance(self, reuse: Reuse) -> None:
        """From the inbox, or an earlier run, to the queue."""
        completion, layout, store = self.completion, self.layout, self.store
        self.endings = Endings(
            self.jobs, store, self.queue, self.dispatcher, completion.committer, self.troubles,
            spawn=self._spawn, on_ended=completion.check,
        )  # fmt: skip
        admission = Admission(
            self.jobs, layout, store, lambda: self.settings,
            queue=self.queue, dispatcher=self.dispatcher, completion=completion, endings=self.endings, reuse=reuse,
            spawn=self._spawn,
        )  # fmt: skip
        self.intake = Intake(
            layout, store, JobIds(store.state.last_job()), lambda: self.settings,
            owner=self.owner, may_claim=lambda: self.troubles.may_claim and not completion.behind, limits=self.limits,
            on_job=admission.accepted, on_chunk=admission.indexed, on_refused=admission.refused,
            on_trouble=lambda reason: self.troubles.say(INTAKE, reason), on_job_trouble=self.troubles.say_of_job,
        )  # fmt: skip
        self.resumption = Resumption(
            self.jobs, layout, store, lambda: self.settings,
            admission=admission, completion=completion, endings=self.endings, feeder=self.feeder, intake=self.intake,
            troubles=self.troubles,
        )  # fmt: skip

    # Life.

    async def start(self) -> None:
        """Take up what an earlier run left, then watch the inbox; on a disk that refuses, as soon as it does not."""
        await self.completion.start(self.owner)
        await self.troubles.look_at_disk(self.layout, self.settings.disk)
        self._statuses.start(self._write_statuses(), "job-status")
        if not await self.resumption.take_up():
            self._spawn(self.resumption.take_up_later())

    async def stop(self, drain_s: float) -> None:
        """Give in-flight requests ``drain_s`` to end, make their results durable, stop."""
        await self.intake.stop()
        self.dispatcher.hold("stopping")
        await self.dispatcher.until_idle(drain_s)
        await self.dispatcher.stop()
        await self.feeder.stop()
        await self.preparation.stop()
        await self._tasks.stop()  # ending the rest of a job goes on at the next start
        await self.completion.committer.stop()
        await self._statuses.stop()
        await self.completion.publisher.stop()

    def hurry(self) -> None:
        """Do not wait for in-flight requests any longer; they stay pending in the store."""
        self.dispatcher.give_up_waiting()

    def apply(self, settings: Settings) -> None:
        """Use changed settings from now on."""
        self.settings = settings
        self.completion.committer.interval_s = settings.dispatch.commit_interval_ms / 1000
        self.switcher.switch_after_s = settings.dispatch.switch_after_s
        self.dispatcher.apply(settings.dispatch)
        self.intake.inbox.settings = settings.inbox
        self.preparation.apply(settings.context)

    async def pause(self, live: LiveJob, paused: bool) -> None:
        """Hold or go on with one job; what is in flight ends."""
        await asyncio.to_thread(self.store.state.update, live.key, paused=int(paused))
        live.paused = paused
        if paused:
            self.queue.pause(live.key)
        else:
            self.queue.resume(live.key)
        self.dispatcher.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work, "engine")

    # What the parts ask of each other, or tell.

    def _source_of(self, job: int) -> tuple[Callable[[], Segment], Path] | None:
        live = self.jobs.get(job)
        if live is None:
            return None
        source = self.layout.job_dir(live.row.job) / "input"
        return partial(self.store.of, live.row), request_file(source)

    def _input_of(self, job: int) -> tuple[Path | None, bool] | None:
        """For the preparer: the folder of a job, None where its drop is none; whether whole prompts are kept."""
        live = self.jobs.get(job)
        if live is None:
            return None
        folder = self.layout.job_dir(live.row.job) / "input" if live.row.kind == "folder" else None
        return folder, bool(live.row.settings.sample)

    def _finished(self, finished: Finished) -> None:
        self.completion.finished(finished)

    def _published(self, row: JobRow, summary: dict[str, Any]) -> None:
        self.jobs.pop(row.key, None)
        self.troubles.of_jobs.pop(row.key, None)
        self.dispatcher.forget_job(row.key)
        self.feeder.forget(row.key)
        self.store.of(row).forget_lanes(row.key)
        _log.info(
            "job_done", job=row.job, requests=summary["requests"], succeeded=summary["succeeded"],
            failed=summary["failed"], wall_s=summary["wall_s"],
        )  # fmt: skip
        counts = {name: summary[name] for name in ("requests", "succeeded", "failed", "wall_s")}
        self.announce("job_done", {"job": row.job, "owner": row.owner, **counts})

    def _trouble_over(self, kind: str) -> None:
        self.dispatcher.unhold(kind)
        self.intake.wake()

    # Status.

    async def _write_statuses(self) -> None:
        """The status of every job that has changed; one that is done within the second never needs its first."""
        while True:
            await asyncio.sleep(_STATUS_S)
            await self.troubles.look_at_disk(self.layout, self.settings.disk)
            self.completion.watch_backlog()
            in_flight = self.dispatcher.in_flight()
            changed = []
            if len(self.jobs) <= _FORECAST_JOBS:
                forecast(self.jobs.values(), in_flight)
            for live in self.jobs.values():
                self.endings.expire(live)
                stamp = (live.finished, live.requests, live.paused, live.publishing, in_flight.get(live.key, 0),
                         live.turn and live.turn.position)  # fmt: skip
                if stamp != live.status_written and not live.publishing:
                    live.status_written = stamp
                    changed.append((live.outbox, job_document(live, in_flight.get(live.key, 0))))
            if changed:
                self.completion.publisher.write_statuses(changed)

    def limits(self) -> OwnerLimits:
        """What every owner has open, and may have."""
        return OwnerLimits(self.settings.limits, self.jobs.values())

    def outbox_of(self, row: JobRow) -> JobOutbox:
        return JobOutbox(self.layout.outbox_dir(row.job, row.name, row.owner))
