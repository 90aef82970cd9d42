"""A row of the index of jobs, as it is stored and as an object.

The settings that the daemon had when a job was accepted are the same for many jobs: they are stored once, in a table
of their own under their SHA-256, and rows refer to them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from obatchd.jobs.model import JobState
from obatchd.settings.job import FrozenSettings, JobSettings

_JSON_COLUMNS = ("settings", "notes", "summary")
defaults_of = lru_cache(64)(msgspec.json.Decoder(FrozenSettings).decode)


class JobRow(msgspec.Struct):
    """One accepted drop in the index."""

    key: int
    job: str
    name: bytes
    owner: int
    kind: str
    size: int  # bytes
    state: JobState
    segment: str
    accepted_s: float
    finished_s: float | None
    paused: bool
    cancelled: bool
    settings: JobSettings  # its own
    notes: list[str]
    digest: str | None
    retry_of: str | None
    summary: dict[str, Any] | None  # the final counts of a finished job
    accepted_moment: str | None  # of obatchd.times; None of a job that an earlier version accepted
    defaults: FrozenSettings  # of the daemon when the job was accepted
    job_label: str | None = None  # that its owner gave it
    indexed_s: float | None = None  # wall clock, as accepted_s: when the drop was read to its end
    answered_s: float | None = None  # when every request had its result
    cancelled_s: float | None = None  # when somebody cancelled it
    refused_lines: int | None = None  # of a job that is over: requests that were refused when they were read

    @property
    def label(self) -> str:
        """The drop's name as text."""
        return self.name.decode("utf-8", "backslashreplace")

    @property
    def frozen(self) -> FrozenSettings:
        """Settings of requests that bring none: the job's own settings over the daemon's of its acceptance."""
        return self.defaults.under(self.settings)


COLUMNS = ", ".join(JobRow.__struct_fields__)
_KEPT = "(SELECT kept.settings FROM job_defaults kept WHERE kept.sha256 = defaults) AS defaults"
SELECT = f"SELECT {COLUMNS.replace('defaults', _KEPT)} FROM"


def job_of(row: tuple[Any, ...]) -> JobRow:
    """The object of a row selected by :data:`SELECT`."""
    values = dict(zip(JobRow.__struct_fields__, row, strict=True))
    values |= {name: msgspec.json.decode(values[name] or b"null") for name in _JSON_COLUMNS}
    values["defaults"] = defaults_of(values["defaults"])
    return msgspec.convert(values, JobRow, strict=False)  # numbers of SQLite become booleans


def kept(defaults: FrozenSettings) -> tuple[bytes, bytes]:
    """Their SHA-256 and text: the row of ``job_defaults`` that all jobs with the same share."""
    settings = msgspec.json.encode(defaults)
    return hashlib.sha256(settings).digest(), settings


def keep(cursor: sqlite3.Cursor, defaults: FrozenSettings) -> bytes:
    """Make sure of the row, and return its key."""
    row = kept(defaults)
    cursor.execute("INSERT OR IGNORE INTO job_defaults VALUES (?, ?)", row)
    return row[0]


def columns(cursor: sqlite3.Cursor, values: Mapping[str, Any]) -> list[Any]:
    """Values of columns, given as objects, as they are stored."""
    stored = dict(values)
    for name in values:
        if name == "defaults":
            stored[name] = keep(cursor, values[name])
        elif name in _JSON_COLUMNS and values[name] is not None:
            stored[name] = msgspec.json.encode(values[name])
    return list(stored.values())
