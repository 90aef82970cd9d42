"""How many requests of a job have no answer, by cause: kept with the results, so that a restart knows it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from obatchd.jobs.model import Outcome
from obatchd.jobs.store.rows import ResultRow, keys_of, request_key

# Made when they are first needed, in files of earlier versions too: those pass over them.
_TABLE = (
    "CREATE TABLE IF NOT EXISTS failures (job INTEGER, code TEXT, requests INTEGER NOT NULL, request INTEGER NOT NULL,"
    " message TEXT NOT NULL, PRIMARY KEY (job, code)) WITHOUT ROWID"
)
_INDEX = "CREATE INDEX IF NOT EXISTS unanswered ON results (request, outcome) WHERE outcome <> 'succeeded'"
_ADD = (
    "INSERT INTO failures VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,"
    " message = CASE WHEN excluded.request < request THEN excluded.message ELSE message END,"
    " request = min(request, excluded.request)"
)
_MESSAGE_CHARACTERS = 2000


class FailureRow(msgspec.Struct):
    """The requests of one job that have no answer for one cause."""

    code: str
    requests: int
    request: int  # the first of them, in the order of the drop: its row id
    message: str  # of that


class _Cause(msgspec.Struct):
    """The parts of a record that say why there is no answer."""

    code: str = ""
    message: str = ""


_cause = msgspec.json.Decoder(_Cause)


def add_failures(cursor: sqlite3.Cursor, results: Sequence[ResultRow]) -> None:
    """Count results that have just been entered, those of them that are no answers."""
    cursor.execute(_TABLE)
    cursor.execute(_INDEX)
    by_job: dict[int, list[tuple[int, bytes]]] = {}
    for result in results:
        if result.outcome is not Outcome.SUCCEEDED:
            by_job.setdefault(result.job, []).append((request_key(result.job, result.line), result.record))
    for job, unanswered in by_job.items():
        rows = [(job, f.code, f.requests, f.request, f.message) for f in counted(unanswered)]
        cursor.executemany(_ADD, rows)


def counted(unanswered: Iterable[tuple[int, bytes]]) -> list[FailureRow]:
    """The same, of (row id, record) of results that are no answers."""
    found: dict[str, FailureRow] = {}
    for request, record in unanswered:
        cause = _cause.decode(record)
        row = found.setdefault(cause.code, FailureRow(cause.code, 0, request, cause.message[:_MESSAGE_CHARACTERS]))
        row.requests += 1
        if request < row.request:
            row.request, row.message = request, cause.message[:_MESSAGE_CHARACTERS]
    return [*found.values()]


def failures_of(connection: sqlite3.Connection, job: int, unanswered: int, *, kept: bool) -> list[FailureRow]:
    """The causes, the most frequent first.

    ``kept``: the table is there. Where it has not all of the ``unanswered`` requests, because an earlier version
    entered some, their records are read, all of them.
    """
    query = "SELECT code, requests, request, message FROM failures WHERE job = ?"
    rows = [FailureRow(*row) for row in connection.execute(query, (job,))] if kept else []
    if sum(row.requests for row in rows) != unanswered:
        query = "SELECT request, record FROM results WHERE request > ? AND request < ? AND outcome <> 'succeeded'"
        rows = counted(connection.execute(query, keys_of(job)))
    return sorted(rows, key=lambda row: (-row.requests, row.code))
