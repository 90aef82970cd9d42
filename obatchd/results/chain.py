"""Results of a job and of its retries as one: of each request the best that came of it, the latest of equals."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from obatchd.errors import NotFoundError
from obatchd.results.rows import ResultSet, Row, line_of
from obatchd.words import counted

_RANKS = {"succeeded": 2, "failed": 1}  # that a request was cancelled or expired says less than how it failed


class Chain(ResultSet):
    """A job and its retries, in constant memory: a retry keeps the lines of its first job."""

    def __init__(self, path: Path, retries: Sequence[tuple[str, Path]]) -> None:
        """``retries`` are jobs and their outboxes, the oldest first; raises as :class:`ResultSet` for ``path``."""
        super().__init__(path)
        self.gone: list[str] = []  # retries whose results are not there any more
        self.strange: Counter[str] = Counter()  # rows of retries that fit no row of the job, as far as was read
        found = []
        for job, place in retries:
            try:
                found.append(ResultSet(place))
            except NotFoundError:
                self.gone.append(job)
        self.retries = found

    def rows(self) -> Iterator[Row]:
        """Every row of the job, with ``attempt_job``: the job that its result is of."""
        self.strange.clear()
        jobs = [source.job for source in (self, *self.retries)]
        streams = [super().rows(), *(source.rows() for source in self.retries)]
        numbered = [map(partial(_numbered, number), stream) for number, stream in enumerate(streams)]
        # Equal lines come in the order of the jobs: heapq.merge is stable.
        for _, group in groupby(heapq.merge(*numbered, key=_line), key=_line):
            best: tuple[int, Row] | None = None
            for number, row in group:
                if not number:
                    if best is not None:  # rows without a line have one place
                        yield _told(jobs, *best)
                    best = number, row
                elif best is None or not _is_same(best[1], row):
                    self.strange[jobs[number]] += 1
                elif _rank(row) >= _rank(best[1]):
                    best = number, row
            if best is not None:
                yield _told(jobs, *best)

    def notes(self) -> list[str]:
        """What is to be known about the retries, once the rows were read."""
        notes = [f"{job} is not over: its other answers are still to come" for job in self._running]
        notes += [f"{job} is not counted: its results are not there any more" for job in self.gone]
        for job, rows in self.strange.items():
            belong = "belongs" if rows == 1 else "belong"
            of_it = f"{counted(rows, 'answer')} of the retry {job} {belong} to no request of this job"
            notes.append(f"{of_it}; see: obatchctl results {job} --only-this")
        return notes

    @property
    def _running(self) -> list[str]:
        return [source.job for source in self.retries if not source.complete]


def _told(jobs: Sequence[str], number: int, row: Row) -> Row:
    return row._replace(record={**row.record, "attempt_job": jobs[number]})


def _numbered(number: int, row: Row) -> tuple[int, Row]:
    return number, row


def _line(numbered: tuple[int, Row]) -> tuple[int, int]:
    return line_of(numbered[1])


def _rank(row: Row) -> int:
    return _RANKS.get(str(row.record["outcome"]), 0)


def _is_same(row: Row, retried: Row) -> bool:
    """Whether both are of one request. Lines of batch files do not repeat the prompt."""
    first, second = row.record, retried.record
    prompts = {record["prompt"] for record in (first, second) if isinstance(record.get("prompt"), str)}
    return first.get("id") == second.get("id") and len(prompts) < 2
