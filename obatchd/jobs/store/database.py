"""Opening SQLite files the one way we use them: WAL, synchronous=FULL, explicit transactions.

WAL with synchronous=FULL flushes the log at every commit, so a reported commit survives a power cut
(sqlite.org/wal.html, "Checkpointing and durability"). A checkpoint every 4,096 pages (16 MiB) keeps its flushes rare.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from obatchd.errors import StoreError
from obatchd.jobs.store.schema import Schema, bring_up, flush

_CHECKPOINT_PAGES = 4096
# A full or failing disk is none of these: such a file is as good as it was when the disk is.
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_corrupt(error: BaseException) -> bool:
    """Whether ``error`` says that the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _CORRUPT  # the low byte is the primary code (sqlite.org/rescode.html)


def open_database(path: Path, schema: Schema) -> sqlite3.Connection:
    """The database at ``path``, created with ``schema`` where it is new, brought up to it where it is older.

    Raises StoreError where the file is damaged (``store_corrupt``), written by a newer obatchd (``store_newer``), or
    the disk refuses (``store_unusable``).
    """
    connection = None
    try:
        new = not path.exists()
        if new:
            _create(path)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        connection.execute("PRAGMA cache_size=-512")
        with unflushed(connection) if new else nullcontext():
            bring_up(connection, path, schema)
    except StoreError:
        assert connection is not None
        connection.close()
        raise
    except (sqlite3.DatabaseError, OSError) as error:
        if connection is not None:
            connection.close()
        if is_corrupt(error):
            raise StoreError(f"{path} is damaged: {error}", code="store_corrupt") from error
        raise StoreError(
            f"{path} cannot be used: {error}. Look at the disk: is it full, failing or mounted read-only?",
            code="store_unusable",
        ) from error
    return connection


def _create(path: Path) -> None:
    """An empty file in WAL mode, durable with one flush: SQLite's own way takes four and a journal.

    Lost with the machine, it is no worse than one that was never made: nothing is in it. Its tables, which come next,
    become durable with the first commit that is flushed.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")
        connection.execute("PRAGMA journal_mode=WAL")
    flush(path, path.parent)


class Database:
    """One open file. Every write is one flushed transaction; safe to use from several threads."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._database = open_database(path, schema)
        self._lock = threading.RLock()
        # Reads beside the writer: a look must not wait behind a flush.
        self._reader: sqlite3.Connection | None = None
        self._read_lock = threading.Lock()

    def close(self) -> None:
        with self._lock, self._read_lock:
            self._close()

    def _close(self) -> None:
        # The writer last: the one that is closed last empties the log into the file, and readers may not.
        for connection in (self._reader, self._database):
            if connection is not None:
                connection.close()
        self._reader = None

    def _rows(self, query: str, *given: Any) -> list[Any]:
        with self._lock:
            return self._database.execute(query, given).fetchall()

    @contextmanager
    def writing(self, *, erasing: bool = False) -> Iterator[sqlite3.Cursor]:
        """One flushed transaction; ``erasing``: what it deletes is overwritten (sqlite.org/pragma.html)."""
        with self._lock:
            if erasing:
                self._database.execute("PRAGMA secure_delete=ON")
            try:
                with transaction(self._database) as cursor:
                    yield cursor
            finally:
                if erasing:
                    self._database.execute("PRAGMA secure_delete=OFF")

    def seen(self, query: str, *given: Any) -> list[Any]:
        """Rows that are read beside the writer."""
        return self._seen(query, *given)

    def written(self) -> tuple[object, int]:
        """Equal to one of before as long as nobody has written since (sqlite.org/pragma.html#pragma_data_version)."""
        [[version]] = self._seen("PRAGMA data_version")
        return self._reader, version  # versions of two connections cannot be compared

    def _seen(self, query: str, *given: Any) -> list[Any]:
        """Rows that are read beside the writer."""
        with self._read_lock:
            if self._reader is None:
                self._reader = open_reader(self.path)
            return self._reader.execute(query, given).fetchall()


def open_reader(path: Path) -> sqlite3.Connection:
    """A second, read-only view of ``path`` that does not wait for its writer."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA cache_size=-512")
    return connection


def rewrite(connection: sqlite3.Connection, path: Path) -> None:
    """Write the file anew, so that nothing deleted is left in free pages, in the log or in a temporary file.

    Raises:
        sqlite3.OperationalError: the disk refuses, or somebody reads the file for so long.
    """
    connection.execute("PRAGMA temp_store=MEMORY")
    connection.execute("VACUUM")
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError(f"{path.name} is being read; its log could not be emptied")


def empty_log(connection: sqlite3.Connection) -> None:
    """Give back the disk that the log takes. It stays until the next time while somebody reads it, or where the disk
    has no room for its pages: whoever writes next meets that."""
    [[wait_ms]] = connection.execute("PRAGMA busy_timeout")
    connection.execute("PRAGMA busy_timeout=0")
    try:
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.execute(f"PRAGMA busy_timeout={wait_ms}")


@contextmanager
def unflushed(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits inside become durable with the next flushed commit: a log has no gaps that stay unnoticed."""
    connection.execute("PRAGMA synchronous=NORMAL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous=FULL")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    """Everything inside commits together or not at all, also where the disk refuses the commit itself."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield cursor
        cursor.execute("COMMIT")
    finally:
        # SQLite ends the transaction by itself after some errors and leaves it open after others.
        if connection.in_transaction:
            connection.rollback()
        cursor.close()
