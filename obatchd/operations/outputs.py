"""Files of a job: of a batch its results, which are the outbox's own files, and its input where it was dropped."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from attrs import define

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.control.programs import RESULT_FILES
from obatchd.documents.programs import FileObject
from obatchd.errors import ApiError, NotFoundError
from obatchd.jobs.model import JobState, Outcome
from obatchd.jobs.store import BatchRow, JobRow
from obatchd.live.work import Work
from obatchd.spool.prune import delete_tree
from obatchd.tasks import to_its_end

_log = log.get(__name__)
FILE, BATCH = "file-", "batch_"  # before the id of a job
JOB_ID = r"\d{8}-\d{6}-[0-9a-z]{4}"
OF_JOB = re.compile(rf"file-({JOB_ID})-(input|output|error)")
INPUT_PURPOSE, OUTPUT_PURPOSE = "batch", "batch_output"
_BLOCK = 500  # results that are read at a time
_NAMES = {"output": "results.jsonl", "error": "errors.jsonl"}  # in the outbox


class OutputFile(NamedTuple):
    """A file of results that is there."""

    id: str
    path: Path
    document: FileObject


def file_not_found(file: str) -> ApiError:
    return ApiError(f"No such File object: {file}", status=404, code="not_found", param="id")


def input_id(job: str) -> str:
    """The file that a batch was made of which was dropped into the inbox."""
    return f"{FILE}{job}-input"


@define(eq=False)
class Outputs:
    """Finds and deletes them."""

    _work: Work

    def of_job(self, caller: Caller, file: str) -> tuple[JobRow, str]:
        """The job that a file belongs to, and which of its files that is; raises ApiError where there is none."""
        named = OF_JOB.fullmatch(file)
        rows = self._work.store.state.find([named[1]]) if named else []
        if named is None or not rows or not caller.may_see(rows[0].owner) or not rows[0].settings.openai_batch:
            raise file_not_found(file)
        return rows[0], named[2]

    def one(self, row: JobRow, part: str) -> OutputFile:
        """A file of a job; raises ApiError where it is not there."""
        if part == "input":
            return self._input(row)
        file = f"{FILE}{row.job}-{part}"
        if (found := next((output for output in self.all(row) if output.id == file), None)) is None:
            raise file_not_found(file)
        return found

    def _input(self, row: JobRow) -> OutputFile:
        file, path = input_id(row.job), self._work.input_of(row)
        if self._work.store.state.programs.batch(row.job) is not None or not path.is_file():
            raise file_not_found(file)
        size_bytes, at = path.stat().st_size, int(row.accepted_s)
        about = FileObject(id=file, bytes=size_bytes, created_at=at, filename=row.label, purpose=INPUT_PURPOSE)
        return OutputFile(file, path, about)

    def all(self, row: JobRow, terms: BatchRow | None = None) -> Iterator[OutputFile]:
        """The files of results of a batch that is over, by their ids. An empty one is none."""
        if row.state is not JobState.DONE:
            return
        terms = terms or self._work.store.state.programs.batch(row.job)
        expires_s = ends_s(row, terms)
        if expires_s is not None and expires_s <= time.time():
            return
        for part in ("error", "output"):
            file, path = f"{FILE}{row.job}-{part}", self._work.outbox_of(row) / _NAMES[part]
            try:
                size_bytes = path.stat().st_size
            except OSError:  # deleted, or taken away
                continue
            if size_bytes:
                about = FileObject(
                    id=file,
                    bytes=size_bytes,
                    created_at=int(row.finished_s or 0),
                    expires_at=None if expires_s is None else int(expires_s),
                    filename=f"{BATCH}{row.job}_{part}.jsonl",
                    purpose=OUTPUT_PURPOSE,
                )
                yield OutputFile(file, path, about)

    def remove(self, job: JobRow, part: str) -> None:
        """Delete a file of results and what the store has of it; raises OSError or sqlite3.Error.

        The answers in the store go first: after a crash the file is still there, and can be deleted again.
        """
        self._work.store.erase_results(job, succeeded=part == "output")
        outbox = self._work.outbox_of(job)
        if part == "output" and (responses := outbox / "responses").is_dir():
            delete_tree(responses)
        (outbox / _NAMES[part]).unlink(missing_ok=True)
        _log.info("output_removed", job=job.job, owner=job.owner)

    def remove_expired(self) -> None:
        """Delete the results of batches whose time is over; raises OSError or sqlite3.Error."""
        state, now_s = self._work.store.state, time.time()
        for terms in state.programs.batches_that_expire():
            for job in state.find([terms.job]):
                expires_s = ends_s(job, terms)
                if job.state is JobState.DONE and expires_s is not None and expires_s <= now_s:
                    for part, name in _NAMES.items():
                        if (self._work.outbox_of(job) / name).exists():
                            self.remove(job, part)


@define(eq=False)
class JobFiles:
    """Implements :class:`obatchd.control.programs.ResultFiles`, which says what each method does."""

    _work: Work

    def one(self, caller: Caller, job: str, name: str) -> Path:
        row = self._row(caller, job)
        path = self._work.outbox_of(row) / name
        if name not in RESULT_FILES or row.state is not JobState.DONE or not path.is_file():
            raise NotFoundError(f"job {row.job} has no file {name}")
        return path

    def so_far(self, caller: Caller, job: str) -> AsyncGenerator[bytes, None]:
        return self._blocks(self._row(caller, job))

    async def _blocks(self, row: JobRow) -> AsyncGenerator[bytes, None]:
        with closing(self._work.store.results(row)) as results:
            # Nobody may close it while the thread is in it.
            while block := await to_its_end(asyncio.to_thread(_lines, results)):
                yield block

    def _row(self, caller: Caller, job: str) -> JobRow:
        rows = self._work.store.state.find([job])
        if not rows or not caller.may_see(rows[0].owner):
            raise NotFoundError(f"no job {job}")
        return rows[0]


def _lines(results: Iterator[tuple[int, Outcome, bytes]]) -> bytes:
    """The next lines; none at the end."""
    return b"".join(record + b"\n" for _, _, record in islice(results, _BLOCK))


def ends_s(row: JobRow, terms: BatchRow | None) -> float | None:
    """When the results of a batch expire; None: not by themselves."""
    if terms is None or terms.keep_output_s is None or row.finished_s is None:
        return None
    return row.finished_s + terms.keep_output_s
