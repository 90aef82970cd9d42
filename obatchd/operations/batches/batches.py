"""Batches of programs: each is a job, and what a program is told of it is read from the job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any, TypeVar

from attrs import define, field

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.control.programs import BatchAsked, Selection
from obatchd.documents.audit import JOB_CANCELLED
from obatchd.documents.programs import BatchObject, Page
from obatchd.engine.engine import Engine
from obatchd.errors import ApiError
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.store import BatchRow, FileRow, JobRow
from obatchd.live.job import LiveJob
from obatchd.live.work import Part
from obatchd.operations.audit import of_another, recorded
from obatchd.operations.batches.documents import FINISHED, BatchDocuments
from obatchd.operations.batches.terms import deadline_s, terms_of
from obatchd.operations.files import Files
from obatchd.operations.jobs import disk_faults_told
from obatchd.operations.outputs import BATCH, INPUT_PURPOSE, JOB_ID
from obatchd.settings.job import JobSettings
from obatchd.spool import claim

_log = log.get(__name__)
_ID = re.compile(rf"batch_({JOB_ID})")
_LATELY_S = 600.0  # within which a batch that is asked for again is the same one
_CANCEL_S = 1.0  # longest wait for the beginning of a cancel, which a disk may hold up
_T = TypeVar("_T")


def _not_found(batch: str) -> ApiError:
    return ApiError(f"No batch found with id '{batch}'.", status=404, code="not_found", param="batch_id")


@define(eq=False)
class Batches(Part):
    """Implements :class:`obatchd.control.programs.BatchOperations`, which says what each method does."""

    _engine: Engine
    _files: Files
    _documents: BatchDocuments = field(init=False)
    _turns: dict[int, asyncio.Lock] = field(factory=lambda: defaultdict(asyncio.Lock), init=False)  # by owner
    _unanswered: dict[str, BatchRow] = field(factory=dict, init=False)  # whose client may not know of them, by job

    def __attrs_post_init__(self) -> None:
        self._documents = BatchDocuments(self._work, self._files.outputs)

    # Creating.

    async def create(self, caller: Caller, asked: BatchAsked) -> BatchObject:
        # To its end, also where the client is gone by then: the next time it asks, it is to get this one.
        return await self._begun(self._create(caller, asked), "batch")

    def _begun(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Future[_T]:
        """The outcome of a task that goes on when nobody waits for it any more."""
        outcome: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def do() -> None:
            try:
                done = await work
            except Exception as error:  # noqa: BLE001 - raised where it is waited for; else in the log
                if outcome.done():
                    _log.warning("batch_call_failed", call=name, reason=log.reason(error))
                else:
                    outcome.set_exception(error)
            else:
                if not outcome.done():
                    outcome.set_result(done)

        self._tasks.start(do(), name)
        return outcome

    @disk_faults_told()
    async def _create(self, caller: Caller, asked: BatchAsked) -> BatchObject:
        terms = terms_of(caller.uid, asked)
        async with self._turns[caller.uid]:
            if (earlier := self._earlier(terms, again=asked.again)) is not None:
                return await self._of_job(earlier.job)
            file = self._input(caller, terms.input_file)
            self._may_begin(terms.owner, file.size)
            begun = await asyncio.to_thread(self._begin, terms, file)
            self._unanswered[begun] = terms
            rows = self._engine.store.state.find([begun])
            _log.info("batch_created", job=begun, owner=terms.owner)
            await self._engine.intake.begin(rows)
        return await self._of_job(begun)

    def _earlier(self, terms: BatchRow, *, again: bool) -> BatchRow | None:
        """The batch that was made for the same call, if this is one that is made again."""
        programs, since_s = self._engine.store.state.programs, time.time() - _LATELY_S
        if terms.idempotency_key is not None:
            earlier = programs.batch_of_key(terms.owner, terms.idempotency_key)
            if earlier is not None and not earlier.asks_as(terms):
                reason = "this Idempotency-Key was used for another batch"
                raise ApiError(reason, status=409, code="idempotency_key_reused")
            return earlier
        unanswered = self._unanswered = {j: t for j, t in self._unanswered.items() if t.created_s >= since_s}
        for earlier in programs.batches_of(terms.owner, terms.input_file, since_s):
            if earlier.asks_as(terms) and (again or earlier.job in unanswered):
                return earlier
        return None

    def _input(self, caller: Caller, file: str) -> FileRow:
        try:
            return self._files.uploaded(caller, file)
        except ApiError:
            pass
        try:  # a file that is there, and no input
            about = self._files.one(caller, file)
        except ApiError:
            reason = f"No such File object: {file}"
            raise ApiError(reason, status=404, code="not_found", param="input_file_id") from None
        words = "the output of a batch" if about.purpose != INPUT_PURPOSE else "the file of a drop in the inbox"
        raise ApiError(f"{file} is {words}; upload the requests as a file", param="input_file_id")

    def _may_begin(self, owner: int, size_bytes: int) -> None:
        if trouble := self._engine.conditions.of_all:
            raise ApiError("; ".join(trouble.values()), status=503, code="trouble", final=False)
        if reason := self._engine.intake.limits().room(owner, size_bytes):
            raise ApiError(reason, status=429, code="over_limit", final=False)

    def _begin(self, terms: BatchRow, file: FileRow) -> str:
        """Make the job; durable when this returns."""
        engine, http = self._engine, self._engine.settings.value.http
        name = os.fsencode(file.name if file.name.lower().endswith((".jsonl", ".ndjson")) else f"{file.name}.jsonl")
        try:
            begun = claim.begin_batch(engine.layout, engine.intake.ids, name, terms.owner, self._files.path_of(file))
        except FileNotFoundError:  # deleted in this moment
            reason = f"No such File object: {file.id}"
            raise ApiError(reason, status=404, code="not_found", param="input_file_id") from None
        try:
            terms.job = begun.job
            deadline = deadline_s(terms.completion_window, enforced=http.window == "enforce")
            own = JobSettings(openai_batch=True, deadline=deadline)
            SubmittedSettings(own, batch=terms, all_lines=http.lines == "all").write(begun.directory)
            claim.commit_batch(begun, engine.layout, engine.store.state, terms)
        except BaseException:
            begun.abandon()
            raise
        return begun.job

    def answered(self, batch: str) -> None:
        self._unanswered.pop(batch.removeprefix(BATCH), None)

    # Looking.

    def _row(self, caller: Caller, batch: str) -> JobRow:
        named = _ID.fullmatch(batch)
        rows = self._engine.store.state.find([named[1]]) if named else []
        if not rows or not caller.may_see(rows[0].owner) or not rows[0].settings.openai_batch:
            raise _not_found(batch)
        return rows[0]

    async def _of_job(self, job: str) -> BatchObject:
        [row] = self._engine.store.state.find([job])
        return await self._documents.whole(row)

    async def one(self, caller: Caller, batch: str) -> BatchObject:
        return await self._documents.whole(self._row(caller, batch))

    async def all(self, caller: Caller, selection: Selection) -> Page[BatchObject]:
        owner = None if caller.is_administrator else caller.uid
        after = (selection.after or "").removeprefix(BATCH)
        rows = self._engine.store.state.programs.batch_jobs(owner, after, selection.limit + 1)
        shown = [self._documents.brief(row) for row in rows[: selection.limit]]
        found = [await self._documents.with_faults(*one) for one in shown]
        ids = [document.id for document in found]
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        return Page(data=found, first_id=first, last_id=last, has_more=len(rows) > selection.limit)

    # Cancelling.

    @disk_faults_told()
    async def cancel(self, caller: Caller, batch: str) -> BatchObject:
        row = self._row(caller, batch)
        document, _ = self._documents.brief(row)
        if document.status in ("cancelling", "cancelled"):
            return document
        if document.status in FINISHED or document.status == "finalizing":
            reason = f"Cannot cancel a batch with status '{document.status}'."
            raise ApiError(reason, status=409, code="invalid_batch_state", param="batch_id")
        live = self._engine.jobs.get(row.key)
        if live is None:
            reason = "the batch is not read yet; try again in a moment"
            raise ApiError(reason, status=409, code="batch_not_read", final=False)
        # Its answer does not wait until every request has its outcome.
        cancelling = self._begun(self._cancel(caller, live), f"cancel-{row.job}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                await cancelling
        return await self._of_job(row.job)

    async def _cancel(self, caller: Caller, live: LiveJob) -> None:
        async with recorded(self._work.audit, *of_another(caller, JOB_CANCELLED, live.row.job, live.row.owner)):
            if not live.publishing and self._engine.jobs.get(live.key) is live:  # else it was over meanwhile
                await self._engine.completion.cancellation.cancel(live)
