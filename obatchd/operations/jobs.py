"""Jobs as operators and owners see and command them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from attrs import define, field
from msgspec import UNSET

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.control.operations import Submission
from obatchd.delivery.advice import advice
from obatchd.delivery.documents import finished_document, in_work, job_details, job_document
from obatchd.documents import excerpt
from obatchd.documents.answers import Removed, RemovedJobs
from obatchd.documents.audit import JOB_CANCELLED, JOB_PAUSED, JOB_REMOVED, JOB_RESUMED, JOB_RETRIED
from obatchd.documents.jobs import Cause, Failure, JobDocument, JobFailures, OwnerUsage
from obatchd.engine.engine import Engine
from obatchd.engine.erasure import erase
from obatchd.errors import ControlError, NotFoundError, SpoolError, StoreError
from obatchd.jobs.model import JobState, written_line
from obatchd.jobs.store import DISK_ERRORS, LINE_MASK, FailureRow, JobRow, UsageRow
from obatchd.live.job import LiveJob
from obatchd.naming import EVERY_JOB, JobFilter, user_name
from obatchd.operations.audit import of_another, recorded
from obatchd.operations.submissions import Submissions, not_refused
from obatchd.telling.notifications import untold
from obatchd.times import instant
from obatchd.words import job_ending

_CHOICE = 10  # jobs that are told where a name fits several
_ENDING_S = 30.0  # longest wait for a job that is about to be over


def _told(row: UsageRow) -> OwnerUsage:
    sums = msgspec.structs.asdict(row) | {"gpu_s": round(row.gpu_s, 3), "energy_j": round(row.energy_j, 3)}
    return OwnerUsage(name=user_name(row.owner), **sums)


def _cause(row: FailureRow) -> Cause:
    line, _ = written_line(row.request & LINE_MASK)
    return Cause(row.code, row.requests, line, row.message, advice(row.code))


def _line(row: JobRow) -> str:
    """A job among several, with what tells it from another one with the same name and label."""
    accepted = str(instant(row.accepted_s))[:16].replace("T", " ")
    told = (row.job, row.label, _state(row), row.frozen.model, row.job_label, f"{accepted} UTC")
    return "  ".join(filter(None, told))


def _state(row: JobRow) -> str:
    """The state of a job in a word; of one that is over, how it ended."""
    if row.state is not JobState.DONE or row.summary is None:
        return row.state.value
    requests, *others = (row.summary.get(name, 0) for name in ("requests", "failed", "cancelled", "expired"))
    return job_ending(requests, *others)


def _over(row: JobRow, live: LiveJob | None) -> ControlError:
    """Why nothing can be changed about a job any more."""
    word = _state(row)
    if live is not None and row.state is JobState.RUNNING:
        word = live.ending.outcome.value if live.ending else "its results are being written"
    return ControlError(f"job {row.job} is over already ({word})", code="job_over")


def _several(typed: str, what: str, rows: list[JobRow]) -> str:
    """What to say of a name that several jobs have."""
    is_part = what == "a part"
    words = "a part of several job ids; give more of it" if is_part else f"{what} of several jobs; name one by its id"
    told = [_line(row) for row in rows[:_CHOICE]]
    more = ["  and more: obatchctl jobs lists them"] if len(rows) > _CHOICE else []
    return "\n".join([f"{typed} is {words}:", *(f"  {line}" for line in told), *more])


@contextlib.asynccontextmanager
async def disk_faults_told() -> AsyncIterator[None]:
    """A disk that refuses is no defect: the caller is told, and nothing has changed."""
    try:
        yield
    except DISK_ERRORS as error:
        raise SpoolError(
            f"the disk of the spool refuses to write: {error}. Try again when it works.", code="disk"
        ) from error


@define(eq=False)
class JobCommands:
    """Implements :class:`obatchd.control.operations.JobOperations`, which says what each method does."""

    _engine: Engine
    _retried: set[int] = field(factory=set, init=False)  # keys of jobs whose failed requests are being copied
    # One that is sent again while its first sending is still being taken waits for that. By owner and token.
    _sent: WeakValueDictionary[tuple[int, str], asyncio.Lock] = field(factory=WeakValueDictionary, init=False)

    def all(
        self, caller: Caller, state: str | None, limit: int, *, mine: bool = False, only: JobFilter = EVERY_JOB
    ) -> list[JobDocument]:
        known = [each.value for each in JobState]
        if state and state not in known:
            raise ControlError(f"no such job state: {state}; use one of {', '.join(known)}", code="usage")
        states = [JobState(state)] if state else list(JobState)
        owner = caller.uid if mine or not caller.is_administrator else None
        rows = self._engine.store.state.list_jobs(states, limit=limit, newest_first=True, owner=owner, only=only)
        in_flight = self._engine.dispatcher.in_flight()
        return [self._document(row, in_flight) for row in rows]

    def _document(self, row: JobRow, in_flight: dict[int, int]) -> JobDocument:
        live = self._engine.jobs.get(row.key)
        # The index hears first, in the publisher's thread, that a job is over.
        if live is not None and row.state is not JobState.DONE:
            return job_document(live, in_flight.get(live.key, 0), self._engine.dispatcher.held_up)
        return finished_document(row, self._engine.layout)

    def one(self, caller: Caller, job_id: str) -> JobDocument:
        row = self.find(caller, job_id)
        document = self._document(row, self._engine.dispatcher.in_flight())
        if row.state is JobState.DONE:
            retries = self._engine.store.state.retries(row)
            document.retries = [retry.job for retry in retries if caller.may_see(retry.owner)] or UNSET
        if unreached := untold(self._engine.store.state, row.job):
            document.notes = [*document.notes, *unreached]
        document.details = job_details(row, self._engine.jobs.get(row.key))
        return document

    def state_of(self, row: JobRow) -> str:
        """The state of a job in its document."""
        live = self._engine.jobs.get(row.key)
        return in_work(live) if live is not None and row.state is not JobState.DONE else row.state.value

    async def failures(self, caller: Caller, job_id: str) -> JobFailures:
        row, store = self.find(caller, job_id), self._engine.store
        job = self._document(row, {})
        kept = await asyncio.to_thread(store.of(row).failures, row.key) if store.keeps(row) else []
        causes = [_cause(cause) for cause in kept]
        # Of a job that is over, its summary is the truth; only where a result lies is not in it.
        if row.state is JobState.DONE and row.summary is not None:
            told = msgspec.convert(row.summary.get("failures", {}), dict[str, Failure])
            lines = {cause.code: cause.line for cause in causes}
            causes = [Cause(code, f.requests, lines.get(code), f.example, f.advice) for code, f in told.items()]
            causes.sort(key=lambda cause: (-cause.requests, cause.code))
        return excerpt(JobFailures, job, failures=causes)

    async def usage(self, caller: Caller, month: str | None, *, mine: bool = False) -> list[OwnerUsage]:
        owner = caller.uid if mine or not caller.is_administrator else None

        def look() -> list[OwnerUsage]:
            rows = self._engine.store.state.usage(owner, month)
            return [_told(row) for row in rows]

        return await asyncio.to_thread(look)  # whoever knows the users may take long

    def find(self, caller: Caller, job_id: str) -> JobRow:
        """The job; one that the caller may not see is not found, so that nobody can try out ids."""
        owner = None if caller.is_administrator else caller.uid
        what, rows = self._engine.store.state.named(job_id, owner, _CHOICE + 1)
        if not rows:
            raise NotFoundError(f"no job {job_id}; obatchctl jobs lists them")
        # A retry carries the label and the name on, a sample comes before the whole, and a refused drop has no answers.
        known = {row.job for row in rows}
        first = [row for row in rows if row.retry_of not in known and row.settings.sample is None] or rows
        first = [row for row in first if row.state is not JobState.REFUSED] or first
        chosen = rows if what == "a part" else first
        if len(chosen) > 1:
            raise ControlError(_several(job_id, what, chosen), code="ambiguous")
        return chosen[0]

    def _live(self, caller: Caller, job_id: str) -> LiveJob:
        row = self.find(caller, job_id)
        live = self._engine.jobs.get(row.key)
        if live is None and row.state is JobState.RUNNING:
            raise ControlError(f"job {row.job} is not read yet; try again when it is unpacked", code="job_not_read")
        if live is None or live.publishing:
            raise _over(row, live)
        return live

    @disk_faults_told()
    async def submit(self, submission: Submission) -> JobDocument:
        submissions = Submissions(self._engine)
        if not submission.token:
            return self._document(await submissions.submit(submission), {})
        async with self._sent.setdefault((submission.owner, submission.token), asyncio.Lock()):
            taken = await submissions.taken_before(submission) if submission.again else None
            row = await submissions.submit(submission) if taken is None else not_refused(taken)
            return self._document(row, {})

    @disk_faults_told()
    async def cancel(self, caller: Caller, job_id: str) -> JobDocument:
        live = self._live(caller, job_id)
        async with self._recorded(caller, JOB_CANCELLED, live.row):
            live = self._live(caller, live.row.job)  # it may be over by now
            await self._engine.completion.cancellation.cancel(live)
        return job_document(live, 0)

    @disk_faults_told()
    async def retry(
        self, caller: Caller, job_id: str, changes: dict[str, Any] | None = None, only: str = "failed"
    ) -> JobDocument:
        row = self.find(caller, job_id)
        if row.key in self._engine.jobs and row.state is not JobState.DONE:
            raise ControlError(f"job {row.job} is not over yet; retry it when it is", code="job_running")
        if row.key in self._retried:
            raise ControlError(f"a retry of job {row.job} is being made at this moment", code="job_running")
        self._retried.add(row.key)
        try:
            async with self._recorded(caller, JOB_RETRIED, row):
                return self._document(await Submissions(self._engine).retry(row, changes or {}, only), {})
        finally:
            self._retried.discard(row.key)

    async def pause(self, caller: Caller, job_id: str) -> JobDocument:
        return await self._set_paused(caller, job_id, True)

    async def resume(self, caller: Caller, job_id: str) -> JobDocument:
        return await self._set_paused(caller, job_id, False)

    @disk_faults_told()
    async def _set_paused(self, caller: Caller, job_id: str, paused: bool) -> JobDocument:
        live = self._live(caller, job_id)
        if live.ending:
            raise _over(live.row, live)
        async with self._recorded(caller, JOB_PAUSED if paused else JOB_RESUMED, live.row):
            live = self._live(caller, live.row.job)
            await self._engine.admission.pause(live, paused)
        return job_document(live, 0, self._engine.dispatcher.held_up)

    @disk_faults_told()
    async def remove(self, caller: Caller, job_id: str) -> Removed:
        row, engine = self.find(caller, job_id), self._engine
        if (live := engine.jobs.get(row.key)) is not None:
            await self._end_of(live, row)
            row = self.find(caller, job_id)
        async with self._recorded(caller, JOB_REMOVED, row):
            for _, error in await asyncio.to_thread(erase, engine.layout, engine.store, [row]):
                raise StoreError(f"job {row.job} cannot be deleted: {log.reason(error)}") from error
        return Removed(row.job)

    @disk_faults_told()
    async def remove_all(self, caller: Caller, job_ids: Sequence[str]) -> RemovedJobs:
        engine, kept = self._engine, dict[str, str]()
        rows = [row for row in engine.store.state.find(list(dict.fromkeys(job_ids))) if caller.may_see(row.owner)]
        kept |= {job: "there is no such job" for job in {*job_ids} - {row.job for row in rows}}
        kept |= {row.job: "it is not over" for row in rows if row.key in engine.jobs or row.finished_s is None}
        gone = [row for row in rows if row.job not in kept]
        async with self._recorded(caller, JOB_REMOVED, *gone):
            for row, error in await asyncio.to_thread(erase, engine.layout, engine.store, gone):
                kept[row.job] = log.reason(error)
        return RemovedJobs([row.job for row in gone if row.job not in kept], kept)

    def _recorded(self, caller: Caller, kind: str, *rows: JobRow) -> contextlib.AbstractAsyncContextManager[None]:
        entries = chain.from_iterable(of_another(caller, kind, row.job, row.owner) for row in rows)
        return recorded(self._engine.work.audit, *entries)

    async def _end_of(self, live: LiveJob, row: JobRow) -> None:
        """Wait for a job that has all its answers, or is to get no more. Raises ControlError where one is not over."""
        if not (live.publishing or live.complete or live.ending or row.state in (JobState.DONE, JobState.REFUSED)):
            raise ControlError(
                f"job {row.job} is not over; cancel it first: obatchctl cancel {row.job}", code="job_running"
            )
        if not await self._engine.work.until_forgotten(row.key, _ENDING_S):
            reason = f"job {row.job} has ended, and its results are still being written; try again later"
            raise ControlError(reason, code="job_running")
