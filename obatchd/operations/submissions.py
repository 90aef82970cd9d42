"""Jobs that are handed over instead of dropped: submissions, and retries of a finished job."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any

import msgspec
from attrs import define

from obatchd.control.operations import Submission
from obatchd.engine.engine import Engine
from obatchd.errors import ConfigError, ControlError, DropRefused
from obatchd.intake.first_look import look
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.formats import with_changes, with_repeats
from obatchd.jobs.formats.reader.settings import OPTIONS
from obatchd.jobs.model import FILE_ENDINGS, PACKED_ENDINGS, Entry, JobState, Outcome, written_line
from obatchd.jobs.store import JobRow
from obatchd.settings.job import JOB_KEYS, REQUEST_KEYS, FrozenSettings, JobSettings, parse_job_settings
from obatchd.settings.settings import Settings
from obatchd.spool import claim
from obatchd.spool.copying import Incoming
from obatchd.telling.allowed import require_allowed
from obatchd.words import LINES_TOLD, to_mend

RETRIED = ("failed", "truncated", "ungrounded")  # what may be tried again: failures, or answers that need a look
_NO_SUCH = {
    "failed": "failed request that could be tried again",
    "truncated": "answer that was cut at its token limit",
    "ungrounded": "answer with a value that is not in its prompt",
}
_SENT_AGAIN = 1000  # latest jobs of an owner among which a submission is looked for that is sent again
_UNPACKED_S = 5.0  # an archive that cannot be unpacked is refused at once where that is found out soon


def not_refused(row: JobRow) -> JobRow:
    """The job; raises DropRefused with the reason where its drop was refused after it had been taken."""
    if row.state is JobState.REFUSED:
        raise DropRefused("; ".join(row.notes))
    return row


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
        source, rules = "the submission's settings", self._engine.settings.value
        settings = SubmittedSettings(*parse_job_settings(submission.settings, source))
        if submission.token:
            settings.settings = msgspec.structs.replace(settings.settings, token=submission.token)
        require_allowed(settings.settings.notify, rules.notifications, source)
        fill = partial(self._copy_and_look, submission, settings.settings)
        return await self._take(os.fsencode(submission.name), submission.owner, submission.kind, settings, fill)

    async def taken_before(self, submission: Submission) -> JobRow | None:
        """The job that an earlier sending of this submission has become; None where there is none."""
        return await asyncio.to_thread(self._with_token, submission.owner, submission.token)

    def _with_token(self, owner: int, token: str) -> JobRow | None:
        engine = self._engine
        rows = engine.store.state.list_jobs([*JobState], limit=_SENT_AGAIN, newest_first=True, owner=owner)
        for row in rows:
            # The row has its settings a moment after it is accepted; its directory has them before.
            if (row.settings.token or SubmittedSettings.read(engine.layout.job_dir(row.job)).settings.token) == token:
                return row
        return None

    def _copy_and_look(self, submission: Submission, settings: JobSettings, incoming: Incoming) -> None:
        engine = self._engine
        _copy(submission, engine.settings.value, incoming)
        defaults, check_space = engine.store.state.defaults_now(), engine.intake.check_space
        look(incoming.input, incoming.name, settings, defaults, engine.settings.value, check_space)

    async def retry(self, row: JobRow, changes: Mapping[str, Any], only: str = "failed") -> JobRow:
        """A job of the requests of ``row`` that have no answer, in it or in an earlier retry of it.

        With ``only``, another one of :data:`RETRIED`, of those whose answer needs a look. Settings in ``changes`` count
        before those of the job and of its requests. Raises ConfigError where they are wrong, ControlError where there
        is no such request, its prompt is gone, or nothing may be taken now.
        """
        if only not in RETRIED:
            raise ConfigError(f"only must be {', '.join(RETRIED[:-1])} or {RETRIED[-1]}")
        given, notes = _changes(changes)
        self._may_submit(row.owner)
        defaults = _defaults_of_retry(row.defaults, self._engine.store.state.defaults_now(), given)
        own = msgspec.structs.replace(
            _settings_of_retry(row.settings, given), lines_of=row.settings.lines_of or row.job
        )
        settings = SubmittedSettings(own, notes, row.job, defaults)
        copy = partial(self._copy_again, row, given, only)
        return await self._take(_retry_name(row), row.owner, "file", settings, copy)

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
        return not_refused(row)

    def _may_submit(self, owner: int) -> None:
        if self._engine.conditions.of_all:
            raise ControlError("; ".join(self._engine.conditions.of_all.values()), code="trouble")
        if reason := self._engine.intake.limits().room(owner, 0):
            raise ControlError(reason, code="over_limit")

    def _copy_again(self, row: JobRow, changes: Mapping[str, Any], only: str, incoming: Incoming) -> None:
        """Each request keeps its line, for that is its key: of the lines between only their ends are written."""
        source = self._engine.work.request_file(row)
        if not source.exists():
            raise ControlError(f"the prompts of job {row.job} are no longer kept; drop them again", code="released")
        rows, line = self._asked_again(row, only), 1
        with open(source, "rb") as prompts, open(incoming.input, "wb") as file:
            for _, requests in groupby(rows, lambda request: written_line(request.line)[0]):
                request, *others = requests
                prompts.seek(request.offset)
                raw = prompts.read(request.length).replace(b"\n", b" ")
                raw = with_changes(raw, changes)
                written = written_line(request.line)[0]
                numbers = [written_line(one.line)[1] for one in (request, *others)]
                file.write(b"\n" * (written - line) + (with_repeats(raw, numbers) if any(numbers) else raw))
                line = written
            file.write(b"\n")

    def _asked_again(self, row: JobRow, only: str) -> list[Entry]:
        """The requests of a job that are tried again. Raises ControlError where there are none."""
        store = self._engine.store
        rows = store.of(row).finished_requests(row.key, succeeded=only != "failed")
        if only != "failed":
            wanted = {line for line, outcome, record in store.results(row) if _needs_look(outcome, record, only)}
            rows = [request for request in rows if request.line in wanted]
        mend = self._to_mend(row) if only == "failed" else ""
        if not rows:
            reason = f"job {row.job} has no {_NO_SUCH[only]}{f'; {mend}' if mend else ''}"
            raise ControlError(reason, code="nothing")
        answered = self._answered_since(row, only)
        rows = [request for request in rows if request.line not in answered]
        if not rows:
            what = "such request" if only != "failed" else "other failed request" if mend else "failed request"
            reason = f"every {what} of job {row.job} was answered by a retry of it"
            told = f"{mend}; {reason}" if mend else f"{reason}; all answers: obatchctl results {row.job}"
            raise ControlError(told, code="nothing")
        return rows

    def _to_mend(self, row: JobRow) -> str:
        """What to do about the lines that were refused; nothing where none was."""
        count, lines = self._engine.store.of(row).refused_lines(row.key, LINES_TOLD)
        return to_mend(count, [written_line(line)[0] for line in lines]) if count else ""

    def _answered_since(self, row: JobRow, only: str) -> set[int]:
        """Lines of a job that earlier retries answered, also those that do not follow it directly.

        Raises ControlError where one of them is not over.
        """
        store, answered = self._engine.store, set[int]()
        lines_of = row.settings.lines_of or row.job
        for retry in store.state.retries(row):
            if retry.settings.lines_of != lines_of:
                continue  # an earlier version made it, and numbered its lines anew
            if retry.state in (JobState.RUNNING, JobState.PUBLISHING):
                reason = f"job {retry.job} is still trying again what failed in {row.job}; retry it when that is over"
                raise ControlError(reason, code="job_running")
            if retry.state is JobState.DONE:
                answered.update(
                    line
                    for line, outcome, record in store.results(retry)
                    if outcome is Outcome.SUCCEEDED and not _needs_look(outcome, record, only)
                )
        return answered


class _Answer(msgspec.Struct):
    """The parts of a result that say whether its answer needs a look."""

    truncated: bool = False
    ungrounded: list[msgspec.Raw] = []


_answer = msgspec.json.Decoder(_Answer)


def _needs_look(outcome: Outcome, record: bytes, only: str) -> bool:
    if only == "failed" or outcome is not Outcome.SUCCEEDED:
        return False
    answer = _answer.decode(record)
    return answer.truncated if only == "truncated" else bool(answer.ungrounded)


def _changes(asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings that a retry changes, checked, and notes on them. An option of Ollama may be named as such."""
    options = {name: asked[name] for name in OPTIONS & asked.keys() if name not in JOB_KEYS}
    table = {name: value for name, value in asked.items() if name not in options}
    own = table.get("options", {})
    if options and isinstance(own, dict):
        table["options"] = options | own
    if fixed := sorted(table.keys() & set(JOB_KEYS) - REQUEST_KEYS):
        raise ConfigError(
            f"a retry asks the same prompts again and tells the same people, so it cannot change {' and '.join(fixed)};"
            " submit the drop again with that"
        )
    settings, notes = parse_job_settings(table, "the changes")
    given: dict[str, Any] = msgspec.to_builtins(settings)
    return given, notes


