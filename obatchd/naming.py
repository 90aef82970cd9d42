"""How people name jobs: the one reader of every JOB that is typed, and what lists of jobs are chosen by. And users."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_ID = r"\d{8}-\d{6}-[0-9a-z]{4}"
_FOLDER = re.compile(rf"(?:.*\.)?({_ID})")  # of the outbox: the stem of the drop's name and the id
_DATE = re.compile(r"(\d{4})-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d))?)?)?)?Z?")


def is_id(text: str) -> bool:
    """Whether a text has the form of the id of a job, whether there is one or not."""
    return re.fullmatch(_ID, text) is not None


class Way(NamedTuple):
    """One way to read a name: as conditions in SQL over the index of jobs, of which one has to hold."""

    what: str  # the name is, for a message
    conditions: tuple[tuple[str, tuple[Any, ...]], ...]


class JobFilter(NamedTuple):
    """Which jobs are listed; None: whichever."""

    label: str | None = None
    accepted_since_s: float | None = None  # wall clock
    ended_before_s: float | None = None
    after: str | None = None  # those accepted before the job with this id, which may be erased by now


EVERY_JOB = JobFilter()


class JobName:
    """A name as it was typed. The first way that fits any job counts: id, label, name of the drop, part of the id."""

    def __init__(self, typed: str) -> None:
        typed = typed.encode("utf-8", "replace").decode()  # no id, label or index has half a character
        self._last = os.path.basename(typed.rstrip("/")) or typed  # of a path: a folder of the outbox, or the drop
        self._labels = (typed, self._last)
        folder = _FOLDER.fullmatch(self._last)
        self._id = folder[1] if folder else typed
        date = _DATE.fullmatch(typed)
        day, clock = (date.groups()[:3], date.groups()[3:]) if date else ((), ())
        self._beginning = "-".join(filter(None, ("".join(filter(None, day)), "".join(filter(None, clock))))) or typed
        self._end = typed

    def ways(self) -> Iterator[Way]:
        """In their order."""
        yield Way("the id", (("job = ?", (self._id,)),))
        yield Way("the label", (("job_label IN (?, ?)", self._labels),))
        name = self._last.encode()
        names = (name, name + b".", name + b"/")  # "/" is next to "."
        yield Way("the name", (("(name = ? OR name >= ? AND name < ?)", names),))
        beginning = (self._beginning, f"{self._beginning}\x7f")
        end = (-len(self._end), self._end)
        by_end = "key IN (SELECT key FROM jobs WHERE substr(job, ?) = ?)"  # which reads ids alone
        yield Way("a part", (("job >= ? AND job < ?", beginning), (by_end, end)))

    def fits(self, job: str, name: str, label: str | None) -> list[bool]:
        """The same ways for one job that no index is asked about."""
        named = name == self._last or name.startswith(f"{self._last}.")
        part = job.startswith(self._beginning) or job.endswith(self._end)
        return [job == self._id, label in self._labels, named, part]


def user_name(uid: int) -> str:
    """The name of a user; the uid as text where the user database has none (any more). It may take long to say so."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
