"""Jobs as operators and owners see and command them: a part of :class:`obatchd.control.operations.Operations`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from attrs import define

from obatchd.control.auth import Caller
from obatchd.control.operations import Submission
from obatchd.delivery.documents import finished_document, job_document
from obatchd.documents.answers import Paused, Removed
from obatchd.documents.jobs import JobDocument
from obatchd.engine.engine import Engine
from obatchd.engine.erasure import erase
from obatchd.errors import ControlError, NotFoundError, SpoolError
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow
from obatchd.live.job import LiveJob
from obatchd.operations.submissions import Submissions

OPERATOR = "paused"  # the reason that holds dispatch


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """A disk that refuses is no defect: the caller is told, and nothing has changed."""
    try:
        yield
    except DISK_ERRORS as error:
        raise SpoolError(f"the spool's disk refuses: {error}. Try again when it is well.", code="disk") from error


@define(eq=False, slots=False)
class JobCommands:
    """Documents of jobs and commands to them; the Protocol says what each does."""

    _engine: Engine

    def jobs(self, caller: Caller, state: str | None, limit: int, *, mine: bool = False) -> list[JobDocument]:
        try:
            states = [JobState(state)] if state else list(JobState)
        except ValueError:
            known = ", ".join(s.value for s in JobState)
            raise ControlError(f"no such job state: {state}; use one of {known}", code="usage") from None
        owner = caller.uid if mine or not caller.is_administrator else None
        rows = self._engine.store.state.list_jobs(states, limit=limit, newest_first=True, owner=owner)
        in_flight = self._engine.dispatcher.in_flight()
        return [self._job_document(row, in_flight) for row in rows]

    def _job_document(self, row: JobRow, in_flight: dict[int, int]) -> JobDocument:
        live = self._engine.jobs.get(row.key)
        # The index hears first, in the publisher's thread, that a job is over.
        if live is not None and row.state is not JobState.DONE:
            return self._live_document(live, in_flight)
        return finished_document(row, self._engine.layout)

    def _live_document(self, live: LiveJob, in_flight: dict[int, int]) -> JobDocument:
        return job_document(live, in_flight.get(live.key, 0))

    def job(self, caller: Caller, job_id: str) -> JobDocument:
        return self._job_document(self._find(caller, job_id), self._engine.dispatcher.in_flight())

    def _find(self, caller: Caller, job_id: str) -> JobRow:
        """The job; one that the caller may not see is not found, so that nobody can try out ids."""
        owner = None if caller.is_administrator else caller.uid
        state = self._engine.store.state
        rows = [row for row in state.find([job_id]) if caller.may_see(row.owner)] or state.find_prefix(job_id, owner)
        if not rows:
            raise NotFoundError(f"no job {job_id}; obatchctl jobs lists them")
        if len(rows) > 1:
            raise ControlError(f"{job_id} is the beginning of several job ids; give more of it", code="ambiguous")
        return rows[0]

    def _live(self, caller: Caller, job_id: str) -> LiveJob:
        row = self._find(caller, job_id)
        live = self._engine.jobs.get(row.key)
        if live is None or live.publishing:
            raise ControlError(f"job {row.job} is over already ({row.state.value})", code="job_over")
        return live

    @_told()
    async def submit(self, submission: Submission) -> JobDocument:
        return self._job_document(await Submissions(self._engine).submit(submission), {})

    @_told()
    async def cancel(self, caller: Caller, job_id: str) -> JobDocument:
        live = self._live(caller, job_id)
        await self._engine.completion.cancellation.cancel(live)
        return job_document(live, 0)

    @_told()
    async def retry(self, caller: Caller, job_id: str) -> JobDocument:
        row = self._find(caller, job_id)
        if row.key in self._engine.jobs and row.state is not JobState.DONE:
            raise ControlError(f"job {row.job} is not over yet; retry it when it is", code="job_running")
        return self._job_document(await Submissions(self._engine).retry(row), {})

    async def pause(self, caller: Caller, job_id: str | None) -> JobDocument | Paused:
        return await self._set_paused(caller, job_id, True)

    async def resume(self, caller: Caller, job_id: str | None) -> JobDocument | Paused:
        return await self._set_paused(caller, job_id, False)

    @_told()
    async def _set_paused(self, caller: Caller, job_id: str | None, paused: bool) -> JobDocument | Paused:
        engine = self._engine
        if job_id is None:
            await asyncio.to_thread(engine.store.state.set, "paused", "1" if paused else "")
            (engine.dispatcher.holds.hold if paused else engine.dispatcher.holds.release)(OPERATOR)
            return Paused(paused)
        live = self._live(caller, job_id)
        await engine.admission.pause(live, paused)
        return job_document(live, 0)

    @_told()
    async def remove_job(self, caller: Caller, job_id: str) -> Removed:
        row, engine = self._find(caller, job_id), self._engine
        if row.key in engine.jobs:
            raise ControlError(f"job {row.job} is not over; first: obatchctl cancel {row.job}", code="job_running")
        await asyncio.to_thread(erase, engine.layout, engine.store, [row])
        return Removed(row.job)
