"""Outcomes on their way into a segment: written once, and counted."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

import msgspec

from obatchd.jobs.model import Outcome, default_id
from obatchd.jobs.store.rows import ResultRow, request_key

_INSERT_RESULT = "INSERT OR IGNORE INTO results VALUES (?, ?, ?)"


def unanswered_record(
    label: str | None, line: int, outcome: Outcome, code: str, message: str, servers: Sequence[str] = ()
) -> bytes:
    """The result object of a request that no server answered; ``servers`` are those that were tried."""
    record = {"id": label or default_id(line), "line": line, "outcome": outcome, "code": code, "message": message}
    return msgspec.json.encode(record | {"attempts": len(servers), "servers": servers})


def write_results(cursor: sqlite3.Cursor, results: Sequence[ResultRow]) -> set[tuple[int, int]]:
    """Record outcomes inside a transaction; a request that has a result keeps it.

    Returns:
        (job, line) of the requests that have another result than the one given.
    """
    if not results:
        return set()
    rows = [(request_key(r.job, r.line), r.outcome.value, r.record) for r in results]
    stored: Sequence[ResultRow] = results
    other: set[tuple[int, int]] = set()
    cursor.execute("SAVEPOINT results")
    cursor.executemany(_INSERT_RESULT, rows)
    if cursor.rowcount != len(rows):
        # A request that has a result already: find out which, so that only results stored now are counted.
        cursor.execute("ROLLBACK TO results")
        stored = [r for r, row in zip(results, rows, strict=True) if cursor.execute(_INSERT_RESULT, row).rowcount]
        # The same result again is a commit tried again after it failed half-way: that is no other result.
        other = {(r.job, r.line) for r, row in zip(results, rows, strict=True) if not _has_result(cursor, row)}
    cursor.execute("RELEASE results")
    tally = Counter((r.job, r.lane, r.outcome.value) for r in stored)
    cursor.executemany(
        "INSERT INTO tallies VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
        [(*key, count) for key, count in tally.items()],
    )
    return other


def _has_result(cursor: sqlite3.Cursor, row: tuple[int, str, bytes]) -> bool:
    found = cursor.execute("SELECT request, outcome, record FROM results WHERE request = ?", row[:1]).fetchone()
    return bool(found == row)
