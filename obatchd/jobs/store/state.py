"""``state.db`` outlives jobs: claim intents, the job index, and facts such as ports and measured slots."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from obatchd import log
from obatchd.jobs.model import Intent, JobState
from obatchd.jobs.store.database import Database, open_reader, rewrite, transaction
from obatchd.jobs.store.job_row import COLUMNS, SELECT, JobRow, columns, job_of, keep
from obatchd.jobs.store.owed import FORGET_OWED, Owed
from obatchd.jobs.store.programs import FORGET_BATCHES, BatchRow, ProgramStore, add_row
from obatchd.jobs.store.state_tables import state_schema
from obatchd.jobs.store.usage import USAGE, UsageRow, add_usage
from obatchd.naming import EVERY_JOB, JobFilter, JobName
from obatchd.settings.current import Current
from obatchd.settings.job import FrozenSettings, JobSettings, asked_with
from obatchd.settings.settings import Settings
from obatchd.times import moment

_log = log.get(__name__)
_COMPLETE = "index_complete"
_FILTERS = (
    "job_label = ?", "accepted_s >= ?", "finished_s < ?",
    "key < coalesce((SELECT key FROM jobs WHERE job = ?), (SELECT min(key) FROM jobs WHERE job > ?), 1 << 62)",
)  # fmt: skip


class Facts:
    """Facts that only spare work: one that the disk does not take is found out again."""

    def __init__(self, state: StateStore) -> None:
        self._state = state

    def get(self, key: str) -> str | None:
        return self._state.get(key)

    def starting_with(self, prefix: str) -> dict[str, str]:
        return self._state.starting_with(prefix)

    def set(self, key: str, value: str) -> None:
        try:
            self._state.set(key, value)
        except sqlite3.OperationalError as error:
            _log.warning("fact_not_kept", key=key, reason=str(error))


class StateStore(Database):
    """The index of jobs, the memory of the protocol of claim, and facts.

    ``choose_segment(intent)`` names the segment that is to hold an accepted drop's requests. ``settings`` are kept with
    each job, as they are when it is accepted.
    """

    def __init__(self, path: Path, choose_segment: Callable[[Intent], str], settings: Current[Settings]) -> None:
        self._settings = settings
        super().__init__(path, state_schema(self.defaults_now()))
        self._reader = open_reader(path)
        self._choose_segment = choose_segment
        self.programs = ProgramStore(self)

    def _jobs(self, condition: str, *given: Any) -> list[JobRow]:
        return [job_of(row) for row in self._seen(f"{SELECT} jobs WHERE {condition}", *given)]

    def defaults_now(self) -> FrozenSettings:
        """The settings of a job that is accepted now."""
        return FrozenSettings.of(self._settings.value)

    # The protocol of claim.

    def add_intents(self, intents: Sequence[Intent]) -> None:
        """These drops are about to be renamed into work."""
        rows = [(intent.job, msgspec.msgpack.encode(intent)) for intent in intents]
        with self._lock, transaction(self._database) as cursor:
            cursor.executemany("INSERT INTO intents VALUES (?, ?)", rows)

    def forget(self, jobs: Sequence[str]) -> None:
        """These intents came to nothing."""
        with self._lock, transaction(self._database) as cursor:
            cursor.executemany("DELETE FROM intents WHERE job = ?", [(job,) for job in jobs])

    def accept(self, intents: Sequence[Intent], batch: BatchRow | None = None) -> None:
        """These drops are jobs now; their intents are over. With ``batch`` it is one, and a batch with these terms."""
        with self._lock:
            segments = [self._choose_segment(intent) for intent in intents]
            now_s, now = time.time(), moment()
            with transaction(self._database) as cursor:
                defaults = keep(cursor, self.defaults_now())
                cursor.executemany(
                    "INSERT OR IGNORE INTO jobs"
                    " (job, name, owner, kind, size, state, segment, accepted_s, accepted_moment, defaults)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (i.job, i.name, i.owner, i.kind, i.size, JobState.RUNNING, segment, now_s, now, defaults)
                        for i, segment in zip(intents, segments, strict=True)
                    ],
                )
                cursor.executemany("DELETE FROM intents WHERE job = ?", [(i.job,) for i in intents])
                if batch is not None:
                    add_row(cursor, batch)
                    own = columns(cursor, {"settings": JobSettings(openai_batch=True)})
                    cursor.execute("UPDATE jobs SET settings = ? WHERE job = ?", (*own, batch.job))

    def intents(self) -> list[Intent]:
        """Intents neither accepted nor forgotten."""
        rows = self._rows("SELECT intent FROM intents ORDER BY job")
        return [msgspec.msgpack.decode(row[0], type=Intent) for row in rows]

    def jobs(self) -> set[str]:
        """Ids of all jobs ever accepted and not forgotten."""
        return {row[0] for row in self._rows("SELECT job FROM jobs")}

    # Rebuilding.

    @property
    def is_complete(self) -> bool:
        """False when this file was begun anew and does not know the earlier jobs yet."""
        return self.get(_COMPLETE) is not None

    def restore(self, rows: Sequence[tuple[JobRow, bool]], last_key: int) -> None:
        """Enter jobs that an earlier file knew, all or none; a row of key 0 gets a key above ``last_key``.

        Each comes with whether its input and store were given up already. Jobs known here stay as they are. The sums
        of owners are made again, of the jobs that are left.
        """
        marks = ", ".join("?" * (len(JobRow.__struct_fields__) + 1))
        with self._lock, transaction(self._database) as cursor:
            cursor.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
            cursor.execute(
                "INSERT INTO sqlite_sequence VALUES ('jobs', max(?, (SELECT coalesce(max(key), 0) FROM jobs)))",
                (last_key,),
            )
            cursor.executemany(
                f"INSERT OR IGNORE INTO jobs ({COLUMNS}, released) VALUES ({marks})",
                [
                    (row.key or None, *columns(cursor, msgspec.structs.asdict(row) | {"summary": None})[1:], released)
                    for row, released in rows
                ],
            )
            for row, _ in rows:
                if row.summary is not None:
                    new = cursor.execute("SELECT key FROM jobs WHERE job = ? AND summary IS NULL", (row.job,))
                    _finish(cursor, [(key, {"finished_s": row.finished_s, "summary": row.summary}) for (key,) in new])
            cursor.execute("INSERT OR IGNORE INTO facts VALUES (?, '1')", (_COMPLETE,))

    # Facts.

    def get(self, key: str) -> str | None:
        rows = self._rows("SELECT value FROM facts WHERE key = ?", key)
        return rows[0][0] if rows else None

    def starting_with(self, prefix: str) -> dict[str, str]:
        """All facts whose key begins with ``prefix``."""
        last = prefix + "\U0010ffff"
        return dict(self._rows("SELECT key, value FROM facts WHERE key >= ? AND key < ?", prefix, last))

    def set(self, key: str, value: str) -> None:
        with self._lock, transaction(self._database) as cursor:
            cursor.execute(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (key, value)
            )

    def change(self, key: str, value: str) -> None:
        """Change a fact that is known; one that somebody has taken away stays away."""
        with self._lock, transaction(self._database) as cursor:
            cursor.execute("UPDATE facts SET value = ? WHERE key = ?", (value, key))

    def unset(self, key: str) -> None:
        with self._lock, transaction(self._database) as cursor:
            cursor.execute("DELETE FROM facts WHERE key = ?", (key,))

    # The job index.

    def last_job(self) -> str:
        """The greatest job id ever given, or ``""``."""
        return self._rows("SELECT max(job) FROM jobs")[0][0] or ""

    def find(self, jobs: Sequence[str]) -> list[JobRow]:
        """The rows of these job ids, in the order asked, unknown ones left out."""
        return [row for job in jobs for row in self._jobs("job = ?", job)]

    def named(self, typed: str, owner: int | None = None, limit: int = 2) -> tuple[str, list[JobRow]]:
        """How ``typed`` names jobs, of one owner or of all, and up to ``limit`` that it may mean, newest first.

        Where there are more, those that were refused are left out first.
        """
        for what, conditions in JobName(typed).ways():
            rows = self._newest_of(conditions, owner, limit)
            refused = [row for row in rows if row.state is JobState.REFUSED]
            if refused and len(rows) == limit:
                rows = (self._newest_of(conditions, owner, limit, "AND state <> 'refused'") + refused)[:limit]
            if rows:
                return what, sorted(rows, key=lambda row: row.key, reverse=True)
        return "", []

    def _newest_of(
        self, conditions: Iterable[tuple[str, tuple[Any, ...]]], owner: int | None, limit: int, also: str = ""
    ) -> list[JobRow]:
        """Of one owner or of all, the newest jobs that meet one of the conditions: as many as ``limit``."""
        asked = f"{also} AND (? IS NULL OR owner = ?) ORDER BY job DESC LIMIT ?"
        found = [self._jobs(f"{condition} {asked}", *given, owner, owner, limit) for condition, given in conditions]
        rows = {row.key: row for rows in found for row in rows}
        return sorted(rows.values(), key=lambda row: row.key, reverse=True)[:limit]

    def list_jobs(
        self,
        states: Iterable[JobState],
        *,
        limit: int = -1,
        newest_first: bool = False,
        owner: int | None = None,
        only: JobFilter = EVERY_JOB,
    ) -> list[JobRow]:
        """Jobs in any of ``states``, of one owner or of all, by acceptance."""
        given: list[Any] = [*states]
        conditions = [f"state IN ({','.join('?' * len(given))})", "(? IS NULL OR owner = ?)"]
        given += [owner, owner]
        for condition, value in zip(_FILTERS, only, strict=True):
            if value is not None:
                conditions.append(condition)
                given += [value] * condition.count("?")
        order = "DESC" if newest_first else "ASC"
        return self._jobs(f"{' AND '.join(conditions)} ORDER BY key {order} LIMIT ?", *given, limit)

    def newest(self, owner: int | None, limit: int) -> list[tuple[int, str, tuple[Any, ...]]]:
        """Key and id of the newest jobs of one owner or of all, and a mark that is another one when a job changed."""
        rows = self._seen(
            "SELECT key, job, state, finished_s, notes, paused, cancelled FROM jobs WHERE (? IS NULL OR owner = ?)"
            " ORDER BY key DESC LIMIT ?",
            *(owner, owner, limit),
        )
        return [(key, job, tuple(mark)) for key, job, *mark in rows]

    def with_keys(self, keys: Sequence[int]) -> list[JobRow]:
        """The rows with these keys, as far as they are there."""
        return self._jobs(f"key IN ({','.join('?' * len(keys))})", *keys) if keys else []

    def duplicate_of(self, digest: str, job: JobRow) -> str | None:
        """The latest other job of the same owner whose drop has this digest, and that asks with the same settings.

        One that is over without a single answer is none: nothing of it could be taken over.
        """
        asked = asked_with(job.frozen, job.settings)
        rows = self._jobs(
            "digest = ? AND owner = ? AND job <> ? ORDER BY key DESC LIMIT 100", digest, job.owner, job.job
        )
        answered = (row for row in rows if row.summary is None or row.summary.get("succeeded", 1))
        return next((row.job for row in answered if asked_with(row.frozen, row.settings) == asked), None)

    def retries(self, job: JobRow) -> list[JobRow]:
        """The retries of a job and theirs, by acceptance; all are its owner's, and have later ids."""
        found, names = list[JobRow](), {job.job}
        for row in self._jobs("owner = ? AND job > ? AND retry_of IS NOT NULL ORDER BY job", job.owner, job.job):
            if row.retry_of in names:
                names.add(row.job)
                found.append(row)
        return found

    def update(self, key: int, **values: Any) -> None:
        """Change columns of one job; JSON values are given as objects."""
        self.update_many([(key, values)])

    def update_many(self, changes: Sequence[tuple[int, dict[str, Any]]], owed: Sequence[Owed] = ()) -> None:
        """Change columns of several jobs, and enter messages that are owed since, in one transaction."""
        with self._lock, transaction(self._database) as cursor:
            _update(cursor, changes)
            _owe(cursor, owed)

    def finish(self, changes: Sequence[tuple[int, dict[str, Any]]], owed: Sequence[Owed] = ()) -> None:
        """As :meth:`update_many`, of jobs that are done; their ``summary`` goes into the sums of their owners, once."""
        with self._lock, transaction(self._database) as cursor:
            _finish(cursor, changes)
            _owe(cursor, owed)

    def usage(self, owner: int | None = None, month: str | None = None) -> list[UsageRow]:
        """The sums of one owner or of all, of one month or of all; the latest month first."""
        return [UsageRow(*row) for row in self._seen(USAGE, owner, owner, month, month)]

    def finished_before(self, when_s: float, limit: int, after: int = 0) -> list[JobRow]:
        """Jobs with keys above ``after`` done before ``when_s`` whose input and store are still kept, by key."""
        condition = "state = 'done' AND released = 0 AND finished_s < ? AND key > ? ORDER BY key LIMIT ?"
        return self._jobs(condition, when_s, after, limit)

    def finished_beyond(self, kept_bytes: int, limit: int) -> list[JobRow]:
        """The oldest finished jobs, without which what is still kept of the others is at most ``kept_bytes``."""
        query = (
            f"{SELECT} (SELECT *, sum(kept_bytes) OVER (ORDER BY key DESC) AS with_newer FROM jobs"
            " WHERE state = 'done' AND released = 0) WHERE with_newer > ? ORDER BY key LIMIT ?"
        )
        return [job_of(row) for row in self._seen(query, kept_bytes, limit)]

    def forget_released(self, when_s: float, limit: int) -> int:
        """Delete rows of jobs finished before ``when_s`` of which nothing is kept; how many."""
        with self._lock, transaction(self._database) as cursor:
            cursor.execute(
                "DELETE FROM jobs WHERE key IN (SELECT key FROM jobs WHERE released = 1"
                " AND coalesce(finished_s, accepted_s) < ? LIMIT ?)",
                (when_s, limit),
            )
            forgotten = cursor.rowcount
            cursor.execute(FORGET_BATCHES)
            return forgotten

    def ended_before(self, when_s: float, limit: int, after: int = 0) -> list[JobRow]:
        """Jobs with keys above ``after`` done or refused before ``when_s``, the oldest first."""
        condition = "state IN ('done', 'refused') AND finished_s < ? AND key > ? ORDER BY key LIMIT ?"
        return self._jobs(condition, when_s, after, limit)

    def erase(self, keys: Sequence[int]) -> None:
        """Delete rows of jobs so that nothing of them is left in the file."""
        with self._lock:
            with transaction(self._database) as cursor:
                cursor.executemany("DELETE FROM jobs WHERE key = ?", [(key,) for key in keys])
                cursor.execute(FORGET_OWED)
                cursor.execute(FORGET_BATCHES)
                cursor.execute("DELETE FROM job_defaults WHERE sha256 NOT IN (SELECT defaults FROM jobs)")
            rewrite(self._database, self.path)

    def unreleased_in(self, segment: str) -> int:
        """How many jobs still need ``segment``."""
        return int(self._rows("SELECT count(*) FROM jobs WHERE segment = ? AND released = 0", segment)[0][0])


def _update(cursor: sqlite3.Cursor, changes: Sequence[tuple[int, dict[str, Any]]]) -> None:
    for key, values in changes:
        plain = columns(cursor, values)
        assignments = ", ".join(f"{name} = ?" for name in values)
        cursor.execute(f"UPDATE jobs SET {assignments} WHERE key = ?", (*plain, key))


def _owe(cursor: sqlite3.Cursor, owed: Iterable[Owed]) -> None:
    for one in owed:
        cursor.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (one.key, one.encoded()))


def _finish(cursor: sqlite3.Cursor, changes: Iterable[tuple[int, dict[str, Any]]]) -> None:
    for key, values in changes:
        add_usage(cursor, key, values["finished_s"] or 0.0, values["summary"])
        _update(cursor, [(key, values)])
