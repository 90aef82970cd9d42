"""What programs keep in ``state.db`` over HTTP: keys, the files that they uploaded, and the terms of batches.

A file is a directory in the spool and a batch is a job: their rows are found again there where the index is lost. Keys
stand nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from obatchd.jobs.store.database import Database
from obatchd.jobs.store.job_row import SELECT, JobRow, job_of

# Of a row of ``jobs``: whether it is a batch. As a literal, so that SQLite finds the index that has it.
IS_BATCH = "json_extract(CAST(settings AS TEXT), '$.openai_batch')"
PROGRAM_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, owner INTEGER NOT NULL, sha256 BLOB NOT NULL UNIQUE, label TEXT NOT NULL, scopes BLOB NOT NULL,
    administrator INTEGER NOT NULL, created_s REAL NOT NULL, expires_s REAL, last_used_s REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner INTEGER NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, created_s REAL NOT NULL,
    expires_s REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_owner ON files (owner, id);
CREATE TABLE IF NOT EXISTS batches (
    job TEXT PRIMARY KEY, owner INTEGER NOT NULL, input_file TEXT NOT NULL, endpoint TEXT NOT NULL,
    completion_window TEXT NOT NULL, metadata BLOB NOT NULL, keep_output_s INTEGER, created_s REAL NOT NULL,
    idempotency_key TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batches_by_file ON batches (owner, input_file);
CREATE INDEX IF NOT EXISTS batches_by_key ON batches (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS batches_that_expire ON batches (job) WHERE keep_output_s IS NOT NULL;
"""
BATCH_INDEX = f"CREATE INDEX IF NOT EXISTS jobs_that_are_batches ON jobs (owner, job) WHERE {IS_BATCH};"
# Those of jobs that are erased.
FORGET_BATCHES = "DELETE FROM batches WHERE job NOT IN (SELECT job FROM jobs)"


class KeyRow(msgspec.Struct):
    """A key of the API over HTTP, by its SHA-256: the key itself is nowhere."""

    id: str
    owner: int  # uid
    sha256: bytes
    label: str
    scopes: list[str]
    administrator: bool
    created_s: float
    expires_s: float | None
    last_used_s: float | None = None


class FileRow(msgspec.Struct):
    """An uploaded file."""

    id: str
    owner: int  # uid
    name: str
    size: int  # bytes
    created_s: float
    expires_s: float | None


class BatchRow(msgspec.Struct):
    """The terms of a batch that a program made; those of a batch file in the inbox stand nowhere."""

    job: str
    owner: int  # uid
    input_file: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    keep_output_s: int | None  # how long its output files are kept from their end on; None: as any results
    created_s: float
    idempotency_key: str | None = None

    def asks_as(self, other: BatchRow) -> bool:
        """Whether both were asked for with the same."""
        ours = (self.owner, self.input_file, self.endpoint, self.completion_window, self.metadata, self.keep_output_s)
        theirs = (other.owner, other.input_file, other.endpoint, other.completion_window, other.metadata)
        return ours == (*theirs, other.keep_output_s)


_Row = TypeVar("_Row", KeyRow, FileRow, BatchRow)
_TABLES: dict[type[Any], str] = {KeyRow: "keys", FileRow: "files", BatchRow: "batches"}
_JSON = ("scopes", "metadata")


def add_row(cursor: sqlite3.Cursor, row: KeyRow | FileRow | BatchRow) -> None:
    """Enter a row; one that is there stays."""
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    values |= {name: msgspec.json.encode(values[name]) for name in _JSON if name in values}
    marks = ", ".join("?" * len(values))
    names = ", ".join(values)
    cursor.execute(f"INSERT OR IGNORE INTO {_TABLES[type(row)]} ({names}) VALUES ({marks})", [*values.values()])


