"""Entries of a drop become rows: requests, the lanes they belong to, and a result for each line that is refused."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from obatchd.jobs.model import Entry, Outcome, Refusal
from obatchd.jobs.store.job_row import keep
from obatchd.jobs.store.results import unanswered_record, write_results
from obatchd.jobs.store.rows import REFUSED_LANE, IndexedChunk, LaneRow, ResultRow, request_key
from obatchd.settings.frozen import FrozenSettings

_Asked = tuple[str | None, int | None, str | None]  # model, context length, priority
# A copy of state.db's data on the jobs, for the case that it is lost. Made in files of earlier versions too, without
# another version of the file: those pass over these tables.
_DEFAULTS = (
    "CREATE TABLE IF NOT EXISTS job_defaults (sha256 BLOB PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS defaults_of (job INTEGER PRIMARY KEY, sha256 BLOB NOT NULL)",
)


class RequestIndex:
    """Of one segment; the caller holds its lock. Remembers the lanes of jobs that are being indexed."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[_Asked, int]] = {}

    def forget(self, job: int) -> None:
        """Forget the lanes of a job."""
        self._lanes.pop(job, None)

    @staticmethod
    def make_tables(cursor: sqlite3.Cursor) -> None:
        """Make the tables of defaults where they are missing."""
        for table in _DEFAULTS:
            cursor.execute(table)

    def add(
        self,
        cursor: sqlite3.Cursor,
        job: int,
        name: str,
        defaults: FrozenSettings,
        entries: Sequence[Entry],
        final: bool,
    ) -> IndexedChunk:
        """Add the entries of one job; see :meth:`~obatchd.jobs.store.segment.Segment.write_index`."""
        cursor.execute("INSERT OR IGNORE INTO jobs (job, name) VALUES (?, ?)", (job, name))
        if cursor.rowcount:
            cursor.execute("INSERT OR IGNORE INTO defaults_of VALUES (?, ?)", (job, keep(cursor, defaults)))
        (reached,) = cursor.execute("SELECT indexed_line FROM jobs WHERE job = ?", (job,)).fetchone()
        refusals = {e.line: e.refusal for e in entries if e.refusal is not None}
        refusals.update(self._repeated_ids(cursor, job, [e for e in entries if e.refusal is None and e.line > reached]))
        lanes = self._lanes_of(cursor, job)
        counts: Counter[int] = Counter()
        lane_of, rows = [], []
        for entry in entries:
            lane = REFUSED_LANE
            if entry.line not in refusals:
                asked = (entry.model, entry.context_length, entry.priority)
                lane = lanes.setdefault(asked, len(lanes))
            lane_of.append(lane)
            if entry.line > reached:
                counts[lane] += 1
                rows.append((request_key(job, entry.line), entry.offset, entry.length, entry.checksum, lane, entry.id))
        cursor.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)", rows)
        refused = [
            ResultRow(job, e.line, REFUSED_LANE, Outcome.FAILED, _refused(e, refusals[e.line]))
            for e in entries
            if e.line in refusals and e.line > reached
        ]
        write_results(cursor, refused)
        chunk = self._write_lanes(cursor, job, lanes, counts)
        last = entries[-1].line if entries else reached
        cursor.execute(
            "UPDATE jobs SET indexed_line = max(indexed_line, ?), indexed = ? WHERE job = ?", (last, final, job)
        )
        return IndexedChunk(job, chunk, lane_of, len(refused))

    def _lanes_of(self, cursor: sqlite3.Cursor, job: int) -> dict[_Asked, int]:
        known = self._lanes.get(job)
        if known is None:
            rows = cursor.execute("SELECT model, context_length, priority, lane FROM lanes WHERE job = ?", (job,))
            known = self._lanes[job] = {(model, context, priority): lane for model, context, priority, lane in rows}
        return known

    def _write_lanes(
        self, cursor: sqlite3.Cursor, job: int, lanes: dict[_Asked, int], counts: Counter[int]
    ) -> list[LaneRow]:
        rows = [LaneRow(job, lane, *asked, counts[lane]) for asked, lane in lanes.items() if counts[lane]]
        cursor.executemany(
            "INSERT INTO lanes VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
            [(r.job, r.lane, r.model, r.context_length, r.priority, r.requests) for r in rows],
        )
        return rows

    @staticmethod
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
                message = (
                    f"line {line}: the id {label!r} was used by line {first} already; give every request its own id"
                )
                repeated[line] = Refusal("duplicate_id", message)
        return repeated


def _refused(entry: Entry, refusal: Refusal) -> bytes:
    return unanswered_record(entry.id, entry.line, Outcome.FAILED, refusal.code, refusal.message)
