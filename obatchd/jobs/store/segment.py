"""One segment: the requests, attempts and results of the jobs that share a file."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from obatchd.jobs.model import Entry, Outcome
from obatchd.jobs.store.database import Database, empty_log, open_reader, rewrite, transaction, unflushed
from obatchd.jobs.store.failures import FailureRow, failures_of
from obatchd.jobs.store.job_row import defaults_of
from obatchd.jobs.store.request_index import Lanes, add_requests, make_defaults, unanswered_record, write_results
from obatchd.jobs.store.rows import (
    LINE_MASK,
    REFUSED_LANE,
    AttemptRow,
    CostRow,
    IndexedChunk,
    LaneRow,
    ResultRow,
    keys_of,
    request_key,
)
from obatchd.jobs.store.schema import Schema
from obatchd.settings.job import FrozenSettings

# These are made when they are first needed, as families is: an older obatchd passes over them, so no file is copied at
# an upgrade.
_ENERGY = "CREATE TABLE IF NOT EXISTS energy (job INTEGER PRIMARY KEY, energy_j REAL NOT NULL, tokens REAL NOT NULL)"
_COST = (
    "CREATE TABLE IF NOT EXISTS cost (job INTEGER PRIMARY KEY, gpu_s REAL NOT NULL, prompt_tokens INTEGER NOT NULL,"
    " response_tokens INTEGER NOT NULL)"
)
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    job INTEGER PRIMARY KEY, name TEXT NOT NULL, indexed_line INTEGER NOT NULL DEFAULT 0,
    indexed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS lanes (
    job INTEGER, lane INTEGER, model TEXT, context_length INTEGER, priority TEXT, requests INTEGER NOT NULL,
    PRIMARY KEY (job, lane)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    request INTEGER PRIMARY KEY, offset INTEGER NOT NULL, length INTEGER NOT NULL, checksum INTEGER NOT NULL,
    lane INTEGER NOT NULL, id TEXT
);
CREATE TABLE IF NOT EXISTS labels (job INTEGER, id TEXT, line INTEGER, PRIMARY KEY (job, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    request INTEGER, attempt INTEGER, server TEXT NOT NULL, started_s REAL NOT NULL, fault TEXT NOT NULL DEFAULT '',
    spent_s REAL NOT NULL DEFAULT 0, PRIMARY KEY (request, attempt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (request INTEGER PRIMARY KEY, outcome TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tallies (
    job INTEGER, lane INTEGER, outcome TEXT, requests INTEGER NOT NULL, PRIMARY KEY (job, lane, outcome)
) WITHOUT ROWID;
"""
_SCHEMA = Schema(1, _TABLES, {1: ""})


