"""What an earlier run of the daemon left: drops half claimed, jobs half answered, summaries that were torn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping, Sequence

from obatchd import log
from obatchd.delivery.completion import Completion
from obatchd.delivery.endings import Endings
from obatchd.engine.admission import Admission
from obatchd.engine.rebuild import rebuild
from obatchd.intake.feeder import Feeder, histories
from obatchd.intake.indexing import Reading
from obatchd.intake.intake import Intake
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow, LaneRow, Segment, Store
from obatchd.live.job import LiveJob
from obatchd.live.troubles import Troubles
from obatchd.settings.settings import Settings
from obatchd.spool import claim
from obatchd.spool.layout import Layout

_log = log.get(__name__)
_RETRY_S = 2.0


class Resumption:
    """Takes up jobs from the store; ``jobs`` are those that are live, by key."""

    def __init__(
        self,
        jobs: MutableMapping[int, LiveJob],
        layout: Layout,
        store: Store,
        settings: Callable[[], Settings],
        *,
        admission: Admission,
        completion: Completion,
        endings: Endings,
        feeder: Feeder,
        intake: Intake,
        troubles: Troubles,
    ) -> None:
        self._jobs = jobs
        self._layout = layout
        self._store = store
        self._settings = settings
        self._admission = admission
        self._completion = completion
        self._endings = endings
        self._feeder = feeder
        self._intake = intake
        self._troubles = troubles

    async def take_up(self) -> bool:
        """Take up everything, then watch the inbox; False where the disk refuses: the same can be tried again."""
        try:
            if not self._store.state.is_complete:
                await asyncio.to_thread(rebuild, self._store, self._layout, self._settings())
            await asyncio.to_thread(claim.recover, self._layout, self._store.state)
            await self._take_up_jobs()
        except DISK_ERRORS as error:
            self._troubles.say("start", f"earlier jobs cannot be taken up: {log.reason(error)}")
            return False
        self._troubles.say("start", "")
        self._intake.start()
        return True

    async def take_up_later(self) -> None:
        """Try until the disk does not refuse any more."""
        while not await self.take_up():
            await asyncio.sleep(_RETRY_S)

    async def _take_up_jobs(self) -> None:
        rows = await asyncio.to_thread(self._store.state.list_jobs, [JobState.RUNNING, JobState.PUBLISHING])
        fresh = []
        for row in rows:
            if row.key in self._jobs:
                continue  # taken up by an earlier try that the disk cut short
            await asyncio.to_thread(self._layout.make_owner, row.owner)
            segment = await asyncio.to_thread(self._store.of, row)
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
        open_lanes = [lane for lane in lanes if lane.requests > lane.finished]
        reached = {lane.lane: segment.last_finished(row.key, lane.lane) for lane in open_lanes}
        live = self._admission.add(row)
        live.resumed = True
        self._endings.mark_expired(live)
        live.indexed, live.counts = indexed, counts
        # Lines refused while indexing have results and belong to no lane.
        refused = live.finished - sum(lane.finished for lane in lanes)
        live.requests = sum(lane.requests for lane in lanes) + refused
        live.asked_before = _asked_before(live, lanes)
        self._feeder.remember(row.key, histories(attempts))
        for lane in open_lanes:
            self._admission.extend(live, lane, lane.requests - lane.finished)
            if lane.lane in live.lanes:
                live.lanes[lane.lane].begin_after(reached[lane.lane])
        if not indexed:
            self._intake.go_on(Reading(row, self._layout, self._settings(), lambda size: None))
        self._admission.go_on(live)

    def republish(self, row: JobRow) -> None:
        """Write the outbox of a finished job again from the store."""
        live = self._admission.add(row)
        live.resumed = live.indexed = True
        segment = self._store.of(row)
        live.counts, live.asked_before = segment.tallies(row.key), _asked_before(live, segment.lanes(row.key))
        live.requests = live.finished
        self._completion.check(live)


def _asked_before(live: LiveJob, lanes: Sequence[LaneRow]) -> set[int]:
    return {live.profile_of(lane).context_length for lane in lanes if lane.finished}
