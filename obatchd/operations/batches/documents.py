"""The object of a batch, as OpenAI's API has it, from the job that it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from attrs import define, field
from msgspec import UNSET, UnsetType

from obatchd.documents.programs import BatchObject, LineFault, LineFaults, RequestCounts, TokenUsage
from obatchd.jobs.formats import Format, once_each, read_entries
from obatchd.jobs.formats.reader.batch import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from obatchd.jobs.model import JobState
from obatchd.jobs.store import JobRow
from obatchd.live.job import LiveJob
from obatchd.live.work import Work
from obatchd.operations.outputs import BATCH, Outputs, input_id
from obatchd.spool.batch_lines import api_code
from obatchd.spool.layout import safe_name
from obatchd.spool.outbox import JobOutbox

FINISHED = ("completed", "failed", "expired", "cancelled")
_FAULTS = 1000  # told of a batch that failed
_LINE = re.compile(r"batch_req_.+-(\d+)(?:#\d+)?")  # obatchd.spool.batch_lines
_HEAD_BYTES = 64 * 1024
_REMEMBERED, _FAULTS_REMEMBERED = 10_000, 100  # batches
# By the first object of an answer, where the input is gone.
_OF_OBJECT = {
    b'"object":"list"': EMBEDDINGS,
    b'"object":"text_completion"': COMPLETIONS,
    b'"object":"response"': RESPONSES,
}


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    error: _Error | None = None


class _Response(msgspec.Struct):
    body: _Body | None = None


class _ErrorLine(msgspec.Struct):
    """The parts of a line of an error file that a fault is made of."""

    id: str
    error: _Error | None = None
    response: _Response | None = None


class _Line(msgspec.Struct):
    url: str = ""


@define(eq=False)
class BatchDocuments:
    """Makes them. Rows have to be fresh: what is in work is looked up beside them."""

    _work: Work
    _outputs: Outputs
    _faults: dict[str, LineFaults] = field(factory=dict, init=False)  # of batches that failed: they stay as they are
    _endpoints: dict[str, str] = field(factory=dict, init=False)  # of batch files that were dropped

    async def whole(self, row: JobRow) -> BatchObject:
        """The object, with its faults."""
        return await self.with_faults(*self.brief(row))

    async def with_faults(self, document: BatchObject, row: JobRow) -> BatchObject:
        """Say what is wrong with a batch that failed."""
        if document.status == "failed":
            if row.job not in self._faults:
                if len(self._faults) >= _FAULTS_REMEMBERED:
                    self._faults.clear()
                self._faults[row.job] = await asyncio.to_thread(self._found_faults, row, document.endpoint)
            document.errors = self._faults[row.job]
        return document

    def brief(self, row: JobRow) -> tuple[BatchObject, JobRow]:
        """The object without its faults. Called from the main loop, directly after the row was read."""
        # The index hears first, in the publisher's thread, that a job is over.
        live = self._work.jobs.get(row.key) if row.state in (JobState.RUNNING, JobState.PUBLISHING) else None
        terms = self._work.store.state.programs.batch(row.job)
        status = _status(row, live)
        outputs = {output.id.rpartition("-")[2]: output.id for output in self._outputs.all(row, terms)}
        summary = row.summary or {}
        document = BatchObject(
            id=BATCH + row.job,
            endpoint=terms.endpoint if terms is not None else self._endpoint(row),
            input_file_id=terms.input_file if terms is not None else input_id(row.job),
            completion_window=terms.completion_window if terms is not None else "24h",
            status=status,
            output_file_id=outputs.get("output"),
            error_file_id=outputs.get("error"),
            created_at=int(terms.created_s if terms is not None else row.accepted_s),
            expires_at=_seconds(row.frozen.expires_s(row.accepted_s)),
            request_counts=_counts(row, live),
            metadata=terms.metadata if terms is not None else None,
        )
        _add_times(document, row, live)
        if status in FINISHED and "response_tokens" in summary:
            given, said = summary["prompt_tokens"], summary["response_tokens"]
            document.usage = TokenUsage(given, said, given + said)
        document.model = _model(row, live)
        return document, row

    def _endpoint(self, row: JobRow) -> str:
        """That of the first line of a drop, which has no terms."""
        if (known := self._endpoints.get(row.job)) is None:
            known = _first_url(self._work.contents_of(row)) or _of_answers(JobOutbox(self._work.outbox_of(row)))
            if len(self._endpoints) >= _REMEMBERED:
                self._endpoints.clear()
            self._endpoints[row.job] = known
        return known

    def _found_faults(self, row: JobRow, endpoint: str) -> LineFaults:
        if row.state is JobState.REFUSED:
            faults = list(islice(self._of_input(row, endpoint), _FAULTS))
            notes = "; ".join(row.notes)
            empty = not row.size or "holds no request" in notes  # obatchd.jobs.formats
            return LineFaults(faults or [LineFault("empty_file" if empty else "invalid_request", None, notes)])
        return LineFaults(list(islice(_of_error_file(self._work.outbox_of(row) / "errors.jsonl"), _FAULTS)))

    def _of_input(self, row: JobRow, endpoint: str) -> Iterator[LineFault]:
        """The lines that cannot be run of a file that was refused as a whole; it lies in failed/."""
        name = safe_name(row.name.decode("utf-8", "replace"))[0]
        path = self._work.layout.failed_dir(row.job, row.name, row.owner) / name
        settings = self._work.settings.value.inbox
        with suppress(Exception):  # whatever hinders the reading was the reason, and is in the notes
            entries = read_entries(path, row.label, settings, form=Format.BATCH, endpoint=endpoint)
            for entry in once_each(entries):
                if entry.refusal is not None:
                    yield LineFault(api_code(entry.refusal.code), entry.line, entry.refusal.message)


def _status(row: JobRow, live: LiveJob | None) -> str:
    if row.state is JobState.REFUSED:
        return "failed"
    if row.state is JobState.DONE:
        summary = row.summary or {}
        if row.cancelled:
            return "cancelled"
        if row.refused_lines and row.refused_lines == summary.get("requests"):
            return "failed"  # no line could be run
        return "expired" if summary.get("expired") else "completed"
    if live is None:
        return "validating"
    if live.cancelled:
        return "cancelling"
    if live.publishing:
        return "finalizing"
    return "in_progress" if live.indexed else "validating"


def _counts(row: JobRow, live: LiveJob | None) -> RequestCounts:
    if live is not None:
        return RequestCounts(live.requests, live.counts["succeeded"], live.counts["failed"])
    summary = row.summary or {}
    return RequestCounts(*(summary.get(name, 0) for name in ("requests", "succeeded", "failed")))


def _model(row: JobRow, live: LiveJob | None) -> str | UnsetType:
    """The one that every line asks, once all are read; of one that is over, the one that answered. UNSET: several."""
    if live is None:
        return (row.summary or {}).get("model") or UNSET
    names = {lane.profile.model for lane in live.lanes.values()} if live.indexed else set[str]()
    return names.pop() if len(names) == 1 else UNSET


def _add_times(document: BatchObject, row: JobRow, live: LiveJob | None) -> None:
    status, ended = document.status, _seconds(row.finished_s)
    if status not in ("validating", "failed"):
        document.in_progress_at = _seconds(live.row.indexed_s if live is not None else row.indexed_s)
    if status in ("finalizing", *FINISHED) and status != "failed":
        document.finalizing_at = _seconds(live.answered_s if live is not None else row.answered_s)
    if status in ("cancelling", "cancelled"):
        document.cancelling_at = _seconds(live.row.cancelled_s if live is not None else row.cancelled_s)
    if status in FINISHED:
        setattr(document, f"{status}_at", ended)


def _seconds(at_s: float | None) -> int | None:
    return None if at_s is None else int(at_s)


def _of_error_file(path: Path) -> Iterator[LineFault]:
    with suppress(OSError), open(path, "rb") as lines:
        for raw in lines:
            with suppress(msgspec.DecodeError):
                line = msgspec.json.decode(raw, type=_ErrorLine)
                body = line.response.body if line.response is not None else None
                error = line.error or (body.error if body is not None else None) or _Error()
                number = _LINE.fullmatch(line.id)
                yield LineFault(error.code, int(number[1]) if number else None, error.message)


def _first_url(path: Path) -> str:
    with suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
        return msgspec.json.decode(file.read(_HEAD_BYTES).strip().partition(b"\n")[0], type=_Line).url
    return ""


def _of_answers(box: JobOutbox) -> str:
    found: Any = b""
    with suppress(OSError), open(box.directory / "results.jsonl", "rb") as file:
        found = file.read(_HEAD_BYTES)
    return next((endpoint for mark, endpoint in _OF_OBJECT.items() if mark in found), CHAT)
