"""Damaged store files: when to look for them, and setting them aside.

SQLite's files survive SIGKILL and, where the disk tells the truth, a power cut. A whole file is therefore read only
after the machine went down under the daemon, or after damage was met; not after a mere kill, because a gigabyte takes
seconds.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from obatchd import log
from obatchd.jobs.store.database import is_corrupt
from obatchd.times import boot_id

_log = log.get(__name__)
_FILES = ("", "-wal", "-shm")  # the files of one SQLite database
_DAMAGED = "damaged"
_CORRUPT_MARK = ".corrupt-"


class Session:
    """A file that is there from the start of a daemon to its orderly end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        boot = boot_id()
        self._found: str | None = None
        with suppress(FileNotFoundError):
            self._found = path.read_text("ascii").strip()
        self.suspicious = self._found not in (None, boot)  # the files should be looked at before they are trusted
        self._write(boot)

    def undo(self) -> None:
        """Nothing of the store was used: whoever comes next finds what this one found."""
        if self._found is None:
            self.end(damaged=False)
        else:
            self._write(self._found)

    def end(self, *, damaged: bool) -> None:
        """The store is closed; ``damaged`` when it has to be looked at before it is used again."""
        if damaged:
            self._write(_DAMAGED)
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:  # the next start after a reboot reads everything first, which is as well
            _log.warning("session_not_recorded", path=self._path, reason=str(error))

    def _write(self, text: str) -> None:
        try:
            with open(self._path, "w", encoding="ascii") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk must not stop the daemon, which is there to say so
            _log.warning("session_not_recorded", path=self._path, reason=str(error))


def is_damaged(path: Path) -> bool:
    """Whether a look at every page of an existing file finds damage; reads all of it.

    Raises:
        sqlite3.OperationalError: the disk refuses.
    """
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            [verdict] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if is_corrupt(error):
            return True
        raise
    return bool(verdict != "ok")


def set_aside(path: Path) -> Path:
    """Rename a damaged database to ``<name>.corrupt-<time>``, for whoever wants to look at it.

    Raises OSError where the disk refuses.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = Path(f"{path}{_CORRUPT_MARK}{stamp}")
    for suffix in _FILES:
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{target}{suffix}")
    _log.error("store_set_aside", path=path, kept_as=target, remedy="what it held is found again or done again")
    return target


def delete_set_aside(work: Path, before_s: float, mark: str = _CORRUPT_MARK) -> None:
    """Remove damaged files that were set aside before this wall-clock time, or other files with a ``mark``."""
    for path in (*work.glob(f"*{mark}*"), *work.glob(f"segments/*{mark}*")):
        if path.stat().st_ctime < before_s:  # when it was renamed
            path.unlink(missing_ok=True)


def delete_database(path: Path) -> None:
    """Remove a closed database."""
    for suffix in _FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Bytes of a database with its log."""
    return sum(p.stat().st_size for suffix in _FILES[:2] if (p := Path(f"{path}{suffix}")).exists())
