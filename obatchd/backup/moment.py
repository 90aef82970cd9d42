"""One moment of a spool, on which its daemon may go on working, and what belongs to it.

In that moment the index cannot be written, so no drop leaves the inbox and no job is accepted; the drops in the inbox
are opened. The index is then copied as it was in it (sqlite.org/backup.html), and everything that its jobs need:

* Inputs never change. Where one is gone by then, its job was over or erased since: its row is replaced by the latest.
* A segment may be newer than the index: then it has answers for which the restored daemon need not ask.
* Of the outbox and of ``failed`` there is what belongs to jobs that are over: the rest is made from the segments.
* A drop of the inbox whose job the index knows, because it was being claimed, is left out there or here, not in both.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from obatchd import __version__
from obatchd.backup import contents
from obatchd.backup.archive import Archive
from obatchd.backup.contents import Manifest
from obatchd.jobs.model import Intent, is_passed_over
from obatchd.jobs.store.owed import FORGET_OWED
from obatchd.times import instant

_BUSY_S = 60.0  # longest wait for the daemon's own writing
_FRESH_S = 2.0  # what was written to so lately may not be complete
_TRIES = 3
_OVER = ("done", "refused")


class _Drop(NamedTuple):
    name: str
    descriptor: int
    status: os.stat_result


class _Job(NamedTuple):
    job: str
    state: str
    segment: str
    released: bool


class Moment:
    """The index of one moment as a file in ``scratch``, and the open drops of the inbox."""

    def __init__(self, spool: Path, scratch: Path) -> None:
        """Raises OSError or sqlite3.Error where the spool cannot be read."""
        self._spool, self._scratch = spool, scratch
        self._work = spool / "work"
        self.drops: list[_Drop] = []
        self.unreadable: list[str] = []  # names of drops
        try:
            self._index = self._freeze(self._work / contents.INDEX)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for drop in self.drops:
            os.close(drop.descriptor)

    def _freeze(self, path: Path) -> Path:
        copy = self._scratch / contents.INDEX
        with closing(_database(path)) as lock, closing(_database(path)) as reader:
            lock.execute("BEGIN IMMEDIATE")
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM intents").fetchone()  # what it reads from now on is as it is now
            self._open_drops()
            lock.execute("ROLLBACK")
            with closing(sqlite3.connect(copy, isolation_level=None)) as target:
                reader.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")  # all of it in one file
                target.execute(f"DELETE FROM facts WHERE {contents.FORGOTTEN_FACTS}")
        return copy

    def _open_drops(self) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a drop that is claimed meanwhile stays open
        with os.scandir(self._spool / "inbox") as entries:
            for entry in entries:
                kind = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
                if not kind or is_passed_over(entry.name):
                    continue
                try:
                    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                except PermissionError:
                    self.unreadable.append(entry.name)
                    continue
                self.drops.append(_Drop(entry.name, descriptor, os.fstat(descriptor)))

    def manifest(self, *, secrets: bool, results: bool) -> Manifest:
        jobs, owner = self._jobs(), self._work.stat()
        still_open = sum(job.state not in _OVER for job in jobs)
        service = any(path.name.isdigit() for path in map(Path, _inside(self._spool / "outbox")))
        made = instant(time.time()) or ""
        about = (str(self._spool), owner.st_uid, owner.st_gid, len(jobs), still_open, secrets, results, service)
        return Manifest(1, __version__, made, *about)

    def _jobs(self) -> list[_Job]:
        with closing(sqlite3.connect(self._index)) as index:
            rows = index.execute("SELECT job, state, segment, released FROM jobs ORDER BY key").fetchall()
        return [_Job(job, state, segment, bool(released)) for job, state, segment, released in rows]

    def write(self, archive: Archive, *, secrets: bool, results: bool) -> None:
        """Add everything but manifest and end.

        Segments come before the inputs, whose bytes they refer to, and the index last, because inputs that are gone
        change it.

        Raises FileNotFoundError where something went away that cannot be found again.
        """
        for name in dict.fromkeys(job.segment for job in self._jobs() if not job.released):
            self._add_database(archive, f"{contents.SEGMENTS}/{name}.db")
        for job in self._jobs():
            if not job.released and not self._add_input(archive, job.job):
                self._take_latest(job.job)
        for name in self._claimed():
            self._add_input(archive, name)
        refused = self._add_results(archive) if results else set()
        for drop in self.drops:
            if (drop.status.st_dev, drop.status.st_ino) not in refused:
                self._add_drop(archive, drop)
        for name in contents.DATABASES:
            self._add_database(archive, name)
        if not secrets:
            self._leave_out_secrets()
        for name in contents.PLAIN + (contents.SECRET_FILES if secrets else ()):
            if (path := self._work / name).exists():
                archive.add(f"work/{name}", path)
        archive.add(f"work/{contents.INDEX}", self._index)

    def _leave_out_secrets(self) -> None:
        """Nothing of them stays in free pages of the index either."""
        with closing(sqlite3.connect(self._index, isolation_level=None)) as index:
            known = {name for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in known.intersection(contents.SECRET):
                index.execute(f"DELETE FROM {table}")
            index.execute("VACUUM")

    def _add_input(self, archive: Archive, job: str) -> bool:
        """Everything in a job's directory; whether it is there."""
        name, path = f"work/{contents.JOBS}/{job}", self._work / contents.JOBS / job
        for left in reversed(range(_TRIES)):
            try:
                archive.add(name, path)
                return True
            except FileNotFoundError:
                if path.exists() and not left:
                    raise
        archive.unfinished.append(name)  # a part of it may be in the archive
        return False

    def _take_latest(self, job: str) -> None:
        """The row of a job as it is now, or none where it was erased."""
        with closing(_database(self._work / contents.INDEX)) as live, closing(sqlite3.connect(self._index)) as index:
            columns = [row[1] for row in live.execute("PRAGMA table_info(jobs)")]
            row = live.execute("SELECT * FROM jobs WHERE job = ?", (job,)).fetchone()
            with index:
                index.execute("DELETE FROM jobs WHERE job = ?", (job,))
                if row is None:
                    index.execute(FORGET_OWED)
                else:
                    marks = ", ".join("?" * len(columns))
                    index.execute(f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({marks})", row)

    def _add_database(self, archive: Archive, name: str) -> None:
        """A consistent copy; nothing where there is none, or where it was deleted with its last job."""
        copy = self._scratch / "copy.db"
        try:
            with closing(_database(self._work / name)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")
            archive.add(f"work/{name}", copy)
        except sqlite3.OperationalError:
            if (self._work / name).exists():
                raise
        finally:
            copy.unlink(missing_ok=True)

    def _claimed(self) -> list[str]:
        """Jobs whose drops were on their way from the inbox to the index, and had left it."""
        here = {(drop.status.st_dev, drop.status.st_ino) for drop in self.drops}
        with closing(sqlite3.connect(self._index)) as index:
            rows = index.execute("SELECT intent FROM intents").fetchall()
        intents = [msgspec.msgpack.decode(row[0], type=Intent) for row in rows]
        return [intent.job for intent in intents if (intent.device, intent.inode) not in here]

    def _add_results(self, archive: Archive) -> set[tuple[int, int]]:
        """Outbox and failed, as far as they belong to jobs that are over; device and inode of the drops in failed."""
        jobs, refused = {job.job: job.state for job in self._jobs()}, set[tuple[int, int]]()
        last = max(jobs, default="")
        for place in ("outbox", "failed"):
            for directory in _job_directories(self._spool / place):
                job = directory.name.rpartition(".")[2]
                later = job > last and job[:1].isdigit()  # accepted since
                if later or jobs.get(job, "done") not in _OVER:
                    continue
                with suppress(FileNotFoundError):  # taken away by its owner
                    archive.add(str(directory.relative_to(self._spool)), directory)
                    if place == "failed":
                        refused |= {(status.st_dev, status.st_ino) for status in map(os.lstat, _inside(directory))}
        return refused

    def _add_drop(self, archive: Archive, drop: _Drop) -> None:
        name, steady = f"inbox/{drop.name}", False
        try:
            fresh = time.time() - _written_s(drop) < _FRESH_S
            steady = archive.add_open(name, drop.descriptor) and not fresh
        except PermissionError:
            self.unreadable.append(drop.name)
        except FileNotFoundError:  # somebody takes files out of a folder
            pass
        if not steady:
            archive.unfinished.append(name)


def _inside(directory: Path) -> list[str]:
    return [entry.path for entry in os.scandir(directory)]


def _job_directories(place: Path) -> Iterator[Path]:
    """Directories of jobs in outbox or failed, those of owners with directories of their own among them."""
    for path in sorted(map(Path, _inside(place))):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            if path.name.isdigit():
                yield from _job_directories(path)
            else:
                yield path


def _written_s(drop: _Drop) -> float:
    """When a file, or any in a folder, was last written to."""
    latest_s = drop.status.st_mtime
    if stat.S_ISDIR(drop.status.st_mode):
        for _, folders, files, place in os.fwalk(".", dir_fd=drop.descriptor):
            times = [os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime for name in (*folders, *files)]
            latest_s = max(latest_s, *times) if times else latest_s
    return latest_s


def _database(path: Path) -> sqlite3.Connection:
    """An open file of the store, which is never made here."""
    return sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY_S)
