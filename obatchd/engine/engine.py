"""The engine: live jobs, and what happens to them between acceptance and ``summary.json``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from obatchd import log
from obatchd.dispatch.dispatcher import Dispatcher, Failed, Finished
from obatchd.dispatch.switching import ProfileSwitcher
from obatchd.engine.alarms import JOB_DONE
from obatchd.engine.committer import Committer
from obatchd.engine.documents import job_document, last_status, summary_details
from obatchd.engine.endings import Endings
from obatchd.engine.feeder import Feeder, histories
from obatchd.engine.forecast import forecast
from obatchd.engine.indexing import Chunk, Reading, late_note
from obatchd.engine.intake import Intake
from obatchd.engine.limits import OwnerLimits
from obatchd.engine.live import LiveJob
from obatchd.engine.preparation import Preparation
from obatchd.engine.publisher import Publication, Publisher
from obatchd.engine.rebuild import rebuild
from obatchd.engine.responses import ResponseWriter
from obatchd.engine.reuse import Reuse
from obatchd.engine.troubles import INTAKE, Troubles
from obatchd.engine.vital import Vital
from obatchd.errors import DropRefused
from obatchd.jobs.formats import request_file
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import JobIds, JobState, Outcome
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import DISK_ERRORS, JobRow, LaneRow, Segment, Store
from obatchd.settings import Settings
from obatchd.spool import claim
from obatchd.spool.layout import Layout
from obatchd.spool.outbox import JobOutbox, Totals

_log = log.get(__name__)
_STATUS_S = 1.0
_FORECAST_JOBS = 2000  # of more nobody waits for the turn, and counting costs a moment of the main loop
_RETRY_S = 2.0
# Results not yet committed above which nothing more is offered: bounds memory while a disk is slow or full.
_BACKLOG_LIMIT = 20_000


class Engine:
    """Owns the path of a drop. All methods are called from the main loop.

    Args:
        ensure_model: ``(server id, model)``: makes sure of a model in that server's store and tells its capabilities;
            raises ModelError.
        forget_model: what was known of a model no longer holds.
        model_facts: what is known of a model for the summary, by name.
        server_version: the Ollama version of a server, by id.
        model_digest: the digest of a model by name, as soon as a server can tell it; None where no server has it.
        on_defect: a part of the engine ended by an exception; the daemon cannot go on.
    """

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        store: Store,
        context: ForkServerContext,
        *,
        ensure_model: Callable[[str, str], Awaitable[list[str]]],
        forget_model: Callable[[str], None],
        model_facts: Callable[[str], dict[str, Any]],
        server_version: Callable[[str], str | None],
        model_digest: Callable[[str], Awaitable[str | None]],
        on_defect: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.store = store
        self.jobs: dict[int, LiveJob] = {}
        self.troubles = Troubles(lambda kind: self.dispatcher.hold(kind), self._trouble_over)
        self.job_finished = asyncio.Condition()
        self.announce: Callable[[str, dict[str, Any]], None] = lambda kind, facts: None  # alarms
        self._model_facts = model_facts
        self._server_version = server_version
        self.vital = Vital(on_defect, store.distrust)
        self._reuse = Reuse(store, layout, model_digest)
        self.preparation = Preparation(
            settings.context,
            context,
            layout.sources,
            input_of=self._input_of,
            on_finished=self._finished,
            wake=lambda: self.dispatcher.wake(),
            vital=self.vital,
        )
        self.queue = JobQueue(self._fetch, sift=self.preparation.sift)
        self.preparation.queue = self.queue
        switcher = ProfileSwitcher(
            self.queue,
            settings.dispatch.switch_after_s,
            ensure_model,
            lambda profile, error: self.endings.unservable(profile, error),
        )
        self.switcher = switcher
        self.dispatcher = Dispatcher(
            self.queue,
            settings.dispatch,
            context,
            context_of=lambda job: self.jobs[job].context(),
            on_finished=self._finished,
            on_failed=self._attempt_failed,
            on_model_missing=forget_model,
            switcher=switcher,
        )
        self.feeder = Feeder(
            self.queue,
            self._source_of,
            self._finished,
            self.dispatcher.suspicion,
            self.dispatcher.wake,
            self.troubles.say_of_job,
            self.vital,
        )
        self.committer = Committer(
            store,
            settings.dispatch.commit_interval_ms / 1000,
            segment_of=lambda job: self.jobs[job].row.segment if job in self.jobs else None,
            unrecorded_starts=self.dispatcher.unrecorded_starts,
            on_committed=self._committed,
            on_trouble=lambda reason: self.troubles.say("store", reason),
        )
        self.endings = Endings(
            self.jobs, store, self.queue, self.dispatcher, self.committer, self.troubles,
            spawn=self._spawn, on_ended=self._check_complete,
        )  # fmt: skip
        self.publisher = Publisher(
            store,
            ResponseWriter(context),
            on_done=self._published,
            on_trouble=lambda reason: self.troubles.say("outbox", reason),
        )
        self.intake = Intake(
            layout,
            store,
            JobIds(store.state.last_job()),
            lambda: self.settings,
            vital=self.vital,
            may_claim=lambda: self.troubles.may_claim,
            limits=self.limits,
            on_job=self._accepted,
            on_chunk=self._indexed,
            on_refused=self._refused,
            on_trouble=lambda reason: self.troubles.say(INTAKE, reason),
            on_job_trouble=self.troubles.say_of_job,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._status_task: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Take up what an earlier run left, then watch the inbox; on a disk that refuses, as soon as it does not."""
        self.committer.start(self.vital)
        await self.publisher.start(self.vital)
        await self.troubles.look_at_disk(self.layout, self.settings.disk)
        self._status_task = self.vital.start(self._write_statuses(), "job-status")
        if not await self._take_up():
            self._spawn(self._take_up_later())

    async def _take_up(self) -> bool:
        try:
            if not self.store.state.is_complete:
                await asyncio.to_thread(rebuild, self.store, self.layout, self.settings)
            await asyncio.to_thread(claim.recover, self.layout, self.store.state)
            await self._recover()
        except DISK_ERRORS as error:
            self.troubles.say("start", f"earlier jobs cannot be taken up: {log.reason(error)}")
            return False
        self.troubles.say("start", "")
        self.intake.start()
        return True

    async def _take_up_later(self) -> None:
        while not await self._take_up():
            await asyncio.sleep(_RETRY_S)

    async def stop(self, drain_s: float) -> None:
        """Give in-flight requests ``drain_s`` to end, make their results durable, stop."""
        await self.intake.stop()
        self.dispatcher.hold("stopping")
        await self.dispatcher.until_idle(drain_s)
        await self.dispatcher.stop()
        await self.feeder.stop()
        await self.preparation.stop()
        for task in self._tasks:
            task.cancel()  # ending the rest of a job goes on at the next start
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.committer.stop()
        if self._status_task is not None:
            self._status_task.cancel()
        await self.publisher.stop()

    def hurry(self) -> None:
        """Do not wait for in-flight requests any longer; they stay pending in the store."""
        self.dispatcher.give_up_waiting()

    def apply(self, settings: Settings) -> None:
        """Use changed settings from now on."""
        self.settings = settings
        self.committer.interval_s = settings.dispatch.commit_interval_ms / 1000
        self.switcher.switch_after_s = settings.dispatch.switch_after_s
        self.dispatcher.apply(settings.dispatch)
        self.intake.inbox.settings = settings.inbox
        self.preparation.apply(settings.context)
        for live in self.jobs.values():
            live.settings = settings

    async def _recover(self) -> None:
        rows = await asyncio.to_thread(self.store.state.list_jobs, [JobState.RUNNING, JobState.PUBLISHING])
        fresh = []
        for row in rows:
            if row.key in self.jobs:
                continue  # taken up by an earlier try that the disk cut short
            await asyncio.to_thread(self.layout.make_owner, row.owner)
            segment = await asyncio.to_thread(self.store.of, row)
            line, indexed = segment.job_progress(row.key)
            if line == 0 and not indexed:
                fresh.append(row)
                continue
            live = self._add(row)
            live.resumed = True
            self.endings.mark_expired(live)
            live.indexed = indexed
            live.counts = segment.tallies(row.key)
            lanes = segment.lanes(row.key)
            live.requests = sum(lane.requests for lane in lanes) + self._refused_lines(live, lanes)
            self.feeder.remember(row.key, histories(segment.attempts(row.key)))
            for lane_row in lanes:
                if lane_row.requests > lane_row.finished:
                    self._extend(live, lane_row, lane_row.requests - lane_row.finished)
                    if lane_row.lane in live.lanes:
                        live.lanes[lane_row.lane].begin_after(segment.last_finished(row.key, lane_row.lane))
            if not indexed:
                self.intake.go_on(Reading(row, self.layout, self.settings, lambda size: None))
            if live.ending:
                self.endings.carry_out(live)
            elif live.looking_back and indexed:
                self._spawn(self._look_back(live))
            self._check_complete(live)
        if rows:
            _log.info("jobs_resumed", jobs=len(rows), fresh=len(fresh))
        if fresh:
            await self.intake.begin(fresh)

    @staticmethod
    def _refused_lines(live: LiveJob, lanes: Sequence[LaneRow]) -> int:
        """Lines refused while indexing: they have results and belong to no lane."""
        return live.finished - sum(lane.finished for lane in lanes)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.vital.start(work, "engine")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Acceptance.

    def _add(self, row: JobRow) -> LiveJob:
        outbox = self.layout.outbox_dir(row.job, row.name, row.owner)
        live = self.jobs[row.key] = LiveJob(row, outbox, self.settings)
        if row.paused:
            self.queue.pause(row.key)
        return live

    def _accepted(self, row: JobRow, reading: Reading) -> None:
        live = self._add(row)
        self.endings.mark_expired(live)
        _log.info("job_accepted", job=row.job, owner=row.owner, size=row.size)

    def _indexed(self, key: int, chunk: Chunk) -> None:
        live = self.jobs.get(key)
        if live is None:
            return
        if chunk.indexed.refused:
            live.count(Outcome.FAILED, chunk.indexed.refused)
        live.requests += chunk.indexed.refused
        for lane_row in chunk.indexed.lanes:
            live.requests += lane_row.requests
            self._extend(live, lane_row, lane_row.requests, chunk.pending.get(lane_row.lane, ()))
        if chunk.final:
            live.indexed = True
            _log.info("job_indexed", job=live.row.job, requests=live.requests)
            if live.ending:
                self.endings.carry_out(live)
            elif live.looking_back:
                self._spawn(self._look_back(live))
            self._check_complete(live)
        self.dispatcher.wake()

    async def _look_back(self, live: LiveJob) -> None:
        """Copy earlier answers, then let the rest be asked."""
        copied = 0
        async for batch in self._reuse.answers(live):
            for finished in batch:
                self._finished(finished)
            copied += len(batch)
            await self.committer.settle(timeout_s=60)
        _log.info("earlier_answers_copied", job=live.row.job, requests=copied)
        live.looking_back = False
        for row in await asyncio.to_thread(lambda: self.store.of(live.row).lanes(live.key)):
            if row.requests > row.finished:
                self._extend(live, row, row.requests - row.finished)
        self._check_complete(live)
        self.dispatcher.wake()

    def _extend(self, live: LiveJob, row: LaneRow, stored: int, pending: Sequence[Any] = ()) -> None:
        if live.ending or live.looking_back:
            return
        lane = live.lanes.get(row.lane)
        if lane is None:
            profile = live.profile_of(row)
            lane = Lane(live.key, row.lane, live.row.owner, profile, live.priority_of(row), live.row.accepted_s)
            live.lanes[row.lane] = self.queue.add_lane(lane)
        if not lane.profile.model:
            message = "no model is named: set model in the request, in job.toml or in the daemon's configuration"
            self.endings.fail_lane(lane, "no_model", message)
            return
        self.queue.extend(lane, stored, pending)

    def _refused(self, row: JobRow, refusal: DropRefused) -> None:
        live = self.jobs.pop(row.key, None)
        if live is not None:
            self.queue.remove_job(row.key)
            self.dispatcher.cancel_job(row.key)

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

    def _fetch(self, lane: Lane) -> None:
        self.feeder.fetch(lane)

    # Results.

    def _finished(self, finished: Finished) -> None:
        live = self.jobs.get(finished.job)
        if live is None or live.ending:
            return  # a late answer: the request has, or is about to have, the outcome of the job's end
        self.committer.finish(finished)

    def _watch_backlog(self) -> None:
        """Offer nothing more while results gather faster than the disk takes them."""
        backlog = max(self.committer.backlog, self.publisher.responses.backlog)
        if backlog > _BACKLOG_LIMIT:
            self.dispatcher.hold("backlog")
        elif backlog < _BACKLOG_LIMIT // 2:
            self.dispatcher.unhold("backlog")

    def _attempt_failed(self, failed: Failed) -> None:
        self.committer.fail(failed)

    def _committed(self, batch: Sequence[Finished]) -> None:
        responses: dict[int, list[tuple[int, bytes]]] = {}
        touched: dict[int, LiveJob] = {}
        for finished in batch:
            live = self.jobs.get(finished.job)
            if live is None:
                continue
            outcome = Outcome.SUCCEEDED if finished.succeeded else Outcome.FAILED
            live.count(outcome, tokens=finished.response_tokens)
            touched[live.key] = live
            if finished.succeeded and live.response_files():
                responses.setdefault(live.key, []).append((finished.line, finished.record))
        if responses:
            given = [(self.jobs[key], records) for key, records in responses.items()]
            self.publisher.responses.write([(live.outbox, records, live.text_suffix) for live, records in given])
        for live in touched.values():
            self._check_complete(live)
        self._watch_backlog()

    def _check_complete(self, live: LiveJob) -> None:
        if not live.complete or live.publishing:
            return
        live.publishing = True
        self.queue.remove_job(live.key)
        files = live.response_files()
        self.publisher.publish(
            Publication(
                live.row,
                live.outbox,
                self.layout.job_dir(live.row.job),
                files,
                live.text_suffix,
                live.resumed,
                lambda totals: self._details(live, totals),
                lambda summary: last_status(live, summary),
            )
        )

    def _details(self, live: LiveJob, totals: Totals) -> dict[str, Any]:
        """Called in the publisher's thread: looks at the input's size."""
        known = live.row.notes
        live.row.notes = [*known, *(note for note in late_note(live.row, self.layout) if note not in known)]
        return summary_details(live, totals, self._model_facts, self._server_version)

    def republish(self, row: JobRow) -> None:
        """Write the outbox of a finished job again from the store."""
        live = self._add(row)
        live.resumed = live.indexed = True
        live.counts = self.store.of(row).tallies(row.key)
        live.requests = live.finished
        self._check_complete(live)

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
        self.announce(JOB_DONE, {"job": row.job, "owner": row.owner, **counts})
        self._spawn(self._notify())

    async def _notify(self) -> None:
        async with self.job_finished:
            self.job_finished.notify_all()

    async def pause(self, live: LiveJob, paused: bool) -> None:
        """Hold or go on with one job; what is in flight ends."""
        await asyncio.to_thread(self.store.state.update, live.key, paused=int(paused))
        live.paused = paused
        if paused:
            self.queue.pause(live.key)
        else:
            self.queue.resume(live.key)
        self.dispatcher.wake()

    # Status.

    def _trouble_over(self, kind: str) -> None:
        self.dispatcher.unhold(kind)
        self.intake.wake()

    async def _write_statuses(self) -> None:
        """The status of every job that has changed; one that is done within the second never needs its first."""
        while True:
            await asyncio.sleep(_STATUS_S)
            await self.troubles.look_at_disk(self.layout, self.settings.disk)
            self._watch_backlog()
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
                self.publisher.write_statuses(changed)

    def limits(self) -> OwnerLimits:
        """What every owner has open, and may have."""
        return OwnerLimits(self.settings.limits, self.jobs.values())

    def outbox_of(self, row: JobRow) -> JobOutbox:
        return JobOutbox(self.layout.outbox_dir(row.job, row.name, row.owner))