class Segment(Database):
    """The requests, attempts and results of some jobs."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)
        self._idle_reader: sqlite3.Connection | None = None
        self._closed = False
        self._lanes: dict[int, Lanes] = {}  # of jobs that are being indexed
        self._made: set[str] = set()  # of the tables that are made when first needed, those that are known to be there

    def _close(self) -> None:
        self._closed = True
        if self._idle_reader is not None:
            self._idle_reader.close()
        super()._close()

    def rest(self) -> None:
        """Give back what it holds beside its file: caches, some 1.5 MB, readers, and a log of up to 16 MiB.

        All come back with the next use.
        """
        with self._lock, self._read_lock:
            if self._closed:
                return
            for reader in (self._reader, self._idle_reader):
                if reader is not None:
                    reader.close()
            self._reader = self._idle_reader = None
            empty_log(self._database)
            self._database.execute("PRAGMA shrink_memory")

    def erase(self, jobs: Iterable[int]) -> None:
        """Delete everything of finished jobs so that nothing of it is left in the file."""
        with self._lock:
            with transaction(self._database) as cursor:
                make_defaults(cursor)
                for job in jobs:
                    low, high = keys_of(job)
                    for table in ("requests", "attempts", "results", *self._present("families")):
                        cursor.execute(f"DELETE FROM {table} WHERE request > ? AND request < ?", (low, high))
                    for table in ("labels", "lanes", "tallies", "jobs", "defaults_of", *self._present("energy"),
                                  *self._present("failures")):  # fmt: skip
                        cursor.execute(f"DELETE FROM {table} WHERE job = ?", (job,))
                    self.forget_lanes(job)
            rewrite(self._database, self.path)

    def erase_results(self, job: int, *, succeeded: bool) -> None:
        """Delete the answers of a job that is over, or its failures, so that nothing of them is left in the file."""
        with self._lock:
            with transaction(self._database) as cursor:
                cursor.execute(
                    "DELETE FROM results WHERE request > ? AND request < ? AND (outcome = 'succeeded') = ?",
                    (*keys_of(job), succeeded),
                )
                if not succeeded and self._present("failures"):
                    cursor.execute("DELETE FROM failures WHERE job = ?", (job,))
            rewrite(self._database, self.path)

    # Indexing.

    def write_index(
        self, batches: Iterable[tuple[int, str, FrozenSettings, Sequence[Entry], bool]]
    ) -> list[IndexedChunk]:
        """Add entries of jobs: (job key, job id, its defaults, entries, whether the drop is read to its end).

        A second use of an id becomes a refused entry. Entries up to the last indexed line are skipped, so that an
        interrupted reading may start over. The middle of a job is not flushed: lost, it is read again, and the
        first result that is committed makes it durable.
        """
        batches = list(batches)
        with self._lock, ExitStack() as stack:
            if not any(final for *_, final in batches):
                stack.enter_context(unflushed(self._database))
            cursor = stack.enter_context(transaction(self._database))
            make_defaults(cursor)
            return [add_requests(cursor, self._lanes, *batch) for batch in batches]

    # Results.

    def write_results(
        self, results: Sequence[ResultRow], attempts: Sequence[AttemptRow], costs: Sequence[CostRow] = ()
    ) -> set[tuple[int, int]]:
        """Record outcomes, attempts and sums; see :func:`~obatchd.jobs.store.request_index.write_results`."""
        with self._lock, transaction(self._database) as cursor:
            cursor.executemany(
                "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET fault = excluded.fault, spent_s = excluded.spent_s WHERE excluded.fault <> ''",
                [(request_key(a.job, a.line), a.attempt, a.server, a.started_s, a.fault, a.spent_s) for a in attempts],
            )
            if costs:
                cursor.execute(_ENERGY)
                energy = [(cost.job, cost.energy_j, cost.energy_tokens) for cost in costs]
                cursor.executemany("INSERT OR REPLACE INTO energy VALUES (?, ?, ?)", energy)
                cursor.execute(_COST)
                others = [(cost.job, cost.gpu_s, cost.prompt_tokens, cost.response_tokens) for cost in costs]
                cursor.executemany("INSERT OR REPLACE INTO cost VALUES (?, ?, ?, ?)", others)
            return write_results(cursor, results)

    def end_pending(
        self, job: int, lane: int | None, outcome: Outcome, code: str, message: str, limit: int, after_line: int = 0
    ) -> list[int]:
        """Give up to ``limit`` requests without a result this outcome, of one lane or of all, in input order.

        Returns:
            their lines; with the last as ``after_line`` the next call need not look at what is ended again.
        """
        low, high = request_key(job, after_line), keys_of(job)[1]
        with self._lock, transaction(self._database) as cursor:
            rows = cursor.execute(
                "SELECT request, lane, id FROM requests WHERE request > ? AND request < ? AND (? IS NULL OR lane = ?)"
                " AND NOT EXISTS (SELECT 1 FROM results WHERE results.request = requests.request)"
                " ORDER BY request LIMIT ?",
                (low, high, lane, lane, limit),
            ).fetchall()
            tried: dict[int, list[str]] = defaultdict(list)
            for request, server in cursor.execute(
                "SELECT request, server FROM attempts WHERE request BETWEEN ? AND ? ORDER BY request, attempt",
                (rows[0][0], rows[-1][0]) if rows else (0, 0),
            ):
                tried[request].append(server)
            results = []
            for request, number, label in rows:
                line = request & LINE_MASK
                record = unanswered_record(label, line, outcome, code, message, tried[request])
                results.append(ResultRow(job, line, number, outcome, record))
            write_results(cursor, results)
        return [result.line for result in results]

    # Reading.

    def jobs(self) -> list[tuple[int, str, FrozenSettings | None]]:
        """Key, id and defaults of every job that was ever indexed into this segment; None in those of 0.1.0."""
        with self._lock, transaction(self._database) as cursor:
            make_defaults(cursor)
            rows = cursor.execute(
                "SELECT job, name, settings FROM jobs LEFT JOIN defaults_of USING (job)"
                " LEFT JOIN job_defaults USING (sha256) ORDER BY job"
            ).fetchall()
        return [(job, name, defaults_of(settings) if settings else None) for job, name, settings in rows]

    def job_progress(self, job: int) -> tuple[int, bool]:
        """The last indexed line and whether the drop was read to its end."""
        rows = self._rows("SELECT indexed_line, indexed FROM jobs WHERE job = ?", job)
        return (rows[0][0], bool(rows[0][1])) if rows else (0, False)

    def lanes(self, job: int) -> list[LaneRow]:
        """All lanes of a job with the number of finished requests in each."""
        rows = self._rows(
            "SELECT job, lane, model, context_length, priority, requests, (SELECT coalesce(sum(t.requests), 0)"
            " FROM tallies t WHERE t.job = lanes.job AND t.lane = lanes.lane) FROM lanes WHERE job = ?",
            job,
        )
        return [LaneRow(*row) for row in rows]

    def tallies(self, job: int) -> Counter[str]:
        """Finished requests of a job by outcome."""
        rows = self._rows("SELECT outcome, sum(requests) FROM tallies WHERE job = ? GROUP BY outcome", job)
        return Counter(dict(rows))

    def cost(self, job: int) -> CostRow:
        """What a job has cost, as it was kept with its latest results; an earlier version kept the energy alone."""
        energy = self._kept(job, "energy", "energy_j, tokens") or (0.0, 0.0)
        others = self._kept(job, "cost", "gpu_s, prompt_tokens, response_tokens") or (0.0, 0, 0)
        return CostRow(job, *energy, *others)

    def _kept(self, job: int, table: str, columns: str) -> tuple[Any, ...] | None:
        rows = self._rows(f"SELECT {columns} FROM {table} WHERE job = ?", job) if self._present(table) else []
        return rows[0] if rows else None

    def failures(self, job: int) -> list[FailureRow]:
        """Why requests of a job have no answer, the most frequent cause first."""
        answered = Outcome.SUCCEEDED.value
        unanswered = sum(count for outcome, count in self.tallies(job).items() if outcome != answered)
        if not unanswered:
            return []
        kept = bool(self._present("failures"))
        with self._own_reader() as reader:
            return failures_of(reader, job, unanswered, kept=kept)

    def last_finished(self, job: int, lane: int) -> int:
        """The greatest line of a lane that has a result; 0 where none has."""
        rows = self._seen(
            "SELECT r.request FROM results r JOIN requests q USING (request)"
            " WHERE r.request > ? AND r.request < ? AND q.lane = ? ORDER BY r.request DESC LIMIT 1",
            *(*keys_of(job), lane),
        )
        return rows[0][0] & LINE_MASK if rows else 0

    def pending(self, job: int, lane: int, after_line: int, limit: int, to_line: int = LINE_MASK) -> list[Entry]:
        """The next requests of a lane without a result, in input order; of those up to ``to_line``."""
        low, high = keys_of(job)[0], request_key(job, to_line) + 1
        known = self._present("families")
        family = "(SELECT family FROM families f WHERE f.request = requests.request)" if known else "NULL"
        rows = self._seen(
            "SELECT request, offset, length, checksum, id, " + family + " FROM requests"
            " WHERE request > ? AND request < ? AND lane = ?"
            " AND NOT EXISTS (SELECT 1 FROM results WHERE results.request = requests.request) LIMIT ?",
            *(max(low, request_key(job, after_line)), high, lane, limit),
        )
        return [Entry(row[0] & LINE_MASK, row[1], row[2], row[3], row[4], family=row[5]) for row in rows]

    def _present(self, table: str) -> tuple[str, ...]:
        """A table that is made when it is first needed; none where it was not, as in files of earlier versions."""
        if table not in self._made and self._seen("SELECT 1 FROM sqlite_master WHERE name = ?", table):
            self._made.add(table)
        return (table,) if table in self._made else ()

    def attempts(self, job: int) -> list[AttemptRow]:
        """Recorded attempts of requests that have no result yet."""
        rows = self._rows(
            "SELECT request, attempt, server, started_s, fault, spent_s FROM attempts WHERE request > ? AND request < ?"
            " AND NOT EXISTS (SELECT 1 FROM results WHERE results.request = attempts.request)",
            *keys_of(job),
        )
        return [AttemptRow(job, row[0] & LINE_MASK, *row[1:]) for row in rows]

    def results(
        self, job: int, after_line: int = 0, only: Outcome | None = None
    ) -> Generator[tuple[int, Outcome, bytes], None, None]:
        """(line, outcome, record) of every finished request, in input order, in constant memory.

        Of those above ``after_line``, and with one outcome or any.
        """
        condition = "" if only is None else "AND outcome = ?"
        if only not in (None, Outcome.SUCCEEDED):
            condition += " AND outcome <> 'succeeded'"  # so that the index of these few is used
        with self._own_reader() as reader, closing(reader.cursor()) as cursor:  # an open one would hold up checkpoints
            cursor.execute(
                "SELECT request, outcome, record FROM results"
                f" WHERE request > ? AND request < ? {condition} ORDER BY request",
                (request_key(job, after_line), keys_of(job)[1], *([only.value] if only else [])),
            )
            for request, outcome, record in cursor:
                yield request & LINE_MASK, Outcome(outcome), record

    def settled(self, job: int, after_line: int = 0) -> int:
        """The last line, above ``after_line``, to which every request has its result."""
        low, high = request_key(job, after_line), keys_of(job)[1]
        reached, indexed = self.job_progress(job)
        rows = self._seen(
            "SELECT request FROM requests WHERE request > ? AND request < ?"
            " AND NOT EXISTS (SELECT 1 FROM results WHERE results.request = requests.request) ORDER BY request LIMIT 1",
            *(low, high),
        )
        if rows:
            return int(rows[0][0] & LINE_MASK) - 1
        return LINE_MASK if indexed else max(after_line, reached)

    @contextmanager
    def _own_reader(self) -> Iterator[sqlite3.Connection]:
        """Not the shared reader: whoever reads a large job is long about it.

        One is kept, for opening one takes longer than reading a small job.
        """
        with self._read_lock:
            reader, self._idle_reader = self._idle_reader, None
        reader = reader or open_reader(self.path)
        try:
            yield reader
        finally:
            with self._read_lock:
                if self._closed or self._idle_reader is not None:
                    reader.close()
                else:
                    self._idle_reader = reader

    def place(self, job: int, line: int) -> Entry | None:
        """Where the bytes of one request lie."""
        query = "SELECT offset, length, checksum, id FROM requests WHERE request = ?"
        rows = self._seen(query, request_key(job, line))
        return Entry(line, *rows[0]) if rows else None

    def finished_requests(self, job: int, *, succeeded: bool) -> list[Entry]:
        """Where the bytes of the requests that ran lie, in input order, of those that succeeded or of the others.

        Lines that were refused did not run.
        """
        rows = self._rows(
            "SELECT r.request, offset, length, checksum, id FROM requests r JOIN results USING (request)"
            " WHERE r.request > ? AND r.request < ? AND lane >= 0 AND (outcome = 'succeeded') = ? ORDER BY r.request",
            *keys_of(job), succeeded,
        )  # fmt: skip
        return [Entry(row[0] & LINE_MASK, *row[1:]) for row in rows]

    def refused_lines(self, job: int, limit: int) -> tuple[int, list[int]]:
        """How many lines were refused, and the first of them: they never ran, so nothing of them can be retried."""
        bounds = *keys_of(job), REFUSED_LANE
        refused = "FROM requests r WHERE r.request > ? AND r.request < ? AND lane = ?"
        [(count,)] = self._rows(f"SELECT count(*) {refused}", *bounds)
        rows = self._rows(f"SELECT r.request {refused} ORDER BY r.request LIMIT ?", *bounds, limit)
        return count, [row[0] & LINE_MASK for row in rows]

    def forget_lanes(self, job: int) -> None:
        self._lanes.pop(job, None)
