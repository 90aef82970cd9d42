"""Takes up the work of an earlier run: drops half claimed, jobs half answered, summaries that were torn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from attrs import define, field

from obatchd import log
from obatchd.delivery.completion import Completion
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.engine.admission import Admission
from obatchd.engine.rebuild import rebuild
from obatchd.intake.feeder import Feeder, histories
from obatchd.intake.indexing import DropReader
from obatchd.intake.intake import Intake
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow, LaneRow, Segment
from obatchd.live.job import LiveJob
from obatchd.live.work import Part
from obatchd.spool import claim

_log = log.get(__name__)


@define(eq=False)
class Resumption(Part):
    """Takes up jobs from the store."""

    _admission: Admission
    _completion: Completion
    _feeder: Feeder
    _intake: Intake
    _dispatcher: Dispatcher
    _tried: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def start(self) -> None:
        """Take up everything, then watch the inbox; where the disk refuses, return and go on as soon as it does not."""
        self._tasks.start(self._run(), "resumption")
        await self._tried.wait()

    async def _run(self) -> None:
        words = "earlier jobs cannot be taken up"
        try:
            await self._work.conditions.until_disk_takes(self._take_up, "start", "resumption_failed", words)
            self._intake.start()
        finally:
            self._tried.set()

    async def _take_up(self) -> None:
        try:
            if not self._work.store.state.is_complete:
                await asyncio.to_thread(rebuild, self._work.store, self._work.layout, self._work.settings.value)
            await asyncio.to_thread(claim.recover, self._work.layout, self._work.store.state)
            await self._take_up_jobs()
        except DISK_ERRORS:
            self._tried.set()  # the daemon starts, and says what hinders it
            raise

    async def _take_up_jobs(self) -> None:
        rows = await asyncio.to_thread(self._work.store.state.list_jobs, [JobState.RUNNING, JobState.PUBLISHING])
        fresh = []
        for row in rows:
            if row.key in self._work.jobs:
                continue  # taken up by an earlier try that the disk cut short
            await asyncio.to_thread(self._work.layout.make_owner, row.owner)
            segment = await asyncio.to_thread(self._work.store.of, row)
            line, indexed = segment.job_progress(row.key)
            if line == 0 and not indexed:
                fresh.append(row)
            else:
                self._take_up_job(row, segment, indexed)
        if rows:
            _log.info("jobs_resumed", jobs=len(rows), fresh=len(fresh))
        if fresh:
            await self._intake.begin(fresh)

    def _take_up_job(self, row: JobRow, segment: Segment, indexed: bool) -> None:
        # All is read before the job is live: where the disk refuses, the next try passes over those that are.
        counts, lanes, attempts = segment.tallies(row.key), segment.lanes(row.key), segment.attempts(row.key)
        cost = segment.cost(row.key)
        failures = segment.failures(row.key)
        open_lanes = [lane for lane in lanes if lane.requests > lane.finished]
        reached = {lane.lane: segment.last_finished(row.key, lane.lane) for lane in open_lanes}
        live = self._admission.add(row)
        live.resumed = True
        self._completion.cancellation.mark_expired(live)
        live.indexed, live.counts = indexed, counts
        live.take_up(cost)
        live.failures = {cause.code: (cause.requests, cause.message) for cause in failures}
        # Lines refused while indexing have results and belong to no lane.
        refused = live.refused = live.finished - sum(lane.finished for lane in lanes)
        live.requests = sum(lane.requests for lane in lanes) + refused
        live.asked_before = _asked_before(live, lanes)
        known = histories(attempts)
        self._feeder.remember(row.key, known)
        self._dispatcher.suspect(row.key, {line: h.suspicion for line, h in known.items()})
        for lane in open_lanes:
            self._admission.extend(live, lane, lane.requests - lane.finished)
            if lane.lane in live.lanes:
                live.lanes[lane.lane].begin_after(reached[lane.lane])
        if not indexed:
            self._intake.go_on(DropReader(row, self._work.layout, self._work.settings.value, lambda size: None))
        self._admission.go_on(live)

    def republish(self, row: JobRow) -> None:
        """Write the outbox of a finished job again from the store."""
        live = self._admission.add(row)
        live.resumed = live.indexed = True
        segment = self._work.store.of(row)
        lanes = segment.lanes(row.key)
        live.take_up(segment.cost(row.key))
        live.counts, live.asked_before = segment.tallies(row.key), _asked_before(live, lanes)
        live.requests = live.finished
        live.refused = live.finished - sum(lane.finished for lane in lanes)
        self._completion.check(live)


def _asked_before(live: LiveJob, lanes: Sequence[LaneRow]) -> set[int]:
    return {live.profile_of(lane).context_length for lane in lanes if lane.finished}