class ProgramStore:
    """The three tables, in the database of the index of jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _rows(self, kind: type[_Row], condition: str, *given: Any) -> list[_Row]:
        names = kind.__struct_fields__
        rows = self._database.seen(f"SELECT {', '.join(names)} FROM {_TABLES[kind]} WHERE {condition}", *given)
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for values in found:
            values.update({name: msgspec.json.decode(values[name]) for name in _JSON if name in values})
        return [msgspec.convert(values, kind, strict=False) for values in found]

    # Keys.

    def all_keys(self) -> list[KeyRow]:
        """All of them, the oldest first."""
        return self._rows(KeyRow, "1 ORDER BY created_s, id")

    def add_key(self, row: KeyRow) -> None:
        with self._database.writing() as cursor:
            add_row(cursor, row)

    def remove_key(self, key: str) -> None:
        with self._database.writing() as cursor:
            cursor.execute("DELETE FROM keys WHERE id = ?", (key,))

    def used(self, at_s: Iterable[tuple[str, float]]) -> None:
        """When keys were used last, by id."""
        with self._database.writing() as cursor:
            cursor.executemany("UPDATE keys SET last_used_s = ?2 WHERE id = ?1", list(at_s))

    # Files.

    def file(self, file: str) -> FileRow | None:
        rows = self._rows(FileRow, "id = ?", file)
        return rows[0] if rows else None

    def last_file(self) -> str:
        """The greatest id of a file that is there, or ``""``."""
        return self._database.seen("SELECT max(id) FROM files")[0][0] or ""

    def files(self, owner: int | None, after: str, limit: int, *, descending: bool) -> list[FileRow]:
        """Files of one owner or of all, by id, from the one behind ``after`` on; ``""``: from the beginning."""
        order, compare = ("DESC", "<") if descending else ("ASC", ">")
        condition = f"(?1 IS NULL OR owner = ?1) AND (?2 = '' OR id {compare} ?2) ORDER BY id {order} LIMIT ?3"
        return self._rows(FileRow, condition, owner, after, limit)

    def all_files(self) -> set[str]:
        """The ids of all of them."""
        return {row[0] for row in self._database.seen("SELECT id FROM files")}

    def expired_files(self, now_s: float) -> list[FileRow]:
        return self._rows(FileRow, "expires_s <= ?", now_s)

    def kept_by(self, owner: int) -> tuple[int, int]:
        """How many files an owner has, and their bytes."""
        [row] = self._database.seen("SELECT count(*), coalesce(sum(size), 0) FROM files WHERE owner = ?", owner)
        return row[0], row[1]

    def add_files(self, rows: Sequence[FileRow]) -> None:
        with self._database.writing() as cursor:
            for row in rows:
                add_row(cursor, row)

    def remove_files(self, files: Sequence[str]) -> None:
        """Names of files are their owners': nothing of them stays in the pages of the database."""
        with self._database.writing(erasing=True) as cursor:
            cursor.executemany("DELETE FROM files WHERE id = ?", [(file,) for file in files])

    # Batches.

    def batch(self, job: str) -> BatchRow | None:
        """The terms of a job that a program made a batch."""
        rows = self._rows(BatchRow, "job = ?", job)
        return rows[0] if rows else None

    def batches_of(self, owner: int, input_file: str, since_s: float) -> list[BatchRow]:
        """Batches that one owner made of a file since then, the latest first."""
        condition = "owner = ? AND input_file = ? AND created_s >= ? ORDER BY job DESC"
        return self._rows(BatchRow, condition, owner, input_file, since_s)

    def batch_of_key(self, owner: int, idempotency_key: str) -> BatchRow | None:
        rows = self._rows(BatchRow, "owner = ? AND idempotency_key = ? ORDER BY job DESC", owner, idempotency_key)
        return rows[0] if rows else None

    def batches_that_expire(self) -> list[BatchRow]:
        """Batches whose output files are kept for a time of their own."""
        return self._rows(BatchRow, "keep_output_s IS NOT NULL")

    def add_batches(self, rows: Sequence[BatchRow]) -> None:
        """Enter batches again whose index was lost."""
        with self._database.writing() as cursor:
            for row in rows:
                add_row(cursor, row)

    def batch_jobs(self, owner: int | None, after: str, limit: int, *, descending: bool = True) -> list[JobRow]:
        """Jobs that are batches, dropped ones too, of one owner or of all, from the one behind ``after`` on."""
        order, compare = ("DESC", "<") if descending else ("ASC", ">")
        condition = f"{IS_BATCH} AND (?1 IS NULL OR owner = ?1) AND (?2 = '' OR job {compare} ?2)"
        query = f"{SELECT} jobs WHERE {condition} ORDER BY job {order} LIMIT ?3"
        return [job_of(row) for row in self._database.seen(query, owner, after, limit)]
