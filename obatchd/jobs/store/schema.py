"""The versions of the store's files, and bringing older ones up to date.

A file's version is its ``user_version`` (sqlite.org/pragma.html); files made before there were versions have 0. Any
change of any file's tables raises the version of ``state.db``, because that is opened first: so an older daemon is
refused before it touches anything.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from obatchd import __version__, crash_points, log
from obatchd.errors import StoreError

_log = log.get(__name__)
BACKUP_MARK = ".before-schema-"


class Schema(NamedTuple):
    """Tables of a file."""

    version: int
    create: str  # makes them in a new file
    steps: Mapping[int, str]  # by version, SQL that makes it from the one before; empty where the tables stay


def bring_up(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Create or migrate the tables of an open database, in one transaction; before a change a copy is made beside it.

    Raises:
        StoreError: a newer obatchd wrote the file (``store_newer``).
        sqlite3.DatabaseError: the disk refuses, or the file is damaged.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        _run(connection, schema.create, schema.version)
        return
    if version > schema.version:
        raise StoreError(
            f"{path} was written by a newer obatchd: its tables have version {version}, obatchd {__version__} knows "
            f"{schema.version}. Install the newer obatchd again; nothing was changed. To go back all the same, see "
            f'"Going back" in obatchd(8): copies made before each upgrade are {path}{BACKUP_MARK}….',
            code="store_newer",
        )
    if version == schema.version:
        return
    steps = [schema.steps[step] for step in range(version + 1, schema.version + 1)]
    if any(steps):
        _back_up(connection, Path(f"{path}{BACKUP_MARK}{schema.version}"))
        crash_points.reach("schema.after_copy")
    _run(connection, "\n".join(steps), schema.version)
    _log.info("store_migrated", file=path.name, from_version=version, to_version=schema.version)


def _run(connection: sqlite3.Connection, script: str, version: int) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {version}")
        crash_points.reach("schema.before_commit")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.rollback()
    crash_points.reach("schema.after_commit")


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    """A consistent copy, with the pages still in the log; one of an upgrade that was cut short is made again."""
    target.unlink(missing_ok=True)
    began_s = time.monotonic()
    with closing(sqlite3.connect(target)) as copy:
        connection.backup(copy)
        crash_points.reach("schema.before_flush")
    target.chmod(0o600)
    flush(target, target.parent)
    _log.info("store_backed_up", file=target.name, took_s=time.monotonic() - began_s)


def flush(*paths: Path) -> None:
    """fsync files and directories. Never of a database that is open: closing any descriptor of it drops its locks."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
