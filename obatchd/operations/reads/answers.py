"""Answers of a job beside their prompts, a part at a time: from the store, and when that is gone from the outbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import ExitStack, closing

import msgspec
from attrs import define
from msgspec import UNSET

from obatchd.control.auth import Caller
from obatchd.control.operations import AnswersAsked
from obatchd.delivery.advice import advice
from obatchd.documents.jobs import JobAnswers, ShownAnswer
from obatchd.engine.engine import Engine
from obatchd.errors import ControlError
from obatchd.jobs.formats.request import request_prompt
from obatchd.jobs.model import JobState, Outcome, repeated_line, written_line
from obatchd.jobs.store import LINE_MASK, JobRow
from obatchd.operations.jobs import JobCommands
from obatchd.results.rows import ResultSet, line_of

_MOST_BYTES = 4 * 1024**2  # of the records of one part; one record may have more
_LINE_BYTES = 1024**2  # of a line that could not be read, as it is shown
Found = tuple[int, str, bytes]  # place, outcome, record


class _Shown(msgspec.Struct):
    """The parts of a record that are shown beside it."""

    id: str = ""
    code: str = ""
    prompt: str | None = None
    full_prompt: str | None = None  # with its sources


_shown = msgspec.json.Decoder(_Shown)


@define(eq=False)
class JobAnswerPages:
    """Implements :class:`obatchd.control.operations.AnswerOperations`, which says what its method does."""

    _engine: Engine
    _jobs: JobCommands

    async def part(self, caller: Caller, job_id: str, asked: AnswersAsked) -> JobAnswers:
        row = self._jobs.find(caller, job_id)
        # What is settled now is among the results that are looked up after it.
        settled = await asyncio.to_thread(self._settled, row, asked.after) if asked.settled else UNSET
        results, after = await asyncio.to_thread(self._part, row, asked)
        return JobAnswers(row.job, self._jobs.state_of(row), results, after, settled)

    def _settled(self, row: JobRow, after: int) -> int:
        store = self._engine.store
        over = row.finished_s is not None or not store.keeps(row)
        return LINE_MASK if over else store.of(row).settled(row.key, after)

    def _part(self, row: JobRow, asked: AnswersAsked) -> tuple[list[ShownAnswer], int | None]:
        """The results, and the place of the last one where more follow."""
        results: list[ShownAnswer] = []
        size_bytes = 0
        with ExitStack() as stack:
            prompts = stack.enter_context(_Prompts(self._engine, row))
            for place, outcome, record in stack.enter_context(closing(self._found(row, asked))):
                about = _shown.decode(record)
                if asked.code is not None and about.code != asked.code:
                    continue
                size_bytes += len(record)
                if results and (len(results) == asked.limit or size_bytes > _MOST_BYTES):
                    return results, results[-1].at
                results.append(_answer(place, outcome, record, about, prompts))
        return results, None

    def _found(self, row: JobRow, asked: AnswersAsked) -> Generator[Found, None, None]:
        """Results above a place, with one outcome or any; raises ControlError where there are none any more."""
        only, store = Outcome(asked.outcome) if asked.outcome else None, self._engine.store
        if store.keeps(row) and store.of(row).job_progress(row.key) != (0, False):
            with closing(store.of(row).results(row.key, asked.after, only)) as kept:
                yield from ((line, outcome.value, record) for line, outcome, record in kept)
            return
        path = self._engine.layout.outbox_dir(row.job, row.name, row.owner)
        if row.state is not JobState.DONE:
            return
        if not (path / "summary.json").is_file():
            words = f"the answers of job {row.job} are not kept any more: its outbox is gone, too"
            raise ControlError(words, code="results_gone")
        for written in ResultSet(path).rows():
            line, number = line_of(written)
            place, outcome = repeated_line(line, number) if number else line, str(written.record.get("outcome"))
            if place > asked.after and (only is None or outcome == only.value):
                yield place, outcome, msgspec.json.encode(written.record)


class _Prompts:
    """Prompts of a job whose results do not have them: those of requests that never came to a server."""

    def __init__(self, engine: Engine, row: JobRow) -> None:
        self._engine, self._row = engine, row
        self._file = -1

    def __enter__(self) -> _Prompts:
        try:
            self._file = os.open(self._engine.work.request_file(self._row), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it is deleted a week after the job
            self._file = -1
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def at(self, place: int) -> tuple[str | None, bool]:
        """The prompt, and whether it is the line as it was written, because that is no request."""
        store = self._engine.store
        entry = store.of(self._row).place(self._row.key, place) if self._file >= 0 and store.keeps(self._row) else None
        raw = entry.read(self._file) if entry is not None else None
        if raw is None:
            return None, False
        if prompt := request_prompt(raw):
            return prompt, False
        return raw[:_LINE_BYTES].decode("utf-8", "replace"), True


def _answer(place: int, outcome: str, record: bytes, about: _Shown, prompts: _Prompts) -> ShownAnswer:
    line, number = written_line(place)
    prompt, raw = about.full_prompt or about.prompt, False
    if prompt is None:
        prompt, raw = prompts.at(place)
    return ShownAnswer(
        place,
        line,
        about.id,
        outcome,
        prompt,
        msgspec.json.decode(record),
        repeat=number or UNSET,
        raw=raw or UNSET,
        advice=advice(about.code) if about.code else UNSET,
    )