def _settings_of_retry(settings: JobSettings, changes: Mapping[str, Any]) -> JobSettings:
    # Records have been made into requests already. A deadline that is a time was meant for the first job.
    deadline = None if isinstance(settings.deadline, str) else settings.deadline
    options = _without_limit(settings.options, changes) | changes.get("options", {})
    records = dict.fromkeys(
        ("template", "text_column", "id_column", "encoding", "lines", "sample", "sample_of", "token")
    )
    return msgspec.structs.replace(settings, **{**records, "deadline": deadline, **changes, "options": options})


def _defaults_of_retry(first: FrozenSettings, now: FrozenSettings, changes: Mapping[str, Any]) -> FrozenSettings:
    """Those of the first job, so that all its answers come about in the same way; as of now, when they are due."""
    model = first.model or now.model  # without one nothing was asked
    options = _without_limit(first.options, changes)
    return msgspec.structs.replace(first, model=model, priority=now.priority, deadline=now.deadline, options=options)


def _without_limit(options: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The option that is another name of a limit that changes would count before it."""
    return {k: v for k, v in options.items() if k != "num_predict" or "max_response_tokens" not in changes}


def _copy(submission: Submission, settings: Settings, incoming: Incoming) -> None:
    for name, descriptor in submission.files:
        with os.fdopen(descriptor, "rb", closefd=False) as source:
            incoming.add(name, source, settings.inbox.max_unpacked_bytes, settings.disk.min_free_bytes)


def _retry_name(row: JobRow) -> bytes:
    stem = row.name
    for ending in (*PACKED_ENDINGS, *FILE_ENDINGS):
        stem = stem.removesuffix(ending.encode())
    return stem + b".retry.jsonl"
