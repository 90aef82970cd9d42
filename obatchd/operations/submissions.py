"""Jobs that are handed over instead of dropped: submissions, and retries of a finished job."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial

import msgspec
from attrs import define

from obatchd.control.operations import Submission
from obatchd.engine.engine import Engine
from obatchd.errors import ControlError, DropRefused
from obatchd.intake.first_look import look
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.model import FILE_ENDINGS, PACKED_ENDINGS, JobState
from obatchd.jobs.store import JobRow
from obatchd.settings.job import FrozenSettings, JobSettings, parse_job_settings
from obatchd.settings.settings import Settings
from obatchd.spool import claim
from obatchd.spool.copying import Incoming

_UNPACKED_S = 5.0  # an archive that cannot be unpacked is refused at once where that is found out soon


@define(eq=False)
class Submissions:
    """Takes them; a returned job has begun and would survive a power cut."""

    _engine: Engine

    async def submit(self, submission: Submission) -> JobRow:
        """The job of a submission.

        Raises ControlError where it may not be taken now, or is empty, ConfigError where its settings are wrong,
        DropRefused where it cannot become a job.
        """
        self._may_submit(submission.owner)
        settings = SubmittedSettings(*parse_job_settings(submission.settings, "the submission's settings"))
        fill = partial(self._copy_and_look, submission, settings.settings)
        return await self._take(os.fsencode(submission.name), submission.owner, submission.kind, settings, fill)

    def _copy_and_look(self, submission: Submission, settings: JobSettings, incoming: Incoming) -> None:
        engine = self._engine
        _copy(submission, engine.settings.value, incoming)
        look(incoming.input, incoming.name, settings, engine.store.state.defaults_now(), engine.settings.value)

    async def retry(self, row: JobRow) -> JobRow:
        """A job of the requests of ``row`` that did not succeed.

        Raises ControlError where there is none, its prompts are gone, or nothing may be taken now.
        """
        self._may_submit(row.owner)
        defaults = _defaults_of_retry(row.defaults, self._engine.store.state.defaults_now())
        settings = SubmittedSettings(_settings_of_retry(row.settings), [], row.job, defaults)
        return await self._take(_retry_name(row), row.owner, "file", settings, partial(self._copy_failed, row))

    async def _take(
        self, name: bytes, owner: int, kind: str, settings: SubmittedSettings, fill: Callable[[Incoming], None]
    ) -> JobRow:
        """``fill`` puts the prompts into place; it is called in a thread."""
        engine = self._engine
        try:
            begun = await asyncio.to_thread(claim.begin_submission, engine.layout, engine.intake.ids, name, owner, kind)
            try:
                await asyncio.to_thread(fill, begun)
                await asyncio.to_thread(settings.write, begun.directory)
                claimed = await asyncio.to_thread(claim.commit_submission, begun, engine.layout, engine.store.state)
            except BaseException:
                await asyncio.to_thread(begun.abandon)
                raise
        except OSError as error:
            raise ControlError(f"it cannot be copied: {error.strerror or error}", code="not_copied") from error
        await engine.intake.begin(engine.store.state.find([claimed.job]), _UNPACKED_S)
        [row] = engine.store.state.find([claimed.job])
        if row.state is JobState.REFUSED:
            raise DropRefused("; ".join(row.notes))
        return row

    def _may_submit(self, owner: int) -> None:
        if self._engine.conditions.of_all:
            raise ControlError("; ".join(self._engine.conditions.of_all.values()), code="trouble")
        if reason := self._engine.intake.limits().room(owner, 0):
            raise ControlError(reason, code="over_limit")

    def _copy_failed(self, row: JobRow, incoming: Incoming) -> None:
        source = self._engine.work.request_file(row)
        if not source.exists():
            raise ControlError(f"the prompts of job {row.job} are no longer kept; drop them again", code="released")
        rows = self._engine.store.of(row).failed_requests(row.key)
        if not rows:
            raise ControlError(f"job {row.job} has no failed request that could be tried again", code="nothing")
        with open(source, "rb") as prompts, open(incoming.input, "wb") as file:
            for request in rows:
                prompts.seek(request.offset)
                file.write(prompts.read(request.length).replace(b"\n", b" ") + b"\n")


def _settings_of_retry(settings: JobSettings) -> JobSettings:
    # Records have been made into requests already. A deadline that is a time was meant for the first job.
    deadline = None if isinstance(settings.deadline, str) else settings.deadline
    return msgspec.structs.replace(
        settings, template=None, text_column=None, id_column=None, encoding=None, lines=None, sample=None,
        sample_of=None, deadline=deadline,
    )  # fmt: skip


def _defaults_of_retry(first: FrozenSettings, now: FrozenSettings) -> FrozenSettings:
    """Those of the first job, so that all its answers come about in the same way; as of now, when they are due."""
    model = first.model or now.model  # without one nothing was asked
    return msgspec.structs.replace(first, model=model, priority=now.priority, deadline=now.deadline)


def _copy(submission: Submission, settings: Settings, incoming: Incoming) -> None:
    for name, descriptor in submission.files:
        with os.fdopen(descriptor, "rb", closefd=False) as source:
            incoming.add(name, source, settings.inbox.max_unpacked_bytes, settings.disk.min_free_bytes)


def _retry_name(row: JobRow) -> bytes:
    stem = row.name
    for ending in (*PACKED_ENDINGS, *FILE_ENDINGS):
        stem = stem.removesuffix(ending.encode())
    return stem + b".retry.jsonl"
