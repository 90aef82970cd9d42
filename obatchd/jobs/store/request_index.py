"""Entries of a drop become rows: requests, their lanes, and a result for each refused line. Results are counted."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

import msgspec

from obatchd.jobs.model import Entry, Outcome, Refusal, default_id, place_of, written_line
from obatchd.jobs.store.failures import add_failures
from obatchd.jobs.store.job_row import keep
from obatchd.jobs.store.rows import REFUSED_LANE, IndexedChunk, LaneRow, ResultRow, request_key
from obatchd.settings.job import FrozenSettings

Lanes = dict[tuple[str | None, int | None, str | None], int]  # by model, context length and priority
# A copy of state.db's data on the jobs, for the case that it is lost. Made in files of earlier versions too, without
# another version of the file: those pass over these tables.
_DEFAULTS = (
    "CREATE TABLE IF NOT EXISTS job_defaults (sha256 BLOB PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS defaults_of (job INTEGER PRIMARY KEY, sha256 BLOB NOT NULL)",
)
# Of the requests that have one. Made where it is needed, in files of earlier versions too: those pass over it.
_FAMILIES = "CREATE TABLE IF NOT EXISTS families (request INTEGER PRIMARY KEY, family INTEGER NOT NULL)"
_ANSWERED = Outcome.SUCCEEDED.value
_INSERT_RESULT = "INSERT OR IGNORE INTO results VALUES (?, ?, ?)"


def make_defaults(cursor: sqlite3.Cursor) -> None:
    """Make the tables of defaults where they are missing."""
    for table in _DEFAULTS:
        cursor.execute(table)


def add_requests(
    cursor: sqlite3.Cursor,
    known: dict[int, Lanes],
    job: int,
    name: str,
    defaults: FrozenSettings,
    entries: Sequence[Entry],
    final: bool,
) -> IndexedChunk:
    """Add the entries of one job; see :meth:`~obatchd.jobs.store.segment.Segment.write_index`.

    ``known`` are lanes found before.
    """
    cursor.execute("INSERT OR IGNORE INTO jobs (job, name) VALUES (?, ?)", (job, name))
    if cursor.rowcount:
        cursor.execute("INSERT OR IGNORE INTO defaults_of VALUES (?, ?)", (job, keep(cursor, defaults)))
    (reached,) = cursor.execute("SELECT indexed_line FROM jobs WHERE job = ?", (job,)).fetchone()
    refusals = {e.line: e.refusal for e in entries if e.refusal is not None}
    refusals.update(_repeated_ids(cursor, job, [e for e in entries if e.refusal is None and e.line > reached]))
    if job not in known:
        found = cursor.execute("SELECT model, context_length, priority, lane FROM lanes WHERE job = ?", (job,))
        known[job] = {(model, context, priority): lane for model, context, priority, lane in found}
    lanes = known[job]
    counts: Counter[int] = Counter()
    lane_of, rows, results, refused, families = [], [], [], [], []
    for entry in entries:
        lane, refusal = REFUSED_LANE, refusals.get(entry.line)
        if refusal is None:
            lane = lanes.setdefault((entry.model, entry.context_length, entry.priority), len(lanes))
        lane_of.append(lane)
        if entry.line <= reached:
            continue
        counts[lane] += 1
        rows.append((request_key(job, entry.line), entry.offset, entry.length, entry.checksum, lane, entry.id))
        if entry.family is not None and refusal is None:
            families.append((request_key(job, entry.line), entry.family))
        if refusal is not None:
            record = unanswered_record(entry.id, entry.line, Outcome.FAILED, refusal.code, refusal.message)
            results.append(ResultRow(job, entry.line, lane, Outcome.FAILED, record))
            refused.append(refusal)
    cursor.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)", rows)
    if families:
        cursor.execute(_FAMILIES)
        cursor.executemany("INSERT INTO families VALUES (?, ?)", families)
    write_results(cursor, results)
    chunk = _write_lanes(cursor, job, lanes, counts)
    last = entries[-1].line if entries else reached
    cursor.execute("UPDATE jobs SET indexed_line = max(indexed_line, ?), indexed = ? WHERE job = ?", (last, final, job))
    return IndexedChunk(job, chunk, lane_of, refused)


def _write_lanes(cursor: sqlite3.Cursor, job: int, lanes: Lanes, counts: Counter[int]) -> list[LaneRow]:
    rows = [LaneRow(job, lane, *asked, counts[lane]) for asked, lane in lanes.items() if counts[lane]]
    cursor.executemany(
        "INSERT INTO lanes VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
        [msgspec.structs.astuple(row)[:-1] for row in rows],  # without ``finished``
    )
    return rows


def _repeated_ids(cursor: sqlite3.Cursor, job: int, entries: Sequence[Entry]) -> dict[int, Refusal]:
    labelled = [(e.id, e.line) for e in entries if e.id is not None]
    if not labelled:
        return {}
    rows = ((job, label, line) for label, line in labelled)
    cursor.executemany("INSERT OR IGNORE INTO labels VALUES (?, ?, ?)", rows)
    if cursor.rowcount == len(labelled):
        return {}
    repeated = {}
    for label, line in labelled:
        (first,) = cursor.execute("SELECT line FROM labels WHERE job = ? AND id = ?", (job, label)).fetchone()
        if first != line:
            here, there = written_line(line)[0], written_line(first)[0]
            message = f"line {here}: the id {label!r} was used by line {there} already; give every request its own id"
            repeated[line] = Refusal("duplicate_id", message)
    return repeated


def unanswered_record(
    label: str | None, line: int, outcome: Outcome, code: str, message: str, servers: Sequence[str] = ()
) -> bytes:
    """The result object of the request ``label`` that no server answered; ``servers`` are those that were tried."""
    record = {"id": label or default_id(line), **place_of(line), "outcome": outcome, "code": code, "message": message}
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
    if any(outcome != _ANSWERED for *_, outcome in tally):
        add_failures(cursor, stored)
    return other


def _has_result(cursor: sqlite3.Cursor, row: tuple[int, str, bytes]) -> bool:
    found = cursor.execute("SELECT request, outcome, record FROM results WHERE request = ?", row[:1]).fetchone()
    return bool(found == row)
